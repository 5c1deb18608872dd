"""The training runs that `benchmarks.training` compares: their model, their data, their trainers.

A run file, as `trimtab train` reads it, trains the whole model or a random mask. Beside it stands
the trainer of TRL with the same settings and the same rows, made by hand as its own documentation
does, where TRL has the algorithm. torch and TRL are imported by whoever makes a trainer, so that
`trimtab train` can set their environment first, and the bare trainer does without.
"""

from __future__ import annotations

import gc
import json
import runpy
import warnings
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from benchmarks.processes import peak_resident, reset_peak, resident_after_trim
from benchmarks.turns import Turn

if TYPE_CHECKING:
    from trimtab.training.runs.settings import Settings

__all__ = [
    "BARE",
    "COMPLETION",
    "FULL",
    "MASKS",
    "NAMES",
    "PROMPT",
    "SEQUENCES",
    "WHOLE",
    "bare_arguments",
    "contest",
    "contestants_of",
    "make_trainer",
    "paced",
    "rows_of",
    "run_file",
    "write_folder",
]

BARE, WHOLE = "bare TRL", "whole model"
MASKS = {WHOLE: "none", "20%": "random:0.2", "5%": "random:0.05"}
"""Contestant -> `mask` of its run file."""

SEQUENCES, PROMPT, COMPLETION = 8, 24, 24
"""Sequences of a step, and the tokens of both of their parts."""

NUM_ROWS = 64
LEARNING_RATE = 1e-6
SEED = 0

PAIRS = ("dpo", "orpo", "simpo")
ONLINE = ("ppo", "grpo", "rloo", "prime")
NAMES = ("sft", "dpo", "orpo", "kto", "simpo", "ppo", "grpo", "rloo", "prime")
"""All but RFT, which trains as SFT does once its samples are drawn."""

