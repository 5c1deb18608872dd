"""Computes gradients of a base model, and a score for each element from their sums.

The model is loaded once and never changed, and each gradient is freed as soon as it is processed.
The sums, an fp32 number per element, are in an unlinked memory-mapped file, whose pages are
released after every update: they take page cache but no memory of the process.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import isfinite, prod
from pathlib import Path
from tempfile import TemporaryFile
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trimtab.checkpoints.weights import CHUNK_ELEMENTS
from trimtab.errors import SettingsError
from trimtab.masks.header import BaseTensor
from trimtab.progress import progress_bars, stage
from trimtab.training import runtime
from trimtab.training.evaluation.answering import load_model, load_tokenizer
from trimtab.training.layout import Layout
from trimtab.training.pieces import Piece
from trimtab.training.probes.losses import Losses, ProbeData, Term
from trimtab.training.runs.base_model import BaseModel, open_base
from trimtab.training.runs.data import check_lengths
from trimtab.training.runtime import PeakMemory, give_back_unused
from trimtab.words import first_few

if TYPE_CHECKING:
    from rich.progress import Progress


@dataclass(frozen=True)
class Measure:
    """How gradients become scores. Tensors are flat and fp32.

    Attributes:
        name: Name in the command line and the provenance.
        add: Adds a gradient, which it may overwrite, to the sums.
        finish: Converts sums to scores in place, given the weights and the number of gradients.
    """

    name: str
    add: Callable[[Tensor, Tensor], None]
    finish: Callable[[Tensor, Tensor, int], None]


def _add_square(sums: Tensor, gradient: Tensor) -> None:
    sums.addcmul_(gradient, gradient)


def _add_sign(sums: Tensor, gradient: Tensor) -> None:
    sums.add_(gradient.sign_())


def _add(sums: Tensor, gradient: Tensor) -> None:
    sums.add_(gradient)


def _mean(sums: Tensor, weights: Tensor, num: int) -> None:
    sums.div_(num)


def _share_of_signs(sums: Tensor, weights: Tensor, num: int) -> None:
    sums.abs_().div_(num)


def _saliency(sums: Tensor, weights: Tensor, num: int) -> None:
    sums.div_(num).mul_(weights).abs_()


FISHER = Measure("fisher", _add_square, _mean)
"""The diagonal of the model Fisher: the mean of (∂ log p(y | x) / ∂w)² over prompts x and
completions y sampled from the model.

y is an entire completion. Single tokens would give the same expectation, since the gradients of
different tokens of a sample are uncorrelated.

Source:
    arXiv 2609.36262: a small diagonal of the model Fisher means small expected gradients.
"""

SIGN_CONSISTENCY = Measure("sign-consistency", _add_sign, _share_of_signs)
"""|sum of the signs of the gradient| / N over N batches: 1 if all signs are equal.

The sign of a gradient of 0 is 0.
"""

SNIP = Measure("snip", _add, _saliency)
"""|w g| with g the mean gradient over all batches: how much the loss would change, to first order,
if the element were 0.

Source:
    Lee, Ajanthan and Torr, SNIP, ICLR 2019 (arXiv 1810.02340), section 4, without the division
    by the sum over all elements, which does not change the order.
"""


class ElementSums:
    """A number for each element, initially 0; a context manager that implements `Scores` of masks.

    Attributes:
        shapes: Name -> shape of each tensor.
        base: Name -> dtype and digest of each tensor.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        base: Mapping[str, BaseTensor],
        folder: Path,
    ) -> None:
        """Reserve space on the disk of `folder`, or of its closest existing parent.

        Raises:
            SettingsError: The disk is full.
        """
        self.shapes = dict(shapes)
        self.base = dict(base)
        while not folder.is_dir():
            folder = folder.parent
        self._offsets: dict[str, int] = {}
        end = 0
        for name, shape in self.shapes.items():
            self._offsets[name] = end
            end += _whole_pages(4 * prod(shape))
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115 - closed with the map
        try:
            _reserve(self._file.fileno(), end, folder)
            self._map = mmap.mmap(self._file.fileno(), max(end, 1))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> ElementSums:
        return self

    def __exit__(self, *exception: object) -> None:
        self._map.close()
        self._file.close()

    @contextmanager
    def of(self, name: str) -> Iterator[Tensor]:
        """The numbers of a tensor, flat, readable and writable within the context."""
        count, offset = prod(self.shapes[name]), self._offsets[name]
        if not count:
            yield torch.empty(0)
            return
        yield torch.frombuffer(self._map, dtype=torch.float32, count=count, offset=offset)
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, offset, _whole_pages(4 * count))

    def chunks(self, name: str) -> Iterator[NDArray[np.float32]]:
        """The numbers of a tensor, as in `trimtab.masks.selection.scores.Scores`."""
        first = self._offsets[name]
        end = first + 4 * prod(self.shapes[name])
        for start in range(first, end, 4 * CHUNK_ELEMENTS):
            yield np.frombuffer(self._map[start : min(end, start + 4 * CHUNK_ELEMENTS)], np.float32)


