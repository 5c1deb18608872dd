"""The result of an identity check: how SUB agrees with FULL, tensor by tensor.

An `Identity` is complete in itself: tables and reports are drawn from it (or from its JSON, years
later) without opening a checkpoint again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Annotated, Any, ClassVar, TypedDict, TypeVar

from trimtab.elements.three_way import SplitAgreement
from trimtab.masks.packed import PackedMask
from trimtab.results.records import CheckpointRecord
from trimtab.results.schema import Count, Like, Provenance, from_plain, to_plain
from trimtab.words import one_line, out_of

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "Identity",
    "IdentityCoverage",
    "MaskRecord",
    "TensorIdentity",
    "mask_record",
]

FORMAT = "trimtab.identity"
FORMAT_VERSION = 1
"""History: 1, the first."""

SIDES = ("base", "full", "sub")
"""The three checkpoints, in the order in which they are given."""

COVERAGE_LISTS = ("not_compared", "not_in_mask", "tied", "renamed")
"""Lists of tensors that need a word, in the order in which reports show them."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class MaskRecord:
    """What the mask was, so that a result can be traced to it.

    Attributes:
        id: The path as the user gave it; None for a mask that was not read from a file.
        digest: The mask's identity: xxh3-128 over names, shapes and bits.
        num_tensors: Tensors in the mask.
        num_elements: Elements in those tensors.
        num_selected: Elements selected.
        num_checked: Tensors whose bytes in BASE were found to be those that the mask was made
            against. The mask does not say for the others.
        provenance: How the mask was made, as it says.
    """

    id: str | None
    digest: str
    num_tensors: int
    num_elements: int
    num_selected: int
    num_checked: int
    provenance: Mapping[str, Any]

    def __repr__(self) -> str:
        selected = out_of(self.num_selected, self.num_elements, "element")
        return one_line(self, f"{self.id or self.digest}: {selected} selected")

    def problems(self) -> Iterator[str]:
        """What no mask can be."""
        if not 0 <= self.num_selected <= self.num_elements:
            yield f"num_selected is {self.num_selected} of {self.num_elements}"
        if not 0 <= self.num_checked <= self.num_tensors:
            yield f"num_checked is {self.num_checked} of {self.num_tensors}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**self.__dict__, "provenance": dict(self.provenance)}


def mask_record(mask: PackedMask, id: str | None, digests: Collection[str]) -> MaskRecord:
    """Say what a mask was.

    Args:
        mask: The mask.
        id: The path of its file as the user gave it, or None.
        digests: Names of the tensors whose bytes were found to be those of its base.
    """
    return MaskRecord(
        id=id,
        digest=mask.digest,
        num_tensors=len(mask),
        num_elements=mask.num_elements(),
        num_selected=mask.num_selected(),
        num_checked=sum(name in digests for name in mask.base),
        provenance=dict(mask.provenance),
    )


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


class Tied(TypedDict):
    """A tensor that repeats another one."""

    name: str
    tied_to: str
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
class Identity:
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
        return sum((tensor.agreement for tensor in self.tensors), SplitAgreement())

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
        groups = self._grouped(lambda tensor: tensor.layer)
        return dict(sorted(groups.items(), key=lambda item: (item[0] is None, item[0] or 0)))

    def by_kind(self) -> dict[str, SplitAgreement]:
        """Agreement by kind, in the order in which the kinds first appear."""
        return self._grouped(lambda tensor: tensor.kind)

    def _grouped(self, key: Callable[[TensorIdentity], Key]) -> dict[Key, SplitAgreement]:
        groups: dict[Key, SplitAgreement] = {}
        for tensor in self.tensors:
            group = key(tensor)
            groups[group] = groups.get(group, SplitAgreement()) + tensor.agreement
        return groups

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, in the format of the docs page "Formats"."""
        return {"format": FORMAT, "format_version": FORMAT_VERSION, **to_plain(self)}

    def _plain_layers(self) -> dict[str, SplitAgreement]:
        return {
            "outside" if layer is None else str(layer): agreement
            for layer, agreement in self.by_layer().items()
        }

    def problems(self) -> Iterator[str]:
        """What no check can find."""
        num = sum(tensor.agreement.all.num_elements for tensor in self.tensors)
        if num != self.coverage.num_compared:
            yield f"coverage.num_compared is {self.coverage.num_compared}, its tensors have {num}"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Identity:
        """The inverse of `to_dict`.

        Raises:
            ResultFormatError: The data is no identity result, of another version, or damaged.
        """
        return from_plain(
            cls,
            data,
            what="identity result",
            format=FORMAT,
            version=FORMAT_VERSION,
            command="trimtab identity",
        )
