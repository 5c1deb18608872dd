"""How an identity check is put into words, the same in the terminal and in the HTML report."""

from __future__ import annotations

from trimtab.elements.counts import percent
from trimtab.elements.criteria import parse_criterion
from trimtab.elements.three_way import Agreement
from trimtab.masks.identity.result import SIDES, Identity, IdentityCoverage
from trimtab.report.wording import plural, printable
from trimtab.words import were

__all__ = [
    "base_share",
    "cosine_text",
    "equal_when",
    "inside_headline",
    "mask_text",
    "origins",
    "outside_sentence",
    "short_criteria",
    "stray_sentence",
    "sub_share",
    "three_coverage_sentence",
]


def origins(identity: Identity) -> dict[str, str]:
    """The ids of the three checkpoints, each with its revision, by their names."""
    records = {side: getattr(identity, side) for side in SIDES}
    return {
        side: printable(record.id if record.revision is None else f"{record.id}@{record.revision}")
        for side, record in records.items()
    }


def mask_text(identity: Identity) -> str:
    """Which mask, and how much it selects."""
    mask = identity.mask
    name = "not from a file" if mask.id is None else printable(mask.id)
    share = percent(mask.num_selected, mask.num_elements)
    return f"{name}: {mask.num_selected:,} of {mask.num_elements:,} weights selected ({share})"


def sub_share(agreement: Agreement, criterion: str = "bits") -> str:
    """Share of elements in which SUB equals FULL; a dash where there are no elements."""
    return percent(agreement.num_sub_equal.get(criterion, 0), agreement.num_elements)


def base_share(agreement: Agreement, criterion: str = "bits") -> str:
    """Share of elements in which BASE equals FULL: what doing nothing scores."""
    return percent(agreement.num_base_equal.get(criterion, 0), agreement.num_elements)


def cosine_text(cosine: float | None) -> str:
    """To four digits, where 1 appears only when exactly true; a dash where there is none."""
    if cosine is None:
        return "–"
    if abs(cosine) == 1:
        return f"{cosine:.0f}"
    text = f"{cosine:.4f}"
    return {"1.0000": ">0.9999", "-1.0000": "<-0.9999", "-0.0000": "0.0000"}.get(text, text)


def inside_headline(identity: Identity) -> tuple[str, str]:
    """The main figure and the rest of its sentence."""
    inside = identity.total.inside
    if not inside.num_elements:
        return "–", "no weights are inside the mask"
    return sub_share(inside), (
        f"of {inside.num_elements:,} weights inside the mask are bit-identical in SUB and FULL. "
        f"Doing nothing scores {base_share(inside)}, the share in which BASE equals FULL"
    )


def outside_sentence(identity: Identity) -> str:
    """What the figure outside the mask is worth: mostly it holds by construction."""
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
    """The alarm where SUB moved outside the mask; None after training only the mask."""
    if identity.sub_stayed_outside:
        return None
    outside = identity.total.outside
    return (
        f"SUB differs from BASE in {outside.num_sub_moved:,} of {outside.num_elements:,} weights "
        f"OUTSIDE the mask ({percent(outside.num_sub_moved, outside.num_elements)}): it was not "
        "trained from this base inside this mask alone."
    )


def three_coverage_sentence(coverage: IdentityCoverage) -> str:
    """Which share of the three checkpoints the figures speak of."""
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


def short_criteria(agreement: Agreement) -> list[str]:
    """The criteria without those that differ from another only at the very tolerance."""
    return [key for key in agreement.num_sub_equal if parse_criterion(key).rule != "strict_atol"]


def equal_when(criterion: str) -> str:
    """When an element of two checkpoints counts as equal, as a formula on x and y."""
    parsed = parse_criterion(criterion)
    size = parsed.key.partition("=")[2]
    return {
        "bits": "the stored bits are the same",
        "value": "x = y as numbers",
        "atol": f"|x − y| ≤ {size}",
        "strict_atol": f"|x − y| < {size}",
        "rel": f"|x − y| ≤ {size} · max(|x|, |y|)",
    }[parsed.rule]
