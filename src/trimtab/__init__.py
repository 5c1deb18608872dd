"""Measure, mask, train and ship the small part of a model's weights that RL fine-tuning moves.

The public names are below, and `UpdateTracker`, which needs the train extra and is imported when
it is asked for. Importing trimtab loads NumPy and nothing heavier: no torch, no compiled kernels,
no hub client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trimtab._version import __version__ as __version__
from trimtab.checkpoints import Checkpoint, open_checkpoint
from trimtab.compare import Comparison, PrecisionProbe, compare
from trimtab.compare.trajectory import trajectory
from trimtab.compare.trajectory_result import Trajectory
from trimtab.elements.counts import ChangeCounts
from trimtab.elements.criteria import Criterion, parse_criterion
from trimtab.errors import TrimtabError
from trimtab.masks import Mask

if TYPE_CHECKING:
    from trimtab.training.tracker import UpdateTracker as UpdateTracker

__all__ = [
    "ChangeCounts",
    "Checkpoint",
    "Comparison",
    "Criterion",
    "Mask",
    "PrecisionProbe",
    "Trajectory",
    "TrimtabError",
    "compare",
    "open_checkpoint",
    "parse_criterion",
    "trajectory",
]


def __getattr__(name: str) -> Any:
    if name != "UpdateTracker":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from trimtab.extras import require

    require("transformers", "pip install 'trimtab[train]'")
    from trimtab.training.tracker import UpdateTracker

    return UpdateTracker


def __dir__() -> list[str]:
    return sorted({*globals(), "UpdateTracker"})
