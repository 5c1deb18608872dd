"""An identity check in words, as a table and as a page."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.report.identity_factory import make_agreement, make_identity
from tests.report.page import Page
from tests.report.test_comparison_page import HOSTILE
from tests.report.test_comparison_table import cells
from trimtab.elements.counts import percent
from trimtab.elements.criteria import DEFAULT_CRITERIA
from trimtab.elements.three_way import Agreement, SplitAgreement
from trimtab.masks.identity import Identity, IdentityCoverage, TensorIdentity
from trimtab.report.html import render
from trimtab.report.identity import (
    cosine_text,
    headline,
    identity_document,
    outside_sentence,
    same_model,
    stray_sentence,
)
from trimtab.report.terminal import render_text
from trimtab.report.wording import of_all, rule


def of_one_tensor(inside: Agreement, outside: Agreement, name: str = "w") -> Identity:
    split = SplitAgreement(inside, outside)
    tensor = TensorIdentity(name, 0, "q_proj", (10, 10), "BF16", split)
    return replace(make_identity(1), tensors=(tensor,))


def table_row(text: str, title: str, first: str) -> dict[str, str]:
    """A row of a table in the terminal's text, by its headings."""
    lines = text.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith(title))
    row = next(line for line in lines[start:] if line.startswith(first))
    headings, found = ([cell.strip() for cell in cells(line)] for line in (lines[start], row))
    return dict(zip(headings, found, strict=True))


def text_of_check(identity: Identity, **how: Any) -> str:
    return render_text(identity_document(identity), **how)


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("num_equal", "figure"),
    [(0, "0 %"), (1, "<0.01 %"), (10**9 - 1, ">99.99 %"), (10**9, "100 %")],
)
def test_0_and_100_percent_are_exact(num_equal: int, figure: str) -> None:
    inside = make_agreement(10**9, num_equal, 0)
    identity = of_one_tensor(inside, make_agreement(10, 10, 10))
    assert headline(identity)[0] == figure
    text = text_of_check(identity, console_width=120)
    assert table_row(text, "region", "inside")["SUB = FULL"] == figure
    page = Page(render(identity_document(identity)))
    assert page.table("Inside the mask, outside it, and all").body[0][2] == figure


def test_a_cosine_of_1_is_exact() -> None:
    values = (1.0, 1 - 1e-12, 0.5, 1e-9, -1e-9, -0.25, -1 + 1e-12, -1.0, None)
    texts = ("1", ">0.9999", "0.5000", "0.0000", "0.0000", "-0.2500", "<-0.9999", "-1", "–")
    assert tuple(map(cosine_text, values)) == texts


def test_outside_holds_by_construction_and_this_is_said() -> None:
    identity = make_identity()
    sentence = outside_sentence(identity)
    assert sentence.startswith("Outside the mask SUB equals FULL in 100 % of ")
    assert "by construction" in sentence
    assert stray_sentence(identity) is None
    for text in (text_of_check(identity), Page(render(identity_document(identity))).text):
        assert sentence in words(text)


def test_what_the_mask_misses_is_counted() -> None:
    identity = make_identity(num_missed=3)
    num_missed = 3 * len(identity.tensors)
    sentence = outside_sentence(identity)
    assert f"FULL moved {num_missed:,} weights that the mask does not hold" in sentence
    assert "construction" not in sentence
    assert sentence in words(text_of_check(identity))


def test_a_sub_that_moved_outside_is_loud() -> None:
    identity = make_identity(num_strays=2)
    outside = identity.total.outside
    alarm = stray_sentence(identity)
    assert alarm is not None
    assert f"in {2 * len(identity.tensors):,} of {outside.num_elements:,} weights OUTSIDE" in alarm
    assert "construction" not in outside_sentence(identity)
    plain = text_of_check(identity, console_width=500)
    assert alarm in plain
    assert f"\x1b[1;33m{alarm}\x1b[0m" in text_of_check(identity, console_width=500, styled=True)
    page = Page(render(identity_document(identity)))
    assert alarm in page.text
    assert ("p", "class", "notice warning") in page.attributes
    assert ("p", "class", "notice warning") not in Page(
        render(identity_document(make_identity()))
    ).attributes


