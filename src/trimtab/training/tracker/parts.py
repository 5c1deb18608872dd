"""The parts of a model that are counted separately, by which process and in which dtype.

A part is a tensor, or a part of a fused tensor (such as the rows of q in a fused qkv). In a sharded
model, each process has its own parts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trimtab.checkpoints.names import Rectangle, TensorPart, parts_of, without_wrappers
from trimtab.elements import step_kernels
from trimtab.elements.dtypes import DTYPES, Bits, DType
from trimtab.errors import OptimizerError, SettingsError, TrimtabError
from trimtab.training.layout import Layout, dtype_name
from trimtab.training.optimizers.binding import refuse_wrapped_model
from trimtab.training.optimizers.distributed import as_sharded, box_of, local
from trimtab.training.pieces import Piece
from trimtab.words import first_few

CHUNK = 1 << 19
"""Elements processed at a time: few enough to stay in a CPU cache."""

STORED: Mapping[str, torch.dtype] = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}
"""Safetensors name -> dtype that is tracked."""

MAGNITUDES: Mapping[int, Any] = {
    1: np.uint8(0xFF),
    2: np.uint16(0x7FFF),
    4: np.uint32(0x7FFFFFFF),
    8: np.uint64(0x7FFFFFFFFFFFFFFF),
}
"""Bytes of an element -> its bits that are 0 in +0.0 and -0.0; all bits for one byte."""

UNSIGNED = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32, 8: torch.uint64}

_local = threading.local()


def as_bits(values: Tensor) -> tuple[NDArray[Any], Any]:
    """Flat values as unsigned integers on the CPU, and the mask of bits that are 0 in zeros."""
    if values.device.type != "cpu":  # one byte per element is faster to transfer
        values = (values != 0).cpu()
    if values.dtype == torch.bool:
        values = values.view(torch.uint8)
    size = values.element_size()
    return values.contiguous().view(UNSIGNED[size]).numpy(), MAGNITUDES[size]


def stored_bits(elements: Tensor | NDArray[Any], dtype: DType) -> Bits:
    """Bits of elements rounded to the dtype in which they are stored; valid until the next call.

    Elements are flat, at most `CHUNK`: a tensor, or the bits of fp32 or of `dtype`.
    """
    if isinstance(elements, Tensor):
        if elements.device.type != "cpu":
            elements = elements.to(STORED[dtype.name]).cpu()
        elements = as_bits(elements)[0]
    if elements.dtype == dtype.bits:
        return elements
    if dtype.name == "BF16":
        out = buffer("now", dtype.bits, elements.size)
        step_kernels.round_to_bf16(elements, out)
        return out
    return dtype.encode(elements.view(np.float32))


def buffer(name: str, dtype: np.dtype[Any], size: int) -> NDArray[Any]:
    """A thread-local buffer for at most `CHUNK` elements of at most 4 bytes."""
    memory: NDArray[np.uint8] | None = getattr(_local, name, None)
    if memory is None:
        memory = np.empty(4 * CHUNK, np.uint8)
        setattr(_local, name, memory)
    return memory[: size * dtype.itemsize].view(dtype)


Result = TypeVar("Result")


class Processes:
    """All processes if a parameter is sharded, else only the first.

    Every method is collective: all processes that take part must call it in the same way.

    Attributes:
        takes_part: Whether this process counts anything.
        number: Rank of this process; rank 0 writes the file.
        size: How many processes take part.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        is_initialized = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank = torch.distributed.get_rank() if is_initialized else 0
        is_sharded = any(as_sharded(parameter) is not None for parameter in parameters)
        self.takes_part = is_sharded or rank == 0
        self.number = rank
        self.size = torch.distributed.get_world_size() if is_sharded else 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes the file."""
        return self.number == 0

    def together(self, action: Callable[[], Result]) -> list[Result]:
        """Call a function in each process, and gather the results in all of them.

        Raises:
            TrimtabError: It failed in one process; raised by all of them.
        """
        outcome: Any
        try:
            outcome = action()
        except (TrimtabError, OSError) as error:
            outcome = error
            if self.size == 1:
                raise
        if self.size == 1:
            return [outcome]
        outcomes: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(outcomes, outcome)
        for result in outcomes:
            if isinstance(result, (TrimtabError, OSError)):
                raise result
        return outcomes

    def by_first(self, action: Callable[[], Result]) -> Result:
        """Call a function in the first process, and return its result in all.

        Raises:
            TrimtabError: It failed; raised by all of them.
        """
        return self.together(lambda: action() if self.is_first else None)[0]  # type: ignore[return-value]

    def to_first(self, value: Result) -> list[Result]:
        """Gather the values of all processes in the first; an empty list in the others."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_first else None
        torch.distributed.gather_object(value, values)
        return values or []

    def from_first(self, values: Sequence[Result]) -> Result:
        """Scatter the values that the first process has, one per process."""
        if self.size == 1:
            return values[0]
        received: list[Any] = [None]
        torch.distributed.scatter_object_list(received, list(values) if self.is_first else None)
        return received[0]


