"""`Cell`: one run of a sweep and its results, in a folder of its own.

The name depends only on the settings of the cell, so it keeps its folder when others are added to
the sweep. A cell is an ordinary run: `trimtab train CELL/run.json` trains or resumes it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import xxhash

from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.errors import CheckpointError, SettingsError
from trimtab.inputs import read_toml
from trimtab.masks.extract import extract_mask
from trimtab.masks.makers.weight_scores import low_magnitude_scores
from trimtab.masks.mask import Mask
from trimtab.masks.selection.quotas import Quotas, random_matched
from trimtab.masks.selection.top_k import select
from trimtab.training.evaluation.evaluate import evaluate
from trimtab.training.evaluation.questions import Questions
from trimtab.training.folders import read_json, write_json
from trimtab.training.runs.execute import MODEL, RESULT
from trimtab.training.runs.overrides import with_overrides
from trimtab.training.runs.settings import (
    CELL_FORMAT,
    CELL_VERSION,
    Settings,
)
from trimtab.training.sweeps.settings import Arm, MaskKind, SweepSettings
from trimtab.words import distinct_names

CELLS = "cells"
"""Folder of the cells, in the folder of the sweep."""

RUN = "run.json"
"""File of the run of a cell: a run file with keys set, which `Settings.read` reads."""

MASK = "mask.safetensors"
"""File of the mask that a cell trains, if it is derived from the changes of another cell."""

CHANGED = "changed.safetensors"
"""File of the mask of what a cell changed, once another cell needs it."""

OUT = "out"
"""Output folder of the run, in the folder of the cell."""

SEED = "seed"
"""The key over whose values an arm is averaged."""

LONGEST_VALUE, LONGEST_NAME = 40, 150

FILES = ("mask", "model", "data.file")
"""Keys whose values may be paths."""

MASK_ENDING = ".safetensors"


@dataclass(frozen=True)
class Outcome:
    """How a cell ended.

    Attributes:
        status: `finished`, `failed` or `interrupted`.
        error: Why it failed, one line.
    """

    status: str
    error: str | None = None


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        name: Name of the cell and its folder.
        arm: Name of the arm; its cells differ in the seed.
        run: The run file.
        settings: Dotted keys of the run file that the sweep sets -> values.
        content: Content of the run file with these keys set.
        folder: Folder of the cell.
        mask: Which mask to derive from the changes of `of`; None for that of the run file.
        of: The cell whose changes the mask is derived from.
        start: The cell whose model it starts from; None for the model of the run file.
        label: Its name for readers: without hashes, and with the shortest names of files.
        arm_label: The same for its arm.
    """

    name: str
    arm: str
    run: Path
    settings: Mapping[str, Any]
    content: Mapping[str, Any]
    folder: Path
    mask: MaskKind | None = None
    of: Cell | None = None
    start: Cell | None = None
    label: str = ""
    arm_label: str = ""

    @property
    def out(self) -> Path:
        """The output folder of the run."""
        return self.folder / OUT

    @property
    def model(self) -> Path:
        """The trained checkpoint."""
        return self.out / MODEL

    @property
    def result(self) -> Path:
        """The result file of the run; written last, so it marks a finished run."""
        return self.out / RESULT

    @property
    def mask_file(self) -> Path:
        """The mask that it trains, if it is derived from another cell."""
        return self.folder / MASK

    @property
    def is_finished(self) -> bool:
        """Whether its run is finished."""
        return self.result.exists()

    @property
    def needs(self) -> tuple[Cell, ...]:
        """Cells that must finish first."""
        return tuple(cell for cell in (self.of, self.start) if cell is not None)

    @property
    def is_ready(self) -> bool:
        """Whether all cells that it needs are finished."""
        return all(cell.is_finished for cell in self.needs)

    @property
    def from_others(self) -> dict[str, str]:
        """Keys of the run file that are set by the cells that it needs -> description."""
        made = {} if self.of is None else {"mask": f"{self.mask} of {self.of.arm}"}
        return made if self.start is None else {**made, "model": f"model of {self.start.arm}"}

    def starts_from(self) -> Path | str:
        """The model that its training starts from: a folder, or a hub id."""
        if self.start is not None:
            return self.start.model
        file = self.file()
        local = file.resolve(file.model)
        return local if local.exists() else file.model

    def file(self) -> Settings:
        """The settings of the run, checked.

        Until the cells that it needs are finished, they have a mask of everything and the model
        that those cells start from, so that other problems are found early.

        Raises:
            SettingsError: The settings are invalid.
        """
        content = {**self.content, "output": str(self.out.resolve())}
        if self.of is not None:
            is_made = self.mask_file.exists()
            content["mask"] = str(self.mask_file.resolve()) if is_made else "all"
        if self.start is not None:
            model = self.start.model if self.start.is_finished else self.start.starts_from()
            content["model"] = str(model.resolve() if isinstance(model, Path) else model)
        if "publish" in content:
            raise SettingsError(
                f"{self.run} has a table [publish], and the cells of a sweep would publish to one "
                "place: leave it out"
            )
        return Settings.of(self.run, content)

    def write(self) -> Path:
        """Write the run and its mask into the folder of the cell; returns the file of the run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        relative = {}
        if self.of is not None:
            self._make_mask(self.of)
            relative["mask"] = MASK
        if self.start is not None:
            relative["model"] = Path(os.path.relpath(self.start.model, self.folder)).as_posix()
        path = self.folder / RUN
        run = os.path.relpath(self.run.resolve(), self.folder.resolve())
        header = {"format": CELL_FORMAT, "format_version": CELL_VERSION, "run_file": run}
        write_json(path, {**header, "content": self.content, "here": {"output": OUT, **relative}})
        return path

    def _make_mask(self, of: Cell) -> None:
        if not self.mask_file.exists():
            assert self.mask is not None, "the arm was checked for it"
            changed = Mask.load(of.changed())
            base, seed = of.starts_from(), self.content.get("seed", 0)
            derived_mask(self.mask, changed, base, seed).save(self.mask_file)

    def changed(self) -> Path:
        """The mask of what it changed, by bits in the dtype of the base; computed once."""
        path = self.folder / CHANGED
        if not path.exists():
            cast = "bf16" if self.file().save_dtype == "fp32" else None
            extract_mask(self.starts_from(), self.model, cast=cast).save(path)
        return path


def derived_mask(kind: MaskKind, changed: Mask, base: Path | str, seed: int) -> Mask:
    """The mask of what a run changed, or a control mask for it.

    Args:
        kind: `own` is what it changed. `random` selects the same number of elements per tensor,
            `matched` the same number per tensor and binary exponent of the base's weight,
            `low-magnitude` the same number per tensor, those of smallest magnitude. `complement`
            is everything else.
        changed: Mask of what the run changed.
        base: The base.
        seed: Random seed.
    """
    match kind:
        case "own":
            return changed
        case "random":
            return changed.random_like(seed)
        case "complement":
            return changed.complement()
        case "matched":
            return random_matched(changed, base, seed)
        case "low-magnitude":
            with open_checkpoint(base) as checkpoint:
                names = [name for name in checkpoint.tensors if name in changed]
                scores = low_magnitude_scores(checkpoint, names)
                quotas = Quotas.like(changed, scores.shapes, match="tensor", base=checkpoint)
                step = {"step": kind, "base": {"id": checkpoint.id}}
                return select(scores, quotas, seed=0, provenance=step)


def cells_of(sweep: SweepSettings) -> list[Cell]:
    """All cells of a sweep: every arm with every combination of the values.

    Raises:
        SettingsError: A run file cannot be read, or two cells have the same name.
    """
    contents = {
        run: read_toml(run, SettingsError) for run in dict.fromkeys(arm.run for arm in sweep.arms)
    }
    files = {
        key: distinct_names(values, MASK_ENDING)
        for key, values in sweep.axes.items()
        if key in FILES and all(isinstance(value, str) for value in values)
    }
    cells: dict[tuple[str | None, int], Cell] = {}
    for arm in sweep.arms:
        for index, values in enumerate(product(*sweep.axes.values())):
            point = dict(zip(sweep.axes, values, strict=True))
            others = {name: cells[name, index] for name in arm.needs}
            cells[arm.name, index] = _cell(sweep, arm, contents[arm.run], point, others, files)
    names = [cell.name for cell in cells.values()]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise SettingsError(f"{sweep.path}: several cells are named {', '.join(twice)}")
    return list(cells.values())


def _cell(
    sweep: SweepSettings,
    arm: Arm,
    content: Mapping[str, Any],
    point: Mapping[str, Any],
    others: Mapping[str, Cell],
    files: Mapping[str, Mapping[str, str]],
) -> Cell:
    if both := [key for key in point if key in arm.settings]:
        where = "[set]" if arm.name is None else f"arm {arm.name} (or [set])"
        raise SettingsError(f"{sweep.path}: {where} and [sweep] both set {', '.join(both)}")
    of_arm = {key: value for key, value in point.items() if key != SEED}
    name, arm_name = (_name(arm, values) for values in (point, of_arm))
    label, arm_label = (_label(arm, values, files) for values in (point, of_arm))
    return made_cell(
        arm,
        content,
        {**arm.settings, **point},
        others,
        name=name,
        arm_name=arm_name,
        folder=sweep.output / CELLS / name,
        label=label,
        arm_label=arm_label,
    )


def made_cell(
    arm: Arm,
    content: Mapping[str, Any],
    settings: Mapping[str, Any],
    others: Mapping[str, Cell],
    *,
    name: str,
    arm_name: str,
    folder: Path,
    label: str | None = None,
    arm_label: str | None = None,
) -> Cell:
    """Create a cell of an arm.

    Args:
        arm: The arm.
        content: The parsed TOML of its run file.
        settings: Dotted keys of the run file -> values.
        others: Name of each arm that it needs -> cell of that arm.
        name: Name of the cell.
        arm_name: Name of the arm; its cells differ in the seed.
        folder: Folder of the cell.
        label: Name of the cell for readers; None for `name`.
        arm_label: Name of the arm for readers; None for `arm_name`.

    Raises:
        SettingsError: A value is not allowed in a run file.
    """
    try:
        json.dumps([content, settings])
    except TypeError:
        raise SettingsError(f"{arm.run}: a date or a time, which no key accepts") from None
    cell = Cell(
        name,
        arm_name,
        arm.run,
        settings,
        with_overrides(content, settings),
        folder,
        arm.mask,
        None if arm.of is None else others[arm.of],
        None if arm.start is None else others[arm.start],
        label or name,
        arm_label or arm_name,
    )
    if both := [key for key in cell.from_others if key in settings]:
        raise SettingsError(
            f"arm {arm.name} takes its {both[0]} from another arm, and it is also set"
        )
    return replace(cell, settings={**settings, **cell.from_others})


def _name(arm: Arm, point: Mapping[str, Any]) -> str:
    """Name of a cell or an arm: its values in the sweep, in file-name characters."""
    arm_name = None if arm.name is None else _text(arm.name)
    name = _joined(arm_name, {key: _text(value) for key, value in point.items()})
    return _shortened(name or arm.run.stem, LONGEST_NAME)


def _label(arm: Arm, point: Mapping[str, Any], files: Mapping[str, Mapping[str, str]]) -> str:
    """Name of a cell or an arm for readers: texts as they are, files by their shortest names."""
    texts = {
        key: files.get(key, {}).get(value, value) if isinstance(value, str) else _text(value)
        for key, value in point.items()
    }
    return _joined(arm.name, texts) or arm.run.stem


def _joined(arm_name: str | None, texts: Mapping[str, str]) -> str:
    """Keys and values; keys without their table where that is clear."""
    last = [key.rpartition(".")[2] for key in texts]
    parts = [
        f"{key if last.count(name) > 1 else name}={text}"
        for (key, text), name in zip(texts.items(), last, strict=True)
    ]
    return ",".join([*([] if arm_name is None else [arm_name]), *parts])


def _text(value: Any) -> str:
    text = (
        value if isinstance(value, str) else json.dumps(value, separators=("_", "-"), default=str)
    )
    plain = re.sub(r"[^A-Za-z0-9._+-]", "-", text).strip("-.") or "-"
    lossy = isinstance(value, str) and plain != value
    return _shortened(plain, LONGEST_VALUE, of=text if lossy else None)


def _shortened(text: str, longest: int, of: str | None = None) -> str:
    """Shorten a text; a hash keeps texts distinct that were cut or changed."""
    if len(text) <= longest and of is None:
        return text
    digest = xxhash.xxh3_64_hexdigest((of or text).encode())[:8]
    return f"{text[: longest - 9].rstrip('-.')}-{digest}"


MEASURED = (
    *("num_steps", "base_dtype", "weights_dtype", "compute_dtype", "optimizer_state_dtype"),
    *("saved_dtype", "criterion", "num_elements", "num_changed", "sparsity"),
    *("loss_last", "reward_last", "num_tokens"),
    *("seconds_train", "peak_memory_bytes", "num_threads", "mask_digest"),
)
"""Columns that are known once a cell is finished."""


def measured(cell: Cell) -> dict[str, Any]:
    """The columns `MEASURED` of a finished cell.

    Raises:
        CheckpointError: Its result cannot be read.
    """
    path = cell.result
    try:
        return _columns(read_json(path))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error!r}): delete {cell.folder} to train again"
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
    """The last logged value; None if there is none."""
    return next((log[name] for log in reversed(history) if name in log), None)


def _whole(number: float | None) -> int | None:
    return None if number is None else int(number)


ANSWERS = "evaluation.json"
"""File of the answers of a cell, in its folder."""


@dataclass(frozen=True)
class Examiner:
    """Evaluates each cell on its questions, once.

    Attributes:
        questions: Name of a cell -> its questions.
    """

    questions: Mapping[str, Questions]

    def has_asked(self, cell: Cell) -> bool:
        """Whether a cell has stored answers to the same questions."""
        return self._known(cell) is not None

    def ask(self, cell: Cell) -> dict[str, Any]:
        """The answers of a finished cell, from its folder if they are to the same questions."""
        if (known := self._known(cell)) is not None:
            return known
        questions = self.questions[cell.name]
        evaluation = evaluate([str(cell.model)], questions=questions).to_dict()
        write_json(cell.folder / ANSWERS, evaluation)
        return evaluation

    def _known(self, cell: Cell) -> dict[str, Any] | None:
        record = json.loads(json.dumps(self.questions[cell.name].describe()))
        try:
            known: dict[str, Any] = read_json(cell.folder / ANSWERS)
            return known if known["questions"]["record"] == record else None
        except (OSError, ValueError, LookupError, TypeError):
            return None
