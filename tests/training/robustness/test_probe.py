"""The probe on a tiny model: against measurements made by hand, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training import tiny
from tests.training.evaluation.conftest import CHARACTERS
from trimtab.errors import (
    AnalysisError,
    MaskError,
    MaskMismatchError,
    OutputExistsError,
    SettingsError,
)
from trimtab.masks.extract import extract_mask
from trimtab.masks.mask import Mask
from trimtab.results.robustness import Cell, Robustness
from trimtab.training import runtime
from trimtab.training.addition import split_questions
from trimtab.training.evaluation.answering import ask, load_model, load_tokenizer
from trimtab.training.evaluation.forgetting import measure_forgetting, pieces, read_text
from trimtab.training.evaluation.questions import Questions, addition_questions
from trimtab.training.perturbation.noise import ARMS, Hit, noisy
from trimtab.training.perturbation.probe import _Subject, robustness

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny base that reads English, and the same with a tenth of its weights moved."""
    from transformers import AutoModelForCausalLM

    runtime.start()
    folder = tmp_path_factory.mktemp("probe")
    tiny.make_base(folder / "base", CHARACTERS)
    with runtime.quiet():
        model: Any = AutoModelForCausalLM.from_pretrained(folder / "base", dtype="bfloat16")
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                hit = torch.rand(parameter.shape, generator=generator) < 0.1
                parameter[hit] += 0.02
        model.save_pretrained(folder / "tuned")
        load_tokenizer(folder / "base").save_pretrained(folder / "tuned")
    return folder / "base", folder / "tuned"


@pytest.fixture(scope="module")
def mask(folders: tuple[Path, Path]) -> Mask:
    return extract_mask(*folders)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("A sentence to read.\n\nAnother one, and then more.\n\nThe last.\n")
    return path


def questions() -> Questions:
    return addition_questions(split_questions(0).heldout).first(6)


def test_figures_are_those_of_a_model_perturbed_by_hand(
    folders: tuple[Path, Path], mask: Mask, text: Path
) -> None:
    base, tuned = folders
    result = robustness(
        tuned,
        base=base,
        mask=mask,
        questions=questions(),
        noises=["sign", "gaussian"],
        levels=[0.5, 1.0],
        num_seeds=2,
        seed=3,
        text=text,
        num_passages=2,
    )
    assert len(result.cells) == 2 * 2 * 2 * len(ARMS)
    tokenizer = load_tokenizer(tuned)
    whole, hurt = (load_model(tuned, "bf16", torch.device("cpu")) for _ in range(2))
    num_changed = 0
    with torch.no_grad():
        for name, parameter in hurt.named_parameters():
            flat = parameter.view(-1)
            places = torch.from_numpy(mask.indices(name))
            flat[places], hit = noisy(flat, places, "gaussian", 1.0, seed=4, name=name)
            num_changed += hit.num_changed
    (cell,) = [
        cell
        for cell in result.cells
        if (cell.noise, cell.level, cell.seed, cell.arm) == ("gaussian", 1.0, 4, "mask")
    ]
    report = measure_forgetting(whole, hurt, pieces(tokenizer, read_text(text), 512)[:2])
    assert cell.kl == pytest.approx(report.kl)
    assert cell.num_changed == num_changed
    assert cell.num_chosen == cell.num_in_mask == mask.num_selected()
    assert cell.relative_norm == pytest.approx(1, rel=1e-2)
    answers = ask(hurt, tokenizer, questions(), seed=0, num_samples=0)
    assert cell.num_correct == answers.num_greedy_correct
    before = ask(whole, tokenizer, questions(), seed=0, num_samples=0)
    assert result.num_correct == before.num_greedy_correct
    assert result.text["num_tokens"] == report.num_tokens
    flips = [c for c in result.cells if (c.noise, c.level) == ("sign", 0.5)]
    assert (
        len({c.num_changed for c in flips}) == 1
    )  # a share of the same number of elements of each tensor
    assert {c.num_chosen for c in result.cells} == {mask.num_selected()}


def test_again_the_same(folders: tuple[Path, Path], mask: Mask, text: Path) -> None:
    def once(seed: int) -> tuple[Any, ...]:
        return robustness(
            folders[1], base=folders[0], mask=mask, text=text,
            noises=["bitflip", "gaussian-absolute"], levels=[1.0], num_seeds=1, seed=seed,
        ).cells  # fmt: skip

    first = once(0)
    assert first == once(0)
    assert first != once(1)
    assert all(cell.num_correct is None for cell in first)
    assert all(cell.kl > 0 for cell in first)


