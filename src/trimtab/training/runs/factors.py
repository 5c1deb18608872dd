"""`[factors]`: the causes of sparse updates that papers name, one switch each.

A factor is one name for a key that differs between algorithms, or for several keys that belong
together. `with_factors` replaces factors by these keys before the run file is read, and refuses a
factor together with one of its keys. A dotted key names an entry of a table: `trainer.beta` is the
key `beta` of the table `trainer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from trimtab.results.tables import check_table
from trimtab.training.runs.algorithms import ALGORITHMS

ONLINE = ("ppo", "grpo", "rloo", "prime")
"""Algorithms that sample during training."""


@dataclass(frozen=True)
class FactorsTable:
    """`[factors]`.

    Attributes:
        kl: Coefficient of the KL term; false for none.
        clip: Norm at which gradients are clipped; false for no clipping.
        lag: Batches that are sampled at once; the last one is trained on after `lag - 1` steps.
            1 is on-policy.
        reuse: Number of times that each batch of samples is trained on.
        steps: Optimizer steps.
        learning_rate: Peak learning rate.
        schedule: Learning rate schedule, as transformers names it.
        optimizer: `adamw` or `sgd`.
        betas: The two betas of AdamW.
        eps: Epsilon of AdamW.
        momentum: Momentum of SGD.
        weight_decay: Weight decay of the parameters that have any.
        precision: Precision of weights, masters, optimizer state and saved weights.
        batch_size: Rows or samples per optimizer step.
        dropout: Probability of every dropout of the model.
    """

    kl: float | Literal[False] | None = None
    clip: float | Literal[False] | None = None
    lag: int | None = None
    reuse: int | None = None
    steps: int | None = None
    learning_rate: float | None = None
    schedule: str | None = None
    optimizer: Literal["adamw", "sgd"] | None = None
    betas: list[float] | None = None
    eps: float | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    precision: Literal["fp32", "fp32-master", "lo16", "bf16"] | None = None
    batch_size: int | None = None
    dropout: float | None = None


Given = Callable[[str, Any], Any]
"""Returns the value of a dotted key of the run file, or the given default."""


class _CannotBe(Exception):
    """A factor cannot have this value."""


@dataclass(frozen=True)
class Factor:
    """The definition of a factor.

    Attributes:
        keys: Algorithm -> dotted keys of the run file.
        source: Paper that names or tests it as a cause.
        values: Returns the values of the keys, given the value of the factor, the algorithm and the
            rest of the run file; by default, the value of the factor for its one key.
        instead: Alternative keys with the same meaning, which must not be set together with it.
    """

    keys: Mapping[str, tuple[str, ...]]
    source: str
    values: Callable[[Any, str, Given], Mapping[str, Any]] | None = None
    instead: tuple[str, ...] = ()

    def settings(self, value: Any, algorithm: str, given: Given) -> Mapping[str, Any]:
        """Return the dotted keys of the run file, with their values."""
        if self.values is not None:
            return self.values(value, algorithm, given)
        if isinstance(value, int):
            _at_least_1(value)
        elif isinstance(value, float):
            _not_negative(value)
        (key,) = self.keys[algorithm]
        return {key: value}


def _for_all(*keys: str) -> dict[str, tuple[str, ...]]:
    return dict.fromkeys(ALGORITHMS, keys)


def _kl(value: Any, algorithm: str, given: Given) -> Mapping[str, Any]:
    coefficient = float(value)
    if coefficient < 0:
        raise _CannotBe(f"is {value}, expected false or a number above 0")
    if not coefficient and algorithm not in ONLINE:
        raise _CannotBe(
            f"cannot be switched off: it is part of the loss of {algorithm}, and its coefficient "
            "is trainer.beta"
        )
    (key,) = FACTORS["kl"].keys[algorithm]
    return {key: coefficient}


def _clip(value: Any, algorithm: str, given: Given) -> Mapping[str, Any]:
    if value is not False and value <= 0:
        raise _CannotBe(f"is {value}, expected false or a number above 0")
    return {"trainer.max_grad_norm": float(value)}  # the Trainer does not clip by 0


def _lag(value: int, algorithm: str, given: Given) -> Mapping[str, Any]:
    _at_least_1(value)
    (key,) = FACTORS["lag"].keys[algorithm]
    if key == "trainer.num_mini_batches":
        return {key: value}
    return {key: value * given("trainer.gradient_accumulation_steps", 1)}


def _at_least_1(value: int) -> None:
    if value < 1:
        raise _CannotBe(f"is {value}, expected at least 1")


def _not_negative(value: float) -> None:
    if value < 0:
        raise _CannotBe(f"is {value}, expected a number that is not negative")


def _betas(value: list[float], algorithm: str, given: Given) -> Mapping[str, Any]:
    _only_of("adamw", given)
    if len(value) != 2 or not all(0 <= beta < 1 for beta in value):
        raise _CannotBe(f"is {value}, expected two numbers, each at least 0 and below 1")
    return {"trainer.adam_beta1": float(value[0]), "trainer.adam_beta2": float(value[1])}


def _eps(value: float, algorithm: str, given: Given) -> Mapping[str, Any]:
    _only_of("adamw", given)
    _not_negative(value)
    return {"trainer.adam_epsilon": value}


def _momentum(value: float, algorithm: str, given: Given) -> Mapping[str, Any]:
    _only_of("sgd", given)
    _not_negative(value)
    return {"trainer.optim_args": f"momentum={value}"}


def _only_of(optimizer: str, given: Given) -> None:
    actual = given("factors.optimizer", given("optimizer.name", "adamw"))
    if actual != optimizer:
        raise _CannotBe(f"is one of {optimizer}, and the optimizer is {actual}")


def _precision(value: str, algorithm: str, given: Given) -> Mapping[str, Any]:
    mask = given("mask", None)
    if value.startswith("fp32"):
        # Arithmetic is bf16 in all four, so that they differ only in what is stored.
        arithmetic = {} if given("trainer.bf16", None) is not None else {"trainer.bf16": True}
        return {
            "dtype": "fp32",
            "save_dtype": "fp32" if value == "fp32" else "stored",
            **arithmetic,
        }
    if mask == "none":
        if value == "lo16":
            raise _CannotBe(
                'is "lo16", which torch\'s optimizers do not have: instead of mask = "none", use '
                'mask = "all", which trains everything with a sparse optimizer'
            )
        return {"dtype": "bf16"}
    state = {"master": "lo16", "state_dtype": "fp32"}
    if value == "bf16":
        state = {"master": "none", "state_dtype": "bf16"}
    return {"dtype": "bf16", **{f"optimizer.{key}": v for key, v in state.items()}}


def _batch_size(value: int, algorithm: str, given: Given) -> Mapping[str, Any]:
    _at_least_1(value)
    accumulation = given("trainer.gradient_accumulation_steps", 1)
    if value % accumulation:
        raise _CannotBe(
            f"is {value}, expected a multiple of trainer.gradient_accumulation_steps, "
            f"{accumulation}"
        )
    return {"trainer.per_device_train_batch_size": value // accumulation}


def _dropout(value: float, algorithm: str, given: Given) -> Mapping[str, Any]:
    switch = FACTORS["dropout"].keys[algorithm][1:] if value else ()
    return {"dropout": value, **dict.fromkeys(switch, False)}


FACTORS: Mapping[str, Factor] = {
    "kl": Factor(
        {
            **dict.fromkeys(("dpo", "kto", "grpo", "rloo"), ("trainer.beta",)),
            "ppo": ("trainer.kl_coef",),
        },
        "2505.11711, sec. 6",
        _kl,
    ),
    "clip": Factor(_for_all("trainer.max_grad_norm"), "2505.11711, sec. 6; 2609.35259", _clip),
    "lag": Factor(
        {
            **dict.fromkeys(("grpo", "rloo"), ("trainer.steps_per_generation",)),
            **dict.fromkeys(("ppo", "prime"), ("trainer.num_mini_batches",)),
        },
        "2609.35259",
        _lag,
        instead=("trainer.generation_batch_size",),
    ),
    "reuse": Factor(
        {
            **dict.fromkeys(("grpo", "rloo"), ("trainer.num_iterations",)),
            **dict.fromkeys(("ppo", "prime"), ("trainer.num_ppo_epochs",)),
        },
        "2609.35259",
    ),
    "steps": Factor(
        _for_all("trainer.max_steps"),
        "2505.11711, sec. 6, fig. 5",
        instead=("trainer.num_train_epochs",),
    ),
    "learning_rate": Factor(_for_all("trainer.learning_rate"), "2511.08567; 2609.35259"),
    "schedule": Factor(_for_all("trainer.lr_scheduler_type"), "2505.11711, app. B (setting)"),
    "optimizer": Factor(_for_all("optimizer.name"), "2602.07729, table 4"),
    "betas": Factor(
        _for_all("trainer.adam_beta1", "trainer.adam_beta2"), "2602.03839 (step bound)", _betas
    ),
    "eps": Factor(_for_all("trainer.adam_epsilon"), "none that we know", _eps),
    "momentum": Factor(_for_all("trainer.optim_args"), "none that we know", _momentum),
    "weight_decay": Factor(_for_all("trainer.weight_decay"), "2505.11711, app. B (setting)"),
    "precision": Factor(
        _for_all("dtype", "save_dtype", "optimizer.master", "optimizer.state_dtype"),
        "2509.04259, sec. 6; 2602.03839",
        _precision,
    ),
    "batch_size": Factor(
        _for_all("trainer.per_device_train_batch_size"), "2505.11711, app. B (setting)", _batch_size
    ),
    "dropout": Factor(
        {
            name: ("dropout",) if name in ("sft", "rft") else ("dropout", "trainer.disable_dropout")
            for name in ALGORITHMS
        },
        "none that we know",
        _dropout,
    ),
}
"""Factors by name; a factor applies to the algorithms in its `keys`."""

KEYS_THEMSELVES: Mapping[str, tuple[str, str]] = {
    "seed": ("seed", "2505.11711, table 4 (overlap between seeds)"),
    "data": ("data.file", "2505.11711, sec. 6 (in or out of distribution)"),
    "start": ("model", "2505.11711, sec. 6 (SFT before RL)"),
}
"""Causes that are plain keys of a run file -> key, source."""


def with_factors(content: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Replace the `[factors]` of a run file by the keys that they stand for.

    Args:
        content: The parsed TOML; not modified.
        problems: A message is appended for each invalid factor.
    """
    factors = content.get("factors")
    if not isinstance(factors, dict) or content.get("algorithm") not in tuple(ALGORITHMS):
        return dict(content)  # errors are reported elsewhere
    return with_keys(content, expand(content, problems))


