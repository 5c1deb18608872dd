"""Open a folder, a file or a hub id as lazy tensors; know what each tensor is by its name."""

from trimtab.checkpoints.checkpoint import Checkpoint, open_checkpoint, opened
from trimtab.checkpoints.names import Rectangle, TensorPart, parts_of, tied_names
from trimtab.checkpoints.tensors import DataFile, StoredTensor

__all__ = [
    "Checkpoint",
    "DataFile",
    "Rectangle",
    "StoredTensor",
    "TensorPart",
    "open_checkpoint",
    "opened",
    "parts_of",
    "tied_names",
]
