"""Binds a mask to the parameters of a model, and installs the hooks that collect gradients.

Everything is checked before anything is changed: that the mask fits the parameters, and that the
weights are the base that the mask was made against.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast, get_args

import torch
import xxhash
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from trimtab.errors import MaskError, OptimizerError, SettingsError
from trimtab.masks.mask import Mask
from trimtab.training.layout import (
    STORED,
    Layout,
    dtype_name,
    layout_of,
    module_of,
    names_of_whole,
    with_whole,
)
from trimtab.training.optimizers import distributed as dist
from trimtab.training.optimizers import elements as element_sets
from trimtab.training.optimizers.elements import Elements, Master, StateForm
from trimtab.words import first_few

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

TAKEN: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""Parameters whose gradients an open optimizer collects. (An attribute would be copied, too.)"""


class SparseOptions(TypedDict, total=False):
    """Keyword arguments that `SparseAdamW` and `SparseSGD` share.

    Attributes:
        also: Parameters to train entirely, in addition to the mask: names of modules or parameters,
            or the ends of such names (`score`). For parameters that the base of the mask does not
            have, such as a new head.
        max_grad_norm: Clip the gradient to this norm; None, the default, to not clip.
        clip_by: Norm to clip by: of the selected elements ("masked", the default), or of the whole
            gradient ("full"); see `SparseOptimizer`.
        master: Precision of the weights between steps, see `trimtab.training.optimizers.elements`.
            By default "lo16" for bf16 weights, "fp32" for fp16 and "none" for fp32.
        state_dtype: Dtype of the running means between steps: fp32 (the default), bf16, or int8 for
            codes of 8 bits, see `trimtab.training.optimizers.kernels.Code`. They are computed in
            fp32.
        nonfinite: What `step` does when the gradient has NaN or infinity among the selected
            elements (with `clip_by="full"`: anywhere). "raise", the default, raises OptimizerError,
            "skip" skips the step and counts it; in both cases weights and state are unchanged and
            the gradients are dropped.
        check_base: Whether to compare the weights with the base that the mask was made against, if
            the mask records it. Default: True. Set it to False to train weights that were trained
            already.
        no_decay: Predicate on the name of a parameter; True exempts it from weight decay. These
            parameters form a second group. Default: none.
        process_group: The processes that train replicas of the model, each on its part of a batch:
            `step` averages the gradients of the selected elements over them. Default: all
            processes, if `torch.distributed` is initialised. Has no effect on parameters sharded
            by FSDP2 (`fully_shard`), which have process groups of their own.
    """

    also: str | Iterable[str]
    max_grad_norm: float | None
    clip_by: Literal["masked", "full"]
    master: Master | None
    state_dtype: torch.dtype
    nonfinite: Literal["raise", "skip"]
    check_base: bool
    no_decay: Callable[[str], bool] | None
    process_group: ProcessGroup | None


DEFAULTS: SparseOptions = {
    "also": (),
    "max_grad_norm": None,
    "clip_by": "masked",
    "master": None,
    "state_dtype": torch.float32,
    "nonfinite": "raise",
    "check_base": True,
    "no_decay": None,
    "process_group": None,
}

CHOICES: dict[str, tuple[str | None, ...]] = {
    "clip_by": ("masked", "full"),
    "master": (None, *get_args(Master)),
    "nonfinite": ("raise", "skip"),
}


def with_defaults(options: SparseOptions, defaults: Mapping[str, Any]) -> SparseOptions:
    """Complete the options by their defaults, and check them and the settings of parameter groups.

    Raises:
        SettingsError: Some are out of range; names them all.
        TypeError: There is no such option.
    """
    if unknown := sorted(options.keys() - DEFAULTS.keys()):
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}")
    options = {**DEFAULTS, **options}
    problems = [*_negative(defaults)]
    max_grad_norm, state_dtype = options["max_grad_norm"], options["state_dtype"]
    if max_grad_norm is not None and not max_grad_norm > 0.0:
        problems.append(f"max_grad_norm must be above 0, or None to not clip, not {max_grad_norm}")
    problems += [
        f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}"
        for name, choices in CHOICES.items()
        if (value := options[name]) not in choices  # type: ignore[literal-required]
    ]
    if state_dtype not in element_sets.STATE_DTYPES:
        expected = " or ".join(map(str, element_sets.STATE_DTYPES))
        problems.append(f"state_dtype must be {expected}, not {state_dtype}")
    if problems:
        raise SettingsError("; ".join(problems))
    return options


