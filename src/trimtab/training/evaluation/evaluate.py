"""`evaluate`: checks everything up front, then evaluates one model after the other.

All models compute in the same dtype, so that differences are not due to arithmetic. With a text,
the base stays loaded together with the current model; otherwise only one model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trimtab.errors import Problems, SettingsError
from trimtab.progress import progress_bars, stage
from trimtab.results.evaluation import AskedQuestions, EvaluatedModel, Evaluation, Question
from trimtab.results.records import made_now
from trimtab.training import runtime
from trimtab.training.evaluation.answering import ask, load_model, load_tokenizer
from trimtab.training.evaluation.forgetting import (
    PASSAGE,
    NeutralText,
    measure_forgetting,
    passage_length,
    pieces,
    read_text,
)
from trimtab.training.evaluation.questions import Questions
from trimtab.training.evaluation.suites import Suites
from trimtab.training.runs.base_model import BaseModel, open_base
from trimtab.training.runtime import give_back_unused
from trimtab.words import plural

if TYPE_CHECKING:
    from rich.progress import Progress


def evaluate(
    models: Sequence[str],
    *,
    base: str | None = None,
    questions: Questions | None = None,
    num_samples: int = 0,
    temperature: float = 1.0,
    text: Path | None = None,
    suites: Suites | None = None,
    dtype: Literal["bf16", "fp32"] | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Ask models questions, and measure what they forgot compared with a base.

    Args:
        models: Folders, or hub ids with an optional `@revision`.
        base: The model that they were tuned from. It is evaluated first, and the predictions of all
            models on a text are compared with its own.
        questions: Questions to ask; None for no questions.
        num_samples: Completions sampled for each question, in addition to the greedy one.
        temperature: Sampling temperature.
        text: Text to compare predictions on; None for trimtab's neutral text.
        suites: Tasks of lm-evaluation-harness to run.
        dtype: Dtype of weights and arithmetic; None for bf16 if all models are stored in it, else
            fp32.
        batch_size: Completions generated at a time.
        seed: Seed of sampling.
        progress: A progress display to add lines to; by default a new one on stderr.

    Raises:
        SettingsError: There is nothing to evaluate, or settings cannot be used.
        CheckpointError: A model cannot be used.
        MissingExtraError: A package is missing.
    """
    runtime.start(offline=False)
    from trimtab.training.bf16_products import bf16_products

    names = [*([] if base is None else [base]), *models]
    problems = list(_problems(num_samples, temperature, batch_size, seed))
    if not models:
        problems.append("no models to evaluate")
    if questions is None and base is None and suites is None:
        problems.append(
            "nothing to evaluate: give questions, suites, or a base to compare models with"
        )
    if text is not None and base is None:
        problems.append(f"{text} is for comparison with a base: give one")
    if problems:
        raise SettingsError("; ".join(problems))
    if suites is not None:
        suites.check()
    neutral = None if base is None else read_text(text)
    opened = _opened(names, questions)
    passages = None if neutral is None else _passages(opened, neutral)
    stored = {model.training_dtype(None) for model in opened}
    settings = {
        "dtype": dtype or ("bf16" if stored == {"bf16"} else "fp32"),
        "seed": seed,
        "batch_size": batch_size,
        "num_samples": num_samples,
        "temperature": temperature if num_samples else None,
    }
    device = runtime.accelerator()
    how, products = bf16_products(device, is_bf16=settings["dtype"] == "bf16")
    with ExitStack() as stack:
        bars = progress or stack.enter_context(progress_bars())
        stack.enter_context(runtime.quiet())
        stack.enter_context(products)
        evaluated = _evaluated(opened, settings, questions, passages, suites, bars)
    return Evaluation(
        models=tuple(evaluated),
        questions=None if questions is None else _asked_questions(questions),
        text=None if neutral is None else {**neutral.describe(), "max_passage_tokens": PASSAGE},
        settings=settings,
        provenance=made_now(
            device={**runtime.device(device), "bf16_products": how}, versions=runtime.versions()
        ),
    )


