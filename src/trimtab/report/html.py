"""Documents as one self-contained HTML page, and their figures as SVG or PNG files.

Styles, data and the chart library are inlined. The content security policy of the page allows only
the two scripts of trimtab, by their hashes, and no requests: a name in a checkpoint cannot run as a
script even if escaping it failed.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterator, Sequence
from functools import cache
from hashlib import sha256
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from trimtab._version import __version__
from trimtab.extras import require
from trimtab.report.document import Document, Figure, Key
from trimtab.report.vega import packed

if TYPE_CHECKING:
    from jinja2 import Environment


def check_installed() -> Any:
    """The module of the chart library.

    Raises:
        MissingExtraError: It is not installed.
    """
    return require("vl_convert", "pip install 'trimtab[report]'")


def render(*documents: Document) -> str:
    """Draw one result, or several below each other.

    Args:
        documents: At least one.

    Returns:
        A complete HTML page.

    Raises:
        MissingExtraError: The chart library is not installed.
    """
    scripts = (_chart_library(), template_text("charts.js"))
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            pages=documents,
            version=__version__,
            style=template_text("style.css"),
            scripts=scripts,
            hashes=[_hash(script) for script in scripts],
        )
    )


@cache
def _chart_library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    vl_convert = check_installed()
    # An inline script ends at the first "</script".
    bundle: str = vl_convert.javascript_bundle()
    return bundle.replace("</script", "<\\/script")


def _hash(script: str) -> str:
    return "sha256-" + b64encode(sha256(script.encode()).digest()).decode()


def template_text(name: str) -> str:
    """A template file, such as `style.css`."""
    return files("trimtab.report").joinpath("templates", name).read_text(encoding="utf-8")


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("trimtab.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    environment.filters["packed"] = packed
    environment.tests["figure"] = lambda block: isinstance(block, Figure)
    return environment


MARGIN = 16
LINE = 20
_CHARACTER = 6.6
"""Approximate width of a character of the legend, at 12 pixels."""

_OPENING = re.compile(r"<svg\b[^>]*>")
_SIZE = re.compile(r'\b(width|height)="([\d.]+)"')
_VARIABLE = re.compile(r"var\((--[\w-]+)\)")


class FigureFile(NamedTuple):
    """A figure as a file.

    Attributes:
        name: Of the file: `1-2-share-by-kind.svg` is the second figure of the first result.
        content: Its bytes.
    """

    name: str
    content: bytes


def figure_files(
    documents: Sequence[Document], format: Literal["svg", "png"] = "svg"
) -> Iterator[FigureFile]:
    """Draw every figure of some documents.

    Args:
        documents: In order.
        format: `svg`, or `png` at twice the size in pixels.

    Raises:
        MissingExtraError: The chart library is not installed.
    """
    vl_convert = check_installed()
    for place, page in enumerate(documents, 1):
        figures = [block for block in page.blocks() if isinstance(block, Figure)]
        for number, figure in enumerate(figures, 1):
            svg = _svg(figure, page, vl_convert)
            title = re.sub(r"[^a-z0-9]+", "-", figure.title.lower()).strip("-")[:60].strip("-")
            content = svg.encode() if format == "svg" else vl_convert.svg_to_png(svg, scale=2)
            yield FigureFile(f"{place}-{number}-{title}.{format}", content)


def _svg(figure: Figure, page: Document, vl_convert: Any) -> str:
    """Title, legend, chart and source below each other."""
    drawn: str = vl_convert.vegalite_to_svg(json.loads(_coloured(json.dumps(figure.spec))))
    opening = _OPENING.search(drawn)
    assert opening is not None
    size = {key: float(value) for key, value in _SIZE.findall(opening[0])}
    width = size["width"] + 2 * MARGIN
    top = float(MARGIN + LINE)
    lines = [_text(figure.title, MARGIN, top, size=15, weight=600)]
    for row in _legend_rows(figure.keys, size["width"]):
        top += LINE
        x = float(MARGIN)
        for key in row:
            lines.append(_sign(key, x, top))
            lines.append(_text(_key_text(key), x + _sign_width(key) + 6, top, colour="--soft"))
            x += _key_width(key)
    top += LINE / 2
    lines.append(f'<svg x="{MARGIN}" y="{top:g}" {opening[0][5:]}{drawn[opening.end() :]}')
    top += size["height"] + LINE
    dated = f" · {page.day}" if page.day else ""
    source = f"{page.source}{dated} · trimtab {__version__}"
    lines.append(_text(source, MARGIN, top, size=10, colour="--soft"))
    height = top + MARGIN
    return _coloured(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" font-family="Liberation Sans, Arial, sans-serif">\n'
        f'<rect width="100%" height="100%" fill="var(--paper)"/>\n'
        + "\n".join(lines)
        + "\n</svg>\n"
    )


def _legend_rows(keys: Sequence[Key], width: float) -> list[list[Key]]:
    """The entries, broken into rows."""
    rows: list[list[Key]] = []
    left = 0.0
    for key in keys:
        if not rows or _key_width(key) > left:
            rows.append([])
            left = width
        rows[-1].append(key)
        left -= _key_width(key)
    return rows


def _key_text(key: Key) -> str:
    return f"{key.text} → {key.end}" if key.symbol == "ramp" else key.text


def _sign_width(key: Key) -> int:
    return {"tick": 4, "span": 26, "dashed": 22, "whisker": 22, "ramp": 100}.get(key.symbol, 11)


def _key_width(key: Key) -> float:
    return _sign_width(key) + 6 + _CHARACTER * len(_key_text(key)) + 20


def _sign(key: Key, x: float, y: float) -> str:
    """The symbol of an entry, on a line of text with its baseline at `y`."""
    middle, width = y - 4, _sign_width(key)
    shape, _, place = key.symbol.partition("-")
    colour = "var(--soft)" if place in ("", "ink") else f"var(--arm-{place})"
    if shape in ("dot", "ring"):
        fill = colour if shape == "dot" else "none"
        circle = f'cx="{x + 5.5:g}" cy="{middle:g}" r="4.5"'
        return f'<circle {circle} fill="{fill}" stroke="{colour}" stroke-width="2"/>'
    if shape in ("dashed", "whisker"):
        ends = f'x1="{x:g}" x2="{x + width:g}" y1="{middle:g}" y2="{middle:g}"'
        dashes = ' stroke-dasharray="4 3"' if shape == "dashed" else ""
        return f'<line {ends} stroke="{colour}" stroke-width="2"{dashes}/>'
    height = {"tick": 14, "span": 7, "ramp": 12}[shape]
    fill = {"tick": "var(--ink)", "span": "var(--span)", "ramp": "url(#ramp)"}[shape]
    shades = (
        '<defs><linearGradient id="ramp"><stop stop-color="var(--accent)" stop-opacity="0"/>'
        '<stop offset="1" stop-color="var(--accent)"/></linearGradient></defs>'
    )
    box = f'x="{x:g}" y="{middle - height / 2:g}" width="{width}" height="{height}"'
    return f'{shades if shape == "ramp" else ""}<rect {box} fill="{fill}"/>'


def _text(
    text_shown: str, x: float, y: float, *, size: int = 12, weight: int = 400, colour: str = "--ink"
) -> str:
    place = f'x="{x:g}" y="{y:g}" font-size="{size}" font-weight="{weight}"'
    return f'<text {place} fill="var({colour})">{escape(text_shown)}</text>'


def _coloured(text: str) -> str:
    """Replace the CSS variables by the colours of the light page."""
    colours = _light()
    return _VARIABLE.sub(lambda match: colours[match[1]], text)


@cache
def _light() -> dict[str, str]:
    light = template_text("style.css").partition("@media")[0]
    return dict(re.findall(r"(--[\w-]+): (#\w+);", light))
