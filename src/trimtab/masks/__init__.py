"""Masks: which elements of which tensors are selected, one bit each."""
