"""Measure, mask, train and ship the small part of a model's weights that RL fine-tuning moves.

The public names are below. Importing trimtab loads NumPy and nothing heavier: no torch, no
compiled kernels, no hub client.
"""

__version__ = "0.1.0"

from trimtab.checkpoints import Checkpoint, open_checkpoint
from trimtab.compare import Comparison, PrecisionProbe, compare
from trimtab.elements.counts import ChangeCounts
from trimtab.elements.criteria import Criterion, parse_criterion
from trimtab.errors import TrimtabError
from trimtab.masks import Mask

__all__ = [
    "ChangeCounts",
    "Checkpoint",
    "Comparison",
    "Criterion",
    "Mask",
    "PrecisionProbe",
    "TrimtabError",
    "compare",
    "open_checkpoint",
    "parse_criterion",
]
