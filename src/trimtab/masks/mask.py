"""`Mask`: which elements of which tensors are selected, one bit each; and its summary."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints.names import parts_of
from trimtab.errors import MaskError
from trimtab.masks.algebra import DerivedMask, Operation, combine, complement, restrict
from trimtab.masks.header import BaseTensor, MaskHeader, PackedMask, provenance_with
from trimtab.masks.on_disk import FORMAT, open_unchecked, write_mask_file
from trimtab.masks.packed import MaskDigest, PackedTensor
from trimtab.masks.random import random_tensor
from trimtab.words import first_few, one_line, out_of, plural


class Mask(PackedMask):
    """Which elements of which tensors are selected. Immutable.

    Tensors that the mask lacks have nothing selected. Two masks are equal if they have the same
    tensors,
    shapes and bits, whatever their provenance.

    Make one with `Mask.from_arrays`, `Mask.load` or `trimtab.extract_mask`.
    """

    def __init__(
        self,
        tensors: Mapping[str, PackedTensor],
        base: Mapping[str, BaseTensor],
        provenance: Mapping[str, Any],
    ) -> None:
        """Check and store.

        Args:
            tensors: Name -> bits.
            base: Name -> the tensor that the mask was made against; may be incomplete.
            provenance: Plain data.

        Raises:
            MaskError: A name or the provenance cannot be stored in a file.
        """
        self._tensors = dict(tensors)
        shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        super().__init__(MaskHeader(shapes, base, provenance))
        self._renamed_from: Mask | None = None

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, NDArray[np.bool_]],
        *,
        provenance: Mapping[str, Any] | None = None,
        base: Mapping[str, BaseTensor] | None = None,
    ) -> Mask:
        """Make a mask from bool arrays.

        Args:
            arrays: Name of a tensor -> bool array of its shape; True selects an element.
            provenance: How the mask was made; plain data.
            base: The tensors that the mask was made against; `check` compares with them.

        Raises:
            MaskError: An array is not bool, or a name or the provenance cannot be stored.
        """
        converted = {name: np.asarray(array) for name, array in arrays.items()}
        if wrong := [f"{n} is {a.dtype}" for n, a in converted.items() if a.dtype != np.bool_]:
            raise MaskError(f"a mask is made of bool arrays: {first_few(wrong)}")
        tensors = {name: PackedTensor.pack(array) for name, array in converted.items()}
        return cls(tensors, base or {}, provenance or {})

    @classmethod
    def of(cls, derived: DerivedMask) -> Mask:
        """Compute a derived mask in memory."""
        header = derived.header
        tensors = {name: derived.tensor(name) for name in header.shapes}
        return cls(tensors, header.base, header.provenance)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Mask:
        """Read a mask from a file.

        Raises:
            MaskError: It is not a mask file, or a damaged one.
        """
        with open_unchecked(path) as stored:
            tensors = dict(stored.checked())
        return cls({name: tensors[name] for name in stored}, stored.base, stored.provenance)

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write the mask to a file, whole or not at all; missing parent folders are created.

        Args:
            path: The file, by convention `….safetensors`.
            force: Replace an existing file.

        Raises:
            OutputExistsError: The file exists and `force` is not set, or the path is a folder.
        """
        write_mask_file(path, self._header, self._tensors.__getitem__, force=force)

    def packed(self, name: str) -> NDArray[np.uint8]:
        """The bits of a tensor: element `i` in C order is bit `i % 8` of byte `i // 8`. Read-only.

        Returns:
            uint8 `[ceil(num_elements / 8)]`; bits after the last element are 0.
        """
        bits = self._tensors[name].bits.view()
        bits.flags.writeable = False
        return bits

    def array(self, name: str) -> NDArray[np.bool_]:
        """A tensor's mask as a new bool array of its shape."""
        return self._tensors[name].unpack()

    def indices(self, name: str) -> NDArray[np.int64]:
        """Positions of a tensor's selected elements in C order, ascending."""
        return self._tensors[name].indices()

    def num_selected(self, name: str | None = None) -> int:
        """Selected elements of a tensor, or of all."""
        tensors = self._tensors.values() if name is None else (self._tensors[name],)
        return sum(tensor.num_selected for tensor in tensors)

    @cached_property
    def digest(self) -> str:
        """xxh3-128 of names, shapes and bits, hexadecimal: the identity of the mask.

        The order of the tensors and the provenance are not part of it.
        """
        if self._renamed_from is not None:
            return self._renamed_from.digest
        digest = MaskDigest()
        for name, tensor in sorted(self._tensors.items()):
            digest.update(name, tensor)
        return digest.hexdigest()

    def complement(self) -> Mask:
        """The elements that this mask does not select, of the same tensors."""
        return Mask.of(complement(self))

    def restrict(
        self,
        *,
        kinds: Sequence[str] | None = None,
        layers: Sequence[int] | None = None,
        tensors: Sequence[str] | None = None,
    ) -> Mask:
        """The part of the mask in some of its tensors: those that meet every condition given.

        Args:
            kinds: Kinds of tensors, such as `q_proj`; they follow from names alone.
            layers: Indices of transformer layers; tensors outside the layers are in none.
            tensors: Names, or patterns with `*`, `?` and `[...]` as in a shell.

        Returns:
            A mask with only those tensors.

        Raises:
            MaskError: No condition is given; or a kind, layer or name matches no tensor, or no
                tensor meets all conditions.
        """
        return Mask.of(restrict(self, kinds=kinds, layers=layers, tensors=tensors))

    def __and__(self, other: Mask) -> Mask:
        """What both select."""
        return self._combined("and", other)

    def __or__(self, other: Mask) -> Mask:
        """What either selects."""
        return self._combined("or", other)

    def __xor__(self, other: Mask) -> Mask:
        """What exactly one selects."""
        return self._combined("xor", other)

    def __sub__(self, other: Mask) -> Mask:
        """What this one selects and the other does not."""
        return self._combined("minus", other)

    def __invert__(self) -> Mask:
        """The complement."""
        return self.complement()

    def random_like(self, seed: int) -> Mask:
        """The same number of elements in each tensor, selected at random.

        Args:
            seed: With a tensor's name it decides the tensor's elements, on any machine and whatever
                other tensors there are.
        """
        tensors = {
            name: random_tensor(tensor.shape, tensor.num_selected, seed=seed, name=name)
            for name, tensor in self._tensors.items()
        }
        return Mask(tensors, self._header.base, self._after({"step": "random", "seed": seed}))

    def with_provenance(self, **entries: Any) -> Mask:
        """The same mask with entries of its provenance set."""
        return Mask(self._tensors, self._header.base, {**self._header.provenance, **entries})

    def with_base(self, base: Mapping[str, BaseTensor]) -> Mask:
        """The same mask made against other tensors: those of `base` that it has."""
        known = {name: base[name] for name in self._tensors if name in base}
        return Mask(self._tensors, known, self._header.provenance)

    def renamed(self, names: Mapping[str, str]) -> Mask:
        """The same mask with other names for some of its tensors, and the same digest.

        Args:
            names: Name of a tensor of this mask -> its new name.
        """
        base = self._header.renamed(names).base
        tensors = {names.get(name, name): tensor for name, tensor in self._tensors.items()}
        return self.in_other_tensors(tensors, base)

    def in_other_tensors(
        self, tensors: Mapping[str, PackedTensor], base: Mapping[str, BaseTensor]
    ) -> Mask:
        """The same elements as part of other tensors, with the same digest.

        Args:
            tensors: Name -> bits of each tensor of which this mask has elements.
            base: The tensors when the mask was made; may be incomplete.
        """
        mask = Mask(tensors, base, self._header.provenance)
        mask._renamed_from = self
        return mask

    def _combined(self, operation: Operation, other: Mask) -> Mask:
        if not isinstance(other, Mask):
            return NotImplemented
        return Mask.of(combine(operation, self, other))

    def _after(self, step: Mapping[str, Any]) -> dict[str, Any]:
        """The provenance of a mask made from this one."""
        return provenance_with(self._header.provenance, {**step, "of": self.digest})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        return self._tensors.keys() == other._tensors.keys() and all(
            tensor.shape == other.shape(name)
            and np.array_equal(tensor.bits, other._tensors[name].bits)
            for name, tensor in self._tensors.items()
        )

    def __hash__(self) -> int:
        return hash((frozenset(self._tensors), self.num_selected()))

    def __repr__(self) -> str:
        selected = out_of(self.num_selected(), self.num_elements(), "element")
        return one_line(self, f"{selected} in {plural(len(self), 'tensor')}, digest {self.digest}")