def test_a_probe_that_was_interrupted_goes_on(
    folders: tuple[Path, Path],
    mask: Mask,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same to the bit as without the break, and nothing is measured twice."""
    left, measured = 6, 0  # the break is in the second seed
    whole_cell = _Subject.cell

    def cell(self: _Subject, *condition: Any) -> Cell:
        nonlocal left, measured
        if not left:
            raise KeyboardInterrupt
        left, measured = left - 1, measured + 1
        return whole_cell(self, *condition)

    def once(file: Path | None, **changes: Any) -> Robustness:
        options: dict[str, Any] = {"noises": ["gaussian"], "levels": [0.3], "num_seeds": 3}
        return robustness(
            folders[1], base=folders[0], mask=mask, text=text, questions=questions(),
            unfinished=file, **options | changes,
        )  # fmt: skip

    file = tmp_path / "r.partial.jsonl"
    monkeypatch.setattr(_Subject, "cell", cell)
    with pytest.raises(KeyboardInterrupt):
        once(file)
    left = 100
    with pytest.raises(OutputExistsError, match=r"settings\.levels=\[0\.3\] \(now \[0\.2\]\)"):
        once(file, levels=[0.2])
    text.write_text(text.read_text() + "\nMore.\n")
    with pytest.raises(OutputExistsError, match=r"text\.xxh3_128=.*tokens="):
        once(file)
    text.write_text(text.read_text().removesuffix("\nMore.\n"))
    again = once(file)
    assert measured == 3 * len(ARMS)
    result, wanted = again.to_dict(), once(None).to_dict()
    for data in (result, wanted):
        del data["provenance"]["date"]
    assert json.dumps(result) == json.dumps(wanted)
    measured = 0
    assert once(file).cells == again.cells  # interrupted before the result was saved
    assert measured == 0


def test_weights_that_were_not_put_back_are_noticed_at_once(
    folders: tuple[Path, Path],
    mask: Mask,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @contextmanager
    def sloppy(model: Any, *more: Any, **seed: Any) -> Iterator[Hit]:
        with torch.no_grad():
            next(model.parameters())[0, 0] += 1
        yield Hit()

    monkeypatch.setattr("trimtab.training.perturbation.probe.perturbed", sloppy)
    file = tmp_path / "r.partial.jsonl"
    with pytest.raises(RuntimeError, match="not restored"):
        robustness(folders[1], base=folders[0], mask=mask, text=text, unfinished=file)
    assert len(file.read_text().splitlines()) == 1  # no cell is kept


def test_files_are_not_touched(folders: tuple[Path, Path], mask: Mask, text: Path) -> None:
    before = (folders[1] / "model.safetensors").read_bytes()
    robustness(
        folders[1], base=folders[0], mask=mask, text=text, noises=["sign"], levels=[1], num_seeds=1
    )
    assert (folders[1] / "model.safetensors").read_bytes() == before


def test_a_mask_file_is_recorded(
    folders: tuple[Path, Path], mask: Mask, text: Path, tmp_path: Path
) -> None:
    mask.save(tmp_path / "m.safetensors")
    result = robustness(
        folders[1], base=folders[0], mask=tmp_path / "m.safetensors", text=text,
        noises=["sign"], levels=[0.1], num_seeds=1,
    )  # fmt: skip
    assert (result.mask.id, result.mask.digest) == (str(tmp_path / "m.safetensors"), mask.digest)
    assert result.mask.num_checked == len(mask)
    assert (result.checkpoint.id, result.base.id) == (str(folders[1]), str(folders[0]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"noises": ["salt"]}, "there is no noise salt: expected some of gaussian, "),
        ({"noises": []}, "no noise is given"),
        ({"levels": []}, "no level is given"),
        ({"levels": [0.1, 0.1]}, "a level is given twice"),
        ({"levels": [-1.0]}, "a level of -1: expected a number above 0"),
        ({"levels": [3.0]}, "sign at level 3: it is a share of the elements"),
        ({"num_seeds": 0}, "num_seeds is 0, expected at least 1"),
        ({"seed": -1}, "the first of 3 seeds is -1, expected all to be 0 to"),
        ({"num_passages": 0}, "num_passages is 0"),
        ({"batch_size": 0, "num_seeds": 0}, "num_seeds is 0, expected at least 1; batch_size is 0"),
    ],
)
def test_settings_that_cannot_be_used(
    folders: tuple[Path, Path], mask: Mask, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(AnalysisError, match=words):
        robustness(folders[1], base=folders[0], mask=mask, **options)


def test_masks_that_cannot_be_probed(folders: tuple[Path, Path], mask: Mask) -> None:
    base, tuned = folders
    nothing = Mask.from_arrays({name: np.zeros(mask.shape(name), np.bool_) for name in mask})
    with pytest.raises(MaskError, match="selects nothing"):
        robustness(tuned, base=base, mask=nothing)
    with pytest.raises(MaskError, match="selects everything"):
        robustness(tuned, base=base, mask=nothing.complement())
    with pytest.raises(MaskMismatchError, match="when the mask was made"):
        robustness(tuned, base=tuned, mask=mask)
    stranger = Mask.from_arrays({"model.norm.weight": np.arange(7) < 3})
    with pytest.raises(MaskMismatchError, match="has shape"):
        robustness(tuned, base=base, mask=stranger)


def test_a_checkpoint_of_another_shape(
    folders: tuple[Path, Path], mask: Mask, tmp_path: Path
) -> None:
    tiny.make_base(tmp_path / "other")  # of another vocabulary
    with pytest.raises(MaskMismatchError, match=r"embed_tokens\.weight has shape"):
        robustness(tmp_path / "other", base=folders[0], mask=mask)


def test_noise_that_breaks_the_model(folders: tuple[Path, Path], mask: Mask, text: Path) -> None:
    with pytest.raises(AnalysisError, match=r"gaussian at level 1e\+38 .*: lower the level"):
        robustness(
            folders[1], base=folders[0], mask=mask, text=text, noises=["gaussian"], levels=[1e38]
        )


def test_messages_need_a_chat_template(folders: tuple[Path, Path], mask: Mask) -> None:
    asked = questions()
    rows = [{**row, "prompt": [{"role": "user", "content": "1+1"}]} for row in asked.rows.rows]
    asked = replace(asked, rows=replace(asked.rows, rows=rows))
    with pytest.raises(SettingsError, match="has no chat template"):
        robustness(folders[1], base=folders[0], mask=mask, questions=asked)


def test_no_text(folders: tuple[Path, Path], mask: Mask, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no such file"):
        robustness(folders[1], base=folders[0], mask=mask, text=tmp_path / "none.txt")
