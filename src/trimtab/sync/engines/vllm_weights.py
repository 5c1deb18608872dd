"""The weights of a live vLLM model in checkpoint layout: read back, and replaced layer by layer.

What vLLM serves has another layout than the checkpoint: q, k and v are one matrix, and on a CPU
linear weights are packed inside of the matrix multiplication. Two facts undo that for any model:

- The model's own `load_weights` knows where each tensor of a checkpoint goes. To read weights back,
  it is run with copies in the reverse direction.
- A layer shows the matrix that it multiplies by: it is applied to an identity matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from vllm.model_executor.model_loader.reload import layerwise
from vllm.model_executor.model_loader.reload.meta import restore_layer_on_meta, to_meta_tensor
from vllm.model_executor.model_loader.reload.utils import get_layer_params_buffers
from vllm.model_executor.model_loader.weight_utils import default_weight_loader

from trimtab.checkpoints.tensors import hash_of
from trimtab.deltas.changes import Changes
from trimtab.elements.dtypes import Bits

ROWS = 1024
"""Rows of the identity matrix that a layer is applied to at a time."""

PATCHED = (torch.float32, torch.bfloat16, torch.float16)

PLAIN = ("UnquantizedLinearMethod", "UnquantizedEmbeddingMethod")

UNKNOWN = "its layout in this engine is not known"

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Served(NamedTuple):
    """What an engine serves of a tensor of the checkpoint.

    Attributes:
        hash: xxh3-128 of its bytes; empty if they could not be seen, wholly or in part.
        num_unseen: Elements of which the sign of zero, or a value that is not a normal number,
            does not show in a product; they were taken from the expected tensor.
        way: `read` from the memory of a parameter, or the `product` with an identity matrix, or
            `rounded`: the engine serves a coarser dtype, and the values are those of the tensor
            rounded to it.
        problem: Why it could not be seen, or else nothing.
    """

    hash: str
    num_unseen: int
    way: str
    problem: str = ""


def layers_of(model: Any, weights: Mapping[str, Tensor]) -> dict[str, frozenset[str]]:
    """Names of the layers of a model that each tensor of a checkpoint goes into.

    Args:
        model: The model.
        weights: The tensors, each in memory of its own.
    """
    names = {id(layer): name for name, layer in model.named_modules()}
    by_memory = {_memory(tensor): name for name, tensor in weights.items()}
    found: dict[str, set[str]] = {name: set() for name in weights}

    def note(layer: nn.Module, _: str, call: _Call) -> bool:
        for tensor in call.tensors():
            if (name := by_memory.get(_memory(tensor))) is not None:
                found[name].add(names[id(layer)])
        return True

    with _checkpoint_layout(model, note):
        model.load_weights(iter(weights.items()))
    return {name: frozenset(layers) for name, layers in found.items()}


def whole_layers(
    layers_of: Mapping[str, Collection[str]], names: Collection[str]
) -> tuple[set[str], set[str]]:
    """The layers that some tensors go into, and all tensors that go into those.

    Args:
        layers_of: From `layers_of`.
        names: The tensors. What goes into no layer is left out.
    """
    into: dict[str, set[str]] = {}
    for name, layers in layers_of.items():
        for layer in layers:
            into.setdefault(layer, set()).add(name)
    reached: set[str] = set()
    waiting = {layer for name in names for layer in layers_of[name]}
    needed: set[str] = set()
    while waiting:
        layer = waiting.pop()
        reached.add(layer)
        for name in into[layer] - needed:
            needed.add(name)
            waiting |= set(layers_of[name]) - reached
    return reached, needed


def apply_patches(
    model: nn.Module,
    device: torch.device,
    tensors: Mapping[str, Tensor],
    changes: Mapping[str, Changes],
    layers_of: Mapping[str, Collection[str]],
) -> set[str]:
    """Change elements of a live model in place, where vLLM can.

    vLLM marks what stays with NaN: so integers, fp8 and tensors that get a NaN are left out, as are
    those of layers that vLLM may keep in another layout.

    Args:
        model: The model, on a GPU.
        device: Where it is.
        tensors: The checkpoint as it is now, on the host.
        changes: What was changed in it.
        layers_of: From `layers_of`.

    Returns:
        Names of the tensors that were changed in the model; none if this vLLM has no patches.
    """
    try:
        patching = import_module("vllm.model_executor.model_loader.checkpoint_weight_patch")
    except ImportError:
        return set()
    layers = dict(model.named_modules())
    patches = []
    for name, change in changes.items():
        places = layers_of[name]
        if not all(_is_plain(layers[layer]) for layer in places) or not places:
            continue
        tensor = tensors[name]
        if tensor.dtype not in PATCHED:
            continue
        positions = torch.from_numpy(change.positions())
        values = tensor.view(-1)[positions]
        if torch.isnan(values).any():
            continue
        patches.append(
            patching.CheckpointWeightPatch(
                name=name,
                shape=tuple(tensor.shape),
                dtype=tensor.dtype,
                values=values.to(device),
                indices=positions.contiguous().to(device),
            )
        )
    patching.load_checkpoint_weight_patches(model, patches, validate_unique_indices=False)
    return {patch.name for patch in patches}


def opaque_layers(model: nn.Module, layers_of: Mapping[str, Collection[str]]) -> list[str]:
    """Names of the layers whose layout in this vLLM is not known, such as those of experts."""
    layers = dict(model.named_modules())
    names = sorted({name for found in layers_of.values() for name in found})
    return [name for name in names if not _is_known(layers[name])]


def _is_known(layer: nn.Module) -> bool:
    """Whether a layer has matrices that are as they were loaded, or are packed for a product."""
    method = getattr(layer, "quant_method", None)
    is_known = method is None or type(method).__name__ in PLAIN
    return is_known and all(p.ndim <= 2 for p in layer.parameters(recurse=False))


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer has its parameters as they were loaded, and no packed copy of them."""
    return _is_known(layer) and not hasattr(layer, "cpu_linear")


