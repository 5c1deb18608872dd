"""What masks share, beside what they would share by chance."""

from trimtab.masks.overlap.engine import overlap

__all__ = ["overlap"]
