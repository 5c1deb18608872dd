"""What each tensor in the files of a model is made of: elements of which parameters, and where.

It is found by sending the positions of elements the way on which `save_pretrained` sends their
values (`transformers.core_model_loading.revert_weight_conversion`), so it follows the conversion
tables of transformers, whatever they hold. What computes values on that way, rather than moving
them, is told apart.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trimtab.checkpoints.names import without_wrappers

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
        """Its elements: a view of a contiguous parameter where that is possible, else a copy."""
        if self.strides is not None:
            source = tensors[self.sources[0]].contiguous()
            start = source.storage_offset() + self.offset
            return source.as_strided(self.shape, self.strides, start)
        flat = torch.cat([tensors[name].reshape(-1) for name in self.sources])
        assert self.positions is not None
        return flat[torch.from_numpy(self.positions).to(flat.device)].reshape(self.shape)

    @torch.no_grad()
    def assign(self, values: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """Give its elements other values.

        Args:
            values: In its shape.
            tensors: Name of a parameter -> it; written to.
        """
        if self.is_view and tensors[self.sources[0]].is_contiguous():
            self.of(tensors).copy_(values)
            return
        sizes = {name: tensors[name].numel() for name in self.sources}
        for name, where, mine in self._by_source(sizes):
            flat = tensors[name].detach().reshape(-1)
            at, of = (torch.from_numpy(places).to(flat.device) for places in (where, mine))
            flat[at] = values.reshape(-1)[of]
            tensors[name].copy_(flat.reshape(tensors[name].shape))

    def take(self, arrays: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Its elements, as a new array, of arrays of the elements of parameters."""
        if len(self.sources) == 1:
            flat = arrays[self.sources[0]].reshape(-1)
        else:
            flat = np.concatenate([arrays[name].reshape(-1) for name in self.sources])
        return flat[self._places()].reshape(self.shape)

    def put(self, values: NDArray[Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Put elements where they belong in contiguous arrays of parameters, written to."""
        sizes = {name: arrays[name].size for name in self.sources}
        for name, where, mine in self._by_source(sizes):
            arrays[name].reshape(-1)[where] = values.reshape(-1)[mine]

    def _by_source(
        self, sizes: Mapping[str, int]
    ) -> Iterator[tuple[str, NDArray[np.int64], NDArray[np.int64]]]:
        """Each parameter, positions in it, and which elements of the piece lie there."""
        places, start = self._places(), 0
        for name in self.sources:
            mine = np.flatnonzero((places >= start) & (places < start + sizes[name]))
            yield name, places[mine] - start, mine
            start += sizes[name]

    def _places(self) -> NDArray[np.int64]:
        if self.positions is not None:
            return self.positions
        assert self.strides is not None
        places = np.full(self.shape, self.offset, dtype=np.int64)
        for axis, stride in enumerate(self.strides):
            steps = np.arange(self.shape[axis], dtype=np.int64) * stride
            places += steps.reshape([-1 if axis == at else 1 for at in range(len(self.shape))])
        return places.reshape(-1)


def revert_of(model: nn.Module | None) -> Revert | None:
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


def find_pieces(
    parameters: Shapes, revert: Revert | None
) -> tuple[dict[str, Piece], dict[str, str]]:
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


def _c_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
