"""Train only a mask in any script that uses a Hugging Face Trainer, including those of TRL.

Call `train_only(trainer, mask)` between the construction of the trainer and `trainer.train()`. It
overrides methods of that one object, not of its class; see the methods of `MaskedTraining`.
Learning rate, betas, epsilon, weight decay, momentum and `max_grad_norm` are read from the
Trainer's arguments, which are never modified; settings without a sparse form are refused, not
ignored. The model is an ordinary one whenever `train` is not running.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trimtab.elements.counts import percent
from trimtab.errors import SettingsError
from trimtab.masks.mask import Mask
from trimtab.training import runtime
from trimtab.training.folders import read_json
from trimtab.training.masked_checkpoint import (
    MASK_FILE,
    RECORD_FILE,
    add_to_model_card,
    check_same_run,
    load_converted,
    mask_made_alike,
    write_beside_weights,
)
from trimtab.words import first_few

if TYPE_CHECKING:
    import torch

    from trimtab.training.optimizers.elements import Master
    from trimtab.training.optimizers.sparse import SparseOptimizer

NAMES = {"adamw_torch": "adamw", "adamw_torch_fused": "adamw", "sgd": "sgd"}
"""Value of the Trainer's `optim` -> algorithm."""

ALGORITHMS = {"AdamW": "adamw", "SGD": "sgd"}
"""Class in `torch.optim` -> algorithm, for `optimizer_cls_and_kwargs`."""

HONOURED = {"adamw": {"lr", "betas", "eps"}, "sgd": {"lr", "momentum"}}
"""Keyword arguments that the sparse optimizer of an algorithm takes."""

WITHOUT_EFFECT = {"foreach", "fused", "weight_decay"}
"""Kernel choices, and the decay, which the Trainer sets per parameter."""


@dataclass(frozen=True)
class OptimizerSettings:
    """The optimizer that the Trainer would create, and its settings.

    Attributes:
        algorithm: `adamw` or `sgd`.
        keywords: `lr`, and `betas` and `eps` or `momentum`, depending on the algorithm.
        weight_decay: Weight decay of the parameters that the Trainer decays.
        max_grad_norm: Norm at which gradients are clipped; None for no clipping.
    """

    algorithm: str
    keywords: Mapping[str, Any]
    weight_decay: float
    max_grad_norm: float | None


def optimizer_settings(
    args: Any, model: Any, class_and_keywords: tuple[Any, Mapping[str, Any]] | None = None
) -> OptimizerSettings:
    """Read the optimizer's settings as the Trainer's own `create_optimizer` would.

    Args:
        args: The Trainer's arguments.
        model: Its model.
        class_and_keywords: Its `optimizer_cls_and_kwargs`.

    Raises:
        SettingsError: They request something that the sparse optimizers do not support.
    """
    import torch
    from transformers import Trainer

    name = getattr(args.optim, "value", args.optim)
    if class_and_keywords is None and name not in NAMES:
        raise SettingsError(
            f"optim={name!r} cannot train only a mask: expected {', '.join(map(repr, NAMES))}"
        )
    cls, keywords = class_and_keywords or Trainer.get_optimizer_cls_and_kwargs(args, model)
    algorithm = ALGORITHMS.get(getattr(cls, "__name__", ""))
    if algorithm is None or cls is not getattr(torch.optim, cls.__name__):
        raise SettingsError(
            f"{getattr(cls, '__name__', cls)} cannot train only a mask: "
            "expected torch.optim.AdamW or torch.optim.SGD"
        )
    defaults = cls([torch.zeros(1)]).defaults
    unknown = {
        key: value
        for key, value in keywords.items()
        if key not in HONOURED[algorithm] | WITHOUT_EFFECT and value != defaults.get(key)
    }
    if unknown:
        given = ", ".join(f"{key}={value!r}" for key, value in unknown.items())
        raise SettingsError(
            f"{given}: torch.optim.{cls.__name__} has this option, its sparse form does not"
        )
    chosen = {key: value for key, value in keywords.items() if key in HONOURED[algorithm]}
    return OptimizerSettings(
        algorithm,
        {"lr": args.learning_rate, **chosen},
        args.weight_decay,
        args.max_grad_norm or None,
    )