def summarise(mask: PackedMask) -> dict[str, Any]:
    """Summarise a mask, in the format of the docs page "Formats".

    Kinds follow from names alone, so a fused tensor is one tensor of one kind.
    """
    tensors = [_tensor_summary(mask, name) for name in mask]
    by_kind: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for tensor in tensors:
        by_kind[tensor["kind"]].append(tensor)
    return {
        "format": f"{FORMAT}.summary",
        "format_version": 1,
        "digest": mask.digest,
        "total": _group_summary(tensors),
        "by_kind": {kind: _group_summary(members) for kind, members in by_kind.items()},
        "tensors": tensors,
        "provenance": dict(mask.provenance),
    }


def _tensor_summary(mask: PackedMask, name: str) -> dict[str, Any]:
    (part,) = parts_of(name, mask.shape(name), {})
    base = mask.base.get(name)
    return {
        "name": name,
        "layer": part.layer,
        "kind": part.kind,
        "shape": list(mask.shape(name)),
        "base": None if base is None else base._asdict(),
        **_count_summary(mask.num_elements(name), mask.num_selected(name)),
    }


def _group_summary(tensors: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    num_elements, num_selected = (
        sum(tensor[key] for tensor in tensors) for key in ("num_elements", "num_selected")
    )
    return {"num_tensors": len(tensors), **_count_summary(num_elements, num_selected)}


def _count_summary(num_elements: int, num_selected: int) -> dict[str, Any]:
    density = num_selected / num_elements if num_elements else None
    return {"num_elements": num_elements, "num_selected": num_selected, "density": density}
