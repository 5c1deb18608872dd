"""What changed between checkpoints, how it came about over a series of them, and why."""
