"""The report of a delta: how small it is, and where its bytes go."""

from __future__ import annotations

from collections.abc import Sequence
from math import log2
from typing import NamedTuple

from trimtab.deltas.manifest import Manifest as Manifest
from trimtab.deltas.manifest import TensorEntry
from trimtab.report import document as doc
from trimtab.report.records import checkpoints_table, settings_table
from trimtab.report.wording import count, endpoint, of_all, printable, share
from trimtab.results.by_tensor import by_kind, by_layer
from trimtab.words import plural

FLAT = (
    "Flat positions: what the positions alone would take at the entropy of their density, "
    "N · H(changed / N) bits; a coder that does not use the base cannot need less."
)


class _Sum(NamedTuple):
    """Figures of some tensors together."""

    num_elements: int
    num_changed: int
    num_bytes: int
    num_stored: int

    @property
    def flat_bytes(self) -> float:
        """Bytes of the positions at the entropy of their density."""
        density = self.num_changed / max(self.num_elements, 1)
        if density in (0, 1):
            return 0.0
        bits = -density * log2(density) - (1 - density) * log2(1 - density)
        return self.num_elements * bits / 8


COLUMNS = (
    doc.Column[_Sum]("elements", lambda row: count(row.num_elements), drop=2),
    doc.Column[_Sum]("changed", lambda row: share(row.num_changed, row.num_elements)),
    doc.Column[_Sum]("bytes", lambda row: count(row.num_stored)),
    doc.Column[_Sum]("of dense", lambda row: share(row.num_stored, row.num_bytes)),
    doc.Column[_Sum](
        "flat positions", lambda row: share(row.flat_bytes, row.num_bytes), drop=1, note=FLAT
    ),
)


def delta_document(delta: Manifest) -> doc.Document:
    """What a report says about a delta."""
    base, result = endpoint(delta.base), endpoint(delta.result)
    total = _sum(delta.tensors)
    return doc.Document(
        title=f"{base} → {result}",
        heading="Where do the bytes of a delta go?",
        subtitle=(base, result),
        facts={"base": base, "result": result},
        headlines=[size_sentence(delta, delta.num_stored)],
        heroes=[
            doc.Hero(
                "",
                share(delta.num_stored, delta.num_bytes),
                "of the bytes of the checkpoint, lossless",
                delta.num_stored / max(delta.num_bytes, 1),
                f"{delta.num_stored:,} of {delta.num_bytes:,} bytes",
            )
        ],
        warnings=[_left_out(delta)],
        coverage=f"complete: all {plural(len(delta.tensors), 'tensor')} of the result",
        prints_coverage=False,
        sections=[
            doc.Section(
                "Bytes",
                blocks=(
                    doc.table(
                        "By kind",
                        doc.rows_by_kind(by_kind(delta.tensors, _sum), total),
                        COLUMNS,
                        keys=("kind",),
                        is_folded=False,
                        has_total=True,
                        brief="By kind",
                    ),
                    doc.table(
                        "By layer",
                        doc.rows_by_layer(by_layer(delta.tensors, _sum)),
                        COLUMNS,
                        keys=("layer",),
                    ),
                    doc.table(
                        "By tensor",
                        [((entry.name,), _sum([entry])) for entry in delta.tensors],
                        COLUMNS,
                        keys=(("tensor", "code"),),
                    ),
                    _files(delta),
                ),
            ),
            doc.Section(
                "Provenance",
                blocks=(
                    checkpoints_table({"base": delta.base, "result": delta.result}),
                    settings_table(
                        "Delta",
                        {"root": delta.root, "position": delta.position, **delta.provenance},
                    ),
                ),
            ),
        ],
        source=f"{base} → {result}",
        date=delta.provenance.get("date", ""),
    )


def size_sentence(delta: Manifest, num_bytes: int) -> str:
    """How much changed, and how small the delta is."""
    return (
        f"{of_all(delta.num_changed, delta.num_elements)} elements changed; {num_bytes:,} bytes, "
        f"{share(num_bytes, delta.num_bytes)} of the {delta.num_bytes:,} of the checkpoint"
    )


def _sum(entries: Sequence[TensorEntry]) -> _Sum:
    return _Sum(
        sum(entry.num_elements for entry in entries),
        sum(entry.num_changed for entry in entries),
        sum(entry.num_bytes for entry in entries),
        sum(entry.num_stored for entry in entries),
    )


def _left_out(delta: Manifest) -> str | None:
    if not delta.left_out:
        return None
    return f"Not stored: {', '.join(map(printable, delta.left_out))}."


def _files(delta: Manifest) -> doc.Table:
    return doc.plain_table(
        "Files",
        [("file", "code"), ("kind", "word"), ("bytes", "number"), ("stored", "number")],
        [
            (printable(file.path), file.kind, count(file.num_bytes), count(file.num_stored))
            for file in delta.files
        ],
        note="Of a file of weights, what is stored here is its header.",
    )