def check_trainer(trainer: Any) -> None:
    """Refuse trainers whose gradients or parameters a sparse optimizer cannot use.

    Args:
        trainer: A transformers `Trainer`, not yet training.

    Raises:
        SettingsError: The trainer cannot be used; lists all reasons.
    """
    from transformers import Trainer

    if not isinstance(trainer, Trainer):
        raise SettingsError(
            f"expected a transformers Trainer, found {type(trainer).__name__}: in a loop of your "
            "own, use SparseAdamW"
        )
    problems = list(_problems(trainer))
    if problems:
        raise SettingsError(f"{type(trainer).__name__}: {'; '.join(problems)}")


def _problems(trainer: Any) -> list[str]:
    from transformers import Trainer

    model, args = trainer.model, trainer.args
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    reasons = {
        "it trains only a mask already: close() what train_only returned first": (
            "create_optimizer" in vars(trainer)
        ),
        "it has an optimizer already: call train_only before train(), and pass no optimizers=": (
            trainer.optimizer is not None
        ),
        "its class has its own create_optimizer, which train_only would replace: make a "
        "SparseAdamW there instead": type(trainer).create_optimizer is not Trainer.create_optimizer,
        "it makes its model in model_init when training starts: pass the model itself": (
            trainer.model_init is not None
        ),
        "its model is a PEFT adapter, whose base is frozen: train the whole model, or merge the "
        "adapter first": hasattr(model, "peft_config")
        or getattr(model, "_hf_peft_config_loaded", False),
        "its model is quantised: load the weights as bf16 or fp32": (
            getattr(model, "is_quantized", False)
            or getattr(model, "hf_quantizer", None) is not None
        ),
        "DeepSpeed keeps weights and gradients in flat buffers: use FSDP2": (
            trainer.is_deepspeed_enabled
        ),
        "FSDP1 flattens the weights: set fsdp_version to 2": (
            trainer.is_fsdp_enabled and getattr(plugin, "fsdp_version", 1) != 2
        ),
        "its model was sharded when it was loaded: let accelerate shard it with FSDP2": (
            getattr(trainer, "is_distributed_loading_by_transformers", False)
        ),
        "several GPUs in one process (nn.DataParallel) are not supported: start it with "
        "torchrun or accelerate launch": args.n_gpu > 1,
        "fp16 scales its gradients by a moving factor: use bf16": args.fp16,
    }
    return [problem for problem, applies in reasons.items() if applies]


