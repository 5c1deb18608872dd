"""Which arms the demo trains, its masks, and what training inside them leaves alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.training import tiny
from trimtab.errors import MaskError, OutputExistsError, SettingsError
from trimtab.masks.extract import extract_mask
from trimtab.masks.identity import identity
from trimtab.masks.mask import Mask
from trimtab.masks.selection.quotas import random_matched
from trimtab.training import arm, demo
from trimtab.training.arm import train_arm
from trimtab.training.demo import DemoRun, train_demo
from trimtab.training.demo_arms import demo_arms, demo_masks, mask_file
from trimtab.training.folders import WEIGHTS
from trimtab.training.recipe import Recipe

pytestmark = pytest.mark.train

MASKED = {
    "grpo-mask": "mask",
    "grpo-random": "mask-random",
    "grpo-matched": "mask-matched",
    "grpo-complement": "mask-complement",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> DemoRun:
    out = tmp_path_factory.mktemp("demo")
    return train_demo(out, controls=True, steps=3, make_base=tiny.make_base)


def test_arms_of_every_weight_come_first() -> None:
    names = [arm.name for arm in demo_arms(Recipe(seed=3), controls=True)]
    assert names == ["grpo", "sft", "grpo-seed-4", *MASKED]
    assert [arm.name for arm in demo_arms(Recipe())] == ["grpo", "sft", "grpo-mask"]


def test_other_seed_is_asked_what_it_was_not_trained_on() -> None:
    first, second = (
        arm.recipe
        for arm in demo_arms(Recipe(seed=2**32 - 1), controls=True)
        if not arm.mask
        if arm.algorithm == "grpo"
    )
    assert (first.seed, second.seed) == (2**32 - 1, 0)
    assert second.split() == first.split()


def test_controls_need_what_they_are_controls_of() -> None:
    with pytest.raises(SettingsError, match="without it"):
        demo_arms(Recipe(), ["sft"], controls=True)


def test_masks_are_what_grpo_changed_and_its_controls(finished: DemoRun) -> None:
    out = finished.base.parent
    changed = extract_mask(finished.base, finished.arms["grpo"].folder)
    mask, random, matched, complement = (
        Mask.load(mask_file(out, name)) for name in MASKED.values()
    )
    assert mask == changed
    assert random == changed.random_like(0)
    assert matched == random_matched(changed, finished.base, 0)
    assert matched != changed
    assert complement == changed.complement()
    assert [step["step"] for step in random.provenance["steps"]] == ["extract", "random"]
    for name, file in MASKED.items():
        assert finished.arms[name].mask == mask_file(out, file)
        assert finished.to_dict()["arms"][name]["mask"] == str(mask_file(out, file))
    assert finished.arms["grpo-seed-1"].mask is None


def test_nothing_outside_a_mask_moves(finished: DemoRun) -> None:
    for name in MASKED:
        own = finished.arms[name]
        assert own.mask is not None
        check = identity(finished.base, finished.arms["grpo"].folder, own.folder, own.mask)
        assert check.sub_stayed_outside
        # So few steps move what they moved before, and nothing of the complement.
        assert (check.total.inside.num_sub_moved > 0) == (name != "grpo-complement")


def test_first_step_in_the_mask_is_that_of_grpo(
    base: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Same samples, same gradient, same clipping: until weights differ, so does nothing else."""
    recipe = Recipe(steps=3)
    grpo = train_arm("grpo", recipe, *base, tmp_path / "grpo", tmp_path / "work")
    mask = extract_mask(base[0], tmp_path / "grpo")
    again = train_arm("grpo", recipe, *base, tmp_path / "again", tmp_path / "work-again", mask=mask)
    first, second = grpo["history"], again["history"]
    step = next(place for place, row in enumerate(first) if row["grad_norm"] > 0)
    assert second[step]["grad_norm"] == pytest.approx(first[step]["grad_norm"], rel=1e-5)
    assert second[: step + 1] == [
        {**row, "grad_norm": other["grad_norm"]}
        for row, other in zip(first[: step + 1], second, strict=False)
    ]


def test_record_states_mask_optimizer_and_precision(finished: DemoRun) -> None:
    for name in MASKED:
        own = finished.arms[name]
        assert own.mask is not None
        mask, record = Mask.load(own.mask), own.record
        assert record["settings"]["mask"] == record["optimizer"]["mask"] == mask.digest
        assert record["settings"]["optimizer"] == "SparseAdamW"
        assert record["settings"]["clip_by"] == "full"
        assert record["precision"] == finished.arms["grpo"].record["precision"]
        optimizer = record["optimizer"]
        assert optimizer["master"] == {"float32": "none"}
        assert optimizer["num_selected"] == mask.num_selected()
    optimizer = finished.arms["grpo-mask"].record["optimizer"]
    compact, every = 8 * optimizer["num_selected"], 8 * optimizer["num_elements"]
    assert compact <= optimizer["state_bytes"] < 1.1 * compact < every


