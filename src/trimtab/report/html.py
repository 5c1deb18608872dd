"""Documents as one self-contained HTML page.

Styles, data and the chart library are inlined. The content security policy of the page allows only
the two scripts of trimtab, by their hashes, and no requests: a name in a checkpoint cannot run as a
script even if escaping it failed.
"""

from __future__ import annotations

from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from trimtab._version import __version__
from trimtab.extras import require
from trimtab.report.document import Document, Figure
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
