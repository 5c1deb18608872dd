"""Which token ends an answer that ends with its line."""

from __future__ import annotations

from typing import Any

from trimtab.errors import CheckpointError
from trimtab.training.addition import ANSWER_END

__all__ = ["end_token"]


def end_token(tokenizer: Any) -> int:
    """Id of the token that ends an answer.

    Raises:
        CheckpointError: The tokenizer has no single token for the end of a line.
    """
    ids: list[int] = tokenizer(ANSWER_END, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise CheckpointError(
            f"the tokenizer writes the end of a line as {len(ids)} tokens, expected 1"
        )
    return ids[0]
