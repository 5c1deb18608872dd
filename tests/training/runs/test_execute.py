"""Runs of each algorithm on the tiny base: what moves, what is left behind, and going on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.test_outputs import room
from tests.training.runs.run_files import SAMPLES, after, content, train, write
from tests.training.runs.test_base_model import stored_as
from trimtab.errors import CheckpointError, OutputExistsError, SettingsError, WriteError
from trimtab.masks.mask import Mask
from trimtab.measure.tracked import read_tracked
from trimtab.outputs import lock
from trimtab.training.folders import WEIGHTS, read_json, write_json
from trimtab.training.runs.algorithms import ALGORITHMS

pytestmark = pytest.mark.train

Base = tuple[Path, dict[str, Any]]


def bits(folder: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file

    tensors = load_file(folder / WEIGHTS)
    return {name: tensor.view(torch.int16).numpy() for name, tensor in tensors.items()}


@pytest.fixture(scope="module", params=ALGORITHMS)
def finished(
    request: pytest.FixtureRequest, base: Base, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, dict[str, Any]]:
    """An uninterrupted run: algorithm, folder of the run file, result."""
    folder = tmp_path_factory.mktemp(request.param)
    run = write(folder, content(request.param, base[0]))
    return request.param, folder, train(run)


def test_only_the_mask_moves(finished: Any, base: Base) -> None:
    _, folder, result = finished
    model = folder / "out" / "model"
    mask = Mask.load(model / "trimtab_mask.safetensors")
    before, now = bits(base[0]), bits(model)
    moved = {name: before[name] != now[name] for name in before}
    assert before.keys() == now.keys() == set(mask)
    assert not any((moved[name] & ~mask.array(name)).any() for name in mask)
    num_moved = sum(int(one.sum()) for one in moved.values())
    assert num_moved > 0.9 * mask.num_selected()
    assert result["update"] == {
        "criterion": "bits",
        "num_elements": mask.num_elements(),
        "num_changed": num_moved,
        "num_changed_outside_mask": 0,
    }


def test_what_is_left_behind(finished: Any, base: Base) -> None:
    algorithm, folder, result = finished
    out = folder / "out"
    samples = {"samples.jsonl"} if algorithm == "rft" else set()
    files = {"model", "resolved.json", "result.json"} | samples
    assert {path.name for path in out.iterdir()} == files
    copied = {path.name for path in base[0].iterdir()} - {"origin.json"}
    ours = {"trimtab_mask.safetensors", "trimtab.json"}
    assert {p.name for p in (out / "model").iterdir()} == copied | ours
    assert (out / "model" / "config.json").read_bytes() == (base[0] / "config.json").read_bytes()
    assert read_json(out / "result.json") == json.loads(json.dumps(result))
    resolved = read_json(out / "resolved.json")
    assert resolved["settings"]["algorithm"] == algorithm
    assert resolved["optimizer"]["mask"] == resolved["mask"]["digest"]
    assert resolved["model"]["content_hash"] == resolved["settings"]["model"]


def test_result_states_precision_and_history(finished: Any) -> None:
    _, _, result = finished
    assert result["precision"] == {
        "base": "BF16",
        "weights": "bfloat16",
        "compute": "bfloat16",
        "optimizer_state": "float32",
        "saved": "BF16",
    }
    assert result["optimizer"]["master"] == {"bfloat16": "lo16"}
    assert (result["steps"], result["resumed_from_step"]) == (2, None)
    assert [log["step"] for log in result["history"]] == [1, 2]
    assert all(log["grad_norm"] > 0 for log in result["history"])


def test_a_stopped_run_ends_in_the_same_weights(finished: Any, base: Base, tmp_path: Path) -> None:
    algorithm, folder, _ = finished
    run = write(tmp_path, content(algorithm, base[0]))
    with pytest.raises(KeyboardInterrupt):
        train(run, stop=after(4 if algorithm == "rft" else 1))  # its samples come in three batches
    assert not (tmp_path / "out" / "result.json").exists()
    resumed = train(run)
    assert resumed["resumed_from_step"] == 1
    assert [log["step"] for log in resumed["history"]] == [1, 2]
    weights = [path / "out" / "model" / WEIGHTS for path in (folder, tmp_path)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize("algorithm", ["sft", "ppo"])
def test_a_tracker_follows_the_run(base: Base, tmp_path: Path, algorithm: str) -> None:
    values = content(algorithm, base[0], track=1)
    whole, halves = (write(tmp_path / name, values) for name in ("whole", "halves"))
    result = train(whole)
    with pytest.raises(KeyboardInterrupt):
        train(halves, stop=after(1))
    assert train(halves)["resumed_from_step"] == 1
    points, resumed = (
        read_tracked(run.parent / "out" / "updates.trimtab").points for run in (whole, halves)
    )
    assert points == resumed
    assert [point.step for point in points] == [1, 2]
    assert points[-1].total.changed == result["update"]["num_changed"]
    num_elements = result["update"]["num_elements"]
    shares = [log["trimtab/changed"] for log in result["history"]]
    assert shares == [point.total.changed / num_elements for point in points]


def test_a_tracker_sees_what_is_saved(base: Base, tmp_path: Path) -> None:
    values = content("sft", base[0], track=2, dtype="fp32", save_dtype="fp32", mask="none")
    update = train(write(tmp_path, values))["update"]
    (point,) = read_tracked(tmp_path / "out" / "updates.trimtab").points
    assert point.total.changed == update["num_changed"] > 0.9 * update["num_elements"]


def test_samples_for_several_steps_are_used_up_before_a_stop(base: Base, tmp_path: Path) -> None:
    trainer = {"num_iterations": 2, "max_steps": 4}
    values = content("grpo", base[0], trainer=trainer)
    whole, halves = (write(tmp_path / name, values) for name in ("whole", "halves"))
    train(whole)
    with pytest.raises(KeyboardInterrupt):
        train(halves, stop=after(1))
    assert train(halves)["resumed_from_step"] == 2
    weights = [run.parent / "out" / "model" / WEIGHTS for run in (whole, halves)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize("algorithm", ["grpo", "rloo", "ppo", "sft"])
def test_a_run_that_goes_on_in_its_second_epoch(base: Base, tmp_path: Path, algorithm: str) -> None:
    """TRL began the orders of the epochs anew: GRPO and RLOO saw the first order twice."""
    # One prompt a step of three; of SFT and PPO, two steps an epoch.
    trainer = {"max_steps": 5, "lr_scheduler_type": "constant", "per_device_train_batch_size": 4}
    rows = [{"prompt": f"{n}+1=", "completion": f"{n + 1}\n"} for n in range(1, 8)]
    if algorithm in ("grpo", "rloo"):
        rows = rows[:3]
    values = content(algorithm, base[0], data={"file": "rows.jsonl"}, trainer=trainer)
    whole, halves = (write(tmp_path / name, values) for name in ("whole", "halves"))
    for run in (whole, halves):
        (run.parent / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train(whole)
    with pytest.raises(KeyboardInterrupt):
        train(halves, stop=after(4))
    assert train(halves)["resumed_from_step"] == 4
    weights = [run.parent / "out" / "model" / WEIGHTS for run in (whole, halves)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_mask_of_a_file_gives_the_run_of_that_mask(
    finished: Any, base: Base, tmp_path: Path
) -> None:
    algorithm, folder, _ = finished
    shutil.copy2(folder / "out" / "model" / "trimtab_mask.safetensors", tmp_path / "m.safetensors")
    train(write(tmp_path, content(algorithm, base[0], mask="m.safetensors")))
    weights = [path / "out" / "model" / WEIGHTS for path in (folder, tmp_path)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_without_a_mask_everything_is_trained_by_torch(base: Base, tmp_path: Path) -> None:
    result = train(write(tmp_path, content("sft", base[0], mask="none")))
    num_elements = result["update"]["num_elements"]
    assert result["optimizer"] == {
        "optimizer": "adamw_torch_fused",
        "num_selected": num_elements,
        "num_elements": num_elements,
        "index_bytes": 0,
        "state_bytes": 4 * num_elements,  # two numbers in bf16
    }
    assert result["precision"]["optimizer_state"] == "bfloat16"  # torch keeps the weights' dtype
    assert result["update"]["num_changed"] > 0.9 * result["update"]["num_elements"]
    assert result["update"]["num_changed_outside_mask"] == 0
    assert not (tmp_path / "out" / "model" / "trimtab_mask.safetensors").exists()


def test_fp32_weights_are_saved_as_the_base_is_stored(base: Base, tmp_path: Path) -> None:
    values = content("sft", base[0], dtype="fp32", trainer={"bf16": True})
    result = train(write(tmp_path, values))
    precision = result["precision"]
    assert result["optimizer"]["master"] == {"float32": "none"}
    assert precision["weights"] == "float32"
    assert precision["compute"] == "bfloat16 autocast"
    assert precision["saved"] == "BF16"
    mask = Mask.load(tmp_path / "out" / "model" / "trimtab_mask.safetensors")
    before, now = bits(base[0]), bits(tmp_path / "out" / "model")
    assert all((before[n] == now[n])[~mask.array(n)].all() for n in mask)


def test_every_tensor_is_saved_in_its_own_dtype(base: Base, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    mixed = stored_as(base[0], tmp_path / "mixed", "bfloat16", "float32")
    result = train(write(tmp_path, content("sft", mixed)))
    dtypes = [
        {name: tensor.dtype for name, tensor in load_file(folder / WEIGHTS).items()}
        for folder in (mixed, tmp_path / "out" / "model")
    ]
    assert dtypes[0] == dtypes[1]
    assert result["update"]["num_changed_outside_mask"] == 0


def test_sgd(base: Base, tmp_path: Path) -> None:
    values = content("sft", base[0], optimizer={"name": "sgd"}, trainer={"learning_rate": 0.5})
    result = train(write(tmp_path, values))
    assert result["optimizer"]["optimizer"] == "SparseSGD"
    assert result["update"]["num_changed"] > 0


def test_checkpoints_that_were_asked_for_are_kept(base: Base, tmp_path: Path) -> None:
    train(write(tmp_path, content("sft", base[0], trainer={"save_steps": 1})))
    kept = sorted(path.name for path in (tmp_path / "out" / "checkpoints").glob("*-*"))
    assert kept == ["checkpoint-1", "checkpoint-2"]


def test_finished_run_is_not_trained_over(base: Base, tmp_path: Path) -> None:
    run = write(tmp_path, content("sft", base[0]))
    train(run)
    with pytest.raises(OutputExistsError, match="holds a finished run"):
        train(run)


def test_other_settings_do_not_go_on(base: Base, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(write(tmp_path, content("sft", base[0])), stop=after(1))
    other = content("sft", base[0], seed=1, trainer={"learning_rate": 2e-2})
    with pytest.raises(OutputExistsError) as error:
        train(write(tmp_path, other))
    assert "seed=0 (now 1)" in str(error.value)
    assert "trainer.learning_rate=0.01 (now 0.02)" in str(error.value)


def test_run_stopped_before_its_first_checkpoint_can_start_anew(base: Base, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(write(tmp_path, content("sft", base[0])), stop=_interrupt)
    assert train(write(tmp_path, content("sft", base[0], seed=1)))["resumed_from_step"] is None
    assert read_json(tmp_path / "out" / "resolved.json")["settings"]["seed"] == 1


def _interrupt() -> bool:
    raise KeyboardInterrupt


def test_model_left_by_a_run_that_ended_before_its_result(base: Base, tmp_path: Path) -> None:
    run = write(tmp_path, content("sft", base[0]))
    with pytest.raises(KeyboardInterrupt):
        train(run, stop=after(1))
    (tmp_path / "out" / "model").mkdir()
    (tmp_path / "out" / "model" / "half").touch()
    train(run)
    assert not (tmp_path / "out" / "model" / "half").exists()


def test_folders_of_others_are_not_touched(base: Base, tmp_path: Path) -> None:
    run = write(tmp_path, content("sft", base[0]))
    out = tmp_path / "out"
    out.write_text("precious")
    with pytest.raises(OutputExistsError, match="exists and holds no run"):
        train(run)
    out.unlink()
    out.mkdir()
    (out / "notes").touch()
    with pytest.raises(OutputExistsError, match="exists and holds no run"):
        train(run)
    (out / "notes").unlink()
    train(run)


@pytest.mark.parametrize("kept", [True, False])
def test_a_run_that_was_killed_before_its_result(base: Base, tmp_path: Path, kept: bool) -> None:
    """After the last step: it took one more, or could not go on where it was tracked."""
    trainer = {"max_steps": 3, "lr_scheduler_type": "constant", "save_steps": 1 if kept else 2}
    values = content("sft", base[0], track=1, trainer=trainer)
    whole, run = (write(tmp_path / name, values) for name in ("whole", "killed"))
    result, out = train(whole), tmp_path / "killed" / "out"

    def kill(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:  # the instant at which a kill would come
        patch.setattr("trimtab.training.runs.execute.save_weights", kill)
        with pytest.raises(KeyboardInterrupt):
            train(run)
    again = train(run)
    assert (again["steps"], again["resumed_from_step"]) == (3, 2)
    assert [log["step"] for log in again["history"]] == [1, 2, 3]
    assert again["update"] == result["update"]
    weights = [one.parent / "out" / "model" / WEIGHTS for one in (whole, run)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    points = [read_tracked(one.parent / "out" / "updates.trimtab").points for one in (whole, run)]
    assert points[0] == points[1]
    assert not (out / "updates.trimtab.base").exists()


def test_a_run_that_was_killed_as_it_began_can_be_begun_again(base: Base, tmp_path: Path) -> None:
    run = write(tmp_path, content("sft", base[0]))
    (tmp_path / "out" / "checkpoints").mkdir(parents=True)
    for left in (".lock", ".resolved.json.0123abcd.tmp", ".resolved.json.partial"):
        (tmp_path / "out" / left).touch()
    train(run)
    assert not (tmp_path / "out" / ".lock").exists()
    assert not (tmp_path / "out" / ".resolved.json.0123abcd.tmp").exists()


def test_two_processes_do_not_train_one_run(base: Base, tmp_path: Path) -> None:
    run = write(tmp_path, content("sft", base[0]))
    (tmp_path / "out").mkdir()
    with (
        lock(tmp_path / "out" / ".lock") as mine,
        pytest.raises(OutputExistsError, match="another process trains the run in"),
    ):
        assert mine
        train(run)
    train(run)


def test_a_full_disk_is_told_by_name_and_the_run_goes_on(base: Base, tmp_path: Path) -> None:
    """Whatever finds it out: our own files, safetensors, torch, JSON of transformers."""
    values = content("sft", base[0])
    train(write(tmp_path / "whole", values))
    whole = (tmp_path / "whole" / "out" / "model" / WEIGHTS).read_bytes()
    for num_bytes, written, steps in (
        (100, "resolved.json", {}),
        (30_000, "checkpoints", {"save_steps": 1}),
        (30_000, "model", {}),
    ):
        run = write(tmp_path / written, content("sft", base[0], trainer=steps))
        text = rf"out/{written} cannot be written: (file too large|no space left.*): make room"
        with room(num_bytes), pytest.raises(WriteError, match=text):
            train(run)
        assert train(run)["steps"] == 2
        assert (tmp_path / written / "out" / "model" / WEIGHTS).read_bytes() == whole


@pytest.mark.parametrize("resolved", ["{", "[]", "{}"])
def test_damaged_record(base: Base, tmp_path: Path, resolved: str) -> None:
    run = write(tmp_path, content("sft", base[0]))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "resolved.json").write_text(resolved)
    with pytest.raises(CheckpointError, match=r"delete .*out to train again"):
        train(run)


def test_settings_that_are_no_table(base: Base, tmp_path: Path) -> None:
    run = write(tmp_path, content("sft", base[0]))
    with pytest.raises(KeyboardInterrupt):
        train(run, stop=after(1))
    write_json(tmp_path / "out" / "resolved.json", {"settings": 3})
    with pytest.raises(CheckpointError, match="it has no settings"):
        train(run)


def test_a_reward_that_fails_ends_the_run_with_a_sentence(base: Base, tmp_path: Path) -> None:
    run = write(tmp_path, content("grpo", base[0]))
    (tmp_path / "reward.py").write_text("def share_of_ones(completions, **columns): return []\n")
    with pytest.raises(SettingsError, match="returned 0 rewards for 4 completions"):
        train(run)


def test_addition_for_every_algorithm(base: Base, tmp_path: Path) -> None:
    for algorithm in ALGORITHMS:
        values = content(
            algorithm,
            base[0],
            data={"task": "addition"},
            reward=None,
            samples={**SAMPLES, "threshold": 0.0} if algorithm == "rft" else None,
            trainer={"max_steps": 1},
            output=algorithm,
        )
        result = train(write(tmp_path, values))
        assert result["steps"] == 1
        assert np.isfinite(result["history"][0]["loss"])
