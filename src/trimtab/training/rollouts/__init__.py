"""Sampling of completions, their log-probabilities and rewards, for PPO and PRIME.

One **round** samples completions with the current policy, rewards them, and takes some optimizer
steps on them. A run that is stopped between two rounds resumes to the same weights.
"""
