"""The frame of every page: one file that needs nothing else, now or in ten years.

Styles, data and the chart library are inside. The page's own content security policy lets the
browser run the two scripts that trimtab put there, known by their hashes, and load nothing: a
name in a checkpoint that was made to be a script stays text even if escaping it had failed.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from trimtab._version import __version__
from trimtab.extras import require
from trimtab.report.blocks import Figure, Section
from trimtab.report.vega import packed
from trimtab.report.wording import printable

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["Hero", "Page", "check_installed", "render", "template_text"]


@dataclass(frozen=True)
class Hero:
    """A headline figure over a bar.

    Attributes:
        label: What it is of, or empty.
        figure: The figure.
        words: The rest of its sentence.
        filled: Share of the bar that is filled.
        under: What the filled part stands for.
    """

    label: str
    figure: str
    words: str
    filled: float
    under: str


def check_installed() -> Any:
    """The module of the chart library.

    Raises:
        MissingExtraError: It is not installed. Better heard before a long comparison than after.
    """
    return require("vl_convert", "pip install 'trimtab[report]'")


@dataclass(frozen=True, kw_only=True)
class Page:
    """What is told about one result, in order.

    Attributes:
        title: Of the browser's tab.
        heading: The page's own title.
        subtitle: What was set against what.
        heroes: The headline figures.
        sections: In order; None where there is nothing to say.
        source: What every figure is of: criterion, checkpoints, date. Stands below each of them.
        date: When the result was made; its first ten characters are shown.
        coverage: One sentence on what was looked at.
        conversion: Words on a cast, if there was one.
        incomplete: What was not compared, if anything; shown at the top.
        warnings: Shown at the top.
        paragraphs: What opens the page.
    """

    title: str
    heading: str
    subtitle: tuple[str, str]
    heroes: Sequence[Hero]
    sections: Sequence[Section | None]
    source: str
    date: object
    coverage: str
    conversion: str = ""
    incomplete: Sequence[str] = ()
    warnings: Sequence[str] = ()
    paragraphs: Sequence[str] = ()

    @property
    def shown(self) -> tuple[Section, ...]:
        """The sections that there are."""
        return tuple(section for section in self.sections if section is not None)

    @property
    def day(self) -> str:
        """The date as it is shown."""
        return printable(str(self.date))[:10]


def render(*pages: Page) -> str:
    """Draw one result, or several below each other.

    Args:
        pages: What is told, at least one.

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
            pages=pages,
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
    # An inline script ends at the first "</script", wherever that stands.
    bundle: str = vl_convert.javascript_bundle()
    return bundle.replace("</script", "<\\/script")


def _hash(script: str) -> str:
    return "sha256-" + b64encode(sha256(script.encode()).digest()).decode()


def template_text(name: str) -> str:
    """A part of the frame, such as `style.css`."""
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
