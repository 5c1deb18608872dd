"""Tracked runs of a tiny model against copies of all its weights, and resumed runs."""

from __future__ import annotations

from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.train

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from tests.training import tiny_trainers  # noqa: E402
from tests.training.tiny_trainers import Base, build, model, start, train  # noqa: E402
from tests.training.tracker.watching import Watcher  # noqa: E402
from trimtab.errors import (  # noqa: E402
    CheckpointError,
    OptimizerError,
    OutputExistsError,
    ResultFormatError,
    SettingsError,
)
from trimtab.measure.tracked import read_steps, read_tracked  # noqa: E402
from trimtab.measure.tracked_file import KindFigures, StepFigures  # noqa: E402
from trimtab.training.tracker.callback import UpdateTracker  # noqa: E402


def dense_gradient(optimizer: Any, name: str, parameter: Tensor) -> Tensor | None:
    return parameter.grad


def exp_avg(optimizer: Any, name: str, parameter: Tensor) -> Tensor:
    return optimizer.state[parameter]["exp_avg"]


def counts_only(figures: tuple[StepFigures, ...]) -> list[StepFigures]:
    def without(one: KindFigures) -> KindFigures:
        return one._replace(step_squares=0.0, update_squares=0.0)

    return [
        StepFigures(step, {kind: without(one) for kind, one in by_kind.items()})
        for step, by_kind in figures
    ]


def track(trainer: Any, path: Path, watcher: Watcher, **settings: Any) -> None:
    UpdateTracker(path, **settings).attach(trainer)
    trainer.add_callback(watcher)
    train(trainer)


def assert_found(path: Path, watcher: Watcher, every: int = 1) -> None:
    counts, figures = watcher.expected(every)
    trajectory = read_tracked(path)
    assert [dict(point.by_kind) for point in trajectory.points] == counts
    assert counts_only(read_steps(path)) == figures
    assert trajectory.final.total.changed > 0


@pytest.mark.parametrize(
    ("dtype", "stored"), [("float32", torch.bfloat16), ("bfloat16", torch.bfloat16)]
)
def test_against_copies(base: Base, tmp_path: Path, dtype: str, stored: torch.dtype) -> None:
    trainer = build(
        "plain", model(base[0], dtype), base[0], tmp_path, max_steps=6, learning_rate=1e-4
    )
    watcher = Watcher(stored, dense_gradient, exp_avg)
    track(trainer, tmp_path / "u", watcher)
    assert_found(tmp_path / "u", watcher)
    last = read_tracked(tmp_path / "u").points[-2].total
    assert last.returned > 0  # else nothing of cancellation is tested
    assert last.in_final < last.changed
    for (step, update), item in zip(watcher.norms(), read_steps(tmp_path / "u"), strict=True):
        assert item.total.step_norm == pytest.approx(step, rel=1e-5)
        assert item.total.update_norm == pytest.approx(update, rel=1e-5)


def test_fp32_can_be_asked_for(base: Base, tmp_path: Path) -> None:
    trainer = build("plain", model(base[0], "float32"), base[0], tmp_path, learning_rate=1e-6)
    watcher = Watcher(torch.float32, dense_gradient, exp_avg)
    track(trainer, tmp_path / "u", watcher, stored_dtype="float32")
    assert_found(tmp_path / "u", watcher)
    assert read_tracked(tmp_path / "u").base.dtypes == {"F32": 16_000}


def test_a_base_that_bf16_does_not_hold_is_compared_as_it_is(base: Base, tmp_path: Path) -> None:
    net = model(base[0], "float32")
    with torch.no_grad():
        net.model.norm.weight[3] = 1 / 3
    trainer = build("plain", net, base[0], tmp_path, learning_rate=1e-6, max_steps=1)
    UpdateTracker(tmp_path / "u").attach(trainer)
    train(trainer)
    assert read_tracked(tmp_path / "u").base.dtypes == {"F32": 16_000}


