"""What the checkpoints of a series are, by their names: which, in what order, how far apart.

A trainer writes its checkpoints as `checkpoint-120`, others as `global_step_120` or as a revision
`step-120`. The number is the optimizer step; a name without one gives no step.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

from trimtab.checkpoints import Checkpoint
from trimtab.errors import AnalysisError

__all__ = ["Ref", "check_order", "expand", "spacing", "step_of"]

Ref: TypeAlias = str | os.PathLike[str] | Checkpoint
"""A checkpoint as a caller gives it."""

STEP = re.compile(r"(?<![A-Za-z])(?:checkpoint|step)[-_]?(\d{1,15})(?!\d)")
SAVED = re.compile(r"checkpoint-(\d{1,15})")
"""Name of a checkpoint in the folder of a training run, as transformers writes it."""


def step_of(id: str) -> int | None:
    """The optimizer step that the path or hub id of a checkpoint names.

    Examples:
        >>> step_of("runs/grpo/checkpoint-120"), step_of("org/model@step-7"), step_of("runs/sft-2")
        (120, 7, None)
    """
    path = Path(id)
    name = path.parent.name if path.suffix in (".safetensors", ".bin") else path.name
    match = STEP.search(name.rpartition("@")[2])
    return int(match[1]) if match else None


def expand(checkpoints: Ref | Iterable[Ref]) -> list[Ref]:
    """The checkpoints of a series, one by one.

    Args:
        checkpoints: In order; or a single one, or a training run's folder that holds
            `checkpoint-…` folders, which become the series in the order of their steps.

    Raises:
        AnalysisError: There are none.
    """
    if isinstance(checkpoints, Checkpoint):
        return [checkpoints]
    refs: list[Ref]
    refs = [checkpoints] if isinstance(checkpoints, str | os.PathLike) else list(checkpoints)
    if not refs:
        raise AnalysisError("no checkpoints to follow: give at least one after the base")
    if len(refs) == 1 and not isinstance(refs[0], Checkpoint):
        return list(_saved_in(Path(refs[0]))) or refs
    return refs


def _saved_in(run: Path) -> list[str]:
    """The checkpoints in the folder of a training run, by their steps."""
    if not run.is_dir():
        return []
    saved = {
        int(match[1]): str(folder)
        for folder in run.iterdir()
        if (match := SAVED.fullmatch(folder.name)) and folder.is_dir()
    }
    return [folder for _, folder in sorted(saved.items())]


def check_order(ids: Sequence[str]) -> None:
    """Refuse checkpoints of one folder that are not in the order of their steps.

    A shell sorts `checkpoint-1000` before `checkpoint-200`, and a series out of order gives
    figures that look like figures.

    Raises:
        AnalysisError: They are not; the message names the first two.
    """
    for before, after in pairwise(ids):
        steps = step_of(before), step_of(after)
        if None in steps or Path(before).parent != Path(after).parent or "@" in before + after:
            continue
        if steps[0] >= steps[1]:  # type: ignore[operator]
            raise AnalysisError(
                f"{after} comes after {before}: expected checkpoints in the order of their steps, "
                "each once; give them so, or only the folder that holds them"
            )


def spacing(base: str, steps: Sequence[int | None]) -> int | None:
    """Optimizer steps from point to point, if known and always the same.

    Args:
        base: Path or hub id of the base: step 0, unless its name says that it is an earlier
            checkpoint of the same run.
        steps: Of each point.
    """
    known = [step for step in steps if step is not None]
    if len(known) < len(steps):
        return None
    start = step_of(base)
    start = start if start is not None and start < known[0] else 0
    distances = {after - before for before, after in pairwise([start, *known])}
    return distances.pop() if len(distances) == 1 and min(distances) > 0 else None
