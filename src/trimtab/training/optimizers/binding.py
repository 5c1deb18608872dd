"""From a model and a mask to what an optimizer trains, and the hooks that collect its gradients."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from trimtab.masks.mask import Mask
from trimtab.training.layout import dtype_name, layout_of, module_of, names_of_whole, with_whole
from trimtab.training.optimizers.checks import (
    TAKEN,
    check_weights,
    named_pairs,
    refuse_parameters,
    refuse_trivial_mask,
    refuse_wrapped_model,
)
from trimtab.training.optimizers.distributed import Ranks, ranks_of
from trimtab.training.optimizers.elements import Elements, elements_of
from trimtab.training.optimizers.masters import Master, StateForm, master_for

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Binding:
    """What an optimizer trains of a model.

    Attributes:
        mask: The mask, as it was given.
        fitted: What is trained, under the names of the parameters.
        also: Parameters that are trained whole, beside the mask.
        elements: Name of each parameter that is trained -> its selected elements.
        masters: Likewise -> how they keep fp32 precision.
        base: Likewise -> digest of the base that it started from, where the mask knows it.
        others: The other parameters that get a gradient.
        ranks: The processes that share the parameters; None if there is one.
        num_selected: Elements that are trained.
        num_elements: All elements.
    """

    ranks: Ranks | None
    elements: dict[str, Elements]
    others: list[tuple[str, Tensor]]
    masters: dict[str, Master]
    base: dict[str, str]

    def __init__(
        self,
        named_parameters: nn.Module | Iterable[tuple[str, Tensor]],
        mask: Mask,
        *,
        also: str | Iterable[str],
        master: Master | None,
        process_group: ProcessGroup | None,
        optimizer: str,
        check_base: bool,
    ) -> None:
        """Refuse what cannot be trained, and find the elements of what can.

        Args:
            named_parameters: See `SparseOptimizer`.
            mask: The mask.
            also: See `SparseOptions`, as the following.
            master: Precision of the weights between steps.
            process_group: The processes that train copies of the model.
            optimizer: Kind of optimizer, on which all processes must agree.
            check_base: Compare the weights with the base.

        Raises:
            MaskMismatchError: The mask was made for other parameters, or against other weights.
            MaskError: The mask selects nothing, or everything.
            OptimizerError: Parameters that the mask selects cannot be trained so.
        """
        self.mask = mask
        self.also: list[str] = []
        self.fitted: Mask | None = None
        self._requested = [also] if isinstance(also, str) else list(also)
        self._master = master
        self._process_group = process_group
        self._optimizer = optimizer
        self.bind(named_parameters, check_base=check_base)

    def bind(
        self,
        named_parameters: nn.Module | Iterable[tuple[str, Tensor]],
        *,
        check_base: bool = False,
    ) -> None:
        """Train these parameters; the arguments and errors are those of the constructor."""
        module = module_of(named_parameters)
        if isinstance(named_parameters, nn.Module):
            named_parameters = named_parameters.named_parameters(remove_duplicate=False)
        parameters = named_pairs(named_parameters)
        refuse_wrapped_model(parameters)
        self.ranks = ranks_of(parameters, self._process_group)
        if self.ranks is not None:  # first, so that what is refused is refused by all
            self.ranks.check(parameters, [self._optimizer, self.mask.digest, *self._requested])
        layout = layout_of(parameters, module)
        shapes = {name: tuple(parameter.shape) for name, parameter in parameters}
        if self.fitted is None:  # the same names always fit in the same way
            self.also = names_of_whole(self._requested, shapes)
            self.fitted = with_whole(layout.in_memory(self.mask), shapes, self.also)
        mask = self.fitted
        mask.check(shapes)
        refuse_trivial_mask(parameters, mask)
        refuse_parameters(parameters, mask, self._master)
        if check_base:
            check_weights(parameters, layout.in_files(self.mask), layout)
        self._split(parameters, mask)
        self.masters = {
            name: master_for(elements.parameter.dtype, self._master)
            for name, elements in self.elements.items()
        }
        self.base = {name: mask.base[name].digest for name in self.elements if name in mask.base}
        self.num_selected = sum(mask.num_selected(name) for name in self.elements)
        self.num_elements = sum({id(p): p.numel() for _, p in parameters}.values())

    def _split(self, parameters: Sequence[tuple[str, Tensor]], mask: Mask) -> None:
        """Split the parameters that get a gradient into those that a mask trains, and the others.

        Args:
            parameters: Pairs that the mask fits.
            mask: Selects elements of a parameter in whichever process.
        """
        self.elements = {}
        others: dict[int, tuple[str, Tensor]] = {}
        for name, parameter in parameters:
            if name in mask and mask.num_selected(name):
                self.elements[name] = elements_of(name, parameter, mask)
            elif parameter.requires_grad:
                others.setdefault(id(parameter), (name, parameter))
        for elements in self.elements.values():  # a tied tensor is listed by its other names, too
            others.pop(id(elements.parameter), None)
        self.others = list(others.values())

    def __getstate__(self) -> dict[str, Any]:
        """What a copy has: it is one of a single process."""
        return {**vars(self), "ranks": None, "_process_group": None}

    def groups(self, no_decay: Callable[[str], bool] | None) -> list[dict[str, Any]]:
        """Groups for `torch.optim.Optimizer`: parameters with weight decay, and the others.

        Args:
            no_decay: Whether the parameter of a name has no weight decay; None if all have.
        """
        decayed: list[tuple[str, Tensor]] = []
        exempt: list[tuple[str, Tensor]] = []
        for name, elements in self.elements.items():
            chosen = exempt if no_decay is not None and no_decay(name) else decayed
            chosen.append((name, elements.parameter))
        groups: list[dict[str, Any]] = [
            {"params": decayed},
            {"params": exempt, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def describe(self) -> dict[str, Any]:
        """What is trained of what; plain data."""
        return {
            "mask": self.mask.digest,
            "also": list(self.also),
            "num_selected": self.num_selected,
            "num_elements": self.num_elements,
            "density": self.num_selected / self.num_elements,
            "master": {
                dtype_name(elements.parameter.dtype): self.masters[name]
                for name, elements in self.elements.items()
            },
        }

    def num_bytes(self, form: StateForm) -> dict[str, int]:
        """Memory of this process for positions, gradients and state."""
        trained = self.elements.values()
        return {
            "index_bytes": sum(elements.num_index_bytes for elements in trained),
            "gradient_bytes": sum(4 * elements.length for elements in trained),
            "state_bytes": sum(
                elements.length * entry.dtype.itemsize
                for elements in trained
                for entry in form.entries(self.masters[elements.name]).values()
                if entry.kind == "vector"
            ),
        }


class Collector:
    """Takes gradients from autograd the moment they are complete, and frees them.

    A parameter holds its hook, and the hook its elements, but neither holds the optimizer: one that
    is dropped without `close` lets go of its parameters, too.
    """

    def __init__(
        self,
        owner: object,
        trained: Sequence[Elements],
        others: Sequence[tuple[str, Tensor]],
        *,
        at_once: bool,
    ) -> None:
        """Mark the parameters and install the hooks.

        Args:
            owner: The optimizer; when it is dropped, so are the hooks.
            trained: Elements whose gradient is collected.
            others: Parameters whose gradient is dropped.
            at_once: Install hooks. Without, gradients stay with the parameters.
        """
        parameters = [elements.parameter for elements in trained]
        for parameter in parameters:
            TAKEN[parameter] = True
        hooks: list[RemovableHandle] = []
        if at_once:
            hooks += [_hook(elements.parameter, _collect_into(elements)) for elements in trained]
            hooks += [_hook(parameter, _drop) for _, parameter in others]
        self._release = weakref.finalize(owner, _release, hooks, parameters)

    @property
    def is_open(self) -> bool:
        """Whether `close` has not been called."""
        return self._release.alive

    def close(self) -> None:
        """Remove the hooks and the marks."""
        self._release()


def _hook(parameter: Tensor, function: Callable[[Tensor], None]) -> RemovableHandle:
    """Call a function whenever autograd has added to the gradient of a parameter."""
    return parameter.register_post_accumulate_grad_hook(function)  # type: ignore[no-untyped-call]


def _collect_into(elements: Elements) -> Callable[[Tensor], None]:
    def hook(parameter: Tensor) -> None:
        elements.take_gradient()

    return hook


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


def _release(hooks: list[RemovableHandle], parameters: list[Tensor]) -> None:
    for hook in hooks:
        hook.remove()
    for parameter in parameters:
        del TAKEN[parameter]