def test_weight_decay_moves_what_the_mean_does_not(base: Base, tmp_path: Path) -> None:
    net = model(base[0], "float32")
    with torch.no_grad():
        net.model.embed_tokens.weight[:, :5] = 0.0  # neither decay nor, in rows 0, a gradient
    trainer = build("plain", net, base[0], tmp_path, learning_rate=1e-4, weight_decay=0.1)
    before: dict[str, Tensor] = {}

    def moved(optimizer: Any, name: str, parameter: Tensor) -> Tensor:
        decayed = name not in plain
        last = before.get(name, start_weights[name])
        before[name] = parameter.detach().bfloat16()
        mean = exp_avg(optimizer, name, parameter)
        return (mean != 0) | (last != 0) if decayed else mean

    start_weights = {n: p.detach().bfloat16().clone() for n, p in net.named_parameters()}
    plain = {n for n, _ in net.named_parameters()} - set(trainer.get_decay_parameter_names(net))
    watcher = Watcher(torch.bfloat16, dense_gradient, moved)
    track(trainer, tmp_path / "u", watcher)
    assert_found(tmp_path / "u", watcher)


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch_fused"])
@pytest.mark.parametrize("density", [0.2, 0.95])
@pytest.mark.parametrize("clip_by", ["masked", "full"])
def test_masked_training(
    base: Base, tmp_path: Path, optim: str, density: float, clip_by: str
) -> None:
    net = model(base[0], "bfloat16")  # masters in 16 more bits
    selected = tiny_trainers.arrays(net, density)
    trainer, masked = start(
        "plain", net, base, tmp_path, selected, optim=optim, learning_rate=3e-3, clip_by=clip_by
    )
    collected: dict[str, Tensor] = {}

    def gradient(optimizer: Any, name: str, parameter: Tensor) -> Tensor | None:
        collected.pop(name, None)
        elements = masked.optimizer.elements.get(name)
        if elements is None:
            return parameter.grad
        if elements.gradient is not None:
            collected[name] = elements.gradient.clone()
            return collected[name]
        assert parameter.grad is not None
        collected[name] = parameter.grad.flatten()[torch.from_numpy(np.flatnonzero(selected[name]))]
        return parameter.grad

    def moment(optimizer: Any, name: str, parameter: Tensor) -> Tensor | None:
        if name not in collected:
            return None
        dense = torch.zeros(parameter.shape)
        mean = masked.optimizer.state[parameter].get("exp_avg")
        values = collected[name] if mean is None else mean
        dense[torch.from_numpy(selected[name])] = values.float()
        return dense

    watcher = Watcher(torch.bfloat16, gradient, moment)
    track(trainer, tmp_path / "u", watcher)
    assert_found(tmp_path / "u", watcher)
    total = read_steps(tmp_path / "u")[-1].total
    assert total.asked is not None
    assert 0 < total.asked <= masked.mask.num_selected()
    assert total.absorbed is not None
    assert total.absorbed > 0


def test_a_step_that_is_skipped_moves_nothing(base: Base, tmp_path: Path) -> None:
    net = model(base[0], "bfloat16")
    trainer, _ = start("plain", net, base, tmp_path, nonfinite="skip", max_steps=4)
    spoil = [False, False, True, False]
    net.model.norm.weight.register_hook(lambda gradient: gradient * (nan if spoil.pop(0) else 1))
    UpdateTracker(tmp_path / "u").attach(trainer)
    train(trainer)
    totals = [step.total for step in read_steps(tmp_path / "u")]
    assert totals[2][:1] + totals[2][3:5] == (0, 0, 0)
    assert totals[2].gradient_nonzero  # they were there, and not used
    assert all(totals[net].stepped and totals[net].asked for net in (0, 1, 3))


def test_a_frozen_parameter_stands_still(base: Base, tmp_path: Path) -> None:
    net = model(base[0], "float32")
    net.model.embed_tokens.weight.requires_grad_(False)
    trainer = build("plain", net, base[0], tmp_path, learning_rate=1e-4)
    watcher = Watcher(
        torch.bfloat16,
        dense_gradient,
        lambda optimizer, name, p: exp_avg(optimizer, name, p) if p.requires_grad else None,
    )
    track(trainer, tmp_path / "u", watcher)
    assert_found(tmp_path / "u", watcher)
    embed = read_steps(tmp_path / "u")[-1].by_kind["embed"]
    assert embed == KindFigures(0, None, None, 0, 0)


def test_a_cadence(base: Base, tmp_path: Path) -> None:
    trainer = build("plain", model(base[0]), base[0], tmp_path, max_steps=5, learning_rate=1e-3)
    watcher = Watcher(torch.bfloat16, dense_gradient, exp_avg)
    track(trainer, tmp_path / "u", watcher, every=2)
    assert_found(tmp_path / "u", watcher, every=2)
    trajectory = read_tracked(tmp_path / "u")
    assert [point.step for point in trajectory.points] == [2, 4, 5]
    assert trajectory.every is None


