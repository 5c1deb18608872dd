"""Evaluates models on held-out questions, and measures what they forgot.

The entry point is `evaluate.evaluate`. No module imports torch before a function is called.
"""