@dataclass(frozen=True)
class ModelPart:
    """A part of a model.

    Attributes:
        name: Name of the tensor; for a part of a fused tensor, with its label.
        kind: Kind of tensor: `q_proj`, `norm`, ...
        parameter: Name of the parameter that contains it.
        dtype: Dtype in which its elements are compared.
        pieces: Rows and columns in the 2-D view of this process's part of the parameter; None for
            all of it.
        piece: The stored tensor, where files split the parameter; else None.
    """

    name: str
    kind: str
    parameter: str
    dtype: DType
    pieces: tuple[tuple[slice, slice], ...] | None = None
    piece: Piece | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it is this process's entire part of the parameter, in the same order."""
        return self.pieces is None and self.piece is None

    def of(self, tensor: Tensor) -> Tensor:
        """Its elements in a tensor of the parameter's shape, flat; a view where possible."""
        here = local(tensor.detach())
        if self.piece is not None:
            return self.piece.of(dict.fromkeys(self.piece.sources, here)).reshape(-1)
        if self.pieces is None:
            return here.reshape(-1)
        rows = here.reshape(-1, here.shape[-1])
        return torch.cat([rows[piece].reshape(-1) for piece in self.pieces])


def tracked_parameters(model: Any) -> dict[str, Tensor]:
    """The parameters of a model, by name without wrappers.

    Raises:
        OptimizerError: They are flattened or partitioned by a wrapper, or have a dtype that is not
            tracked; names them.
    """
    parameters = {without_wrappers(name): p for name, p in model.named_parameters()}
    refuse_wrapped_model(list(parameters.items()))
    if bad := [
        f"{name} is {dtype_name(p.dtype)}"
        for name, p in parameters.items()
        if p.dtype not in STORED.values()
    ]:
        raise OptimizerError(
            f"only float32, bfloat16 and float16 weights can be tracked: {first_few(bad)}"
        )
    return parameters


def fitting_dtypes(parameters: Mapping[str, Tensor]) -> set[str]:
    """The 16-bit dtypes that represent all fp32 weights of this process exactly.

    A base that is stored in 16 bits is often loaded as fp32.
    """
    candidates = {"BF16", "F16"}
    for parameter in parameters.values():
        if parameter.dtype == torch.float32:
            flat = local(parameter.detach()).reshape(-1)
            candidates = {name for name in candidates if _fits(flat, name)}
    return candidates


def stored_tensors(
    parameters: Mapping[str, Tensor], layout: Layout
) -> Iterator[tuple[str, str, Piece | None]]:
    """The tensors that checkpoint files have for parameters.

    A sharded parameter that is stored in several tensors counts as one, under its own name.

    Args:
        parameters: Name without wrappers -> parameter.
        layout: Layout of the model.

    Yields:
        The name in files, the name of the parameter, and the piece of it; None for all of it.
    """
    pieces: dict[str, list[tuple[str, Piece]]] = {}
    for name, piece in layout.stored.items():
        for source in piece.sources:
            pieces.setdefault(without_wrappers(source), []).append((name, piece))
    for name, parameter in parameters.items():
        held = pieces.get(name, [])
        if len(held) == 1 and held[0][1].is_all_of(tuple(parameter.shape)):
            yield held[0][0], name, None
        elif as_sharded(parameter) is None and held and all(len(p.sources) == 1 for _, p in held):
            yield from ((stored, name, piece) for stored, piece in held)
        else:
            yield name, name, None


