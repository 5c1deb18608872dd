"""Sections of the page on whether a subnetwork gave the same model, inside the mask and outside.

Each takes several checks by label, so that a mask can stand beside its controls; a single check is
called "".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trimtab.elements.three_way import REGIONS, Agreement
from trimtab.masks.identity.result import COVERAGE_LISTS, SIDES, Identity
from trimtab.report import charts
from trimtab.report.arms import kinds_in_order
from trimtab.report.blocks import Column, Figure, Key, Section, Table, run_column, table
from trimtab.report.identity_wording import (
    base_share,
    cosine_text,
    equal_when,
    outside_sentence,
    stray_sentence,
    sub_share,
    three_coverage_sentence,
)
from trimtab.report.record import checkpoints_table, listed, settings_table
from trimtab.report.vega import NUM_COLOURS
from trimtab.report.wording import magnitude, named, printable

__all__ = ["identity_coverage", "identity_provenance", "least_alike", "same_model"]

_NUM_LEAST = 12
_TITLES = {
    "not_compared": "Not in all three with one shape, not compared",
    "not_in_mask": "Not in the mask, outside it as a whole",
    "tied": "Tied tensors, counted once",
    "renamed": "Matched under another name",
}
_QUESTION = (
    "FULL came from training every weight, SUB from training only the mask, both from BASE. Where "
    "the mask holds all that FULL changed, the two agree outside it by construction, so the "
    "question is answered inside the mask alone."
)
_COLUMNS: tuple[Column, ...] = (
    ("elements", "number"),
    ("SUB = FULL", "number"),
    ("BASE = FULL", "number"),
    ("relative L2", "number"),
    ("cosine", "number"),
    ("largest difference", "number"),
)
_NOTE = (
    "“=” is bit equality, and “BASE = FULL” what doing nothing scores. “Relative L2” is "
    "‖SUB − FULL‖ / ‖FULL − BASE‖: 0 for the same model, 1 for doing nothing. “Cosine” is that of "
    "the updates SUB − BASE and FULL − BASE. “Largest difference” is |SUB − FULL|."
)


def same_model(identities: Mapping[str, Identity], *, runs: Sequence[str] = ()) -> Section:
    """Equal elements inside the mask and outside it, beside what doing nothing scores.

    Args:
        identities: The checks, by label.
        runs: Labels of all runs of the page in order, so that each keeps its colour.
    """
    sentences = [
        f"{label}: {sentence}" if label else sentence
        for label, identity in identities.items()
        for sentence in (stray_sentence(identity), outside_sentence(identity))
        if sentence is not None
    ]
    blocks: list[Figure | Table] = [_by_region(identities)]
    if any(identity.total.inside.num_elements for identity in identities.values()):
        blocks.append(_kinds_figure(identities, runs or list(identities)))
        blocks.append(_by_criterion(identities))
        blocks += [_by_layer(label, identity) for label, identity in identities.items()]
    return Section(
        "Did the subnetwork give the same model?", (_QUESTION, *sentences), tuple(blocks)
    )


def _cells(agreement: Agreement) -> tuple[str, ...]:
    """Cells of `_COLUMNS`."""
    return (
        f"{agreement.num_elements:,}",
        sub_share(agreement),
        base_share(agreement),
        magnitude(agreement.relative_l2),
        cosine_text(agreement.cosine),
        magnitude(agreement.difference_max_abs),
    )


def _run(label: str) -> tuple[str, ...]:
    return (printable(label),) if label else ()


def _by_region(identities: Mapping[str, Identity]) -> Table:
    return table(
        "Inside the mask, outside it, and all",
        [*run_column(identities), ("region", "text"), *_COLUMNS],
        [
            (*_run(label), name, *_cells(identity.total.region(name)))
            for label, identity in identities.items()
            for name in REGIONS
        ],
        is_folded=False,
        note=_NOTE,
    )


def _kinds_figure(identities: Mapping[str, Identity], runs: Sequence[str]) -> Figure:
    by_kind = {label: identity.by_kind() for label, identity in identities.items()}
    kinds = kinds_in_order(kind for groups in by_kind.values() for kind in groups)
    rows: list[dict[str, Any]] = []
    cells: list[tuple[str, ...]] = []
    for kind in [*kinds, None]:
        name = "all" if kind is None else printable(kind)
        for label, identity in identities.items():
            split = identity.total if kind is None else by_kind[label].get(kind)
            if split is None or not split.inside.num_elements:
                continue
            inside = split.inside
            cells.append((name, *_run(label), *_cells(inside)))
            rows.append(
                {
                    "arm": label,
                    "name": name,
                    "measured": _percentage(inside.num_sub_equal, inside),
                    "reference": _percentage(inside.num_base_equal, inside),
                    "tip_0": " · ".join((name, *_run(label))),
                    "tip_1": sub_share(inside),
                    "tip_2": base_share(inside),
                    "tip_3": f"{inside.num_elements:,}",
                }
            )
    spec = charts.reference_dots(
        rows,
        list(identities),
        list(dict.fromkeys(row["name"] for row in rows)),
        axis="bit-identical to FULL, inside the mask (%)",
        lowest=charts.percent_floor(
            [row[end] for row in rows for end in ("measured", "reference")]
        ),
        tips=("kind", "SUB = FULL", "BASE = FULL", "elements in the mask"),
        runs=runs,
    )
    dots = [
        Key(f"dot-{runs.index(label) % NUM_COLOURS}", printable(label) or "SUB")
        for label in identities
    ]
    return Figure(
        "Weights inside the mask that are bit-identical to FULL, by kind",
        spec,
        "A dot is the share in which SUB equals FULL; its tick is the share in which BASE does, "
        "which training nothing would score.",
        table(
            "Inside the mask, by kind",
            [("kind", "text"), *run_column(identities), *_COLUMNS],
            cells,
            has_total=len(identities) == 1,
            note=_NOTE,
        ),
        (*dots, Key("tick", "BASE, trained on nothing")),
    )


def _percentage(num_equal: Mapping[str, int], agreement: Agreement) -> float:
    return 100 * num_equal.get("bits", 0) / agreement.num_elements


def _by_criterion(identities: Mapping[str, Identity]) -> Table:
    return table(
        "Inside the mask, under every criterion",
        [
            ("criterion", "code"),
            ("x equals y when", "text"),
            *run_column(identities),
            ("SUB = FULL", "number"),
            ("BASE = FULL", "number"),
        ],
        [
            (key, equal_when(key), *_run(label), sub_share(inside, key), base_share(inside, key))
            for key in next(iter(identities.values())).total.inside.num_sub_equal
            for label, identity in identities.items()
            for inside in (identity.total.inside,)
        ],
        is_folded=False,
    )


def _by_layer(label: str, identity: Identity) -> Table:
    return table(
        named(printable(label), "Inside the mask, by layer"),
        [("layer", "text"), *_COLUMNS],
        [
            ("outside the layers" if layer is None else str(layer), *_cells(split.inside))
            for layer, split in identity.by_layer().items()
        ],
    )


def least_alike(identities: Mapping[str, Identity]) -> Section | None:
    """The tensors in which the smallest share of the mask equals FULL; None without a mask."""
    blocks = []
    for label, identity in identities.items():
        inside = [
            (tensor, tensor.agreement.inside)
            for tensor in identity.tensors
            if tensor.agreement.inside.num_elements
        ]
        inside.sort(key=lambda row: row[1].num_sub_equal["bits"] / row[1].num_elements)
        if inside:
            blocks.append(
                table(
                    named(printable(label), "By share inside the mask"),
                    [("tensor", "code"), *_COLUMNS],
                    [(printable(tensor.name), *_cells(agreement)) for tensor, agreement in inside],
                    is_folded=bool(label),
                    limit=_NUM_LEAST,
                )
            )
    return Section("Least alike", blocks=tuple(blocks)) if blocks else None


def identity_coverage(identities: Mapping[str, Identity]) -> Section:
    """What was compared and what was not; every gap is listed."""
    sentences = []
    blocks: list[Table] = []
    for label, identity in identities.items():
        coverage = identity.coverage
        prefix = f"{printable(label)}: " if label else "Coverage is "
        sentences.append(f"{prefix}{three_coverage_sentence(coverage)}.")
        for name in COVERAGE_LISTS:
            if rows := getattr(coverage, name):
                blocks.append(listed(named(printable(label), _TITLES[name]), rows))
    is_warning = not all(identity.coverage.is_complete for identity in identities.values())
    return Section("Coverage", tuple(sentences), tuple(blocks), is_warning)


def identity_provenance(identities: Mapping[str, Identity]) -> Section:
    """Ids, hashes, the mask and how the check was run."""
    return Section("Provenance", blocks=tuple(_records(identities)))


def _records(identities: Mapping[str, Identity]) -> Iterable[Table]:
    for label, identity in identities.items():
        is_folded = bool(label)
        records = {side: getattr(identity, side) for side in SIDES}
        yield checkpoints_table(records, named(printable(label), "Checkpoints"))
        mask = {**identity.mask.to_dict(), "id": identity.mask.id or "not from a file"}
        yield settings_table(named(printable(label), "Mask"), mask, is_folded=is_folded)
        run = {
            "conversion": identity.conversion or "none: compared as stored",
            **identity.provenance,
        }
        yield settings_table(named(printable(label), "Check"), run, is_folded=is_folded)
