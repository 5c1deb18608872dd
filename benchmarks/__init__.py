"""Speed and memory, as ratios to named peers measured in the same run."""
