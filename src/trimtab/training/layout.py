"""`Layout`: maps the parameters of a model to the tensors that its files store, and back.

transformers stores other tensors than it has in memory: fused experts are stored one by one, and
names differ. Masks use the names in files, which every other tool sees; optimizers, probes and
trackers use parameters. See `trimtab.training.pieces` for how the mapping is found.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trimtab.checkpoints.names import match_stored
from trimtab.checkpoints.tensors import StoredTensor
from trimtab.errors import MaskMismatchError, SettingsError
from trimtab.masks.header import BaseTensor
from trimtab.masks.mask import Mask
from trimtab.masks.matching import named_like
from trimtab.masks.packed import PackedTensor
from trimtab.training.pieces import Piece, find_pieces, revert_of

STORED = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""Dtype names in checkpoints -> torch dtypes, for tensors that can be trained."""


class Layout:
    """The parameters of a model, and the stored tensors that they correspond to.

    Attributes:
        parameters: Name -> shape of each parameter, tied ones once.
        stored: Name of each stored tensor -> the elements of parameters that it consists of.
        tied: Alias of a parameter -> its name in `parameters`.
        computed: Name of a parameter whose stored values are computed from it -> the reason.
        stored_name: Name of a parameter that is stored unchanged -> its name in files.
    """

    def __init__(
        self,
        parameters: Mapping[str, tuple[int, ...]],
        stored: Mapping[str, Piece],
        tied: Mapping[str, str],
        computed: Mapping[str, str],
    ) -> None:
        self.parameters = dict(parameters)
        self.stored = dict(stored)
        self.tied = dict(tied)
        self.computed = dict(computed)
        self.stored_name = {
            piece.sources[0]: name
            for name, piece in self.stored.items()
            if piece.is_all_of(self.parameters[piece.sources[0]])
        }

    @classmethod
    def of(cls, model: nn.Module) -> Layout:
        """The layout of a model; for models not from transformers it is based on names alone."""
        return cls.of_pairs(model.named_parameters(remove_duplicate=False), model)

    @classmethod
    def of_pairs(
        cls, named_parameters: Iterable[tuple[str, Tensor]], model: nn.Module | None
    ) -> Layout:
        """The layout of some parameters; one that is listed twice is tied.

        Without the module, only names that differ by wrappers and prefixes are matched.
        """
        parameters: dict[str, tuple[int, ...]] = {}
        tied: dict[str, str] = {}
        first: dict[int, str] = {}
        for name, parameter in named_parameters:
            original = first.setdefault(id(parameter), name)
            if original == name:
                parameters[name] = tuple(parameter.shape)
            else:
                tied[name] = original
        known = None if model is None else KNOWN.get(model)
        if known is None or (known.parameters, known.tied) != (parameters, tied):
            stored, computed = find_pieces(parameters, revert_of(model))
            known = cls(parameters, stored, tied, computed)
            if model is not None:
                KNOWN[model] = known
        return known

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of each stored tensor."""
        return {name: piece.shape for name, piece in self.stored.items()}

    def named_like(self, names: Collection[str], tied: Mapping[str, str]) -> Layout:
        """The same layout with the names that a checkpoint has for the stored tensors.

        Args:
            names: Names of the tensors that the checkpoint stores.
            tied: Aliases -> the stored name.
        """
        renamed = match_stored(self.stored, names, tied)
        stored = {renamed.get(name, name): piece for name, piece in self.stored.items()}
        return Layout(self.parameters, stored, self.tied, self.computed)

    def in_files(self, mask: Mask) -> Mask:
        """Convert a mask from parameters to stored tensors, splitting fused ones.

        Tensors that the model does not have keep their name. If anything changes, the result has a
        new digest.

        Raises:
            MaskMismatchError: The stored values of a tensor are computed from the parameter.
        """
        known = self._with_known_names(mask)
        in_memory = [
            name
            for name in known
            if self.parameters.get(name) == known.shape(name) and not self._is_stored(known, name)
        ]
        self._refuse_computed([name for name in in_memory if name in self.computed])
        if known is mask and not in_memory:
            return mask
        arrays = {n: known.array(n) for n in in_memory if n not in self.stored_name}
        tensors, base = {}, {}
        for name in known:
            if name not in arrays:
                new_name = self.stored_name[name] if name in in_memory else name
                tensors[new_name] = _packed(known, name)
                if name in known.base:
                    base[new_name] = known.base[name]
        for name, piece in self.stored.items():
            if not arrays.keys().isdisjoint(piece.sources):
                for source in piece.sources:
                    arrays.setdefault(source, np.zeros(self.parameters[source], np.bool_))
                tensors[name] = PackedTensor.pack(piece.take(arrays))
        return Mask(tensors, base, mask.provenance)

    def in_memory(self, mask: Mask) -> Mask:
        """Convert a mask from stored tensors to parameters; it keeps its digest.

        Raises:
            MaskMismatchError: A tensor with selected elements is not in the model, or has another
                shape; lists the first few.
        """
        mask = self._with_known_names(mask)
        self._check(mask)
        pieces = {name: self.stored[name] for name in mask if self._is_stored(mask, name)}
        split = {
            name: piece
            for name, piece in pieces.items()
            if not piece.is_all_of(self.parameters[piece.sources[0]])
        }
        new_names = {
            name: piece.sources[0]
            for name, piece in pieces.items()
            if name not in split and piece.sources[0] != name
        }
        if not split:
            return mask.renamed(new_names) if new_names else mask
        arrays: dict[str, NDArray[np.bool_]] = {}
        tensors: dict[str, PackedTensor] = {}
        base: dict[str, BaseTensor] = {}
        for name in mask:
            if name in split:
                for source in split[name].sources:
                    if source not in arrays:
                        arrays[source] = np.zeros(self.parameters[source], np.bool_)
                split[name].put(mask.array(name), arrays)
                continue
            new_name = new_names.get(name, name)
            tensors[new_name] = _packed(mask, name)
            if name in mask.base:
                base[new_name] = mask.base[name]
        if twice := sorted(arrays.keys() & tensors.keys()):
            raise MaskMismatchError(
                f"the mask has {twice[0]} both as in the model and as in files: keep one of them"
            )
        tensors |= {name: PackedTensor.pack(array) for name, array in arrays.items()}
        return mask.in_other_tensors(tensors, base)

    def tensors(self, parameters: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Iterate over the stored tensors, as views of the parameters where possible.

        Args:
            parameters: Name -> a parameter, or a tensor of its shape, such as its gradient.

        Yields:
            Name and values of each stored tensor whose parameters are all given.
        """
        for name, piece in self.stored.items():
            if all(source in parameters for source in piece.sources):
                yield name, piece.of(parameters)

    def _with_known_names(self, mask: Mask) -> Mask:
        """Rename the tensors of a mask to the names of files or of the model."""
        tied = {
            name: self.stored_name[first]
            for name, first in self.tied.items()
            if first in self.stored_name
        }
        mask = named_like(mask, self.stored, tied)
        fused = (name for name in self.parameters if name not in self.stored_name)
        return named_like(mask, [*fused, *(name for name in mask if name in self.stored)])

    def _is_stored(self, mask: Mask, name: str) -> bool:
        """Whether a tensor of a mask is a stored tensor."""
        return name in self.stored and self.stored[name].shape == mask.shape(name)

    def _check(self, mask: Mask) -> None:
        if twice := [name for name in mask if name in self.tied and mask.num_selected(name)]:
            raise MaskMismatchError(
                f"{twice[0]} is tied to {self.tied[twice[0]]}, and the mask has both: keep one "
                "name for this tensor"
            )
        self._refuse_computed([n for n in self.computed if n in mask and mask.num_selected(n)])
        shapes = {}
        for name in mask:
            of_parameter = self.parameters.get(name)
            if name in self.stored and of_parameter != mask.shape(name):
                shapes[name] = self.stored[name].shape
            elif of_parameter is not None:
                shapes[name] = of_parameter
        try:
            mask.check(shapes)
        except MaskMismatchError as error:
            unknown = [name for name in mask if name not in shapes and mask.num_selected(name)]
            self._refuse_computed([name for name in self.computed if unknown])
            hint = ""
            if unknown:
                hint = (
                    ". If it is that base, files and model name these tensors differently: pass "
                    "the model itself, which knows how transformers stores it and which of its "
                    "tensors are tied, or a mask under the names of its parameters"
                )
            raise MaskMismatchError(f"{error}{hint}") from None

    def _refuse_computed(self, names: list[str]) -> None:
        if names:
            why = "; ".join(f"{name}: {self.computed[name]}" for name in names[:3])
            raise MaskMismatchError(
                "transformers computes the stored values of this model from its parameters, so a "
                f"mask of one does not apply to the other ({why})"
            )


