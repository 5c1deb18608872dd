"""The files that masked training adds to every checkpoint, and checks when a run is resumed.

`trimtab_mask.safetensors` is the mask; `trimtab.json` records settings, precision, base model and
versions. A run resumes only from a checkpoint with the same mask and the same settings, because
the optimizer state is meaningless under others.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.elements.counts import percent
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
"""State that a Trainer needs to resume, besides the weights -> prefix of its name on disk."""


def check_complete(folder: Path) -> None:
    """Refuse a checkpoint from which training cannot resume exactly.

    transformers silently starts without state that is missing: without optimizer and schedule if
    one of the two is missing, and without the step count.

    Args:
        folder: The checkpoint.

    Raises:
        CheckpointError: Part of the Trainer's state is missing; the message lists it.
    """
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({error.strerror})") from None
    missing = [
        name for name, begin in STATE.items() if not any(file.startswith(begin) for file in names)
    ]
    if missing:
        raise CheckpointError(
            f"{folder} has no {', '.join(missing)} (saved with save_only_model=True, or not to the "
            "end): transformers would silently start with a new optimizer. To do that on purpose, "
            "load the model from it, and train without resume_from_checkpoint"
        )
    if not any(name.startswith("rng_state") for name in names):
        warnings.warn(
            f"{folder} has no rng_state*.pth: training resumes with other random numbers than an "
            "uninterrupted run",
            stacklevel=2,
        )


def write_beside_weights(folder: Path, mask: Mask, record: Mapping[str, Any]) -> None:
    """Write mask and record into a folder in which the Trainer saved weights.

    Existing files are replaced. `check_same_run` compares the `settings` of the record.
    """
    mask.save(folder / MASK_FILE, force=True)
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "mask": _describe(mask),
        **record,
    }
    write_json(folder / RECORD_FILE, content)


TAG = "trimtab-mask"
"""Tag of models that were trained in a mask, on the hub."""

HEADING = "## Trained in a mask"


def add_to_model_card(folder: Path, mask: Mask, repository: str | None) -> None:
    """Add what was trained, and how to load the mask, to the model card of a folder, once.

    Args:
        folder: A folder in which a Trainer wrote its model card, or did not.
        mask: The mask.
        repository: Its `org/name` on the hub; None if it is not pushed.
    """
    from huggingface_hub import ModelCard

    path = folder / "README.md"
    if not path.exists() or HEADING in (card := ModelCard.load(path)).text:
        return
    num_selected, num_elements = mask.num_selected(), mask.num_elements()
    name = repository or "org/name"
    card.text = f"""{card.text.rstrip()}

{HEADING}

{num_selected:,} of {num_elements:,} weights ({percent(num_selected, num_elements)}) were trained by
trimtab; all others are those of the base. `{MASK_FILE}` is the mask, and `{RECORD_FILE}`
records how it was made, the settings and the versions.

```python
from huggingface_hub import hf_hub_download
from trimtab import Mask

mask = Mask.load(hf_hub_download("{name}", "{MASK_FILE}"))
```
"""
    tags = card.data.tags or []
    card.data.tags = sorted({*([tags] if isinstance(tags, str) else tags), TAG})
    card.save(path)


def _describe(mask: Mask) -> dict[str, Any]:
    return {
        "file": MASK_FILE,
        "digest": mask.digest,
        "num_tensors": len(mask),
        "num_selected": mask.num_selected(),
        "num_elements": mask.num_elements(),
        "provenance": dict(mask.provenance),
    }


def mask_made_alike(folder: Path, made: Mapping[str, Any]) -> Mask | None:
    """The mask of a checkpoint, if it was made as another one: of the same kind, density and seed.

    Args:
        folder: A checkpoint of masked training.
        made: The last step in the provenance of the other mask.

    Returns:
        None if it was made in another way, or there is no mask.
    """
    if not (folder / MASK_FILE).exists():
        return None
    mask = Mask.load(folder / MASK_FILE)
    steps = mask.provenance.get("steps") or [{}]
    keys = [key for key in made if key != "base"]  # the base may lie elsewhere by now
    same = all(steps[-1].get(key) == made[key] for key in keys)
    return mask if same else None


def check_same_run(folder: Path, mask: Mask, settings: Mapping[str, Any]) -> None:
    """Refuse to resume from a checkpoint of another run, before anything is loaded.

    Raises:
        CheckpointError: Masked training did not write this folder, or it has only weights.
        MaskMismatchError: It was written with another mask.
        SettingsError: It was written with other settings.
    """
    try:
        record = read_json(folder / RECORD_FILE)
        stored, digest = record["settings"], record["mask"]["digest"]
        version = record["format_version"]
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} has no {RECORD_FILE}: train_only resumes only from checkpoints that it wrote"
        ) from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{folder / RECORD_FILE} cannot be read: {error!r}") from None
    if version != FORMAT_VERSION or not isinstance(stored, dict):
        raise CheckpointError(
            f"{folder / RECORD_FILE} has the format version {version!r}, expected "
            f"{FORMAT_VERSION}: resume with the trimtab that wrote it"
        )
    if digest != mask.digest:
        raise MaskMismatchError(
            f"{folder} was trained with the mask {digest}, and this run has {mask.digest}: "
            f"resume with {folder / MASK_FILE}"
        )
    ensure_same_settings(
        stored,
        settings,
        holds=f"{folder} belongs to a run",
        cure="use the same settings to resume, or train from the base",
        error=SettingsError,
    )
    check_complete(folder)


def converted_pieces(model: Any) -> dict[str, Piece]:
    """The stored tensors whose name or shape differs from the parameters of the model.

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
    """Load the tensors that the Trainer skips when it loads the weights of a checkpoint.

    The Trainer loads by the names of the model, and skips (with a warning) tensors that are stored
    under another name or shape: fused experts would keep their initial weights.

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
