"""Prompts as token ids, checked before anything is sampled; and the rows of each round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from trimtab.words import first_few

__all__ = ["RoundSampler", "prompt_problems", "tokenize"]


def tokenize(tokenizer: Any, prompt: Any) -> list[int]:
    """Token ids of a prompt: a text, or messages that the chat template turns into one."""
    is_text = isinstance(prompt, str)
    if not is_text:
        prompt = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    ids: list[int] = tokenizer(prompt, add_special_tokens=is_text)["input_ids"]
    return ids


def prompt_problems(
    rows: Sequence[Mapping[str, Any]], tokenizer: Any, room: int | None
) -> Iterator[str]:
    """Say what is wrong with the prompts of a data set.

    Args:
        rows: The data.
        tokenizer: Of the policy.
        room: Tokens that a prompt may have; None for any number.
    """
    if not len(rows):
        yield "train_dataset has no rows"
        return
    lacking = [number for number, row in enumerate(rows) if "prompt" not in row]
    if lacking:
        yield f"train_dataset: row {lacking[0]} has no column prompt"
        return
    kinds = {type(row["prompt"]) for row in rows}
    if strange := sorted(kind.__name__ for kind in kinds - {str, list}):
        yield f"train_dataset has a prompt of type {strange[0]}: expected a text or messages"
        return
    if list in kinds and not tokenizer.chat_template:
        yield "train_dataset has messages as prompts, and the tokenizer has no chat template"
        return
    wrong = []
    for number, row in enumerate(rows):
        length = len(tokenize(tokenizer, row["prompt"]))
        if not length:
            wrong.append(f"the prompt of row {number} has no tokens")
        elif room is not None and length > room:
            wrong.append(
                f"the prompt of row {number} has {length} tokens, and the context of the model "
                f"leaves room for {room} before a completion"
            )
    if wrong:
        yield f"train_dataset: {first_few(wrong, '; ')}"


class RoundSampler(Sampler[int]):
    """Order of the rows of a data set: round by round, in an order of its own in every epoch.

    The rows of a round are repeated, because the Trainer fetches them anew for each of the batches
    that the round serves. Rows that are too few for a whole round are left out of an epoch.

    Args:
        num_rows: Rows of the data set.
        rows_per_round: Rows that a round takes.
        num_repeats: How often they are repeated, as a whole.
        seed: Of the order.
    """

    def __init__(self, num_rows: int, rows_per_round: int, num_repeats: int, seed: int) -> None:
        self.num_rows = num_rows
        self.rows_per_round = rows_per_round
        self.num_repeats = num_repeats
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; the Trainer calls it, also when it goes on in the midst of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_rows // self.rows_per_round * self.rows_per_round * self.num_repeats

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(self.num_rows, generator=generator).tolist()
        for first in range(0, len(self) // self.num_repeats, self.rows_per_round):
            for _ in range(self.num_repeats):
                yield from order[first : first + self.rows_per_round]