def reload_layers(
    model: Any, model_config: Any, weights: Mapping[str, Tensor], layers: Iterable[str]
) -> None:
    """Load the tensors of whole layers into a live model, and pack them again.

    Args:
        model: The model.
        model_config: Its vLLM config.
        weights: All tensors of the checkpoint that go into these layers, and no other.
        layers: Names of the layers.
    """
    chosen = [model.get_submodule(name) for name in layers]
    others = _sharing(model, chosen)
    for layer in chosen:
        layerwise.initialize_layerwise_reload(layer)
    model.load_weights(iter(weights.items()))
    for layer in chosen:
        layerwise.finalize_layerwise_reload(layer, model_config)
    # A tied head multiplies by a packed copy of its own, of which the reload does not know.
    for layer in others:
        layer.quant_method.process_weights_after_loading(layer)


def served_weights(model: Any, expected: Mapping[str, Tensor]) -> dict[str, Served]:
    """What a live model serves of every tensor of a checkpoint; the model is left as it is.

    Args:
        model: The model.
        expected: The tensors that it should serve, on the CPU. All values come from the engine:
            these give names and shapes, and decide only what does not show in a product.
    """
    reader = _Reader(model, expected)
    with _checkpoint_layout(model, reader.load) as reader.kept:
        model.load_weights(reader.buffers())
    return reader.served()


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _sharing(model: nn.Module, layers: list[Any]) -> list[Any]:
    """Other layers that multiply by a parameter of these."""
    own = {id(p) for layer in layers for p in layer.parameters(recurse=False)}
    chosen = {id(layer) for layer in layers}
    return [
        layer
        for layer in model.modules()
        if id(layer) not in chosen
        and hasattr(layer, "cpu_linear")
        and any(id(p) in own for p in layer.parameters(recurse=False))
    ]


class _Call(NamedTuple):
    """One call of a weight loader: the loader, and its arguments without the parameter."""

    loader: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def tensors(self) -> Iterator[Tensor]:
        values = (*self.args, *self.kwargs.values())
        return (value for value in values if isinstance(value, Tensor))


class _Kept(NamedTuple):
    """The parameters and buffers of a layer, and which buffers are not persistent."""

    layer: nn.Module
    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    transient: frozenset[str]

    def place(self) -> None:
        """Give them back to the layer."""
        for values in (self.layer._parameters, self.layer._buffers):
            for name in [name for name, value in values.items() if value is not None]:
                del values[name]
        for name, parameter in self.parameters.items():
            self.layer.register_parameter(name, parameter)  # type: ignore[arg-type]
        for name, buffer in self.buffers.items():
            self.layer.register_buffer(name, buffer, persistent=name not in self.transient)


