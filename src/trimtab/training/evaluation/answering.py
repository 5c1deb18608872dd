"""Asks a model questions, greedily and by sampling.

The same seed, model, questions and batch size give the same answers on the same machine. Samples
depend on the batch size, since a batch is drawn at once; in low precision greedy answers can, too,
because of padding.
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

Progress = Callable[[int, int], None]
"""Called with the number of batches done, and of all batches."""


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint.

    Raises:
        CheckpointError: A file of the folder must not be read.
    """
    from transformers import AutoTokenizer

    check_files(folder)
    return AutoTokenizer.from_pretrained(folder)


def load_model(source: BaseModel | Path, dtype: str, device: Any) -> Any:
    """Load the model of a checkpoint for inference.

    `requires_grad` stays set for speed: on a CPU, torch multiplies the last hidden states, a slice,
    many times more slowly by weights that do not require a gradient.

    Args:
        source: The model; or a folder without an adapter that nothing else writes to.
        dtype: `bf16` or `fp32`, for weights and arithmetic.
        device: Device of the model.

    Raises:
        CheckpointError: Its weights are not finite, or changed since they were hashed.
    """
    if isinstance(source, BaseModel):
        folder, model = source.folder, source.load(dtype)
    else:
        folder, model = source, load_model_of(source, dtype)
    broken = [name for name, p in model.named_parameters() if not p.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"{folder} cannot be evaluated: NaN or infinity in {first_few(broken)} (as {dtype})"
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
        model: A causal language model of Transformers.
        tokenizer: Tokenizer of the model.
        questions: Questions to ask.
        seed: Seed of sampling. The random state is restored.
        num_samples: Sampled completions for each question; 0 for none.
        temperature: Sampling temperature, without top_p or top_k.
        batch_size: Completions generated at a time.
        progress: Called after every batch.

    Raises:
        SettingsError: The reward fails, or the model has no end token.
    """
    from trimtab.training.rollouts.sampling import Sampler, ids_of, seeded

    # A stop of several tokens does not end sampling, but the text is cut at it.
    sampler = Sampler(model, tokenizer, questions.max_completion_length, stop=questions.stop)
    ids = [prompt_ids(tokenizer, prompt) for prompt in questions.prompts]
    all_once = list(range(len(questions)))
    repeated = [index for index in all_once for _ in range(num_samples)]
    total = ceil(len(all_once) / batch_size) + ceil(len(repeated) / batch_size)
    num_done = 0

    def complete(indices: Sequence[int], temperature: float) -> list[tuple[str, bool, bool]]:
        """A completion per question: its text, whether it is correct, and whether it ended."""
        nonlocal num_done
        answered: list[tuple[str, bool, bool]] = []
        for start in range(0, len(indices), batch_size):
            batch = indices[start : start + batch_size]
            samples = sampler.sample([ids[index] for index in batch], temperature=temperature)
            texts, ended = sampler.texts(ids_of(samples)), samples.has_ended.tolist()
            if questions.stop is not None:
                ended = [
                    has_ended or questions.stop in text
                    for text, has_ended in zip(texts, ended, strict=True)
                ]
                texts = [text.partition(questions.stop)[0] for text in texts]
            rewards = questions.reward.of([questions.rows.rows[index] for index in batch], texts)
            correct = [reward >= 1 for reward in rewards]
            answered += zip(texts, correct, ended, strict=True)
            num_done += 1
            if progress is not None:
                progress(num_done, total)
        return answered

    with seeded(model.device, seed):
        greedy = complete(all_once, 0.0)
        sampled = complete(repeated, temperature)
    num_correct = [0] * len(questions)
    for index, (_, is_correct, _) in zip(repeated, sampled, strict=True):
        num_correct[index] += is_correct
    rows = zip(greedy, num_correct, strict=True)
    return Answers(num_samples, tuple(Answer(*answer, num) for answer, num in rows))
