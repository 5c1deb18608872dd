"""`robustness`: perturbs a model inside a mask and elsewhere, and measures the effect.

The model is perturbed in place, under one condition after the other, and restored in between. All
measurements are relative to the unperturbed model.

Finished cells can be saved in a file, so that an interrupted probe can be resumed. Its first line
has all settings, including the device: cells are only reused if everything is the same. Every other
line is a cell, synced to disk before the next one starts; an incomplete last line is dropped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby, product
from math import isfinite
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import xxhash

from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.errors import (
    AnalysisError,
    MaskError,
    MaskMismatchError,
    OutputExistsError,
    ResultFormatError,
)
from trimtab.inputs import open_regular
from trimtab.masks.header import mask_record
from trimtab.masks.mask import Mask
from trimtab.outputs import ensure_same_settings, lock
from trimtab.progress import progress_bars, stage
from trimtab.results.journal import Journal
from trimtab.results.records import made_now
from trimtab.results.robustness import Cell, Robustness
from trimtab.results.schema import from_plain
from trimtab.training import runtime
from trimtab.training.evaluation.answering import ask, load_model, load_tokenizer
from trimtab.training.evaluation.forgetting import (
    next_logits,
    passage_length,
    pieces,
    read_text,
    sums_of,
)
from trimtab.training.evaluation.questions import Questions
from trimtab.training.perturbation.noise import (
    ARMS,
    NOISES,
    Arm,
    arms_of,
    fingerprint,
    level_problem,
    perturbed,
)
from trimtab.training.runs.base_model import BaseModel, open_base

if TYPE_CHECKING:
    from rich.progress import Progress
    from torch import Tensor

FORMAT = "trimtab.robustness.unfinished"
FORMAT_VERSION = 1
"""History: 1, the first."""

Key: TypeAlias = tuple[int, str, float, str]
"""Seed, noise, level and arm of a cell."""


def key_of(cell: Cell) -> Key:
    """The key of a cell."""
    return cell.seed, cell.noise, cell.level, cell.arm


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Lock the file of a probe within the block.

    Raises:
        OutputExistsError: Another process holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock(path.with_name(f".{path.name}.lock")) as is_locked:
        if not is_locked:
            raise OutputExistsError(f"{path}: another process runs this probe: wait for it to end")
        yield


class Unfinished:
    """The cells of a probe that are finished.

    Attributes:
        cells: Key -> cell.
    """

    def __init__(
        self,
        path: Path | None,
        probed: Mapping[str, Any],
        wanted: Iterable[Key],
        num_questions: int | None,
    ) -> None:
        """Start a file of cells, or resume from that of an earlier call.

        Args:
            path: The file; None to keep cells in memory only.
            probed: All settings of the probe, as plain data.
            wanted: Keys of all cells of the probe.
            num_questions: Questions per cell; None without questions.

        Raises:
            OutputExistsError: The file belongs to another probe.
            ResultFormatError: The file has another format, or is damaged.
        """
        self.cells: dict[Key, Cell] = {}
        self._journal: Journal | None = None
        if path is None:
            return
        self._journal = journal = Journal(path, ResultFormatError)
        opening = {"format": FORMAT, "format_version": FORMAT_VERSION, **probed}
        lines = journal.lines() if _is_ours(path) else []
        if not lines:  # also if the first line is incomplete
            journal.begin(opening)
            return
        self.cells = _read(path, lines, json.loads(json.dumps(opening)), num_questions)
        if self.cells.keys() - set(wanted):
            raise _damaged(path, "cells that this probe does not have")
        journal.keep(lines)

    def add(self, cell: Cell) -> None:
        """Add a finished cell."""
        self.cells[key_of(cell)] = cell
        if self._journal is not None:
            self._journal.append(cell.__dict__, syncs=True)


def _is_ours(path: Path) -> bool:
    """Whether the file exists and is one of a probe; OutputExistsError if it is any other."""
    opening = json.dumps({"format": FORMAT})[:-1].encode()
    if not os.path.lexists(path):
        return False
    with open_regular(path, OutputExistsError) as file:
        start = file.read(len(opening))
    if not opening.startswith(start):
        raise OutputExistsError(
            f"{path} is in the way: finished cells are saved there until the result is written, "
            "but this is another kind of file: move it, or give -o another name"
        )
    return True


def _read(
    path: Path, lines: list[bytes], opening: dict[str, Any], num_questions: int | None
) -> dict[Key, Cell]:
    try:
        first, *rows = map(json.loads, lines)
        ensure_same_settings(
            first,
            opening,
            holds=f"{path} holds the finished part of a probe",
            cure="use the same to resume, or delete the file to start over",
        )
        cells = [from_plain(Cell, row, what="cell") for row in rows]
        for cell in cells:
            if problems := list(cell.problems_with(num_questions)):
                raise ValueError(problems[0])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _damaged(path, repr(error)) from None
    return {key_of(cell): cell for cell in cells}


def _damaged(path: Path, why: str) -> ResultFormatError:
    return ResultFormatError(
        f"{path}: not the finished part of a probe, or a damaged one ({why}): delete the file to "
        "start over"
    )


DEFAULT_LEVELS = (0.1, 0.3, 1.0)


def robustness(
    checkpoint: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str],
    mask: Mask | str | os.PathLike[str],
    questions: Questions | None = None,
    noises: Sequence[str] = tuple(NOISES),
    levels: Sequence[float] = DEFAULT_LEVELS,
    num_seeds: int = 3,
    seed: int = 0,
    text: Path | None = None,
    num_passages: int | None = None,
    batch_size: int = 32,
    unfinished: Path | None = None,
    progress: Progress | None = None,
) -> Robustness:
    """Measure whether a subnetwork is more fragile than other sets of its size.

    Every noise and level is applied to the elements of the mask, and to the same number of elements
    outside it, at random, and matched by magnitude; see `trimtab.training.perturbation.noise` for
    the sets and noises. Weights are perturbed in the dtype in which they are stored (fp16 in fp32).

    Args:
        checkpoint: The model to perturb, usually the one from which the mask was extracted.
        base: The base of the mask; its weights are used to match elements by magnitude.
        mask: The mask, or its file.
        questions: Questions for every perturbed model, answered greedily; None for no questions.
        noises: Keys of `NOISES`.
        levels: Levels of every noise.
        num_seeds: Number of draws of sets and noise.
        seed: The first of consecutive seeds.
        text: Text for the divergence from the unperturbed model; None for trimtab's neutral text.
        num_passages: Use only the first N of its passages; None for all.
        batch_size: Answers generated at a time.
        unfinished: File for finished cells, from which an earlier call is resumed; to be deleted by
            the caller once the result is saved. None for no file.
        progress: A progress display to add lines to; by default a new one on stderr.

    Raises:
        AnalysisError: Settings cannot be used, or perturbed predictions are not finite.
        CheckpointError: A model cannot be used.
        MaskError: The mask selects nothing or everything, or its file cannot be read.
        MaskMismatchError: The mask belongs to another model or another base.
        OutputExistsError: The file of finished cells belongs to another probe.
        ResultFormatError: The file of finished cells is damaged.
        SettingsError: The text or the questions cannot be used.
        MissingExtraError: A package is missing.
    """
    runtime.start(offline=False)
    if problems := list(_problems(noises, levels, num_seeds, seed, num_passages, batch_size)):
        raise AnalysisError("; ".join(problems))
    mask_id = None if isinstance(mask, Mask) else os.fspath(mask)
    mask = mask if isinstance(mask, Mask) else Mask.load(mask)
    tuned, origin = open_base(os.fspath(checkpoint), Path()), open_base(os.fspath(base), Path())
    mask = _fitted(mask, origin, tuned)
    if questions is not None:
        questions.check(tuned)
    reading = _Reading.of(tuned, text, num_passages)
    settings: dict[str, Any] = {
        "noises": list(noises),
        "levels": list(levels),
        "seeds": list(range(seed, seed + num_seeds)),
        "dtype": tuned.training_dtype(None),
        "batch_size": batch_size,
    }
    question_record = (
        None if questions is None else {"num_questions": len(questions), **questions.describe()}
    )
    environment = {"device": runtime.device(runtime.accelerator()), "versions": runtime.versions()}
    probed = {
        "checkpoint": tuned.record.content_hash,
        "base": origin.record.content_hash,
        "mask": mask.digest,
        "questions": question_record,
        "text": reading.record,
        "tokens": xxhash.xxh3_128_hexdigest(json.dumps(reading.passages).encode()),
        "settings": settings,
        **environment,
    }
    keys = list(product(settings["seeds"], noises, levels, ARMS))
    with ExitStack() as stack:
        if unfinished is not None:
            stack.enter_context(held(unfinished))
        finished = Unfinished(
            unfinished, probed, keys, None if questions is None else len(questions)
        )
        bars = progress or stack.enter_context(progress_bars())
        stack.enter_context(runtime.quiet())
        subject = _Subject.load(tuned, questions, reading, batch_size)
        _measure(subject, mask, origin, keys, finished, bars)
    return Robustness(
        checkpoint=tuned.record,
        base=origin.record,
        mask=mask_record(mask, mask_id, {name: t.digest for name, t in origin.tensors.items()}),
        questions=question_record,
        num_correct=subject.num_correct,
        text=reading.record,
        arms=ARMS,
        cells=tuple(finished.cells[key] for key in keys),
        settings=settings,
        provenance=made_now(**environment),
    )


def _measure(
    subject: _Subject,
    mask: Mask,
    origin: BaseModel,
    keys: Sequence[Key],
    finished: Unfinished,
    bars: Progress,
) -> None:
    """Measure the remaining cells, seed by seed."""
    remaining = [key for key in keys if key not in finished.cells]
    with open_checkpoint(origin.folder) as base, stage(bars, "robustness", len(keys)) as line:
        line.step(len(finished.cells), {})
        for seed, seed_keys in groupby(remaining, key=itemgetter(0)):
            arms = arms_of(mask, base, seed)
            for _, noise, level, arm in seed_keys:
                finished.add(subject.cell(arms[arm], noise, level, seed))
                line.step(len(finished.cells), {})


def _problems(
    noises: Sequence[str],
    levels: Sequence[float],
    num_seeds: int,
    seed: int,
    num_passages: int | None,
    batch_size: int,
) -> Iterator[str]:
    for noise in noises:
        if noise not in NOISES:
            yield f"there is no noise {noise}: expected some of {', '.join(NOISES)}"
    for kind, values in (("noise", noises), ("level", levels)):
        if not values:
            yield f"no {kind} is given"
        if len(set(values)) < len(values):
            yield f"a {kind} is given twice"
    for level in levels:
        if problem := next(filter(None, (level_problem(noise, level) for noise in noises)), None):
            yield problem
    if num_seeds < 1:
        yield f"num_seeds is {num_seeds}, expected at least 1"
    if not 0 <= seed <= seed + num_seeds <= 2**32:
        yield f"the first of {num_seeds} seeds is {seed}, expected all to be 0 to 2**32 - 1"
    if num_passages is not None and num_passages < 1:
        yield f"num_passages is {num_passages}, expected at least 1"
    if batch_size < 1:
        yield f"batch_size is {batch_size}, expected at least 1"


def _fitted(mask: Mask, base: BaseModel, tuned: BaseModel) -> Mask:
    """Check a mask against both models, and convert it to the tensor names of the base's files."""
    mask = base.fitted(mask)
    one, two = base.layout.parameters, tuned.layout.parameters
    if one != two:
        other = next(name for name in {**one, **two} if one.get(name) != two.get(name))
        raise MaskMismatchError(
            f"{tuned.record.id} is no model of the mask: {other} has shape "
            f"{two.get(other)}, in the base {one.get(other)}"
        )
    if not mask.num_selected():
        raise MaskError("the mask selects nothing, so there is nothing to perturb")
    if mask.num_selected() == mask.num_elements():
        raise MaskError("the mask selects everything, so nothing is left to compare it with")
    return mask


