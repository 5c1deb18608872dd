"""Where the elements of a model's parameters lie in the files that hold it.

transformers stores other tensors than it holds: experts that are fused in memory lie one by one in
files, parts of names differ, wrappers add to them. Masks go by the names in files, which every
other tool sees; optimizers, probes and trackers see parameters. A `Layout` leads from one to the
other, element by element; see `trimtab.training.pieces` for how it is found.

Tensors that are trained whole beside a mask (`also=["score"]`, as PEFT's `modules_to_save`) make a
wider mask, so that nothing else needs to know of them: the optimizer keeps state for their elements
as for any, and vectors of a tensor that is selected whole have no positions.
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
"""Names of dtypes in a checkpoint -> dtypes of torch, for tensors that can be trained."""


class Layout:
    """The parameters of a model, and the tensors that files have for them.

    Attributes:
        parameters: Name -> shape of each parameter, tied ones once.
        stored: Name -> what it is made of, of each stored tensor.
        tied: Further name of a parameter -> the name under which `parameters` has it.
        computed: Name of a parameter that is stored as something computed of it -> why.
        stored_name: Name of a parameter that is stored whole and as it is -> its name there.
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
        """The layout of a model; one of transformers is asked, of others names are all there is."""
        return cls.of_pairs(model.named_parameters(remove_duplicate=False), model)

    @classmethod
    def of_pairs(
        cls, named_parameters: Iterable[tuple[str, Tensor]], model: nn.Module | None
    ) -> Layout:
        """The layout of some parameters; one that is listed twice is tied.

        Without the module, only names that differ by wrappers and prefixes lead to files.
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
        """The same with the names that a checkpoint has for the stored tensors.

        Args:
            names: Of the tensors that the checkpoint stores.
            tied: Further names of them -> the name that is stored.
        """
        renamed = match_stored(self.stored, names, tied)
        stored = {renamed.get(name, name): piece for name, piece in self.stored.items()}
        return Layout(self.parameters, stored, self.tied, self.computed)

    def in_files(self, mask: Mask) -> Mask:
        """A mask under the names of files: a tensor that it has as the model does is taken apart.

        What the model does not have keeps its name. Where anything changes it is another mask, with
        a digest of its own.

        Raises:
            MaskMismatchError: It names a tensor that is stored as something computed.
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
        """A mask under the names of parameters, with the digest that it had.

        Raises:
            MaskMismatchError: A tensor of which it selects something is not in the model, or has
                another shape; names all of them, up to a handful.
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
                f"the mask has {twice[0]} as the model holds it and as files store it: give one"
            )
        tensors |= {name: PackedTensor.pack(array) for name, array in arrays.items()}
        return mask.in_other_tensors(tensors, base)

    def tensors(self, parameters: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The stored tensors of parameters: a view of them wherever that is possible.

        Args:
            parameters: Name -> a parameter, or anything of its shape, such as its gradient.

        Yields:
            Name and elements of each stored tensor, of those whose parameters are all there.
        """
        for name, piece in self.stored.items():
            if all(source in parameters for source in piece.sources):
                yield name, piece.of(parameters)

    def _with_known_names(self, mask: Mask) -> Mask:
        """The mask with the names that files or the model have, where it has others for them."""
        tied = {
            name: self.stored_name[first]
            for name, first in self.tied.items()
            if first in self.stored_name
        }
        mask = named_like(mask, self.stored, tied)
        fused = (name for name in self.parameters if name not in self.stored_name)
        return named_like(mask, [*fused, *(name for name in mask if name in self.stored)])

    def _is_stored(self, mask: Mask, name: str) -> bool:
        """Whether a tensor of a mask is one that files have."""
        return name in self.stored and self.stored[name].shape == mask.shape(name)

    def _check(self, mask: Mask) -> None:
        if twice := [name for name in mask if name in self.tied and mask.num_selected(name)]:
            raise MaskMismatchError(
                f"{twice[0]} is tied to {self.tied[twice[0]]}, and the mask has both: give the "
                "mask of the one tensor under one name"
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
                    ". If it is that base, files name these tensors differently than the model "
                    "does: give the model itself, which says how transformers stores it and which "
                    "of its tensors are tied, or a mask under the names of its parameters"
                )
            raise MaskMismatchError(f"{error}{hint}") from None

    def _refuse_computed(self, names: list[str]) -> None:
        if names:
            why = "; ".join(f"{name}: {self.computed[name]}" for name in names[:3])
            raise MaskMismatchError(
                "transformers stores other values than this model holds, not only under other "
                f"names, so a mask of one is none of the other ({why})"
            )


KNOWN: WeakKeyDictionary[nn.Module, Layout] = WeakKeyDictionary()
"""Layouts that were found, for as long as their models live."""


def module_of(named_parameters: Any) -> nn.Module | None:
    """The module behind what an optimizer is given: itself, or the one that the generator walks.

    `model.named_parameters()` is a generator, which Python tells the variables of.
    """
    if isinstance(named_parameters, nn.Module):
        return named_parameters
    if inspect.isgenerator(named_parameters):
        module = inspect.getgeneratorlocals(named_parameters).get("self")
        return module if isinstance(module, nn.Module) else None
    return None


def layout_of(pairs: Sequence[tuple[str, Tensor]], module: nn.Module | None) -> Layout:
    """The layout of parameters; that of their module, if it has them under these names."""
    if module is not None:
        layout = Layout.of(module)
        if all(name in layout.parameters or name in layout.tied for name, _ in pairs):
            return layout
    return Layout.of_pairs(pairs, None)


def _packed(mask: Mask, name: str) -> PackedTensor:
    return PackedTensor(mask.shape(name), mask.packed(name), mask.num_selected(name))


def stored_values(tensor: StoredTensor) -> Tensor:
    """A stored tensor of a dtype in `STORED`, in that dtype, on the CPU."""
    signed = tensor.read().view(f"i{tensor.dtype.num_bytes}")
    return torch.from_numpy(signed).view(STORED[tensor.dtype.name])


def names_of_whole(also: str | Iterable[str], names: Iterable[str]) -> list[str]:
    """The tensors that are meant.

    Args:
        also: Names of modules or parameters, or the ends of such names, in whole parts: `score` is
            `score.weight` and `model.score.bias`, and not `model.scores.weight`.
        names: Names of all parameters.

    Returns:
        Those that are meant, in the order of all.

    Raises:
        SettingsError: Some name nothing.
    """
    names = list(names)
    requested = [also] if isinstance(also, str) else list(also)
    found: set[str] = set()
    problems = []
    for part in requested:
        meant = [name for name in names if part and f".{part}." in f".{name}."]
        found.update(meant)
        if not meant:
            modules = {name.rpartition(".")[0].rpartition(".")[2] for name in names}
            near = get_close_matches(part, [*modules, *names], n=1)
            hint = f": did you mean {near[0]}?" if near else ""
            problems.append(
                f"also: no module or parameter of the model has the name {part!r}{hint}"
            )
    if problems:
        raise SettingsError("; ".join(problems))
    return [name for name in names if name in found]


def with_whole(mask: Mask, shapes: Mapping[str, Sequence[int]], names: Sequence[str]) -> Mask:
    """The mask with some tensors selected whole, whether it has them or not."""
    if not names:
        return mask
    tensors = {name: _packed(mask, name) for name in mask}
    for name in names:
        tensors[name] = PackedTensor.pack(np.ones(tuple(shapes[name]), dtype=np.bool_))
    return Mask(tensors, mask.base, mask.provenance)


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype as records and messages name it: `bfloat16`."""
    return str(dtype).removeprefix("torch.")
