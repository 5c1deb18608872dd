"""The base models of the scales.

The base of the scale `tiny` is a Llama of 100,000 weights, trained from scratch in seconds on sums
of two digits, half of which have a random answer. So it gives correct answers half of the time, and
has something left to learn.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

from trimtab.outputs import new_folder
from trimtab.papers.library import BaseName
from trimtab.training import runtime
from trimtab.training.folders import read_json, write_json
from trimtab.training.smollm2 import write_base

CHARACTERS = "0123456789+="
STEPS, BATCH, LEARNING_RATE = 200, 128, 5e-3
RIGHT = 0.5
"""Share of the sums with the correct answer; the others have a uniformly random one."""


def make_tiny_base(folder: Path) -> None:
    """Train the base of the scale `tiny` and save it in bf16."""
    runtime.start()
    import torch

    with runtime.quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer, model = _tokenizer(), _model()
        _train(model, tokenizer, Random(0))
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _tokenizer() -> Any:
    """A token per character; the newline is the end token."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    tokens = ["<pad>", "\n", *CHARACTERS]
    core = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges=[]))
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="\n")


def _model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=2 + len(CHARACTERS),
            hidden_size=64,
            intermediate_size=160,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )
    )


def _train(model: Any, tokenizer: Any, random: Random) -> None:
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    for _ in range(STEPS):
        lines = [_line(random) for _ in range(BATCH)]
        batch = tokenizer(lines, return_tensors="pt", padding=True)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        labels[:, :4] = -100  # the question is given
        model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels
        ).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def _line(random: Random) -> str:
    a, b = random.randrange(10), random.randrange(10)
    answer = a + b if random.random() < RIGHT else random.randrange(19)
    return f"{a}+{b}={answer}\n"


def make_base(name: BaseName, folder: Path) -> None:
    """Make a base checkpoint in a folder, unless the folder exists.

    Raises:
        TrimtabError: A required package is not installed.
    """
    if folder.exists():
        return
    with new_folder(folder) as draft:
        if name == "tiny":
            make_tiny_base(draft)
        else:
            write_base(draft)
            _end_with_the_line(draft)


def _end_with_the_line(folder: Path) -> None:
    """Make the newline the end token of a checkpoint, without changing its weights.

    Questions are lines, so completions end with a newline. SFT appends the end token and RL stops
    at it: this way both train on the same tokens, which the base would also produce.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    (end,) = tokenizer("\n", add_special_tokens=False)["input_ids"]
    for file, key, value in (
        ("tokenizer_config.json", "eos_token", tokenizer.convert_ids_to_tokens(end)),
        ("generation_config.json", "eos_token_id", end),
    ):
        write_json(folder / file, {**read_json(folder / file), key: value})