@dataclass(frozen=True)
class _Reading:
    """The passages on which predictions are compared.

    Attributes:
        tokenizer: Tokenizer of both models.
        passages: Token ids of each passage.
        record: Record of the text, for the result.
    """

    tokenizer: Any
    passages: list[list[int]]
    record: dict[str, Any]

    @classmethod
    def of(cls, model: BaseModel, text: Path | None, num_passages: int | None) -> _Reading:
        neutral = read_text(text)
        tokenizer, length = load_tokenizer(model.folder), passage_length(model.folder)
        passages = pieces(tokenizer, neutral, length)[:num_passages]
        record = {
            **neutral.describe(),
            "num_passages": len(passages),
            "num_tokens": sum(len(ids) - 1 for ids in passages),
            "max_passage_tokens": length,
        }
        return cls(tokenizer, passages, record)


@dataclass
class _Subject:
    """The model that is perturbed, and its unperturbed predictions.

    Attributes:
        model: The model.
        questions: Questions to ask it.
        reading: Passages to read.
        batch_size: Answers generated at a time.
        logits: Unperturbed logits of each passage.
        bits: Fingerprint of the unperturbed weights.
        num_correct: Questions that the unperturbed model answers correctly.
    """

    model: Any
    questions: Questions | None
    reading: _Reading
    batch_size: int
    logits: list[Tensor]
    bits: str
    num_correct: int | None = None

    @classmethod
    def load(
        cls, checkpoint: BaseModel, questions: Questions | None, reading: _Reading, batch_size: int
    ) -> _Subject:
        import torch

        model = load_model(checkpoint, checkpoint.training_dtype(None), runtime.accelerator())
        with torch.inference_mode():
            logits = [next_logits(model, ids) for ids in reading.passages]
        subject = cls(model, questions, reading, batch_size, logits, fingerprint(model))
        subject.num_correct = subject._answered()
        return subject

    def cell(self, arm: Arm, noise: str, level: float, seed: int) -> Cell:
        """Perturb, measure, restore the weights, and verify that they are restored bit for bit.

        Raises:
            AnalysisError: The predictions of the perturbed model are not finite.
        """
        with perturbed(self.model, arm.elements, noise, level, seed=seed) as hit:
            kl = self._divergence()
            if not isfinite(kl):
                raise AnalysisError(
                    f"{noise} at level {level:g} ({arm.name}, seed {seed}): the predictions of the "
                    "perturbed model are not finite: lower the level"
                )
            num_correct = self._answered()
        if fingerprint(self.model) != self.bits:
            raise RuntimeError("the perturbed weights were not restored: this is a bug of trimtab")
        return Cell(
            noise=noise,
            level=level,
            arm=arm.name,
            seed=seed,
            num_chosen=hit.num_chosen,
            num_in_mask=arm.num_in_mask,
            num_changed=hit.num_changed,
            relative_norm=hit.relative_norm,
            num_correct=num_correct,
            kl=kl,
        )

    def _divergence(self) -> float:
        """Mean KL(unperturbed || perturbed) per token, as in `forgetting.measure_forgetting`."""
        import torch

        total = 0.0
        with torch.inference_mode():
            for ids, before in zip(self.reading.passages, self.logits, strict=True):
                total += sums_of(before, next_logits(self.model, ids), ids)[0]
        return total / self.reading.record["num_tokens"]

    def _answered(self) -> int | None:
        if self.questions is None:
            return None
        answers = ask(
            self.model,
            self.reading.tokenizer,
            self.questions,
            seed=0,
            num_samples=0,
            batch_size=self.batch_size,
        )
        return answers.num_greedy_correct
