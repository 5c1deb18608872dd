"""By what the optimizer moves each element in a step: 0, or something that rounding may absorb.

What counts as moved, per element, in a step whose learning rate is not 0:

- AdamW, Adam and others with a running mean of the gradient (`exp_avg`): the mean is not 0 after
  the step, or there is weight decay and the weight was not 0.
- SGD with momentum: the momentum is not 0 after the step.
- any other optimizer, as SGD without momentum: the gradient is not 0, or there is weight decay and
  the weight was not 0.
- `SparseAdamW` and `SparseSGD`: the same, of the elements of their mask; no other is moved.

A parameter without a gradient is not stepped, so none of its elements is moved; nor is any where
the whole step was skipped. Whether the weights are fp32, bf16 with masters or plain bf16 makes no
difference: it is the update before it is rounded that is asked about.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from trimtab.training.optimizers.sharding import local
from trimtab.training.optimizers.sparse import SparseOptimizer
from trimtab.training.tracker.gradients import Gradients, flags_of, unwrapped

__all__ = ["Moment", "Moments"]


class Moment(NamedTuple):
    """What moved the elements of a parameter.

    Attributes:
        values: Of the shape of what this process has of the parameter; not 0 where an element was
            moved. With `has_flags`, `step_kernels.MOVES` and `step_kernels.SELECTED`.
        decays: Whether weights that were not 0 were moved, too.
        has_flags: Whether only selected elements are trained.
    """

    values: Tensor
    decays: bool = False
    has_flags: bool = False


class Moments:
    """What moved the parameters in the step that was just taken, one after the other."""

    def __init__(self, optimizer: Any, parameters: Mapping[str, Tensor], before: Gradients) -> None:
        """See which parameters were stepped.

        Args:
            optimizer: As the Trainer has it.
            parameters: By name.
            before: What `see_gradients` saw before the step.
        """
        self._optimizer = unwrapped(optimizer)
        self._masked = before.masked
        self._stepped: dict[str, tuple[Tensor, Mapping[str, Any]]] = {}
        num_skipped = getattr(self._optimizer, "num_skipped_steps", 0)
        if getattr(optimizer, "step_was_skipped", False) or num_skipped > before.num_skipped_steps:
            return
        names = {id(parameter): name for name, parameter in parameters.items()}
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                name = names.get(id(parameter))
                if name in before.graded and group.get("lr", 1.0):
                    self._stepped[name] = parameter, group

    def of(self, name: str) -> Moment | None:
        """What moved a parameter; None if it stood still."""
        if name not in self._stepped:
            return None
        parameter, group = self._stepped[name]
        state = self._optimizer.state.get(parameter, {})
        key = next((key for key in ("exp_avg", "momentum_buffer") if _has(state, key)), None)
        decays = bool(group.get("weight_decay", 0.0)) and key != "momentum_buffer"
        if isinstance(self._optimizer, SparseOptimizer):
            elements = self._optimizer.elements[name]
            values = self._masked[name] if key is None else elements.export(state[key])
            return Moment(flags_of(elements, values), decays, has_flags=True)
        if key is not None and state[key].shape == parameter.shape:
            return Moment(local(state[key].detach()), decays)
        assert parameter.grad is not None
        return Moment(local(parameter.grad.detach()).to_dense(), decays)


def _has(state: Mapping[str, Any], key: str) -> bool:
    return isinstance(state.get(key), Tensor)
