"""Sections of the page on what the figures speak of and where they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.compare.result import COVERAGE_LISTS
from trimtab.report.arms import Arm
from trimtab.report.blocks import Section, Table, table
from trimtab.report.wording import coverage_sentence, named, printable
from trimtab.results.records import CheckpointRecord

__all__ = ["checkpoints_table", "coverage", "listed", "provenance", "settings_table"]

_NUM_LISTED = 40
_TITLES = {
    "tied": "Tied tensors, counted once",
    "missing": "Only in base",
    "extra": "Only in tuned",
    "shape_mismatch": "Of another shape",
    "renamed": "Matched under another name",
    "folded": "Block scales multiplied into their weights",
}


def coverage(arms: Sequence[Arm]) -> Section:
    """What was compared and what was not; every gap is listed."""
    sentences = []
    blocks: list[Table] = []
    for arm in arms:
        prefix = f"{arm.label}: " if arm.label else "Coverage is "
        sentences.append(f"{prefix}{coverage_sentence(arm.comparison.coverage)}.")
        for name in COVERAGE_LISTS:
            if rows := getattr(arm.comparison.coverage, name):
                blocks.append(listed(named(arm.label, _TITLES[name]), rows))
    is_warning = not all(arm.comparison.coverage.is_complete for arm in arms)
    return Section("Coverage", tuple(sentences), tuple(blocks), is_warning)


def listed(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """A list of a coverage as a table of the keys that its rows have."""
    # Hashes are for machines, which read the JSON; here they would leave names no room.
    keys = list(dict.fromkeys(key for row in rows for key in row if not key.endswith("hash")))
    numbers = [key for key in keys if key.startswith("num_") or key.endswith("shape")]
    return table(
        f"{title} ({len(rows):,})",
        [
            (key.removeprefix("num_").replace("_", " "), "number" if key in numbers else "code")
            for key in keys
        ],
        [tuple(_cell(row.get(key)) for key in keys) for row in rows],
        is_folded=len(rows) > 8,
        limit=_NUM_LISTED,
    )


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return " × ".join(map(str, value)) or "scalar"
    return printable(str(value))


def provenance(arms: Sequence[Arm]) -> Section:
    """Ids, revisions, hashes, dtypes and how the comparison was run."""
    records: dict[str, CheckpointRecord] = {}
    for arm in arms:
        records.setdefault("base", arm.comparison.base)
        records[arm.label or "tuned"] = arm.comparison.tuned
    return Section("Provenance", blocks=(checkpoints_table(records), *(_run(arm) for arm in arms)))


def checkpoints_table(records: Mapping[str, CheckpointRecord], title: str = "Checkpoints") -> Table:
    """What each checkpoint was, side by side under the names given."""
    lines: list[tuple[str, tuple[str, ...]]] = [
        ("id", tuple(printable(record.id) for record in records.values())),
        ("revision", tuple(printable(record.revision or "–") for record in records.values())),
        ("architecture", tuple(printable(r.architecture or "–") for r in records.values())),
        ("tensors", tuple(f"{record.num_tensors:,}" for record in records.values())),
        ("elements stored", tuple(f"{record.num_elements:,}" for record in records.values())),
        ("stored as", tuple(_dtypes(record.dtypes) for record in records.values())),
        ("content hash", tuple(printable(record.content_hash) for record in records.values())),
    ]
    if any(record.notes for record in records.values()):
        notes = ("; ".join(record.notes) or "–" for record in records.values())
        lines.append(("notes", tuple(printable(note) for note in notes)))
    return table(
        title,
        [("", "text"), *((name, "code") for name in records)],
        [(name, *cells) for name, cells in lines],
        is_folded=False,
    )


def _dtypes(dtypes: Mapping[str, int]) -> str:
    if len(dtypes) == 1:
        return printable(next(iter(dtypes)))
    return ", ".join(f"{printable(name)} ({num:,})" for name, num in dtypes.items()) or "–"


def _run(arm: Arm) -> Table:
    comparison = arm.comparison
    entries: dict[str, object] = {
        "criterion of the headline": comparison.criterion,
        "conversion": comparison.conversion or "none: compared as stored",
        **comparison.provenance,
    }
    return settings_table(named(arm.label, "Comparison"), entries, is_folded=bool(arm.label))


def settings_table(title: str, entries: Mapping[str, object], *, is_folded: bool) -> Table:
    """Names and values, whatever they are."""
    return table(
        title,
        [("", "text"), ("", "code")],
        [(printable(name.replace("_", " ")), _setting(value)) for name, value in entries.items()],
        is_folded=is_folded,
    )


def _setting(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{printable(str(key))} {_setting(item)}" for key, item in value.items())
    return _cell(value)
