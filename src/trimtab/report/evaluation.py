"""The report of an evaluation: accuracies, differences between models, and forgetting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from trimtab.report import document as doc
from trimtab.report import wording
from trimtab.report.charts import accuracy_dots, marks_of
from trimtab.report.records import checkpoints_table, settings_table
from trimtab.results.answers import Answer, Answers, Forgetting, answers_difference
from trimtab.results.evaluation import AskedQuestions, EvaluatedModel, Evaluation
from trimtab.results.statistics import CONFIDENCE, normal_interval
from trimtab.words import plural

_NUM_ANSWERS = 40
_CONFIDENCE = f"{100 * CONFIDENCE:g} %"


def evaluation_document(evaluation: Evaluation) -> doc.Document:
    """The document of an evaluation."""
    first, *others = names = [name for name, _ in _named(evaluation)]
    questions = evaluation.questions
    task = "" if questions is None else _task(questions)
    return doc.Document(
        title=", ".join((*others, first)),
        heading="What the models forgot" if questions is None else "What the models answered",
        subtitle=(first, ", ".join(others) or "no other model"),
        headlines=[f"{task}."] if questions else [],
        summary=[_settings_text(evaluation, questions)] if questions else [],
        heroes=_heroes(evaluation),
        coverage="complete: every model was given the same questions and texts",
        prints_coverage=False,
        sections=[
            _accuracy(evaluation),
            _forgetting(evaluation),
            _suites(evaluation),
            _given_answers(evaluation),
            _provenance(evaluation),
        ],
        source=(f"{task} · " if questions else "") + ", ".join(names),
        date=evaluation.provenance.get("date", ""),
    )


def _named(evaluation: Evaluation) -> list[tuple[str, EvaluatedModel]]:
    return [(wording.printable(model.record.id), model) for model in evaluation.models]


def _answered(evaluation: Evaluation) -> list[tuple[str, Answers]]:
    models = _named(evaluation)
    return [(name, model.answers) for name, model in models if model.answers is not None]


def _task(questions: AskedQuestions) -> str:
    """Source and number of the questions: `addition: 32 questions`."""
    source = wording.printable(questions.record["source"])
    text = f"{source}: {plural(questions.num_questions, 'question')}"
    if num := questions.record["num_seen"]:
        text += f" ({num:,} more were left out: the run was trained on them)"
    return text


def _settings_text(evaluation: Evaluation, questions: AskedQuestions) -> str:
    """How the questions were asked."""
    settings = evaluation.settings
    sampled = ""
    if settings["num_samples"]:
        sampled = (
            f", and {plural(settings['num_samples'], 'sample')} of each at temperature "
            f"{settings['temperature']:g}, seed {settings['seed']}"
        )
    tokens = plural(questions.record["max_completion_length"], "token")
    return (
        f"Asked greedily{sampled}; at most {tokens} an answer, {settings['batch_size']:,} at a "
        f"time, computed in {settings['dtype']}."
    )


def _heroes(evaluation: Evaluation) -> list[doc.Hero]:
    """The greedy accuracy of each model, or of those that are compared with the first."""
    models = _answered(evaluation)
    reference_text = ""
    if len(models) > 1:
        first, answers = models.pop(0)
        reference_text = f"; {wording.share(answers.greedy_accuracy, 1, 1)} by {first}"
    return [
        doc.Hero(
            name,
            wording.share(answers.greedy_accuracy, 1, 1),
            f"of {answers.num_questions:,} questions are answered right, greedily{reference_text}",
            answers.greedy_accuracy,
            f"{answers.num_greedy_correct:,} right",
        )
        for name, answers in models
    ]


def _accuracy(evaluation: Evaluation) -> doc.Section | None:
    """Accuracy of each model, differences and levels; None if nothing was asked."""
    questions = evaluation.questions
    if questions is None:
        return None
    blocks: list[doc.Figure | doc.Table] = [_accuracy_figure(evaluation, questions)]
    if len(evaluation.models) > 1:
        blocks.append(_differences(evaluation))
    if questions.by is not None:
        blocks.append(_levels(evaluation, questions))
    opening = f"{_task(questions)}. {_settings_text(evaluation, questions)}"
    return doc.Section("Held-out accuracy", (opening,), tuple(blocks))


_Scored = Answers | Mapping[str, Any]
"""The answers of a model, or what the best constant answer scores."""


def _greedy(row: _Scored) -> wording.Shown:
    if isinstance(row, Answers):
        return wording.share_text(row.num_greedy_correct, row.num_questions, row.greedy_interval)
    return wording.share(row["num_correct"], row["num_questions"], 1)


def _sampled(row: _Scored) -> str:
    if not isinstance(row, Answers):
        return ""
    if row.sampled_accuracy is None:
        return wording.NONE
    return wording.share_text(row.sampled_accuracy, 1, row.sampled_interval)


def _cut_off(row: _Scored) -> str:
    return wording.count(row.num_greedy_not_ended) if isinstance(row, Answers) else ""


def _accuracy_figure(evaluation: Evaluation, questions: AskedQuestions) -> doc.Figure:
    answered = _answered(evaluation)
    names = [name for name, _ in answered]
    coloured = names[1:] or names
    intervals = [
        ((name, way), (wording.share(accuracy, 1, 1), interval))
        for name, answers in answered
        for way, accuracy, interval in (
            ("greedy", answers.greedy_accuracy, answers.greedy_interval),
            ("sampled", answers.sampled_accuracy, answers.sampled_interval),
        )
        if accuracy is not None and interval is not None
    ]
    marks = marks_of(
        intervals,
        ("model", "decoding"),
        (
            doc.Column("correct", lambda row: row[0]),
            doc.Column(f"{_CONFIDENCE} interval", lambda row: wording.interval_text(row[1])),
        ),
        lambda called, row: {
            "model": called[0],
            "arm": called[0] if called[0] in coloured else "",
            "way": called[1],
            "accuracy": 100 * (row[0].value or 0.0),
            "low": 100 * row[1][0],
            "high": 100 * row[1][1],
        },
    )
    rows: list[tuple[Sequence[str], _Scored]] = [((name,), answers) for name, answers in answered]
    columns = [doc.Column[_Scored]("greedy", _greedy), doc.Column[_Scored]("cut off", _cut_off)]
    keys = [doc.Key("dot-ink", "greedy")]
    if evaluation.settings["num_samples"]:
        title = f"sampled, T = {evaluation.settings['temperature'] or 0:g}"
        columns.insert(1, doc.Column(title, _sampled))
        keys.append(doc.Key("ring-ink", "sampled"))
    if baseline := questions.baseline():
        rows.append(((_always(baseline),), baseline))
        keys.append(doc.Key("dashed", f"{_always(baseline)}, {_greedy(baseline)}"))
    title = f"Held-out accuracy [{_CONFIDENCE} interval]"
    constant = 100 * baseline["accuracy"] if baseline else None
    return doc.Figure(
        "Answers that are right",
        lambda: accuracy_dots(marks, names, coloured, baseline=constant),
        f"Whiskers are {_CONFIDENCE} intervals (Wilson's), over questions: several samples of one "
        "question are not independent. Models answer the same questions, so the differences below "
        "are sharper than two whiskers suggest.",
        doc.table(title, rows, columns, keys=("model",), is_folded=False, brief=title),
        (*keys, doc.Key("whisker", f"{_CONFIDENCE} interval")),
    )


def _always(baseline: Mapping[str, Any]) -> str:
    """The name of the baseline."""
    answer = " ".join(str(baseline["answer"]).split())
    return f"always “{wording.printable(answer if len(answer) <= 20 else f'{answer[:19]}…')}”"


def _differences(evaluation: Evaluation) -> doc.Table:
    """Difference of each model from the first, on the same questions."""
    (first, reference), *others = _answered(evaluation)
    title = f"Differences on the same questions [{_CONFIDENCE} interval]"
    columns = [
        doc.Column[Any]("gained", lambda row: wording.count(row["num_gained"])),
        doc.Column[Any]("lost", lambda row: wording.count(row["num_lost"])),
        doc.Column[Any](
            "greedy",
            lambda row: wording.points_text(row["greedy_difference"], row["greedy_interval"]),
        ),
        doc.Column[Any](
            "p",
            lambda row: wording.shown(
                row["p_value"], lambda p: "<0.0001" if p < 0.0001 else f"{p:.4f}"
            ),
        ),
    ]
    if evaluation.settings["num_samples"]:
        columns.append(
            doc.Column(
                "sampled",
                lambda row: wording.points_text(row["sampled_difference"], row["sampled_interval"]),
            )
        )
    return doc.table(
        title,
        [((name,), answers_difference(reference, answers)) for name, answers in others],
        columns,
        keys=("model",),
        is_folded=False,
        note=f"In points, from {first}. “gained” are questions that only the model answers, “lost” "
        f"those that only {first} does; “p” is McNemar's exact test, two-sided.",
        brief=title,
    )


def _headings(evaluation: Evaluation, *others: str) -> list[str]:
    """A unique heading for each model."""
    headings: list[str] = []
    for heading, _ in _named(evaluation):
        while heading in (*others, *headings):
            heading = f"./{heading}"
        headings.append(heading)
    return headings


def _levels(evaluation: Evaluation, questions: AskedQuestions) -> doc.Table:
    """Greedy accuracy of each model at each level."""
    by = wording.printable(questions.by or "")
    rows = [
        (
            (wording.printable(str(level)),),
            (
                questions.baseline(indices),
                [answers.subset(indices) for _, answers in _answered(evaluation)],
            ),
        )
        for level, indices in questions.indices_by_level().items()
    ]
    columns: list[doc.Column[Any]] = [
        doc.Column("questions", lambda row: wording.count(row[1][0].num_questions)),
        doc.Column("always", lambda row: wording.NONE if row[0] is None else _greedy(row[0])),
    ]
    note = "Greedy. “always” is the best constant answer of each level."
    if not any(baseline for _, (baseline, _) in rows):
        columns.pop()
        note = "Greedy."
    for index, heading in enumerate(_headings(evaluation, "level", "questions", "always")):
        columns.append(doc.Column(heading, partial(lambda at, row: _greedy(row[1][at]), index)))
    title = f"Accuracy by {by}"
    return doc.table(title, rows, columns, keys=("level",), is_folded=False, note=note, brief=title)


def _forgetting(evaluation: Evaluation) -> doc.Section | None:
    """Divergence from the base on a neutral text; None without a base."""
    if evaluation.text is None:
        return None
    base = next(model.forgetting for model in evaluation.models if model.forgetting is not None)
    source = (
        f"{plural(base.num_tokens, 'token')} of {wording.printable(evaluation.text['source'])}, in "
        f"{plural(len(base.passages), 'passage')}"
    )
    columns = (
        doc.Column[Forgetting | None]("KL(base ‖ model)", _kl),
        doc.Column[Forgetting | None](
            "perplexity",
            lambda row: wording.shown(row.tuned_perplexity if row else base.base_perplexity, ".4g"),
        ),
    )
    numbers = doc.table(
        f"On neutral text [{_CONFIDENCE} interval]",
        [((name,), model.forgetting) for name, model in _named(evaluation)],
        columns,
        keys=("model",),
        is_folded=False,
        note="“KL” is in nats a token, 0 for a model that predicts as the base does; its interval "
        "is over passages.",
        brief=f"Forgetting [{_CONFIDENCE} interval]: {source}",
    )
    return doc.Section("Forgetting", (f"Compared with the base on {source}.",), (numbers,))


def _kl(row: Forgetting | None) -> wording.Shown:
    return (
        wording.NONE
        if row is None
        else wording.with_ends(row.kl, row.kl_interval, wording.magnitude)
    )


def _suites(evaluation: Evaluation) -> doc.Section | None:
    """Metrics of lm-evaluation-harness; None if none were computed."""
    all_suites = [model.suites for model in evaluation.models if model.suites is not None]
    if not all_suites:
        return None
    rows = [
        (
            (wording.printable(task), wording.printable(metric)),
            [suites[task]["metrics"][metric] for suites in all_suites],
        )
        for task, suite in all_suites[0].items()
        for metric in suite["metrics"]
    ]
    columns = [
        doc.Column[list[Any]](heading, partial(lambda at, row: _metric(row[at]), index))
        for index, heading in enumerate(_headings(evaluation, "task", "metric"))
    ]
    title = f"lm-evaluation-harness [{_CONFIDENCE} interval]"
    keys = ("task", "metric")
    metrics = doc.table(title, rows, columns, keys=keys, is_folded=False, brief=title)
    return doc.Section("lm-evaluation-harness", blocks=(metrics,))


def _metric(metric: Mapping[str, Any]) -> wording.Shown:
    value, error = metric["value"], metric["standard_error"]
    interval = None if error is None else normal_interval(value, error)
    return wording.with_ends(value, interval, "{:.4g}".format)


def _given_answers(evaluation: Evaluation) -> doc.Section | None:
    """The greedy answers to the first questions; None if nothing was asked."""
    questions = evaluation.questions
    if questions is None:
        return None
    answered = _answered(evaluation)
    answers = doc.plain_table(
        "Greedy answers",
        [("question", "code"), ("right", "code"), *((name, "code") for name, _ in answered)],
        [
            (
                _short(
                    row.prompt if isinstance(row.prompt, str) else row.prompt[-1]["content"],
                    is_end=True,
                ),
                "–" if row.answer is None else _short(str(row.answer)),
                *(_marked(answers.answers[index]) for _, answers in answered),
            )
            for index, row in enumerate(questions.rows[:_NUM_ANSWERS])
        ],
        note=f"The first {_NUM_ANSWERS} questions at most; ✓ marks what is right. All are in the "
        "JSON.",
    )
    return doc.Section("Answers", blocks=(answers,))


def _marked(answer: Answer) -> str:
    return f"{'✓' if answer.correct else '✗'} {_short(answer.greedy)}"


def _short(text: str, *, is_end: bool = False) -> str:
    """One line of a text: its beginning, or its end, where the question is."""
    line = wording.printable(" ".join(text.split()))
    if len(line) <= 60:
        return line
    return f"…{line[-59:]}" if is_end else f"{line[:59]}…"


def _provenance(evaluation: Evaluation) -> doc.Section:
    """Ids, hashes and settings of the evaluation."""
    blocks = [
        checkpoints_table({name: model.record for name, model in _named(evaluation)}),
        settings_table("Evaluation", {**evaluation.settings, **evaluation.provenance}),
    ]
    if evaluation.questions is not None:
        blocks.append(settings_table("Questions", evaluation.questions.record))
    if evaluation.text is not None:
        blocks.append(settings_table("Text", evaluation.text))
    return doc.Section("Provenance", blocks=tuple(blocks))
