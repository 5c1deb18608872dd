"""The contents of run folders: checkpoints of a Trainer, and records in JSON.

A checkpoint folder is written under another name and renamed when it is complete (`new_folder` of
`trimtab.outputs`). Its record, a JSON file, has the size and the xxh3-128 hash of the weights, and
`read_record` checks both, so that a folder that was edited by hand is not used.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab import inputs
from trimtab.checkpoints.tensors import hash_of_file
from trimtab.errors import CheckpointError, CheckpointNotFoundError
from trimtab.outputs import write_text

WEIGHTS = "model.safetensors"

ORIGIN = "origin.json"
"""File name of the record of a base that was made here: where its weights come from."""


def seal(folder: Path, name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Write the record of a folder, with the size and hash of its weights added.

    Args:
        folder: Folder with `model.safetensors`.
        name: File name of the record.
        record: Plain data for JSON.

    Returns:
        The record as written.
    """
    weights = folder / WEIGHTS
    sealed = {
        **record,
        "weights": {
            "file": WEIGHTS,
            "num_bytes": weights.stat().st_size,
            "xxh3_128": hash_of_file(weights),
        },
    }
    write_json(folder / name, sealed)
    return sealed


def read_record(folder: Path, name: str) -> dict[str, Any] | None:
    """Read the record of a folder and check its weights against it.

    Returns:
        The record; None if the folder does not exist.

    Raises:
        CheckpointError: The folder exists but differs from what `seal` wrote.
    """
    if not folder.exists():
        return None
    cure = "delete or rename the folder to make it again"
    try:
        record: dict[str, Any] = read_json(folder / name)
    except CheckpointError as error:
        raise CheckpointError(f"{folder} is not complete ({error}): {cure}") from error
    try:
        expected = record["weights"]
        weights = folder / WEIGHTS
        num_bytes = weights.stat().st_size
        if num_bytes != expected["num_bytes"]:
            raise CheckpointError(
                f"{weights} has {num_bytes} bytes, {name} says {expected['num_bytes']}: {cure}"
            )
        if hash_of_file(weights) != expected["xxh3_128"]:
            raise CheckpointError(f"{weights} was changed after {name} was written: {cure}")
    except (OSError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} is not complete ({name}: {error!r}): {cure}") from error
    return record


def last_checkpoint(output: Path) -> Path | None:
    """Return the last complete checkpoint of a Trainer in a folder; remove incomplete ones.

    The Trainer writes `trainer_state.json` last.
    """
    complete = complete_checkpoints(output)
    for folder in set(output.glob("checkpoint-*")) - set(complete.values()):
        shutil.rmtree(folder)
    return complete[max(complete)] if complete else None


def last_unfinished(output: Path) -> Path | None:
    """Like `last_checkpoint`, but only checkpoints with steps left; later ones are removed.

    A Trainer that is resumed after its last step would take one step too many.
    """
    while (last := last_checkpoint(output)) is not None:
        state = read_json(last / "trainer_state.json")
        if state["global_step"] < state.get("max_steps", state["global_step"] + 1):
            break
        shutil.rmtree(last)
    return last


def complete_checkpoints(output: Path) -> dict[int, Path]:
    """Return the complete checkpoints of a Trainer in a folder, by step."""
    complete: dict[int, Path] = {}
    for folder in output.glob("checkpoint-*"):
        try:
            complete[int(read_json(folder / "trainer_state.json")["global_step"])] = folder
        except (OSError, ValueError, LookupError, TypeError):
            continue
    return complete


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        CheckpointNotFoundError: The file does not exist.
        CheckpointError: The file cannot be read, or is not JSON.
    """
    if not os.path.lexists(path):
        raise CheckpointNotFoundError(f"{path}: no such file")
    return inputs.read_json(path, CheckpointError, limit=inputs.MAX_RESULT_BYTES)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file atomically: a reader sees the old file or the new one."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n", force=True)
