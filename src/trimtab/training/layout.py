"""Where the elements of a model's parameters lie in the files that hold it.

transformers stores other tensors than it holds: experts that are fused in memory lie one by one in
files, parts of names differ, wrappers add to them. Masks go by the names in files, which every
other tool sees; optimizers, probes and trackers see parameters. A `Layout` leads from one to the
other, element by element. It is found by sending the positions of elements the way on which
`save_pretrained` sends their values (`transformers.core_model_loading.revert_weight_conversion`),
so it follows the conversion tables of transformers, whatever they hold. What computes values on
that way, rather than moving them, has no layout, and a mask cannot reach it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trimtab.checkpoints.names import match_renamed, without_wrappers
from trimtab.errors import MaskMismatchError
from trimtab.masks import Mask
from trimtab.masks.naming import named_like
from trimtab.masks.packed import BaseTensor, PackedTensor

__all__ = ["Layout", "Piece", "layout_of", "module_of"]

Shapes = Mapping[str, tuple[int, ...]]

Revert = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""What `save_pretrained` does to a state dict before it writes it."""


@dataclass(frozen=True, eq=False)
class Piece:
    """A stored tensor, in terms of parameters.

    Attributes:
        shape: As stored.
        sources: Parameters whose elements it is made of. Positions count their elements in C
            order, one parameter after the other.
        offset: Position of its first element.
        strides: What one step along each axis adds to the position; None if it is not so regular.
        positions: Otherwise the position of each element, int64 `[elements]`.
    """

    shape: tuple[int, ...]
    sources: tuple[str, ...]
    offset: int = 0
    strides: tuple[int, ...] | None = None
    positions: NDArray[np.int64] | None = None

    @classmethod
    def whole(cls, name: str, shape: tuple[int, ...]) -> Piece:
        """A parameter that is stored as it is."""
        return cls(shape, (name,), 0, _c_strides(shape))

    @property
    def is_view(self) -> bool:
        """Whether it can be a view of its one parameter."""
        return self.strides is not None

    def is_all_of(self, shape: tuple[int, ...]) -> bool:
        """Whether it is a whole parameter of this shape, as it is."""
        return (self.shape, self.offset, self.strides) == (shape, 0, _c_strides(shape))

    def of(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Its elements: a view of a contiguous parameter where that is possible, else a copy.

        Args:
            tensors: Name of a parameter -> it, or anything of its shape.
        """
        if self.strides is not None:
            source = tensors[self.sources[0]].contiguous()
            start = source.storage_offset() + self.offset
            return source.as_strided(self.shape, self.strides, start)
        flat = torch.cat([tensors[name].reshape(-1) for name in self.sources])
        assert self.positions is not None
        return flat[torch.from_numpy(self.positions).to(flat.device)].reshape(self.shape)

    def take(self, arrays: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Its elements, as a new array.

        Args:
            arrays: Name of a parameter -> an array of its elements.
        """
        if len(self.sources) == 1:
            flat = arrays[self.sources[0]].reshape(-1)
        else:
            flat = np.concatenate([arrays[name].reshape(-1) for name in self.sources])
        return flat[self._places()].reshape(self.shape)

    def put(self, values: NDArray[Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Put elements where they belong in arrays of parameters.

        Args:
            values: In its shape.
            arrays: Name of a parameter -> a contiguous array of its elements, written to.
        """
        places = self._places()
        start = 0
        for name in self.sources:
            flat = arrays[name].reshape(-1)
            here = (places >= start) & (places < start + flat.size)
            flat[places[here] - start] = values.reshape(-1)[here]
            start += flat.size

    def _places(self) -> NDArray[np.int64]:
        if self.positions is not None:
            return self.positions
        assert self.strides is not None
        places = np.full(self.shape, self.offset, dtype=np.int64)
        for axis, stride in enumerate(self.strides):
            steps = np.arange(self.shape[axis], dtype=np.int64) * stride
            places += steps.reshape([-1 if axis == at else 1 for at in range(len(self.shape))])
        return places.reshape(-1)


class Layout:
    """The parameters of a model, and the tensors that files have for them.

    Attributes:
        parameters: Name -> shape of each parameter, tied ones once.
        stored: Name -> what it is made of, of each stored tensor.
        tied: Further name of a parameter -> the name under which `parameters` has it.
        computed: Name of a parameter that is stored as something computed of it -> why.
    """

    def __init__(
        self,
        parameters: Shapes,
        stored: Mapping[str, Piece],
        tied: Mapping[str, str],
        computed: Mapping[str, str],
    ) -> None:
        self.parameters = dict(parameters)
        self.stored = dict(stored)
        self.tied = dict(tied)
        self.computed = dict(computed)
        self._stored_name = {
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
        """The layout of some parameters.

        Args:
            named_parameters: Pairs; one that is listed twice is tied.
            model: The module that they are of, if it is known. Without it, only names that differ
                by wrappers and prefixes lead to files.
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
            stored, computed = _pieces(parameters, _revert_of(model))
            known = cls(parameters, stored, tied, computed)
            if model is not None:
                KNOWN[model] = known
        return known

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of each stored tensor."""
        return {name: piece.shape for name, piece in self.stored.items()}

    def named_like(self, names: Iterable[str], tied: Mapping[str, str]) -> Layout:
        """The same with the names that a checkpoint has for the stored tensors.

        Args:
            names: Of the tensors that the checkpoint stores.
            tied: Further names of them -> the name that is stored.
        """
        names = list(names)
        renamed = match_renamed(self.stored, names)
        for name in self.stored:
            if name not in names and name not in renamed and tied.get(name) not in (None, *renamed):
                renamed[name] = tied[name]
        stored = {renamed.get(name, name): piece for name, piece in self.stored.items()}
        return Layout(self.parameters, stored, self.tied, self.computed)

    def in_files(self, mask: Mask) -> Mask:
        """A mask under the names of files: a tensor that it has as the model does is taken apart.

        What the model does not have keeps its name.

        Raises:
            MaskMismatchError: It names a tensor that is stored as something computed.
        """
        mask = self._with_known_names(mask)
        in_memory = [
            name
            for name in mask
            if self.parameters.get(name) == mask.shape(name) and not self._is_stored(mask, name)
        ]
        self._refuse_computed([name for name in in_memory if name in self.computed])
        renamed = {n: self._stored_name[n] for n in in_memory if n in self._stored_name}
        mask = mask.renamed(renamed) if renamed else mask
        fused = [name for name in in_memory if name not in renamed]
        if not fused:
            return mask
        arrays = {name: mask.array(name) for name in fused}
        tensors = {}
        for name in mask:
            if name not in arrays:
                tensors[name] = _packed(mask, name)
        for name, piece in self.stored.items():
            if not set(piece.sources).isdisjoint(arrays):
                for source in piece.sources:
                    arrays.setdefault(source, np.zeros(self.parameters[source], np.bool_))
                tensors[name] = PackedTensor.pack(piece.take(arrays))
        base = {name: of for name, of in mask.base.items() if name in tensors}
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
            name: self._stored_name[first]
            for name, first in self.tied.items()
            if first in self._stored_name
        }
        mask = named_like(mask, self.stored, tied)
        fused = (name for name in self.parameters if name not in self._stored_name)
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


def _c_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _revert_of(model: nn.Module | None) -> Revert | None:
    """What transformers does to the names and tensors of a model when it saves it, if anything."""
    if model is None or "transformers" not in sys.modules:
        return None
    try:
        from transformers import PreTrainedModel
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # before transformers 5 a file had what the model has
        return None
    inner: Any = getattr(model, "_orig_mod", model)
    if not isinstance(inner, PreTrainedModel):
        return None
    return lambda tensors: revert_weight_conversion(inner, tensors)


def _pieces(parameters: Shapes, revert: Revert | None) -> tuple[dict[str, Piece], dict[str, str]]:
    """What each stored tensor is made of; and what is stored as something computed, with why."""
    plain = {without_wrappers(name): name for name in parameters}
    if revert is None or len(plain) < len(parameters):
        return {short: Piece.whole(n, parameters[n]) for short, n in plain.items()}, {}
    meta = {s: torch.empty(parameters[name], device="meta") for s, name in plain.items()}
    try:
        saved = revert(dict(meta))
    except Exception as error:  # whatever an architecture's own operation raises
        whole = {short: Piece.whole(n, parameters[n]) for short, n in plain.items()}
        return whole, dict.fromkeys(parameters, f"{type(error).__name__}: {error}")
    by_id = {id(tensor): short for short, tensor in meta.items()}
    stored: dict[str, Piece] = {}
    for name, tensor in saved.items():
        if (short := by_id.get(id(tensor))) is not None:  # the very tensor, under some name
            stored[name] = Piece.whole(plain[short], parameters[plain[short]])
    unchanged = {source for piece in stored.values() for source in piece.sources}
    shapes = {name: tuple(tensor.shape) for name, tensor in saved.items() if name not in stored}
    rest: list[str] = []
    computed: dict[str, str] = {}

    def find(shorts: list[str]) -> bool:
        """Find what some parameters are stored as; False if others belong to it, too."""
        named = {short: parameters[plain[short]] for short in shorts}
        found = _positions(named, revert)
        if any(shapes.get(name) != tuple(tensor.shape) for name, tensor in found.items()):
            return False
        sources = tuple(plain[short] for short in shorts)
        sizes = [prod(shape) for shape in named.values()]
        stored.update({name: _piece(of, sources, sizes) for name, of in found.items()})
        return True

    for short in (short for short, name in plain.items() if name not in unchanged):
        try:
            if not find([short]):
                rest.append(short)
        except _ComputedError as error:
            computed[plain[short]] = str(error)
        except Exception:  # an operation that takes several parameters, and was given one
            rest.append(short)
    try:
        if rest and not find(rest):
            raise _ComputedError("its stored tensors cannot be told")
    except Exception as error:
        computed |= {plain[short]: f"{type(error).__name__}: {error}" for short in rest}
    # In the order in which files list them, as far as that is known.
    order = {name: at for at, name in enumerate(saved)}
    return dict(sorted(stored.items(), key=lambda item: order.get(item[0], 0))), computed


class _ComputedError(Exception):
    """What is stored of a parameter is not its elements in another order."""


def _positions(shapes: Shapes, revert: Revert) -> dict[str, Tensor]:
    """Send the positions of elements the way of their values: int64 of each stored tensor.

    Raises:
        _ComputedError: Values do not come through unchanged, or not all exactly once.
    """
    num = sum(prod(shape) for shape in shapes.values())

    def sent(first: int, step: int) -> dict[str, Tensor]:
        tensors, start = {}, 0
        for name, shape in shapes.items():
            places = torch.arange(start, start + prod(shape), dtype=torch.int64)
            tensors[name] = (first + step * places).reshape(shape)
            start += prod(shape)
        return revert(tensors)

    positions, others = sent(0, 1), sent(7, 3)
    flat = torch.cat([of.reshape(-1) for of in positions.values()])
    moved = all(torch.equal(others[name], 7 + 3 * of) for name, of in positions.items())
    if not moved or len(flat) != num or not torch.equal(flat.sort().values, torch.arange(num)):
        raise _ComputedError("its stored values are computed")
    return positions


def _piece(positions: Tensor, sources: tuple[str, ...], sizes: list[int]) -> Piece:
    """A stored tensor from the positions of its elements, as a view of one parameter if it is."""
    places = positions.numpy()
    shape = tuple(positions.shape)
    if not places.size:
        return Piece(shape, sources[:1], 0, _c_strides(shape))
    first = int(places.flat[0])
    strides = []
    for axis, size in enumerate(shape):
        second = [0] * len(shape)
        second[axis] = 1
        strides.append(int(places[tuple(second)]) - first if size > 1 else 0)
    regular = Piece(shape, sources, first, tuple(strides))
    ends = np.cumsum(sizes)
    at = int(np.searchsorted(ends, first, side="right"))
    start = int(ends[at]) - sizes[at]
    is_inside = places.min() >= start and places.max() < ends[at]
    if is_inside and np.array_equal(regular._places(), places.reshape(-1)):
        return Piece(shape, (sources[at],), first - start, _normal(tuple(strides), shape))
    return Piece(shape, sources, positions=places.reshape(-1))


def _normal(strides: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides with those of C order along axes of one element, where any would do."""
    usual = _c_strides(shape)
    return tuple(
        of if size > 1 else use for of, size, use in zip(strides, shape, usual, strict=True)
    )
