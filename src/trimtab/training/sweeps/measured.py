"""What a finished cell measured, as columns of the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.errors import CheckpointError
from trimtab.training.folders import read_json
from trimtab.training.runs.execute import RESULT
from trimtab.training.sweeps.cells import Cell

__all__ = ["MEASURED", "measured"]

MEASURED = (
    *("num_steps", "base_dtype", "weights_dtype", "compute_dtype", "optimizer_state_dtype"),
    *("saved_dtype", "criterion", "num_elements", "num_changed", "sparsity"),
    *("loss_last", "reward_last", "num_tokens"),
    *("seconds_train", "peak_memory_bytes", "num_threads", "mask_digest"),
)
"""Columns that are known when a cell is finished."""


def measured(cell: Cell) -> dict[str, Any]:
    """The columns `MEASURED` of a finished cell.

    Raises:
        CheckpointError: Its result cannot be read.
    """
    path = cell.out / RESULT
    try:
        return _columns(read_json(path))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error!r}): delete {cell.folder} to train anew"
        ) from None


def _columns(result: Mapping[str, Any]) -> dict[str, Any]:
    update, precision = result["update"], result["precision"]
    num_elements, num_changed = update["num_elements"], update["num_changed"]
    return {
        "num_steps": result["steps"],
        "base_dtype": precision["base"],
        "weights_dtype": precision["weights"],
        "compute_dtype": precision["compute"],
        "optimizer_state_dtype": precision["optimizer_state"],
        "saved_dtype": precision["saved"],
        "criterion": update["criterion"],
        "num_elements": num_elements,
        "num_changed": num_changed,
        "sparsity": (num_elements - num_changed) / num_elements,
        "loss_last": _last(result["history"], "loss"),
        "reward_last": _last(result["history"], "reward"),
        "num_tokens": _whole(_last(result["history"], "num_tokens")),
        "seconds_train": result["seconds"]["train"],
        "peak_memory_bytes": result["peak_memory"]["num_bytes"],
        "num_threads": result["device"].get("num_threads"),
        "mask_digest": result["optimizer"].get("mask"),
    }


def _last(history: Sequence[Mapping[str, Any]], name: str) -> Any:
    """The last value that was logged; None if none was."""
    return next((log[name] for log in reversed(history) if name in log), None)


def _whole(number: float | None) -> int | None:
    return None if number is None else int(number)
