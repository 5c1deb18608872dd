"""`[factors]`: the causes of sparse updates that papers name, one switch each.

A factor says in one word what takes another key in every algorithm, or several keys that belong
together. It is nothing but a name for those keys: `with_factors` writes them into the content of a
run file before anything reads it, and refuses a factor beside a key that it stands for. So a run
with a factor is the run with its keys, and no factor can touch more than its own.

A dotted key names an entry of a table: `trainer.beta` is the key `beta` of the table `trainer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from trimtab.results.tables import check_table
from trimtab.training.runs.algorithms import ALGORITHMS

ONLINE = ("ppo", "grpo", "rloo", "prime")
"""Algorithms that sample while they train."""


@dataclass(frozen=True)
class FactorsTable:
    """`[factors]`.

    Attributes:
        kl: Coefficient of the KL term; false for none.
        clip: Norm that gradients are clipped by; false for no clipping.
        lag: Batches that are sampled at once, so that the last is trained on by a model that has
            taken `lag - 1` steps since; 1 is on-policy.
        reuse: Times that each batch of samples is trained on.
        steps: Optimizer steps.
        learning_rate: Its peak.
        schedule: Of the learning rate, as transformers names it.
        optimizer: `adamw` or `sgd`.
        betas: Of AdamW: two numbers.
        eps: Of AdamW.
        momentum: Of SGD.
        weight_decay: Of the parameters that have any.
        precision: Of weights, masters, optimizer state and the saved weights.
        batch_size: Rows or samples for each optimizer step.
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
"""The value of a dotted key of the run file, or what is to be taken for it if it is not there."""


class _CannotBe(Exception):
    """Why a factor cannot have a value."""


@dataclass(frozen=True)
class Factor:
    """What a factor stands for.

    Attributes:
        keys: Algorithm -> dotted keys of the run file.
        source: Who names it as a cause, or tests it as one.
        values: What the keys are set to; by default, the one key to the value of the factor.
            Takes the value, the algorithm and the rest of the run file.
        instead: Further keys that say the same in another way, and may not stand beside it.
    """

    keys: Mapping[str, tuple[str, ...]]
    source: str
    values: Callable[[Any, str, Given], Mapping[str, Any]] | None = None
    instead: tuple[str, ...] = ()

    def settings(self, value: Any, algorithm: str, given: Given) -> Mapping[str, Any]:
        """Dotted keys of the run file -> their values."""
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
            f"cannot be switched off: the loss of {algorithm} is made of it, and its coefficient "
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
    found = given("factors.optimizer", given("optimizer.name", "adamw"))
    if found != optimizer:
        raise _CannotBe(f"is one of {optimizer}, and the optimizer is {found}")


def _precision(value: str, algorithm: str, given: Given) -> Mapping[str, Any]:
    mask = given("mask", None)
    if value.startswith("fp32"):
        # Arithmetic is bf16 in all four, so that they differ in nothing but what is kept.
        arithmetic = {} if given("trainer.bf16", None) is not None else {"trainer.bf16": True}
        return {
            "dtype": "fp32",
            "save_dtype": "fp32" if value == "fp32" else "stored",
            **arithmetic,
        }
    if mask == "none":
        if value == "lo16":
            raise _CannotBe(
                'is "lo16", which torch\'s optimizers do not have: in place of '
                'mask = "none" take mask = "all", which trains everything with trimtab\'s'
            )
        return {"dtype": "bf16"}
    state = {"master": "lo16", "state_dtype": "fp32"}
    if value == "bf16":
        state = {"master": "none", "state_dtype": "bf16"}
    return {"dtype": "bf16", **{f"optimizer.{key}": of for key, of in state.items()}}


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
"""Factor -> what it stands for. Every algorithm trains so, but for those it leaves out."""

KEYS_THEMSELVES: Mapping[str, tuple[str, str]] = {
    "seed": ("seed", "2505.11711, table 4 (overlap between seeds)"),
    "data": ("data.file", "2505.11711, sec. 6 (in or out of distribution)"),
    "start": ("model", "2505.11711, sec. 6 (SFT before RL)"),
}
"""Factors that are one key in every algorithm, under which they are given -> key, source."""


def with_factors(content: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """The content of a run file with the keys that its `[factors]` stand for.

    Args:
        content: As TOML has it; it is not changed.
        problems: One sentence is added for each factor that cannot be meant.
    """
    factors = content.get("factors")
    if not isinstance(factors, dict) or content.get("algorithm") not in tuple(ALGORITHMS):
        return dict(content)  # it is told elsewhere, if it is wrong
    return with_keys(content, expand(content, problems))


def expand(content: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Dotted keys of a run file that its `[factors]` stand for -> their values.

    Args:
        content: Of a run file with a known algorithm and a table `factors`.
        problems: One sentence is added for each factor that cannot be meant.
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
                f"factors.{name} stands for {', '.join(stated)}, which the file has, too: leave "
                "one of them out"
            )
            continue
        try:
            settings |= factor.settings(value, algorithm, given)
        except _CannotBe as error:
            problems.append(f"factors.{name} {error}")
    return settings


def look_up(content: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """The value of a key of a run file, or the default if it is not there."""
    table, _, name = key.rpartition(".")
    place = content.get(table) if table else content
    return place.get(name, default) if isinstance(place, Mapping) else default


def with_keys(
    content: Mapping[str, Any], settings: Mapping[str, Any], without: Iterable[str] = ()
) -> dict[str, Any]:
    """A run file with other values of some keys.

    Args:
        content: As TOML has it; it is not changed. What should be a table and is none stays what
            it is, to be told of when the run file is checked.
        settings: Dotted keys -> values.
        without: Dotted keys to take away before.
    """
    whole = {key: dict(of) if isinstance(of, dict) else of for key, of in content.items()}
    for key in without:
        table, _, name = key.rpartition(".")
        place = whole.get(table) if table else whole
        if isinstance(place, dict):
            place.pop(name, None)
    for key, value in settings.items():
        table, _, name = key.rpartition(".")
        place = whole.setdefault(table, {}) if table else whole
        if isinstance(place, dict):
            place[name] = value
    return whole