def find_parts(
    parameters: Mapping[str, Tensor], layout: Layout, stored: str, config: Mapping[str, Any]
) -> list[ModelPart]:
    """The parts of a model that this process counts; fused tensors are split by `config`.

    A parameter that is copied to all processes is counted by the first of them.
    """
    found = []
    for name, source, piece in stored_tensors(parameters, layout):
        parameter = parameters[source]
        if not _is_counted_here(parameter):
            continue
        dtype = DTYPES[stored_name(parameter, stored)]
        if piece is not None:
            (part,) = parts_of(name, piece.shape, {})
            found.append(ModelPart(name, part.kind, source, dtype, piece=piece))
            continue
        shape = tuple(parameter.shape)
        of_tensor = parts_of(name, shape, config)
        held = None if len(of_tensor) == 1 else _rectangle(parameter)
        if held is None:
            if len(of_tensor) > 1:  # sharded in a way that its parts cannot follow
                of_tensor = parts_of(name, shape, {})
            found.append(ModelPart(name, of_tensor[0].kind, source, dtype))
            continue
        for part in of_tensor:
            pieces = _pieces(part, held)
            found.append(ModelPart(part.name_in(name), part.kind, source, dtype, pieces))
    return found


def parse_stored_dtype(text: str | None) -> str | None:
    """The safetensors name of `bf16`, `BF16`, `bfloat16` and so on; SettingsError if unknown."""
    if text is None:
        return None
    names = {dtype_name(dtype): name for name, dtype in STORED.items()}
    name = names.get(text.lower(), text.upper())
    if name not in STORED:
        raise SettingsError(f"stored_dtype is one of {', '.join(names)}, not {text!r}")
    return name


def stored_name(parameter: Tensor, stored: str) -> str:
    """The safetensors dtype in which a parameter is compared: `stored` for fp32, else its own."""
    if parameter.dtype == torch.float32:
        return stored
    return next(name for name, dtype in STORED.items() if dtype == parameter.dtype)


def _fits(flat: Tensor, name: str) -> bool:
    if name == "BF16" and flat.device.type == "cpu":
        return bool(step_kernels.fits_bf16(as_bits(flat)[0]))
    return torch.equal(flat.to(STORED[name]).to(flat.dtype), flat)


def _is_counted_here(parameter: Tensor) -> bool:
    """Whether this process counts its part of a parameter."""
    sharded = as_sharded(parameter)
    if sharded is None:
        is_alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
        return is_alone or torch.distributed.get_rank() == 0
    mesh: Any = sharded.device_mesh
    copies = [axis for axis, placement in enumerate(sharded.placements) if placement.is_replicate()]
    is_first = all(mesh.get_local_rank(axis) == 0 for axis in copies)
    return is_first and local(parameter.detach()).numel() > 0


def _rectangle(parameter: Tensor) -> Rectangle | None:
    """This process's part in the 2-D view of a parameter; None if it is not a rectangle."""
    shape, box = parameter.shape, box_of(parameter)
    if len(shape) == 1:
        return Rectangle(0, 1, box[0].start, box[0].stop)
    if any(cut.stop - cut.start != n for cut, n in zip(box[1:-1], shape[1:-1], strict=True)):
        return None
    height = prod(shape[1:-1])
    return Rectangle(box[0].start * height, box[0].stop * height, box[-1].start, box[-1].stop)


def _pieces(part: TensorPart, held: Rectangle) -> tuple[tuple[slice, slice], ...]:
    """The position of a part in the 2-D view of this process's elements."""
    pieces = []
    for r in part.rectangles:
        top, bottom = max(r.row_start, held.row_start), min(r.row_stop, held.row_stop)
        left, right = max(r.column_start, held.column_start), min(r.column_stop, held.column_stop)
        if top < bottom and left < right:
            rows = slice(top - held.row_start, bottom - held.row_start)
            pieces.append((rows, slice(left - held.column_start, right - held.column_start)))
    return tuple(pieces) or ((slice(0, 0), slice(0, 0)),)
