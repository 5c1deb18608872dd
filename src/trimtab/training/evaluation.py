"""Held-out accuracy of a saved checkpoint: greedy, and sampled at temperature 1.

It is the saved bf16 weights that are asked, not the fp32 weights of the trainer: the accuracy
belongs to the same file as the sparsity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import stdev
from typing import Any

from trimtab.errors import CheckpointError
from trimtab.training import runtime
from trimtab.training.addition import ANSWER_END, Question, is_correct

__all__ = ["Evaluation", "end_token", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """Answers of one checkpoint to some questions.

    Attributes:
        questions: The questions, as `6+1`.
        greedy: The greedy completion of each, as text.
        greedy_correct: Whether it is right.
        num_samples: Completions sampled for each question at temperature 1.
        num_sampled_correct: How many of them are right, for each question.
    """

    questions: tuple[str, ...]
    greedy: tuple[str, ...]
    greedy_correct: tuple[bool, ...]
    num_samples: int
    num_sampled_correct: tuple[int, ...]

    @property
    def num_questions(self) -> int:
        """Questions asked."""
        return len(self.questions)

    @property
    def greedy_accuracy(self) -> float:
        """Share of the questions whose greedy completion is right."""
        return sum(self.greedy_correct) / self.num_questions

    @property
    def greedy_standard_error(self) -> float:
        """Standard error of `greedy_accuracy` over questions (binomial)."""
        return sqrt(self.greedy_accuracy * (1 - self.greedy_accuracy) / self.num_questions)

    @property
    def sampled_accuracy(self) -> float:
        """Share of the sampled completions that are right."""
        return sum(self.num_sampled_correct) / (self.num_questions * self.num_samples)

    @property
    def sampled_standard_error(self) -> float:
        """Standard error of `sampled_accuracy`, over questions: samples of one are not independent.

        NaN for fewer than two questions.
        """
        if self.num_questions < 2:
            return float("nan")
        shares = [correct / self.num_samples for correct in self.num_sampled_correct]
        return stdev(shares) / sqrt(self.num_questions)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with the accuracies and their standard errors."""
        return {
            "num_questions": self.num_questions,
            "num_greedy_correct": sum(self.greedy_correct),
            "greedy_accuracy": self.greedy_accuracy,
            "greedy_standard_error": self.greedy_standard_error,
            "num_samples": self.num_samples,
            "sampled_accuracy": self.sampled_accuracy,
            "sampled_standard_error": self.sampled_standard_error,
            "answers": [
                {"question": question, "greedy": text, "correct": correct, "num_sampled_correct": n}
                for question, text, correct, n in zip(
                    self.questions,
                    self.greedy,
                    self.greedy_correct,
                    self.num_sampled_correct,
                    strict=True,
                )
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Evaluation:
        """The inverse of `to_dict`."""
        answers = data["answers"]
        return cls(
            questions=tuple(row["question"] for row in answers),
            greedy=tuple(row["greedy"] for row in answers),
            greedy_correct=tuple(row["correct"] for row in answers),
            num_samples=data["num_samples"],
            num_sampled_correct=tuple(row["num_sampled_correct"] for row in answers),
        )


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


def evaluate(
    checkpoint: Path,
    questions: Sequence[Question],
    *,
    seed: int,
    num_samples: int = 8,
    max_completion_tokens: int = 3,
) -> Evaluation:
    """Ask a saved checkpoint every question: once greedily, and some times at temperature 1.

    Args:
        checkpoint: A checkpoint folder with its tokenizer.
        questions: What to ask.
        seed: Of the sampling.
        num_samples: Sampled completions for each question.
        max_completion_tokens: Length limit of a completion.
    """
    runtime.start()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    with runtime.quiet(), torch.inference_mode(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, padding_side="left")
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16).eval()
        prompts = tokenizer(
            [question.prompt for question in questions], padding=True, return_tensors="pt"
        )

        def complete(**settings: Any) -> list[str]:
            config = GenerationConfig(
                max_new_tokens=max_completion_tokens,
                eos_token_id=[end_token(tokenizer), tokenizer.eos_token_id],
                pad_token_id=tokenizer.pad_token_id,
                **settings,
            )
            ids = model.generate(
                input_ids=prompts["input_ids"],
                attention_mask=prompts["attention_mask"],
                generation_config=config,
            )
            completions = ids[:, prompts["input_ids"].shape[1] :]
            texts: list[str] = tokenizer.batch_decode(completions, skip_special_tokens=True)
            return texts

        greedy = complete(do_sample=False)
        sampled = complete(
            do_sample=True, temperature=1.0, top_k=0, top_p=1.0, num_return_sequences=num_samples
        )
    right = [question.answer for question in questions]
    return Evaluation(
        questions=tuple(str(question) for question in questions),
        greedy=tuple(greedy),
        greedy_correct=tuple(map(is_correct, greedy, right)),
        num_samples=num_samples,
        num_sampled_correct=tuple(
            sum(
                is_correct(text, answer)
                for text in sampled[place * num_samples : (place + 1) * num_samples]
            )
            for place, answer in enumerate(right)
        ),
    )
