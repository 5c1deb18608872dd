"""What one optimizer step takes: rows or samples, and about how many tokens of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

from trimtab.training.runs.prepare import PreparedRun
from trimtab.training.runs.prompts import prompt_ids

__all__ = ["work_of_a_step"]

MOST_ROWS = 1000
"""Whose tokens are counted; the mean of so many is near enough to compare arms by."""

COMPLETIONS = ("completion", "chosen", "rejected")


def work_of_a_step(run: PreparedRun) -> dict[str, Any]:
    """Sequences and tokens that an optimizer step of a run trains on.

    Returns:
        `sequences`: a pair of chosen and rejected is two. `tokens`: their mean number, prompts
        among them, over the first rows of the data; padding is not counted. `is_bound`: whether
        completions are yet to be sampled, and counted as long as they may be.
    """
    from transformers import AutoTokenizer

    args, file = run.args, run.file
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
    tokenizer = AutoTokenizer.from_pretrained(run.base.folder)
    is_sampled = run.algorithm.takes_reward or file.samples is not None
    longest = (args.max_completion_length or 0) if run.algorithm.takes_reward else None
    if file.samples is not None:
        longest = file.samples.max_completion_length
    made_of_pairs = "rejected" in run.algorithm.columns
    cut = None if run.algorithm.takes_reward else args.max_length
    lengths = [
        sum(min(of, cut or of) for of in _lengths(tokenizer, row, longest, made_of_pairs))
        for row in run.data.rows[:MOST_ROWS]
    ]
    pairs_to_singles = not made_of_pairs and not is_sampled and "rejected" in run.data.rows[0]
    mean = fmean(lengths) / (2 if pairs_to_singles else 1)
    return {
        "sequences": rows * (2 if made_of_pairs else 1),
        "tokens": round(rows * mean),
        "is_bound": is_sampled,
    }


def _lengths(
    tokenizer: Any, row: Mapping[str, Any], longest: int | None, of_pairs: bool
) -> Iterator[int]:
    """Tokens of each sequence of a row."""
    prompt = len(prompt_ids(tokenizer, row["prompt"]))
    if longest is not None:
        yield from [prompt + longest] * (2 if of_pairs else 1)
        return
    for name in COMPLETIONS:
        if name in row:
            yield prompt + len(tokenizer(_text(row[name]), add_special_tokens=False)["input_ids"])


def _text(completion: Any) -> str:
    """A completion as text; of messages, what they say."""
    if isinstance(completion, str):
        return completion
    return "".join(str(message["content"]) for message in completion)
