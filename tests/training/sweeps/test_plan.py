"""What a plan finds before anything trains: how cells differ, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training.sweeps.sweep_files import planned
from trimtab.errors import CheckpointNotFoundError, OutputExistsError, SettingsError
from trimtab.masks.makers.kinds import random_mask
from trimtab.masks.mask import Mask
from trimtab.progress import progress_bars
from trimtab.report.sweep import plan_document, sweep_document
from trimtab.report.terminal import render_text
from trimtab.training.runs.base_model import BaseModel, open_base
from trimtab.training.runs.execute import execute
from trimtab.training.runs.prepare import prepare
from trimtab.training.runs.settings import Settings
from trimtab.training.sweeps.execute import sweep_table
from trimtab.training.sweeps.plan import Plan

pytestmark = pytest.mark.train

Base = tuple[Path, dict[str, Any]]

TOP = 'run = "sft.toml"\noutput = "out"\n'


def found(plan: Plan, why: str) -> dict[str, tuple[tuple[Any, ...], tuple[str, ...]]]:
    """Setting -> its values, and the keys that account for it."""
    return {
        one.setting: (tuple(value for value, _ in one.values), one.of)
        for one in plan.differences
        if one.why == why
    }


def test_a_swept_key_alone(base: Base, tmp_path: Path) -> None:
    plan = planned(tmp_path, TOP + "[sweep]\nlearning_rate = [1e-4, 1e-3]", base[0])
    expected = {"trainer.learning_rate": ((1e-4, 1e-3), ("factors.learning_rate",))}
    assert found(plan, "asked") == expected
    assert len(plan.differences) == 1
    assert {name: item.why for name, item in plan.matched.items()} == {
        "learning_rate": "asked",
        "steps": "equal",
        "work_of_a_step": "equal",
    }


def test_consequences_have_their_cause(base: Base, tmp_path: Path) -> None:
    plan = planned(
        tmp_path,
        'run = "grpo.toml"\noutput = "out"\n[sweep]\nbatch_size = [4, 8]\n'
        'precision = ["fp32", "lo16"]\nseed = [0, 1]',
        base[0],
        grpo={},
    )
    assert found(plan, "asked") == {
        "seed": ((0, 1), ("seed",)),
        "dtype": (("fp32", "bf16"), ("factors.precision",)),
        "save_dtype": (("fp32", "stored"), ("factors.precision",)),
        "optimizer.master": ((None, "lo16"), ("factors.precision",)),
        "trainer.per_device_train_batch_size": ((4, 8), ("factors.batch_size",)),
    }
    consequences = found(plan, "consequence")
    masks, causes = consequences.pop("mask")
    assert (len(masks), causes) == (2, ("seed",))
    assert consequences == {
        "trainer.bf16": ((True, False), ("factors.precision",)),
        "trainer.seed": ((0, 1), ("seed",)),
        "trainer.generation_batch_size": ((4, 8), ("factors.batch_size",)),
    }
    assert found(plan, "run file") == {}
    work = plan.matched["work_of_a_step"]
    assert (work.why, work.of) == ("asked", ("factors.batch_size",))
    assert [value["sequences"] for value, _ in work.values] == [4, 8]


ARMS = """
output = "out"
[[arm]]
name = "a"
run = "sft.toml"
[[arm]]
name = "b"
run = "other.toml"
set = {learning_rate = 0.1}
"""


def test_what_nobody_asked_for_is_pointed_out(base: Base, tmp_path: Path) -> None:
    other = {"algorithm": "sft", "trainer": {"warmup_steps": 1, "max_steps": 5}}
    plan = planned(tmp_path, ARMS, base[0], sft={}, other=other)
    assert found(plan, "asked") == {
        "trainer.learning_rate": ((0.01, 0.1), ("factors.learning_rate",))
    }
    assert found(plan, "run file") == {
        "trainer.warmup_steps": ((0, 1), ()),
        "trainer.max_steps": ((2, 5), ()),
    }
    text = render_text(plan_document(plan.to_dict()))
    assert "Not asked for: the run files differ in it" in text
    assert "trainer.warmup_steps  0 (1 cell); 1.0 (1 cell)" in text
    assert "steps            DIFFERENT, and not asked for: 2; 5" in text
    assert "learning rate    as asked: 0.01; 0.1" in text


def test_an_arm_that_sets_a_key_hides_no_difference_of_the_others(
    base: Base, tmp_path: Path
) -> None:
    other = {"algorithm": "sft", "trainer": {"learning_rate": 0.02, "max_steps": 3}}
    third = '[[arm]]\nname = "c"\nrun = "other.toml"\nset = {clip = 0.5, learning_rate = 1.0}'
    text = ARMS.replace("set = {learning_rate = 0.1}", "set = {steps = 2}") + third
    plan = planned(tmp_path, text, base[0], sft={}, other=other)
    assert plan.matched["learning_rate"].why == plan.matched["steps"].why == "run file"
    assert set(found(plan, "run file")) == {"trainer.learning_rate", "trainer.max_steps"}
    assert set(found(plan, "asked")) == {"trainer.max_grad_norm"}


def test_a_consequence_hides_no_difference_of_run_files(base: Base, tmp_path: Path) -> None:
    other = {"algorithm": "sft", "data": {"file": "pairs.jsonl"}}
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "1+1=", "completion": "2"}\n')
    text = ARMS + "\n[sweep]\nseed = [0, 1]"
    plan = planned(tmp_path, text, base[0], sft={}, other=other)
    assert set(found(plan, "run file")) == {"data"}  # and that of the task follows from the seed
    assert found(plan, "consequence")["trainer.seed"] == ((0, 1), ("seed",))


def test_other_algorithms(base: Base, tmp_path: Path) -> None:
    plan = planned(
        tmp_path, ARMS, base[0], sft={}, other={"algorithm": "grpo", "trainer": {"max_steps": 2}}
    )
    unasked = found(plan, "run file")
    assert unasked["algorithm"] == (("sft", "grpo"), ())
    assert unasked["trainer.num_generations"] == ((4,), ())  # SFT has none
    text = render_text(plan_document(plan.to_dict()))
    assert "num_generations" not in text
    assert " settings that only some of the algorithms have" in text
    assert "steps            2 in every cell" in text


def test_arms_that_set_several_keys(base: Base, tmp_path: Path) -> None:
    text = TOP + '[[arm]]\nname = "a"\n[[arm]]\nname = "b"\nset = {seed = 1, weight_decay = 0.1}'
    plan = planned(tmp_path, text, base[0])
    assert set(found(plan, "asked")) == {"seed", "trainer.weight_decay"}
    both = ("seed", "factors.weight_decay")  # no pair of cells tells which
    assert found(plan, "consequence")["trainer.seed"] == ((0, 1), both)


def test_tokens_of_a_step_are_those_of_the_data(base: Base, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    plan = planned(tmp_path, TOP + "[sweep]\nbatch_size = [4]", base[0])
    tokenizer = AutoTokenizer.from_pretrained(base[0])
    file = Settings.read(tmp_path / "sft.toml")
    rows = prepare(file).data.rows
    lengths = [
        len(tokenizer(row["prompt"])["input_ids"]) + len(tokenizer(row["completion"])["input_ids"])
        for row in rows
    ]
    expected = {
        "sequences": 4,
        "tokens": round(4 * sum(lengths) / len(lengths)),
        "is_bound": False,
    }
    assert plan.cells[0].work == expected


@pytest.mark.parametrize(
    ("algorithm", "sequences", "is_bound"),
    [("dpo", 8, False), ("kto", 4, False), ("rft", 4, True), ("grpo", 4, True), ("ppo", 4, True)],
)
def test_sequences_of_a_step(
    base: Base, tmp_path: Path, algorithm: str, sequences: int, is_bound: bool
) -> None:
    text = f'run = "{algorithm}.toml"\noutput = "out"\n[sweep]\nseed = [0]'
    work = planned(tmp_path, text, base[0], **{algorithm: {}}).cells[0].work
    assert (work["sequences"], work["is_bound"]) == (sequences, is_bound)
    assert work["tokens"] > sequences


def test_a_model_is_read_once(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trimtab.training.runs import prepare as module

    opened: list[str] = []

    def counted(model: str, folder: Path) -> BaseModel:
        opened.append(model)
        return open_base(model, folder)

    monkeypatch.setattr(module, "open_base", counted)
    planned(tmp_path, TOP + "[sweep]\nseed = [0, 1, 2]\nclip = [false, 1.0]", base[0])
    assert len(opened) == 1


def test_a_problem_of_many_cells_is_told_once(base: Base, tmp_path: Path) -> None:
    text = TOP + "[sweep]\nsteps = [2, 4]\nbatch_size = [0]"
    with pytest.raises(SettingsError) as error:
        planned(tmp_path, text, base[0])
    printed = "cell steps=2,batch_size=0 and 1 more: "
    assert str(error.value).count("factors.batch_size is 0, expected at least 1") == 1
    assert str(error.value).startswith(f"{tmp_path / 'sweep.toml'}: {printed}")


def test_problems_of_all_cells(base: Base, tmp_path: Path) -> None:
    text = TOP + '[sweep]\nmask = ["none.safetensors", "random:2"]\nkl = [0.1]'
    with pytest.raises(SettingsError) as error:
        planned(tmp_path, text, base[0])
    for entry in ("sft has none, only", "expected random:DENSITY", "cell mask=random:2,"):
        assert entry in str(error.value)
    assert not (tmp_path / "out").exists()


def test_algorithms_that_are_none(base: Base, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as error:
        planned(tmp_path, TOP + '[sweep]\nalgorithm = [["sft"], 3, "gpro"]\nclip = [1.0]', base[0])
    assert str(error.value).count("algorithm is") == 3


def test_one_problem_keeps_its_class(base: Base, tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError):
        planned(tmp_path, TOP + '[sweep]\nmodel = ["none"]', base[0])


def test_a_finished_cell_of_other_settings_is_refused(base: Base, tmp_path: Path) -> None:
    text = TOP + "[sweep]\nseed = [0, 1]"
    first = planned(tmp_path, text, base[0]).cells[0].cell
    with progress_bars() as bars:
        execute(prepare(first.file()), bars)
    assert [one.is_finished for one in planned(tmp_path, text, base[0]).cells] == [True, False]
    with pytest.raises(OutputExistsError) as error:
        planned(tmp_path, text + "\n[set]\nclip = 0.5", base[0])
    assert "seed=0: " in str(error.value)
    assert "holds a finished run with trainer.max_grad_norm=1.0 (now 0.5)" in str(error.value)


def test_questions_need_something_to_judge_by(base: Base, tmp_path: Path) -> None:
    text = 'run = "grpo.toml"\noutput = "out"\n[evaluate]\nquestions = 3\n[sweep]\nseed = [0]'
    with pytest.raises(SettingsError, match="set file, to questions that are not in it"):
        planned(tmp_path, text, base[0], grpo={})


MASKS = (
    TOP + '[sweep]\nmask = ["a/m.safetensors", "b/m.safetensors", "c.safetensors", "random:0.1"]'
)


def mask_of(base: Base, seed: int) -> Mask:
    opened = open_base(str(base[0]), Path())
    return random_mask(opened.shapes, opened.tensors, density=0.1, seed=seed, origin={})


def test_masks_have_their_own_names(base: Base, tmp_path: Path) -> None:
    """The names that a reader knows; those of folders are as they were."""
    for number, path in enumerate(("a/m", "b/m", "c"), 1):
        file = tmp_path / f"{path}.safetensors"
        file.parent.mkdir(exist_ok=True)
        mask_of(base, number).save(file)
    plan = planned(tmp_path, MASKS, base[0])
    names = ["a/m", "b/m", "c", "random:0.1"]
    assert [one.cell.label for one in plan.cells] == [f"mask={name}" for name in names]
    assert list(plan.mask_names().values()) == names
    assert plan.cells[0].cell.name == "mask=a-m.safetensors-d081ce80"
    text = render_text(plan_document(plan.to_dict()), console_width=120)
    assert "\n  mask=a/m\n  mask=b/m\n  mask=c\n  mask=random:0.1\n" in text
    assert "\n  mask  a/m (1 cell); b/m (1 cell); c (1 cell); random:0.1 (1 cell)  [mask]\n" in text
    assert "safetensors" not in text
    table = sweep_table(plan, {}, {})
    assert [row["label"] for row in table["cells"]] == [f"mask={name}" for name in names]
    assert [row["mask_name"] for row in table["cells"]] == names
    assert [arm["label"] for arm in table["arms"]] == [f"mask={name}" for name in names]
    printed = render_text(sweep_document(table), console_width=120)
    assert all(f"mask={name} " in printed for name in names)


def test_the_same_mask_under_two_names(base: Base, tmp_path: Path) -> None:
    for name in ("one", "two"):
        mask_of(base, 1).save(tmp_path / f"{name}.safetensors")
    axis = '[sweep]\nmask = ["one.safetensors", "two.safetensors", "all"]'
    text = render_text(plan_document(planned(tmp_path, TOP + axis, base[0]).to_dict()))
    assert "mask  one = two (2 cells); all (1 cell)" in text


def test_masks_of_arms_are_named_by_the_arm_that_they_are_of(base: Base, tmp_path: Path) -> None:
    arms = '[[arm]]\nname = "full"\nset = {mask = "all"}\n'
    arms += '[[arm]]\nname = "own"\nmask = "own"\nof = "full"\n'
    assert planned(tmp_path, TOP + arms, base[0]).mask_names() == {
        "full": "all",
        "own": "own of full",
    }
