"""What the sparse optimizers share: gradients in, one step, state out."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from trimtab.elements.counts import percent
from trimtab.errors import OptimizerError
from trimtab.masks.mask import Mask
from trimtab.training.layout import dtype_name
from trimtab.training.optimizers.binding import (
    Binding,
    Collector,
    SparseOptions,
    refuse_taken,
    with_defaults,
)
from trimtab.training.optimizers.distributed import local
from trimtab.training.optimizers.elements import (
    Elements,
    StateForm,
    follow_weights,
    load_master,
    root_of_sum,
    store_master,
    sum_of_squares,
)
from trimtab.training.optimizers.saved import KEY, StateCodec
from trimtab.words import first_few

COPIED = (
    *("_binding", "_form", "_max_grad_norm", "_clip_by", "_nonfinite"),
    *("_grad_norm", "num_skipped_steps"),
)
"""What a copy has of an optimizer beside what torch copies: no hooks, nor wrappers of schedules."""


class SparseOptimizer(torch.optim.Optimizer):
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

    Args:
        named_parameters: `model.named_parameters()`, or the model. Through either, a mask finds
            its tensors also where files name or cut them otherwise than the model does; through
            other pairs of name and parameter, only where names differ by wrappers and prefixes.
        mask: Which elements to train, by name of the parameter.
        defaults: Settings of groups, for `torch.optim.Optimizer`.
        numbers: Names of the fp32 numbers that the state of a parameter has.
        moments: Names of its running means.
        **options: Clipping, precision, processes and the like: `SparseOptions`.

    Raises:
        MaskMismatchError: The mask was made for other parameters, or against other weights.
        MaskError: The mask selects nothing, or everything.
        OptimizerError: Parameters that the mask selects cannot be trained so.
        SettingsError: An argument is out of range.

    Attributes:
        num_skipped_steps: Steps left out because of NaN or infinity.
    """

    _collector: Collector | None = None

    def __init__(
        self,
        named_parameters: nn.Module | Iterable[tuple[str, Tensor]],
        mask: Mask,
        defaults: dict[str, Any],
        *,
        numbers: tuple[str, ...] = (),
        moments: tuple[str, ...] = (),
        **options: Unpack[SparseOptions],
    ) -> None:
        options = with_defaults(options, defaults)
        self._max_grad_norm = options["max_grad_norm"]
        self._clip_by = options["clip_by"]
        self._nonfinite = options["nonfinite"]
        self._form = StateForm(numbers, moments, options["state_dtype"])
        self._grad_norm: Tensor | None = None
        self.num_skipped_steps = 0
        self._binding = Binding(named_parameters, mask, options, type(self).__name__)
        super().__init__(self._binding.groups(options["no_decay"]), defaults)
        self._collector = self._new_collector()

    def _new_collector(self) -> Collector:
        binding = self._binding
        return Collector(
            self, [*binding.elements.values()], binding.others, at_once=self._clip_by == "masked"
        )

    @property
    def mask(self) -> Mask:
        """What is trained, as it was given."""
        return self._binding.mask

    @property
    def elements(self) -> Mapping[str, Elements]:
        """The elements that are trained, by name of their parameter."""
        return MappingProxyType(self._binding.elements)

    @property
    def grad_norm(self) -> float | None:
        """Norm of the gradient of the last step, before clipping; None before the first."""
        return None if self._grad_norm is None else float(self._grad_norm)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, collected or not, of every parameter."""
        for elements in self.elements.values():
            elements.clear()
            elements.parameter.grad = None
        for _, parameter in self._binding.others:
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
        squares, ranks = {}, self._binding.ranks
        if self._clip_by == "full":
            graded = [(name, e.parameter) for name, e in self.elements.items()]
            graded += self._binding.others
            if ranks is not None:
                ranks.average_dense(graded)
            for name, parameter in graded:
                if parameter.grad is not None:
                    dense = local(parameter.grad.detach()).to_dense()
                    squares[name] = sum_of_squares(dense.reshape(-1))
            for _, parameter in self._binding.others:
                parameter.grad = None
        for elements in self.elements.values():
            elements.take_gradient()
        if self._clip_by == "masked":
            if ranks is not None:
                present = ranks.any_has(
                    {name: e.gradient is not None for name, e in self.elements.items()}
                )
                ranks.average(
                    {name: e.take_zeros() for name, e in self.elements.items() if present[name]}
                )
            for name, elements in self.elements.items():
                if elements.gradient is not None:
                    squares[name] = sum_of_squares(elements.gradient)
        return squares if ranks is None else ranks.sum_over_parts(squares)

    def _follow_replaced_parameters(self) -> None:
        """Rebind if other parameters have been put into the groups."""
        pairs = [
            (name, parameter)
            for group in self.param_groups
            for name, parameter in zip(group["param_names"], group["params"], strict=True)
        ]
        if all(parameter is self.elements[name].parameter for name, parameter in pairs):
            return
        if self._clip_by == "full":  # parameters without selected elements are in no group
            raise OptimizerError(
                "other parameters have been put into this optimizer, which does not know where "
                'the rest of the model is, and clip_by="full" needs its gradients: call '
                "rebind(model.named_parameters()) after the model is wrapped"
            )
        num_elements = self._binding.num_elements
        self.rebind(pairs)
        self._binding.num_elements = num_elements

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
        """Clip, step and round the elements of one parameter; `gradient` may be overwritten."""
        state = self.state[elements.parameter]
        master = self._binding.masters[elements.name]
        first = not state
        if first:
            state.update(self._form.new(elements, master))
        if clip < 1.0:
            gradient.mul_(clip)
        weights = load_master(elements, master, state)
        moments = [state[key].float() for key in self._form.moments]  # no copy of fp32
        self._apply(group, state, weights, gradient, moments, first=first)
        store_master(elements, master, state, weights)
        if self._form.dtype != torch.float32:
            for key, moment in zip(self._form.moments, moments, strict=True):
                state[key].copy_(moment)

    @abstractmethod
    def _apply(
        self,
        group: dict[str, Any],
        state: dict[str, Any],
        weights: Tensor,
        gradient: Tensor,
        moments: list[Tensor],
        *,
        first: bool,
    ) -> None:
        """Step vectors of one length, fp32, in place.

        Args:
            group: The group of the parameter.
            state: The state of the parameter, for what is not a vector.
            weights: The masters.
            gradient: The clipped gradient; may be overwritten.
            moments: The running means, in the order of `StateForm.moments`.
            first: Whether it is the first step of the parameter.
        """

    def _in_groups(self) -> Iterator[tuple[dict[str, Any], Elements]]:
        for group in self.param_groups:
            for name in group["param_names"]:
                yield group, self.elements[name]

    def __repr__(self) -> str:
        settings = ", ".join(f"{key}={value!r}" for key, value in self.defaults.items())
        return f"{type(self).__name__}({self.summary()}; {settings})"

    def summary(self) -> str:
        """What is trained of what, and the memory that it takes in this process: a line."""
        info = self.describe()
        num_bytes = info["index_bytes"] + info["gradient_bytes"] + info["state_bytes"]
        memory = f"{num_bytes / 1e6:,.{0 if num_bytes > 1e8 else 2}f} MB"
        part = percent(info["num_selected"], info["num_elements"])
        also = f", with all of {first_few(self._binding.also)}" if self._binding.also else ""
        return (
            f"{info['num_selected']:,} of {info['num_elements']:,} elements ({part}){also}, "
            f"{memory} for their positions, gradient and state"
        )

    def describe(self) -> dict[str, Any]:
        """What a result should say of the optimizer that made it; plain data.

        Bytes are those of this process.
        """
        return {
            "optimizer": type(self).__name__,
            **self._binding.describe(),
            "state_dtype": dtype_name(self._form.dtype),
            "max_grad_norm": self._max_grad_norm,
            "clip_by": self._clip_by,
            "nonfinite": self._nonfinite,
            "num_skipped_steps": self.num_skipped_steps,
            **self._binding.num_bytes(self._form),
        }

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
        if any(self.state.values()):
            raise OptimizerError(
                "this optimizer has taken steps with the parameters that it has: rebind it before "
                "its first step"
            )
        self.close()
        self._binding.bind(named_parameters)
        for group in self.param_groups:
            group["params"] = [self.elements[name].parameter for name in group["param_names"]]
        self.state.clear()
        self._collector = self._new_collector()

    def close(self) -> None:
        """Remove the hooks: the parameters are free for another optimizer."""
        assert self._collector is not None
        self._collector.close()

    def reopen(self) -> None:
        """Collect gradients again after `close`, with the state of then.

        Weights that something else has changed in between are gone on from.

        Raises:
            OptimizerError: Another sparse optimizer has the parameters by now.
        """
        assert self._collector is not None
        if not self._collector.is_open:
            refuse_taken((name, e.parameter) for name, e in self.elements.items())
            for name, elements in self.elements.items():
                if state := self.state.get(elements.parameter):
                    follow_weights(elements, self._binding.masters[name], state)
            self._collector = self._new_collector()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy has, and what a pickle holds: all but the hooks and the processes.

        Raises:
            OptimizerError: The optimizer is one of several processes.
        """
        if self._binding.ranks is not None:
            raise OptimizerError(
                "an optimizer of several processes cannot be copied or pickled: save its "
                "state_dict(), and load that into a new optimizer"
            )
        own = {name: vars(self)[name] for name in COPIED if name in vars(self)}
        is_open = self._collector is not None and self._collector.is_open
        return {**super().__getstate__(), **own, "_is_open": is_open}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Become a copy, which collects the gradients of its own copies of the parameters.

        Raises:
            OptimizerError: It is one of `copy.copy`, which has the parameters of the original.
        """
        is_open = state.pop("_is_open", None)
        super().__setstate__(state)
        if is_open is None:  # torch's load_state_dict sets state and groups in this way
            return
        refuse_taken((name, e.parameter) for name, e in self.elements.items())
        self._collector = self._new_collector()
        if not is_open:
            self.close()

    def state_dict(self) -> dict[str, Any]:
        """The state, as plain data and tensors that `torch.load(weights_only=True)` reads.

        Beside torch's own keys, `trimtab` says which mask, base and settings it belongs to.
        Gradients that are collected but not used are no part of it.

        Of a parameter that is sharded, it is the state of the part that this process has: each
        process saves its own, and as many can go on. See `sharded_state_dict` for another number.
        """
        content, codec = super().state_dict(), self._codec
        content["state"] = codec.export(self.state)
        content[KEY] = codec.record() | {
            "boxes": codec.boxes(),
            "num_skipped_steps": self.num_skipped_steps,
        }
        return content

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, bit for bit.

        Raises:
            OptimizerError: It belongs to another mask, base or settings, or is damaged. The
                optimizer is left as it was.
        """
        codec = self._codec
        states = codec.check(state_dict)
        # torch casts state to the dtype of the weights, so it gets none to load.
        super().load_state_dict({"state": {}, "param_groups": state_dict["param_groups"]})
        for name, state in states.items():
            self.state[self.elements[name].parameter] = codec.adopt(name, state)
        self.num_skipped_steps = state_dict[KEY]["num_skipped_steps"]

    def sharded_state_dict(self) -> dict[str, Any]:
        """The state in the form for `torch.distributed.checkpoint` (DCP).

        What is saved by some number of processes, `load_sharded_state_dict` loads in any other::

            state = {"optimizer": optimizer.sharded_state_dict()}
            dcp.save(state, checkpoint_id=folder)

            state = {"optimizer": optimizer.sharded_state_dict()}  # of the new optimizer
            dcp.load(state, checkpoint_id=folder)
            optimizer.load_sharded_state_dict(state["optimizer"])

        `dcp.load` writes into the tensors that it is given, which may be those of the optimizer:
        load into one that has not taken a step.

        Raises:
            OptimizerError: A parameter is sharded along another dimension than its first.
        """
        return {
            "record": self._codec.hashes(),
            "groups": {
                str(number): {
                    key: torch.tensor(group[key], dtype=torch.float64) for key in self.defaults
                }
                for number, group in enumerate(self.param_groups)
            },
            "num_skipped_steps": torch.tensor(self.num_skipped_steps),
            "state": self._codec.export_sharded(self.state),
        }

    def load_sharded_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `sharded_state_dict` was taken, in however many processes.

        Args:
            state_dict: What `sharded_state_dict` returned, after `torch.distributed.checkpoint`
                has loaded into it.

        Raises:
            OptimizerError: It belongs to another mask, base or settings.
        """
        codec = self._codec
        codec.check_hashes(state_dict["record"])
        for number, group in enumerate(self.param_groups):
            for key, value in state_dict["groups"][str(number)].items():
                group[key] = tuple(value.tolist()) if value.dim() else value.item()
        for name, elements in self.elements.items():
            self.state[elements.parameter] = codec.adopt_sharded(name, state_dict["state"][name])
        self.num_skipped_steps = int(state_dict["num_skipped_steps"])

    @property
    def _codec(self) -> StateCodec:
        names = [group["param_names"] for group in self.param_groups]
        return StateCodec(type(self).__name__, self._binding, self._form, names)
