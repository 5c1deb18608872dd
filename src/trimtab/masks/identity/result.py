"""The result of an identity check: how SUB agrees with FULL, tensor by tensor.

An `Identity` is complete in itself: tables and reports are drawn from it (or from its JSON, years
later) without opening a checkpoint again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Annotated, Any, ClassVar, TypedDict

from trimtab.elements.three_way import SplitAgreement
from trimtab.results.by_tensor import by_kind, by_layer, plain_layers
from trimtab.results.records import CheckpointRecord, MaskRecord, Tied
from trimtab.results.result import Result
from trimtab.results.schema import Count, Like, Provenance
from trimtab.words import one_line

__all__ = [
    "Identity",
    "IdentityCoverage",
    "TensorIdentity",
]

SIDES = ("base", "full", "sub")
"""The three checkpoints, in the order in which they are given."""

COVERAGE_LISTS = ("not_compared", "not_in_mask", "tied", "renamed")
"""Lists of tensors that need a word, in the order in which reports show them."""


class NotCompared(TypedDict):
    """A tensor that not all three have alike; a shape of None where it is not there."""

    name: str
    base_shape: tuple[Count, ...] | None
    full_shape: tuple[Count, ...] | None
    sub_shape: tuple[Count, ...] | None
    num_selected: Count | None


class NotInMask(TypedDict):
    """A tensor that is outside the mask as a whole."""

    name: str
    num_elements: Count


class Renamed(TypedDict):
    """The three names of a tensor."""

    base: str
    full: str
    sub: str


@dataclass(frozen=True)
class IdentityCoverage:
    """Which stored elements the counts speak of, and which they do not.

    Attributes:
        num_base: Elements stored in BASE, without tied copies.
        num_full: Elements stored in FULL, without tied copies.
        num_sub: Elements stored in SUB, without tied copies.
        num_compared: Elements compared.
        not_compared: `{"name", "base_shape", "full_shape", "sub_shape", "num_selected"}` of tensors
            that are not in all three, or not of one shape; a shape of None where it is not there.
        not_in_mask: `{"name", "num_elements"}` of tensors that were compared and are not in the
            mask; they are outside it as a whole.
        tied: `{"name", "tied_to", "num_elements"}` of tensors that repeat another one.
        renamed: `{"base", "full", "sub"}` of tensors matched although their name prefixes differ.
    """

    num_base: int
    num_full: int
    num_sub: int
    num_compared: int
    not_compared: tuple[Annotated[Mapping[str, Any], Like(NotCompared)], ...] = ()
    not_in_mask: tuple[Annotated[Mapping[str, Any], Like(NotInMask)], ...] = ()
    tied: tuple[Annotated[Mapping[str, Any], Like(Tied)], ...] = ()
    renamed: tuple[Annotated[Mapping[str, Any], Like(Renamed)], ...] = ()

    __repr__ = one_line

    @property
    def is_complete(self) -> bool:
        """Whether every stored element of the three checkpoints was compared."""
        return self.num_base == self.num_full == self.num_sub == self.num_compared

    def problems(self) -> Iterator[str]:
        """What no check can cover."""
        for name in ("num_base", "num_full", "num_sub"):
            if not 0 <= self.num_compared <= getattr(self, name):
                yield f"num_compared is {self.num_compared} of {getattr(self, name)} ({name})"


@dataclass(frozen=True)
class TensorIdentity:
    """The agreement of one tensor, or of one part of a fused tensor.

    Attributes:
        name: Name in BASE; a part of a fused tensor adds its label, as `...qkv_proj.weight[q]`.
        layer: Index of the transformer layer, or None outside the layers.
        kind: What it is: `q_proj`, `down_proj`, `norm`, `embed`, `expert.up_proj`, ...
        shape: Its shape.
        dtype: safetensors name of its dtype.
        agreement: How SUB agrees with FULL in it.
    """

    PLAIN: ClassVar = ("name", "layer", "kind", "shape", "dtype", "=agreement")

    name: str
    layer: int | None
    kind: str
    shape: tuple[int, ...]
    dtype: str
    agreement: SplitAgreement

    def __repr__(self) -> str:
        return one_line(self, f"{self.name}: {self.agreement.inside.told()} inside the mask")

    def problems(self) -> Iterator[str]:
        """What no tensor can be."""
        num = self.agreement.all.num_elements
        if min(self.shape, default=0) < 0 or prod(self.shape) != num:
            yield f"shape is {list(self.shape)}, and inside and outside have {num} elements"


@dataclass(frozen=True, eq=False)
class Identity(Result):
    """How far a model trained inside a mask is the model that training every weight gave.

    Attributes:
        base: Where both trainings started.
        full: After training every weight.
        sub: After training those of the mask.
        mask: The mask.
        coverage: What the counts speak of.
        tensors: One entry per tensor or part of a fused tensor, in the order of BASE's files.
        conversion: Words on how elements were compared other than as stored, or None.
        provenance: trimtab version, command, date, device, threads.
    """

    FORMAT = "trimtab.identity"
    NAME = "identity result"
    COMMAND = "trimtab identity"
    PLAIN: ClassVar = (
        *("conversion", "provenance", "provenance.base=base", "provenance.full=full"),
        *("provenance.sub=sub", "provenance.mask=mask", "coverage", "total"),
        *("by_layer=_plain_layers", "by_kind", "tensors"),
    )

    base: CheckpointRecord
    full: CheckpointRecord
    sub: CheckpointRecord
    mask: MaskRecord
    coverage: IdentityCoverage
    tensors: tuple[TensorIdentity, ...]
    conversion: str | None = None
    provenance: Provenance = field(default_factory=dict)

    def __repr__(self) -> str:
        return one_line(
            self, f"{self.sub.id} beside {self.full.id}: {self.total.inside.told()} inside the mask"
        )

    @property
    def total(self) -> SplitAgreement:
        """The agreement of the whole model."""
        return _agreement(self.tensors)

    @property
    def sub_stayed_outside(self) -> bool:
        """Whether SUB is BASE bit for bit outside the mask, as after training only the mask."""
        return not any(tensor.agreement.outside.num_sub_moved for tensor in self.tensors)

    @property
    def full_stayed_outside(self) -> bool:
        """Whether FULL is BASE bit for bit outside the mask: the mask holds all that it changed."""
        return not any(tensor.agreement.outside.num_full_moved for tensor in self.tensors)

    def by_layer(self) -> dict[int | None, SplitAgreement]:
        """Agreement by layer index, ascending; None for tensors outside the layers comes last."""
        return by_layer(self.tensors, _agreement)

    def by_kind(self) -> dict[str, SplitAgreement]:
        """Agreement by kind, in the order in which the kinds first appear."""
        return by_kind(self.tensors, _agreement)

    def _plain_layers(self) -> dict[str, SplitAgreement]:
        return plain_layers(self.by_layer())

    def problems(self) -> Iterator[str]:
        """What no check can find."""
        num = sum(tensor.agreement.all.num_elements for tensor in self.tensors)
        if num != self.coverage.num_compared:
            yield f"coverage.num_compared is {self.coverage.num_compared}, its tensors have {num}"


def _agreement(tensors: Iterable[TensorIdentity]) -> SplitAgreement:
    return sum((tensor.agreement for tensor in tensors), SplitAgreement())
