"""GRPO by TRL's own `GRPOTrainer`: on-policy samples, verifiable reward, no reference model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.training.addition import Split, end_token, reward
from trimtab.training.recipe import Recipe

__all__ = ["SETTINGS", "build_trainer"]

SETTINGS: Mapping[str, Any] = {
    "loss_type": "dapo",  # TRL's default: the mean over all completion tokens of the step
    "scale_rewards": "group",
    "kl_beta": 0.0,  # no KL term, hence no reference model
    "temperature": 1.0,
    "num_iterations": 1,  # every sample is used for one step, so the ratio to the sampler is 1
}


def build_trainer(
    model: Any,
    tokenizer: Any,
    split: Split,
    recipe: Recipe,
    arguments: Mapping[str, Any],
    callbacks: Sequence[Any],
) -> Any:
    """Set up a `GRPOTrainer`.

    Args:
        model: fp32 weights; trained in place. Its generation config is changed so that the end of
            a line ends a completion.
        tokenizer: The tokenizer of the model.
        split: The questions.
        recipe: The settings.
        arguments: From `trimtab.training.recipe.trainer_arguments`.
        callbacks: Trainer callbacks.
    """
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    model.generation_config.eos_token_id = [end_token(tokenizer)]
    return GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=GRPOConfig(
            **arguments,
            num_generations=recipe.num_generations,
            max_completion_length=recipe.max_completion_tokens,
            temperature=SETTINGS["temperature"],
            beta=SETTINGS["kl_beta"],
            loss_type=SETTINGS["loss_type"],
            scale_rewards=SETTINGS["scale_rewards"],
            num_iterations=SETTINGS["num_iterations"],
        ),
        train_dataset=Dataset.from_list(
            [{"prompt": question.prompt, "answer": question.answer} for question in split.train]
        ),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )
