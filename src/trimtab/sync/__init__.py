"""A training run published as deltas, version by version, and followed by copies of the model."""