def _negative(settings: Mapping[str, Any]) -> Iterator[str]:
    for name in ("lr", "weight_decay"):
        if name in settings and not settings[name] >= 0.0:
            yield f"{name} must not be negative, as {settings[name]} is"


Parameters = nn.Module | Iterable[tuple[str, Tensor] | Mapping[str, Any]]
"""A model, its named parameters, or parameter groups."""

OF_A_GROUP = ("params", "lr", "weight_decay")
"""Keys of a parameter group that is passed to an optimizer."""


def split_groups(
    parameters: Parameters, no_decay: Callable[[str], bool] | None
) -> tuple[nn.Module | Iterable[tuple[str, Tensor]], list[dict[str, Any]]]:
    """Split parameter groups into the pairs of all of them, and the settings of each.

    Args:
        parameters: Groups `{"params": [(name, parameter), …], "lr": …, "weight_decay": …}`, as
            torch's optimizers take them; or parameters without groups, which are returned.
        no_decay: See `SparseOptions`; not with groups.

    Returns:
        The named parameters; and for each group its settings, with its `names`.

    Raises:
        SettingsError: Groups have another form, or settings that are out of range.
        OptimizerError: The parameters of a group are not pairs of name and parameter.
    """
    if not isinstance(parameters, list | tuple) or not any(
        isinstance(group, Mapping) for group in parameters
    ):
        return cast("Any", parameters), []
    pairs, groups, problems = list[tuple[str, Tensor]](), list[dict[str, Any]](), list[str]()
    for number, group in enumerate(parameters):
        if not isinstance(group, Mapping) or "params" not in group:
            problems.append(f"parameter group {number} is no mapping with params")
            continue
        named = named_pairs(group["params"])
        pairs += named
        settings = {key: value for key, value in group.items() if key != "params"}
        problems += [
            f"parameter group {number} sets {key}, expected only lr and weight_decay: set it in "
            "optimizer.param_groups"
            for key in settings
            if key not in OF_A_GROUP
        ]
        problems += [f"parameter group {number}: {text}" for text in _negative(settings)]
        groups.append({"names": [name for name, _ in named], **settings})
    names = [name for name, _ in pairs]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        problems.append(f"in several parameter groups: {first_few(twice)}")
    if no_decay is not None:
        problems.append("no_decay is for parameters without groups: set weight_decay of a group")
    if problems:
        raise SettingsError("; ".join(problems))
    return pairs, groups


Named = Sequence[tuple[str, Tensor]]


