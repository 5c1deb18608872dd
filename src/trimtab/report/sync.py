"""The report of a published run: what a version takes, and how long followers pause for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from trimtab.report import charts
from trimtab.report import document as doc
from trimtab.report.records import checkpoints_table, settings_table
from trimtab.report.wording import Shown, count, endpoint, printable, share, shown
from trimtab.sync.published import Followed, Published, Served
from trimtab.sync.published import SyncLog as SyncLog
from trimtab.words import plural

PUBLISHING = {
    "wait": "until the version before was published",
    "diff": "to find what changed",
    "encode": "in the background",
    "publish": "to store it, in the background",
    "extra": "for folded links and anchors, in the background",
}
"""Stage of a publisher -> what it is; the trainer waits for the first two."""

FOLLOWING = {
    "fetch": "to copy the files",
    "decode": "while the model is in use",
    "pause": "until the model was idle",
    "apply": "while it was not in use",
    "resume": "until it answered again",
}
"""Stage of a follower -> what it is."""

CHANGED, BYTES = "of the elements changed", "of the bytes of the weights"

MOST_ROWS = 24
"""Versions that a terminal shows."""


def sync_document(log: SyncLog) -> doc.Document:
    """What a report says about a published run."""
    base = endpoint(log.base)
    dense = log.versions[0].num_dense_bytes if log.versions else 0
    first, last = (log.versions[0], log.versions[-1]) if log.versions else (None, None)
    span = "no version" if first is None or last is None else _span(first, last)
    return doc.Document(
        title=f"{base}, {span}",
        heading="What does it take to follow a run?",
        subtitle=(base, span),
        facts={"base": base, "place": printable(log.place)},
        headlines=[_sentence(log, dense)],
        heroes=[
            doc.Hero(
                "",
                share(log.median_bytes, dense),
                "of the bytes of the weights, for a version (median)",
                log.median_bytes / max(dense, 1),
                f"{log.median_bytes:,} of {dense:,} bytes",
            )
        ],
        summary=[_waited(log), _proven(log) if log.served else None],
        coverage=f"complete: {plural(len(log.versions), 'version')}",
        prints_coverage=False,
        sections=[
            doc.Section("Versions", blocks=_versions(log)) if log.versions else None,
            doc.Section("The engine", (_proven(log),), _served(log)) if log.served else None,
            doc.Section("Followers", blocks=_followers(log)) if log.followed else None,
            doc.Section(
                "Provenance",
                blocks=(
                    checkpoints_table({"base": log.base}),
                    settings_table("Publisher", {"place": log.place, **log.provenance}),
                ),
            ),
        ],
        source=f"{base}, {span}",
        date=log.provenance.get("date", ""),
    )


def _span(first: Published, last: Published) -> str:
    return f"versions {first.version} to {last.version}"


def _sentence(log: SyncLog, dense: int) -> str:
    if not log.versions:
        return "No version was published."
    changed = median(each.num_changed / max(each.num_elements, 1) for each in log.versions)
    return (
        f"{plural(len(log.versions), 'version')}: {share(changed, 1)} of the elements changed from "
        f"one to the next, which took {log.median_bytes:,} bytes, {share(log.median_bytes, dense)} "
        f"of the {dense:,} of the weights (medians)."
    )


def _waited(log: SyncLog) -> str | None:
    if not log.versions:
        return None
    waits = [each.seconds.get("wait", 0) + each.seconds.get("diff", 0) for each in log.versions]
    text = f"The trainer waited {median(waits):.2g} s for each (median)"
    pauses = [sum(each.seconds.get(s, 0) for s in ("pause", "apply")) for each in log.followed]
    if pauses:
        text += f"; followers did not serve for {median(pauses):.2g} s"
    return f"{text}."


def _seconds(stage: str, notes: dict[str, str]) -> doc.Column[Any]:
    def cell(row: Published | Followed) -> Shown:
        return shown(row.seconds.get(stage), lambda value: f"{value:.3g}")

    drop = 2 if stage in ("extra", "pause", "resume") else 0
    return doc.Column(f"{stage}, s", cell, drop=drop, note=f"{stage}: seconds {notes[stage]}.")


def _versions(log: SyncLog) -> tuple[doc.Figure | doc.Table, ...]:
    columns = (
        doc.Column[Published]("step", lambda row: count(row.step), drop=1),
        doc.Column[Published]("changed", lambda row: share(row.num_changed, row.num_elements, 3)),
        doc.Column[Published]("bytes", lambda row: count(row.num_bytes)),
        doc.Column[Published]("of dense", lambda row: share(row.num_bytes, row.num_dense_bytes, 3)),
        *(_seconds(stage, PUBLISHING) for stage in PUBLISHING),
    )
    rows = [((str(each.version),), each) for each in log.versions]
    every = -(-len(rows) // MOST_ROWS)
    few = doc.table(
        "Versions",
        rows[::every],
        columns,
        keys=("version",),
        brief="Versions" if every == 1 else f"Versions, each {every}th",
        on_page=False,
    )
    numbers = doc.table("Every version", rows, columns, keys=("version",))
    drawn = [
        {
            "arm": line,
            "at": each.version,
            "value": 100 * part / whole,
            "tip_0": f"version {each.version}",
            "tip_1": f"{share(part, whole, 3)} {line}",
        }
        for each in log.versions
        for line, part, whole in (
            (CHANGED, each.num_changed, each.num_elements),
            (BYTES, each.num_bytes, each.num_dense_bytes),
        )
        if whole
    ]
    marks = charts.Marks(drawn, ("version", "share"))
    top = charts.nice_ceiling(max(marks.values("value"), default=0.0))
    figure = doc.Figure(
        "What changes from one version to the next, and the bytes of it",
        lambda: charts.shares_over_time(
            marks, [CHANGED, BYTES], time="version", axis="% of the model", domain=(0.0, top)
        ),
        "Both as shares of the whole model.",
        numbers,
        (doc.Key("dot-0", CHANGED), doc.Key("dot-1", BYTES)),
    )
    return (few, figure)


def _proven(log: SyncLog) -> str:
    num = sum(each.is_proven for each in log.served)
    return (
        f"The engine served {plural(len(log.served), 'version')}; what it multiplies by had the "
        f"hashes of the version in {'all' if num == len(log.served) else num} of them."
    )


def _served(log: SyncLog) -> tuple[doc.Figure | doc.Table, ...]:
    columns = (
        doc.Column[Served]("proof", lambda row: "equal" if row.is_proven else "DIFFERS", "word"),
        doc.Column[Served]("right", lambda row: count(row.num_right)),
        doc.Column[Served]("asked", lambda row: count(row.num_asked)),
        doc.Column[Served]("share right", lambda row: share(row.num_right, row.num_asked, 1)),
    )
    rows = [((str(each.version),), each) for each in log.served]
    table = doc.table(
        "Proofs, and questions answered right",
        rows,
        columns,
        keys=("version",),
        is_folded=False,
        brief="Proofs, and questions answered right",
    )
    return (table,)


def _followers(log: SyncLog) -> tuple[doc.Table, ...]:
    names = sorted({each.follower for each in log.followed})
    columns = (
        doc.Column[Sequence[Followed]]("versions", lambda rows: count(len(rows))),
        doc.Column[Sequence[Followed]](
            "bytes", _median(lambda row: row.num_bytes, lambda value: f"{value:,.0f}")
        ),
        *(
            doc.Column[Sequence[Followed]](
                f"{stage}, s",
                _median(_of(stage), lambda value: f"{value:.3g}"),
                note=f"{stage}: seconds {FOLLOWING[stage]}.",
            )
            for stage in FOLLOWING
        ),
    )
    table = doc.table(
        "Followers (medians)",
        [((name,), [each for each in log.followed if each.follower == name]) for name in names],
        columns,
        keys=(("follower", "code"),),
        is_folded=False,
        brief="Followers (medians)",
    )
    return (table,)


def _of(stage: str) -> Callable[[Followed], float | None]:
    return lambda row: row.seconds.get(stage)


def _median(
    value: Callable[[Followed], float | None], write: Callable[[float], str]
) -> Callable[[Sequence[Followed]], str]:
    def cell(rows: Sequence[Followed]) -> str:
        values = [found for row in rows if (found := value(row)) is not None]
        return shown(median(values) if values else None, write)

    return cell
