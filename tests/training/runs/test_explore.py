"""Runs that find their mask: they end, go on and break off as others do."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.runs.run_files import after, content, train, write
from tests.training.runs.test_execute import bits
from trimtab.cli import main
from trimtab.elements.counts import percent
from trimtab.errors import OutputExistsError, SettingsError
from trimtab.masks.mask import Mask
from trimtab.training.folders import WEIGHTS, read_json
from trimtab.training.runs import explore

pytestmark = pytest.mark.train

Base = tuple[Path, dict[str, Any]]

MOVING = {"max_steps": 6, "learning_rate": 1e-5}
"""At this rate some elements of the tiny base move in a few steps, and most do not."""


def auto(base: Base, usual: str = "sft", **changes: Any) -> dict[str, Any]:
    changes = {"mask": "auto", "auto": {"steps": 4, "every": 2, "settle": 0.0}, **changes}
    changes["trainer"] = {**MOVING, **changes.get("trainer", {})}
    return content(usual, base[0], **changes)


def weights(folder: Path) -> bytes:
    return (folder / "out" / "model" / WEIGHTS).read_bytes()


@pytest.fixture(scope="module", params=["sft", "grpo"])
def finished(
    request: pytest.FixtureRequest, base: Base, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("auto")
    return request.param, folder, train(write(folder, auto(base, request.param)))


def test_only_what_moved_early_has_moved_in_the_end(finished: Any, base: Base) -> None:
    _, folder, result = finished
    mask = Mask.load(folder / "out" / "mask.safetensors")
    assert Mask.load(folder / "out" / "model" / "trimtab_mask.safetensors") == mask
    assert 0.01 < mask.density < 0.9
    before, now = bits(base[0]), bits(folder / "out" / "model")
    assert all((before[name] == now[name])[~mask.array(name)].all() for name in mask)
    assert result["update"]["num_changed_outside_mask"] == 0
    assert (result["steps"], result["resumed_from_step"]) == (6, 4)
    assert [log["step"] for log in result["history"]] == [1, 2, 3, 4, 5, 6]


def test_mask_says_how_it_was_found(finished: Any) -> None:
    algorithm, folder, _ = finished
    mask = Mask.load(folder / "out" / "mask.safetensors")
    (step,) = mask.provenance["steps"]
    assert (step["step"], step["algorithm"], step["after_steps"]) == ("moved", algorithm, 4)
    assert [look["after_steps"] for look in step["looks"]] == [2, 4]
    assert step["looks"][-1]["num_moved"] == mask.num_selected()
    assert 0 < step["looks"][-1]["share_new"] < 1
    assert step["peak_memory"]["num_bytes"] > 0
    assert mask.base.keys() == set(mask)
    resolved = read_json(folder / "out" / "resolved.json")
    assert resolved["mask"]["digest"] == mask.digest
    assert resolved["settings"]["mask"]["steps"] == 4


def test_a_result_says_that_what_moves_had_not_settled(finished: Any) -> None:
    _, folder, result = finished
    (step,) = Mask.load(folder / "out" / "mask.safetensors").provenance["steps"]
    share = percent(step["looks"][-1]["share_new"], 1)
    start = "auto: the set of moved elements had not settled after 4 steps: "
    assert result["notes"][0].startswith(f"{start}{share} of it is new since the previous look")
    assert read_json(folder / "out" / "result.json")["notes"] == result["notes"]


def test_it_is_said_while_it_trains_and_at_the_end(
    base: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes: dict[str, Any] = {
        "trainer": {"learning_rate": 1.0},
        "auto": {"steps": 2, "every": 2},
    }
    with pytest.raises(SystemExit):
        main(["train", str(write(tmp_path, auto(base, **changes)))])
    shown = capsys.readouterr()
    assert "auto: after 2 steps 9" in shown.err and "of the weights had moved\n" in shown.err
    for stream in (shown.out, shown.err):
        assert "auto: there was one look, after 2 steps, so it is not known whether" in stream
        assert "of the weights, which is most of the model: lower" in stream


def test_nothing_is_left_of_the_exploration(finished: Any) -> None:
    _, folder, _ = finished
    names = {path.name for path in (folder / "out").iterdir()}
    assert names == {"model", "mask.safetensors", "resolved.json", "result.json"}


@pytest.mark.parametrize("stops", [(4,), (5,), (1, 1, 1, 1)])
def test_a_run_stopped_in_any_phase_ends_in_the_same_weights(
    finished: Any, base: Base, tmp_path: Path, stops: tuple[int, ...]
) -> None:
    algorithm, folder, _ = finished
    run = write(tmp_path, auto(base, algorithm))
    for calls in stops:
        with pytest.raises(KeyboardInterrupt):
            train(run, stop=after(calls))
    result = train(run)
    assert result["steps"] == 6
    assert weights(tmp_path) == weights(folder)


def test_a_call_that_ends_between_the_phases_is_made_good(
    finished: Any, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm, folder, _ = finished
    run = write(tmp_path, auto(base, algorithm))
    go_over = explore._rewrite_checkpoint

    def then_stop(*arguments: Any) -> None:
        go_over(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(explore, "_rewrite_checkpoint", then_stop)
        train(run)
    assert not (tmp_path / "out" / "mask.safetensors").exists()
    train(run)
    assert weights(tmp_path) == weights(folder)


def test_it_ends_early_when_the_set_settles(base: Base, tmp_path: Path) -> None:
    path = write(tmp_path, auto(base, auto={"steps": 4, "every": 1, "settle": 1.0}))
    assert not [one for one in train(path)["notes"] if "settled" in one]
    (step,) = Mask.load(tmp_path / "out" / "mask.safetensors").provenance["steps"]
    assert step["after_steps"] == 2
    assert step["looks"][1]["share_new"] < 1.0


def test_fp32_weights_outside_the_mask_return_to_the_base(base: Base, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    values = auto(base, dtype="fp32", trainer={"save_steps": 1})
    train(write(tmp_path, values))
    mask = Mask.load(tmp_path / "out" / "mask.safetensors")
    before = load_file(base[0] / WEIGHTS)
    for step in (4, 5, 6):
        now = load_file(tmp_path / "out" / "checkpoints" / f"checkpoint-{step}" / WEIGHTS)
        for name in mask:
            others = ~torch.from_numpy(mask.array(name))
            assert now[name].dtype == torch.float32
            assert torch.equal(now[name][others], before[name].float()[others])


def test_largest_gradients_and_the_run_of_their_mask(base: Base, tmp_path: Path) -> None:
    found = tmp_path / "found"
    probe = {"probe": "gradients", "steps": 2, "density": 0.05}
    result = train(write(found, auto(base, auto=probe)))
    mask = Mask.load(found / "out" / "mask.safetensors")
    assert mask.num_selected() == round(0.05 * mask.num_elements())
    assert result["resumed_from_step"] is None
    (step,) = mask.provenance["steps"]
    assert (step["step"], step["after_steps"]) == ("largest gradients", 2)
    given = tmp_path / "given"
    given.mkdir()
    shutil.copy2(found / "out" / "mask.safetensors", given / "m.safetensors")
    train(write(given, auto(base, mask="m.safetensors", auto=None)))
    assert weights(found) == weights(given)


def test_largest_gradients_are_those_of_the_base(base: Base, tmp_path: Path) -> None:
    """Against gradients of the same batch, computed without a trainer."""
    import torch
    from transformers import AutoModelForCausalLM

    from tests.training import tiny
    from trimtab.training import runtime

    (tmp_path / "one.jsonl").write_text('{"prompt": "1+1=", "completion": "2"}\n')
    probe = {"probe": "gradients", "steps": 1, "density": 0.02}
    trainer = {"per_device_train_batch_size": 1, "max_steps": 1}
    values = auto(base, auto=probe, trainer=trainer, data={"file": "one.jsonl"}, dtype="fp32")
    train(write(tmp_path, values))
    mask = Mask.load(tmp_path / "out" / "mask.safetensors")
    with runtime.quiet():
        model = AutoModelForCausalLM.from_pretrained(base[0], dtype=torch.float32)
    ids = torch.tensor([[*tiny.tokenizer()("1+1=2")["input_ids"], 1]])
    labels = ids.clone()
    labels[0, :4] = -100
    model(input_ids=ids, labels=labels).loss.backward()
    sizes = {name: p.grad.abs().numpy() for name, p in model.named_parameters()}
    least = min(sizes[name][mask.array(name)].min() for name in mask if mask.num_selected(name))
    most = max(sizes[name][~mask.array(name)].max() for name in mask)
    assert least > most * (1 - 1e-4)
    assert np.isclose(mask.density, 0.02, atol=1e-4)


def test_probe_can_be_stopped_and_starts_anew(base: Base, tmp_path: Path) -> None:
    probe = {"probe": "gradients", "steps": 2, "density": 0.05}
    run = write(tmp_path, auto(base, auto=probe))
    with pytest.raises(KeyboardInterrupt):
        train(run, stop=after(1))
    assert train(run)["steps"] == 6


def test_nothing_moves(base: Base, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="nothing moved in 4 steps"):
        train(write(tmp_path, auto(base, trainer={"learning_rate": 0.0})))


def test_a_run_too_short_for_its_exploration(base: Base, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"auto\.steps is 4 and trainer\.max_steps 4"):
        train(write(tmp_path, auto(base, trainer={"max_steps": 4})))
    epochs = {"max_steps": -1, "num_train_epochs": 1, "per_device_train_batch_size": 32}
    with pytest.raises(SettingsError, match=r"auto\.steps is 4, and the run has 2"):
        train(write(tmp_path, auto(base, trainer=epochs)))


def test_looks_lie_where_a_run_can_go_on(base: Base, tmp_path: Path) -> None:
    values = auto(base, "grpo", trainer={"num_iterations": 4})
    with pytest.raises(SettingsError, match=r"auto\.every is 2, and samples are used for 4 steps"):
        train(write(tmp_path, values))


def test_other_settings_do_not_go_on(base: Base, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(write(tmp_path, auto(base)), stop=after(1))
    other = auto(base, auto={"steps": 4, "every": 1, "settle": 0.0})
    with pytest.raises(OutputExistsError, match=r"mask\.every=2 \(now 1\)"):
        train(write(tmp_path, other))
