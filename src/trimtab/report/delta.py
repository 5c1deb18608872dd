"""The report of a delta: how small it is, and where its bytes go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log2
from typing import NamedTuple

from trimtab.deltas.manifest import Manifest as Manifest
from trimtab.deltas.manifest import TensorEntry
from trimtab.elements.counts import added
from trimtab.elements.dtypes import DTYPES
from trimtab.elements.ulps import label_order, num_distances
from trimtab.report import document as doc
from trimtab.report.changes import distance_figure
from trimtab.report.records import checkpoints_table, settings_table
from trimtab.report.wording import count, endpoint, of_all, printable, share
from trimtab.results.by_tensor import by_kind, by_layer
from trimtab.words import plural

FLAT_POSITIONS = (
    "Flat positions: what the positions alone would take at the entropy of their density, "
    "N · H(changed / N) bits."
)

FLAT_LIMIT = (
    "Flat limit: positions, signed distances and their signs at the entropies of the whole row, "
    "what a coder that looks neither at the base nor at rows and columns cannot go below."
)


class _Sum(NamedTuple):
    """Figures of some tensors together."""

    num_elements: int
    num_changed: int
    num_bytes: int
    num_stored: int
    num_predictor: int
    distances: Mapping[str, int]
    num_whole: int  # bytes of changed elements without a distance

    @property
    def flat_positions(self) -> float:
        """Bytes of the positions at the entropy of their density."""
        return _entropy([self.num_changed, self.num_elements - self.num_changed]) / 8

    @property
    def flat_limit(self) -> float:
        """Bytes of positions and signed distances, each at its entropy."""
        numbers = [*self.distances.values()]
        without = self.num_changed - sum(numbers)
        low_bits = sum(num * log2(num_distances(d)) for d, num in self.distances.items())
        distances = (_entropy([*numbers, without]) + low_bits) / 8 + self.num_whole
        return self.flat_positions + distances


def _entropy(counts: Sequence[int]) -> float:
    """Bits of symbols that occur so often."""
    total = sum(counts)
    return sum(count * log2(total / count) for count in counts if count)


COLUMNS = (
    doc.Column[_Sum]("elements", lambda row: count(row.num_elements), drop=2),
    doc.Column[_Sum]("changed", lambda row: share(row.num_changed, row.num_elements)),
    doc.Column[_Sum]("bytes", lambda row: count(row.num_stored)),
    doc.Column[_Sum]("of dense", lambda row: share(row.num_stored, row.num_bytes)),
    doc.Column[_Sum](
        "predictor",
        lambda row: share(row.num_predictor, row.num_bytes),
        drop=3,
        note="Predictor: the factors of rows and columns, a part of the bytes.",
    ),
    doc.Column[_Sum](
        "flat positions",
        lambda row: share(row.flat_positions, row.num_bytes),
        drop=1,
        note=FLAT_POSITIONS,
    ),
)

WITH_BASE = (
    *COLUMNS,
    doc.Column[_Sum](
        "flat limit", lambda row: share(row.flat_limit, row.num_bytes), note=FLAT_LIMIT
    ),
)


def delta_document(delta: Manifest) -> doc.Document:
    """What a report says about a delta."""
    base, result = endpoint(delta.base), endpoint(delta.result)
    total = _sum(delta.tensors)
    is_measured = all(entry.ulp_histogram is not None for entry in delta.tensors)
    columns = WITH_BASE if is_measured else COLUMNS
    return doc.Document(
        title=f"{base} → {result}",
        heading="Where do the bytes of a delta go?",
        subtitle=(base, result),
        facts={"base": base, "result": result},
        headlines=[size_sentence(delta)],
        heroes=[
            doc.Hero(
                "",
                share(delta.num_stored, delta.num_bytes),
                "of the bytes of the checkpoint, lossless",
                delta.num_stored / max(delta.num_bytes, 1),
                f"{delta.num_stored:,} of {delta.num_bytes:,} bytes",
            )
        ],
        summary=[_limit_sentence(total) if is_measured and total.num_bytes else None],
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
                        columns,
                        keys=("kind",),
                        is_folded=False,
                        has_total=True,
                        brief="By kind",
                    ),
                    doc.table(
                        "By layer",
                        doc.rows_by_layer(by_layer(delta.tensors, _sum)),
                        columns,
                        keys=("layer",),
                    ),
                    doc.table(
                        "By tensor",
                        [((entry.name,), _sum([entry])) for entry in delta.tensors],
                        columns,
                        keys=(("tensor", "code"),),
                    ),
                    _files(delta),
                ),
            ),
            _how_far(total) if total.distances else None,
            doc.Section(
                "Provenance",
                blocks=(
                    checkpoints_table({"base": delta.base, "result": delta.result}),
                    settings_table(
                        "Delta",
                        {
                            "root": delta.root,
                            "position": delta.position,
                            **({} if delta.mask is None else {"mask": delta.mask}),
                            **delta.provenance,
                        },
                    ),
                ),
            ),
        ],
        source=f"{base} → {result}",
        date=delta.provenance.get("date", ""),
    )


def size_sentence(delta: Manifest, file_bytes: int | None = None) -> str:
    """How much changed, and how small the delta is: its file, or what it stores of the model."""
    num_bytes = delta.num_stored if file_bytes is None else file_bytes
    what = "bytes of tensors and files" if file_bytes is None else "bytes"
    return (
        f"{of_all(delta.num_changed, delta.num_elements)} elements changed; {num_bytes:,} {what}, "
        f"{share(num_bytes, delta.num_bytes)} of the {delta.num_bytes:,} of the checkpoint"
    )


def _limit_sentence(total: _Sum) -> str:
    return (
        f"The tensors take {share(total.num_stored, total.num_bytes)} of their dense bytes; the "
        "flat limit, of a coder that looks neither at the base nor at rows and columns, is "
        f"{share(total.flat_limit, total.num_bytes)}."
    )


def _how_far(total: _Sum) -> doc.Section:
    """Section on the distances, with a table of one row for each distance."""
    num = sum(total.distances.values())
    ups = {d: count for d, count in total.distances.items() if not d.startswith("-")}
    downs = {d.replace("-", ""): c for d, c in total.distances.items() if d.startswith("-")}

    def cells(distance: str) -> tuple[str, ...]:
        down, up = downs.get(distance, 0), ups.get(distance, 0)
        return distance, count(down), count(up), share(down + up, num)

    numbers = doc.plain_table(
        "Elements by distance",
        [
            ("distance in ulp", "number"),
            ("decreased", "number"),
            ("increased", "number"),
            ("share", "number"),
        ],
        map(cells, label_order(added(ups, downs))),
        brief="Elements by distance",
    )
    sentence = (
        f"{of_all(sum(ups.values()), num)} elements that moved increased; "
        f"{share(ups.get('1', 0) + downs.get('1', 0), num)} moved by one ulp."
    )
    without = total.num_changed - num
    more = f" {plural(without, 'changed element')} has no distance: " if without == 1 else ""
    if without > 1:
        more = f" {plural(without, 'changed element')} have no distance: "
    if more:
        more += "a NaN, a zero that changed its sign, or a row that the base does not have."
    return doc.Section(
        "How far the changed weights moved",
        (sentence + more,),
        (distance_figure({"": total.distances}, numbers),),
    )


def _sum(entries: Sequence[TensorEntry]) -> _Sum:
    distances: dict[str, int] = {}
    num_whole = 0
    for entry in entries:
        histogram = entry.ulp_histogram or {}
        distances = added(distances, histogram)
        num_whole += (entry.num_changed - sum(histogram.values())) * DTYPES[entry.dtype].num_bytes
    return _Sum(
        sum(entry.num_elements for entry in entries),
        sum(entry.num_changed for entry in entries),
        sum(entry.num_bytes for entry in entries),
        sum(entry.num_stored for entry in entries),
        sum(entry.frames[0] for entry in entries if entry.frames and entry.copy_of is None),
        distances,
        num_whole,
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