KNOWN: WeakKeyDictionary[nn.Module, Layout] = WeakKeyDictionary()
"""Cache of layouts, for as long as their models live."""


def module_of(named_parameters: Any) -> nn.Module | None:
    """The module that was passed to an optimizer, or whose `named_parameters()` generator was."""
    if isinstance(named_parameters, nn.Module):
        return named_parameters
    if inspect.isgenerator(named_parameters):
        module = inspect.getgeneratorlocals(named_parameters).get("self")
        return module if isinstance(module, nn.Module) else None
    return None


def layout_of(pairs: Sequence[tuple[str, Tensor]], module: nn.Module | None) -> Layout:
    """The layout of the module, if it has these parameter names; else of the pairs alone."""
    if module is not None:
        layout = Layout.of(module)
        if all(name in layout.parameters or name in layout.tied for name, _ in pairs):
            return layout
    return Layout.of_pairs(pairs, None)


def _packed(mask: Mask, name: str) -> PackedTensor:
    return PackedTensor(mask.shape(name), mask.packed(name), mask.num_selected(name))


def stored_values(tensor: StoredTensor) -> Tensor:
    """Read a stored tensor of a dtype in `STORED`, in that dtype, on the CPU."""
    signed = tensor.read().view(f"i{tensor.dtype.num_bytes}")
    return torch.from_numpy(signed).view(STORED[tensor.dtype.name])


