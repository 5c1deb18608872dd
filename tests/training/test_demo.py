"""The training half of the demo from base to answers, on a tiny model."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import pytest

from tests.training import tiny
from trimtab.checkpoints.checkpoint import opened
from trimtab.deltas.apply import apply_delta, verify_delta
from trimtab.deltas.make import make_delta
from trimtab.errors import CheckpointError, MaskError, OutputExistsError, SettingsError
from trimtab.masks.extract import extract_mask
from trimtab.masks.identity import identity
from trimtab.masks.mask import Mask
from trimtab.masks.selection.quotas import random_matched
from trimtab.processes import Interrupted
from trimtab.progress import progress_bars
from trimtab.results.evaluation import Evaluation
from trimtab.training import demo
from trimtab.training.addition import split_questions
from trimtab.training.demo import MASKED, DemoRun, run_files, train_demo
from trimtab.training.folders import WEIGHTS, write_json
from trimtab.training.runs.execute import execute
from trimtab.training.runs.prepare import prepare
from trimtab.training.runs.settings import Settings

pytestmark = pytest.mark.train

PROMPT_TOKENS = len("3+4=7\n2+9=11\n6+1=")
FULL = ("grpo", "sft", "grpo-seed-1")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> DemoRun:
    out = tmp_path_factory.mktemp("demo")
    return train_demo(out, controls=True, steps=3, make_base=tiny.make_base)


def test_run_carries_all_that_a_report_needs(finished: DemoRun) -> None:
    assert list(finished.runs) == [*FULL, *MASKED]
    questions = finished.evaluation.questions
    assert questions is not None
    assert [row.prompt for row in questions.rows] == [
        question.prompt for question in split_questions(0).heldout
    ]
    assert finished.majority == questions.baseline()
    assert finished.before.num_samples == 8
    assert finished.num_train_questions == 64
    for name, item in finished.runs.items():
        assert item.folder == finished.base.parent / name / "model"
        assert item.answers.num_questions == 32
    data = json.loads(json.dumps(finished.to_dict()))
    assert data["arms"]["grpo"]["record"]["settings"]["trainer"]["max_steps"] == 3
    assert data["before"]["greedy_accuracy"] == finished.before.greedy_accuracy


def test_what_is_left(finished: DemoRun) -> None:
    names = {path.name for path in finished.base.parent.iterdir()}
    runs = {*FULL, *MASKED}
    masks = {"mask", "mask-random", "mask-matched", "mask-complement"}
    files = {f"{name}.toml" for name in runs} | {f"{name}.safetensors" for name in masks}
    assert names == {"base", *runs, *files, "evaluation.json", "grpo.delta"}


def test_default_runs_are_the_shipped_files() -> None:
    for name, text in run_files().items():
        assert text == (Path(demo.__file__).parent / "demo_runs" / f"{name}.toml").read_text()


def test_runs_differ_in_nothing_but_what_they_are_named_for() -> None:
    runs = {
        name: tomllib.loads(text)
        for name, text in run_files(steps=7, seed=2**32 - 1, controls=True).items()
    }
    grpo, sft, other = runs.pop("grpo"), runs.pop("sft"), runs.pop("grpo-seed-0")
    assert other == grpo | {
        "output": "grpo-seed-0",
        "seed": 0,
        "data": {"task": "addition", "seed": 2**32 - 1},
    }
    assert list(runs) == list(MASKED)
    masks = ["mask", "mask-random", "mask-matched", "mask-complement"]
    for (name, run), mask in zip(runs.items(), masks, strict=True):
        assert run == grpo | {
            "output": name,
            "mask": f"{mask}.safetensors",
            "optimizer": {"master": "none", "clip_by": "full"},
        }
    of_grpo = ("num_generations", "max_completion_length", "beta")
    of_sft = ("dataloader_drop_last", "include_num_input_tokens_seen")
    for own, theirs in ((grpo, of_grpo), (sft, of_sft)):
        assert own["trainer"]["max_steps"] == 7
        for key in theirs:
            del own["trainer"][key]
    assert sft == grpo | {"algorithm": "sft", "output": "sft"}


def test_a_run_file_of_it_trains_alone(finished: DemoRun, tmp_path: Path) -> None:
    for name in ("grpo-mask.toml", "mask.safetensors"):
        shutil.copy2(finished.base.parent / name, tmp_path)
    (tmp_path / "base").symlink_to(finished.base)
    with progress_bars() as bars:
        execute(prepare(Settings.read(tmp_path / "grpo-mask.toml")), bars)
    weights = (tmp_path / "grpo-mask" / "model" / WEIGHTS).read_bytes()
    assert weights == (finished.runs["grpo-mask"].folder / WEIGHTS).read_bytes()


def test_second_call_does_no_work(finished: DemoRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "evaluate", None)
    monkeypatch.setattr(demo, "execute", None)
    monkeypatch.setattr(demo, "make_delta", None)
    out = finished.base.parent
    again = train_demo(out, controls=True, steps=3, make_base=tiny.make_base)
    assert again.to_dict() == finished.to_dict()


def test_other_settings_are_refused_before_any_work(
    finished: DemoRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "execute", None)
    other = {r"trainer.max_steps=3 \(now 4\)": (4, 0), r"seed=0 \(now 1\)": (3, 1)}
    for message, (steps, seed) in other.items():
        with pytest.raises(OutputExistsError, match=message):
            train_demo(finished.base.parent, steps=steps, seed=seed, make_base=tiny.make_base)
    assert tomllib.loads((finished.base.parent / "grpo.toml").read_text())["seed"] == 0


def test_a_control_of_another_demo_is_refused_before_any_work(
    finished: DemoRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished.runs["grpo-seed-1"].folder.parent, tmp_path / "grpo-seed-1")
    monkeypatch.setattr(demo, "execute", None)
    with pytest.raises(OutputExistsError, match=r"trainer.max_steps=3 \(now 4\)"):
        train_demo(tmp_path, steps=4, make_base=tiny.make_base)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"steps": 0}, "steps is 0"), ({"seed": -1}, "seed is -1"), ({"seed": 2**32}, "seed is 429")],
)
def test_out_of_range(tmp_path: Path, settings: dict[str, int], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        train_demo(tmp_path / "out", make_base=tiny.make_base, **settings)  # type: ignore[arg-type]


def test_tokens_are_counted_exactly(finished: DemoRun) -> None:
    gold = [len(question.gold) for question in split_questions(0).train]
    for name, item in finished.runs.items():
        tokens = item.tokens
        assert tokens["num_sequences"] == 96
        assert tokens["num_prompt_tokens_each"] == PROMPT_TOKENS
        assert tokens["num_forward"] == tokens["num_loss"] + 96 * PROMPT_TOKENS
        if name == "sft":  # every question once an epoch, and half of them again
            assert sum(gold) < tokens["num_loss"] < 2 * sum(gold)
        else:
            means = [row["completions/mean_length"] for row in item.result["history"]]
            assert tokens["num_loss"] == round(32 * sum(means))


def test_sft_learns_the_answers_and_no_end_token(finished: DemoRun) -> None:
    """Two steps are one epoch: all answers, each with the end of its line."""
    run, base = finished.runs["sft"].run, tiny.tokenizer()
    rows = run.algorithm.dataset(run.rows.rows, base, 0, ends_with_line=run.rows.ends_with_line)
    for row, question in zip(rows, split_questions(0).train, strict=True):
        assert base.decode(row["input_ids"]) == question.prompt + question.gold
        learned = [token for token in row["labels"] if token != -100]
        assert base.decode(learned) == question.gold


def test_record_states_precision_optimizer_and_mask(finished: DemoRun) -> None:
    full = finished.runs["grpo"].result
    assert full["precision"] == {
        "base": "BF16",
        "weights": "float32",
        "compute": "bfloat16 autocast",
        "optimizer_state": "float32",
        "saved": "BF16",
    }
    for name, item in finished.runs.items():
        optimizer = item.result["optimizer"]
        assert item.result["precision"] == full["precision"]
        assert item.result["device"]["type"] == "cpu"
        assert [row["step"] for row in item.result["history"]] == [1, 2, 3]
        if name in FULL:
            assert optimizer["num_selected"] == optimizer["num_elements"]
            assert optimizer["state_bytes"] == 8 * optimizer["num_elements"]
            continue
        assert item.mask is not None
        mask = Mask.load(item.mask)
        assert item.run.settings()["mask"] == optimizer["mask"] == mask.digest
        assert item.run.settings()["optimizer"]["clip_by"] == "full"
        assert optimizer["master"] == {"float32": "none"}
        assert optimizer["num_selected"] == mask.num_selected()
    compact = 8 * (optimizer := finished.runs["grpo-mask"].result["optimizer"])["num_selected"]
    assert compact <= optimizer["state_bytes"] < 1.1 * compact < 8 * optimizer["num_elements"]


def test_masks_are_what_grpo_changed_and_its_controls(finished: DemoRun) -> None:
    changed = extract_mask(finished.base, finished.runs["grpo"].folder)
    files = [finished.runs[name].mask for name in MASKED]
    mask, random, matched, complement = (Mask.load(path) for path in files if path is not None)
    assert mask == changed
    assert random == changed.random_like(0)
    assert matched == random_matched(changed, finished.base, 0)
    assert matched != changed
    assert complement == changed.complement()
    assert [step["step"] for step in random.provenance["steps"]] == ["extract", "random"]


def test_nothing_outside_a_mask_moves(finished: DemoRun) -> None:
    for name in MASKED:
        own = finished.runs[name]
        assert own.mask is not None
        check = identity(finished.base, finished.runs["grpo"].folder, own.folder, own.mask)
        assert check.sub_stayed_outside
        # So few steps move what they moved before, and nothing of the complement.
        assert (check.total.inside.num_sub_moved > 0) == (name != "grpo-complement")


def test_first_step_in_the_mask_is_that_of_grpo(finished: DemoRun) -> None:
    """Same samples, same gradient, same clipping: until weights differ, so does nothing else."""
    first, second = (finished.runs[name].result["history"] for name in ("grpo", "grpo-mask"))
    step = next(place for place, row in enumerate(first) if row["grad_norm"] > 0)
    assert second[step]["grad_norm"] == pytest.approx(first[step]["grad_norm"], rel=1e-5)
    for key in ("loss", "reward", "completions/mean_length"):
        assert [row[key] for row in second[: step + 1]] == [row[key] for row in first[: step + 1]]


def test_controls_can_be_added_later_and_keep_what_is_there(
    finished: DemoRun, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished.base.parent, out)
    gone = ("grpo-random", "grpo-seed-1")
    for name in gone:
        shutil.rmtree(out / name)
    (out / "mask-random.safetensors").unlink()
    kept = (out / "mask.safetensors").read_bytes()
    first = train_demo(out, steps=3, make_base=tiny.make_base)
    assert list(first.runs) == ["grpo", "sft", "grpo-mask"]
    known = Evaluation.from_dict(json.loads((out / "evaluation.json").read_text()))
    assert len(known.models) == 4
    run = train_demo(out, controls=True, steps=3, make_base=tiny.make_base)
    assert (out / "mask.safetensors").read_bytes() == kept
    for name in gone:
        weights = (run.runs[name].folder / WEIGHTS).read_bytes()
        assert weights == (finished.runs[name].folder / WEIGHTS).read_bytes()


def test_damaged_mask_is_written_again(finished: DemoRun, tmp_path: Path) -> None:
    shutil.copytree(finished.base.parent, tmp_path / "out")
    path = tmp_path / "out" / "mask.safetensors"
    whole = Mask.load(path)
    path.write_bytes(b"no mask")
    train_demo(tmp_path / "out", steps=3, make_base=tiny.make_base)
    assert Mask.load(path) == whole


def num_changed(base: Path, tuned: Path) -> int:
    """Elements that differ."""
    with opened(base, tuned) as (before, after):
        tensors = before.tensors.items()
        return sum(int((t.read() != after.tensors[name].read()).sum()) for name, t in tensors)


def test_the_delta_is_the_checkpoint_and_is_made_again_if_it_is_not(
    finished: DemoRun, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished.base.parent, out)
    path = out / "grpo.delta"
    assert finished.delta["num_bytes"] == path.stat().st_size < finished.delta["num_bytes_whole"]
    others = finished.delta["num_bytes_of_others"]
    changed = num_changed(out / "base", out / "grpo" / "model")
    assert others["indices and values"] > 6 * changed  # and a header
    assert others["slime, XOR"] > finished.delta["num_bytes"]
    write_json(out / "demo.json", {"delta": {**finished.delta, "num_bytes_of_others": {"x": 1}}})
    again = train_demo(out, steps=3, make_base=tiny.make_base)
    assert again.delta["num_bytes_of_others"] == {"x": 1}  # was measured before
    whole = path.read_bytes()
    make_delta(out / "base", out / "sft" / "model", path, force=True)  # of another run
    train_demo(out, steps=3, make_base=tiny.make_base)
    apply_delta(out / "base", path, tmp_path / "again")
    for file in finished.runs["grpo"].folder.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
    path.write_bytes(whole[:-1])
    train_demo(out, steps=3, make_base=tiny.make_base)
    verify_delta(out / "base", path)


def test_no_change_is_no_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So few questions are right that nothing is learned, and nothing is rewarded."""
    unrewarded = {
        name: text.replace("learning_rate = 1e-5", "learning_rate = 0.0")
        for name, text in run_files(1).items()
    }
    monkeypatch.setattr(demo, "run_files", lambda *_, **__: unrewarded)
    with pytest.raises(MaskError, match=r"bit for bit.*train longer"):
        train_demo(tmp_path, steps=1, make_base=tiny.make_base)


def test_interrupted_demo_ends_in_the_same_weights(
    finished: DemoRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """And nothing is printed, because stderr is no terminal."""
    asked = iter([False] * 4 + [True] * 3)  # before GRPO, twice in it, and before SFT
    with pytest.raises(Interrupted, match="the same command resumes from step 1"):
        train_demo(tmp_path, steps=3, stop=lambda: next(asked), make_base=tiny.make_base)
    kept = (tmp_path / "grpo" / "result.json").read_bytes()
    run = train_demo(tmp_path, steps=3, make_base=tiny.make_base)
    assert (tmp_path / "grpo" / "result.json").read_bytes() == kept
    assert run.runs["sft"].result["resumed_from_step"] == 1
    assert run.runs["sft"].tokens == finished.runs["sft"].tokens
    for name, item in run.runs.items():
        weights = (item.folder / WEIGHTS).read_bytes()
        assert weights == (finished.runs[name].folder / WEIGHTS).read_bytes()
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_damaged_base_is_refused(tmp_path: Path) -> None:
    tiny.make_base(tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="has 0 bytes"):
        train_demo(tmp_path, steps=1, make_base=tiny.make_base)
