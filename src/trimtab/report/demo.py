"""The report of a demo: whether the runs learned, what they changed, at what cost.

Runs inside a mask are compared with FULL, the run of every weight whose changes are the mask, by an
identity check in their own mask, or in that of FULL for another run of every weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, nan
from typing import Any

from trimtab.elements.counts import percent
from trimtab.masks.identity import Identity
from trimtab.measure.compare_result import Comparison
from trimtab.report import document as doc
from trimtab.report import vega, wording
from trimtab.report.changes import Run
from trimtab.report.charts import Marks, accuracy_dots, marks_of, run_keys
from trimtab.report.comparison import compared, comparison_sections, frame
from trimtab.report.demo_record import ArmRecord, BeforeRecord, DemoRecord, Score
from trimtab.report.identity import base_share, cosine_text, same_model, stray_sentence, sub_share
from trimtab.report.records import setting_text
from trimtab.words import plural


def demo_document(
    demo: DemoRecord,
    comparisons: Mapping[str, Comparison],
    identities: Mapping[str, Identity] | None = None,
) -> doc.Document:
    """What a report says about a demo: runs from one base, side by side.

    Args:
        demo: The record of the runs.
        comparisons: Comparison with the base of each run of every weight, by label.
        identities: Check against FULL of the other runs, by label.
    """
    identities = identities or {}
    runs = [Run(label, comparison) for label, comparison in comparisons.items()]
    labels = ", ".join(map(wording.printable, demo["arms"]))
    base = wording.printable(demo["base_id"])
    task = f" trained on {demo['task']}" if "task" in demo else " trained"
    opening = (
        f"Starting from {base}, {plural(len(demo['arms']), 'run')}{task}. This page "
        "shows whether each learned, which weights it changed, and how many weights the size of "
        "its steps alone would lead one to expect."
    )
    inside = {label: check for label, check in identities.items() if label not in comparisons}
    masked: list[doc.Section] = []
    if identities:
        opening += (
            " Where and how far weights moved is shown for the runs that trained every weight."
        )
        masked.append(_only_the_mask(demo, comparisons, identities))
        masked += [same_model(inside, runs=list(demo["arms"])).page_only()] if inside else []
    return frame(
        runs,
        title=f"trimtab demo: {labels}",
        heading="What training changed, run by run",
        subtitle=(base, labels),
        summary=(f"{base}. {demo['model_note']}",),
        paragraphs=(opening, demo["model_note"], compared(runs)),
        warnings=[
            wording.labelled(label, stray)
            for label, check in inside.items()
            if (stray := stray_sentence(check)) is not None
        ],
        prints_coverage=False,
        sections=(_learned(demo), *masked, *comparison_sections(runs), *_delta(demo), _cost(demo)),
    )


def _share_text(score: Score) -> wording.Shown:
    text = wording.share(score["correct"], score["total"], 1)
    return wording.Shown(f"{text} ({score['correct']:,} of {score['total']:,})", text.value)


def _interval_text(score: Score) -> str:
    interval = score.get("interval")
    return "–" if interval is None else wording.interval_text(interval)


def _score_text(score: Score) -> str:
    """A score with its interval, in percent: `81.2 % [64.7, 91.1]`."""
    return wording.share_text(score["correct"], score["total"], score.get("interval"))


def _learned(demo: DemoRecord) -> doc.Section:
    """Held-out accuracy before and after, and the learning curves."""
    baseline, labels = demo["majority_baseline"], list(demo["arms"])
    answer = wording.printable(baseline["answer"])
    models: list[tuple[str, str, BeforeRecord]] = [
        ("base", "", demo["before"]),
        *((f"after {label}", label, arm) for label, arm in demo["arms"].items()),
    ]
    marks = marks_of(
        [
            ((model, way, label), score)
            for model, label, record in models
            for way, score in (
                ("greedy", record["accuracy_greedy"]),
                ("sampled", record["accuracy_sampled"]),
            )
        ],
        ("model", "decoding"),
        (doc.Column("correct", _share_text), doc.Column("95 % interval", _interval_text)),
        lambda names, score: _placed(names[0], names[1], names[2], score),
    )
    figure = doc.Figure(
        "Held-out accuracy before and after training",
        lambda: accuracy_dots(
            marks,
            [model for model, _, _ in models],
            labels,
            baseline=100 * baseline["correct"] / baseline["total"] if baseline["total"] else None,
        ),
        "Filled dots are greedy answers, rings are sampled ones. Whiskers are 95 % intervals "
        "(Wilson's), over questions: several samples of one question are not independent. A model "
        f"that learned nothing but the most frequent answer ({answer}) would stand on the dashed "
        "line.",
        doc.table(
            "Accuracy on the held-out questions",
            [
                *(((model,), record) for model, _, record in models),
                ((f"always “{baseline['answer']}”",), baseline),
            ],
            _accuracy_columns(),
            keys=("model",),
            is_folded=False,
            brief="Held-out accuracy [95 % interval]",
        ),
        (
            doc.Key("dot-ink", "greedy"),
            doc.Key("ring-ink", "sampled"),
            doc.Key("whisker", "95 % interval"),
            doc.Key("dashed", f"majority answer, {_share_text(baseline)}"),
        ),
    )
    curves = [curve for measure in ("reward", "loss") if (curve := _curve(demo, measure))]
    return doc.Section("Did they learn?", blocks=(figure, *curves))


def _placed(model: str, way: str, label: str, score: Score) -> dict[str, Any]:
    """The mark of a score."""
    value = score["correct"] / score["total"] if score["total"] else 0.0
    low, high = score.get("interval") or (value, value)
    ends = {"accuracy": 100 * value, "low": 100 * low, "high": 100 * high}
    return {"model": model, "arm": label, "way": way, **ends}


def _accuracy_columns() -> list[doc.Column[Any]]:
    """Columns of a record with both scores, or of the score of a constant answer."""

    def greedy(row: Any) -> Any:
        return row.get("accuracy_greedy", row)

    def sampled(text: Any, row: Any, otherwise: str) -> Any:
        return text(row["accuracy_sampled"]) if "accuracy_sampled" in row else otherwise

    return [
        doc.Column("greedy", lambda row: _share_text(greedy(row)), only="page"),
        doc.Column("95 % interval", lambda row: _interval_text(greedy(row)), only="page"),
        doc.Column("sampled", lambda row: sampled(_share_text, row, "–"), only="page"),
        doc.Column("95 % interval", lambda row: sampled(_interval_text, row, "–"), only="page"),
        doc.Column("greedy", lambda row: _score_text(greedy(row)), only="terminal"),
        doc.Column("sampled, T = 1", lambda row: sampled(_score_text, row, ""), only="terminal"),
        doc.Column(
            "loss tokens",
            lambda row: wording.count(row["loss_tokens"]) if "loss_tokens" in row else "",
            drop=2,
            only="terminal",
        ),
        doc.Column(
            "seconds",
            lambda row: f"{row['seconds']:.0f}" if "seconds" in row else "",
            drop=1,
            only="terminal",
        ),
    ]


def _curve(demo: DemoRecord, measure: str) -> doc.Figure | None:
    points = [
        ((label, str(int(entry["step"]))), entry[measure])
        for label, arm in demo["arms"].items()
        for entry in arm["history"]
        if isfinite(entry.get(measure, nan))
    ]
    if not points:
        return None
    labels = list(demo["arms"])
    columns = (doc.Column[float](measure, lambda value: wording.Shown(f"{value:.4g}", value)),)
    keys: Any = ("run", ("step", "number"))
    marks = marks_of(
        points,
        ("run", "step"),
        columns,
        lambda names, value: {"arm": names[0], "step": int(names[1]), "value": value},
    )
    title = {"reward": "Mean reward of the batch", "loss": "Loss of the batch"}[measure]
    return doc.Figure(
        f"{title} at every step",
        lambda: _learning_curve(marks, labels, measure),
        "One dot for each training step, on the questions of that step.",
        doc.table(f"{title}, step by step", points, columns, keys=keys),
        run_keys(dict.fromkeys(names[0] for names, _ in points), labels),
    )


def _learning_curve(marks: Marks, labels: Sequence[str], measure: str) -> dict[str, Any]:
    """A training measure at every step, from marks with `arm`, `step`, `value`."""
    look: dict[str, Any] = {"grid": False, "tickMinStep": 1, "format": "d", "labelFlush": False}
    places = {
        "x": vega.quantity("step", "step", scale={"nice": False}, **look),
        "y": vega.quantity("value", measure, scale={"zero": True}, tickCount=4),
        "color": vega.arm_colours(labels),
    }
    return vega.chart(
        marks.rows,
        vega.layer("line", places, strokeWidth=1.5),
        vega.dots({**places, "tooltip": marks.tooltip}, 45),
        height=150,
    )


Masked = tuple[ArmRecord, int, Identity | None]
"""A run, the number of weights that it changed, and its check against FULL."""


def _only_the_mask(
    demo: DemoRecord, comparisons: Mapping[str, Comparison], identities: Mapping[str, Identity]
) -> doc.Section:
    """What the runs inside a mask trained and learned, compared with FULL."""
    full = demo["full"]
    rows: list[tuple[Sequence[str], Masked]] = [
        ((full,), (demo["arms"][full], comparisons[full].total.num_changed["bits"], None)),
        *(
            ((label,), (demo["arms"][label], check.total.all.num_sub_moved, check))
            for label, check in identities.items()
        ),
    ]
    about = [
        f"{label}: {demo['arms'][label]['about']}"
        for label in identities
        if "about" in demo["arms"][label]
    ]
    notes = tuple(map(wording.printable, demo.get("mask_notes", ())))
    title = "Training only the mask"
    brief = title
    if check := next((identities[label] for label in identities if label not in comparisons), None):
        num, total = check.mask.num_selected, check.mask.num_elements
        brief += f": {num:,} of {total:,} weights ({percent(num, total)})"
    numbers = doc.table(
        f"Compared with {full}",
        rows,
        _mask_columns(full),
        keys=("run",),
        is_folded=False,
        brief=brief,
    )
    paragraphs = (*map(wording.printable, about), *notes)
    return doc.Section(title, paragraphs, (numbers, doc.Lines("", notes, is_wrapped=True)))


def _mask_columns(full: str) -> list[doc.Column[Masked]]:
    def checked(text: Any) -> Any:
        return lambda row: "–" if row[2] is None else text(row[2])

    counted = "“trained” and “changed” count weights, changed by criterion bits."
    return [
        doc.Column("greedy", lambda row: _score_text(row[0]["accuracy_greedy"]), only="page"),
        doc.Column("trained", _trained, drop=2, note=counted),
        doc.Column("changed", lambda row: wording.count(row[1]), drop=1, note=counted),
        doc.Column(
            "SUB = FULL",
            checked(lambda check: sub_share(check.total.inside)),
            note=f"FULL is {full}, SUB the run: bit equality inside the mask that the run trained, "
            f"or, for another run of every weight, inside that of {full}.",
        ),
        doc.Column(
            "BASE = FULL",
            checked(lambda check: base_share(check.total.inside)),
            note="“BASE = FULL” is what doing nothing scores there.",
        ),
        doc.Column(
            "cosine",
            checked(lambda check: cosine_text(check.total.all.cosine)),
            drop=3,
            note="“cosine” is that of the two whole updates.",
        ),
        doc.Column(
            "same answers",
            _same_answers,
            note=f"“same answers” are held-out questions with the greedy answer of {full}.",
        ),
        doc.Column(
            "optimizer",
            _optimizer_text,
            drop=4,
            note="“optimizer” is the memory of its running means, 8 bytes a weight, and of the "
            "positions of the weights where it needs them.",
        ),
    ]


def _trained(row: Masked) -> str:
    optimizer = row[0].get("optimizer")
    return wording.count(optimizer["num_selected"] if optimizer else None)


def _same_answers(row: Masked) -> str:
    same = row[0].get("same_answers")
    return f"{same['correct']:,} of {same['total']:,}" if same else "–"


def _optimizer_text(row: Masked) -> str:
    optimizer = row[0].get("optimizer")
    if not optimizer:
        return "–"
    size = optimizer["state_bytes"] + optimizer["index_bytes"]
    return wording.Shown(f"{size / 1e6:,.{0 if size > 1e8 else 2}f} MB", size)


def _delta(demo: DemoRecord) -> Sequence[doc.Section]:
    """How small the run of every weight is as a delta."""
    if "delta" not in demo:
        return ()
    delta, full = demo["delta"], demo["full"]
    size, whole = delta["num_bytes"], delta["num_bytes_whole"]
    notes: tuple[str, ...] = (
        wording.printable(
            f"{delta['path']} holds the checkpoint of {full} in {size / 1e6:,.2f} MB: "
            f"{wording.share(size, whole, 1)} of its {whole / 1e6:,.1f} MB. With the base it gives "
            "every file back byte for byte: "
            f"“trimtab delta apply {delta['base']} {delta['path']} -o FOLDER”."
        ),
    )
    if others := delta.get("num_bytes_of_others"):
        sizes = ", ".join(f"{name}: {num / 1e6:,.2f} MB" for name, num in others.items())
        notes += (wording.printable(f"The same change in formats of others: {sizes}."),)
    title = f"{full} as a delta"
    return (doc.Section(title, notes, (doc.Lines("", notes, is_wrapped=True),)),)


def _cost(demo: DemoRecord) -> doc.Section:
    """Time, trained tokens and settings of the runs; shared settings have their own table."""
    records = list(demo["arms"].values())
    rows = {
        "training time": [f"{record['seconds']:,.0f} s" for record in records],
        "tokens with a loss": [f"{record['loss_tokens']:,}" for record in records],
    }
    shared = {}
    for key in dict.fromkeys(key for record in records for key in record["settings"]):
        name = wording.printable(key.replace("_", " "))
        cells = [setting_text(record["settings"].get(key)) for record in records]
        if len(records) > 1 and len(set(cells)) == 1:
            shared[name] = cells[0]
        else:
            rows[name] = cells
    columns: list[tuple[str, doc.Role]] = [
        ("", "text"),
        *((label, "number") for label in demo["arms"]),
    ]
    lines = [(name, *cells) for name, cells in rows.items()]
    blocks = [doc.plain_table("The runs", columns, lines, is_folded=False)]
    if shared:
        settings: list[tuple[str, doc.Role]] = [("", "text"), ("every run", "text")]
        blocks.append(
            doc.plain_table("The same in every run", settings, shared.items(), is_folded=False)
        )
    return doc.Section("What the runs took", blocks=tuple(blocks))