def test_no_mask_and_no_outside() -> None:
    nothing = of_one_tensor(make_agreement(0, 0, 0), make_agreement(100, 60, 50))
    assert headline(nothing) == ("–", "no weights are inside the mask")
    everything = of_one_tensor(make_agreement(100, 60, 50), make_agreement(0, 0, 0))
    assert "nothing is outside it" in outside_sentence(everything)
    for identity in (nothing, everything, replace(nothing, tensors=())):
        text = text_of_check(identity, console_width=100)
        page = Page(render(identity_document(identity)))
        assert table_row(text, "region", "all")["elements"] == f"{identity.total.all.num_elements}"
        assert page.table("Inside the mask, outside it, and all").body
    assert "Least alike" not in Page(render(identity_document(nothing))).sections


def test_the_table_has_the_numbers() -> None:
    identity = make_identity()
    text = text_of_check(identity, console_width=120)
    assert text.splitlines()[:4] == [
        "base  demo/base",
        "full  demo/full",
        "sub   demo/sub",
        f"mask  m.safetensors: {of_all(identity.mask.num_selected, identity.mask.num_elements)} "
        "weights selected",
    ]
    inside = identity.total.inside
    share = percent(inside.num_sub_equal["bits"], inside.num_elements)
    assert f"{share} of {inside.num_elements:,} weights inside the mask are bit-identical" in text
    assert "Doing nothing scores 0 %" in text
    for kind, split in identity.by_kind().items():
        row = table_row(text, "kind", f"{kind} ")
        assert row["elements"] == f"{split.inside.num_elements:,}"
        assert row["SUB = FULL"] == percent(
            split.inside.num_sub_equal["bits"], split.inside.num_elements
        )
        assert row["relative L2"] == f"{split.inside.relative_l2:.3g}"
        assert row["cosine"] == "0.7500"
    row = table_row(text, "criterion", "atol=1e-05")
    assert row["SUB = FULL"] == percent(inside.num_sub_equal["atol=1e-05"], inside.num_elements)
    assert row["BASE = FULL"] == percent(inside.num_base_equal["atol=1e-05"], inside.num_elements)


def test_every_criterion_is_a_formula_with_its_tolerance() -> None:
    for criterion in DEFAULT_CRITERIA:
        assert criterion.key.partition("=")[2] in rule(criterion.key, "y", "x")
    assert "<" in rule("strict_atol=1e-05", "y", "x")


def incomplete() -> Identity:
    row: dict[str, Any] = {"name": HOSTILE, "base_shape": [3], "full_shape": [3], "sub_shape": None}
    coverage = IdentityCoverage(
        num_base=110,
        num_full=110,
        num_sub=100,
        num_compared=100,
        not_compared=({**row, "num_selected": 7},),
        not_in_mask=({"name": "model.norm.weight", "num_elements": 30},),
        tied=({"name": "lm_head.weight", "tied_to": "embed", "num_elements": 5},),
    )
    return replace(make_identity(), coverage=coverage)


def test_incomplete_coverage_is_loud_and_listed() -> None:
    identity = incomplete()
    sentence = (
        "INCOMPLETE: 100 elements were compared, 90.91 % of BASE, 90.91 % of FULL and 100 % of SUB "
        "(1 tensor not in all three with one shape, with 7 elements of the mask); 1 tensor not in "
        "the mask, hence outside it; 1 tied tensor counted once"
    )
    assert f"Coverage {sentence}." in text_of_check(identity, console_width=500)
    page = Page(render(identity_document(identity)))
    classes = [value for _, name, value in page.attributes if name == "class"]
    assert classes.count("notice warning") == 2
    table = page.table("Not in all three with one shape, not compared (1)")
    assert table.body == [[HOSTILE, "3", "3", "–", "7"]]
    assert page.table("Not in the mask, outside it as a whole (1)").body == [
        ["model.norm.weight", "30"]
    ]


def test_sections_come_in_reading_order() -> None:
    assert Page(render(identity_document(make_identity()))).sections == [
        "Did the subnetwork give the same model?",
        "Least alike",
        "Coverage",
        "Provenance",
    ]


