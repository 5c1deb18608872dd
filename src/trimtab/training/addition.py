"""One-digit addition: questions, split, prompt and verifiable reward.

The prompt shows two solved sums and asks for a third; the answer ends with the line. The same
prompt serves GRPO, SFT and evaluation::

    3+4=7
    2+9=11
    6+1=

`a+b` and `b+a` are always on the same side of the split, so no held-out question mirrors a
training question; the two solved sums and their mirrors are on neither side.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from trimtab.errors import CheckpointError

ANSWER_END = "\n"
"""Ends an answer; must be a single token of the tokenizer."""

NUM_HELDOUT = 32


@dataclass(frozen=True, order=True)
class Question:
    """A sum of two digits."""

    a: int
    b: int

    @property
    def answer(self) -> int:
        """The sum."""
        return self.a + self.b

    @property
    def prompt(self) -> str:
        """The text that the model continues."""
        return "".join(f"{shot}={shot.answer}{ANSWER_END}" for shot in SHOTS) + f"{self}="

    @property
    def gold(self) -> str:
        """The correct continuation, including the newline."""
        return f"{self.answer}{ANSWER_END}"

    def __str__(self) -> str:
        return f"{self.a}+{self.b}"


SHOTS = (Question(3, 4), Question(2, 9))
"""The solved sums of the prompt."""


@dataclass(frozen=True)
class Split:
    """Training and held-out questions: disjoint, also after swapping the two digits."""

    train: tuple[Question, ...]
    heldout: tuple[Question, ...]


def split_questions(seed: int) -> Split:
    """Split the sums that the prompt does not show: 64 for training, 32 held out.

    Args:
        seed: Seed for the split and the order of the questions.
    """
    shown = {frozenset((shot.a, shot.b)) for shot in SHOTS}
    pairs = [(a, b) for a in range(10) for b in range(a, 10) if frozenset((a, b)) not in shown]
    generator = Random(seed)
    generator.shuffle(pairs)
    train: list[Question] = []
    heldout: list[Question] = []
    for a, b in pairs:
        mirrored = sorted({Question(a, b), Question(b, a)})
        side = heldout if len(heldout) + len(mirrored) <= NUM_HELDOUT else train
        side.extend(mirrored)
    generator.shuffle(train)
    return Split(tuple(train), tuple(heldout))


def is_correct(text: str, answer: int) -> bool:
    """Whether a completion starts with the answer, after optional whitespace."""
    number = re.match(r"\s*([0-9]+)", text)
    return number is not None and int(number[1]) == answer


def reward(completions: Sequence[str], answer: Sequence[int], **_: Any) -> list[float]:
    """The verifiable reward as TRL calls it: 1 for a correct completion, 0 otherwise.

    Args:
        completions: Texts sampled from the model.
        answer: The column `answer` of the dataset, one value per completion.
        **_: Other columns and state that TRL passes to every reward function.
    """
    return [float(is_correct(text, gold)) for text, gold in zip(completions, answer, strict=True)]


def end_token(tokenizer: Any) -> int:
    """Id of the token that ends an answer.

    Raises:
        CheckpointError: The tokenizer has no single token for a newline.
    """
    ids: list[int] = tokenizer(ANSWER_END, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise CheckpointError(
            f"the tokenizer writes the end of a line as {len(ids)} tokens, expected 1"
        )
    return ids[0]
