"""Parameters that are trained whole beside a mask, and new ones that nothing trains."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.runs.run_files import content, write
from tests.training.runs.run_files import train as train_file
from tests.training.tiny_trainers import (
    Base,
    arrays,
    assert_same_bits,
    build,
    model,
    moved,
    reward_model,
    train,
    weights,
)
from trimtab.errors import SettingsError
from trimtab.masks.header import BaseTensor
from trimtab.masks.mask import Mask
from trimtab.training import SparseAdamW, runtime, train_only
from trimtab.training.layout import names_of_whole, with_whole
from trimtab.training.masked_checkpoint import MASK_FILE, RECORD_FILE
from trimtab.training.model_masks import newly_initialised
from trimtab.training.runs.prepare import prepare
from trimtab.training.runs.settings import Settings

pytestmark = pytest.mark.train

NAMES = ["model.layers.0.norm.weight", "model.norm.weight", "model.scores.weight", "score.weight"]

SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}


def without_head(net: Any) -> Mask:
    """A mask as it is made of a base, which has no head."""
    return Mask.from_arrays({n: a for n, a in arrays(net).items() if n != "score.weight"})


@pytest.mark.parametrize(
    ("also", "expected"),
    [
        (["score"], NAMES[3:]),
        ("score", NAMES[3:]),
        (["score.weight"], NAMES[3:]),
        (["norm"], NAMES[:2]),
        (["model.norm", "layers.0"], NAMES[:2]),
        (["weight"], NAMES),
        ([], []),
    ],
)
def test_whole_parts_of_names(also: Any, expected: list[str]) -> None:
    assert names_of_whole(also, NAMES) == expected


def test_names_that_nothing_has_are_told_together() -> None:
    with pytest.raises(SettingsError, match=r"'scor': did you mean score\?; .* name ''"):
        names_of_whole(["scor", ""], NAMES)


def test_the_wider_mask() -> None:
    known = BaseTensor("F32", "0" * 32)
    mask = Mask.from_arrays({"a": np.eye(2) > 0, "b": np.eye(2) > 0}, base={"a": known})
    wide = with_whole(mask, {"a": (2, 2), "b": (2, 2), "c": ()}, ["a", "c"])
    assert {n: (wide.shape(n), wide.num_selected(n)) for n in wide} == {
        "a": ((2, 2), 4),
        "b": ((2, 2), 2),
        "c": ((), 1),
    }
    assert dict(wide.base) == {"a": known}
    assert with_whole(mask, {}, []) is mask


def test_what_no_checkpoint_had(base: Base) -> None:
    net = reward_model(base[0])
    assert newly_initialised(net.named_parameters(), Mask.from_arrays({})) == ["score.weight"]
    assert newly_initialised(model(base[0]).named_parameters(), Mask.from_arrays({})) == []
    for parameter in net.parameters():  # as a model that was loaded by other means
        vars(parameter).pop("_is_hf_initialized", None)
    assert newly_initialised(net.named_parameters(), without_head(net)) == []
    known = {name: BaseTensor("BF16", "0" * 32) for name in without_head(net)}
    mask = Mask.from_arrays({n: np.ones(1, bool) for n in known}, base=known)
    assert newly_initialised(net.named_parameters(), mask) == ["score.weight"]


def test_a_new_head_that_stays_frozen_is_told(base: Base, tmp_path: Path) -> None:
    net = reward_model(base[0])
    trainer = build("reward", net, base[0], tmp_path)
    with pytest.warns(UserWarning, match=r"^score\.weight: no checkpoint .* also=\[\"score\"\]"):
        training = train_only(trainer, without_head(net))
    assert training.new_and_frozen == ["score.weight"]
    before = weights(net)
    train(trainer)
    assert not moved(before, weights(net))["score.weight"].any()


def test_a_new_head_is_trained_whole_beside_the_mask(base: Base, tmp_path: Path) -> None:
    net = reward_model(base[0])
    start = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    before, mask = weights(net), without_head(net)
    trainer = build("reward", net, base[0], tmp_path, **SAVING)
    training = train_only(trainer, mask, also=["score"])
    train(trainer)
    changed = moved(before, weights(net))
    assert changed.pop("score.weight").mean() > 0.9
    for name, where in changed.items():
        assert not where[~mask.array(name)].any(), name
    record = json.loads((tmp_path / "checkpoint-3" / RECORD_FILE).read_text())
    assert record["settings"]["also"] == record["optimizer"]["also"] == ["score.weight"]
    assert record["optimizer"]["mask"] == record["mask"]["digest"] == mask.digest
    num_trained = mask.num_selected() + net.score.weight.numel()
    assert record["optimizer"]["num_selected"] == num_trained
    assert Mask.load(tmp_path / "checkpoint-3" / MASK_FILE) == mask
    assert "with all of score.weight" in training.summary

    found = reward_model(base[0])
    found.load_state_dict(start)  # the head is drawn anew for each model
    again = build("reward", found, base[0], tmp_path, **SAVING)
    train_only(again, mask, also="score")
    train(again, resume=tmp_path / "checkpoint-1")
    assert_same_bits(weights(found), weights(net))
    without = build("reward", reward_model(base[0]), base[0], tmp_path, **SAVING)
    with pytest.warns(UserWarning, match="score"):
        train_only(without, mask)
    with pytest.raises(SettingsError, match=r"run with also=\['score\.weight'\] \(now None\)"):
        train(without, resume=tmp_path / "checkpoint-1")


def test_it_is_the_mask_that_selects_them(base: Base, tmp_path: Path) -> None:
    found = []
    for wide in (False, True):
        net = model(base[0])
        mask = Mask.from_arrays(arrays(net))
        shapes = {name: tuple(p.shape) for name, p in net.named_parameters()}
        names = names_of_whole(["norm"], shapes)
        optimizer = SparseAdamW(
            net.named_parameters(),
            with_whole(mask, shapes, names) if wide else mask,
            lr=0.01,
            also=() if wide else ["norm"],
        )
        for parameter in net.parameters():
            parameter.grad = parameter.detach().clone()
        optimizer.step()
        found.append(weights(net))
    assert_same_bits(*found)


def test_a_run_file_takes_it(base: Base, tmp_path: Path) -> None:
    table = content("sft", base[0], also=["model.norm"])
    result = train_file(write(tmp_path, table))
    assert result["update"]["num_changed_outside_mask"] == 0
    assert result["optimizer"]["also"] == ["model.norm.weight"]
    resolved = json.loads((tmp_path / "out" / "resolved.json").read_text())
    assert resolved["settings"]["also"] == ["model.norm"]
    with pytest.raises(SettingsError, match=r"also: no module .*'nrm': did you mean norm\?"):
        prepare(Settings.read(write(tmp_path, content("sft", base[0], also=["nrm"]))))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": "none"}, 'also has no effect with mask = "none"'),
        ({"mask": "all"}, 'also has no effect with mask = "all"'),
        ({"mask": "auto"}, 'also: not with mask = "auto"'),
        ({"also": "score"}, 'also is "score", expected a list'),
    ],
)
def test_what_a_run_file_cannot_mean(
    changes: dict[str, Any], message: str, base: Base, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=message):
        Settings.read(write(tmp_path, content("sft", base[0], **{"also": ["norm"], **changes})))


def test_one_line_says_what_is_trained(
    base: Base,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = model(base[0])
    mask = Mask.from_arrays(arrays(net))
    total = sum(p.numel() for p in net.parameters())
    trainer = build("plain", net, base[0], tmp_path)
    training = train_only(trainer, mask)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "trimtab"]
    expected = f"Trainer trains {mask.num_selected():,} of {total:,} elements ("
    assert line.startswith(expected) and "MB for their positions, gradient and state" in line
    assert repr(training) == f"MaskedTraining(Trainer: {line.removeprefix('Trainer trains ')})"
    train(trainer)
    assert len(repr(training.optimizer)) < 250 and f"{total:,}" in repr(training.optimizer)
    training.close()
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # as in a script that sets up none
    train_only(trainer, mask).close()
    assert capsys.readouterr().err == f"[trimtab] {line}\n"
    with runtime.quiet():
        train_only(trainer, mask).close()
    monkeypatch.setattr(trainer, "is_world_process_zero", lambda: False)
    train_only(trainer, mask)
    assert capsys.readouterr().err == ""
