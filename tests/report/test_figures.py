"""Figures as files: complete, in the page's colours, and readable by other programs."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

from tests.report.factory import make_comparison, make_demo
from tests.report.identity_factory import make_identity
from tests.report.page import unpacked
from tests.report.test_comparison_page import HOSTILE, hostile_comparison
from trimtab.report.comparison import comparison_document
from trimtab.report.demo import demo_document
from trimtab.report.document import Document as Page
from trimtab.report.document import Figure
from trimtab.report.html import figure_files
from trimtab.report.identity import identity_document
from trimtab.report.vega import packed

TEXT = "{http://www.w3.org/2000/svg}text"


def figures_of(page: Page) -> list[Figure]:
    return [b for section in page.shown for b in section.blocks if isinstance(b, Figure)]


def texts(svg: bytes) -> list[str]:
    root = ElementTree.fromstring(svg)
    return ["".join(element.itertext()) for element in root.iter(TEXT)]


def test_every_figure_is_a_file_with_title_legend_and_source() -> None:
    comparison = make_comparison(num_layers=2, analysed=True)
    pages = [
        comparison_document(comparison),
        identity_document(make_identity()),
        demo_document(make_demo(), {"grpo": comparison, "sft": comparison}),
    ]
    files = list(figure_files(pages))
    figures = [(page, figure) for page in pages for figure in figures_of(page)]
    assert len(files) == len(figures) == len({file.name for file in files}) > 10
    for (page, figure), file in zip(figures, files, strict=True):
        shown = texts(file.content)
        assert shown[0] == figure.title
        assert all(key.text in " ".join(shown) for key in figure.keys)
        assert shown[-1].startswith(page.source)
        assert b"var(" not in file.content


def test_the_name_says_which_result_and_figure() -> None:
    names = [file.name for file in figure_files([comparison_document(make_comparison(1))] * 2)]
    assert names[0] == "1-1-changed-elements-by-layer-and-kind.svg"
    assert [name[:3] for name in names] == [f"{n}-{m}" for n in (1, 2) for m in (1, 2, 3)]


def test_png_has_the_size_of_the_svg_twice() -> None:
    pages = [comparison_document(make_comparison(num_layers=1))]
    for svg, png in zip(figure_files(pages), figure_files(pages, "png"), strict=True):
        assert png.content.startswith(b"\x89PNG\r\n\x1a\n")
        size = [int.from_bytes(png.content[at : at + 4], "big") for at in (16, 20)]
        wanted = re.findall(rb'(?:width|height)="([\d.]+)"', svg.content.split(b">")[0])
        assert all(abs(a - 2 * float(b)) <= 2 for a, b in zip(size, wanted, strict=True))


def test_a_hostile_name_stays_text() -> None:
    for file in figure_files([comparison_document(hostile_comparison())]):
        root = ElementTree.fromstring(file.content)
        assert not [
            one for one in root.iter() if one.tag.endswith(("script", "img", "foreignObject"))
        ]
        assert HOSTILE.encode() not in file.content


def test_rows_are_packed_without_loss() -> None:
    for page in (
        comparison_document(make_comparison(num_layers=3)),
        identity_document(make_identity()),
    ):
        for figure in figures_of(page):
            small = packed(figure.spec)
            assert unpacked(small) == figure.spec
            assert len(json.dumps(small)) <= len(json.dumps(figure.spec))
    uneven = {"data": {"values": [{"a": 1}, {"b": 2}]}, "x": {"values": [1, 2]}}
    assert packed(uneven) == uneven