def train_only(
    trainer: Any,
    mask: Mask | str | os.PathLike[str] | None = None,
    *,
    density: float | None = None,
    seed: int = 0,
    also: str | Iterable[str] = (),
    master: Master | None = None,
    state_dtype: torch.dtype | None = None,
    clip_by: Literal["masked", "full"] = "masked",
    nonfinite: Literal["raise", "skip"] = "raise",
    check_base: bool = True,
) -> MaskedTraining:
    """Train only the elements of a mask; all others keep their bits.

    Call it once, before `trainer.train()`. Learning rate, betas, epsilon, weight decay (and which
    parameters have none), momentum and `max_grad_norm` are read from the trainer's arguments;
    `optim` may be `adamw_torch`, `adamw_torch_fused` or `sgd`. The optimizer clips the gradients,
    and `trainer.accelerator` does not clip them a second time.

    Args:
        trainer: A `transformers.Trainer` or any subclass that does not override `create_optimizer`.
        mask: The mask; or its file; or the kind of a mask to make from the model's weights as they
            are now: `low-magnitude`, `high-magnitude`, `random`, `principal`, `off-principal`,
            `safe` or `absorption`, as `trimtab mask make` has them (`mask_from_model`). A run that
            resumes has the mask of its checkpoint, whatever the weights are by then. None is
            `random`, which did as well as any other on the small models of docs/train.md.
        density: Share of the elements of each tensor that a mask made here selects, above 0 and
            below 1; None is 0.05. The learning rate has to suit it: `suggested_learning_rate`.
        seed: Decides a random mask, and which of equal weights a mask made here selects.
        also: Parameters to train in full, in addition to the mask, like PEFT's `modules_to_save`:
            names of modules or parameters, or suffixes of such names (`score`). A new head that
            the mask's base does not have stays at its initial values otherwise, with a warning.
        master: How masked elements keep fp32 precision; see `SparseAdamW`.
        state_dtype: Dtype of the optimizer's moments: `torch.float32` (None), `torch.bfloat16`, or
            `torch.int8` for codes of 8 bits.
        clip_by: Norm by which gradients are clipped: `masked` over the elements of the mask, `full`
            over every parameter. With `masked`, parameters without a masked element get no gradient
            (`requires_grad` is False while `train` runs).
        nonfinite: What to do on a gradient that is not finite: `raise`, or `skip` the step.
        check_base: Check that the model has the weights that the mask was made against. This is
            checked here because a resumed run loads other weights before it creates its optimizer.

    Returns:
        The `MaskedTraining`, with its optimizer, its record, and `close` to undo it.

    Raises:
        SettingsError: The trainer or its settings cannot be combined with a mask; `also` has a name
            that the model does not have; or a mask that is not made here has a density.
        MaskError: The mask cannot be read, or not be made.
        MaskMismatchError: The mask was made for another model, or for other weights.
        OptimizerError: The parameters already have a sparse optimizer.
    """
    import torch

    from trimtab.training.model_masks import DEFAULT_KIND, mask_of

    check_trainer(trainer)
    asked = DEFAULT_KIND if mask is None else mask
    chosen, made = mask_of(trainer.model, asked, density, seed)
    options = {
        "also": [also] if isinstance(also, str) else list(also),
        "master": master,
        "state_dtype": torch.float32 if state_dtype is None else state_dtype,
        "clip_by": clip_by,
        "nonfinite": nonfinite,
    }
    training = MaskedTraining(trainer, chosen, options, check_base, made)
    if trainer.is_world_process_zero():
        if frozen := training.new_and_frozen:
            warnings.warn(frozen_notice(frozen), stacklevel=2)
        how = f"; mask made from the weights: {_how(made)}" if made else ""
        runtime.say(f"{type(trainer).__name__} trains {training.summary}{how}")
    return training


def _how(made: Mapping[str, Any]) -> str:
    share = percent(made["density"], 1.0)
    return f"{made['step']}, {share} of every tensor, seed {made['seed']}"


