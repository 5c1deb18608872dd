"""Masks of exactly so many elements, those with the highest scores."""
