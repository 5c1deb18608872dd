"""Each factor moves its own knob in every algorithm that has it, and is refused in the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.runs.run_files import content, train, write
from trimtab.errors import SettingsError
from trimtab.outputs import flat
from trimtab.training.folders import WEIGHTS, read_json
from trimtab.training.runs.algorithms import ALGORITHMS
from trimtab.training.runs.factors import FACTORS, KEYS_THEMSELVES
from trimtab.training.runs.prepare import prepare
from trimtab.training.runs.settings import Settings

pytestmark = pytest.mark.train

Base = tuple[Path, dict[str, Any]]

TRL_ONLINE = ("grpo", "rloo")
OWN_ONLINE = ("ppo", "prime")
DROPOUT_OFF = ("dpo", "orpo", "kto", "simpo", "ppo", "prime")
"""Whose configuration switches dropout off by default."""


def some(names: tuple[str, ...], **values: Any) -> dict[str, dict[str, Any]]:
    return dict.fromkeys(names, values)


KNOBS: dict[tuple[str, Any], dict[str, dict[str, Any]]] = {
    ("kl", 0.3): {
        **some(("dpo", "kto", "grpo", "rloo"), **{"trainer.beta": 0.3}),
        "ppo": {"trainer.kl_coef": 0.3},
    },
    ("clip", False): {of: {"trainer.max_grad_norm": 0.0} for of in ALGORITHMS},
    ("clip", 0.5): {of: {"trainer.max_grad_norm": 0.5} for of in ALGORITHMS},
    ("lag", 2): {
        **some(
            TRL_ONLINE, **{"trainer.steps_per_generation": 2, "trainer.generation_batch_size": 8}
        ),
        **some(OWN_ONLINE, **{"trainer.num_mini_batches": 2}),
    },
    ("reuse", 2): {
        **some(TRL_ONLINE, **{"trainer.num_iterations": 2}),
        **some(OWN_ONLINE, **{"trainer.num_ppo_epochs": 2}),
    },
    ("steps", 6): {of: {"trainer.max_steps": 6} for of in ALGORITHMS},
    ("learning_rate", 1e-4): {of: {"trainer.learning_rate": 1e-4} for of in ALGORITHMS},
    ("schedule", "cosine"): {of: {"trainer.lr_scheduler_type": "cosine"} for of in ALGORITHMS},
    ("optimizer", "sgd"): {
        of: {"optimizer.name": "sgd", "trainer.optim": "sgd"} for of in ALGORITHMS
    },
    ("betas", (0.8, 0.95)): {
        of: {"trainer.adam_beta1": 0.8, "trainer.adam_beta2": 0.95} for of in ALGORITHMS
    },
    ("eps", 1e-15): {of: {"trainer.adam_epsilon": 1e-15} for of in ALGORITHMS},
    ("weight_decay", 0.1): {of: {"trainer.weight_decay": 0.1} for of in ALGORITHMS},
    ("precision", "fp32"): {
        of: {"dtype": "fp32", "save_dtype": "fp32", "trainer.bf16": True} for of in ALGORITHMS
    },
    ("precision", "fp32-master"): {
        of: {"dtype": "fp32", "trainer.bf16": True} for of in ALGORITHMS
    },
    ("precision", "lo16"): {of: {"optimizer.master": "lo16"} for of in ALGORITHMS},
    ("precision", "bf16"): {
        of: {"optimizer.master": "none", "optimizer.state_dtype": "bf16"} for of in ALGORITHMS
    },
    ("batch_size", 8): {
        **{of: {"trainer.per_device_train_batch_size": 8} for of in ALGORITHMS},
        **some(
            TRL_ONLINE,
            **{"trainer.per_device_train_batch_size": 8, "trainer.generation_batch_size": 8},
        ),
    },
    ("dropout", 0.1): {
        **{of: {"dropout": 0.1} for of in ALGORITHMS},
        **some(DROPOUT_OFF, **{"dropout": 0.1, "trainer.disable_dropout": False}),
    },
}
"""Factor and value -> algorithm -> every resolved setting that is other than without it."""

REPLACED = {
    "steps": "max_steps",
    "learning_rate": "learning_rate",
    "batch_size": "per_device_train_batch_size",
    "reuse": "num_ppo_epochs",
}
"""Factor -> key that the usual run file has in its place."""


def resolved(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    return flat(prepare(Settings.read(write(folder, values))).settings())


@pytest.fixture(scope="module")
def usual(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """The resolved settings of each algorithm without a factor."""
    known: dict[str, dict[str, Any]] = {}

    def of(algorithm: str) -> dict[str, Any]:
        if algorithm not in known:
            folder = tmp_path_factory.mktemp(algorithm)
            known[algorithm] = resolved(folder, content(algorithm, base[0]))
        return known[algorithm]

    return of


def with_factor(algorithm: str, base: Base, name: str, value: Any) -> dict[str, Any]:
    values = content(algorithm, base[0], factors={name: value})
    values["trainer"].pop(REPLACED.get(name), None)
    return values


@pytest.mark.parametrize(("name", "value"), KNOBS, ids=str)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_factor_changes_its_own_knob(
    algorithm: str,
    name: str,
    value: Any,
    base: Base,
    tmp_path: Path,
    usual: Callable[[str], dict[str, Any]],
) -> None:
    given = list(value) if isinstance(value, tuple) else value
    values = with_factor(algorithm, base, name, given)
    knob = KNOBS[name, value].get(algorithm)
    if knob is None:
        assert algorithm not in FACTORS[name].keys
        with pytest.raises(SettingsError, match=rf"factors\.{name}: {algorithm} has none, only"):
            Settings.read(write(tmp_path, values))
        return
    before, now = usual(algorithm), resolved(tmp_path, values)
    assert {key: now[key] for key in now if now[key] != before.get(key)} == knob
    assert before.keys() == now.keys()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_momentum_is_of_sgd(algorithm: str, base: Base, tmp_path: Path) -> None:
    values = content(algorithm, base[0], optimizer={"name": "sgd"})
    before = resolved(tmp_path / "without", values)
    now = resolved(tmp_path / "with", {**values, "factors": {"momentum": 0.9}})
    assert {key: now[key] for key in now if now[key] != before[key]} == {
        "trainer.optim_args": "momentum=0.9"
    }


def test_every_factor_is_tested() -> None:
    assert {name for name, _ in KNOBS} | {"momentum"} == set(FACTORS)


def keys() -> list[tuple[str, str, str]]:
    return [
        (name, algorithm, key)
        for name, factor in FACTORS.items()
        for algorithm in ("sft", "grpo", "ppo")
        for key in (*factor.keys.get(algorithm, ()), *factor.instead)
        if algorithm in factor.keys
    ]


@pytest.mark.parametrize(("name", "algorithm", "key"), keys())
def test_a_factor_beside_its_key_is_refused(name: str, algorithm: str, key: str) -> None:
    values: dict[str, Any] = content(algorithm, Path("base"), trainer={})
    values["trainer"] = {}
    table, _, last = key.rpartition(".")
    if table:
        values[table] = {last: 1}
    else:
        values[key] = 1
    value = dict(KNOBS).get(name) or next((one for n, one in KNOBS if n == name), 0.9)
    values["factors"] = {name: list(value) if isinstance(value, tuple) else value}
    with pytest.raises(SettingsError) as error:
        Settings.of("run.toml", values)
    text = f"factors.{name} sets {key}, which the file also sets: remove one of them"
    assert text in str(error.value)


@pytest.mark.parametrize(
    ("algorithm", "factors", "message"),
    [
        ("sft", {"precisoin": "bf16"}, "factors.precisoin: did you mean factors.precision?"),
        ("sft", {"precision": "fp16"}, 'factors.precision is "fp16", expected "fp32" or'),
        ("sft", {"clip": True}, "factors.clip is true, expected a number or false"),
        ("sft", {"clip": 0}, "factors.clip is 0.0, expected false or a number above 0"),
        ("sft", {"betas": [0.9]}, "factors.betas is [0.9], expected two numbers"),
        ("sft", {"betas": [0.9, 1.0]}, "each at least 0 and below 1"),
        ("sft", {"momentum": 0.9}, "factors.momentum is one of sgd, and the optimizer is adamw"),
        ("sft", {"optimizer": "sgd", "eps": 1e-9}, "factors.eps is one of adamw, and the"),
        ("sft", {"weight_decay": -1}, "factors.weight_decay is -1.0, expected a number that is"),
        ("sft", {"eps": -1e-9}, "factors.eps is -1e-09, expected a number that is not negative"),
        ("sft", {"optimizer": "sgd", "momentum": -1}, "factors.momentum is -1.0, expected a"),
        ("sft", {"dropout": 1.0}, "dropout is 1.0, expected at least 0 and below 1"),
        ("dpo", {"kl": False}, "factors.kl cannot be switched off: it is part of the loss of dpo"),
        ("grpo", {"kl": -1}, "factors.kl is -1.0, expected false or a number above 0"),
        ("grpo", {"lag": 0}, "factors.lag is 0, expected at least 1"),
        ("ppo", {"reuse": 0}, "factors.reuse is 0, expected at least 1"),
        ("sft", {"seed": 1}, "factors.seed is no factor: it is the key seed itself"),
        ("sft", {"data": "x"}, "factors.data is no factor: it is the key data.file itself"),
        ("sft", {"steps": 1.5}, "factors.steps is 1.5, expected a whole number"),
    ],
)
def test_what_cannot_be_meant(algorithm: str, factors: dict[str, Any], message: str) -> None:
    values = content(algorithm, Path("base"), factors=factors)
    values["trainer"].pop("num_ppo_epochs", None)
    values["trainer"].pop("max_steps")
    with pytest.raises(SettingsError) as error:
        Settings.of("run.toml", values)
    assert message in str(error.value)


def test_factors_that_are_no_table() -> None:
    with pytest.raises(SettingsError, match="factors is not a table"):
        Settings.of("run.toml", content("sft", Path("base"), factors=3))


@pytest.mark.parametrize("algorithm", [["sft"], 3, "gpro", {"a": 1}])
def test_factors_of_no_algorithm(algorithm: Any) -> None:
    values = {**content("sft", Path("base")), "factors": {"clip": 1.0}, "algorithm": algorithm}
    with pytest.raises(SettingsError, match="algorithm is"):
        Settings.of("run.toml", values)


def test_keys_themselves_are_not_factors() -> None:
    assert not set(KEYS_THEMSELVES) & set(FACTORS)


@pytest.mark.parametrize(("accumulation", "batch", "each"), [(2, 8, 4), (4, 8, 2)])
def test_batch_size_and_lag_count_optimizer_steps(
    accumulation: int, batch: int, each: int, base: Base
) -> None:
    trainer = {"gradient_accumulation_steps": accumulation, "num_generations": 4}
    values = content("grpo", base[0], factors={"batch_size": batch, "lag": 3})
    file = Settings.of("run.toml", {**values, "trainer": trainer})
    assert file.trainer["per_device_train_batch_size"] == each
    assert file.trainer["steps_per_generation"] == 3 * accumulation


def test_batch_size_that_accumulation_does_not_divide() -> None:
    values = content("sft", Path("base"), factors={"batch_size": 6})
    trainer = {"gradient_accumulation_steps": 4}
    with pytest.raises(SettingsError, match=r"is 6, expected a multiple of trainer\.grad.* 4"):
        Settings.of("run.toml", {**values, "trainer": trainer})


def test_lo16_needs_an_optimizer_of_ours() -> None:
    values = content("sft", Path("base"), mask="none", factors={"precision": "lo16"})
    with pytest.raises(SettingsError, match='instead of mask = "none", use mask = "all"'):
        Settings.of("run.toml", values)


def test_arithmetic_that_is_given_stays() -> None:
    values = content("sft", Path("base"), factors={"precision": "fp32"}, trainer={"bf16": False})
    assert Settings.of("run.toml", values).trainer["bf16"] is False


@pytest.fixture(scope="module")
def by_precision(base: Base, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The output of a run of everything in each precision, alike in all else."""
    folder = tmp_path_factory.mktemp("precision")
    outputs = {}
    for precision in ("fp32", "fp32-master", "lo16", "bf16"):
        values = content("sft", base[0], mask="all", factors={"precision": precision})
        values["trainer"]["learning_rate"] = 1e-4
        train(write(folder / precision, values))
        outputs[precision] = folder / precision / "out"
    return outputs


def tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(folder / WEIGHTS))


def test_precisions_are_what_they_say(by_precision: dict[str, Path]) -> None:
    names = ("weights", "optimizer_state", "saved")
    found = {
        precision: tuple(read_json(out / "result.json")["precision"][name] for name in names)
        for precision, out in by_precision.items()
    }
    assert found == {
        "fp32": ("float32", "float32", "F32"),
        "fp32-master": ("float32", "float32", "BF16"),
        "lo16": ("bfloat16", "float32", "BF16"),
        "bf16": ("bfloat16", "bfloat16", "BF16"),
    }


def test_fp32_and_its_master_differ_in_the_saving_alone(by_precision: dict[str, Path]) -> None:
    wide, narrow = (tensors(by_precision[one] / "model") for one in ("fp32", "fp32-master"))
    for name, tensor in wide.items():
        assert tensor.float().equal(tensor)
        assert tensor.bfloat16().equal(narrow[name])


def test_update_of_fp32_weights_is_counted_in_fp32(
    by_precision: dict[str, Path], base: Base
) -> None:
    before = tensors(base[0])
    for precision, out in by_precision.items():
        now = tensors(out / "model")
        wide = np.uint32 if precision == "fp32" else np.uint16
        bits = [
            (now[name].view(_integer(wide)).numpy(), old.to(now[name].dtype).view(_integer(wide)))
            for name, old in before.items()
        ]
        changed = sum(int((new != old.numpy()).sum()) for new, old in bits)
        assert read_json(out / "result.json")["update"]["num_changed"] == changed, precision
    counts = [
        read_json(out / "result.json")["update"]["num_changed"] for out in by_precision.values()
    ]
    assert counts[0] > counts[1] > counts[3]


