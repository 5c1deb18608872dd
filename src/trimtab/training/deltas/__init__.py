"""Deltas of models in memory, and of the checkpoints that a Trainer saves."""
