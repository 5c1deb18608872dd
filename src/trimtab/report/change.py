"""Sections of the page on what changed: where, by how much, and which tensors most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from trimtab.elements.counts import ChangeCounts, percent
from trimtab.elements.criteria import parse_criterion
from trimtab.elements.ulps import label_order
from trimtab.measure.compare_result import TensorChange
from trimtab.report import charts
from trimtab.report.arms import Arm
from trimtab.report.blocks import Column, Figure, Key, Section, Table, table
from trimtab.report.causes import random_walk_text
from trimtab.report.vega import NUM_COLOURS
from trimtab.report.wording import (
    kinds_in_order,
    magnitude,
    named,
    of_all,
    plural,
    printable,
    rule,
    sparsity_text,
    unchanged,
)

__all__ = ["how_far", "how_large", "largest_movers", "where"]

_NUM_MOVERS = 12
_HEAT_MAP = (
    "Each cell is all tensors of one kind in one layer; the stronger its colour, the larger the "
    "share of their elements that changed. A cell without colour is nearly or fully untouched; "
    "where there is no cell, there is no such tensor. “out” holds what is outside the layers."
)
_COLUMNS = (
    "“Unchanged” is weighted by elements. “Mean of tensors” counts every tensor alike, a norm as "
    "much as a matrix; some papers average so."
)
_PREDICTION = (
    " “Random walk” is the share that steps of this size without any direction would leave "
    "unchanged, see “What precision alone predicts”."
)


def arm_keys(arms: Sequence[Arm], symbol: str = "dot") -> tuple[Key, ...]:
    """Legend of the arms' colours; empty where there is only one arm."""
    if len(arms) == 1:
        return ()
    return tuple(
        Key(f"{symbol}-{place % NUM_COLOURS}", arm.label) for place, arm in enumerate(arms)
    )


def where(arms: Sequence[Arm]) -> Section:
    """Table by kind, and a heat map of layer × kind for each arm."""
    highest = charts.nice_ceiling(
        max(
            (
                100 * (counts.density(arm.criterion) or 0)
                for arm in arms
                for counts in arm.by_layer_kind.values()
                if counts.num_elements
            ),
            default=0,
        )
    )
    blocks: list[Figure | Table] = []
    if len(arms) > 1:
        blocks.append(_side_by_side(arms))
    blocks += [_by_kind(arm, is_folded=len(arms) > 1) for arm in arms]
    blocks += [
        _heat_map(arm, highest, is_first=arm is arms[0]) for arm in arms if arm.total.num_elements
    ]
    blocks += [_by_layer(arm) for arm in arms]
    return Section("Where the changes are", blocks=tuple(blocks))


def _side_by_side(arms: Sequence[Arm]) -> Table:
    kinds = kinds_in_order(kind for arm in arms for kind in arm.by_kind)
    predicts = any(random_walk_text(arm, None) for arm in arms)

    def row(name: str, kind: str | None) -> tuple[str, ...]:
        groups = [arm.total if kind is None else arm.by_kind.get(kind) for arm in arms]
        cells = [printable(name), f"{max(group.num_elements for group in groups if group):,}"]
        for arm, group in zip(arms, groups, strict=True):
            cells.append(sparsity_text(group, arm.criterion) if group else "–")
            if predicts:
                cells.append(random_walk_text(arm, kind) or "–")
        return tuple(cells)

    columns: list[Column] = [("kind", "text"), ("elements", "number")]
    for arm in arms:
        columns.append((f"{arm.label} unchanged", "number"))
        if predicts:
            columns.append((f"{arm.label} random walk", "number"))
    return table(
        f"Unchanged elements by kind ({unchanged(arms[0].criterion)})",
        columns,
        [*(row(kind, kind) for kind in kinds), row("all", None)],
        has_total=True,
        is_folded=False,
        note=_PREDICTION.strip() if predicts else "",
    )


def _by_kind(arm: Arm, *, is_folded: bool) -> Table:
    predicts = random_walk_text(arm, None) is not None

    def row(
        kind: str | None, counts: ChangeCounts, tensors: Sequence[TensorChange]
    ) -> tuple[str, ...]:
        mean = arm.comparison.unweighted_mean_sparsity(arm.criterion, tensors)
        return (
            "all" if kind is None else printable(kind),
            f"{len(tensors):,}",
            *_counts_cells(counts, arm.criterion),
            "–" if mean is None else percent(mean, 1),
            *([random_walk_text(arm, kind) or "–"] if predicts else []),
        )

    columns: list[Column] = [
        ("kind", "text"),
        ("tensors", "number"),
        ("elements", "number"),
        ("changed", "number"),
        ("unchanged", "number"),
        ("mean of tensors", "number"),
    ]
    if predicts:
        columns.append(("random walk predicts", "number"))
    rows = [row(kind, counts, arm.tensors_by_kind[kind]) for kind, counts in arm.by_kind.items()]
    return table(
        named(arm.label, "By kind"),
        columns,
        [*rows, row(None, arm.total, arm.comparison.tensors)],
        has_total=True,
        is_folded=is_folded,
        note=_COLUMNS + (_PREDICTION if predicts else ""),
    )


