"""`SparseOptimizer`, the base class of `SparseAdamW` and `SparseSGD`."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
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
    Parameters,
    SparseOptions,
    refuse_taken,
    split_groups,
    with_defaults,
)
from trimtab.training.optimizers.distributed import local
from trimtab.training.optimizers.elements import (
    Elements,
    Scratch,
    StateForm,
    follow_weights,
    load_master,
    root_of_sum,
    store_master,
    sum_of_squares,
)
from trimtab.training.optimizers.kernels import Code, step_as_dense
from trimtab.training.optimizers.saved import KEY, StateCodec
from trimtab.words import first_few

COPIED = (
    *("_binding", "_form", "_max_grad_norm", "_clip_by", "_nonfinite"),
    *("_grad_norm", "num_skipped_steps"),
)
"""Attributes that a copy has in addition to those of `torch.optim.Optimizer`."""


class SparseOptimizer(torch.optim.Optimizer):
    """Trains the elements that a mask selects, with optimizer state for those only.

    Each step consists of:

    1. *Mask and accumulate.* As soon as autograd has a parameter's gradient, the selected elements
       are copied, or added in fp32 to those collected before, and the dense gradient is freed
       (`parameter.grad` is None after `backward`). Gradients of parameters without selected
       elements are dropped.
    2. *Clip*, if `max_grad_norm` is given, as `torch.nn.utils.clip_grad_norm_` does, with one
       difference: the norm is summed in fp64 and then rounded to fp32, so that it depends neither
       on the order nor on the number of elements. `clip_by="masked"` takes the norm of the
       selected elements. `clip_by="full"` takes the norm of the whole gradient; the dense
       gradients then stay in `parameter.grad`, in the dtype of their parameters, until `step`
       collects them, so that memory is saved on optimizer state only.
    3. *Step* in fp32, on the masters.
    4. *Round* the masters to the dtype of the weights and write them back.

    `step` consumes the gradients; without new ones the next call does nothing. An element that is
    not selected keeps its bits, whatever the weight decay.

    External clipping (`torch.nn.utils.clip_grad_norm_`, `Trainer`'s `max_grad_norm`) finds no
    gradients and has no effect: use `max_grad_norm` here.

    The model must not be moved to another device or dtype after the optimizer is created.

    A copy (`copy.deepcopy((model, optimizer))`, or both in one pickle) trains its own parameters;
    gradients that were collected and not used are not copied. A `GradScaler` is only supported
    with `clip_by="full"`, which leaves it the gradients.

    Args:
        named_parameters: `model.named_parameters()`, or the model. With either, the mask also
            fits where checkpoint files name or split tensors differently from the model; with other
            pairs of name and parameter, names may only differ by wrappers and prefixes. Or a list
            of parameter groups, as torch takes them: mappings with `params`, pairs of name and
            parameter, and optionally `lr` and `weight_decay`.
        mask: Which elements to train.
        defaults: Default values of the parameter groups, for `torch.optim.Optimizer`.
        numbers: Names of the fp32 scalars in the state of a parameter.
        moments: Names of the running means in it, with the code of each for 8-bit states.
        **options: Clipping, precision, processes and the like: `SparseOptions`.

    Raises:
        MaskMismatchError: The mask was made for other parameters, or against other weights.
        MaskError: The mask selects nothing, or everything.
        OptimizerError: Selected parameters cannot be trained; names them.
        SettingsError: An argument is out of range.

    Attributes:
        num_skipped_steps: Steps skipped because of NaN or infinity.
    """

    _collector: Collector | None = None

    def __init__(
        self,
        named_parameters: Parameters,
        mask: Mask,
        defaults: dict[str, Any],
        *,
        numbers: tuple[str, ...] = (),
        moments: Mapping[str, Code] = MappingProxyType({}),
        **options: Unpack[SparseOptions],
    ) -> None:
        options = with_defaults(options, defaults)
        self._max_grad_norm = options["max_grad_norm"]
        self._clip_by = options["clip_by"]
        self._nonfinite = options["nonfinite"]
        self._form = StateForm(numbers, dict(moments), options["state_dtype"])
        self._grad_norm: Tensor | None = None
        self.num_skipped_steps = 0
        named, groups = split_groups(named_parameters, options["no_decay"])
        self._binding = Binding(named, mask, options, type(self).__name__)
        super().__init__(self._binding.groups(options["no_decay"], groups), defaults)
        self._collector = self._new_collector()

    def _new_collector(self) -> Collector:
        binding = self._binding
        return Collector(
            self, [*binding.elements.values()], binding.others, at_once=self._clip_by == "masked"
        )

    @property
    def mask(self) -> Mask:
        """The mask, as it was passed in."""
        return self._binding.mask

    @property
    def trained_mask(self) -> Mask:
        """The elements of the parameters that are trained: those of the mask, and of `also`."""
        assert self._binding.fitted is not None
        return self._binding.fitted

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
        """Not supported: the mask determines which parameters are trained."""
        if self._collector is not None:
            raise OptimizerError(
                "a sparse optimizer takes no further parameters: create one with a mask of them all"
            )
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step with the gradients collected since the last.

        Args:
            closure: Recomputes the gradients and returns the loss.

        Returns:
            The loss that the closure returned.

        Raises:
            OptimizerError: The gradient has NaN or infinity and `nonfinite` is "raise", or the
                optimizer is closed.
        """
        if self._collector is None or not self._collector.is_open:
            raise OptimizerError("this optimizer is closed: reopen() it, or create a new one")
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
        clip, scratch = self._clip_factor(), Scratch()
        for group, elements in self._in_groups():
            if elements.gradient is not None:
                self._step_elements(group, elements, elements.gradient, clip, scratch)
                elements.clear()
        return loss

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Read by GradScaler: whether `step` handles scaled gradients itself.

        True, so that `step` can raise a helpful error; otherwise GradScaler would fail an assertion
        because the gradients are freed by then.
        """
        return self._clip_by == "masked"

    def _refuse_scaler(self) -> None:
        if "found_inf" in vars(self):  # set by a GradScaler during a step
            for name in ("found_inf", "grad_scale"):
                delattr(self, name)
            raise OptimizerError(
                "a GradScaler finds no gradients to unscale: they are collected and freed as soon "
                'as autograd has them. Train in bf16, without a scaler, or set clip_by="full", '
                "which leaves them in place"
            )

    def _clip_factor(self) -> float:
        """The factor that clips the gradient, an fp32 number of at most 1."""
        if self._max_grad_norm is None or self._grad_norm is None:
            return 1.0
        return (self._max_grad_norm / (self._grad_norm + 1e-6)).clamp(max=1.0).item()

    def _collect(self) -> dict[str, Tensor]:
        """Collect the remaining gradients; name -> sum of squares that counts towards the norm."""
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
                    {name: e.take_fp32() for name, e in self.elements.items() if present[name]}
                )
            for name, elements in self.elements.items():
                if elements.gradient is not None:
                    squares[name] = sum_of_squares(elements.gradient)
        return squares if ranks is None else ranks.sum_over_parts(squares)

    def _follow_replaced_parameters(self) -> None:
        """Rebind if the parameters in the groups have been replaced."""
        pairs = [
            (name, parameter)
            for group in self.param_groups
            for name, parameter in zip(group["param_names"], group["params"], strict=True)
        ]
        if all(parameter is self.elements[name].parameter for name, parameter in pairs):
            return
        if self._clip_by == "full":  # parameters without selected elements are in no group
            raise OptimizerError(
                "the parameters in this optimizer's groups were replaced, and "
                'clip_by="full" needs the gradients of the whole model: call '
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
        bad = [name for name, square in squares.items() if not math.isfinite(square.item())]
        raise OptimizerError(
            f"NaN or infinity in the gradient of {first_few(bad)}: the step was not taken and the "
            'gradients were dropped; nonfinite="skip" skips such steps'
        )

    def _step_elements(
        self,
        group: dict[str, Any],
        elements: Elements,
        gradient: Tensor,
        clip: float,
        scratch: Scratch,
    ) -> None:
        """Clip, step and round the elements of one parameter."""
        state = self.state[elements.parameter]
        master = self._binding.masters[elements.name]
        first = not state
        if first:
            state.update(self._form.new(elements, master))
        self._count(group, state)
        for part in elements.parts():
            weights = load_master(elements, master, part, state, scratch)
            slope = scratch.take("gradient", part.stop - part.start, weights.device)
            slope.copy_(part.of(gradient))
            if clip < 1.0:
                slope.mul_(clip)
            moments = [
                self._form.load(key, elements, part, state, scratch) for key in self._form.moments
            ]
            apply = partial(self._apply, group, state, first=first)
            step_as_dense(apply, [weights, slope, *moments], part.tail)
            store_master(elements, master, part, state, weights)
            for key, mean in zip(self._form.moments, moments, strict=True):
                self._form.store(key, elements, part, state, mean)

    @abstractmethod
    def _count(self, group: dict[str, Any], state: dict[str, Any]) -> None:
        """Begin a step of a parameter: what is done once, and not for each part of it."""

    @abstractmethod
    def _apply(
        self,
        group: dict[str, Any],
        state: dict[str, Any],
        weights: Tensor,
        gradient: Tensor,
        *moments: Tensor,
        first: bool,
    ) -> None:
        """Step vectors of one length, fp32, in place.

        Args:
            group: The group of the parameter.
            state: The state of the parameter, for what is not a vector.
            weights: The masters.
            gradient: The clipped gradient; is not changed.
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
        """The number of trained elements and the memory of this process for them, in one line."""
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
        """Settings and sizes for the provenance of a result, as plain data.

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
        """Replace the parameters by others of the same names, before the first step.

        For a model that is wrapped after its optimizer is created: `fully_shard` replaces the
        parameters by sharded ones. Gradients collected before are dropped. Weights are not compared
        with the base again.

        accelerate's FSDP2 works in that order, and puts the new parameters into `param_groups`;
        the first `step` detects this and rebinds.

        Args:
            named_parameters: `model.named_parameters()`, after wrapping.

        Raises:
            OptimizerError: A step has been taken already, or the parameters cannot be trained; in
                the second case the optimizer is closed.
            MaskMismatchError: They belong to another model. The optimizer is closed.
        """
        if any(self.state.values()):
            raise OptimizerError(
                "this optimizer has already taken steps with its parameters: rebind it before its "
                "first step"
            )
        self.close()
        self._binding.bind(named_parameters)
        for group in self.param_groups:
            group["params"] = [self.elements[name].parameter for name in group["param_names"]]
        self.state.clear()
        self._collector = self._new_collector()

    def close(self) -> None:
        """Remove the hooks, so that another sparse optimizer can train the parameters."""
        assert self._collector is not None
        self._collector.close()

    def reopen(self) -> None:
        """Collect gradients again after `close`, with the same state.

        Weights that were changed in the meantime are trained from their current values.

        Raises:
            OptimizerError: Another sparse optimizer has taken the parameters.
        """
        assert self._collector is not None
        if not self._collector.is_open:
            refuse_taken((name, e.parameter) for name, e in self.elements.items())
            for name, elements in self.elements.items():
                if state := self.state.get(elements.parameter):
                    follow_weights(elements, self._binding.masters[name], state)
            self._collector = self._new_collector()

    def __getstate__(self) -> dict[str, Any]:
        """The state of a copy or a pickle: everything but the hooks and the process groups."""
        if self._binding.ranks is not None:
            raise OptimizerError(
                "an optimizer that spans several processes cannot be copied or pickled: save its "
                "state_dict(), and load that into a new optimizer"
            )
        own = {name: vars(self)[name] for name in COPIED if name in vars(self)}
        is_open = self._collector is not None and self._collector.is_open
        return {**super().__getstate__(), **own, "_is_open": is_open}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy, which collects the gradients of its own copies of the parameters.

        Raises:
            OptimizerError: It was made by `copy.copy`, so it shares the original's parameters.
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

        In addition to torch's keys, `trimtab` records the mask, base and settings it belongs to.
        Gradients that are collected but not used are not included.

        For sharded parameters it holds the state of this process's part: each process saves its
        own, and training resumes in the same number of processes. For another number, see
        `sharded_state_dict`.
        """
        content, codec = super().state_dict(), self._codec
        content["state"] = codec.export(self.state)
        content[KEY] = codec.record() | {
            "boxes": codec.boxes(),
            "num_skipped_steps": self.num_skipped_steps,
        }
        return content

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; training then resumes bit for bit.

        Raises:
            OptimizerError: It belongs to another mask, base or settings, or is damaged. The
                optimizer is unchanged.
        """
        codec = self._codec
        states = codec.check(state_dict)
        # torch casts state to the dtype of the weights, so it gets none to load.
        super().load_state_dict({"state": {}, "param_groups": state_dict["param_groups"]})
        for name, state in states.items():
            self.state[self.elements[name].parameter] = codec.adopt(name, state)
        self.num_skipped_steps = state_dict[KEY]["num_skipped_steps"]

    def sharded_state_dict(self) -> dict[str, Any]:
        """The state for `torch.distributed.checkpoint` (DCP).

        It can be loaded by any number of processes::

            state = {"optimizer": optimizer.sharded_state_dict()}
            dcp.save(state, checkpoint_id=folder)

            state = {"optimizer": optimizer.sharded_state_dict()}  # of the new optimizer
            dcp.load(state, checkpoint_id=folder)
            optimizer.load_sharded_state_dict(state["optimizer"])

        `dcp.load` writes into the given tensors, which may be those of the optimizer: load into an
        optimizer that has not taken a step.

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
        """Restore what `sharded_state_dict` returned, in any number of processes.

        Args:
            state_dict: The result of `sharded_state_dict`, after `torch.distributed.checkpoint`
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
