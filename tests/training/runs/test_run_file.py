"""What a run file may say, and how it is told that it may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.training.runs.run_files import content, write
from trimtab.errors import SettingsError
from trimtab.training.runs.settings import OptimizerTable, RewardTable, SamplesTable, Settings

BASE = Path("base")


def read(tmp_path: Path, usual: str = "sft", **changes: Any) -> Settings:
    return Settings.read(write(tmp_path, content(usual, BASE, **changes)))


def problem(tmp_path: Path, usual: str = "sft", **changes: Any) -> str:
    with pytest.raises(SettingsError) as error:
        read(tmp_path, usual, **changes)
    text = str(error.value)
    assert text.startswith(f"{tmp_path / 'run.toml'}: ")
    return text.partition(": ")[2]


def test_defaults(tmp_path: Path) -> None:
    run = read(tmp_path)
    assert (run.seed, run.dtype, run.reward) == (0, None, None)
    assert run.optimizer == OptimizerTable("adamw", None, "fp32", "masked", "raise")
    assert run.made_mask == ("random", 0.1)


def test_everything_given(tmp_path: Path) -> None:
    run = read(
        tmp_path,
        "grpo",
        mask="m.safetensors",
        seed=7,
        dtype="bf16",
        reward={"kind": "regex", "pattern": "=(.*)", "column": "right"},
        optimizer={"name": "sgd", "master": "lo16", "clip_by": "full", "nonfinite": "skip"},
    )
    assert run.reward == RewardTable(None, "regex", "right", "=(.*)")
    assert (run.seed, run.dtype, run.made_mask) == (7, "bf16", None)
    assert run.optimizer == OptimizerTable("sgd", "lo16", "fp32", "full", "skip")
    assert run.trainer["num_generations"] == 4


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    run = read(tmp_path)
    assert run.resolve("a/b") == tmp_path / "a" / "b"
    assert run.resolve("/a") == Path("/a")
    assert run.resolve("~/a") == Path.home() / "a"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modle": "x"}, "there is no key modle: did you mean model?"),
        ({"algorithm": "gpro"}, 'algorithm is "gpro": did you mean grpo?'),
        ({"algorithm": "xyz"}, 'algorithm is "xyz": expected one of sft, rft, dpo, orpo'),
        ({"algorithm": 3}, "algorithm is 3, expected a string"),
        ({"model": ""}, "model is empty"),
        ({"model": None}, "missing: model"),
        ({"seed": -1}, "seed is -1, expected 0 to 2**32 - 1"),
        ({"seed": 2**32}, "seed is 4294967296, expected 0 to 2**32 - 1"),
        ({"seed": 1.0}, "seed is 1.0, expected a whole number"),
        ({"evaluate": {}}, "evaluate.every is 0, expected a number of steps from 1 on"),
        (
            {"evaluate": {"every": 1, "batch_size": 0}},
            "evaluate.batch_size is 0",
        ),
        (
            {"evaluate": {"every": 1, "questions": 0}},
            "evaluate.questions is 0",
        ),
        ({"evaluate": {"every": 1, "task": "a", "file": "b"}}, "expected one of task and file"),
        ({"evaluate": {"every": 1, "kind": "math"}}, "evaluate.kind has no effect without file"),
        (
            {"evaluate": {"every": 1, "file": "a", "column": "b"}},
            "evaluate.column has no effect without kind",
        ),
        (
            {"evaluate": {"every": 1, "data": "a", "questions": 3}},
            "evaluate.questions has no effect with data alone",
        ),
        ({"track": 0}, "track is 0, expected a number of steps from 1 on"),
        ({"track": 1, "mask": "auto"}, 'track: mask = "auto" with probe = "adamw" trains twice'),
        ({"dtype": "fp16"}, 'dtype is "fp16", expected "bf16" or "fp32"'),
        ({"mask": "random"}, 'mask is "random", expected random:DENSITY, above 0 and at most 1'),
        (
            {"mask": "random:2"},
            'mask is "random:2", expected random:DENSITY, above 0 and at most 1',
        ),
        (
            {"mask": "random:x"},
            'mask is "random:x", expected random:DENSITY, above 0 and at most 1',
        ),
        (
            {"mask": "random:nan"},
            'mask is "random:nan", expected random:DENSITY, above 0 and at most 1',
        ),
        (
            {"mask": "low-magnitude:0"},
            'mask is "low-magnitude:0", expected low-magnitude:DENSITY, above 0 and at most 1',
        ),
        ({"data": {}}, "data: expected one of file and task"),
        ({"data": {"file": "a", "task": "addition"}}, "data: expected one of file and task"),
        ({"data": {"task": "sums"}}, 'data.task is "sums", expected "addition"'),
        ({"data": "train.jsonl"}, "data is not a table: expected [data] and its keys below"),
        ({"data": {"fil": "a"}}, "there is no key data.fil: did you mean data.file?"),
        (
            {"data": {"file": "a", "size": 3}},
            'data.size has no effect without a task "reasoning_gym:…"',
        ),
        ({"data": {"task": "addition", "chat": True}}, "data.chat has no effect without a task"),
        ({"data": {"task": "reasoning_gym:x", "size": 0}}, "data.size is 0, expected at least 1"),
        ({"reward": {"kind": "exact"}}, "reward: sft takes none"),
        ({"samples": {}}, 'samples: sft trains on the data: expected algorithm = "rft" for samp'),
        ({"optimizer": {"master": "lo4"}}, "optimizer.master is"),
        (
            {"mask": "none", "optimizer": {"name": "sgd", "clip_by": "full"}},
            'optimizer.clip_by has no effect with mask = "none"',
        ),
    ],
)
def test_one_problem(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    assert message in problem(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": None}, "grpo needs a table [reward], with function, kind or model"),
        ({"reward": {}}, "reward: expected one of function, kind and model"),
        (
            {"reward": {"kind": "exact", "function": "a.py:b"}},
            "reward: expected one of function, kind and model",
        ),
        ({"data": {"task": "addition"}}, "reward: a task brings its own"),
        (
            {"reward": {"kind": "fuzzy"}},
            'reward.kind is "fuzzy", expected "exact" or "regex" or "math"',
        ),
        (
            {"reward": {"kind": "exact", "model": "judge"}},
            "reward: expected one of function, kind and model",
        ),
        (
            {"reward": {"model": "judge", "column": "right"}},
            "reward.column has no effect with model",
        ),
        (
            {"reward": {"function": "a.py:b", "pattern": "x"}},
            "reward.pattern has no effect with function",
        ),
        ({"samples": {"num": 3}}, "samples: grpo draws its samples while it trains"),
    ],
)
def test_one_problem_of_the_reward(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    assert message in problem(tmp_path, "grpo", **changes)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"num": 0}, "samples.num is 0, expected at least 1"),
        ({"most": 0}, "samples.most is 0, expected at least 1"),
        ({"max_completion_length": 0}, "samples.max_completion_length is 0, expected at least 1"),
        ({"batch_size": -1}, "samples.batch_size is -1, expected at least 1"),
        ({"temperature": 0}, "samples.temperature is 0.0, expected above 0"),
        ({"stop": ""}, "samples.stop is empty"),
        ({"rule": "bests"}, 'samples.rule is "bests", expected "threshold" or "best"'),
        ({"rule": "best", "most": 2}, 'samples.most has no effect with rule = "best"'),
        ({"rule": "best", "threshold": 2}, 'samples.threshold has no effect with rule = "best"'),
        ({"nums": 3}, "no key samples.nums: did you mean samples.num?"),
    ],
)
def test_one_problem_of_samples(tmp_path: Path, table: dict[str, Any], message: str) -> None:
    assert message in problem(tmp_path, "rft", samples=table)


@pytest.mark.parametrize(
    ("algorithm", "changes", "message"),
    [
        ("rft", {"reward": None}, "rft needs a table [reward], with function, kind or model"),
        ("dpo", {"samples": {}, "data": {"file": "a"}}, "dpo needs a table [reward]"),
        ("dpo", {"reward": {"kind": "exact"}}, "reward: dpo takes none without [samples]"),
        ("orpo", {"samples": {}, "reward": {"kind": "exact"}}, "reward: a task brings its own"),
        (
            "kto",
            {"data": {"task": "reasoning_gym:x"}},
            "reasoning_gym has no wrong answers for kto",
        ),
        (
            "dpo",
            {"data": {"task": "reasoning_gym:x"}},
            "no wrong answers for dpo: add a table [sam",
        ),
    ],
)
def test_rewards_are_for_samples(
    tmp_path: Path, algorithm: str, changes: dict[str, Any], message: str
) -> None:
    assert message in problem(tmp_path, algorithm, **changes)


def test_samples_of_rft_have_defaults_and_those_of_others_must_be_asked_for(tmp_path: Path) -> None:
    assert read(tmp_path, "rft", samples=None).samples == SamplesTable()
    assert read(tmp_path, "dpo").samples is None
    run = read(tmp_path, "dpo", samples={"num": 2})
    assert run.samples == SamplesTable(num=2)
    gym = read(tmp_path, "rft", data={"task": "reasoning_gym:x", "chat": True}, reward=None)
    assert (gym.data.is_gym, gym.data.size, gym.data.chat) == (True, 500, True)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"steps": 0}, "auto.steps is 0, expected at least 1"),
        ({"every": -1}, "auto.every is -1, expected at least 1"),
        ({"settle": -0.1}, "auto.settle is -0.1, expected at least 0"),
        ({"probe": "sgd"}, 'auto.probe is "sgd", expected "adamw" or "gradients"'),
        ({"probe": "gradients"}, 'probe = "gradients" needs one between 0 and 1'),
        ({"probe": "gradients", "density": 1}, "auto.density is 1.0, and"),
        ({"density": 0.1}, 'auto.density has no effect with probe = "adamw"'),
        ({"step": 3}, "no key auto.step: did you mean auto.steps?"),
    ],
)
def test_one_problem_of_auto(tmp_path: Path, table: dict[str, Any], message: str) -> None:
    assert message in problem(tmp_path, mask="auto", auto=table)


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        ({"publish": {}}, "publish: expected a key to"),
        ({"publish": {"to": "p", "every": 0}}, "publish.every is 0, expected at least 1"),
        ({"rollouts": {"engine": "http://a"}}, "rollouts: without a table [publish]"),
        ({"publish": {"to": "p"}, "rollouts": {}}, 'rollouts.engine is "", expected the URL'),
        (
            {"publish": {"to": "p"}, "rollouts": {"engine": "http://a", "max_staleness": -1}},
            "rollouts.max_staleness is -1, expected at least 0",
        ),
    ],
)
def test_one_problem_of_sync(tmp_path: Path, tables: dict[str, Any], told: str) -> None:
    assert problem(tmp_path, "grpo", **tables).startswith(told)


def test_rollouts_are_for_what_samples(tmp_path: Path) -> None:
    tables: dict[str, Any] = {"publish": {"to": "p"}, "rollouts": {"engine": "http://a"}}
    assert problem(tmp_path, **tables) == "rollouts: sft samples nothing while it trains"
    found = read(tmp_path, "grpo", **tables)
    assert found.rollouts is not None and found.rollouts.max_staleness == 0


def test_auto_is_for_its_mask_only(tmp_path: Path) -> None:
    assert 'auto: for mask = "auto" only' in problem(tmp_path, auto={"steps": 3})
    assert read(tmp_path, mask="auto").auto.steps == 50


def test_all_problems_at_once(tmp_path: Path) -> None:
    result = problem(tmp_path, seed="1", output=None, mask="random:0", data={}, sede=1)
    assert result.count("; ") == 4
    for part in (
        'seed is "1"',
        "missing: output",
        "random:0",
        "one of file and task",
        "mean seed?",
    ):
        assert part in result


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"algorithm = ", "not TOML"),
        (b"a = 1\na = 2", "not TOML"),
        (b"\xff", "not UTF-8"),
        (b"a = " + b"[" * 100_000, "not TOML"),
        (b"", "missing: algorithm, model, output, mask, data"),
        (b"algorithm = 1979-05-27\n", "algorithm is a date"),
    ],
)
def test_hostile_files(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(raw)
    with pytest.raises(SettingsError, match=message):
        Settings.read(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.toml: no such file"):
        Settings.read(tmp_path / "none.toml")
    with pytest.raises(SettingsError, match="found a folder"):
        Settings.read(tmp_path)


@given(raw=st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_no_bytes_crash_it(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(raw)
    with pytest.raises(SettingsError):
        Settings.read(path)


VALUES = st.one_of(
    st.integers(-5, 5),
    st.booleans(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text("ab:1.", max_size=8),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(
        st.sampled_from(["file", "task", "kind", "name", "rule", "num", "x"]),
        st.text("ab") | st.integers(-1, 2),
        max_size=2,
    ),
)


@given(
    changed=st.dictionaries(
        st.sampled_from(
            ["algorithm", "model", "mask", "seed", "data", "reward", "samples", "trainer", "q"]
        ),
        VALUES,
        min_size=1,
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_any_value_is_accepted_or_explained(tmp_path: Path, changed: dict[str, Any]) -> None:
    values = {**content("sft", BASE), **changed}
    try:
        Settings.read(write(tmp_path, values))
    except SettingsError as error:
        assert "\n" not in str(error)
