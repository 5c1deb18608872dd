"""Prompts as tokens, and whether they fit: told of all rows before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trimtab.errors import SettingsError
from trimtab.training.runs.base_model import BaseModel
from trimtab.training.runs.datasets import Rows
from trimtab.words import first_few

__all__ = ["check_lengths", "prompt_ids"]


def prompt_ids(tokenizer: Any, prompt: Any) -> list[int]:
    """Token ids of a prompt: a text, or messages that a model is to answer."""
    if isinstance(prompt, str):
        ids: list[int] = tokenizer(prompt)["input_ids"]
    else:
        written = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        ids = written["input_ids"]
    return ids


def check_lengths(rows: Rows, base: BaseModel, room: int, max_length: int | None) -> None:
    """Check that no prompt is empty, and that each leaves room for its completion.

    Args:
        rows: Have prompts.
        base: Its config says what its context is.
        room: Tokens that a completion may take.
        max_length: Where the trainer cuts prompt and completion off; None for nowhere.

    Raises:
        SettingsError: Some do not; the first few are named.
    """
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base.folder)
    lengths = [len(prompt_ids(tokenizer, row["prompt"])) for row in rows.rows]
    _raise_for(rows, [place for place, of in enumerate(lengths) if not of], "no token")
    config = AutoConfig.from_pretrained(base.folder).get_text_config()
    limits = {
        f"the context of {base.record.id}": getattr(config, "max_position_embeddings", None),
        "trainer.max_length": max_length,
    }
    for name, limit in limits.items():
        if limit is not None:
            _raise_for(
                rows,
                [place for place, of in enumerate(lengths) if of + room > limit],
                f"too many tokens: the longest has {max(lengths)}, and {name} is {limit}, with "
                f"{room} for the completion. Shorten or leave out what is too long",
            )


def _raise_for(rows: Rows, places: Sequence[int], problem: str) -> None:
    if places:
        told = first_few([str(place + 1) for place in places])
        raise SettingsError(f"data: {rows.source}: the prompts of rows {told} have {problem}")