def test_every_weight_costs_eight_bytes(finished: DemoRun) -> None:
    for name in ("grpo", "sft", "grpo-seed-1"):
        optimizer = finished.arms[name].record["optimizer"]
        assert optimizer["num_selected"] == optimizer["num_elements"]
        assert optimizer["state_bytes"] == 8 * optimizer["num_elements"]
    assert optimizer["num_elements"] == sum(p.numel() for p in tiny.model().parameters())


def test_controls_can_be_added_later_and_keep_what_is_there(
    finished: DemoRun, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished.base.parent, out)
    gone = ("grpo-random", "grpo-matched", "grpo-complement", "grpo-seed-1")
    for name in gone:
        shutil.rmtree(out / name)
    mask_file(out, "mask-random").unlink()
    kept = mask_file(out, "mask").read_bytes()
    first = train_demo(out, steps=3, make_base=tiny.make_base)
    assert list(first.arms) == ["grpo", "sft", "grpo-mask"]
    assert set(first.seconds) == {"base", "grpo", "sft", "masks", "grpo-mask"}
    run = train_demo(out, controls=True, steps=3, make_base=tiny.make_base)
    assert mask_file(out, "mask").read_bytes() == kept
    for name in gone:
        assert run.arms[name].record["weights"] == finished.arms[name].record["weights"]


def test_damaged_mask_is_written_anew(finished: DemoRun, tmp_path: Path) -> None:
    for name in ("base", "grpo"):
        (tmp_path / name).symlink_to(finished.base.parent / name)
    path = mask_file(tmp_path, "mask")
    path.write_bytes(b"no mask")
    masks = demo_masks(tmp_path, ["mask"], 0)
    assert Mask.load(path) == masks["mask"]


def test_no_change_is_no_mask(base: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    for name in ("base", "grpo"):
        (tmp_path / name).symlink_to(base[0])
    with pytest.raises(MaskError, match=r"bit for bit.*train longer"):
        demo_masks(tmp_path, ["mask"], 0)


def interrupt_at(step: int) -> arm.OnStep:
    def on_step(done: int, metrics: Mapping[str, Any]) -> None:
        if done == step:
            raise KeyboardInterrupt

    return on_step


def test_interrupted_arm_in_a_mask_ends_in_the_same_weights(
    finished: DemoRun, tmp_path: Path
) -> None:
    own = finished.arms["grpo-mask"]
    assert own.mask is not None
    mask = Mask.load(own.mask)
    where = (finished.base, finished.origin, tmp_path / "arm", tmp_path / "work")
    with pytest.raises(KeyboardInterrupt):
        train_arm(
            "grpo",
            Recipe(steps=3),
            *where,
            mask=mask,
            on_step=interrupt_at(3),
            checkpoint_every=1,
        )
    with pytest.raises(OutputExistsError, match="mask="):
        train_arm("grpo", Recipe(steps=3), *where, mask=mask.random_like(5))
    resumed = train_arm("grpo", Recipe(steps=3), *where, mask=mask, checkpoint_every=1)
    assert resumed["resumed_from_step"] == 2
    for same in ("weights", "tokens", "settings", "optimizer"):
        assert resumed[same] == own.record[same]
    assert (tmp_path / "arm" / WEIGHTS).read_bytes() == (own.folder / WEIGHTS).read_bytes()


def test_finished_arm_in_another_mask_is_refused(finished: DemoRun) -> None:
    own = finished.arms["grpo-mask"]
    assert own.mask is not None
    with pytest.raises(OutputExistsError, match="mask="):
        train_arm(
            "grpo",
            Recipe(steps=3),
            finished.base,
            finished.origin,
            own.folder,
            own.folder / "work",
            mask=Mask.load(own.mask).complement(),
        )


def test_second_seed_of_another_run_is_refused_before_any_work(
    finished: DemoRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "grpo-seed-1").mkdir()
    record = json.loads((finished.base.parent / "grpo-seed-1" / "run.json").read_text())
    record["settings"]["steps"] = 7
    shutil.copy2(finished.arms["grpo-seed-1"].folder / WEIGHTS, tmp_path / "grpo-seed-1" / WEIGHTS)
    (tmp_path / "grpo-seed-1" / "run.json").write_text(json.dumps(record))
    monkeypatch.setattr(demo, "ask", None)
    with pytest.raises(OutputExistsError, match=r"steps=7 \(now 3\)"):
        train_demo(tmp_path, steps=3, make_base=tiny.make_base)