def test_gradient_accumulation_is_one_step(base: Base, tmp_path: Path) -> None:
    trainer = build(
        "plain", model(base[0]), base[0], tmp_path, gradient_accumulation_steps=2, max_steps=2
    )
    watcher = Watcher(torch.bfloat16, dense_gradient, exp_avg)
    track(trainer, tmp_path / "u", watcher)
    assert_found(tmp_path / "u", watcher)
    assert read_tracked(tmp_path / "u").every == 1


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_in_trl(base: Base, tmp_path: Path, kind: str) -> None:
    trainer = build(kind, model(base[0], "float32"), base[0], tmp_path, learning_rate=1e-4)
    watcher = Watcher(torch.bfloat16, dense_gradient, exp_avg)
    track(trainer, tmp_path / "u", watcher)
    assert_found(tmp_path / "u", watcher)


# Logs.


def test_reports_and_history_have_the_figures(base: Base, tmp_path: Path) -> None:
    from transformers import TrainerCallback

    reported: list[dict[str, float]] = []

    class Reporter(TrainerCallback):  # type: ignore[misc]
        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            reported.append(dict(logs))

    trainer = build("plain", model(base[0]), base[0], tmp_path)
    trainer.add_callback(Reporter())
    UpdateTracker(tmp_path / "u", log_kinds=True).attach(trainer)
    train(trainer)
    points = read_tracked(tmp_path / "u").points
    figures = read_steps(tmp_path / "u")
    for logs in (reported[:-1], trainer.state.log_history[:-1]):
        assert len(logs) == len(points)
        for found, point, item in zip(logs, points, figures, strict=True):
            counts = point.total
            assert found["trimtab/changed"] == counts.changed / counts.num_elements
            assert found["trimtab/returned"] == counts.returned / counts.num_elements
            assert found["trimtab/absorbed"] == item.total.absorbed_share
            assert found["trimtab/update_norm"] == pytest.approx(item.total.update_norm)
            of_kind = point.by_kind["q_proj"]
            assert found["trimtab/ever/q_proj"] == of_kind.ever / of_kind.num_elements
    assert not any(key.startswith("trimtab") for key in reported[-1])


def test_added_as_any_callback(base: Base, tmp_path: Path) -> None:
    trainer = build("plain", model(base[0]), base[0], tmp_path)
    trainer.add_callback(UpdateTracker(tmp_path / "u"))
    train(trainer)
    assert len(read_tracked(tmp_path / "u").points) == 3
    assert "trimtab/changed" in trainer.state.log_history[0]


# Resumed runs.


def run(base: Base, out: Path, resume: int | None = None, **settings: Any) -> Path:
    """Train 6 steps with a checkpoint after each second one, tracked to a file beside."""
    options = {k: settings.pop(k) for k in ("every", "stored_dtype", "force") if k in settings}
    arguments = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-3}
    net = model(base[0], settings.pop("dtype", "float32"))
    trainer = build("plain", net, base[0], out / "run", **{**arguments, **settings})
    UpdateTracker(out / "u", **options).attach(trainer)
    train(trainer, None if resume is None else out / "run" / f"checkpoint-{resume}")
    return out / "u"


def without_header(path: Path) -> bytes:
    content = path.read_bytes()
    return content[24 + int.from_bytes(content[16:24], "little") :]


