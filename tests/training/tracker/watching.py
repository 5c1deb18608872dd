"""What `UpdateTracker` should find, counted without it: copies of everything, compared by NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import TrainerCallback

from trimtab.measure.tracked_file import KindFigures, StepFigures
from trimtab.measure.trajectory_result import PointCounts

Bits = Mapping[str, NDArray[Any]]
KINDS = ("embed", "norm", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj")


def kind_of(name: str) -> str:
    return next((kind for kind in KINDS if kind in name), "down_proj")


@dataclass
class Seen:
    step: int
    weights: Bits
    gradients: Mapping[str, Tensor | None]
    moved: Mapping[str, Tensor | None] = field(default_factory=dict)


def stored(model: Any, dtype: torch.dtype) -> dict[str, NDArray[Any]]:
    width = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
    return {
        name: whole(p.detach()).to(dtype).view(width).numpy().copy()
        for name, p in model.named_parameters()
    }


def whole(tensor: Tensor) -> Tensor:
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


class Watcher(TrainerCallback):  # type: ignore[misc]
    """Copies stored weights after each step, gradients before it and what moves after it."""

    def __init__(
        self,
        dtype: torch.dtype,
        gradient: Callable[[Any, str, Tensor], Tensor | None],
        moment: Callable[[Any, str, Tensor], Tensor | None],
    ) -> None:
        self._dtype, self._gradient, self._moment = dtype, gradient, moment
        self.base: Bits = {}
        self.seen: list[Seen] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.global_step:
            self.base = stored(kwargs["model"], self._dtype)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = kwargs["optimizer"]
        self._gradients = {
            name: None if (g := self._gradient(optimizer, name, p)) is None else g.clone()
            for name, p in kwargs["model"].named_parameters()
        }

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        moved = {
            name: None if (m := self._moment(optimizer, name, p)) is None else m != 0
            for name, p in model.named_parameters()
        }
        step = state.global_step + 1
        self.seen.append(Seen(step, stored(model, self._dtype), self._gradients, moved))

    def expected(self, every: int = 1) -> tuple[list[dict[str, PointCounts]], list[StepFigures]]:
        """Counts and figures of the points."""
        points = [item for item in self.seen if item.step % every == 0 or item is self.seen[-1]]
        ever = {name: np.zeros(item.shape, np.bool_) for name, item in self.base.items()}
        final = {name: points[-1].weights[name] != item for name, item in self.base.items()}
        counts, figures = [], []
        before = self.base
        for point in points:
            by_kind: dict[str, Any] = {}
            messages: dict[str, KindFigures] = {}
            for name, base in self.base.items():
                now = point.weights[name]
                changed, stepped = now != base, now != before[name]
                ever[name] |= changed
                row = (
                    base.size,
                    changed.sum(),
                    stepped.sum(),
                    ever[name].sum(),
                    (ever[name] & ~changed).sum(),
                    (changed & final[name]).sum(),
                    (ever[name] & final[name]).sum(),
                )
                kind = kind_of(name)
                by_kind[kind] = np.add(by_kind.get(kind, 0), row)
                gradient = point.gradients[name] if point.step % every == 0 else None
                moved = point.moved[name]
                asked = absorbed = None
                if every == 1:
                    asked = 0 if moved is None else int(moved.sum())
                    absorbed = 0 if moved is None else int((moved.numpy() & ~stepped).sum())
                of_name = KindFigures(
                    stepped=int(stepped.sum()),
                    gradient_elements=None if gradient is None else gradient.numel(),
                    gradient_nonzero=None if gradient is None else int((gradient != 0).sum()),
                    asked=asked,
                    absorbed=absorbed,
                )
                messages[kind] = KindFigures.sum_of(
                    [messages[kind], of_name] if kind in messages else [of_name]
                )
            counts.append({k: PointCounts(*item.tolist()) for k, item in by_kind.items()})
            figures.append(StepFigures(point.step, messages))
            before = point.weights
        return counts, figures

    def norms(self) -> list[tuple[float, float]]:
        """Norm of each step and of the update so far, from the stored values."""
        found, before = [], self.base
        for point in self.seen:
            pairs = [(point.weights[n], before[n], base) for n, base in self.base.items()]
            steps = sum(self._square(now, then) for now, then, _ in pairs)
            updates = sum(self._square(now, base) for now, _, base in pairs)
            found.append((steps**0.5, updates**0.5))
            before = point.weights
        return found

    def _square(self, now: NDArray[Any], then: NDArray[Any]) -> float:
        left, right = (torch.from_numpy(one).view(self._dtype).double() for one in (now, then))
        return float((left - right).square().sum())
