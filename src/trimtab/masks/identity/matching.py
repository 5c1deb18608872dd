"""Which tensors of three checkpoints belong together, and what is left over.

As in `trimtab.checkpoints.align`, everything stored on any side ends up in exactly one place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.checkpoints import Checkpoint, StoredTensor
from trimtab.checkpoints.align import may_repeat, pair_tensors
from trimtab.errors import TensorMismatchError
from trimtab.masks.identity.result import SIDES, IdentityCoverage
from trimtab.masks.mask import Mask
from trimtab.words import are, first_few

__all__ = ["Matching", "Triple", "coverage_of", "match_tensors"]


@dataclass(frozen=True, eq=False)
class Triple:
    """A tensor of the model as each of the three checkpoints has it, of one shape and dtype.

    Attributes:
        name: Name in BASE.
        stored: As stored in BASE, FULL and SUB.
    """

    name: str
    stored: tuple[StoredTensor, StoredTensor, StoredTensor]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in all three."""
        return self.stored[0].shape

    @property
    def num_elements(self) -> int:
        """Elements in each of the three."""
        return self.stored[0].num_elements


@dataclass(frozen=True, eq=False)
class Matching:
    """All stored tensors, sorted into what can be compared and what cannot.

    Attributes:
        triples: To compare, in BASE's order.
        doubtful: Those that, a config says, only repeat another one.
        apart: Tensors that are in no triple, each after the place of its checkpoint (0, 1, 2).
        renamed: A coverage row for each triple whose names differ.
        scales: Names of the scales of quantised weights.
        conversion: Words on how elements are compared other than as stored, or None.
    """

    triples: tuple[Triple, ...]
    doubtful: frozenset[Triple]
    apart: tuple[tuple[int, StoredTensor], ...]
    renamed: tuple[Mapping[str, str], ...]
    scales: frozenset[str]
    conversion: str | None


def match_tensors(base: Checkpoint, full: Checkpoint, sub: Checkpoint) -> Matching:
    """Match the tensors of three checkpoints of one model.

    Tensors that are not in all three, or not of one shape, are left apart.

    Raises:
        TensorMismatchError: No tensor is in all three, or some are stored in different dtypes.
    """
    _refuse_mixed_dtypes(base, full, sub)
    to_base, to_sub = pair_tensors(base, full), pair_tensors(full, sub)
    # By the name in FULL, which both pairings know.
    with_base = {to_base.renamed.get(pair.name, pair.name): pair for pair in to_base.pairs}
    with_sub = {pair.name: pair for pair in to_sub.pairs}
    repeating = may_repeat(to_base.pairs, base, full) | may_repeat(to_sub.pairs, full, sub)
    triples, doubtful, renamed = [], set(), []
    for name in dict.fromkeys([*with_base, *with_sub]):
        base_pair, sub_pair = with_base.get(name), with_sub.get(name)
        # Where two checkpoints both leave a tied name unsaid, it makes no pair of these two.
        in_base = base_pair.base if base_pair else _tied(base, name)
        in_full = base_pair.tuned if base_pair else with_sub[name].base
        in_sub = sub_pair.tuned if sub_pair else _tied(sub, name)
        if in_base is None or in_sub is None:
            continue
        if not in_base.shape == in_full.shape == in_sub.shape:
            continue
        names = {
            "base": base_pair.name if base_pair else name,
            "full": name,
            "sub": to_sub.renamed.get(name, name),
        }
        if len(set(names.values())) > 1:
            renamed.append(names)
        triple = Triple(names["base"], (in_base, in_full, in_sub))
        triples.append(triple)
        if base_pair in repeating or sub_pair in repeating:
            doubtful.add(triple)
    if not triples:
        raise TensorMismatchError(
            f"no tensor is in all of {base.id}, {full.id} and {sub.id} with one shape: expected "
            "three checkpoints of one model"
        )
    used = {id(tensor) for triple in triples for tensor in triple.stored}
    apart = [
        (side, tensor)
        for side, checkpoint in enumerate((base, full, sub))
        for tensor in checkpoint.tensors.values()
        if id(tensor) not in used
    ]
    conversion = to_base.conversion or to_sub.conversion
    return Matching(
        tuple(triples),
        frozenset(doubtful),
        tuple(apart),
        tuple(renamed),
        frozenset(to_base.scales | to_sub.scales),
        conversion,
    )


def _refuse_mixed_dtypes(base: Checkpoint, full: Checkpoint, sub: Checkpoint) -> None:
    """Say it of all three at once, before a pair of them is refused in the words of a pair."""
    mixed = []
    for name in full.tensors:
        found = {
            side: checkpoint.tensors[name].dtype.name
            for side, checkpoint in zip(SIDES, (base, full, sub), strict=True)
            if name in checkpoint.tensors
        }
        if len(set(found.values())) > 1:
            said = ", ".join(f"{dtype} in {side.upper()}" for side, dtype in found.items())
            mixed.append(f"{name} is {said}")
    if mixed:
        raise TensorMismatchError(
            f"{are(len(mixed), 'tensor')} stored in different dtypes: "
            f"{first_few(mixed, '; ')}. A cast would manufacture equal elements: save all three in "
            "one dtype"
        )


def _tied(checkpoint: Checkpoint, name: str) -> StoredTensor | None:
    original = checkpoint.tied.get(name)
    return None if original is None else checkpoint.tensors[original]


def coverage_of(
    matching: Matching,
    kept: Sequence[Triple],
    tied: Sequence[tuple[Triple, Triple]],
    mask: Mask,
) -> IdentityCoverage:
    """Sort every stored element into compared, tied or not compared, and the mask's beside it.

    Args:
        matching: Of the three checkpoints.
        kept: The triples that count.
        tied: Triples that do not, each before the one that it repeats.
        mask: The mask.
    """
    num_compared = sum(triple.num_elements for triple in kept)
    num_stored = [num_compared] * len(SIDES)
    not_compared: dict[str, dict[str, Any]] = {}
    for side, tensor in matching.apart:
        num_stored[side] += tensor.num_elements
        row = not_compared.setdefault(
            tensor.name,
            {
                "name": tensor.name,
                **{f"{name}_shape": None for name in SIDES},
                "num_selected": mask.num_selected(tensor.name) if tensor.name in mask else 0,
            },
        )
        row[f"{SIDES[side]}_shape"] = list(tensor.shape)
    return IdentityCoverage(
        num_base=num_stored[0],
        num_full=num_stored[1],
        num_sub=num_stored[2],
        num_compared=num_compared,
        not_compared=tuple(not_compared.values()),
        not_in_mask=tuple(
            {"name": triple.name, "num_elements": triple.num_elements}
            for triple in kept
            if triple.name not in mask
        ),
        tied=tuple(
            {
                "name": triple.name,
                "tied_to": original.name,
                "num_elements": triple.num_elements,
            }
            for triple, original in tied
        ),
        renamed=matching.renamed,
    )