@contextmanager
def _checkpoint_layout(
    model: nn.Module, load: Callable[[nn.Module, str, _Call], Any]
) -> Iterator[dict[int, _Kept]]:
    """Give a model parameters in the layout before packing, without values.

    Args:
        model: The model. Its parameters are back afterwards, untouched.
        load: Called in place of each weight loader, with the layer and the name of the parameter.

    Yields:
        What each layer has outside of the block, by its `id`.
    """
    kept: dict[int, _Kept] = {}

    def called(
        layer: nn.Module, name: str, loader: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        rest = args if kwargs.pop("param", None) is not None else args[1:]
        return load(layer, name, _Call(loader, rest, kwargs))

    try:
        for layer in [*model.modules()]:
            transient = frozenset(layer._non_persistent_buffers_set)
            parameters, buffers = get_layer_params_buffers(layer)
            kept[id(layer)] = _Kept(layer, parameters, buffers, transient)
            restore_layer_on_meta(layer, layerwise.get_layerwise_info(layer))
            for name, parameter in get_layer_params_buffers(layer)[0].items():
                loader = _own_loader(parameter)
                empty = to_meta_tensor(parameter)
                empty.weight_loader = partial(called, layer, name, loader)
                layer._parameters[name] = empty
        yield kept
    finally:
        for one in kept.values():
            one.place()


def _own_loader(parameter: Tensor) -> Callable[..., Any]:
    """The weight loader of a parameter, without what an earlier reload wrapped it in."""
    loader: Any = getattr(parameter, "weight_loader", default_weight_loader)
    while getattr(loader, "__name__", "") == "online_process_loader":
        loader = loader.__wrapped__
    return loader


@dataclass
class _Pending:
    """A tensor that is being read back.

    Attributes:
        values: Its elements so far; those that were not read yet are wrong.
        num_read: Elements that were read.
        way: As in `Served`.
        problem: As in `Served`.
    """

    values: Tensor
    num_read: int = 0
    way: str = "read"
    problem: str = ""


class _Reader(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs weight loaders in reverse: what they would copy to the model is copied from it."""

    kept: dict[int, _Kept]

    def __init__(self, model: nn.Module, expected: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = next(model.parameters()).device
        self._expected = expected
        self._names = {id(layer): name for name, layer in model.named_modules()}
        self._pending: dict[str, _Pending] = {}
        self._by_memory: dict[int, str] = {}
        self._served: dict[str, Served] = {}
        self._ways: dict[int, tuple[Tensor | None, str, str]] = {}  # one layer is read at a time
        self._at = ("", "")

    def buffers(self) -> Iterator[tuple[str, Tensor]]:
        """A tensor to read into for each name; the last one is complete when the next is taken."""
        for name, expected in self._expected.items():
            wrong = expected.view(-1).view(INTEGERS[expected.element_size()]).bitwise_not()
            values = wrong.to(self._device).view(expected.dtype).view(expected.shape)
            self._pending[name] = _Pending(values)
            self._by_memory[_memory(values)] = name
            yield name, values
            self._collect()

    def load(self, layer: nn.Module, name: str, call: _Call) -> Any:
        """Run a weight loader in reverse."""
        values, way, problem = self._dense(layer, name)
        self._at = (way, problem)
        if values is None:
            for tensor in call.tensors():
                if (pending := self._pending_of(tensor)) is not None:
                    pending.problem = problem
            return True
        with self, torch.no_grad():
            return call.loader(values, *call.args, **call.kwargs)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Turn `copy_` round."""
        if func is not torch.ops.aten.copy_.default:
            # Padding is filled: it is left alone.
            return args[0] if func._schema.is_mutable else func(*args, **(kwargs or {}))
        target, source = args[:2]
        pending = self._pending_of(source)
        if pending is None or target.shape != source.shape:
            return target
        way, problem = self._at
        if target.dtype != source.dtype:
            name = self._by_memory[_memory(source)]
            part = self._expected[name].as_strided(
                source.shape, source.stride(), source.storage_offset()
            )
            narrow = target.to(source.dtype)
            if torch.equal(_bits(part.to(target.device, target.dtype)), _bits(target)):
                source.copy_(part)
                way = "rounded" if target.element_size() < source.element_size() else way
            elif torch.equal(_bits(narrow.to(target.dtype)), _bits(target)):
                source.copy_(narrow)
            else:
                problem = problem or f"it is served as {target.dtype}, of other values"
        else:
            source.copy_(target)
        pending.num_read += source.numel()
        pending.way = way if pending.way == "read" else pending.way
        pending.problem = pending.problem or problem
        return target

    def served(self) -> dict[str, Served]:
        """What was read, in the order of the checkpoint."""
        self._collect()
        for name, pending in self._pending.items():
            missing = pending.values.numel() - pending.num_read
            self._served[name] = Served(
                "",
                0,
                pending.way,
                pending.problem
                or f"{missing} of its {pending.values.numel()} elements are not in this engine",
            )
        return {name: self._served[name] for name in self._expected}

    def _pending_of(self, tensor: Tensor) -> _Pending | None:
        name = self._by_memory.get(_memory(tensor))
        return None if name is None else self._pending.get(name)

    def _collect(self) -> None:
        """Hash what is complete."""
        for name, pending in [*self._pending.items()]:
            if pending.num_read != pending.values.numel() or pending.problem:
                continue
            values, num_unseen = pending.values.cpu(), 0
            if pending.way == "product":
                values, num_unseen = _with_unseen(values, self._expected[name])
            bits: Bits = values.reshape(-1).view(torch.uint8).numpy()
            self._served[name] = Served(hash_of(bits), num_unseen, pending.way)
            del self._pending[name], self._by_memory[_memory(pending.values)]

    def _dense(self, layer: nn.Module, name: str) -> tuple[Tensor | None, str, str]:
        """The values of a parameter before it was packed, the way to them, and what is wrong."""
        empty = layer._parameters[name]
        assert empty is not None
        if (known := self._ways.get(id(empty))) is None:
            own = self.kept[id(layer)].parameters[name]
            if _is_known(layer):
                values, way, problem = self._values(layer, own, empty)
            else:  # it may be packed in the same shape
                values, way, problem = None, "read", UNKNOWN
            if values is not None:
                values = values.detach().view(empty.shape)
                values.__class__ = empty.__class__
                values.__dict__ = empty.__dict__.copy()
            known = (values, way, problem)
            self._ways.clear()
            self._ways[id(empty)] = known
        return known

    def _values(
        self, layer: nn.Module, own: Tensor, empty: Tensor
    ) -> tuple[Tensor | None, str, str]:
        if own.shape != empty.shape:
            if own.numel() or not hasattr(layer, "cpu_linear") or empty.ndim != 2:
                return None, "read", UNKNOWN
            return _product(layer, own, empty), "product", ""
        # A layer may multiply by a packed copy, and hold the parameter, too.
        for other in self._multiplying(own):
            if not _is_packed(other, own):
                continue
            seen = _product(other, own, empty)
            wrong = _differing(seen, own).sum().item()
            if wrong:
                name = self._names[id(other)]
                return own, "read", f"{name} multiplies by other values in {wrong:,} elements"
        return own.data, "read", ""

    def _multiplying(self, parameter: Tensor) -> Iterator[nn.Module]:
        """Layers that multiply by a parameter that they hold."""
        for kept in self.kept.values():
            is_held = any(own is parameter for own in kept.parameters.values())
            if is_held and hasattr(kept.layer, "cpu_linear") and parameter.ndim == 2:
                yield kept.layer


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(INTEGERS[tensor.element_size()])


def _is_packed(layer: Any, own: Tensor) -> bool:
    """Whether a layer multiplies by a packed copy, not by the parameter that it is given."""
    row = torch.ones(1, own.shape[1], dtype=own.dtype, device=own.device)
    return bool(layer.cpu_linear(row, torch.zeros_like(own), None).any())


def _product(layer: Any, own: Tensor, empty: Tensor) -> Tensor:
    """The matrix that a layer multiplies by: what it makes of an identity matrix."""
    outputs, inputs = empty.shape
    values = torch.empty(outputs, inputs, dtype=empty.dtype, device=own.device)
    with torch.no_grad():
        for start in range(0, inputs, ROWS):
            stop = min(start + ROWS, inputs)
            rows = torch.zeros(stop - start, inputs, dtype=empty.dtype, device=own.device)
            rows[:, start:stop].fill_diagonal_(1)
            values[:, start:stop] = layer.cpu_linear(rows, own, None).T
    return values


def _unseen(seen: Tensor, expected: Tensor) -> Tensor:
    """Where a product with an identity matrix does not show an element.

    Each output is the sum of one element and of zeros: -0.0 becomes 0.0, as subnormal numbers do on
    some processors, and a row with an infinite number or a NaN becomes NaN.
    """
    tiny = (seen == 0) & (expected.abs() < torch.finfo(expected.dtype).tiny)
    rows = (~torch.isfinite(expected)).any(-1, keepdim=True)
    return tiny | (rows & torch.isnan(seen))


def _differing(seen: Tensor, own: Tensor) -> Tensor:
    return (_bits(seen) != _bits(own.data)) & ~_unseen(seen, own.data)


def _with_unseen(seen: Tensor, expected: Tensor) -> tuple[Tensor, int]:
    """What a product shows, with the expected elements where it does not; and how many are."""
    unseen = _unseen(seen, expected)
    return torch.where(unseen, expected, seen), int(unseen.sum())