def _heat_map(arm: Arm, highest: float, *, is_first: bool) -> Figure:
    cells = {
        (layer, kind): counts
        for (layer, kind), counts in arm.by_layer_kind.items()
        if counts.num_elements
    }
    kinds = kinds_in_order(printable(kind) for _, kind in cells)
    layers = [layer for layer in arm.by_layer if layer is not None]
    changed = {
        key: of_all(counts.num_changed[arm.criterion], counts.num_elements)
        for key, counts in cells.items()
    }
    spec = charts.heat_map(
        [
            {
                "layer": "out" if layer is None else str(layer),
                "kind": printable(kind),
                "density": 100 * (counts.density(arm.criterion) or 0),
                "tip_0": "outside the layers" if layer is None else str(layer),
                "tip_1": printable(kind),
                "tip_2": changed[layer, kind],
            }
            for (layer, kind), counts in cells.items()
        ],
        layers,
        kinds,
        has_outside=any(layer is None for layer, _ in cells),
        highest=highest,
    )
    return Figure(
        named(arm.label, "Changed elements by layer and kind"),
        spec,
        _HEAT_MAP if is_first else "To be read as the map above, on the same scale.",
        table(
            named(arm.label, "Every layer and kind"),
            [
                ("layer", "text"),
                ("kind", "text"),
                ("elements", "number"),
                ("changed", "number"),
                ("unchanged", "number"),
            ],
            [
                (
                    "–" if layer is None else str(layer),
                    printable(kind),
                    *_counts_cells(counts, arm.criterion),
                )
                for (layer, kind), counts in cells.items()
            ],
        ),
        (Key("ramp", "0 % changed", f"{highest:g} %"),),
    )


def _counts_cells(counts: ChangeCounts, criterion: str) -> tuple[str, str, str]:
    return (
        f"{counts.num_elements:,}",
        f"{counts.num_changed.get(criterion, 0):,}",
        sparsity_text(counts, criterion),
    )


def _by_layer(arm: Arm) -> Table:
    return table(
        named(arm.label, "By layer"),
        [
            ("layer", "text"),
            ("elements", "number"),
            ("changed", "number"),
            ("unchanged", "number"),
            ("L2 of update", "number"),
            ("largest |update|", "number"),
        ],
        [
            (
                "outside the layers" if layer is None else str(layer),
                *_counts_cells(counts, arm.criterion),
                magnitude(counts.update_l2),
                magnitude(counts.update_max_abs),
            )
            for layer, counts in arm.by_layer.items()
        ],
    )


def how_large(arms: Sequence[Arm]) -> Section:
    """Sparsity against tolerance, and under every other criterion."""
    keys = list(dict.fromkeys(key for arm in arms for key in arm.total.num_changed))
    tolerances = {
        key: criterion.tolerance
        for key in keys
        if (criterion := parse_criterion(key)).rule == "atol"
    }
    rows = [
        {
            "arm": arm.label,
            "tolerance": tolerances[key],
            "unchanged": 100 * (arm.total.sparsity(key) or 0),
            "label": sparsity_text(arm.total, key),
            "tip_0": key,
            "tip_1": of_all(arm.total.num_elements - changed, arm.total.num_elements),
        }
        for arm in arms
        for key, changed in arm.total.num_changed.items()
        if key in tolerances and arm.total.num_elements
    ]
    columns: list[Column] = [("criterion", "text"), ("unchanged if", "text")]
    for arm in arms:
        label = f"{arm.label} " if arm.label else ""
        columns += [(f"{label}changed", "number"), (f"{label}unchanged", "number")]
    numbers = table(
        "Under every criterion",
        columns,
        [
            (
                key,
                rule(key),
                *(cell for arm in arms for cell in _counts_cells(arm.total, key)[1:]),
            )
            for key in keys
        ],
    )
    title = "How large a move counts"
    positive = [tolerance for tolerance in tolerances.values() if tolerance]
    if not rows or not positive:
        return Section(title, blocks=(numbers,))
    figure = Figure(
        "Unchanged elements against tolerance",
        charts.tolerance_sweep(rows, [arm.label for arm in arms], smallest=min(positive)),
        "A higher tolerance forgives larger moves, so the share that counts as unchanged grows to "
        "the right. Tolerances are on a log scale; 0, which no log scale has, stands at its left "
        "end behind a dotted line. The vertical axis does not begin at 0 unless it says so.",
        numbers,
        arm_keys(arms),
    )
    intro = (
        "“Sparse” depends on what counts as a change. The same two checkpoints, counted again "
        "with an absolute tolerance (inclusive, as in arXiv 2505.11711):"
    )
    return Section(title, (intro,), (figure,))


