"""Sections and tables on the coverage and provenance of a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from trimtab.report.document import Section, Table, plain_table
from trimtab.report.wording import named, of_all, printable
from trimtab.results.records import CheckpointRecord, MaskRecord

_NUM_LISTED = 40


class Coverage(Protocol):
    """The coverage of a result; its lists of tensors are attributes too."""

    @property
    def is_complete(self) -> bool:
        """Whether everything was compared."""


class Covered(NamedTuple):
    """The coverage of one run.

    Attributes:
        sentence: As text, to follow "coverage is".
        coverage: As data.
        lists: Names of its lists of tensors, in order.
    """

    sentence: str
    coverage: Coverage
    lists: Sequence[str]


def coverage_section(runs: Mapping[str, Covered], titles: Mapping[str, str]) -> Section:
    """What was compared and what was not; every gap is listed.

    Args:
        runs: Coverage of each run, by label; the label of a single run is "".
        titles: Name of a list -> title of its table.
    """
    return Section(
        "Coverage",
        tuple(
            f"{f'{printable(label)}: ' if label else 'Coverage is '}{covered.sentence}."
            for label, covered in runs.items()
        ),
        tuple(
            listed(named(printable(label), titles[name]), rows)
            for label, covered in runs.items()
            for name in covered.lists
            if (rows := getattr(covered.coverage, name))
        ),
        not all(covered.coverage.is_complete for covered in runs.values()),
    )


def listed(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """A list of tensors of a coverage as a table."""
    # Hashes are in the JSON; here they would take the space of the names.
    keys = list(dict.fromkeys(key for row in rows for key in row if not key.endswith("hash")))
    numbers = [key for key in keys if key.startswith("num_") or key.endswith("shape")]
    return plain_table(
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


def checkpoints_table(records: Mapping[str, CheckpointRecord], title: str = "Checkpoints") -> Table:
    """The records of checkpoints, side by side."""
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
    return plain_table(
        title,
        [("", "text"), *((name, "code") for name in records)],
        [(name, *cells) for name, cells in lines],
        is_folded=False,
    )


def _dtypes(dtypes: Mapping[str, int]) -> str:
    if len(dtypes) == 1:
        return printable(next(iter(dtypes)))
    return ", ".join(f"{printable(name)} ({num:,})" for name, num in dtypes.items()) or "–"


def settings_table(title: str, entries: Mapping[str, object], *, is_folded: bool = False) -> Table:
    """Names and values of settings."""
    return plain_table(
        title,
        [("", "text"), ("", "code")],
        [
            (printable(name.replace("_", " ")), setting_text(value))
            for name, value in entries.items()
        ],
        is_folded=is_folded,
    )


def setting_text(value: object) -> str:
    """The value of a setting."""
    if isinstance(value, Mapping):
        pairs = value.items()
        return ", ".join(f"{printable(str(key))} {setting_text(item)}" for key, item in pairs)
    if isinstance(value, list | tuple):
        return ", ".join(map(setting_text, value)) or "–"
    return str(value) if isinstance(value, bool) else _cell(value)


def masks_provenance(
    masks: Mapping[str, MaskRecord], base: CheckpointRecord | None, run: Table
) -> Section:
    """Provenance of masks, by name, of their base, and of the result."""
    return Section(
        "Provenance",
        blocks=(
            plain_table(
                "Masks",
                [("", "text"), ("file", "code"), ("selected", "text"), ("digest", "code")],
                [
                    (name, mask_file(mask), mask_share(mask), printable(mask.digest))
                    for name, mask in masks.items()
                ],
                is_folded=False,
            ),
            *(
                settings_table(f"How {name} was made", mask.provenance, is_folded=True)
                for name, mask in masks.items()
            ),
            *([] if base is None else [checkpoints_table({"base": base}, "Base")]),
            run,
        ),
    )


def mask_file(mask: MaskRecord) -> str:
    """The file of a mask."""
    return "not from a file" if mask.id is None else printable(mask.id)


def mask_share(mask: MaskRecord) -> str:
    """Selected weights of a mask."""
    return f"{of_all(mask.num_selected, mask.num_elements)} weights selected"


def mask_text(mask: MaskRecord) -> str:
    """File and selected weights of a mask."""
    return f"{mask_file(mask)}: {mask_share(mask)}"
