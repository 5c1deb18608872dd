"""Tiny checkpoints and files with which the commands of the pages can be run.

One base whose tokenizer reads prose, and two runs on sums from it, replace every model that a page
names.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from string import printable

from tests.docs.pages import ROOT, blocks
from tests.training import tiny
from tests.training.runs.run_files import content, train, write
from tests.training.tiny_trainers import reward_model
from trimtab.masks.extract import extract_mask

TUNED = "out/model"
OTHER = "other/model"

SUPPOSED: Mapping[str, Mapping[str, str]] = {
    "docs/algorithms/ppo.md": {
        "base": "base",
        "mask.safetensors": "mask.safetensors",
        "reward-model": "reward-model",
    },
    "docs/cli.md": {"base": "base", "tuned": TUNED},
    "docs/evaluation.md": {
        "base": "base",
        "out": "out",
        "run.toml": "run.toml",
        "full": TUNED,
        "sub": OTHER,
        "random": "out/checkpoints/checkpoint-10",
        "math500.jsonl": "rows.jsonl",
        "tasks": "tasks",
    },
    "docs/masks.md": {"base": "base", "mask.safetensors": "mask.safetensors"},
    "docs/papers.md": {"base": "base", "tuned": TUNED},
    "docs/predict.md": {
        "base": "base",
        "mask.safetensors": "mask.safetensors",
        "rows.jsonl": "rows.jsonl",
        "updates.trimtab": "out/updates.trimtab",
    },
    "docs/pruning.md": {"base": "base", "tuned": TUNED},
    "docs/robustness.md": {"base": "base", "tuned": TUNED},
    "docs/run-files.md": {
        "base": "base",
        "m.safetensors": "mask.safetensors",
        "sums.jsonl": "rows.jsonl",
    },
    "docs/structure.md": {"base": "base", "m.safetensors": "mask.safetensors"},
    "docs/sweeps.md": {"demo/base": "base", "examples": "examples"},
    "docs/tracker.md": {"updates.trimtab": "out/updates.trimtab"},
    "docs/train.md": {"base": "base", "mask.safetensors": "mask.safetensors"},
    "docs/training-loop.md": {"base": "base", "mask.safetensors": "mask.safetensors"},
}
"""Page -> file in the folder where its commands run -> file of `make_shelf`."""

REPLACED: Mapping[tuple[str, str], Mapping[str, str]] = {
    ("docs/algorithms/ppo.md", "python"): {
        # 100 steps of 32 completions
        "max_steps=100, per_device_train_batch_size=32": "**quick, max_completion_length=4",
        '"a/reward-model"': '"reward-model"',  # any reward model
    },
    ("docs/deltas.md", "python"): {
        '"org/name-delta"': '"python.delta", base="base"',  # no hub; in tests/deltas/test_hub.py
    },
    ("docs/distributed.md", "python"): {
        '"nccl"': '"gloo", **meeting',  # no GPUs and no torchrun
        ".cuda()": "",
    },
    ("docs/papers.md", "toml"): {
        '"allenai/Llama-3.1-Tulu-3-8B-SFT"': '"base"',  # no hub
        '"allenai/Llama-3.1-Tulu-3-8B-DPO"': '"tuned"',
    },
    ("docs/run-files.md", "toml"): {
        '"Qwen/Qwen2.5-0.5B"': '"base"',  # no hub
        "max_steps = 200": "max_steps = 2\nmax_completion_length = 4",
        "per_device_train_batch_size = 32": "per_device_train_batch_size = 8",
    },
    ("docs/sweeps.md", "toml"): {
        'run = "sft.toml"': 'run = "examples/sft.toml"',  # written for examples/
        'run = "grpo.toml"': 'run = "examples/grpo.toml"',
        '"../runs/': '"runs/',
    },
    ("docs/tracker.md", "diff"): {
        "GRPOTrainer(…)": "GRPOTrainer(model, reward, config, dataset)",  # elided on the page
    },
    ("docs/train.md", "diff"): {
        '"Qwen/Qwen2.5-0.5B"': '"base"',  # no hub
        'load_dataset("trl-lib/tldr", split="train")': "dataset",
        # whole epochs, and a rate too low for three steps
        "learning_rate=1e-6": "**quick, num_generations=2, max_completion_length=4",
    },
    ("docs/train.md", "python"): {
        # no hub; in tests/training/test_push_to_hub.py
        'hf_hub_download("org/name", "trimtab_mask.safetensors")': '"mask.safetensors"',
    },
    ("docs/training-loop.md", "python"): {
        "lr=1e-5": "lr=1e-2",  # too low to move bf16 weights in ten steps
    },
}
"""Page and language -> text in its blocks -> replacement here, with the reason."""

WRITTEN: Mapping[str, Mapping[str, int]] = {
    "docs/papers.md": {"map.toml": 0},
    "docs/run-files.md": {"run.toml": 0},
    "docs/sweeps.md": {"sweep.toml": 0, "few.toml": 0},
}
"""Page -> file that its commands use -> index of its TOML block."""

FEWER = {
    "[1e-6, 1e-5]": "[1e-5]",
    '["fp32", "fp32-master", "lo16", "bf16"]': '["fp32"]',
    "[0, 1, 2]": "[0]",
}
"""Replacements that reduce the sweep of a page to one cell: each is a process."""


def make_shelf(folder: Path) -> None:
    """Make everything that a page may need, in a new folder."""
    from trimtab.training import runtime

    runtime.start()
    tiny.make_base(folder / "base", printable)
    steps = {"max_steps": 20, "lr_scheduler_type": "constant", "learning_rate": 3e-5}
    saved = {"save_strategy": "steps", "save_steps": 10}
    arguments = {"mask": "none", "trainer": steps | saved}
    train(write(folder, content("sft", Path("base"), track=1, **arguments)))
    values = content("sft", Path("base"), **{**arguments, "output": "other", "seed": 1})
    train(write(folder, values, "other.toml"))
    extract_mask(folder / "base", folder / TUNED).save(folder / "mask.safetensors")
    rows = [
        {"prompt": f"{a}+1=", "completion": f"{a + 1}\n", "answer": str(a + 1), "level": 1 + a // 3}
        for a in range(9)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "tasks").mkdir()
    reward_model(folder / "base").save_pretrained(folder / "reward-model")
    tiny.tokenizer(printable).save_pretrained(folder / "reward-model")
    shutil.copytree(ROOT / "examples", folder / "examples")


def furnish(shelf: Path, page: str, folder: Path) -> None:
    """Put what a page supposes into an empty folder."""
    for name, thing in SUPPOSED.get(page, {}).items():
        source, target = shelf / thing, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)
    for name, number in WRITTEN.get(page, {}).items():
        text = replaced(page, "toml")[number]
        for many, few in FEWER.items() if name == "few.toml" else ():
            assert many in text
            text = text.replace(many, few)
        (folder / name).write_text(text)


def replaced(page: str, language: str) -> list[str]:
    """The texts of a page's blocks of a language, as they can be run here."""
    texts = [block.text for block in blocks(page, language)]
    for old, new in REPLACED.get((page, language), {}).items():
        assert any(old in text for text in texts), (page, old)
        texts = [text.replace(old, new) for text in texts]
    return texts
