"""Sampled completions, their log-probabilities and rewards: what PPO and PRIME train on.

One **round** is: sample completions with the policy as it is, reward them, and take some optimizer
steps on them. A run can stop between two rounds and go on to the same weights.
"""
