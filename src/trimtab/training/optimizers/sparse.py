"""What the sparse optimizers share: gradients in, one step, state out."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from trimtab.elements.counts import percent
from trimtab.errors import OptimizerError
from trimtab.masks import Mask
from trimtab.training.also import names_of, with_whole
from trimtab.training.layout import layout_of, module_of
from trimtab.training.optimizers.checks import (
    check_settings,
    check_weights,
    named_pairs,
    refuse_parameters,
    refuse_trivial_mask,
    refuse_wrapped_model,
)
from trimtab.training.optimizers.distributed import local, ranks_of
from trimtab.training.optimizers.elements import (
    Collector,
    Elements,
    bind,
    groups_of,
    root_of_sum,
    sum_of_squares,
)
from trimtab.training.optimizers.masters import (
    Master,
    load_master,
    master_for,
    store_master,
)
from trimtab.training.optimizers.resumable import ResumableOptimizer
from trimtab.training.optimizers.saved import dtype_name
from trimtab.words import first_few

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["SparseOptimizer", "Vectors"]


@dataclass(frozen=True)
class Vectors:
    """What a step works on: fp32 vectors of one length, written in place.

    Attributes:
        weights: The masters.
        gradient: The gradient, clipped.
        moments: The running means, in the order of `SparseOptimizer._moments`.
    """

    weights: Tensor
    gradient: Tensor
    moments: list[Tensor]


class SparseOptimizer(ResumableOptimizer):
    """Trains the elements that a mask selects, with state for those only.

    The order of things, per step:

    1. *Accumulate and mask.* As soon as autograd has a parameter's gradient, the selected elements
       are added to an fp32 accumulator and the dense gradient is freed (`parameter.grad` is None
       after `backward`). Gradients of parameters without selected elements are dropped.
    2. *Clip*, if `max_grad_norm` is given, as `torch.nn.utils.clip_grad_norm_` does, with one
       difference: the norm is summed in fp64 and then rounded to fp32, so that it depends neither
       on the order nor on the number of elements. `clip_by="masked"` takes the norm of the
       selected elements. `clip_by="full"` takes the norm of the whole gradient; the dense
       gradients then stay where they are, in the dtype of their parameters, until `step` collects
       them: all that gradients cost is paid in full, and only optimizer state is saved.
    3. *Step* in fp32, on the masters.
    4. *Round* the masters to the dtype of the weights and put them in place.

    `step` uses the gradients up; without new ones the next call does nothing. An element that is
    not selected keeps its bits, whatever the weight decay.

    Clipping from outside (`torch.nn.utils.clip_grad_norm_`, `Trainer`'s `max_grad_norm`) finds no
    gradients and does nothing: use `max_grad_norm` here.

    A model must not be moved to another device or dtype once it has an optimizer.

    A copy (`copy.deepcopy((model, optimizer))`, or both in one pickle) trains its own parameters;
    gradients that were collected and not used are not copied. A `GradScaler` is refused unless
    `clip_by="full"` leaves it the gradients.

    Args that both optimizers share:
        named_parameters: `model.named_parameters()`, or the model. Through either, a mask finds
            its tensors also where files name or cut them otherwise than the model does; through
            other pairs of name and parameter, only where names differ by wrappers and prefixes.
        mask: Which elements to train, by name of the parameter.
        also: Parameters to train whole, beside the mask: names of modules or parameters, or the
            ends of such names (`score`). For what the mask's base did not have, as a new head.
        max_grad_norm: Clip the gradient to this norm; None to not clip.
        clip_by: See above.
        master: Precision of the weights between steps, see `trimtab.training.optimizers.masters`.
            By default "lo16" for bf16 weights, "fp32" for fp16 and "none" for fp32.
        state_dtype: Dtype in which the running means are kept between steps (fp32 or bf16). They
            are computed in fp32.
        nonfinite: What `step` does when the gradient has NaN or infinity among the selected
            elements (with `clip_by="full"`: anywhere). "raise" raises OptimizerError, "skip"
            leaves the step out and counts it; either way weights and state stay as they are and
            the gradients are forgotten.
        check_base: Compare the weights with the base that the mask was made against, where the
            mask knows it. Switch it off to go on from weights that are trained already.
        process_group: The processes that train copies of the model, each on its part of a batch:
            `step` averages the gradients of the selected elements between them. By default all
            processes, if `torch.distributed` has been initialised. Of no concern to parameters
            that are sharded by FSDP2 (`fully_shard`), which know their processes.
        no_decay: Told a parameter's name, says whether it is exempt from weight decay. Such
            parameters form the second of two groups.

    Raises:
        MaskMismatchError: The mask was made for other parameters, or against other weights.
        MaskError: The mask selects nothing, or everything.
        OptimizerError: Parameters that the mask selects cannot be trained so.
        SettingsError: An argument is out of range.

    Attributes:
        num_skipped_steps: Steps left out because of NaN or infinity.
    """

    def __init__(
        self,
        named_parameters: nn.Module | Iterable[tuple[str, Tensor]],
        mask: Mask,
        defaults: dict[str, Any],
        *,
        also: str | Iterable[str],
        max_grad_norm: float | None,
        clip_by: Literal["masked", "full"],
        master: Master | None,
        state_dtype: torch.dtype,
        nonfinite: Literal["raise", "skip"],
        check_base: bool,
        no_decay: Callable[[str], bool] | None,
        process_group: ProcessGroup | None,
    ) -> None:
        check_settings(
            {"lr": defaults["lr"], "weight_decay": defaults["weight_decay"]},
            max_grad_norm,
            {"clip_by": clip_by, "master": master, "nonfinite": nonfinite},
            state_dtype,
        )
        self._mask = mask
        self._master = master
        self._process_group = process_group
        self._max_grad_norm = max_grad_norm
        self._clip_by = clip_by
        self._state_dtype = state_dtype
        self._nonfinite = nonfinite
        self._grad_norm: Tensor | None = None
        self.num_skipped_steps = 0
        self._collector: Collector | None = None
        self._fitted: Mask | None = None  # what is trained, under the names of the parameters
        self._asked = [also] if isinstance(also, str) else list(also)
        self._bind(named_parameters, check_base=check_base)
        super().__init__(groups_of(self._elements.values(), no_decay), defaults)
        self._collector = self._new_collector()

    def _bind(
        self, named_parameters: nn.Module | Iterable[tuple[str, Tensor]], *, check_base: bool
    ) -> None:
        """Refuse what cannot be trained, and find the elements of what can."""
        module = module_of(named_parameters)
        if isinstance(named_parameters, nn.Module):
            named_parameters = named_parameters.named_parameters(remove_duplicate=False)
        parameters = named_pairs(named_parameters)
        refuse_wrapped_model(parameters)
        self._ranks = ranks_of(parameters, self._process_group)
        if self._ranks is not None:  # first, so that what is refused is refused by all
            self._ranks.check(parameters, [type(self).__name__, self._mask.digest, *self._asked])
        layout = layout_of(parameters, module)
        shapes = {name: tuple(parameter.shape) for name, parameter in parameters}
        if self._fitted is None:  # the same names always fit in the same way
            self._also = names_of(self._asked, shapes)
            self._fitted = with_whole(layout.in_memory(self._mask), shapes, self._also)
        mask = self._fitted
        mask.check(shapes)
        refuse_trivial_mask(parameters, mask)
        refuse_parameters(parameters, mask, self._master)
        if check_base:
            check_weights(parameters, layout.in_files(self._mask), layout)
        trained, self._others = bind(parameters, mask)
        self._elements = {elements.name: elements for elements in trained}
        self._masters = {
            name: master_for(elements.parameter.dtype, self._master)
            for name, elements in self._elements.items()
        }
        self._base = {name: mask.base[name].digest for name in self._elements if name in mask.base}
        self._num_selected = sum(mask.num_selected(name) for name in self._elements)
        self._num_elements = sum({id(p): p.numel() for _, p in parameters}.values())

    def _new_collector(self) -> Collector:
        trained = list(self._elements.values())
        return Collector(self, trained, self._others, at_once=self._clip_by == "masked")

    def rebind(self, named_parameters: nn.Module | Iterable[tuple[str, Tensor]]) -> None:
        """Train other parameters of the same names from the first step on.

        For a model that is wrapped after its optimizer is made: `fully_shard` puts sharded
        parameters in the place of those that the optimizer knows. Gradients collected before are
        forgotten. Weights are not compared with the base again.

        accelerate's FSDP2 works in that order, and puts the new parameters into `param_groups`;
        the first `step` finds them there and rebinds by itself.

        Args:
            named_parameters: `model.named_parameters()`, after wrapping.

        Raises:
            OptimizerError: A step has been taken already, or the parameters cannot be trained;
                then the optimizer is closed.
            MaskMismatchError: They are those of another model; then the optimizer is closed, too.
        """
        assert self._collector is not None
        if any(self.state.values()):
            raise OptimizerError(
                "this optimizer has taken steps with the parameters that it has: rebind it before "
                "its first step"
            )
        self._collector.close()
        self._bind(named_parameters, check_base=False)
        for group in self.param_groups:
            group["params"] = [self._elements[name].parameter for name in group["param_names"]]
        self.state.clear()
        self._collector = self._new_collector()

    @property
    def grad_norm(self) -> float | None:
        """Norm of the gradient of the last step, before clipping; None before the first."""
        return None if self._grad_norm is None else float(self._grad_norm)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, collected or not, of every parameter."""
        for elements in self._elements.values():
            elements.clear()
            elements.parameter.grad = None
        for _, parameter in self._others:
            parameter.grad = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused after construction: which parameters are trained is the mask's to say."""
        if self._collector is not None:
            raise OptimizerError(
                "a sparse optimizer takes no further parameters: make one with a mask of them all"
            )
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step with the gradients collected since the last.

        Args:
            closure: Computes the gradients anew and returns the loss.

        Returns:
            What the closure returns.

        Raises:
            OptimizerError: The gradient has NaN or infinity and `nonfinite` is "raise", or the
                optimizer is closed.
        """
        if self._collector is None or not self._collector.is_open:
            raise OptimizerError("this optimizer is closed: reopen() it, or make a new one")
        self._refuse_scaler()
        self._follow_replaced_parameters()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        squares = self._collect()
        if not squares:
            return loss
        norm = root_of_sum(squares.values()).cpu()
        self._grad_norm = norm.float()
        if not math.isfinite(norm.item()):
            self._refuse_nonfinite(squares)
            return loss
        clip = self._clip_factor()
        for group, elements in self._in_groups():
            if elements.gradient is not None:
                self._step_elements(group, elements, elements.gradient, clip)
                elements.clear()
        return loss

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Asked by a GradScaler: whether `step` is to be called with the gradients still scaled.

        It would assert by itself that it found some, and those of a mask are freed by then. With
        true it says so to `step`, which can tell what to do.
        """
        return self._clip_by == "masked"

    def _refuse_scaler(self) -> None:
        if "found_inf" in vars(self):  # set by a GradScaler for the length of a step
            for name in ("found_inf", "grad_scale"):
                delattr(self, name)
            raise OptimizerError(
                "a GradScaler finds no gradients to unscale: they are taken for the mask as soon "
                'as autograd has them. Train in bf16, without a scaler, or set clip_by="full", '
                "which leaves them in place"
            )

    def _clip_factor(self) -> float:
        """What to multiply the gradient with: an fp32 number."""
        if self._max_grad_norm is None or self._grad_norm is None:
            return 1.0
        return (self._max_grad_norm / (self._grad_norm + 1e-6)).clamp(max=1.0).item()

    def _collect(self) -> dict[str, Tensor]:
        """Take the gradients that no hook has taken, and measure all.

        Returns:
            Name of each parameter with a gradient -> the sum of its squares that counts.
        """
        squares = {}
        if self._clip_by == "full":
            graded = [(name, e.parameter) for name, e in self._elements.items()] + self._others
            if self._ranks is not None:
                self._ranks.average_dense(graded)
            for name, parameter in graded:
                if parameter.grad is not None:
                    dense = local(parameter.grad.detach()).to_dense()
                    squares[name] = sum_of_squares(dense.reshape(-1))
            for _, parameter in self._others:
                parameter.grad = None
        for elements in self._elements.values():
            elements.take_gradient()
        if self._clip_by == "masked":
            if self._ranks is not None:
                present = self._ranks.any_has(
                    {name: e.gradient is not None for name, e in self._elements.items()}
                )
                self._ranks.average(
                    {name: e.take_zeros() for name, e in self._elements.items() if present[name]}
                )
            for name, elements in self._elements.items():
                if elements.gradient is not None:
                    squares[name] = elements.sum_of_squares()
        return squares if self._ranks is None else self._ranks.sum_over_parts(squares)

    def _follow_replaced_parameters(self) -> None:
        """Rebind if other parameters have been put into the groups."""
        pairs = [
            (name, parameter)
            for group in self.param_groups
            for name, parameter in zip(group["param_names"], group["params"], strict=True)
        ]
        if all(parameter is self._elements[name].parameter for name, parameter in pairs):
            return
        if self._clip_by == "full":  # parameters without selected elements are in no group
            raise OptimizerError(
                "other parameters have been put into this optimizer, which does not know where "
                'the rest of the model is, and clip_by="full" needs its gradients: call '
                "rebind(model.named_parameters()) after the model is wrapped"
            )
        num_elements = self._num_elements
        self.rebind(pairs)
        self._num_elements = num_elements

    def _refuse_nonfinite(self, squares: dict[str, Tensor]) -> None:
        self.zero_grad()
        if self._nonfinite == "skip":
            self.num_skipped_steps += 1
            return
        bad = [name for name, of in squares.items() if not math.isfinite(of.item())]
        raise OptimizerError(
            f"NaN or infinity in the gradient of {first_few(bad)}: the step was not taken and the "
            'gradients are forgotten; nonfinite="skip" goes on without'
        )

    def _step_elements(
        self, group: dict[str, Any], elements: Elements, gradient: Tensor, clip: float
    ) -> None:
        """Clip, step and round the elements of one parameter.

        Args:
            group: The group of the parameter.
            elements: The elements.
            gradient: What was collected for them; may be overwritten.
            clip: What to multiply the gradient with: an fp32 number.
        """
        state = self.state[elements.parameter]
        master = self._masters[elements.name]
        first = not state
        if first:
            state.update(self._new_state(elements))
        if clip < 1.0:
            gradient.mul_(clip)
        weights = load_master(elements, master, state)
        moments = [state[key].float() for key in self._moments()]  # no copy of fp32
        self._apply(group, state, Vectors(weights, gradient, moments), first=first)
        store_master(elements, master, state, weights)
        if self._state_dtype != torch.float32:
            for key, moment in zip(self._moments(), moments, strict=True):
                state[key].copy_(moment)

    @abstractmethod
    def _apply(
        self, group: dict[str, Any], state: dict[str, Any], vectors: Vectors, *, first: bool
    ) -> None:
        """Step the vectors, in place.

        Args:
            group: The group of the parameter.
            state: The state of the parameter, for what is not a vector.
            vectors: What to step.
            first: Whether it is the first step of the parameter.
        """

    def __repr__(self) -> str:
        settings = ", ".join(f"{key}={value!r}" for key, value in self.defaults.items())
        return f"{type(self).__name__}({self.summary()}; {settings})"

    def summary(self) -> str:
        """What is trained of what, and the memory that it takes in this process: a line."""
        of = self.describe()
        num_bytes = of["index_bytes"] + of["gradient_bytes"] + of["state_bytes"]
        memory = f"{num_bytes / 1e6:,.{0 if num_bytes > 1e8 else 2}f} MB"
        part = percent(of["num_selected"], of["num_elements"])
        also = f", with all of {first_few(self._also)}" if self._also else ""
        return (
            f"{of['num_selected']:,} of {of['num_elements']:,} elements ({part}){also}, "
            f"{memory} for their positions, gradient and state"
        )

    def describe(self) -> dict[str, Any]:
        """What a result should say of the optimizer that made it; plain data.

        Bytes are those of this process.
        """
        trained = self._elements.values()
        num_selected = self._num_selected
        return {
            "optimizer": type(self).__name__,
            "mask": self._mask.digest,
            "also": list(self._also),
            "num_selected": num_selected,
            "num_elements": self._num_elements,
            "density": num_selected / self._num_elements,
            "master": {dtype_name(e.parameter.dtype): self._masters[e.name] for e in trained},
            "state_dtype": dtype_name(self._state_dtype),
            "max_grad_norm": self._max_grad_norm,
            "clip_by": self._clip_by,
            "nonfinite": self._nonfinite,
            "num_skipped_steps": self.num_skipped_steps,
            "index_bytes": sum(elements.num_index_bytes for elements in trained),
            "gradient_bytes": sum(4 * elements.length for elements in trained),
            "state_bytes": sum(
                elements.length * of.dtype.itemsize
                for elements in trained
                for of in self._kept(elements).values()
                if of.kind == "vector"
            ),
        }