def _integer(width: Any) -> Any:
    import torch

    return {np.uint16: torch.int16, np.uint32: torch.int32}[width]


def test_config_says_the_dtype_that_was_saved(by_precision: dict[str, Path]) -> None:
    from transformers import AutoModelForCausalLM

    for precision, dtype in (("fp32", "float32"), ("fp32-master", "bfloat16")):
        model = AutoModelForCausalLM.from_pretrained(by_precision[precision] / "model")
        assert str(model.dtype) == f"torch.{dtype}"


def test_saving_bf16_weights_as_fp32_is_refused(base: Base, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match='save_dtype is "fp32", and the weights are trained in'):
        prepare(Settings.read(write(tmp_path, content("sft", base[0], save_dtype="fp32"))))


def test_dropout_is_in_the_model_and_changes_what_it_learns(base: Base, tmp_path: Path) -> None:
    from trimtab.training.runs.prepare import build_trainer

    paths = {
        p: write(tmp_path / str(p), content("dpo", base[0], factors={"dropout": p}))
        for p in (0.0, 0.5)
    }
    run = prepare(Settings.read(paths[0.5]))
    trainer, _ = build_trainer(run, run.mask, tmp_path / "work", [])
    assert trainer.model.config.attention_dropout == 0.5
    assert trainer.ref_model.config.attention_dropout == 0.0
    losses = [train(path)["history"][-1]["loss"] for path in paths.values()]
    assert losses[0] != losses[1]
    saved = tmp_path / "0.5" / "out" / "model" / "config.json"
    assert saved.read_bytes() == (base[0] / "config.json").read_bytes()


def test_dropout_that_the_trainer_switches_off(base: Base, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"trainer\.disable_dropout is true: set it to false"):
        prepare(Settings.read(write(tmp_path, content("dpo", base[0], dropout=0.1))))


def test_what_was_asked_is_recorded(base: Base, tmp_path: Path) -> None:
    values = content("sft", base[0], factors={"clip": False})
    assert prepare(Settings.read(write(tmp_path, values))).describe()["factors"] == {"clip": False}