GROUP = {"num_generations": 4}
OF_ALGORITHM: Mapping[str, Mapping[str, Any]] = {
    **{name: {"per_device_train_batch_size": SEQUENCES // 2} for name in PAIRS},
    "grpo": GROUP,
    "rloo": GROUP,
    "ppo": {"num_ppo_epochs": 1},
    "prime": {**GROUP, "oversample_factor": 1.0},
}
"""Settings with which every step samples, and takes as many sequences as those of the others."""

FULL: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 7,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}
"""A Llama of 23 million parameters."""

BASES: Mapping[str, Mapping[str, Any]] = {
    "base": FULL,
    "small": FULL | {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1},
}
"""The model that is measured, and one that calls the same code, and is soon trained."""

REWARD_FILE, REWARD_NAME = "reward.py", "share_of_even"
REWARD = f"""
def {REWARD_NAME}(completions, **columns):
    texts = [text.split() for text in completions]
    return [sum(word[-1] in "02468" for word in text) / {COMPLETION} for text in texts]
"""


def contestants_of(name: str) -> list[str]:
    """Those that train by an algorithm."""
    from trimtab.training.runs.algorithms import ALGORITHMS

    return [*([BARE] if ALGORITHMS[name].trainer.startswith("trl") else []), *MASKS]


def write_folder(folder: Path, shapes: Mapping[str, Mapping[str, Any]] = BASES) -> dict[str, int]:
    """Write all that run files name: models, data and a reward.

    Args:
        folder: Where.
        shapes: Folder of a model in there -> its shape.

    Returns:
        The number of parameters of each model.
    """
    for name in NAMES:
        lines = "\n".join(map(json.dumps, rows_of(name)))
        (folder / f"{name}.jsonl").write_text(f"{lines}\n")
    (folder / REWARD_FILE).write_text(REWARD)
    return {name: make_base(folder / name, shape) for name, shape in shapes.items()}


def make_base(folder: Path, shape: Mapping[str, Any]) -> int:
    """Write a Llama with random bf16 weights, alike every time, whose tokens are words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", *(f"w{number}" for number in range(2, shape["vocab_size"]))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")
    torch.manual_seed(SEED)
    config = LlamaConfig(**shape, pad_token_id=0, bos_token_id=None, eos_token_id=1)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def rows_of(name: str) -> list[dict[str, Any]]:
    """Rows of random words with the columns that an algorithm wants."""
    from trimtab.training.runs.algorithms import ALGORITHMS

    random = Random(SEED)

    def words(number: int) -> str:
        return " ".join(f"w{random.randrange(2, FULL['vocab_size'])}" for _ in range(number))

    def value(column: str, row: int) -> Any:
        if column == "label":
            return row % 2 == 0
        # Trainers put the two parts together as they are, and the end token behind.
        return words(PROMPT) if column == "prompt" else f" {words(COMPLETION - 1)}"

    columns = ALGORITHMS[name].columns
    return [{column: value(column, row) for column in columns} for row in range(NUM_ROWS)]


def trainer_table(name: str, num_steps: int) -> dict[str, Any]:
    """`[trainer]` of a run file."""
    online = {"max_completion_length": COMPLETION} if name in ONLINE else {}
    return {
        "use_cpu": True,
        "save_strategy": "no",
        "learning_rate": LEARNING_RATE,
        "max_steps": num_steps,
        "per_device_train_batch_size": SEQUENCES,
        **online,
        **OF_ALGORITHM.get(name, {}),
    }


def run_file(name: str, mask: str, base: Path, num_steps: int) -> Settings:
    """A run on the files beside a base."""
    from trimtab.training.runs.settings import Settings

    content = {
        "algorithm": name,
        "model": base.name,
        "output": "out",
        "mask": mask,
        "seed": SEED,
        "data": {"file": f"{name}.jsonl"},
        "trainer": trainer_table(name, num_steps),
    }
    if name in ONLINE:
        content["reward"] = {"function": f"{REWARD_FILE}:{REWARD_NAME}"}
    return Settings.of(base.parent / "run.toml", content)


def bare_arguments(name: str, base: Path, num_steps: int) -> Any:
    """TRL's configuration with all that a run file sets, but for the optimizer: that is TRL's."""
    from trimtab.training.runs.algorithms import ALGORITHMS, DEFAULTS

    algorithm = ALGORITHMS[name]
    return algorithm.config_class()(
        **{**DEFAULTS, **algorithm.defaults, **algorithm.fixed, **trainer_table(name, num_steps)},
        output_dir=str(base.parent / "work"),
        seed=SEED,
        disable_tqdm=True,
    )


def make_trainer(name: str, contestant: str, base: Path, num_steps: int) -> Any:
    """A trainer that is ready to train."""
    if contestant == BARE:
        return _bare_trainer(name, base, num_steps)
    return _run_trainer(run_file(name, MASKS[contestant], base, num_steps))


def _run_trainer(file: Settings) -> Any:
    """What `trimtab train` makes of a run file."""
    from rich.progress import Progress

    from trimtab.progress import stage
    from trimtab.training.runs.prepare import build_trainer, follow, prepare

    run = prepare(file)
    with stage(Progress(disable=True), file.algorithm) as line:
        callbacks = [follow(run, line, lambda: False)]
    trainer, _ = build_trainer(run, run.mask, run.output, callbacks)
    return trainer


def _bare_trainer(name: str, base: Path, num_steps: int) -> Any:
    """TRL's trainer, with no code of trimtab between it and the model."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

    from trimtab.training.runs.algorithms import ALGORITHMS

    module, _, class_name = ALGORITHMS[name].trainer.partition(":")
    more = {}
    if name in ONLINE:
        more["reward_funcs"] = runpy.run_path(str(base.parent / REWARD_FILE))[REWARD_NAME]
    trainer = getattr(import_module(module), class_name)(
        model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16),
        args=bare_arguments(name, base, num_steps),
        train_dataset=Dataset.from_list(rows_of(name)),
        processing_class=AutoTokenizer.from_pretrained(base),
        **more,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def contest(turn: Turn, name: str, contestant: str, folder: Path, steps: int, rounds: int) -> int:
    """Train by turns, in a process of its own.

    Libraries and compiled kernels are resident before the memory is looked at, because a small
    model is trained first. All that comes after counts: reading and hashing the base, the mask,
    reference models and critics, gradients, optimizer state, activations, what is sampled.

    Args:
        turn: When to go on.
        name: The algorithm.
        contestant: One of `contestants_of` it.
        folder: From `write_folder`.
        steps: Optimizer steps of a turn.
        rounds: Turns after the first.

    Returns:
        How far above the weights of the model the process was at most, in bytes.
    """
    warnings.simplefilter("ignore")
    make_trainer(name, contestant, folder / "small", 1).train()
    gc.collect()
    before = resident_after_trim()
    reset_peak()
    num_steps = steps * (1 + rounds)
    trainer = make_trainer(name, contestant, folder / "base", num_steps)
    trainer.add_callback(paced(turn, steps))
    trainer.train()
    weights = sum(p.numel() * p.element_size() for p in trainer.model.parameters())
    return peak_resident() - before - weights


def paced(turn: Turn, steps: int) -> Any:
    """A Trainer callback that stops for the others every so many steps."""
    from transformers import TrainerCallback

    class Paced(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            turn.wait()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % steps == 0:
                turn.over()
                if state.global_step < state.max_steps:
                    turn.wait()

    return Paced()