def _problems(num_samples: int, temperature: float, batch_size: int, seed: int) -> Iterator[str]:
    if num_samples < 0:
        yield f"num_samples is {num_samples}, expected 0 or more"
    if not 0 < temperature < inf:
        yield f"temperature is {temperature}, expected a number above 0"
    if batch_size < 1:
        yield f"batch_size is {batch_size}, expected at least 1"
    if not 0 <= seed < 2**32:
        yield f"seed is {seed}, expected 0 to 2**32 - 1"


def _opened(names: Sequence[str], questions: Questions | None) -> list[BaseModel]:
    """Open the models and check them against the questions; collects all problems."""
    opened: list[BaseModel] = []
    problems = Problems()
    for name in names:
        with problems.collect():
            model = open_base(name, Path())
            opened.append(model)
            if questions is not None:
                questions.check(model)
    ids = [model.record.id for model in opened]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        problems.add(SettingsError(f"given twice: {', '.join(twice)}"))
    problems.raise_all()
    return opened


def _passages(opened: Sequence[BaseModel], text: NeutralText) -> list[list[int]]:
    """The token ids of the text, which must be the same for every model."""
    from transformers import AutoConfig

    configs = [AutoConfig.from_pretrained(model.folder).get_text_config() for model in opened]
    length = min(passage_length(model.folder) for model in opened)
    base, *others = opened
    passages = pieces(load_tokenizer(base.folder), text, length)
    problems = Problems()
    for model, config in zip(others, configs[1:], strict=True):
        if config.vocab_size != configs[0].vocab_size:
            problems.add(
                SettingsError(
                    f"{model.record.id} has a vocabulary of {config.vocab_size:,} tokens and the "
                    f"base one of {configs[0].vocab_size:,}: their predictions cannot be compared"
                )
            )
        elif pieces(load_tokenizer(model.folder), text, length) != passages:
            problems.add(
                SettingsError(
                    f"{model.record.id} tokenises the text differently from the base: their "
                    "predictions cannot be compared"
                )
            )
    problems.raise_all()
    return passages


def _asked_questions(questions: Questions) -> AskedQuestions:
    levels = questions.levels or (None,) * len(questions)
    rows = zip(questions.prompts, questions.answers, levels, strict=True)
    return AskedQuestions(questions.by, questions.describe(), tuple(Question(*row) for row in rows))


def _evaluated(
    opened: Sequence[BaseModel],
    settings: Mapping[str, Any],
    questions: Questions | None,
    passages: Sequence[Sequence[int]] | None,
    suites: Suites | None,
    bars: Progress,
) -> list[EvaluatedModel]:
    """Evaluate one model after the other; with passages, the first is the base."""
    base = None
    evaluated: list[EvaluatedModel] = []
    with stage(bars, f"evaluate {plural(len(opened), 'model')}", len(opened)) as models:
        models.step(0, {})
        for source in opened:
            name = Path(source.record.id).name
            model = load_model(source, settings["dtype"], runtime.accelerator())
            tokenizer = load_tokenizer(source.folder)
            answers = forgetting = metrics = None
            if questions is not None:
                with stage(bars, f"{name}: questions") as line:
                    answers = ask(
                        model,
                        tokenizer,
                        questions,
                        seed=settings["seed"],
                        num_samples=settings["num_samples"],
                        temperature=settings["temperature"] or 1.0,
                        batch_size=settings["batch_size"],
                        progress=line.follow,
                    )
            if base is not None and passages is not None:
                with stage(bars, f"{name}: text") as line:
                    forgetting = measure_forgetting(base, model, passages, line.follow)
            if suites is not None:
                with stage(bars, f"{name}: suites"):
                    metrics = suites.run(
                        model,
                        tokenizer,
                        batch_size=settings["batch_size"],
                        seed=settings["seed"],
                    )
            evaluated.append(EvaluatedModel(source.record, answers, forgetting, metrics))
            models.step(len(evaluated), {})
            if passages is not None and base is None:
                base = model
            del model
            give_back_unused()
    return evaluated
