"""The report of a robustness probe: the effect of noise in a mask and elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from math import inf
from typing import Any

from trimtab.report import document as doc
from trimtab.report import vega, wording
from trimtab.report.charts import marks_of, run_keys
from trimtab.report.records import checkpoints_table, mask_text, settings_table
from trimtab.results.robustness import Robustness
from trimtab.results.statistics import CONFIDENCE
from trimtab.words import plural

Arm = Mapping[str, Any]
"""The effect of one condition on one set: an entry of `arms` in `Robustness.summaries`."""

ARMS: Mapping[str, str] = {
    "mask": "the mask",
    "outside": "outside it",
    "random": "at random",
    "magnitude": "magnitude-matched",
}
"""Set of weights -> its name."""

_OTHER_SETS = {
    "outside": "outside it",
    "random": "at random",
    "magnitude": "of the same magnitudes",
}

NOISES: Mapping[str, str] = {
    "gaussian": "Gaussian noise, its norm relative to that of the weights it hits",
    "gaussian-absolute": "Gaussian noise, relative to the root mean square of the whole tensor",
    "sign": "signs flipped in a share of the weights",
    "bitflip": "one bit of the mantissa flipped in a share of the weights",
}


def robustness_document(probe: Robustness) -> doc.Document:
    """The document of a robustness probe."""
    name = wording.endpoint(probe.checkpoint)
    mask = mask_text(probe.mask)
    return doc.Document(
        title=name,
        heading="Is the mask more fragile?",
        subtitle=(name, mask),
        facts={"checkpoint": name, "mask": mask},
        headlines=[_comparison(probe, arm) for arm in probe.arms[1:]],
        summary=[_opening(probe)],
        heroes=[_hero(probe, arm) for arm in probe.arms[1:]],
        paragraphs=(_opening(probe),),
        coverage="complete: every set of weights was given the same noise, text and questions",
        prints_coverage=False,
        sections=[
            doc.Section("Noise", blocks=tuple(_figures(probe))),
            _provenance(probe),
        ],
        source=f"{name} · {mask}",
        date=probe.provenance.get("date", ""),
    )


def _opening(probe: Robustness) -> str:
    """What was measured: questions, text, seeds."""
    parts = []
    if probe.questions is not None:
        num = probe.questions["num_questions"]
        parts.append(
            f"{wording.printable(str(probe.questions['source']))}: {plural(num, 'question')}, "
            f"{wording.of_all(probe.num_correct or 0, num)} right before any noise."
        )
    parts.append(
        f"KL from the unperturbed model on {plural(probe.text['num_tokens'], 'token')} of "
        f"{wording.printable(probe.text['source'])}. "
        f"{plural(len(probe.settings['seeds']), 'seed')}, computed in {probe.settings['dtype']}."
    )
    return " ".join(parts)


def noise_text(noise: str) -> str:
    """The description of a kind of noise."""
    return NOISES.get(noise, wording.printable(noise))


def verdict(arm: Arm) -> str:
    """Whether the mask is more fragile than a set: by the interval of the ratio of divergences."""
    ratio = None if arm["mask_beside_it"] is None else arm["mask_beside_it"]["kl_ratio"]
    if ratio is None or ratio["low"] is None:
        return "open"
    if ratio["low"] > 1:
        return "more"
    return "less" if ratio["high"] < 1 else "open"


def verdict_counts(probe: Robustness, name: str) -> dict[str, int]:
    """Number of conditions with each verdict on the mask compared with a set."""
    verdicts = [
        verdict(arm)
        for summary in probe.summaries()
        for arm in summary["arms"]
        if arm["arm"] == name
    ]
    return {each: verdicts.count(each) for each in ("more", "less", "open")}


def _comparison(probe: Robustness, arm: str) -> str:
    """The mask compared with one set, over all conditions."""
    counts = verdict_counts(probe, arm)
    return (
        f"Compared with the same number of weights {_OTHER_SETS[arm]}, noise in the mask moves the "
        f"model more in {counts['more']}, less in {counts['less']} of "
        f"{plural(sum(counts.values()), 'condition')}"
        f"{'; ' + str(counts['open']) + ' open' if counts['open'] else ''}."
    )


def _hero(probe: Robustness, arm: str) -> doc.Hero:
    counts = verdict_counts(probe, arm)
    num = sum(counts.values())
    more = counts["more"]
    return doc.Hero("", f"{more} of {num}", _comparison(probe, arm), more / num, "more fragile")


def _share(summary: Arm | None) -> wording.Shown:
    if summary is None:
        return wording.NONE
    return wording.share_text(summary["mean"], 1, wording.within(summary, 0.0, 1.0), digits=2)


def _points(summary: Arm | None) -> wording.Shown:
    if summary is None:
        return wording.NONE
    return wording.points_text(summary["mean"], wording.within(summary, -1.0, 1.0))


def _amount(summary: Arm | None) -> wording.Shown:
    """A figure that is never negative, though its t-interval can be."""
    if summary is None:
        return wording.NONE
    return wording.with_ends(summary["mean"], wording.within(summary, 0.0, inf), wording.magnitude)


def _paired(arm: Arm, figure: str) -> Arm | None:
    paired: Arm | None = arm["mask_beside_it"][figure]
    return paired


def columns(*, has_questions: bool) -> list[doc.Column[Arm]]:
    """Columns on the effect of noise."""
    all_columns: list[doc.Column[Arm]] = [
        doc.Column("in mask", lambda arm: wording.share(arm["share_in_mask"]["mean"], 1), drop=1),
        doc.Column(
            "norm",
            lambda arm: wording.magnitude(arm["relative_norm"] and arm["relative_norm"]["mean"]),
            drop=2,
            note="“norm” is the norm of the noise ÷ that of the weights it could hit, as stored.",
        ),
        doc.Column("correct", lambda arm: _share(arm["accuracy"]), drop=4),
        doc.Column("KL", lambda arm: _amount(arm["kl"])),
        doc.Column(
            "mask ÷ it",
            lambda arm: _amount(_paired(arm, "kl_ratio")) if arm["mask_beside_it"] else "",
            note="“mask ÷ it” is the KL of noise in the mask ÷ the KL of the same noise there "
            "(geometric mean): above 1 the mask is more fragile.",
        ),
        doc.Column(
            "correct, mask − it",
            lambda arm: (
                _points(_paired(arm, "accuracy_difference")) if arm["mask_beside_it"] else ""
            ),
            drop=3,
            note="“correct, mask − it” is the difference in points, seed by seed.",
        ),
    ]
    return [column for column in all_columns if has_questions or "correct" not in column.heading]


def rows_of(summaries: Sequence[Mapping[str, Any]], noise: str) -> Iterator[doc.Keyed[Arm]]:
    """The conditions of one kind of noise, set by set."""
    for summary in summaries:
        if summary["noise"] == noise:
            for arm in summary["arms"]:
                name = ARMS.get(arm["arm"], wording.printable(arm["arm"]))
                yield (f"{summary['level']:g}", name), arm


_KEYS = ("level", "noise in")


def _figures(probe: Robustness) -> Iterator[doc.Figure]:
    """A figure and a table for each kind of noise."""
    mask, *others = (ARMS.get(arm, wording.printable(arm)) for arm in probe.arms)
    names = [*others, mask]  # so that each set has the colour of its headline
    summaries = probe.summaries()
    shown = columns(has_questions=probe.questions is not None)
    for noise in probe.settings["noises"]:
        rows = list(rows_of(summaries, noise))
        hover = [column for column in shown if column.heading in ("KL", "correct")]
        title = f"{wording.printable(noise)}: {noise_text(noise)}"
        yield doc.Figure(
            title,
            partial(_divergence_by_level, rows, hover, names),
            "Higher is more fragile. Points are means over seeds, whiskers go from the least to "
            "the most of them. Both axes are logarithmic.",
            doc.table(
                f"{wording.printable(noise)}: the same in figures",
                rows,
                shown,
                keys=_KEYS,
                note=f"In brackets: {100 * CONFIDENCE:g} % t-intervals over seeds, cut at "
                "possible values, each seed with its own sets and noise and the same questions.",
                brief=title,
            ),
            (*run_keys(names, names), doc.Key("whisker", "least to most of the seeds")),
        )


def _place(names: Sequence[str], arm: Arm) -> dict[str, Any] | None:
    """The mark of a mean; None for a divergence of 0, which a log axis cannot show."""
    if arm["kl"]["least"] <= 0:
        return None
    kl = {"kl": arm["kl"]["mean"], "least": arm["kl"]["least"], "most": arm["kl"]["most"]}
    return {"arm": names[1], "level": float(names[0]), **kl}


def _divergence_by_level(
    rows: Sequence[doc.Keyed[Arm]], hover: Sequence[doc.Column[Arm]], names: Sequence[str]
) -> dict[str, Any]:
    """KL at every level, for each set of weights; both axes are logarithmic."""
    marks = marks_of(rows, _KEYS, hover, _place)

    def log(field: str, title: str, **look: Any) -> dict[str, Any]:
        scale = {"type": "log", "nice": False, "padding": 12}
        return vega.quantity(field, title, scale=scale, labelFlush=False, format="~g", **look)

    def y(field: str) -> dict[str, Any]:
        return log(field, "KL from the unperturbed model (nats a token)", tickCount=5)

    levels = sorted(set(marks.values("level")))
    x = log("level", "level of the noise", values=levels, grid=False)
    places = {"x": x, "y": y("kl"), "color": vega.arm_colours(names)}
    return vega.chart(
        marks.rows,
        vega.layer("line", places, strokeWidth=1.5),
        vega.whiskers({**places, "y": y("least"), "y2": {"field": "most"}}),
        vega.dots({**places, "tooltip": marks.tooltip}, 60),
        height=260,
    )


def _provenance(probe: Robustness) -> doc.Section:
    """Ids, hashes and settings of the probe."""
    mask = {key: value for key, value in probe.mask.to_dict().items() if key != "provenance"}
    blocks = [
        checkpoints_table({"checkpoint": probe.checkpoint, "base": probe.base}),
        settings_table("Mask", mask),
        settings_table("Probe", {**probe.settings, **probe.provenance}),
        settings_table("Text", probe.text),
    ]
    if probe.questions is not None:
        blocks.append(settings_table("Questions", probe.questions))
    return doc.Section("Provenance", blocks=tuple(blocks))
