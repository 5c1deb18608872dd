"""The base of the scale `tiny`: a Llama of 100,000 weights, trained from scratch in seconds.

It reads sums of two digits, a line each, of which half end in a random number: so it knows the
right answers and gives them half of the time, and has something left to learn.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

from trimtab.training import runtime

__all__ = ["make_tiny_base"]

CHARACTERS = "0123456789+="
STEPS, BATCH, LEARNING_RATE = 200, 128, 5e-3
RIGHT = 0.5
"""Share of the sums with the right answer; in the others any number is as likely."""


def make_tiny_base(folder: Path) -> None:
    """Train it and save it as bf16."""
    runtime.start()
    import torch

    with runtime.quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer, model = _tokenizer(), _model()
        _train(model, tokenizer, Random(0))
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _tokenizer() -> Any:
    """A token for each character; the end of a line is the end token."""
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
