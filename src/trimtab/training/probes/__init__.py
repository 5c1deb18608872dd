"""Scores the elements of a base model by its gradients, to make masks before training."""
