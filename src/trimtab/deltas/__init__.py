"""What a tuned checkpoint changes in its base, as files: their formats, and those of others."""
