"""What masked training leaves beside the weights of every checkpoint, and asks for on resuming.

`trimtab_mask.safetensors` is the mask; `trimtab.json` says what was trained with it: settings,
precision, base model and versions. A run goes on only from a checkpoint that was written with the
same mask and the same settings, because the state of the optimizer means nothing under others.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.errors import CheckpointError, MaskMismatchError, SettingsError
from trimtab.masks import Mask
from trimtab.training.folders import read_json, write_json
from trimtab.training.runs.dotted import differences

__all__ = ["MASK_FILE", "RECORD_FILE", "check_same_run", "write_beside_weights"]

MASK_FILE = "trimtab_mask.safetensors"
RECORD_FILE = "trimtab.json"
FORMAT = "trimtab.training"
FORMAT_VERSION = 1


def write_beside_weights(folder: Path, mask: Mask, record: Mapping[str, Any]) -> None:
    """Write mask and record into a folder that the Trainer saved weights in.

    An older pair there is replaced, as the Trainer replaces the weights.

    Args:
        folder: An existing folder.
        mask: What was trained.
        record: Plain data for JSON; `settings` is what `check_same_run` compares.
    """
    mask.save(folder / MASK_FILE, force=True)
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "mask": _describe(mask),
        **record,
    }
    write_json(folder / RECORD_FILE, content)


def _describe(mask: Mask) -> dict[str, Any]:
    """The mask as the record states it."""
    return {
        "file": MASK_FILE,
        "digest": mask.digest,
        "num_tensors": len(mask),
        "num_selected": mask.num_selected(),
        "num_elements": mask.num_elements(),
        "provenance": dict(mask.provenance),
    }


def check_same_run(folder: Path, mask: Mask, settings: Mapping[str, Any]) -> None:
    """Refuse to go on from a checkpoint of another run, before anything of it is loaded.

    Args:
        folder: The checkpoint.
        mask: The mask of this run.
        settings: The settings of this run, as they would be recorded.

    Raises:
        CheckpointError: Masked training did not write this folder.
        MaskMismatchError: It was written with another mask.
        SettingsError: It was written with other settings.
    """
    try:
        record = read_json(folder / RECORD_FILE)
        found, digest = record["settings"], record["mask"]["digest"]
        version = record["format_version"]
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} has no {RECORD_FILE}: train_only goes on only from checkpoints that it wrote"
        ) from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{folder / RECORD_FILE} cannot be read: {error!r}") from None
    if version != FORMAT_VERSION or not isinstance(found, dict):
        raise CheckpointError(
            f"{folder / RECORD_FILE} has the format version {version!r}, expected "
            f"{FORMAT_VERSION}: go on with the trimtab that wrote it"
        )
    if digest != mask.digest:
        raise MaskMismatchError(
            f"{folder} was trained with the mask {digest}, and this run has {mask.digest}: "
            f"go on with {folder / MASK_FILE}"
        )
    if differ := differences(found, settings):
        raise SettingsError(
            f"{folder} belongs to a run with {', '.join(differ)}: use the same settings to go on, "
            "or train from the base"
        )
