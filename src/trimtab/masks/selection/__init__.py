"""Masks of exactly so many elements, those with the highest scores."""

from trimtab.masks.selection.top_k import select

__all__ = ["select"]
