"""Optimizers that train the elements a mask selects, with memory that follows the mask."""

from trimtab.training.optimizers.adamw import SparseAdamW
from trimtab.training.optimizers.sgd import SparseSGD
from trimtab.training.optimizers.sparse import SparseOptimizer

__all__ = ["SparseAdamW", "SparseOptimizer", "SparseSGD"]
