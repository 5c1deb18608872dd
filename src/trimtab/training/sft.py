"""SFT by TRL's own `SFTTrainer`: gold answers to the same prompts, loss on the answers only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.training.addition import Question, Split
from trimtab.training.recipe import Recipe

__all__ = ["SETTINGS", "build_trainer"]

SETTINGS: Mapping[str, Any] = {"loss_type": "nll"}


def build_trainer(
    model: Any,
    tokenizer: Any,
    split: Split,
    recipe: Recipe,
    arguments: Mapping[str, Any],
    callbacks: Sequence[Any],
) -> Any:
    """Set up an `SFTTrainer`.

    Args:
        model: fp32 weights; trained in place.
        tokenizer: The tokenizer of the model.
        split: The questions.
        recipe: The settings.
        arguments: From `trimtab.training.recipe.trainer_arguments`.
        callbacks: Trainer callbacks.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    return SFTTrainer(
        model=model,
        args=SFTConfig(
            **arguments,
            loss_type=SETTINGS["loss_type"],
            dataloader_drop_last=True,  # every step has the same number of sequences
            include_num_input_tokens_seen="non_padding",
            dataset_kwargs={"skip_prepare_dataset": True},  # the rows are tokenized already
        ),
        train_dataset=Dataset.from_list([_row(tokenizer, question) for question in split.train]),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )


def _row(tokenizer: Any, question: Question) -> dict[str, list[int]]:
    """Tokens of a prompt and its gold answer, tokenized apart as GRPO sees them.

    TRL would add the tokenizer's end token to the answer; here the end of the line ends it.
    """
    prompt: list[int] = tokenizer(question.prompt)["input_ids"]
    gold: list[int] = tokenizer(question.gold, add_special_tokens=False)["input_ids"]
    return {"input_ids": prompt + gold, "labels": [-100] * len(prompt) + gold}