def test_the_page_has_the_numbers() -> None:
    identity = make_identity()
    page = Page(render(identity_document(identity)))
    regions = {row[0]: row for row in page.table("Inside the mask, outside it, and all").body}
    kinds = {row[0]: row for row in page.table("Inside the mask, by kind").body}
    layers = {row[0]: row for row in page.table("Inside the mask, by layer").body}
    expected = [
        *((regions[name], identity.total.region(name)) for name in ("inside", "outside", "all")),
        *((kinds[kind], split.inside) for kind, split in identity.by_kind().items()),
        (kinds["all"], identity.total.inside),
        *(
            (layers["outside the layers" if layer is None else str(layer)], split.inside)
            for layer, split in identity.by_layer().items()
        ),
    ]
    for row, agreement in expected:
        assert row[1:4] == [
            f"{agreement.num_elements:,}",
            percent(agreement.num_sub_equal["bits"], agreement.num_elements),
            percent(agreement.num_base_equal["bits"], agreement.num_elements),
        ]
    assert (len(kinds), len(layers)) == (len(identity.by_kind()) + 1, len(identity.by_layer()))
    criteria = page.table("Inside the mask, under every criterion").body
    assert [row[0] for row in criteria] == list(identity.total.inside.num_sub_equal)
    (spec,) = page.specs
    dots = {row["name"]: row for row in spec["data"]["values"]}
    for kind, split in (*identity.by_kind().items(), ("all", identity.total)):
        share = split.inside.num_sub_equal["bits"] / split.inside.num_elements
        assert dots[kind]["measured"] == pytest.approx(100 * share)
        assert dots[kind]["reference"] == 0


def test_least_alike_come_first() -> None:
    identity = make_identity(4)
    rows = Page(render(identity_document(identity))).table("By share inside the mask").body
    shares = {
        tensor.name: tensor.agreement.inside.num_sub_equal["bits"]
        / tensor.agreement.inside.num_elements
        for tensor in identity.tensors
    }
    assert [row[0] for row in rows] == sorted(shares, key=lambda name: shares[name])[:12]


def test_where_it_comes_from_is_shown() -> None:
    identity = make_identity()
    page = Page(render(identity_document(identity)))
    shown = {cell for table in page.tables[-3:] for row in table.body for cell in row}
    assert {
        *("demo/base", "demo/full", "demo/sub", "m.safetensors"),
        identity.mask.digest,
        identity.base.content_hash,
        identity.provenance["command"],
        identity.provenance["date"],
    } <= shown


def test_a_conversion_is_said() -> None:
    identity = replace(make_identity(), conversion="fp8 weights compared as stored")
    assert "Converted before comparing: fp8 weights compared as stored." in text_of_check(identity)
    assert "fp8 weights compared as stored" in Page(render(identity_document(identity))).text


def test_names_from_files_stay_text() -> None:
    identity = of_one_tensor(make_agreement(50, 20, 0), make_agreement(50, 50, 50), HOSTILE)
    (tensor,) = identity.tensors
    identity = replace(
        identity,
        tensors=(replace(tensor, kind=HOSTILE),),
        sub=replace(identity.sub, id=HOSTILE),
        mask=replace(identity.mask, id=HOSTILE, provenance={HOSTILE: [HOSTILE]}),
        conversion=HOSTILE,
        provenance={"command": HOSTILE, HOSTILE: 1},
    )
    page = Page(render(identity_document(identity)))
    assert len(page.scripts) == 2
    assert not any(tag == "img" for tag, _, _ in page.attributes)
    assert page.table("By share inside the mask").body[0][0] == HOSTILE
    escapes = replace(identity, tensors=(replace(tensor, kind="\x1b]0;hi\x07\nkind"),))
    text = text_of_check(escapes, console_width=120)
    assert "\x1b" not in text
    assert "\\x1b]0;hi\\x07\\nkind" in text


def test_several_checks_stand_side_by_side() -> None:
    """As a mask stands beside its controls."""
    checks = {"mask": make_identity(seed=0), "random": make_identity(seed=1, num_missed=2)}
    section = same_model(checks)
    assert any(text.startswith("mask: Outside the mask") for text in section.paragraphs)
    assert any(text.startswith("random: Outside the mask") for text in section.paragraphs)
    regions = section.blocks[0]
    assert regions.title == "Inside the mask, outside it, and all"
    assert [row[:2] for row in regions.rows] == [  # type: ignore[union-attr]
        (label, name) for label in checks for name in ("inside", "outside", "all")
    ]
