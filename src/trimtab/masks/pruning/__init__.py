"""Pruning: which weights to set to zero, a checkpoint in which they are, and what then survives."""

from trimtab.masks.pruning.norms import InputNorms
from trimtab.masks.pruning.prune import Pruning, prune
from trimtab.masks.pruning.survivors import survivors

__all__ = ["InputNorms", "Pruning", "prune", "survivors"]
