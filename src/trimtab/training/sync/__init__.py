"""Sync with a live training run: rollouts from an engine that follows it."""