def named_pairs(parameters: Iterable[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """The (name, parameter) pairs; OptimizerError if there are none or they are anything else."""
    pairs = list(parameters)
    if not pairs or not all(
        isinstance(pair, tuple)
        and len(pair) == 2
        and isinstance(pair[0], str)
        and isinstance(pair[1], Tensor)
        for pair in pairs
    ):
        raise OptimizerError(
            "expected pairs of name and parameter, because the mask refers to names: pass "
            f"model.named_parameters() ({'nothing' if not pairs else 'something else'} was passed)"
        )
    return pairs


def refuse_wrapped_model(parameters: Named) -> None:
    """Raise OptimizerError if a wrapper shards parameters, or reduces their gradients."""
    if any(getattr(parameter, "_is_flat_param", False) for _, parameter in parameters):
        raise OptimizerError(
            "the parameters are flattened by FSDP1, which hides the positions of elements: use "
            "FSDP2 (fully_shard)"
        )
    if any(hasattr(parameter, "ds_id") for _, parameter in parameters):
        raise OptimizerError(
            "the parameters are partitioned by DeepSpeed ZeRO-3, which owns their gradients: use "
            "FSDP2 (fully_shard)"
        )
    if all(name.startswith("module.") for name, _ in parameters):
        raise OptimizerError(
            "the model is wrapped in DistributedDataParallel (all names begin with `module.`), "
            "which would send dense gradients: use the wrapped model, `.module`, for training and "
            "for named_parameters(); the optimizer averages gradients over the processes itself"
        )


def refuse_trivial_mask(parameters: Named, mask: Mask) -> None:
    """Raise MaskError if a mask selects nothing, or all trainable elements."""
    if not mask.num_selected():
        raise MaskError("the mask selects no element: there is nothing to train")
    trainable = {id(p): p.numel() for _, p in parameters if p.requires_grad}
    if mask.num_selected() >= sum(trainable.values()):
        raise MaskError(
            "the mask selects every element of the model: torch.optim.AdamW or SGD does the same "
            "at lower cost"
        )


def refuse_parameters(parameters: Named, mask: Mask, master: Master | None) -> None:
    """Raise OptimizerError if parameters with selected elements cannot be trained; names them."""
    problems = [
        f"{name} {trouble}"
        for name, parameter in parameters
        if name in mask
        and mask.num_selected(name)
        and (trouble := _trouble(parameter, master)) is not None
    ]
    if problems:
        raise OptimizerError(f"the mask cannot be trained: {first_few(problems, '; ')}")


IS_TAKEN = "belongs to another sparse optimizer, which takes its gradients: close() that first"


def refuse_taken(parameters: Iterable[tuple[str, Tensor]]) -> None:
    """Raise OptimizerError if another optimizer collects gradients of these parameters."""
    if taken := [f"{name} {IS_TAKEN}" for name, parameter in parameters if parameter in TAKEN]:
        raise OptimizerError(first_few(taken, "; "))


def _trouble(parameter: Tensor, master: Master | None) -> str | None:
    """Why the selected elements of a parameter cannot be trained, and how to fix that."""
    if parameter.device.type == "meta":
        return "has no data (it is on the meta device): load its weights first"
    if not parameter.requires_grad:
        return "is frozen: call requires_grad_(True) on it, or remove it from the mask"
    if parameter in TAKEN:
        return IS_TAKEN
    if trouble := dist.sharding_trouble(parameter):
        return trouble
    if not dist.local(parameter.detach()).is_contiguous():
        return "is not contiguous in memory: call .contiguous() on it"
    if parameter.dtype not in element_sets.POSSIBLE:
        return f"is {dtype_name(parameter.dtype)}: load the model in bfloat16 or float32"
    fixed = parameter.dtype == torch.float32 or master is None
    if not fixed and element_sets.master_for(parameter.dtype, master) != master:
        possible = " or ".join(repr(kind) for kind in element_sets.POSSIBLE[parameter.dtype])
        return f"is {dtype_name(parameter.dtype)}, which needs master={possible}, not {master!r}"
    return None


def check_weights(parameters: Sequence[tuple[str, Tensor]], mask: Mask, layout: Layout) -> None:
    """Compare weights with the base of a mask that uses the tensor names of checkpoint files.

    Raises:
        MaskMismatchError: Weights differ; names the tensors.
    """
    by_name = dict(parameters)
    digests = {}
    for name, piece in layout.stored.items():
        if name in mask.base and mask.num_selected(name) and by_name.keys() >= {*piece.sources}:
            sources = {source: dist.whole(by_name[source].detach()) for source in piece.sources}
            digests[name] = _digest(piece.of(sources), mask.base[name].dtype)
    mask.check({name: mask.shape(name) for name in mask}, digests)


def _digest(parameter: Tensor, stored: str) -> str:
    """xxh3-128 of the bytes of a tensor in a checkpoint, in the dtype `stored` if that is lossless.

    (A model is often loaded in a wider dtype than its checkpoint has.)
    """
    weights = parameter.cpu()
    narrow = weights.to(STORED.get(stored, weights.dtype))
    is_lossless = torch.equal(dist.raw_bytes(narrow.to(weights.dtype)), dist.raw_bytes(weights))
    content = dist.raw_bytes(narrow if is_lossless else weights)
    return xxhash.xxh3_128_hexdigest(content.numpy().data)


class Binding:
    """The parameters and elements that an optimizer trains.

    Attributes:
        mask: The mask, as it was passed in.
        fitted: The elements that are trained, under the names of the parameters.
        also: Parameters that are trained entirely, in addition to the mask.
        elements: Name of each parameter that is trained -> its selected elements.
        masters: Name -> how its elements keep fp32 precision.
        base: Name -> digest of its base, if the mask records it.
        others: The other parameters that get a gradient.
        ranks: The processes that share the parameters; None for a single process.
        num_selected: Number of elements that are trained.
        num_elements: Number of all elements.
    """

    ranks: dist.Ranks | None
    elements: dict[str, Elements]
    others: list[tuple[str, Tensor]]
    masters: dict[str, Master]
    base: dict[str, str]

    def __init__(
        self,
        named_parameters: nn.Module | Iterable[tuple[str, Tensor]],
        mask: Mask,
        options: SparseOptions,
        optimizer: str,
    ) -> None:
        """Bind the parameters; see `SparseOptimizer` for arguments and errors.

        `optimizer` is the type of the optimizer, on which all processes must agree.
        """
        self.mask = mask
        self.also: list[str] = []
        self.fitted: Mask | None = None
        also = options["also"]
        self._requested = [also] if isinstance(also, str) else list(also)
        self._master = options["master"]
        self._process_group = options["process_group"]
        self._optimizer = optimizer
        self.bind(named_parameters, check_base=options["check_base"])

    def bind(
        self,
        named_parameters: nn.Module | Iterable[tuple[str, Tensor]],
        *,
        check_base: bool = False,
    ) -> None:
        """Bind to these parameters; arguments and errors are those of the constructor."""
        module = module_of(named_parameters)
        if isinstance(named_parameters, nn.Module):
            named_parameters = named_parameters.named_parameters(remove_duplicate=False)
        parameters = named_pairs(named_parameters)
        refuse_wrapped_model(parameters)
        self.ranks = dist.ranks_of(parameters, self._process_group)
        if self.ranks is not None:  # first, so that all processes raise
            self.ranks.check(parameters, [self._optimizer, self.mask.digest, *self._requested])
        layout = layout_of(parameters, module)
        shapes = {name: tuple(parameter.shape) for name, parameter in parameters}
        if self.fitted is None:  # rebinding to the same names gives the same mask
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
            name: element_sets.master_for(elements.parameter.dtype, self._master)
            for name, elements in self.elements.items()
        }
        self.base = {name: mask.base[name].digest for name in self.elements if name in mask.base}
        self.num_selected = sum(mask.num_selected(name) for name in self.elements)
        self.num_elements = sum({id(p): p.numel() for _, p in parameters}.values())

    def _split(self, parameters: Sequence[tuple[str, Tensor]], mask: Mask) -> None:
        """Split the parameters that get a gradient into those that the mask trains, and others."""
        self.elements = {}
        others: dict[int, tuple[str, Tensor]] = {}
        for name, parameter in parameters:
            if name in mask and mask.num_selected(name):
                self.elements[name] = element_sets.elements_of(name, parameter, mask)
            elif parameter.requires_grad:
                others.setdefault(id(parameter), (name, parameter))
        for elements in self.elements.values():  # tied tensors are listed under all their names
            others.pop(id(elements.parameter), None)
        self.others = list(others.values())

    def __getstate__(self) -> dict[str, Any]:
        """A copy belongs to a single process."""
        return {**vars(self), "ranks": None, "_process_group": None}

    def groups(
        self, no_decay: Callable[[str], bool] | None, given: Sequence[Mapping[str, Any]] = ()
    ) -> list[dict[str, Any]]:
        """Groups for `torch.optim.Optimizer`, of the parameters that are trained.

        Args:
            no_decay: Predicate of those without weight decay, which form a second group.
            given: The groups of `split_groups`; those without a trained parameter are left out.
        """
        if given:
            return [
                {**settings, "params": [(name, self.elements[name].parameter) for name in trained]}
                for group in given
                for settings in [{key: value for key, value in group.items() if key != "names"}]
                if (trained := [name for name in group["names"] if name in self.elements])
            ]
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
        """Mask, sizes and masters, as plain data."""
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
        """Memory of this process for positions, gradients and state.

        Gradients are those of one backward pass; added to in a second, or averaged over processes,
        they are fp32.
        """
        trained = self.elements.values()
        return {
            "index_bytes": sum(elements.kernels.positions.num_bytes for elements in trained),
            "gradient_bytes": sum(
                elements.num_selected
                * (4 if self.ranks is not None else elements.parameter.dtype.itemsize)
                for elements in trained
            ),
            "state_bytes": sum(
                form.num_bytes(elements.num_selected, self.masters[elements.name])
                for elements in trained
            ),
        }


class Collector:
    """Collects gradients as soon as autograd has accumulated them, and frees them.

    Parameters hold their hooks, and hooks their elements, but neither holds the optimizer: an
    optimizer that is dropped without `close` releases its parameters, too.
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
            owner: The optimizer; the hooks are removed when it is garbage-collected.
            trained: Elements whose gradient is collected.
            others: Parameters whose gradient is dropped.
            at_once: Whether to install hooks; otherwise gradients stay in `parameter.grad`.
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
        """Whether the hooks are installed."""
        return self._release.alive

    def close(self) -> None:
        """Remove the hooks and the marks."""
        self._release()


def _hook(parameter: Tensor, function: Callable[[Tensor], None]) -> RemovableHandle:
    """Call a function whenever autograd has accumulated the gradient of a parameter."""
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
