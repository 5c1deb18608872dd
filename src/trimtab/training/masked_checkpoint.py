"""What masked training leaves beside the weights of every checkpoint, and asks for on resuming.

`trimtab_mask.safetensors` is the mask; `trimtab.json` says what was trained with it: settings,
precision, base model and versions. A run goes on only from a checkpoint that was written with the
same mask and the same settings, because the state of the optimizer means nothing under others.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.errors import CheckpointError, MaskMismatchError, SettingsError
from trimtab.masks.mask import Mask
from trimtab.outputs import ensure_same_settings
from trimtab.training.folders import read_json, write_json
from trimtab.words import first_few

if TYPE_CHECKING:
    from trimtab.training.pieces import Piece

MASK_FILE = "trimtab_mask.safetensors"
RECORD_FILE = "trimtab.json"
FORMAT = "trimtab.training"
FORMAT_VERSION = 1

STATE = {
    "optimizer.pt": "optimizer",  # under FSDP a folder, optimizer_0
    "scheduler.pt": "scheduler.pt",
    "trainer_state.json": "trainer_state.json",
}
"""What a Trainer goes on with, beside the weights -> how its name begins in a checkpoint."""


def check_complete(folder: Path) -> None:
    """Refuse a checkpoint of which training could not go on as if it had not stopped.

    transformers loads what there is of the state and begins the rest anew, without a word: the
    optimizer and the schedule if one of the two is missing, and the count of steps.

    Args:
        folder: The checkpoint.

    Raises:
        CheckpointError: Some of the Trainer's state is missing; names it.
    """
    try:
        found = [path.name for path in folder.iterdir()]
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({error.strerror})") from None
    missing = [
        name for name, begin in STATE.items() if not any(of.startswith(begin) for of in found)
    ]
    if missing:
        raise CheckpointError(
            f"{folder} has no {', '.join(missing)} (saved with save_only_model=True, or not to the "
            "end): the optimizer would begin anew, and nothing would say so. To begin anew from "
            "its weights, load the model from it, and train without resume_from_checkpoint"
        )
    if not any(name.startswith("rng_state") for name in found):
        warnings.warn(
            f"{folder} has no rng_state*.pth: training goes on, and what is drawn at random is not "
            "what it would have been",
            stacklevel=2,
        )


def write_beside_weights(folder: Path, mask: Mask, record: Mapping[str, Any]) -> None:
    """Write mask and record into a folder that the Trainer saved weights in.

    An older pair there is replaced. `settings` of the record are what `check_same_run` compares.
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
    """Refuse to resume from a checkpoint of another run, before anything of it is loaded.

    Raises:
        CheckpointError: Masked training did not write this folder, or only its weights are there.
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
    ensure_same_settings(
        found,
        settings,
        holds=f"{folder} belongs to a run",
        cure="use the same settings to go on, or train from the base",
        error=SettingsError,
    )
    check_complete(folder)


def converted_pieces(model: Any) -> dict[str, Piece]:
    """The stored tensors of a model that files name or cut otherwise than it does.

    Those of sharded parameters are left out.
    """
    from trimtab.training.layout import Layout
    from trimtab.training.optimizers.distributed import as_sharded

    parameters = dict(model.named_parameters())
    layout = Layout.of(model)
    return {
        name: piece
        for name, piece in layout.stored.items()
        if layout.stored_name.get(name) != name
        and not any(as_sharded(parameters[source]) is not None for source in piece.sources)
    }


def load_converted(folder: Path, model: Any) -> None:
    """Load what transformers' Trainer leaves out when it loads the weights of a checkpoint.

    It does so by the names of the model, and passes over the tensors that files name or cut
    otherwise, with a warning: fused experts would keep the weights that they were built with.

    Raises:
        CheckpointError: The checkpoint cannot be read, or lacks such a tensor.
    """
    from trimtab.training.layout import stored_values

    parameters = dict(model.named_parameters())
    converted = converted_pieces(model)
    if not converted:
        return
    with open_checkpoint(folder) as saved:
        if missing := [name for name in converted if name not in saved.tensors]:
            raise CheckpointError(
                f"{folder} has no weights for {first_few(missing)}: resume from a whole checkpoint "
                "of this model"
            )
        for name, piece in converted.items():
            like = parameters[piece.sources[0]]
            values = stored_values(saved.tensors[name])
            piece.assign(values.to(like.device, like.dtype), parameters)
