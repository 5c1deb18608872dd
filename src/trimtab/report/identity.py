"""The report of an identity check: whether training only the mask gave the same model.

Sections take several checks by label, to show a mask with its controls; the label of a single check
is "".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trimtab.elements.counts import percent
from trimtab.elements.criteria import parse_criterion
from trimtab.elements.three_way import REGIONS, Agreement
from trimtab.masks.identity import COVERAGE_LISTS, SIDES, Identity, IdentityCoverage
from trimtab.report import charts, wording
from trimtab.report import document as doc
from trimtab.report.records import (
    Covered,
    checkpoints_table,
    coverage_section,
    mask_text,
    settings_table,
)
from trimtab.words import plural, were

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


def sub_share(agreement: Agreement, criterion: str = "bits") -> wording.Shown:
    """Share of elements in which SUB equals FULL; a dash without elements."""
    return wording.share(agreement.num_sub_equal.get(criterion, 0), agreement.num_elements)


def base_share(agreement: Agreement, criterion: str = "bits") -> wording.Shown:
    """Share of elements in which BASE equals FULL, the score of an untrained model."""
    return wording.share(agreement.num_base_equal.get(criterion, 0), agreement.num_elements)


def cosine_text(cosine: float | None) -> wording.Shown:
    """A cosine to four digits, 1 only if exact; a dash for None."""
    if cosine is None:
        return wording.NONE
    if abs(cosine) == 1:
        return wording.Shown(f"{cosine:.0f}", cosine)
    text = f"{cosine:.4f}"
    exact = {"1.0000": ">0.9999", "-1.0000": "<-0.9999", "-0.0000": "0.0000"}
    return wording.Shown(exact.get(text, text), cosine)


_ELEMENTS = doc.Column[Agreement]("elements", lambda a: wording.count(a.num_elements), drop=2)
_SUB = doc.Column[Agreement]("SUB = FULL", sub_share, note="“SUB = FULL” is bit equality.")
_BASE = doc.Column[Agreement](
    "BASE = FULL", base_share, note="“BASE = FULL” is what doing nothing scores."
)
_COLUMNS = (
    _ELEMENTS,
    _SUB,
    _BASE,
    doc.Column[Agreement](
        "relative L2",
        lambda a: wording.magnitude(a.relative_l2),
        drop=4,
        note="“relative L2” is ‖SUB − FULL‖ / ‖FULL − BASE‖: 0 for the same model, 1 for doing "
        "nothing.",
    ),
    doc.Column[Agreement](
        "cosine",
        lambda a: cosine_text(a.cosine),
        drop=3,
        note="“cosine” is that of the updates SUB − BASE and FULL − BASE.",
    ),
    doc.Column[Agreement](
        "largest difference",
        lambda a: wording.magnitude(a.difference_max_abs),
        drop=1,
        note="“largest difference” is |SUB − FULL|.",
    ),
)


def identity_document(identity: Identity) -> doc.Document:
    """The document of one check."""
    checks = {"": identity}
    names = {side: wording.endpoint(getattr(identity, side)) for side in SIDES}
    mask = mask_text(identity.mask)
    coverage = _coverage_sentence(identity.coverage)
    return doc.Document(
        title=f"{names['sub']} against {names['full']}",
        heading="What training only the mask gave",
        subtitle=(names["full"], names["sub"]),
        facts={**names, "mask": mask},
        headlines=(f"{' '.join(headline(identity))}.",),
        summary=(outside_sentence(identity),),
        heroes=_heroes(identity),
        paragraphs=(f"Base: {names['base']}. Mask {mask}.",),
        warnings=(stray_sentence(identity),),
        conversion=wording.printable(identity.conversion or ""),
        coverage=coverage,
        is_complete=identity.coverage.is_complete,
        sections=[
            same_model(checks),
            _least_alike(checks),
            coverage_section({"": Covered(coverage, identity.coverage, COVERAGE_LISTS)}, _TITLES),
            doc.Section("Provenance", blocks=tuple(_records(identity))),
        ],
        source=f"criterion bits · mask {mask} · {names['full']} → {names['sub']}",
        date=identity.provenance.get("date", ""),
    )


def same_model(checks: Mapping[str, Identity], *, runs: Sequence[str] = ()) -> doc.Section:
    """Equal elements inside and outside the mask, compared with an untrained model.

    Args:
        checks: By label.
        runs: Labels of all runs of the page in order, for consistent colours.
    """
    sentences = [
        wording.labelled(label, sentence)
        for label, identity in checks.items()
        for sentence in (stray_sentence(identity), outside_sentence(identity))
        if sentence is not None
    ]
    regions = [
        ((label, region), identity.total.region(region))
        for label, identity in checks.items()
        for region in REGIONS
    ]
    blocks: list[doc.Figure | doc.Table] = [
        doc.table(
            "Inside the mask, outside it, and all",
            regions,
            _COLUMNS,
            keys=("run", "region"),
            has_total=len(checks) == 1,
            is_folded=False,
            brief="",
        )
    ]
    if any(identity.total.inside.num_elements for identity in checks.values()):
        blocks += [_by_kind(checks, runs or list(checks)), *_by_criterion(checks)]
        blocks += [
            doc.table(
                wording.named(wording.printable(label), "Inside the mask, by layer"),
                doc.rows_by_layer(
                    {layer: split.inside for layer, split in identity.by_layer().items()}
                ),
                _COLUMNS,
                keys=("layer",),
            )
            for label, identity in checks.items()
        ]
    return doc.Section(
        "Did the subnetwork give the same model?", (_QUESTION, *sentences), tuple(blocks)
    )


def _by_kind(checks: Mapping[str, Identity], runs: Sequence[str]) -> doc.Figure:
    by_kind = {label: identity.by_kind() for label, identity in checks.items()}
    kinds = wording.kinds_in_order(kind for groups in by_kind.values() for kind in groups)
    groups = [
        ((kind or "all", label), by_kind[label].get(kind) if kind else identity.total)
        for kind in (*kinds, None)
        for label, identity in checks.items()
    ]
    rows = [(names, group.inside) for names, group in groups if group and group.inside.num_elements]
    marks = charts.marks_of(
        rows,
        ("kind", "run"),
        (_SUB, _BASE, _ELEMENTS),
        lambda names, inside: {
            "name": wording.printable(names[0]),
            "arm": names[1],
            "measured": 100 * inside.num_sub_equal.get("bits", 0) / inside.num_elements,
            "reference": 100 * inside.num_base_equal.get("bits", 0) / inside.num_elements,
        },
    )
    return doc.Figure(
        "Weights inside the mask that are bit-identical to FULL, by kind",
        lambda: charts.reference_dots(
            marks,
            list(checks),
            axis="bit-identical to FULL, inside the mask (%)",
            domain=(charts.percent_floor(marks.values("measured", "reference")), 100),
            runs=runs,
        ),
        "A dot is the share in which SUB equals FULL; its tick is the share in which BASE does, "
        "which training nothing would score.",
        doc.table(
            "Inside the mask, by kind",
            rows,
            _COLUMNS,
            keys=("kind", "run"),
            has_total=len(checks) == 1,
            brief="Inside the mask, by kind",
        ),
        (*charts.run_keys(checks, runs, single="SUB"), doc.Key("tick", "BASE, trained on nothing")),
    )


def _by_criterion(checks: Mapping[str, Identity]) -> list[doc.Table]:
    """All criteria; in a terminal without `strict_atol`."""
    title = "Inside the mask, under every criterion"
    columns: tuple[doc.Column[tuple[str, Agreement]], ...] = (
        doc.Column("x equals y when", lambda row: wording.rule(row[0], "y", "x"), "text"),
        doc.Column("SUB = FULL", lambda row: sub_share(row[1], row[0])),
        doc.Column("BASE = FULL", lambda row: base_share(row[1], row[0])),
    )
    rows = [
        ((key, label), (key, identity.total.inside))
        for key in next(iter(checks.values())).total.inside.num_sub_equal
        for label, identity in checks.items()
    ]
    short = [row for row in rows if parse_criterion(row[1][0]).rule != "strict_atol"]
    keys: Any = (("criterion", "code"), "run")
    return [
        doc.table(title, rows, columns, keys=keys, is_folded=False),
        doc.table(title, short, columns[1:], keys=keys, brief=title, on_page=False),
    ]


def _least_alike(checks: Mapping[str, Identity]) -> doc.Section | None:
    """The tensors with the smallest share of the mask equal to FULL; None without a mask."""
    blocks = []
    for label, identity in checks.items():
        rows = [
            ((tensor.name,), tensor.agreement.inside)
            for tensor in identity.tensors
            if tensor.agreement.inside.num_elements
        ]
        rows.sort(key=lambda row: row[1].num_sub_equal["bits"] / row[1].num_elements)
        if rows:
            blocks.append(
                doc.table(
                    wording.named(wording.printable(label), "By share inside the mask"),
                    rows,
                    _COLUMNS,
                    keys=(("tensor", "code"),),
                    is_folded=bool(label),
                    limit=_NUM_LEAST,
                )
            )
    return doc.Section("Least alike", blocks=tuple(blocks)) if blocks else None


def _records(identity: Identity) -> Iterator[doc.Table]:
    yield checkpoints_table({side: getattr(identity, side) for side in SIDES})
    yield settings_table(
        "Mask", {**identity.mask.to_dict(), "id": identity.mask.id or "not from a file"}
    )
    conversion = identity.conversion or "none: compared as stored"
    yield settings_table("Check", {"conversion": conversion, **identity.provenance})


def _heroes(identity: Identity) -> list[doc.Hero]:
    """SUB inside the mask, and the trivial baseline."""
    inside = identity.total.inside
    if not inside.num_elements:
        return [doc.Hero("", *headline(identity), 0.0, "nothing to compare")]
    words = f"of {inside.num_elements:,} weights inside the mask are bit-identical to FULL"
    return [
        doc.Hero(
            label, figure, words, num / inside.num_elements, f"{num:,} equal (criterion: bits)"
        )
        for label, figure, num in (
            ("SUB", sub_share(inside), inside.num_sub_equal["bits"]),
            (
                "BASE: what doing nothing scores",
                base_share(inside),
                inside.num_base_equal["bits"],
            ),
        )
    ]


def headline(identity: Identity) -> tuple[str, str]:
    """The main figure and the rest of its sentence."""
    inside = identity.total.inside
    if not inside.num_elements:
        return "–", "no weights are inside the mask"
    return sub_share(inside), (
        f"of {inside.num_elements:,} weights inside the mask are bit-identical in SUB and FULL. "
        f"Doing nothing scores {base_share(inside)}, the share in which BASE equals FULL"
    )


def outside_sentence(identity: Identity) -> str:
    """How far the figure outside the mask holds by construction."""
    outside = identity.total.outside
    if not outside.num_elements:
        return "The mask selects every weight that was compared: nothing is outside it."
    score = f"{sub_share(outside)} of {outside.num_elements:,} weights"
    if not identity.sub_stayed_outside:
        return f"Outside the mask SUB equals FULL in {score}."
    if identity.full_stayed_outside:
        return (
            f"Outside the mask SUB equals FULL in {score}, by construction: FULL moved nothing "
            "there, and neither did SUB. That says nothing about the training, and is why a "
            "figure over the whole model flatters."
        )
    return (
        f"Outside the mask SUB equals FULL in {score}: those that FULL left at BASE, as SUB did "
        f"with all. FULL moved {plural(outside.num_full_moved, 'weight')} that the mask does not "
        "hold."
    )


def stray_sentence(identity: Identity) -> str | None:
    """A warning if SUB moved outside the mask; None otherwise."""
    if identity.sub_stayed_outside:
        return None
    outside = identity.total.outside
    return (
        f"SUB differs from BASE in {outside.num_sub_moved:,} of {outside.num_elements:,} weights "
        f"OUTSIDE the mask ({percent(outside.num_sub_moved, outside.num_elements)}): it was not "
        "trained from this base inside this mask alone."
    )


def _coverage_sentence(coverage: IdentityCoverage) -> str:
    """Which share of the three checkpoints was compared."""
    if coverage.is_complete:
        text = f"complete: all {coverage.num_compared:,} stored elements were compared"
    else:
        stored = zip(SIDES, (coverage.num_base, coverage.num_full, coverage.num_sub), strict=True)
        shares = [
            f"{percent(coverage.num_compared, num)} of {side.upper()}" for side, num in stored
        ]
        text = (
            f"INCOMPLETE: {were(coverage.num_compared, 'element')} compared, {shares[0]}, "
            f"{shares[1]} and {shares[2]}"
        )
        if coverage.not_compared:
            num_selected = sum(row["num_selected"] for row in coverage.not_compared)
            tensors = plural(len(coverage.not_compared), "tensor")
            text += (
                f" ({tensors} not in all three with one shape, with "
                f"{plural(num_selected, 'element')} of the mask)"
            )
    if coverage.not_in_mask:
        text += f"; {plural(len(coverage.not_in_mask), 'tensor')} not in the mask, hence outside it"
    if coverage.tied:
        text += f"; {plural(len(coverage.tied), 'tied tensor')} counted once"
    return text
