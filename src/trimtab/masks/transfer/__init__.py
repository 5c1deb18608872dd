"""A mask carried to another checkpoint."""

from trimtab.masks.transfer.engine import transferred

__all__ = ["transferred"]