def expand(content: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Return the dotted keys that the `[factors]` of a run file stand for, with their values.

    Args:
        content: A run file with a known algorithm and a table `factors`.
        problems: A message is appended for each invalid factor.
    """
    algorithm: str = content["algorithm"]
    factors = dict(content["factors"])
    for name, (key, _) in KEYS_THEMSELVES.items():
        if name in factors:
            problems.append(f"factors.{name} is no factor: it is the key {key} itself")
            del factors[name]
    settings: dict[str, Any] = {}

    given = partial(look_up, content)
    for name, value in check_table(FactorsTable, factors, "factors.", problems).items():
        factor = FACTORS[name]
        if algorithm not in factor.keys:
            has = ", ".join(factor.keys)
            problems.append(f"factors.{name}: {algorithm} has none, only {has}")
            continue
        keys = (*factor.keys[algorithm], *factor.instead)
        if stated := [key for key in keys if given(key, None) is not None]:
            problems.append(
                f"factors.{name} sets {', '.join(stated)}, which the file also sets: remove one of "
                "them"
            )
            continue
        try:
            settings |= factor.settings(value, algorithm, given)
        except _CannotBe as error:
            problems.append(f"factors.{name} {error}")
    return settings


def look_up(content: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """Return the value of a dotted key of a run file, or the default."""
    table, _, name = key.rpartition(".")
    entries = content.get(table) if table else content
    return entries.get(name, default) if isinstance(entries, Mapping) else default


def with_keys(
    content: Mapping[str, Any], settings: Mapping[str, Any], without: Iterable[str] = ()
) -> dict[str, Any]:
    """Return a run file with other values of some keys.

    Args:
        content: The parsed TOML; not modified. Values that should be tables but are not are left
            unchanged, and reported when the run file is checked.
        settings: Dotted keys -> values.
        without: Dotted keys to remove first.
    """
    whole = {k: dict(v) if isinstance(v, dict) else v for k, v in content.items()}
    for key in without:
        table, _, name = key.rpartition(".")
        entries = whole.get(table) if table else whole
        if isinstance(entries, dict):
            entries.pop(name, None)
    for key, value in settings.items():
        table, _, name = key.rpartition(".")
        entries = whole.setdefault(table, {}) if table else whole
        if isinstance(entries, dict):
            entries[name] = value
    return whole
