"""`Piece`: a stored tensor in terms of elements of parameters.

Pieces are found by passing positions instead of values through the conversion that
`save_pretrained` applies (`transformers.core_model_loading.revert_weight_conversion`), so they
follow the conversion tables of transformers. Conversions that compute values are detected.
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
"""The conversion that `save_pretrained` applies to a state dict."""


@dataclass(frozen=True, eq=False)
class Piece:
    """A stored tensor, in terms of parameters.

    Attributes:
        shape: Shape as stored.
        sources: Parameters that its elements come from. Positions index their concatenation, each
            flattened in C order.
        offset: Position of the first element.
        strides: Step in position along each axis; None if the positions are irregular.
        positions: Position of each element if irregular, int64 `[elements]`.
    """

    shape: tuple[int, ...]
    sources: tuple[str, ...]
    offset: int = 0
    strides: tuple[int, ...] | None = None
    positions: NDArray[np.int64] | None = None

    @classmethod
    def whole(cls, name: str, shape: tuple[int, ...]) -> Piece:
        """A parameter that is stored unchanged."""
        return cls(shape, (name,), 0, _c_strides(shape))

    @property
    def is_view(self) -> bool:
        """Whether it can be a view of its one parameter."""
        return self.strides is not None

    def is_all_of(self, shape: tuple[int, ...]) -> bool:
        """Whether it is a whole parameter of this shape, unchanged."""
        return (self.shape, self.offset, self.strides) == (shape, 0, _c_strides(shape))

    def of(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Its values: a view of a contiguous parameter where possible, else a copy."""
        if self.strides is not None:
            source = tensors[self.sources[0]].contiguous()
            start = source.storage_offset() + self.offset
            return source.as_strided(self.shape, self.strides, start)
        flat = torch.cat([tensors[name].reshape(-1) for name in self.sources])
        assert self.positions is not None
        return flat[torch.from_numpy(self.positions).to(flat.device)].reshape(self.shape)

    @torch.no_grad()
    def assign(self, values: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """Write its values into the parameters.

        Args:
            values: New values, in the shape of this piece.
            tensors: Parameters by name; written to.
        """
        if self.is_view and tensors[self.sources[0]].is_contiguous():
            self.of(tensors).copy_(values)
            return
        sizes = {name: tensors[name].numel() for name in self.sources}
        for name, positions, indices in self._by_source(sizes):
            flat = tensors[name].detach().reshape(-1)
            to, source = (torch.from_numpy(array).to(flat.device) for array in (positions, indices))
            flat[to] = values.reshape(-1)[source]
            tensors[name].copy_(flat.reshape(tensors[name].shape))

    def take(self, arrays: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Its values as a new array, from arrays of the parameters."""
        if len(self.sources) == 1:
            flat = arrays[self.sources[0]].reshape(-1)
        else:
            flat = np.concatenate([arrays[name].reshape(-1) for name in self.sources])
        return flat[self._flat_positions()].reshape(self.shape)

    def put(self, values: NDArray[Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write its values into contiguous arrays of the parameters."""
        sizes = {name: arrays[name].size for name in self.sources}
        for name, positions, indices in self._by_source(sizes):
            arrays[name].reshape(-1)[positions] = values.reshape(-1)[indices]

    def _by_source(
        self, sizes: Mapping[str, int]
    ) -> Iterator[tuple[str, NDArray[np.int64], NDArray[np.int64]]]:
        """Yield each parameter, positions in it, and the indices of the piece that lie there."""
        positions, start = self._flat_positions(), 0
        for name in self.sources:
            indices = np.flatnonzero((positions >= start) & (positions < start + sizes[name]))
            yield name, positions[indices] - start, indices
            start += sizes[name]

    def _flat_positions(self) -> NDArray[np.int64]:
        if self.positions is not None:
            return self.positions
        assert self.strides is not None
        positions = np.full(self.shape, self.offset, dtype=np.int64)
        for axis, stride in enumerate(self.strides):
            steps = np.arange(self.shape[axis], dtype=np.int64) * stride
            positions += steps.reshape([-1 if axis == i else 1 for i in range(len(self.shape))])
        return positions.reshape(-1)


def revert_of(model: nn.Module | None) -> Revert | None:
    """The conversion that transformers applies when it saves a model, if any."""
    if model is None or "transformers" not in sys.modules:
        return None
    try:
        from transformers import PreTrainedModel
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # before transformers 5 there was no conversion
        return None
    inner: Any = getattr(model, "_orig_mod", model)
    if not isinstance(inner, PreTrainedModel):
        return None
    return lambda tensors: revert_weight_conversion(inner, tensors)


def find_pieces(
    parameters: Shapes, revert: Revert | None
) -> tuple[dict[str, Piece], dict[str, str]]:
    """Return the piece of each stored tensor; and parameters with computed values, with reasons."""
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
        if (short := by_id.get(id(tensor))) is not None:  # the same object, under some name
            stored[name] = Piece.whole(plain[short], parameters[plain[short]])
    unchanged = {source for piece in stored.values() for source in piece.sources}
    shapes = {name: tuple(tensor.shape) for name, tensor in saved.items() if name not in stored}
    rest: list[str] = []
    computed: dict[str, str] = {}

    def find(shorts: list[str]) -> bool:
        """Find the stored tensors of some parameters; False if they need other parameters, too."""
        named = {short: parameters[plain[short]] for short in shorts}
        pieces = _positions(named, revert)
        if any(shapes.get(name) != tuple(tensor.shape) for name, tensor in pieces.items()):
            return False
        sources = tuple(plain[short] for short in shorts)
        sizes = [prod(shape) for shape in named.values()]
        stored.update({name: _piece(p, sources, sizes) for name, p in pieces.items()})
        return True

    for short in (short for short, name in plain.items() if name not in unchanged):
        try:
            if not find([short]):
                rest.append(short)
        except _ComputedError as error:
            computed[plain[short]] = str(error)
        except Exception:  # an operation that takes several parameters
            rest.append(short)
    try:
        if rest and not find(rest):
            raise _ComputedError("its stored tensors cannot be determined")
    except Exception as error:
        computed |= {plain[short]: f"{type(error).__name__}: {error}" for short in rest}
    # In the order of the files, as far as it is known.
    order = {name: index for index, name in enumerate(saved)}
    return dict(sorted(stored.items(), key=lambda item: order.get(item[0], 0))), computed


class _ComputedError(Exception):
    """The stored values of a parameter are not a permutation of its elements."""


def _positions(shapes: Shapes, revert: Revert) -> dict[str, Tensor]:
    """Pass positions of elements through the conversion: int64 of each stored tensor.

    Raises:
        _ComputedError: Values are changed, or do not all appear exactly once.
    """
    num = sum(prod(shape) for shape in shapes.values())

    def convert(first: int, step: int) -> dict[str, Tensor]:
        tensors, start = {}, 0
        for name, shape in shapes.items():
            values = torch.arange(start, start + prod(shape), dtype=torch.int64)
            tensors[name] = (first + step * values).reshape(shape)
            start += prod(shape)
        return revert(tensors)

    positions, others = convert(0, 1), convert(7, 3)
    flat = torch.cat([tensor.reshape(-1) for tensor in positions.values()])
    moved = all(torch.equal(others[name], 7 + 3 * tensor) for name, tensor in positions.items())
    if not moved or len(flat) != num or not torch.equal(flat.sort().values, torch.arange(num)):
        raise _ComputedError("its stored values are computed")
    return positions


def _piece(positions: Tensor, sources: tuple[str, ...], sizes: list[int]) -> Piece:
    """The piece with these positions; a view of one parameter if they are regular."""
    array = positions.numpy()
    shape = tuple(positions.shape)
    if not array.size:
        return Piece(shape, sources[:1], 0, _c_strides(shape))
    first = int(array.flat[0])
    strides = []
    for axis, size in enumerate(shape):
        second = [0] * len(shape)
        second[axis] = 1
        strides.append(int(array[tuple(second)]) - first if size > 1 else 0)
    regular = Piece(shape, sources, first, tuple(strides))
    ends = np.cumsum(sizes)
    index = int(np.searchsorted(ends, first, side="right"))
    start = int(ends[index]) - sizes[index]
    is_inside = array.min() >= start and array.max() < ends[index]
    if is_inside and np.array_equal(regular._flat_positions(), array.reshape(-1)):
        return Piece(shape, (sources[index],), first - start, _normal(tuple(strides), shape))
    return Piece(shape, sources, positions=array.reshape(-1))


def _normal(strides: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides with those of C order along axes of size 1, where any stride is valid."""
    return tuple(
        stride if size > 1 else default
        for stride, size, default in zip(strides, shape, _c_strides(shape), strict=True)
    )


def _c_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
