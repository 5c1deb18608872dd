"""Masks that a run finds by itself: what has moved, or what has the largest gradients.

A mask of what moved is taken while everything is trained. `select_state` then makes the state of an
optimizer for that mask of the state of the one that trained everything, so that training goes on
as if the mask had been known all along: the chosen elements keep masters and running means.
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
from trimtab.training.optimizers.saved import KEY
from trimtab.words import first_few

BITS = {2: torch.int16, 4: torch.int32}
"""Bytes of an element -> integer of its width, to see its bits."""

BINS = 1 << 16


def nearly_all(shapes: Mapping[str, tuple[int, ...]]) -> Mask:
    """Select everything but one element, the last of all.

    Sparse optimizers refuse to train everything, since for a whole run plain AdamW does the same.
    Here it is for a while only, and masters and running means must be theirs.
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
        digests: Record of the base in the mask.
        provenance: Of the mask.
    """
    tensors = {}
    for name, parameter in parameters:
        now = _bits(parameter.detach().to(STORED[base[name].dtype.name]))
        moved = now != stored_values(base[name]).view(now.dtype).to(now.device)
        tensors[name] = PackedTensor.pack(moved.cpu().numpy())
    return Mask(tensors, {name: digests[name] for name in tensors}, provenance)


def put_back(
    parameters: Mapping[str, Tensor],
    layout: Layout,
    base: Mapping[str, StoredTensor],
    mask: Mask,
) -> None:
    """Reset every element outside of a mask to its value in the base.

    Where weights are trained in a wider dtype than the base has, they may have moved by less than
    the base can represent. Names of `base` and `mask` are those of `layout.stored`.
    """
    for name, now in layout.tensors(parameters):
        stored = stored_values(base[name]).to(now.device, now.dtype)
        selected = torch.from_numpy(mask.array(name)).to(now.device)
        layout.stored[name].assign(torch.where(selected, now.detach(), stored), parameters)


def share_new(before: Mask, now: Mask) -> float:
    """Share of the elements of one mask that are not in an earlier one; 1 if it has none."""
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
        wide: Has every element of `narrow`.
        narrow: The mask of the optimizer that loads the result.

    Returns:
        A state dict without the groups that have no parameter left.
    """
    record = saved[KEY]
    groups: list[dict[str, Any]] = []
    names_of_groups: list[list[str]] = []
    states: dict[int, dict[str, Tensor]] = {}
    number = 0
    for group, names in zip(saved["param_groups"], record["groups"], strict=True):
        numbers = []
        kept = [name in narrow and narrow.num_selected(name) > 0 for name in names]
        for old, name, is_kept in zip(group["params"], names, kept, strict=True):
            if not is_kept:
                continue
            if old in saved["state"]:
                where = np.searchsorted(wide.indices(name), narrow.indices(name))
                states[number] = _select(saved["state"][old], torch.from_numpy(where))
            numbers.append(number)
            number += 1
        if numbers:
            left = [name for name, is_kept in zip(names, kept, strict=True) if is_kept]
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
            "tensors": {name: of for name, of in record["tensors"].items() if name in trained},
            "groups": names_of_groups,
        },
    }


def _select(state: Mapping[str, Tensor], where: Tensor) -> dict[str, Tensor]:
    """State of the elements at `where`, ascending positions in the vectors of a parameter."""
    selected = {}
    for key, value in state.items():
        if key == "ties":  # positions themselves
            selected[key] = torch.isin(where, value.long()).nonzero().flatten().to(value.dtype)
        else:
            selected[key] = value[where] if value.dim() else value.clone()
    return selected


class GradientSums:
    """Sums of the absolute gradients of every element, one fp32 number each.

    A gradient is added as soon as autograd has it, and freed: only one is there at a time.
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
        """Collect no more."""
        for hook in self._hooks:
            hook.remove()

    def largest(self, density: float, provenance: Mapping[str, Any]) -> Mask:
        """Select the elements with the largest sums, over all tensors together.

        Where several have the sum at which it is cut, the first are taken. An element whose
        gradient always was 0 is never selected.

        Args:
            density: Share of all elements to select, rounded to a whole number of them.
            provenance: Of the mask.

        Raises:
            SettingsError: Some sums are NaN or infinite.
        """
        if bad := [name for name, of in self._sums.items() if not of.isfinite().all()]:
            raise SettingsError(
                f"auto: the gradient of {first_few(bad)} has NaN or infinity: lower what makes it "
                "so, or train without a probe"
            )
        num_left = round(density * sum(of.numel() for of in self._sums.values()))
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
        """The sum at which to cut, as bits, and how many elements that have it to take.

        Numbers that are not negative are in the order of their bits, so the upper 16 bits, counted,
        tell the upper half of the cut, and the lower 16 bits of those that have it the rest.
        """
        num_positive = sum(int((of > 0).sum()) for of in self._sums.values())
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
    """The bin in which the wanted number is reached from above, and how many it has to give."""
    above = counts.flip(0).cumsum(0).flip(0) - counts  # elements in higher bins
    place = int((above < num_wanted).nonzero()[0])
    return place, num_wanted - int(above[place])


def _bits(values: Tensor) -> Tensor:
    return values.contiguous().view(BITS[values.element_size()])
