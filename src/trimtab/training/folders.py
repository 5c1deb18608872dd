"""What folders of runs hold: checkpoints of a Trainer, and records in JSON.

A checkpoint folder is filled under another name and renamed when it is complete (`new_folder` of
`trimtab.outputs`), so whatever carries its name was finished. Its record (a JSON file) names the
bytes and the xxh3-128 of the weights; `read_record` checks them, so that a folder altered by hand
is never taken for a result.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from trimtab import inputs
from trimtab.errors import CheckpointError, CheckpointNotFoundError
from trimtab.outputs import write_text

WEIGHTS = "model.safetensors"

ORIGIN = "origin.json"
"""The record in the folder of a base that was made here: where its weights come from."""


def seal(folder: Path, name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Write a folder's record, with the size and hash of its weights added.

    Args:
        folder: Holds `model.safetensors`.
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
            "xxh3_128": _hash(weights),
        },
    }
    write_json(folder / name, sealed)
    return sealed


def read_record(folder: Path, name: str) -> dict[str, Any] | None:
    """Read the record of a folder and check its weights against it.

    Returns:
        The record; None if the folder does not exist.

    Raises:
        CheckpointError: The folder exists but is not as `seal` left it.
    """
    if not folder.exists():
        return None
    cure = "delete or rename the folder to make it anew"
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
        if _hash(weights) != expected["xxh3_128"]:
            raise CheckpointError(f"{weights} was changed after {name} was written: {cure}")
    except (OSError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} is not complete ({name}: {error!r}): {cure}") from error
    return record


def last_checkpoint(work: Path) -> Path | None:
    """The last complete checkpoint of a Trainer in a folder; an unfinished one is removed.

    The Trainer writes `trainer_state.json` last.
    """
    complete = complete_checkpoints(work)
    for folder in set(work.glob("checkpoint-*")) - set(complete.values()):
        shutil.rmtree(folder)
    return complete[max(complete)] if complete else None


def last_unfinished(work: Path) -> Path | None:
    """As `last_checkpoint`, of those after which steps are left; later ones are removed.

    The Trainer would take another step when it is resumed after its last: one too many.
    """
    while (last := last_checkpoint(work)) is not None:
        state = read_json(last / "trainer_state.json")
        if state["global_step"] < state.get("max_steps", state["global_step"] + 1):
            break
        shutil.rmtree(last)
    return last


def complete_checkpoints(work: Path) -> dict[int, Path]:
    """Step -> the complete checkpoint of a Trainer after it."""
    complete: dict[int, Path] = {}
    for folder in work.glob("checkpoint-*"):
        try:
            complete[int(read_json(folder / "trainer_state.json")["global_step"])] = folder
        except (OSError, ValueError, LookupError, TypeError):
            continue
    return complete


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        CheckpointNotFoundError: There is none.
        CheckpointError: It cannot be read, or is no JSON.
    """
    if not os.path.lexists(path):
        raise CheckpointNotFoundError(f"{path}: no such file")
    return inputs.read_json(path, CheckpointError, limit=inputs.MAX_RESULT_BYTES)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file in one step: a reader sees the old one or the new one."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n", force=True)


def _hash(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
