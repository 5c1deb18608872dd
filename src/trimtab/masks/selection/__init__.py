"""Masks with an exact number of elements, those with the highest scores."""