def how_far(arms: Sequence[Arm]) -> Section | None:
    """Histogram of the signed distance in ulp; None where nothing has one."""
    histograms = {arm.label: arm.total.ulp_histogram for arm in arms}
    labels = label_order(Counter({key: 1 for bins in histograms.values() for key in bins}))
    if not labels:
        return None
    totals = {arm: sum(histogram.values()) for arm, histogram in histograms.items()}
    spec = charts.ulp_histogram(
        [
            {
                "arm": arm,
                "distance": label,
                "changed": histogram[label],
                "tip_0": f"{label} ulp" + (f", {arm}" if arm else ""),
                "tip_1": of_all(histogram[label], totals[arm]),
            }
            for arm, histogram in histograms.items()
            for label in labels
            if label in histogram
        ],
        list(histograms),
        labels,
    )
    columns: list[Column] = [("distance in ulp", "number")]
    for arm in arms:
        label = f"{arm.label} " if arm.label else ""
        columns += [(f"{label}elements", "number"), (f"{label}share", "number")]
    numbers = table(
        "Elements by distance",
        columns,
        [
            (
                label,
                *(
                    cell
                    for arm, histogram in histograms.items()
                    for cell in (
                        f"{histogram.get(label, 0):,}",
                        percent(histogram.get(label, 0), totals[arm]),
                    )
                ),
            )
            for label in labels
        ],
    )
    figure = Figure(
        "Changed elements by signed distance",
        spec,
        "One ulp is the step from one representable number to the next, the smallest change that "
        "can be stored. Negative distances are decreases. Unchanged elements are not drawn.",
        numbers,
        arm_keys(arms),
    )
    return Section(
        "How far the changed weights moved", tuple(_directions(arm) for arm in arms), (figure,)
    )


def _directions(arm: Arm) -> str:
    counts = arm.total
    moved = counts.num_increased + counts.num_decreased
    text = (
        f"Of {plural(moved, 'element')} that moved, {counts.num_increased:,} increased "
        f"({percent(counts.num_increased, moved)}) and {counts.num_decreased:,} decreased. "
        f"The update has an L2 norm of {magnitude(counts.update_l2)}; its largest element is "
        f"{magnitude(counts.update_max_abs)}."
    )
    if counts.num_zero_sign_flips:
        flips = plural(counts.num_zero_sign_flips, "zero")
        text += f" {flips} changed sign only, which has no distance."
    if counts.num_nonfinite_updates:
        updates = plural(counts.num_nonfinite_updates, "update")
        text += f" {updates} that are NaN or infinite are left out of the norm."
    return f"{arm.label}: {text}" if arm.label else text


def largest_movers(arms: Sequence[Arm]) -> Section:
    """The tensors with the largest share of changed elements, and with the largest update."""
    blocks: list[Figure | Table] = []
    still = []
    for arm in arms:
        criterion = arm.criterion
        moved = [
            tensor for tensor in arm.comparison.tensors if tensor.counts.num_changed.get(criterion)
        ]
        if not moved:
            still.append(named(arm.label, "No tensor changed") + ".")
            continue
        densest = sorted(moved, key=lambda t: t.counts.density(criterion) or 0, reverse=True)
        longest = sorted(moved, key=lambda t: t.counts.update_max_abs, reverse=True)
        blocks.append(_movers(arm, "By share of changed elements", densest))
        blocks.append(_movers(arm, "By largest |update| of one element", longest))
    return Section("Largest movers", tuple(still), tuple(blocks))


def _movers(arm: Arm, title: str, tensors: Iterable[TensorChange]) -> Table:
    return table(
        named(arm.label, title),
        [
            ("tensor", "code"),
            ("shape", "number"),
            ("changed", "number"),
            ("share", "number"),
            ("largest |update|", "number"),
        ],
        [
            (
                printable(tensor.name),
                " × ".join(map(str, tensor.shape)),
                f"{tensor.counts.num_changed[arm.criterion]:,}",
                percent(tensor.counts.num_changed[arm.criterion], tensor.counts.num_elements),
                magnitude(tensor.counts.update_max_abs),
            )
            for tensor in tensors
        ],
        is_folded=bool(arm.label),
        limit=_NUM_MOVERS,
    )