class MaskedTraining:
    """A trainer that trains only a mask, until `close`.

    Attributes:
        trainer: The trainer.
        mask: The mask under the names of the tensors in files; this is what is saved.
        optimizer: The `SparseAdamW` or `SparseSGD`; None before `trainer.train()`.
        summary: One line: how much is trained, and the memory that it takes.
        new_and_frozen: Names of newly initialised parameters that are not trained.
    """

    def __init__(
        self,
        trainer: Any,
        mask: Mask,
        options: dict[str, Any],
        check_base: bool,
        made: Mapping[str, Any] | None = None,
    ) -> None:
        from trimtab.training.layout import Layout
        from trimtab.training.model_masks import newly_initialised

        self.trainer = trainer
        self.mask = Layout.of(trainer.model).in_files(mask)
        self._made = made
        self.optimizer: Any = None
        self._options = options
        self._settings = optimizer_settings(
            trainer.args, trainer.model, trainer.optimizer_cls_and_kwargs
        )
        # Create a trial optimizer, so that errors are raised at the line that the user wrote.
        trained = self._try(check_base)
        named = [(n, p) for n, p in trainer.model.named_parameters() if p.requires_grad]
        new = set(newly_initialised(named, mask))
        self.new_and_frozen = [n for n, p in named if n in new and id(p) not in trained]

        self._frozen: list[Any] = []
        self._best_record: dict[str, Any] | None = None
        self._replaced: dict[str, Callable[..., Any]] = {}
        for owner, method in (
            (trainer, self.create_optimizer),
            (trainer, self.log),
            (trainer, self.save_model),
            (trainer, self.create_model_card),
            (trainer, self._push_from_checkpoint),
            (trainer, self.train),
            (trainer, self._load_best_model),
            (trainer.accelerator, self.clip_grad_norm_),
        ):
            self._replaced[method.__name__] = getattr(owner, method.__name__)
            setattr(owner, method.__name__, method)

    def _try(self, check_base: bool) -> set[int]:
        """Create an optimizer as training will, and describe it; returns ids of its parameters."""
        trial = self._new_optimizer(self.trainer.model, check_base=check_base)
        self._described, self._recorded = trial.describe(), settings_of(trial)
        self.summary = f"{trial.summary()} ({type(trial).__name__})"
        trial.close()
        return {id(elements.parameter) for elements in trial.elements.values()}

    def __repr__(self) -> str:
        return f"MaskedTraining({type(self.trainer).__name__}: {self.summary})"

    def close(self) -> None:
        """Restore the trainer's methods and drop the optimizer state."""
        for name in self._replaced:
            for owner in (self.trainer, self.trainer.accelerator):
                vars(owner).pop(name, None)
        self._forget()

    def describe(self) -> dict[str, Any]:
        """The record that is saved with the current weights, except for the mask."""
        from trimtab.training.model_masks import base_of

        if self._best_record is not None:
            return self._best_record
        return {
            "settings": self.settings(),
            "optimizer": self._described if self.optimizer is None else self.optimizer.describe(),
            "base": base_of(self.trainer.model),
            "trainer": type(self.trainer).__name__,
            "step": self.trainer.state.global_step,
            "versions": runtime.versions(),
        }

    def settings(self) -> dict[str, Any]:
        """All settings that determine a step; a run resumes only with the same ones."""
        return self._recorded

    def create_optimizer(self, model: Any = None) -> Any:
        """Overrides `Trainer.create_optimizer`: the sparse optimizer, unless training resumes."""
        if self.trainer.optimizer is None:
            self.optimizer = self._new_optimizer(
                self.trainer.model if model is None else model, check_base=False
            )
            self.trainer.optimizer = self.optimizer
        else:
            self.optimizer.zero_grad()  # gradients of an interrupted step
            self.optimizer.reopen()
        if self._options["clip_by"] == "masked":
            self._frozen += freeze_others(self.trainer.model, self.optimizer)
        return self.trainer.optimizer

    def clip_grad_norm_(self, parameters: Any, *args: Any, **kwargs: Any) -> Any:
        """Overrides `Accelerator.clip_grad_norm_`: the optimizer clips the model's gradients."""
        import torch

        tensors = [parameters] if isinstance(parameters, torch.Tensor) else parameters
        own = {id(parameter) for parameter in self.trainer.model.parameters()}
        others = [parameter for parameter in tensors if id(parameter) not in own]
        return self._replaced["clip_grad_norm_"](others, *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Overrides `Trainer.log`: adds the gradient norm, which the Trainer cannot see anymore."""
        is_of_a_step = "loss" in logs and "learning_rate" in logs
        if is_of_a_step and self.optimizer is not None and self.optimizer.grad_norm is not None:
            logs["grad_norm"] = self.optimizer.grad_norm
            if self.optimizer.num_skipped_steps:
                logs["num_skipped_steps"] = self.optimizer.num_skipped_steps
        self._replaced["log"](logs, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        """Overrides `Trainer.save_model`: adds mask and record, also to every checkpoint."""
        self._replaced["save_model"](output_dir, *args, **kwargs)
        if self.trainer.args.should_save:
            folder = Path(self.trainer.args.output_dir if output_dir is None else output_dir)
            write_beside_weights(folder, self.mask, self.describe())

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Overrides `Trainer.create_model_card`: adds a section on the mask."""
        self._replaced["create_model_card"](*args, **kwargs)
        if self.trainer.is_world_process_zero():
            folder = Path(self.trainer.args.output_dir)
            add_to_model_card(folder, self.mask, self.trainer.hub_model_id)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Overrides `Trainer._push_from_checkpoint`, which copies only files that it knows."""
        output = Path(self.trainer.args.output_dir)
        for name in (MASK_FILE, RECORD_FILE):
            if self.trainer.is_world_process_zero():
                shutil.copy2(Path(checkpoint_folder, name), output / name)
        self._replaced["_push_from_checkpoint"](checkpoint_folder)

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Overrides `Trainer.train`: resumes only from a checkpoint of the same run."""
        from transformers.trainer_utils import get_last_checkpoint

        folder = resume_from_checkpoint
        if folder is True:
            folder = get_last_checkpoint(self.trainer.args.output_dir)
        if folder:
            self._take_mask_of(Path(folder))
            check_same_run(Path(folder), self.mask, self.settings())
            load_converted(Path(folder), self.trainer.model)
        self._best_record = None
        try:
            result = self._replaced["train"](resume_from_checkpoint, *args, **kwargs)
            if self.trainer.args.load_best_model_at_end:
                best = self.trainer.state.best_model_checkpoint
                if best is not None:
                    load_converted(Path(best), self.trainer.model)
                self._forget()  # its state belongs to the last weights, and the best are loaded now
        finally:
            self._release()
        return result

    def _take_mask_of(self, checkpoint: Path) -> None:
        """Resume with the mask of a checkpoint, if it was made as this one: weights have moved."""
        from trimtab.training.layout import Layout

        if self._made is None:
            return
        mask = mask_made_alike(checkpoint, self._made)
        if mask is None or (mask.digest, mask.base) == (self.mask.digest, self.mask.base):
            return
        self.mask = Layout.of(self.trainer.model).in_files(mask)
        self._try(check_base=False)

    def _load_best_model(self) -> None:
        """Overrides `Trainer._load_best_model`: records describe the best weights from now on."""
        self._replaced["_load_best_model"]()
        state, now = self.trainer.state, self.describe()
        try:
            record = read_json(Path(state.best_model_checkpoint) / RECORD_FILE)
            self._best_record = {key: record[key] for key in now}
        except (OSError, ValueError, LookupError, TypeError):  # on another node, or an older one
            self._best_record = {**now, "step": state.best_global_step}

    def _new_optimizer(self, model: Any, *, check_base: bool) -> Any:
        from trimtab.training.optimizers.adamw import SparseAdamW
        from trimtab.training.optimizers.sgd import SparseSGD

        kind = {"adamw": SparseAdamW, "sgd": SparseSGD}[self._settings.algorithm]
        decayed = set(self.trainer.get_decay_parameter_names(model))
        return kind(
            model.named_parameters(remove_duplicate=False),
            self.mask,
            weight_decay=self._settings.weight_decay,
            no_decay=lambda name: name not in decayed,
            max_grad_norm=self._settings.max_grad_norm,
            check_base=check_base,
            **self._settings.keywords,
            **self._options,
        )

    def _release(self) -> None:
        """Restore an ordinary model: remove hooks, and unfreeze parameters."""
        if self.optimizer is not None:
            self.optimizer.close()
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._frozen = []

    def _forget(self) -> None:
        """Release the model, and let the next `train` start with a new optimizer."""
        self._release()
        if self.optimizer is not None:
            self.trainer.optimizer = None


def freeze_others(model: Any, optimizer: SparseOptimizer) -> list[Any]:
    """Turn off gradients of parameters without a masked element; returns these parameters."""
    trained = {id(elements.parameter) for elements in optimizer.elements.values()}
    frozen = [p for p in model.parameters() if p.requires_grad and id(p) not in trained]
    for parameter in frozen:
        parameter.requires_grad_(False)
    return frozen


def settings_of(optimizer: SparseOptimizer) -> dict[str, Any]:
    """All settings that determine a step, as plain data."""
    info, numbers = optimizer.describe(), optimizer.defaults
    names = ("lr", "betas", "eps", "momentum", "weight_decay")
    options = ("max_grad_norm", "master", "state_dtype", "clip_by", "nonfinite")
    return {
        "algorithm": ALGORITHMS[type(optimizer).__name__.removeprefix("Sparse")],
        **{k: list(v) if isinstance(v := numbers[k], tuple) else v for k in names if k in numbers},
        **{name: info[name] for name in options},
        **({"also": info["also"]} if info["also"] else {}),  # absent in records of older releases
    }


def frozen_notice(names: Sequence[str]) -> str:
    """The warning about parameters that keep their initial values."""
    modules = list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
    shown = ", ".join(f'"{module}"' for module in modules[:3])
    return (
        f"{first_few(list(names))}: no checkpoint has these weights, and the mask does not train "
        f"them: they keep the values that they were initialised with. also=[{shown}] trains them"
    )
