"""Ask a model questions: once greedily, and some times by sampling.

The same seed, model, questions and batch size give the same answers on the same machine. Samples
depend on the batch size, since a batch is drawn at once; in low precision so can the greedy answer,
by the padding that questions of different lengths are given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path
from typing import Any

from trimtab.checkpoints.folder import check_files
from trimtab.errors import CheckpointError
from trimtab.results.answers import Answer, Answers
from trimtab.training.evaluation.questions import Questions
from trimtab.training.runs.base_model import BaseModel, load_model_of
from trimtab.training.runs.data import prompt_ids
from trimtab.words import first_few

__all__ = ["ask", "load_model", "load_tokenizer"]

Progress = Callable[[int, int], None]
"""Called with batches done, and batches in all."""


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint.

    Raises:
        CheckpointError: A file of the folder is none to read.
    """
    from transformers import AutoTokenizer

    check_files(folder)
    return AutoTokenizer.from_pretrained(folder)


def load_model(of: BaseModel | Path, dtype: str, device: Any) -> Any:
    """The model of a checkpoint, to be asked and not trained.

    Its weights could have gradients all the same: on a CPU torch multiplies the last hidden states,
    a slice, by weights that can have none many times more slowly.

    Args:
        of: The model; or a folder that nobody else writes to, and that has no adapter.
        dtype: `bf16` or `fp32`: of the weights and the arithmetic.
        device: Where it computes.

    Raises:
        CheckpointError: Its weights are not finite, so nothing that it says is; or they changed
            since they were hashed.
    """
    if isinstance(of, BaseModel):
        folder, model = of.folder, of.load(dtype)
    else:
        folder, model = of, load_model_of(of, dtype)
    broken = [name for name, of in model.named_parameters() if not of.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"{folder} cannot be asked: NaN or infinity in {first_few(broken)} (as {dtype})"
        )
    return model.to(device).eval()


def ask(
    model: Any,
    tokenizer: Any,
    questions: Questions,
    *,
    seed: int,
    num_samples: int,
    temperature: float = 1.0,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Answers:
    """Ask every question, and judge the answers.

    Args:
        model: A causal language model of transformers.
        tokenizer: Of the model.
        questions: What to ask.
        seed: Of the sampling. The random state is left as it was.
        num_samples: Sampled completions for each question; 0 for none.
        temperature: Of the sampling, from all of the distribution.
        batch_size: Completions that are generated at a time.
        progress: Called after every batch.

    Raises:
        SettingsError: The reward fails, or the model has no end token.
    """
    from trimtab.training.rollouts.sampling import seeded

    each = list(range(len(questions)))
    repeated = [place for place in each for _ in range(num_samples)]
    total = ceil(len(each) / batch_size) + ceil(len(repeated) / batch_size)
    asker = _Asker(model, tokenizer, questions, batch_size, total, progress)
    with seeded(model.device, seed):
        greedy = asker.complete(each, 0.0)
        sampled = asker.complete(repeated, temperature)
    num_right = [0] * len(questions)
    for place, (_, _, is_right) in zip(repeated, sampled, strict=True):
        num_right[place] += is_right
    rows = zip(greedy, num_right, strict=True)
    return Answers(
        num_samples,
        tuple(Answer(text, is_right, ended, num) for (text, ended, is_right), num in rows),
    )


class _Asker:
    """A model with its questions, batch by batch."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        questions: Questions,
        batch_size: int,
        total: int,
        progress: Progress | None,
    ) -> None:
        from trimtab.training.rollouts.sampling import Sampler

        # A stop of several tokens cannot end the sampling; the text is cut at it all the same.
        self._sampler = Sampler(
            model, tokenizer, questions.max_completion_length, stop=questions.stop
        )
        self._questions = questions
        self._batch_size = batch_size
        self._total = total
        self._done = 0
        self._progress = progress
        self._ids = [prompt_ids(tokenizer, prompt) for prompt in questions.prompts]

    def complete(self, places: Sequence[int], temperature: float) -> list[tuple[str, bool, bool]]:
        """A completion of each question: its text, whether it ended, and whether it is right."""
        told = []
        for start in range(0, len(places), self._batch_size):
            told += self._batch(places[start : start + self._batch_size], temperature)
            self._done += 1
            if self._progress is not None:
                self._progress(self._done, self._total)
        return told

    def _batch(self, places: Sequence[int], temperature: float) -> list[tuple[str, bool, bool]]:
        from trimtab.training.rollouts.sampling import ids_of

        prompts = [self._ids[place] for place in places]
        samples = self._sampler.sample(prompts, temperature=temperature)
        texts = self._sampler.texts(ids_of(samples))
        ended = samples.has_ended.tolist()
        if self._questions.stop is not None:
            parts = [text.partition(self._questions.stop) for text in texts]
            texts = [text for text, _, _ in parts]
            ended = [
                by_token or bool(stop) for by_token, (_, stop, _) in zip(ended, parts, strict=True)
            ]
        return list(zip(texts, ended, self._judged(places, texts), strict=True))

    def _judged(self, places: Sequence[int], texts: Sequence[str]) -> list[bool]:
        """Whether each completion is right: the reward is at least 1."""
        rows = [self._questions.rows.rows[place] for place in places]
        return [reward >= 1 for reward in self._questions.reward.of(rows, texts)]
