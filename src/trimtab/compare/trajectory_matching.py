"""Which tensors of a base and of a series of checkpoints belong together, and what is left over.

Each checkpoint is matched with the base as `trimtab.checkpoints.align` does it for two. A tensor
is followed if all of them have it; what is not followed is listed, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.checkpoints import Checkpoint, StoredTensor
from trimtab.checkpoints.align import Pair, Pairing, may_repeat, num_columns, num_rows, pair_tensors
from trimtab.checkpoints.quantized import BlockScale
from trimtab.compare.trajectory_result import SeriesCoverage
from trimtab.elements.dtypes import DType
from trimtab.errors import TensorMismatchError
from trimtab.words import first_few

__all__ = ["Followed", "SeriesMatching", "coverage_of", "match_series"]


@dataclass(frozen=True, eq=False)
class Followed:
    """A tensor of the model, as the base and every checkpoint of a series have it.

    Attributes:
        name: Name in base, or the tied name that stands for it there.
        stored: As stored in base, then in each checkpoint.
        dtype: In which elements are compared.
        shape: What is followed: the shape in base, or the rows that all have.
        scales: Scales to multiply into each of `stored` first, or None.
    """

    name: str
    stored: tuple[StoredTensor, ...]
    dtype: DType
    shape: tuple[int, ...]
    scales: tuple[BlockScale | None, ...]

    @property
    def num_elements(self) -> int:
        """Elements followed."""
        return num_rows(self.shape) * num_columns(self.shape)


@dataclass(frozen=True, eq=False)
class SeriesMatching:
    """All stored tensors, sorted into what can be followed and what cannot.

    Attributes:
        followed: In base's order.
        doubtful: Those that, a config says, only repeat another one.
        apart: Tensors that are in none, each after the place of its checkpoint; base is 0.
        not_compared: Coverage rows of the tensors that cannot be followed, or not in full.
        renamed: A coverage row for each tensor that has another name in some checkpoint.
        folded: Name of scales -> the weight that they are multiplied into.
        scales: Names of scales, multiplied or not.
        conversion: Words on how elements are compared other than as stored, or None.
    """

    followed: tuple[Followed, ...]
    doubtful: frozenset[Followed]
    apart: tuple[tuple[int, StoredTensor], ...]
    not_compared: tuple[Mapping[str, Any], ...]
    renamed: tuple[Mapping[str, Any], ...]
    folded: Mapping[str, str]
    scales: frozenset[str]
    conversion: str | None


def match_series(
    base: Checkpoint,
    checkpoints: Sequence[Checkpoint],
    *,
    cast: str | None = None,
    dequantize: bool = False,
) -> SeriesMatching:
    """Match the tensors of a base and of a series of checkpoints.

    Args:
        base: Where the series started.
        checkpoints: In order; at least one.
        cast: See `trimtab.checkpoints.align.pair_tensors`.
        dequantize: Likewise.

    Raises:
        TensorMismatchError: Some checkpoints have nothing in common with the base, or differ in
            dtypes without `cast`; all of them are named.
        CheckpointError: `cast` or `dequantize` cannot be used.
    """
    pairings = _pair_all(base, checkpoints, cast=cast, dequantize=dequantize)
    each = list(zip(checkpoints, pairings, strict=True))
    by_name = [{pair.name: pair for pair in pairing.pairs} for pairing in pairings]
    repeating = {pair.name for of, pairing in each for pair in may_repeat(pairing.pairs, base, of)}
    followed: list[Followed] = []
    not_compared, renamed = _Rows("why"), _Rows("renamed")
    for name in dict.fromkeys(name for pairs in by_name for name in pairs):
        found = [
            # Where both leave a tied name unsaid, it makes no pair of these two.
            pairs.get(name) or (pairs.get(base.tied.get(name, "")) if name in of.tied else None)
            for of, pairs in zip(checkpoints, by_name, strict=True)
        ]
        pairs = [pair for pair in found if pair is not None]
        if len(pairs) == len(found):
            followed.append(_follow(name, pairs))
            for of, pair in zip(checkpoints, pairs, strict=True):
                if unlike := _num_apart(pair, followed[-1]):
                    not_compared.add(name, "resized", of.id, unlike)
        elif name not in base.tensors:
            # Tied in base and stored in some checkpoints: no pairing misses it in the others.
            for of, pair_or_none in zip(checkpoints, found, strict=True):
                if pair_or_none is None:
                    not_compared.add(name, "missing", of.id, pairs[0].tuned.num_elements)
    if not followed:
        raise TensorMismatchError(
            f"no tensor of {base.id} is in all of {first_few([of.id for of in checkpoints])}: "
            "expected checkpoints of one model"
        )
    for of, pairing in each:
        for tensor in pairing.missing:
            not_compared.add(tensor.name, "missing", of.id, tensor.num_elements)
        for tensor in pairing.extra:
            not_compared.add(tensor.name, "extra", of.id, tensor.num_elements)
        for in_base, tensor in pairing.mismatched:
            num_elements = max(in_base.num_elements, tensor.num_elements)
            not_compared.add(in_base.name, "shape", of.id, num_elements)
        for name, other in pairing.renamed.items():
            renamed.add(name, other, of.id)
    used = {id(tensor) for item in followed for tensor in item.stored}
    return SeriesMatching(
        followed=tuple(followed),
        doubtful=frozenset(item for item in followed if item.name in repeating),
        apart=tuple(
            (place, tensor)
            for place, of in enumerate((base, *checkpoints))
            for tensor in of.tensors.values()
            if id(tensor) not in used
        ),
        not_compared=not_compared.rows(),
        renamed=renamed.rows(),
        folded={name: into for pairing in pairings for name, into in pairing.folded.items()},
        scales=frozenset(name for pairing in pairings for name in pairing.scales),
        conversion=next((p.conversion for p in pairings if p.conversion is not None), None),
    )


def coverage_of(
    matching: SeriesMatching,
    kept: Sequence[Followed],
    tied: Sequence[tuple[Followed, Followed]],
) -> SeriesCoverage:
    """Say what the counts of a series speak of.

    Args:
        matching: Of the base and the checkpoints.
        kept: The tensors that count.
        tied: Those that do not, each before the one that it repeats.
    """
    apart = [tensor for place, tensor in matching.apart if place == 0]
    return SeriesCoverage(
        num_base=sum(item.stored[0].num_elements for item in kept)
        + sum(tensor.num_elements for tensor in apart if tensor.name not in matching.folded),
        num_compared=sum(item.num_elements for item in kept),
        not_compared=matching.not_compared,
        tied=tuple(
            {"name": copy.name, "tied_to": original.name, "num_elements": copy.num_elements}
            for copy, original in tied
        ),
        renamed=matching.renamed,
        folded=tuple({"name": name, "into": into} for name, into in matching.folded.items()),
    )


def _pair_all(
    base: Checkpoint, checkpoints: Sequence[Checkpoint], *, cast: str | None, dequantize: bool
) -> list[Pairing]:
    """Pair the base with each checkpoint; what is wrong with several is raised together."""
    pairings, problems = [], []
    for checkpoint in checkpoints:
        try:
            pairings.append(pair_tensors(base, checkpoint, cast=cast, dequantize=dequantize))
        except TensorMismatchError as error:
            problems.append(f"{checkpoint.id}: {error}")
    if problems:
        raise TensorMismatchError(first_few(problems, "; "))
    return pairings


def _follow(name: str, pairs: Sequence[Pair]) -> Followed:
    first = pairs[0]
    return Followed(
        name=name,
        stored=(first.base, *(pair.tuned for pair in pairs)),
        dtype=first.dtype,
        shape=min(pair.shape for pair in pairs),  # they differ in rows alone
        scales=(first.base_scale, *(pair.tuned_scale for pair in pairs)),
    )


def _num_apart(pair: Pair, followed: Followed) -> int:
    """Elements of a tensor that are not followed, where its two sides are of different shapes."""
    if pair.base.shape == pair.tuned.shape:
        return 0
    return max(tensor.num_elements for tensor in pair.stored) - followed.num_elements


class _Rows:
    """Coverage rows, one for all checkpoints of which the same is to be said."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._rows: dict[tuple[str, str], dict[str, Any]] = {}

    def add(self, name: str, said: str, label: str, num_elements: int | None = None) -> None:
        """Say it of a tensor in one checkpoint; the largest number counts."""
        row = self._rows.setdefault((name, said), {"name": name, self._title: said, "points": []})
        row["points"].append(label)
        if num_elements is not None:
            row["num_elements"] = max(num_elements, row.get("num_elements", 0))

    def rows(self) -> tuple[Mapping[str, Any], ...]:
        """All rows, in the order in which they came up."""
        return tuple(self._rows.values())
