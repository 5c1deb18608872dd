"""`robustness`: perturb a model inside a mask and elsewhere, and see what it still knows.

The model stays in memory and is perturbed in place: one condition after the other, each undone
before the next. What it says unperturbed is kept, and all that is measured is set against that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.checkpoints import open_checkpoint
from trimtab.checkpoints.record import made_now
from trimtab.errors import AnalysisError, MaskError, MaskMismatchError, SettingsError
from trimtab.masks import Mask
from trimtab.masks.identity.result import MaskRecord
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
from trimtab.training.progress import progress_bars, stage
from trimtab.training.robustness.arms import ARMS, Arm, arms_of
from trimtab.training.robustness.noise import NOISES, level_problem
from trimtab.training.robustness.perturbing import fingerprint, perturbed
from trimtab.training.robustness.result import Cell, Robustness
from trimtab.training.runs.base_model import BaseModel, open_base
from trimtab.training.runs.prompts import check_lengths

if TYPE_CHECKING:
    from rich.progress import Progress
    from torch import Tensor

__all__ = ["DEFAULT_LEVELS", "robustness"]

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
    progress: Progress | None = None,
) -> Robustness:
    """Ask whether a subnetwork is more fragile than other sets of its size.

    Every noise and level is applied to the elements of the mask, to as many outside it, to as many
    at random, and to as many that match them in magnitude; see `trimtab.training.robustness.arms`
    and `.noise`. Weights are perturbed in the dtype in which they are stored (fp16 in fp32).

    Args:
        checkpoint: The model to perturb, as a rule what the mask was extracted from.
        base: What the mask was made against; its weights say which elements have one magnitude.
        mask: The mask, or its file.
        questions: Asked greedily of every perturbed model; None for no questions.
        noises: Keys of `NOISES`.
        levels: Of every noise.
        num_seeds: How often sets and noise are drawn anew.
        seed: The first of the seeds, which follow each other.
        text: Read by the perturbed and the unperturbed model; None for trimtab's neutral text.
        num_passages: The first so many of its passages; None for all.
        batch_size: Answers generated at a time.
        progress: A running display to add lines to; by default an own one on stderr.

    Raises:
        AnalysisError: Settings that cannot be used, or noise that leaves nothing finite.
        CheckpointError: A model cannot be used.
        MaskError: The mask selects nothing, or no file of one.
        MaskMismatchError: The mask is of another model, or was made against another base.
        SettingsError: The text or the questions cannot be used.
        MissingExtraError: A package is missing.
    """
    runtime.start(offline=False)
    if problems := list(_problems(noises, levels, num_seeds, seed, num_passages, batch_size)):
        raise AnalysisError("; ".join(problems))
    mask_id = None if isinstance(mask, Mask) else os.fspath(mask)
    mask = mask if isinstance(mask, Mask) else Mask.load(mask)
    tuned, origin = open_base(os.fspath(checkpoint), Path()), open_base(os.fspath(base), Path())
    num_checked = _check_mask(mask, origin, tuned)
    if questions is not None:
        if questions.rows.has_messages and not tuned.has_chat_template:
            raise SettingsError(
                f"the questions are messages, and the tokenizer of {tuned.record.id} has no chat "
                "template"
            )
        check_lengths(questions.rows, tuned, questions.max_completion_length, None)
    read = read_text(text)
    tokenizer = load_tokenizer(tuned.folder)
    length = passage_length(tuned.folder)
    passages = pieces(tokenizer, read, length)[:num_passages]
    dtype = tuned.training_dtype(None)
    with ExitStack() as stack:
        bars = progress or stack.enter_context(progress_bars())
        stack.enter_context(runtime.quiet())
        opened = stack.enter_context(open_checkpoint(origin.folder))
        subject = _Subject.load(tuned, tokenizer, dtype, questions, passages, batch_size)
        seeds = range(seed, seed + num_seeds)
        line = stack.enter_context(
            stage(bars, "robustness", len(ARMS) * len(noises) * len(levels) * num_seeds)
        )
        cells = []
        for number in seeds:
            arms = arms_of(mask, opened, number)
            for noise in noises:
                for level in levels:
                    for arm in arms.values():
                        cells.append(subject.cell(arm, noise, level, number))
                        line.step(len(cells), {})
        subject.check_restored()
    return Robustness(
        checkpoint=tuned.record,
        base=origin.record,
        mask=MaskRecord(
            id=mask_id,
            digest=mask.digest,
            num_tensors=len(mask),
            num_elements=mask.num_elements(),
            num_selected=mask.num_selected(),
            num_checked=num_checked,
            provenance=mask.provenance,
        ),
        questions=None
        if questions is None
        else {"num_questions": len(questions), **questions.describe()},
        num_correct=subject.num_correct,
        text={
            **read.describe(),
            "num_passages": len(passages),
            "num_tokens": sum(len(ids) - 1 for ids in passages),
            "max_passage_tokens": length,
        },
        arms=ARMS,
        cells=tuple(cells),
        settings={
            "noises": list(noises),
            "levels": list(levels),
            "seeds": list(seeds),
            "dtype": dtype,
            "batch_size": batch_size,
        },
        provenance=made_now(
            device=runtime.device(subject.model.device), versions=runtime.versions()
        ),
    )


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
    for what, given in (("noise", noises), ("level", levels)):
        if not given:
            yield f"no {what} is given"
        if len(set(given)) < len(given):
            yield f"a {what} is given twice"
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


def _check_mask(mask: Mask, base: BaseModel, tuned: BaseModel) -> int:
    """Check a mask against both models; tensors whose bytes in the base were compared."""
    digests = {name: of.digest for name, of in base.tensors.items()}
    mask.check(base.shapes, digests)
    if base.shapes != tuned.shapes:
        other = next(
            name
            for name in {**base.shapes, **tuned.shapes}
            if base.shapes.get(name) != tuned.shapes.get(name)
        )
        raise MaskMismatchError(
            f"{tuned.record.id} is no model of the mask: {other} has shape "
            f"{tuned.shapes.get(other)}, in the base {base.shapes.get(other)}"
        )
    if not mask.num_selected():
        raise MaskError("the mask selects nothing, so there is nothing to perturb")
    if mask.num_selected() == mask.num_elements():
        raise MaskError("the mask selects everything, so nothing is left to set it beside")
    return len(mask.base.keys() & digests.keys())


@dataclass
class _Subject:
    """The model that is perturbed, and what it says unperturbed.

    Attributes:
        model: The model.
        tokenizer: Of it.
        questions: What it is asked.
        passages: What it reads.
        batch_size: Answers generated at a time.
        logits: What it says of each passage, unperturbed.
        bits: Fingerprint of its weights, unperturbed.
        num_correct: Questions that it answers right, unperturbed.
    """

    model: Any
    tokenizer: Any
    questions: Questions | None
    passages: Sequence[Sequence[int]]
    batch_size: int
    logits: list[Tensor]
    bits: str
    num_correct: int | None = None

    @classmethod
    def load(
        cls,
        of: BaseModel,
        tokenizer: Any,
        dtype: str,
        questions: Questions | None,
        passages: Sequence[Sequence[int]],
        batch_size: int,
    ) -> _Subject:
        import torch

        found = torch.accelerator.current_accelerator(check_available=True)
        model = load_model(of.folder, dtype, torch.device("cpu") if found is None else found)
        with torch.inference_mode():
            logits = [next_logits(model, ids) for ids in passages]
        subject = cls(model, tokenizer, questions, passages, batch_size, logits, fingerprint(model))
        subject.num_correct = subject._answered()
        return subject

    def cell(self, arm: Arm, noise: str, level: float, seed: int) -> Cell:
        """Perturb, measure, and put everything back."""
        with perturbed(self.model, arm.elements, noise, level, seed=seed) as hit:
            kl = self._divergence()
            if not isfinite(kl):
                raise AnalysisError(
                    f"{noise} at level {level:g} ({arm.name}, seed {seed}): what the perturbed "
                    "model predicts is not finite: lower the level"
                )
            num_correct = self._answered()
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

    def check_restored(self) -> None:
        """Raise RuntimeError unless the weights are what they were, bit for bit."""
        if fingerprint(self.model) != self.bits:
            raise RuntimeError("the perturbed weights were not put back: a defect of trimtab")

    def _divergence(self) -> float:
        """KL(unperturbed || perturbed) of a token; what `forgetting.probe` measures."""
        import torch

        total = 0.0
        with torch.inference_mode():
            for ids, before in zip(self.passages, self.logits, strict=True):
                total += sums_of(before, next_logits(self.model, ids), ids)[0]
        return total / sum(len(ids) - 1 for ids in self.passages)

    def _answered(self) -> int | None:
        if self.questions is None:
            return None
        answers = ask(
            self.model,
            self.tokenizer,
            self.questions,
            seed=0,
            num_samples=0,
            batch_size=self.batch_size,
        )
        return answers.num_greedy_correct