@pytest.fixture(scope="module")
def whole(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(base, tmp_path_factory.mktemp("whole"))


class Stop(Exception):
    pass


def stop_after(trainer: Any, step: int) -> None:
    from transformers import TrainerCallback

    class Stopper(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step == step:
                raise Stop

    trainer.add_callback(Stopper())


def interrupted(base: Base, out: Path, step: int = 5, **settings: Any) -> None:
    """Like `run`, but an exception ends it after a step: a checkpoint was saved after step 4."""
    arguments = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-3}
    trainer = build("plain", model(base[0], "float32"), base[0], out / "run", **arguments)
    UpdateTracker(out / "u", **settings).attach(trainer)
    stop_after(trainer, step)
    with pytest.raises(Stop):
        train(trainer)


@pytest.mark.parametrize("resume", [2, 4])
def test_resumed_as_if_it_had_not_stopped(
    base: Base, whole: Path, tmp_path: Path, resume: int
) -> None:
    interrupted(base, tmp_path)
    assert [point.step for point in read_tracked(tmp_path / "u").points] == [1, 2, 3, 4, 5]
    run(base, tmp_path, resume)
    assert read_tracked(tmp_path / "u").points == read_tracked(whole).points
    assert read_steps(tmp_path / "u") == read_steps(whole)
    assert without_header(tmp_path / "u")[8:] == without_header(whole)[8:]
    assert not (tmp_path / "u.base").exists()


def test_resumed_from_a_file_that_was_cut_off(base: Base, whole: Path, tmp_path: Path) -> None:
    interrupted(base, tmp_path)
    content = (tmp_path / "u").read_bytes()
    (tmp_path / "u").write_bytes(content[:-5])
    assert [point.step for point in read_tracked(tmp_path / "u").points] == [1, 2, 3, 4]
    run(base, tmp_path, 4)
    assert read_steps(tmp_path / "u") == read_steps(whole)


def test_a_checkpoint_between_two_points_has_one(base: Base, tmp_path: Path) -> None:
    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    expected = run(base, tmp_path / "whole", every=3)
    assert [one.step for one in read_steps(expected)] == [2, 3, 4, 6]
    interrupted(base, tmp_path / "parts", every=3)
    run(base, tmp_path / "parts", 4, every=3)
    assert read_steps(tmp_path / "parts" / "u") == read_steps(expected)


def test_what_cannot_be_resumed(base: Base, tmp_path: Path) -> None:
    interrupted(base, tmp_path)
    kept = (tmp_path / "u").read_bytes()
    with pytest.raises(SettingsError, match=r"every=1 \(now 2\), stored_dtype='BF16' \(now 'F32'"):
        run(base, tmp_path, 4, every=2, stored_dtype="float32")
    stranger = model(base[0], "float32")
    saved = tmp_path / "run" / "checkpoint-4"
    with torch.no_grad():
        stranger.model.norm.weight += 1.0
    stranger.save_pretrained(saved)
    with pytest.raises(CheckpointError, match=r"not those of step 4 in "):
        run(base, tmp_path, 4)
    content = (tmp_path / "u.base").read_bytes()
    (tmp_path / "u.base").write_bytes(content[:-1] + b"\x07")
    with pytest.raises(CheckpointError, match=r"u\.base: not the base of"):
        run(base, tmp_path, 4)
    (tmp_path / "u.base").unlink()
    with pytest.raises(CheckpointError, match=r"u\.base: no such file"):
        run(base, tmp_path, 4)
    assert (tmp_path / "u").read_bytes() == kept
    (tmp_path / "u").unlink()
    with pytest.raises(ResultFormatError, match="u: no such file"):
        run(base, tmp_path, 4)


def test_a_point_that_is_missing(base: Base, tmp_path: Path) -> None:
    interrupted(base, tmp_path, step=3)
    (tmp_path / "run" / "checkpoint-2").rename(tmp_path / "run" / "checkpoint-5")
    state = tmp_path / "run" / "checkpoint-5" / "trainer_state.json"
    state.write_text(state.read_text().replace('"global_step": 2', '"global_step": 5'))
    with pytest.raises(ResultFormatError, match="has no point at step 5"):
        run(base, tmp_path, 5)


# Refusals.


def test_nothing_is_replaced_unless_asked(base: Base, tmp_path: Path) -> None:
    (tmp_path / "u").write_text("mine")
    with pytest.raises(OutputExistsError, match="exists already"):
        run(base, tmp_path)
    assert (tmp_path / "u").read_text() == "mine"
    run(base, tmp_path, force=True)
    assert len(read_tracked(tmp_path / "u").points) == 6


def test_settings_out_of_range(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="every is 0, expected a number"):
        UpdateTracker(tmp_path / "u", every=0)
    with pytest.raises(SettingsError, match="stored_dtype is one of float32, bfloat16, float16"):
        UpdateTracker(tmp_path / "u", stored_dtype="int8")


def test_weights_that_cannot_be_tracked(base: Base, tmp_path: Path) -> None:
    net = model(base[0])
    net.model.norm.weight = torch.nn.Parameter(
        torch.ones(32, dtype=torch.float64), requires_grad=False
    )
    trainer = build("plain", net, base[0], tmp_path)
    UpdateTracker(tmp_path / "u").attach(trainer)
    with pytest.raises(OptimizerError, match=r"model\.norm\.weight is float64"):
        train(trainer)
    assert not (tmp_path / "u").exists()


def test_its_repr_is_short() -> None:
    tracker = UpdateTracker("u.trimtab", every=2)
    assert repr(tracker) == "UpdateTracker('u.trimtab', every=2)"
