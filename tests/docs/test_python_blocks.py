"""Every Python block that the documentation shows runs, and so do scripts that are shown as a diff.

The blocks of a page run one after the other in one namespace, which holds what the text says is
there (`NAMES`); a page that is new here fails until somebody says what that is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from string import printable
from typing import Any

import pytest

from tests.docs import distributed_worker, world
from tests.docs.pages import PAGES, blocks
from tests.training import tiny, tiny_trainers
from tests.training.workers import run_workers
from trimtab.example import write_example
from trimtab.masks.extract import extract_mask
from trimtab.masks.mask import Mask
from trimtab.training import runtime, train_only

pytestmark = pytest.mark.train

Names = dict[str, Any]
"""A namespace."""

ROWS = [{"prompt": f"{a}+1=", "answer": str(a + 1)} for a in range(8)]


def quick(**more: Any) -> Names:
    """Settings of a trainer on a CPU, but for its output folder."""
    settings = {**tiny_trainers.arguments(Path("out")), **more}
    return {name: value for name, value in settings.items() if name != "output_dir"}


def every_second(completions: list[str], **_: Any) -> list[float]:
    """A reward that differs in every group."""
    return [float(i % 2) for i in range(len(completions))]


def of_a_script() -> Names:
    """What a script that trains with TRL has before it makes its trainer."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    return {
        "GRPOTrainer": GRPOTrainer,
        "config": GRPOConfig("out", **quick(num_generations=2, max_completion_length=4)),
        "dataset": Dataset.from_list(ROWS),
        "model": tiny_trainers.model(Path("base")),
        "quick": quick(),
        "reward": every_second,
    }


def of_deltas() -> Names:
    write_example(".")  # as the page does with its first command
    return {}


def of_ppo() -> Names:
    return {
        "model": tiny_trainers.model(Path("base")),
        "quick": quick(),
        "right": every_second,
        "rows": ROWS,
        "tokenizer": tiny.tokenizer(printable),
    }


def of_train() -> Names:
    model = tiny_trainers.model(Path("base"))
    plain = tiny_trainers.build(
        "plain", tiny_trainers.model(Path("base")), Path("base"), Path("out")
    )
    return {
        "args": plain.args,
        "mask": Mask.load("mask.safetensors"),
        "model": plain.model,
        "rows": plain.train_dataset,
        "train_only": train_only,
        "trainer": tiny_trainers.build("sft", model, Path("base"), Path("out")),
    }


NAMES: Mapping[str, Callable[[], Names]] = {
    "docs/algorithms/ppo.md": of_ppo,
    "docs/deltas.md": of_deltas,
    "docs/evaluation.md": dict,
    "docs/pruning.md": dict,
    "docs/tracker.md": dict,
    "docs/train.md": of_train,
    "docs/training-loop.md": dict,
}
"""Page -> what its Python blocks suppose."""


def after_ppo(names: Names) -> None:
    assert_trained(names["trainer"], Mask.load("mask.safetensors"))


def after_deltas(names: Names) -> None:
    assert names["manifest"].num_changed > 0
    for path in Path("from-python").iterdir():
        assert path.read_bytes() == Path("tuned", path.name).read_bytes()


def after_evaluation(names: Names) -> None:
    base, model = names["result"].models
    assert model.answers.greedy_interval[0] <= model.answers.greedy_accuracy
    assert base.forgetting is None and model.forgetting.kl > 0


def after_pruning(names: Names) -> None:
    gone = extract_mask("base", "pruned")
    assert gone.num_selected() > 0
    for name in gone:
        assert not (gone.array(name) & names["alive"].array(name)).any()


def after_tracker(names: Names) -> None:
    assert [point.step for point in names["trajectory"].points] == list(range(1, 21))
    assert names["step"].step == 20


def after_train(names: Names) -> None:
    assert_trained(names["trainer"], names["mask"])
    assert names["trainer"].args.max_grad_norm == 1.0


def after_training_loop(names: Names) -> None:
    """Resumed as not interrupted, and nothing but the mask moved."""
    mask = Mask.load("mask.safetensors")
    resumed = tiny_trainers.weights(tiny_trainers.model(Path("out")))
    whole = tiny_trainers.weights(names["train"]("whole", until=10))
    before = tiny_trainers.weights(tiny_trainers.model(Path("base")))
    assert not any(item.any() for item in tiny_trainers.moved(whole, resumed).values())
    moved = tiny_trainers.moved(before, whole)
    assert sum(item.sum() for item in moved.values()) > 0.5 * mask.num_selected()
    assert not any((item & ~mask.array(name)).any() for name, item in moved.items())
    rates = [group["lr"] for group in names["optimizer"].param_groups]
    assert rates == [1e-2, 1e-6]  # the mask has no element of a norm
    trained = [parameter.requires_grad for parameter in names["model"].parameters()]
    assert any(trained)


AFTER: Mapping[str, Callable[[Names], None]] = {
    "docs/algorithms/ppo.md": after_ppo,
    "docs/deltas.md": after_deltas,
    "docs/evaluation.md": after_evaluation,
    "docs/pruning.md": after_pruning,
    "docs/tracker.md": after_tracker,
    "docs/train.md": after_train,
    "docs/training-loop.md": after_training_loop,
}
"""Page -> whether its blocks did what the text says."""


def assert_trained(trainer: Any, mask: Mask) -> None:
    """Weights moved, and none outside the mask."""
    before = tiny_trainers.weights(tiny_trainers.model(Path("base")))
    moved = tiny_trainers.moved(before, tiny_trainers.weights(trainer.model))
    assert sum(item.sum() for item in moved.values()) > 0
    for name, item in moved.items():
        assert not item.any() if name not in mask else not (item & ~mask.array(name)).any(), name


def execute(source: str, page: str, names: Names) -> None:
    with runtime.quiet():
        exec(compile(source, page, "exec"), names)


@pytest.mark.parametrize("page", NAMES)
def test_the_python_of_a_page_runs(
    page: str, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.furnish(shelf, page, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "hf"))
    with runtime.quiet():
        names = NAMES[page]()
    for text in world.replaced(page, "python"):
        execute(text, page, names)
    AFTER[page](names)


def test_no_python_is_left_out() -> None:
    assert {page for page in PAGES if blocks(page, "python", "py")} == {
        *NAMES,
        "docs/distributed.md",
        "docs/sync.md",  # loops without an end; tests/sync and tests/training/sync run their parts
    }


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "diff")])
def test_a_script_runs_with_the_lines_that_are_added(
    page: str, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the change it is Python as well."""
    world.furnish(shelf, "docs/train.md", tmp_path)
    monkeypatch.chdir(tmp_path)
    (text,) = world.replaced(page, "diff")
    lines = text.splitlines()
    assert not [line for line in lines if line[:1] not in ("", " ", "+")]
    compile("\n".join(line[1:] for line in lines if not line.startswith("+")), page, "exec")
    with runtime.quiet():
        names = of_a_script()
    execute("\n".join(line[1:] for line in lines), page, names)
    if page == "docs/tracker.md":
        assert Path("updates.trimtab").exists()
    else:
        assert_trained(names["trainer"], Mask.load("mask.safetensors"))


def test_several_processes(shelf: Path, tmp_path: Path) -> None:
    """The blocks of `docs/distributed.md`, by two processes that talk by gloo."""
    model = "transformers.models.llama.modeling_llama"
    run_workers(distributed_worker.run, 2, shelf, tmp_path, num=2, loads=model)
    found = [(tmp_path / f"done-{rank}").read_text() for rank in range(2)]
    assert found[0] == found[1]
