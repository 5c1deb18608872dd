"""Masks of exactly so many elements, those with the highest scores."""

from trimtab.masks.selection.highest import select

__all__ = ["select"]
