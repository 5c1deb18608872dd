"""The page of an identity check."""

from __future__ import annotations

from trimtab.masks.identity.result import Identity
from trimtab.report.identity import (
    identity_coverage,
    identity_provenance,
    least_alike,
    same_model,
)
from trimtab.report.identity_wording import (
    base_share,
    inside_headline,
    mask_text,
    origins,
    stray_sentence,
    sub_share,
    three_coverage_sentence,
)
from trimtab.report.page import Hero, Page
from trimtab.report.wording import printable

__all__ = ["identity_page"]


def identity_page(identity: Identity) -> Page:
    """What is told of an identity check.

    Args:
        identity: The result; nothing else is read.
    """
    checks = {"": identity}
    names = origins(identity)
    covered = three_coverage_sentence(identity.coverage)
    stray = stray_sentence(identity)
    return Page(
        title=f"{names['sub']} against {names['full']}",
        heading="What training only the mask gave",
        subtitle=(names["full"], names["sub"]),
        heroes=_identity_heroes(identity),
        warnings=[stray] if stray else [],
        conversion=printable(identity.conversion or ""),
        incomplete=[] if identity.coverage.is_complete else [covered],
        coverage=covered,
        paragraphs=(f"Base: {names['base']}. Mask {mask_text(identity)}.",),
        sections=[
            same_model(checks),
            least_alike(checks),
            identity_coverage(checks),
            identity_provenance(checks),
        ],
        source=f"criterion bits · mask {mask_text(identity)} · {names['full']} → {names['sub']}",
        date=identity.provenance.get("date", ""),
    )


def _identity_heroes(identity: Identity) -> list[Hero]:
    """SUB inside the mask, and beside it the trivial comparison."""
    inside = identity.total.inside
    if not inside.num_elements:
        figure, words = inside_headline(identity)
        return [Hero("", figure, words, 0.0, "nothing to compare")]
    words = f"of {inside.num_elements:,} weights inside the mask are bit-identical to FULL"
    shares = {
        "SUB": (sub_share(inside), inside.num_sub_equal["bits"]),
        "BASE: what doing nothing scores": (base_share(inside), inside.num_base_equal["bits"]),
    }
    return [
        Hero(label, figure, words, num / inside.num_elements, f"{num:,} equal (criterion: bits)")
        for label, (figure, num) in shares.items()
    ]