def names_of_whole(also: str | Iterable[str], names: Iterable[str]) -> list[str]:
    """Resolve `also` to the names of parameters that are trained in full.

    Args:
        also: Names of modules or parameters, or suffixes of such names, in whole parts: `score`
            matches `score.weight` and `model.score.bias`, but not `model.scores.weight`.
        names: Names of all parameters.

    Returns:
        The matching names, in the order of `names`.

    Raises:
        SettingsError: An entry matches nothing.
    """
    names = list(names)
    parts = [also] if isinstance(also, str) else list(also)
    selected: set[str] = set()
    problems = []
    for part in parts:
        matches = [name for name in names if part and f".{part}." in f".{name}."]
        selected.update(matches)
        if not matches:
            modules = {name.rpartition(".")[0].rpartition(".")[2] for name in names}
            near = get_close_matches(part, [*modules, *names], n=1)
            hint = f": did you mean {near[0]}?" if near else ""
            problems.append(
                f"also: no module or parameter of the model has the name {part!r}{hint}"
            )
    if problems:
        raise SettingsError("; ".join(problems))
    return [name for name in names if name in selected]


def with_whole(mask: Mask, shapes: Mapping[str, Sequence[int]], names: Sequence[str]) -> Mask:
    """The mask with some tensors selected in full, whether it has them or not."""
    if not names:
        return mask
    tensors = {name: _packed(mask, name) for name in mask}
    for name in names:
        tensors[name] = PackedTensor.pack(np.ones(tuple(shapes[name]), dtype=np.bool_))
    return Mask(tensors, mask.base, mask.provenance)


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype in records and messages: `bfloat16`."""
    return str(dtype).removeprefix("torch.")
