"""Process reinforcement through implicit rewards (Cui et al. 2025, arXiv 2502.01456)."""
