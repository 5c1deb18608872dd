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
    from trimtab.training.rollouts.sampling import Sampler, ids_of, seeded

    # A stop of several tokens cannot end the sampling; the text is cut at it all the same.
    sampler = Sampler(model, tokenizer, questions.max_completion_length, stop=questions.stop)
    ids = [prompt_ids(tokenizer, prompt) for prompt in questions.prompts]
    each = list(range(len(questions)))
    repeated = [place for place in each for _ in range(num_samples)]
    total = ceil(len(each) / batch_size) + ceil(len(repeated) / batch_size)
    num_done = 0

    def complete(places: Sequence[int], temperature: float) -> list[tuple[str, bool, bool]]:
        """A completion of each question: its text, whether it is right, and whether it ended."""
        nonlocal num_done
        answered: list[tuple[str, bool, bool]] = []
        for start in range(0, len(places), batch_size):
            batch = places[start : start + batch_size]
            samples = sampler.sample([ids[place] for place in batch], temperature=temperature)
            texts, ended = sampler.texts(ids_of(samples)), samples.has_ended.tolist()
            if questions.stop is not None:
                ended = [
                    has_ended or questions.stop in text
                    for text, has_ended in zip(texts, ended, strict=True)
                ]
                texts = [text.partition(questions.stop)[0] for text in texts]
            rewards = questions.reward.of([questions.rows.rows[place] for place in batch], texts)
            right = [reward >= 1 for reward in rewards]
            answered += zip(texts, right, ended, strict=True)
            num_done += 1
            if progress is not None:
                progress(num_done, total)
        return answered

    with seeded(model.device, seed):
        greedy = complete(each, 0.0)
        sampled = complete(repeated, temperature)
    num_right = [0] * len(questions)
    for place, (_, is_right, _) in zip(repeated, sampled, strict=True):
        num_right[place] += is_right
    rows = zip(greedy, num_right, strict=True)
    return Answers(num_samples, tuple(Answer(*answer, num) for answer, num in rows))
