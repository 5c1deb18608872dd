"""What changed between checkpoints and along a series of them, and analyses of the change."""
