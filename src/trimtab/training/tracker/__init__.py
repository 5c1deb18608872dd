"""Tracks how each optimizer step changes the weights as they are stored."""
