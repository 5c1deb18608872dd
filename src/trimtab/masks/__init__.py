"""The mask: which elements of which tensors, one bit each; made, kept in a file, and checked."""

from trimtab.masks.extract import extract_mask
from trimtab.masks.mask import Mask
from trimtab.masks.packed import BaseTensor
from trimtab.masks.stored import AnyMask, StoredMask, open_mask

__all__ = ["AnyMask", "BaseTensor", "Mask", "StoredMask", "extract_mask", "open_mask"]