def _whole_pages(num_bytes: int) -> int:
    return -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE


def _reserve(file: int, num_bytes: int, folder: Path) -> None:
    """Allocate space: writing to a mapped file on a full disk would kill the process."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, max(num_bytes, 1))
        else:
            os.truncate(file, max(num_bytes, 1))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise
        raise SettingsError(
            f"{folder}: no room for {num_bytes / 1e6:,.0f} MB, 4 bytes for each element of the "
            "model: write the mask to another disk"
        ) from None


See = Callable[[str, Tensor], None]
"""Called with the name of a parameter and its gradient, which it may overwrite."""

Backward = Callable[[Tensor], None]
"""Called with a loss."""


@contextmanager
def each_gradient(parameters: Mapping[str, Tensor], see: See) -> Iterator[Backward]:
    """Yield a backward function that passes each gradient to `see` and frees it.

    The gradient of a parameter that the model uses twice, such as tied embeddings, is the sum of
    both. Parameters that do not affect the loss are skipped.

    Args:
        parameters: Name -> parameter; `grad` is None before and after.
        see: Called with the gradients of each loss.

    Raises:
        SettingsError: (by the function) A gradient has NaN or infinity; names the parameters.
    """
    broken: list[str] = []

    def hook_of(name: str) -> Callable[[Any], None]:
        def hook(parameter: Any) -> None:
            gradient, parameter.grad = parameter.grad, None
            # The maximum norm is NaN if any element is, and takes one pass without a copy.
            if not isfinite(torch.linalg.vector_norm(gradient, torch.inf)):
                broken.append(name)
            elif not broken:
                see(name, gradient)

        return hook

    def backward(loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        if broken:
            raise SettingsError(
                f"the gradient of {first_few(broken)} has NaN or infinity, so elements cannot be "
                "scored: leave out the rows that cause it, or compute in another dtype"
            )

    hooks = [
        parameter.register_post_accumulate_grad_hook(hook_of(name))  # type: ignore[no-untyped-call]
        for name, parameter in parameters.items()
    ]
    try:
        yield backward
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class Probed:
    """The result of a probe.

    Attributes:
        scores: A number for each element; elements with higher scores are selected first.
        step: Settings and costs, for the provenance of a mask.
    """

    scores: ElementSums
    step: Mapping[str, Any]


@contextmanager
def probe(
    base: str,
    measure: Measure,
    losses: Losses,
    data: ProbeData,
    *,
    folder: Path,
    names: Iterable[str] | None = None,
    seed: int = 0,
    dtype: Literal["bf16", "fp32"] = "fp32",
    progress: Progress | None = None,
) -> Iterator[Probed]:
    """Score every element of a model by its gradients; the scores are valid within the context.

    Args:
        base: The model: a folder, or a hub id with an optional `@revision`.
        measure: How gradients become scores.
        losses: The losses to differentiate.
        data: The data, with everything that `losses` needs.
        folder: The sums are stored on its disk, 4 bytes for each element.
        names: Names of the tensors to score; None for all that are trained.
        seed: Seed of the order of the rows and of sampling.
        dtype: Dtype of weights and arithmetic. In bf16 many gradients are equal.
        progress: A progress display to add a line to; by default a new one on stderr.

    Raises:
        SettingsError: Settings or data cannot be used, a gradient is not finite, or all rewards of
            every prompt are equal.
        CheckpointError: The model cannot be used.
    """
    runtime.start(offline=False)
    losses.check(data)
    opened = open_base(base, Path())
    _check(opened, losses, data)
    started = perf_counter()
    with ExitStack() as stack:
        bars = progress or stack.enter_context(progress_bars())
        stack.enter_context(runtime.quiet())
        model = load_model(opened, dtype, runtime.accelerator())
        tokenizer = load_tokenizer(opened.folder)
        peak = PeakMemory(model.device)
        pieces = _chosen(opened.layout_of(model), names)
        needed = {source for piece in pieces.values() for source in piece.sources}
        parameters = {name: p for name, p in model.named_parameters() if name in needed}
        shapes = {name: piece.shape for name, piece in pieces.items()}
        digests = {name: opened.tensors[name] for name in pieces}
        sums = stack.enter_context(ElementSums(shapes, digests, folder))
        totals = _Totals(measure, sums, parameters, pieces)
        with stage(bars, f"{measure.name}: gradients", losses.num_terms(data)) as line:
            with each_gradient(parameters, totals.add) as backward:
                for term in losses.terms(model, tokenizer, data, seed):
                    if term.loss is not None:
                        backward(term.loss)
                    totals.count(term)
                    line.step(totals.num_terms, {})
            totals.finish()
        counted, peak_memory = totals.describe(), peak.read()
        device = runtime.device(model.device)
        del model, parameters, totals
        give_back_unused()
        step = {
            "step": measure.name,
            "base": opened.record.to_dict(),
            "left_out": sorted(opened.tensors.keys() - opened.shapes.keys()),
            "data": data.describe(),
            **losses.describe(),
            **counted,
            "seed": seed,
            "dtype": dtype,
            "seconds": perf_counter() - started,
            "peak_memory": peak_memory,
            "device": device,
            "versions": runtime.versions(),
        }
        yield Probed(sums, step)


class _Totals:
    """The sums of a probe, and counts of what was added to them."""

    def __init__(
        self,
        measure: Measure,
        sums: ElementSums,
        parameters: Mapping[str, Tensor],
        pieces: Mapping[str, Piece],
    ) -> None:
        self._parameters = parameters
        self._pieces: dict[str, list[tuple[str, Piece]]] = {}
        for name, piece in pieces.items():
            self._pieces.setdefault(piece.sources[0], []).append((name, piece))
        self.num_terms = 0
        self._measure = measure
        self._sums = sums
        self._counts = dict.fromkeys(("num_sequences", "num_tokens"), 0)
        self._groups = dict.fromkeys(("num_groups", "num_groups_told"), 0)

    def add(self, name: str, gradient: Tensor) -> None:
        """Add the gradient of a parameter to the sums of its stored tensors."""
        for stored, piece in self._pieces[name]:
            with self._sums.of(stored) as sums:
                values = piece.of({name: gradient}).reshape(-1)
                self._measure.add(sums, values.to("cpu", torch.float32))

    def count(self, term: Term) -> None:
        """Add the counts of a loss."""
        self.num_terms += 1
        for counts in (self._counts, self._groups):
            for name in counts:
                counts[name] += getattr(term, name)

    @torch.no_grad()
    def finish(self) -> None:
        """Convert sums to scores; SettingsError if the rewards of every prompt were equal."""
        if self._groups["num_groups"] and not self._groups["num_groups_told"]:
            raise SettingsError(
                f"the samples of each of {self._groups['num_groups']} prompts have equal rewards, "
                "so all gradients are 0: use more samples, other prompts or another reward"
            )
        for stored, piece in (pair for pairs in self._pieces.values() for pair in pairs):
            with self._sums.of(stored) as sums:
                weights = piece.of(self._parameters).detach().reshape(-1)
                self._measure.finish(sums, weights.to("cpu", torch.float32), self.num_terms)

    def describe(self) -> dict[str, int]:
        """The counts, for the provenance."""
        return {**self._counts, **(self._groups if self._groups["num_groups"] else {})}


def _chosen(layout: Layout, names: Iterable[str] | None) -> dict[str, Piece]:
    """The stored tensors to score; SettingsError if one consists of several parameters."""
    chosen = layout.stored.keys() if names is None else set(names)
    pieces = {name: piece for name, piece in layout.stored.items() if name in chosen}
    if joined := [name for name, piece in pieces.items() if len(piece.sources) > 1]:
        raise SettingsError(
            f"{first_few(joined)}: stored in one tensor and several parameters of the model, whose "
            "gradients cannot be scored together"
        )
    return pieces


def _check(base: BaseModel, losses: Losses, data: ProbeData) -> None:
    """Check the base against losses and data, before it is loaded."""
    if missing := [name for name in base.shapes if name not in base.tensors]:
        raise SettingsError(
            f"{base.record.id} does not store {first_few(missing)} under this name, so a mask "
            "could not name its elements: save the model again with transformers"
        )
    if data.rows.has_messages and not base.has_chat_template:
        raise SettingsError(
            f"{data.rows.source} has messages, and the tokenizer of {base.record.id} has no chat "
            "template: write prompts as text, or use a model with one"
        )
    samples = losses.needs != "completions"
    check_lengths(data.rows, base, data.max_completion_length if samples else 1, None)
