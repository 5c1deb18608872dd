"""The mask: which elements of which tensors, one bit each; made, kept in a file, and checked."""

from trimtab.masks.extract import extract_mask
from trimtab.masks.header import BaseTensor, PackedMask
from trimtab.masks.mask import Mask
from trimtab.masks.on_disk import StoredMask, open_mask

__all__ = ["BaseTensor", "Mask", "PackedMask", "StoredMask", "extract_mask", "open_mask"]
