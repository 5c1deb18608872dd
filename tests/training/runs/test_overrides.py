"""Keys of a run file that are set on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.runs.run_files import after, content, train_settings, write
from trimtab.errors import OutputExistsError, SettingsError
from trimtab.training.folders import WEIGHTS, read_json
from trimtab.training.runs.overrides import parsed, read_settings
from trimtab.training.runs.prepare import prepare

pytestmark = pytest.mark.train

Base = tuple[Path, dict[str, Any]]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("1e-4", 1e-4),
        ("true", True),
        ("[1, 2]", [1, 2]),
        ("{ a = 1 }", {"a": 1}),
        ('"1"', "1"),
        ("fp32", "fp32"),
        ("random:0.1", "random:0.1"),
        ("runs/a b", "runs/a b"),
        ("2026-01-01", "2026-01-01"),
        ("1\nb = 2", "1\nb = 2"),
        ("a=b", "a=b"),
        ("", ""),
        ("[" * 5000, "[" * 5000),
    ],
)
def test_a_value_is_toml_or_text(text: str, value: Any) -> None:
    problems: list[str] = []
    assert parsed([f"data.file={text}"], problems) == {"data.file": value}
    assert not problems


def test_keys_replace_those_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, content("sft", Path("base"), seed=3))
    file = read_settings(
        path, ["trainer.warmup_steps=1", "learning_rate=1", "seed = 4", "also=['score']"]
    )
    assert (file.seed, file.also, file.resolve("a")) == (4, ["score"], tmp_path / "a")
    assert dict(file.trainer) == {
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "warmup_steps": 1,
        "learning_rate": 1,
    }
    assert dict(file.factors) == {"learning_rate": 1}
    assert read_settings(path, []).seed == 3
    assert path.read_text() == write(tmp_path, content("sft", Path("base"), seed=3)).read_text()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["seed"], '"seed", expected KEY=VALUE'),
        (["=1"], '"=1", expected KEY=VALUE'),
        (["seed=1", "seed=2"], "seed occurs twice"),
        (["sede=1"], "there is no key sede: did you mean seed?"),
        (["trianer.max_steps=1"], "there is no key trianer: did you mean trainer?"),
        (["trainer=1"], "trainer is a table of the run file: name a key of it"),
        (["data.config.size=1"], "set data.config as a whole, as data.config = { … }"),
        (["learning_rate=1", "factors.learning_rate=1"], "learning_rate occurs twice"),
        (["seed=x"], 'run.toml with seed set: seed is "x", expected a whole number'),
        (["data.siez=1"], "there is no key data.siez: did you mean data.size?"),
        (["dtype=fp16"], 'dtype is "fp16", expected "bf16" or "fp32"'),
        (["learning_rate=1", "trainer.learning_rate=1"], "which the file also sets"),
    ],
)
def test_what_is_refused(tmp_path: Path, given: list[str], message: str) -> None:
    path = write(tmp_path, content("sft", Path("base")))
    with pytest.raises(SettingsError) as error:
        read_settings(path, given)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("trainer.lerning_rate=1", "no key trainer.lerning_rate: did you mean trainer.learning_r"),
        ("trainer.learning_rate=fast", 'trainer.learning_rate is "fast", expected a number'),
        ("mask=none.safetensors", "none.safetensors"),
    ],
)
def test_what_the_whole_run_refuses(base: Base, tmp_path: Path, given: str, message: str) -> None:
    path = write(tmp_path, content("sft", base[0]))
    with pytest.raises(Exception) as error:
        prepare(read_settings(path, [given]))
    assert message in str(error.value)


def test_a_run_records_them_and_resumes_with_the_same_ones_only(base: Base, tmp_path: Path) -> None:
    given = ["learning_rate=1e-3", "seed=1"]
    in_file, on_command = (
        write(tmp_path / name, content("sft", base[0], **changes))
        for name, changes in (
            ("file", {"seed": 1, "trainer": {"learning_rate": 1e-3}}),
            ("command", {}),
        )
    )
    train_settings(read_settings(in_file, []))
    with pytest.raises(KeyboardInterrupt):
        train_settings(read_settings(on_command, given), stop=after(1))
    resolved = read_json(tmp_path / "command/out/resolved.json")
    assert resolved["set"] == {"factors.learning_rate": 1e-3, "seed": 1}
    assert resolved["settings"]["trainer"]["learning_rate"] == 1e-3
    assert read_json(tmp_path / "file/out/resolved.json")["set"] == {}
    for other in ([], ["learning_rate=1e-3"], ["learning_rate=2e-3", "seed=1"]):
        with pytest.raises(OutputExistsError, match="holds an unfinished run"):
            train_settings(read_settings(on_command, other))
    assert train_settings(read_settings(on_command, given))["resumed_from_step"] == 1
    weights = [
        (tmp_path / name / "out/model" / WEIGHTS).read_bytes() for name in ("file", "command")
    ]
    assert weights[0] == weights[1]


def test_a_token_is_not_recorded(base: Base, tmp_path: Path) -> None:
    path = write(tmp_path, content("sft", base[0]))
    run = prepare(read_settings(path, ["trainer.hub_token=hf_secret", "seed=1"]))
    assert run.args.hub_token == "hf_secret"
    assert run.describe()["set"] == {"trainer.hub_token": "(hidden)", "seed": 1}
    assert "hf_secret" not in json.dumps(run.describe())


def test_keys_of_the_run_of_a_cell(base: Base, tmp_path: Path) -> None:
    write(tmp_path, content("sft", base[0]))
    cell = {"format": "trimtab.cell", "format_version": 1, "run_file": "run.toml"}
    path = tmp_path / "run.json"
    path.write_text(json.dumps({**cell, "content": content("sft", base[0], seed=2)}))
    file = read_settings(path, ["dtype=fp32"])
    assert (file.seed, file.dtype, file.path) == (2, "fp32", tmp_path / "run.toml")
