"""The example that the README starts from."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

import trimtab
from trimtab.checkpoints.folder import MADE_BY
from trimtab.cli import main
from trimtab.errors import CheckpointNotFoundError, OutputExistsError
from trimtab.example import EXAMPLE, example_checkpoints, write_example
from trimtab.masks.extract import extract_mask


def written(arguments: list[str]) -> object:
    with pytest.raises(SystemExit) as stop:
        main(["example", *arguments])
    return stop.value.code


def test_it_is_alike_on_every_machine() -> None:
    digest = hashlib.sha256()
    for name, files in example_checkpoints():
        for file, content in files.items():
            digest.update(f"{name}/{file}".encode() + content)
    assert digest.hexdigest() == "08a3e635d25495e0aceda0a4a1dc5b002515366b035209b7bca88aa6c1f7120e"


def test_what_is_said_of_each_is_so(tmp_path: Path) -> None:
    write_example(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == EXAMPLE.keys()
    base, tuned, sub, other, run = (tmp_path / name for name in EXAMPLE)
    comparison = trimtab.compare(base, tuned, lr=1e-5, steps=20)
    predicted = comparison.analyses["precision"]["total"]["sparsity"]["random_walk"]
    assert comparison.sparsity == pytest.approx(predicted, abs=0.01)
    assert comparison.coverage.is_complete
    outside = extract_mask(base, sub).array("model.layers.0.mlp.up_proj.weight")
    assert not (
        outside & ~extract_mask(base, tuned).array("model.layers.0.mlp.up_proj.weight")
    ).any()
    as_stored = trimtab.compare(tuned, other, cast="bf16")
    assert as_stored.sparsity == 1
    assert len(as_stored.coverage.missing) == 1
    assert [point.step for point in trimtab.trajectory(base, run).points] == list(range(10, 81, 10))


def test_it_is_written_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from trimtab.example import write_example; write_example();"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert (tmp_path / "base" / "model.safetensors").exists()


@pytest.mark.train
def test_transformers_loads_all_of_it(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    write_example(tmp_path)
    for name in ("base", "run/checkpoint-80"):
        _, result = AutoModelForCausalLM.from_pretrained(tmp_path / name, output_loading_info=True)
        assert not any(result.values())


def test_the_command_says_what_to_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert written(["try-it"]) == written([]) == 0
    first, _, second = capsys.readouterr().out.partition("wrote them into this folder")
    assert "wrote them into try-it" in first and "cd try-it\n" in first
    assert "trimtab compare base tuned" in second and "cd " not in second
    for name in EXAMPLE:
        assert (tmp_path / name).is_dir() and (tmp_path / "try-it" / name).is_dir()


def test_nothing_is_replaced_and_an_interrupted_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(write_example()) == 12
    for path in (tmp_path / "sub").iterdir():
        path.unlink()
    (tmp_path / "sub").rmdir()
    assert [path.name for path in write_example()] == ["sub"]
    assert written([]) == 0
    assert "here already" in capsys.readouterr().out
    mine = tmp_path / "tuned" / "model.safetensors"
    mine.write_bytes(b"mine")
    (tmp_path / "sub" / "config.json").unlink()
    with pytest.raises(OutputExistsError, match="sub, tuned; nothing was written"):
        write_example()
    assert mine.read_bytes() == b"mine"
    assert written([]) == 1


@pytest.mark.parametrize(
    ("ref", "command"),
    [
        ("tuned", "example"),
        ("./base", "example"),
        ("run/checkpoint-10", "example"),
        ("demo/base", "demo"),
    ],
)
def test_what_is_not_there_is_asked_for_with_its_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ref: str, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointNotFoundError, match=rf"`trimtab {command}` makes it") as error:
        trimtab.open_checkpoint(ref)
    assert error.value.__cause__ is None  # the hub client's own tracebacks are 70 lines
    assert MADE_BY["trimtab example"] == tuple(EXAMPLE)
