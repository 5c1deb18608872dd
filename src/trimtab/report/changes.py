"""What changed between checkpoints: where, by how much, and which tensors most.

Each section takes one comparison, or several runs from the same base to show side by side. Only a
single run is printed in a terminal too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from trimtab.elements.counts import ChangeCounts, percent
from trimtab.elements.criteria import parse_criterion
from trimtab.elements.ulps import label_order
from trimtab.measure.compare_result import Comparison, TensorChange
from trimtab.report import charts, wording
from trimtab.report import document as doc
from trimtab.words import plural

_NUM_MOVERS = 12
_HEAT_MAP = (
    "Each cell shows all tensors of one kind in one layer: the stronger the colour, the larger the "
    "share of changed elements. A cell without colour is nearly or fully unchanged; a missing cell "
    "has no tensors. “out” is outside the layers."
)
_TOLERANCES = (
    "With a higher tolerance larger moves count as unchanged, so the share grows to the right. "
    "Tolerances are on a log scale, with 0 at its left end after a dotted line. The vertical axis "
    "need not begin at 0."
)


@dataclass(frozen=True, eq=False)
class Run:
    """One comparison of a report, with its sums by kind and by layer.

    Attributes:
        label: Label of the run (`grpo`); empty if a report has a single one.
        comparison: Its result.
    """

    label: str
    comparison: Comparison

    @property
    def criterion(self) -> str:
        """Key of the criterion of the headlines."""
        return self.comparison.criterion

    @property
    def measured_by(self) -> str:
        """The criterion to compare a prediction with, which has no tolerance: `bits` or `value`."""
        return self.criterion if self.criterion in ("bits", "value") else "value"

    @cached_property
    def by_layer_kind(self) -> dict[tuple[int | None, str], ChangeCounts]:
        """Counts by layer and kind, ordered by layer."""
        return self.comparison.by_layer_kind()

    @cached_property
    def by_kind(self) -> dict[str, ChangeCounts]:
        """Counts by kind, in display order."""
        counts: defaultdict[str, ChangeCounts] = defaultdict(ChangeCounts)
        for (_, kind), group in self.by_layer_kind.items():
            counts[kind] += group
        return {kind: counts[kind] for kind in wording.kinds_in_order(counts)}

    @cached_property
    def by_layer(self) -> dict[int | None, ChangeCounts]:
        """Counts by layer, ascending; None for tensors outside the layers comes last."""
        counts: defaultdict[int | None, ChangeCounts] = defaultdict(ChangeCounts)
        for (layer, _), group in self.by_layer_kind.items():
            counts[layer] += group
        return dict(counts)

    @cached_property
    def total(self) -> ChangeCounts:
        """Counts of the whole model."""
        return ChangeCounts.sum(self.by_kind.values())

    @cached_property
    def tensors_by_kind(self) -> dict[str, list[TensorChange]]:
        """The tensors of each kind, in display order."""
        groups: defaultdict[str, list[TensorChange]] = defaultdict(list)
        for tensor in self.comparison.tensors:
            groups[tensor.kind].append(tensor)
        return {kind: groups[kind] for kind in wording.kinds_in_order(groups)}

    def kind(self, kind: str | None) -> ChangeCounts | None:
        """Counts of a kind, or of all; None without such tensors."""
        return self.total if kind is None else self.by_kind.get(kind)

    def random_walk(self, kind: str | None) -> wording.Shown | None:
        """Sparsity that a directionless walk predicts for a kind, or for all; None if not analysed.

        Also None under a criterion with a tolerance, which the prediction cannot be compared with.
        """
        section = self.comparison.analyses.get("precision")
        if section is None or self.measured_by != self.criterion:
            return None
        row = section["total"] if kind is None else section["by_kind"].get(kind)
        return None if row is None else predicted_share(row, "random_walk")


def predicted_share(row: Mapping[str, Any], model: str) -> wording.Shown:
    """The share that a model of the precision analysis predicts to be unchanged."""
    return wording.share(row["num_elements"] - row[model], row["num_elements"])


def _counts(criterion: str) -> tuple[doc.Column[ChangeCounts], ...]:
    """The columns of most tables."""
    return (
        doc.Column("elements", lambda counts: wording.count(counts.num_elements)),
        doc.Column("changed", lambda counts: wording.count(counts.num_changed.get(criterion, 0))),
        doc.Column("unchanged", lambda counts: wording.sparsity_text(counts, criterion)),
    )


def where(runs: Sequence[Run]) -> doc.Section:
    """Table by kind, and a heat map of layer × kind for each run."""
    densities = [
        100 * (counts.density(run.criterion) or 0)
        for run in runs
        for counts in run.by_layer_kind.values()
        if counts.num_elements
    ]
    highest = charts.nice_ceiling(max(densities, default=0))
    maps = [_heat_map(run, highest, is_first=run is runs[0]) for run in runs if run.by_kind]
    return doc.Section(
        "Where the changes are",
        blocks=(
            *([_side_by_side(runs)] if len(runs) > 1 else []),
            *(_by_kind(run, is_single=len(runs) == 1) for run in runs),
            *(figure for figure in maps if figure is not None),
            *map(_by_layer, runs),
        ),
    )


def _side_by_side(runs: Sequence[Run]) -> doc.Table:
    """Runs from one base; in a terminal with the prediction from the size of their steps."""
    kinds: list[str | None] = [
        *wording.kinds_in_order(kind for run in runs for kind in run.by_kind),
        None,
    ]
    predicts = any(run.random_walk(None) for run in runs)
    columns: list[doc.Column[str | None]] = [
        doc.Column("elements", lambda kind: wording.count(_elements(runs, kind)), only="page")
    ]
    for run in runs:
        columns += _of_run(run, predicts=predicts)
    if all(run.random_walk(None) for run in runs):
        section = runs[0].comparison.analyses["precision"]
        note = (
            f"“predicted” depends only on the base weights, their dtype and {section['steps']} "
            f"random steps of {section['lr']:g}: it is the same for every run."
        )
        predicted = doc.Column[str | None](
            "predicted",
            lambda kind: runs[0].random_walk(kind) or "–",
            drop=1,
            note=note,
            only="terminal",
        )
        columns.append(predicted)
    return doc.table(
        f"Unchanged elements by kind ({wording.unchanged(runs[0].criterion)})",
        [((kind or "all",), kind) for kind in kinds],
        columns,
        keys=("kind",),
        has_total=True,
        is_folded=False,
        brief=f"Weights left as they were (criterion: {runs[0].criterion})",
    )


def _elements(runs: Sequence[Run], kind: str | None) -> int:
    return max(group.num_elements for run in runs if (group := run.kind(kind)))


def _of_run(run: Run, *, predicts: bool) -> list[doc.Column[str | None]]:
    def measured(kind: str | None) -> str:
        group = run.kind(kind)
        return "–" if group is None else wording.sparsity_text(group, run.criterion)

    columns: list[doc.Column[str | None]] = [
        doc.Column(f"{run.label} unchanged", measured, short=run.label)
    ]
    if predicts:
        walk = doc.Column[str | None](
            f"{run.label} random walk",
            lambda kind: run.random_walk(kind) or "–",
            note="“random walk” is the share that random steps of this size would leave unchanged, "
            "see “What precision alone predicts”.",
            only="page",
        )
        columns.append(walk)
    return columns


def _by_kind(run: Run, *, is_single: bool) -> doc.Table:
    def tensors(kind: str | None) -> Sequence[TensorChange]:
        return run.comparison.tensors if kind is None else run.tensors_by_kind[kind]

    def mean(kind: str | None) -> str:
        value = run.comparison.unweighted_mean_sparsity(run.criterion, tensors(kind))
        return "–" if value is None else wording.share(value, 1)

    elements, changed, unchanged = _counts(run.criterion)
    columns: list[doc.Column[str | None]] = [
        doc.Column("tensors", lambda kind: wording.count(len(tensors(kind))), drop=1),
        doc.Column(
            "elements", lambda kind: elements.cell(run.kind(kind) or ChangeCounts()), drop=5
        ),
        doc.Column("changed", lambda kind: changed.cell(run.kind(kind) or ChangeCounts()), drop=3),
        doc.Column("unchanged", lambda kind: unchanged.cell(run.kind(kind) or ChangeCounts())),
    ]
    if run.random_walk(None) is not None:
        section = run.comparison.analyses["precision"]
        note = (
            f"“predicted” is what a random walk of {section['steps']:,} steps of {section['lr']:g} "
            "would leave unchanged in the stored dtype."
        )
        predicted = doc.Column[str | None](
            "predicted", lambda kind: run.random_walk(kind) or "–", drop=4, note=note
        )
        columns.append(predicted)
    note = "“unchanged” is weighted by elements, “mean of tensors” weights tensors equally."
    columns.append(doc.Column("mean of tensors", mean, drop=2, note=note))
    return doc.table(
        wording.named(run.label, "By kind"),
        [((kind or "all",), kind) for kind in (*run.by_kind, None)],
        columns,
        keys=("kind",),
        has_total=True,
        is_folded=not is_single,
        brief="" if is_single and run.by_kind else None,
    )


def _heat_map(run: Run, highest: float, *, is_first: bool) -> doc.Figure | None:
    cells = {key: counts for key, counts in run.by_layer_kind.items() if counts.num_elements}
    if not cells:
        return None
    changed = doc.Column[ChangeCounts](
        "changed",
        lambda counts: wording.of_all(counts.num_changed[run.criterion], counts.num_elements),
    )
    marks = charts.marks_of(
        [((wording.layer_text(layer), kind), counts) for (layer, kind), counts in cells.items()],
        ("layer", "kind"),
        (changed,),
        lambda names, counts: {
            "layer": names[0] if names[0].isdigit() else "out",
            "kind": wording.printable(names[1]),
            "density": 100 * (counts.density(run.criterion) or 0),
        },
    )
    return doc.Figure(
        wording.named(run.label, "Changed elements by layer and kind"),
        lambda: charts.heat_map(
            marks, [layer for layer in run.by_layer if layer is not None], highest
        ),
        _HEAT_MAP if is_first else "As above, on the same scale.",
        doc.table(
            wording.named(run.label, "Every layer and kind"),
            [
                (("–" if layer is None else str(layer), kind), counts)
                for (layer, kind), counts in cells.items()
            ],
            _counts(run.criterion),
            keys=("layer", "kind"),
        ),
        (doc.Key("ramp", "0 % changed", f"{highest:g} %"),),
    )


def _by_layer(run: Run) -> doc.Table:
    return doc.table(
        wording.named(run.label, "By layer"),
        doc.rows_by_layer(run.by_layer),
        (
            *_counts(run.criterion),
            doc.Column("L2 of update", lambda counts: wording.magnitude(counts.update_l2)),
            doc.Column("largest |update|", lambda counts: wording.magnitude(counts.update_max_abs)),
        ),
        keys=("layer",),
    )


def how_large(runs: Sequence[Run]) -> doc.Section:
    """Sparsity against tolerance, and under the other criteria."""
    keys = list(dict.fromkeys(key for run in runs for key in run.total.num_changed))
    tolerances = {
        key: criterion.tolerance
        for key in keys
        if (criterion := parse_criterion(key)).rule == "atol"
    }
    columns: list[tuple[str, doc.Role]] = [("criterion", "text"), ("unchanged if", "text")]
    for run in runs:
        columns += [
            (f"{run.label} changed".strip(), "number"),
            (f"{run.label} unchanged".strip(), "number"),
        ]
    numbers = doc.plain_table(
        "Under every criterion",
        columns,
        [
            (
                key,
                wording.rule(key),
                *(column.cell(run.total) for run in runs for column in _counts(key)[1:]),
            )
            for key in keys
        ],
    )
    title, brief = "How large a move counts", _sweep(runs, tolerances)
    positive = [tolerance for tolerance in tolerances.values() if tolerance]
    if not positive or not any(run.total.num_elements for run in runs):
        return doc.Section(title, blocks=(numbers, *brief))
    marks = charts.marks_of(
        [
            ((key, run.label), (key, run.total))
            for run in runs
            for key in run.total.num_changed
            if key in tolerances and run.total.num_elements
        ],
        ("tolerance", "run"),
        (doc.Column[tuple[str, ChangeCounts]]("unchanged", lambda row: _unchanged_of_all(*row)),),
        lambda names, row: {
            "arm": names[1],
            "tolerance": tolerances[row[0]],
            "unchanged": 100 * (row[1].sparsity(row[0]) or 0),
            "label": wording.sparsity_text(row[1], row[0]),
        },
    )
    labels = [run.label for run in runs]
    figure = doc.Figure(
        "Unchanged elements against tolerance",
        lambda: charts.tolerance_sweep(marks, labels, min(positive)),
        _TOLERANCES,
        numbers,
        charts.run_keys(labels, labels) if len(runs) > 1 else (),
    )
    intro = (
        "“Sparse” depends on what counts as a change. The same two checkpoints, counted again "
        "with an absolute tolerance (inclusive, as in arXiv 2505.11711):"
    )
    return doc.Section(title, (intro,), (figure, *brief))


def _unchanged_of_all(criterion: str, counts: ChangeCounts) -> str:
    return wording.of_all(counts.num_elements - counts.num_changed[criterion], counts.num_elements)


def _sweep(runs: Sequence[Run], tolerances: Mapping[str, float]) -> list[doc.Table]:
    """The tolerances of a single run side by side, for a terminal."""
    if len(runs) > 1 or not tolerances:
        return []
    title = "Unchanged by absolute tolerance, |tuned − base| ≤"
    heads: list[tuple[str, doc.Role]] = [
        ("0" if tolerance == 0 else key.partition("=")[2], "number")
        for key, tolerance in tolerances.items()
    ]
    cells = [wording.sparsity_text(runs[0].total, key) for key in tolerances]
    return [doc.plain_table(title, heads, [cells], brief=title, on_page=False)]


def how_far(runs: Sequence[Run]) -> doc.Section | None:
    """Histogram of the signed distance in ulp; None without distances."""
    histograms = {run.label: run.total.ulp_histogram for run in runs}
    distances = label_order(Counter({key: 1 for bins in histograms.values() for key in bins}))
    if not distances:
        return None
    totals = {label: sum(histogram.values()) for label, histogram in histograms.items()}
    columns: list[tuple[str, doc.Role]] = [("distance in ulp", "number")]
    for label in histograms:
        columns += [(f"{label} {unit}".strip(), "number") for unit in ("elements", "share")]
    numbers = doc.plain_table(
        "Elements by distance",
        columns,
        [
            (
                distance,
                *(
                    cell
                    for label, histogram in histograms.items()
                    for num in (histogram.get(distance, 0),)
                    for cell in (wording.count(num), wording.share(num, totals[label]))
                ),
            )
            for distance in distances
        ],
    )
    sentences = tuple(wording.labelled(run.label, _directions(run.total)) for run in runs)
    return doc.Section(
        "How far the changed weights moved", sentences, (distance_figure(histograms, numbers),)
    )


def distance_figure(histograms: Mapping[str, Mapping[str, int]], numbers: doc.Table) -> doc.Figure:
    """Changed elements by signed distance in ulp.

    Args:
        histograms: Label of each run -> its histogram; not all are empty.
        numbers: The same as a table.
    """
    labels = list(histograms)
    distances = label_order(Counter({key: 1 for bins in histograms.values() for key in bins}))
    totals = {label: sum(histogram.values()) for label, histogram in histograms.items()}
    marks = charts.marks_of(
        [
            ((distance, label), (histogram[distance], totals[label]))
            for label, histogram in histograms.items()
            for distance in distances
            if distance in histogram
        ],
        ("distance in ulp", "run"),
        (doc.Column("changed", lambda bin: wording.of_all(*bin)),),
        lambda names, bin: {"arm": names[1], "distance": names[0], "changed": bin[0]},
    )
    return doc.Figure(
        "Changed elements by signed distance",
        lambda: charts.ulp_histogram(marks, labels, distances),
        "One ulp is the step from one representable number to the next, the smallest change that "
        "can be stored. Negative distances are decreases. Unchanged elements are not drawn.",
        numbers,
        charts.run_keys(labels, labels) if len(labels) > 1 else (),
    )


def _directions(counts: ChangeCounts) -> str:
    moved = counts.num_increased + counts.num_decreased
    text = (
        f"Of {plural(moved, 'element')} that moved, {counts.num_increased:,} increased "
        f"({percent(counts.num_increased, moved)}) and {counts.num_decreased:,} decreased. "
        f"The update has an L2 norm of {wording.magnitude(counts.update_l2)}; its largest element "
        f"is {wording.magnitude(counts.update_max_abs)}."
    )
    if counts.num_zero_sign_flips:
        flips = plural(counts.num_zero_sign_flips, "zero")
        text += f" {flips} changed sign only, which has no distance."
    if counts.num_nonfinite_updates:
        updates = plural(counts.num_nonfinite_updates, "update")
        text += f" {updates} that are NaN or infinite are left out of the norm."
    return text


def largest_movers(runs: Sequence[Run]) -> doc.Section:
    """The tensors with the largest share of changed elements, and with the largest update."""
    blocks: list[doc.Table] = []
    unmoved = []
    for run in runs:
        criterion = run.criterion
        moved = [t for t in run.comparison.tensors if t.counts.num_changed.get(criterion)]
        if not moved:
            unmoved.append(wording.named(run.label, "No tensor changed") + ".")
            continue
        orders: dict[str, Any] = {
            "By share of changed elements": lambda t, key=criterion: t.counts.density(key) or 0,
            "By largest |update| of one element": lambda t: t.counts.update_max_abs,
        }
        blocks += [
            doc.table(
                wording.named(run.label, title),
                [((tensor.name,), tensor) for tensor in sorted(moved, key=by, reverse=True)],
                _mover_columns(criterion),
                keys=(("tensor", "code"),),
                is_folded=bool(run.label),
                limit=_NUM_MOVERS,
            )
            for title, by in orders.items()
        ]
    return doc.Section("Largest movers", tuple(unmoved), tuple(blocks))


def _mover_columns(criterion: str) -> tuple[doc.Column[TensorChange], ...]:
    return (
        doc.Column("shape", lambda tensor: " × ".join(map(str, tensor.shape))),
        doc.Column("changed", lambda tensor: wording.count(tensor.counts.num_changed[criterion])),
        doc.Column(
            "share",
            lambda t: wording.share(t.counts.num_changed[criterion], t.counts.num_elements),
        ),
        doc.Column(
            "largest |update|", lambda tensor: wording.magnitude(tensor.counts.update_max_abs)
        ),
    )
