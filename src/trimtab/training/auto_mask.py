"""Masks that a run finds by itself: the elements that moved, or those with the largest gradients.

A mask of moved elements is taken while everything is trained. `select_state` then reduces the
optimizer state to that mask, so training continues as if the mask had been known from the start.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.checkpoints.tensors import StoredTensor
from trimtab.errors import SettingsError
from trimtab.masks.header import BaseTensor
from trimtab.masks.mask import Mask
from trimtab.masks.packed import PackedTensor
from trimtab.training.layout import STORED, Layout, stored_values
from trimtab.training.optimizers.elements import decode_state, encode_state, entries_of
from trimtab.training.optimizers.saved import KEY
from trimtab.words import first_few

BITS = {2: torch.int16, 4: torch.int32}
"""Bytes of an element -> integer dtype of the same width, to view its bits."""

BINS = 1 << 16


def nearly_all(shapes: Mapping[str, tuple[int, ...]]) -> Mask:
    """Select every element except the last one.

    Sparse optimizers refuse a mask of everything, because plain AdamW would do the same. Here it is
    temporary, and the masters and moments must be those of a sparse optimizer.
    """
    arrays = {name: np.ones(shape, dtype=np.bool_) for name, shape in shapes.items()}
    arrays[list(arrays)[-1]].reshape(-1)[-1] = False
    return Mask.from_arrays(arrays)


def moved_elements(
    parameters: Iterable[tuple[str, Tensor]],
    base: Mapping[str, StoredTensor],
    digests: Mapping[str, BaseTensor],
    provenance: Mapping[str, Any],
) -> Mask:
    """Select the elements whose bits differ from the base, in the dtype of the base.

    Args:
        parameters: Pairs of name and tensor, as `Layout.tensors` gives them.
        base: The stored tensors under the same names.
        digests: Record of the base that is written into the mask.
        provenance: Provenance of the mask.
    """
    tensors = {}
    for name, parameter in parameters:
        values = _bits(parameter.detach().to(STORED[base[name].dtype.name]))
        moved = values != stored_values(base[name]).view(values.dtype).to(values.device)
        tensors[name] = PackedTensor.pack(moved.cpu().numpy())
    return Mask(tensors, {name: digests[name] for name in tensors}, provenance)


def put_back(
    parameters: Mapping[str, Tensor],
    layout: Layout,
    base: Mapping[str, StoredTensor],
    mask: Mask,
) -> None:
    """Reset every element outside the mask to its value in the base.

    Weights trained in a wider dtype than the base may have moved by less than the dtype of the base
    can represent. `base` and `mask` use the names of `layout.stored`.
    """
    for name, values in layout.tensors(parameters):
        stored = stored_values(base[name]).to(values.device, values.dtype)
        selected = torch.from_numpy(mask.array(name)).to(values.device)
        layout.stored[name].assign(torch.where(selected, values.detach(), stored), parameters)


def share_new(before: Mask, now: Mask) -> float:
    """Fraction of the elements of `now` that are not in `before`; 1 if `now` is empty."""
    if not now.num_selected():
        return 1.0
    num_new = sum(
        int(np.bitwise_count(now.packed(name) & ~before.packed(name)).sum()) for name in now
    )
    return num_new / now.num_selected()


def select_state(saved: Mapping[str, Any], wide: Mask, narrow: Mask) -> dict[str, Any]:
    """Reduce the saved state of a sparse optimizer to fewer elements.

    Args:
        saved: `state_dict` of an optimizer with the mask `wide`.
        wide: A superset of `narrow`.
        narrow: The mask of the optimizer that loads the result.

    Returns:
        A state dict without the parameter groups that became empty.
    """
    record = saved[KEY]
    groups: list[dict[str, Any]] = []
    names_of_groups: list[list[str]] = []
    states: dict[int, dict[str, Tensor]] = {}
    number = 0
    for group, names in zip(saved["param_groups"], record["groups"], strict=True):
        numbers = []
        left = [name for name in names if name in narrow and narrow.num_selected(name) > 0]
        for old, name in zip(group["params"], names, strict=True):
            if name not in left:
                continue
            if old in saved["state"]:
                positions = np.searchsorted(wide.indices(name), narrow.indices(name))
                states[number] = _select(saved["state"][old], torch.from_numpy(positions))
            numbers.append(number)
            number += 1
        if numbers:
            groups.append({**group, "params": numbers, "param_names": left})
            names_of_groups.append(left)
    trained = {name for names in names_of_groups for name in names}
    return {
        "state": states,
        "param_groups": groups,
        KEY: {
            **record,
            "mask": narrow.digest,
            "base": {name: narrow.base[name].digest for name in trained if name in narrow.base},
            "tensors": {n: tensor for n, tensor in record["tensors"].items() if n in trained},
            "groups": names_of_groups,
        },
    }


def _select(state: Mapping[str, Tensor], positions: Tensor) -> dict[str, Tensor]:
    """State of the elements at `positions`, ascending, of the vectors of a parameter."""
    selected = {}
    for key, value in decode_state(state).items():
        if key == "ties":  # these are positions
            selected[key] = torch.isin(positions, value.long()).nonzero().flatten().to(value.dtype)
        else:
            selected[key] = value[positions] if value.dim() else value.clone()
    return encode_state(selected, entries_of(state))


class GradientSums:
    """Sums of the absolute gradients of every element, in fp32.

    A gradient is added and freed as soon as autograd has computed it, so only one exists at a time.
    """

    def __init__(self, parameters: Iterable[tuple[str, Tensor]]) -> None:
        self._sums: dict[str, Tensor] = {}
        self._hooks = []
        for name, parameter in parameters:
            self._sums[name] = torch.zeros_like(parameter, dtype=torch.float32).detach()
            self._hooks.append(parameter.register_post_accumulate_grad_hook(self._adder(name)))  # type: ignore[no-untyped-call]

    def _adder(self, name: str) -> Any:
        def add(parameter: Tensor) -> None:
            assert parameter.grad is not None
            self._sums[name] += parameter.grad.abs()
            parameter.grad = None

        return add

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()

    def largest(self, density: float, provenance: Mapping[str, Any]) -> Mask:
        """Select the elements with the largest sums over all tensors.

        Ties at the threshold are broken by position. An element whose gradient was always 0 is
        never selected.

        Args:
            density: Fraction of all elements to select, rounded to a whole number of elements.
            provenance: Provenance of the mask.

        Raises:
            SettingsError: A sum is NaN or infinite.
        """
        if bad := [name for name, total in self._sums.items() if not total.isfinite().all()]:
            raise SettingsError(
                f"auto: the gradient of {first_few(bad)} has NaN or infinity: check the model and "
                "the data, or train without a probe"
            )
        num_left = round(density * sum(total.numel() for total in self._sums.values()))
        cut, num_at_cut = self._cut(num_left)
        tensors = {}
        for name, sums in self._sums.items():
            bits = _bits(sums).reshape(-1)
            selected = bits > cut
            ties = (bits == cut).nonzero().flatten()[:num_at_cut]
            num_at_cut -= len(ties)
            selected[ties] = True
            tensors[name] = PackedTensor.pack(selected.reshape(sums.shape).cpu().numpy())
        return Mask(tensors, {}, provenance)

    def _cut(self, num_wanted: int) -> tuple[int, int]:
        """The threshold, as bits, and how many of the elements equal to it to select.

        Non-negative floats sort like their bits: a histogram of the upper 16 bits gives the upper
        half of the threshold, and one of the lower 16 bits within that bin gives the rest.
        """
        num_positive = sum(int((total > 0).sum()) for total in self._sums.values())
        num_left = min(num_wanted, num_positive)
        if not num_left:
            return torch.iinfo(torch.int32).max, 0
        high, num_left = _bin(self._counts(lambda bits: bits >> 16), num_left)
        low, num_left = _bin(
            self._counts(lambda bits: bits[bits >> 16 == high] & (BINS - 1)), num_left
        )
        return high << 16 | low, num_left

    def _counts(self, key: Any) -> Tensor:
        counts = torch.zeros(BINS, dtype=torch.int64)
        for sums in self._sums.values():
            counts += torch.bincount(key(_bits(sums).reshape(-1)), minlength=BINS).cpu()
        return counts


def _bin(counts: Tensor, num_wanted: int) -> tuple[int, int]:
    """The bin in which the wanted count is reached from above, and the count left for that bin."""
    above = counts.flip(0).cumsum(0).flip(0) - counts  # elements in higher bins
    index = int((above < num_wanted).nonzero()[0])
    return index, num_wanted - int(above[index])


def _bits(values: Tensor) -> Tensor:
    return values.contiguous().view(BITS[values.element_size()])
