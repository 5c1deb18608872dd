"""The table of results: for each format, what reads it back and what draws it.

A new kind of result is one entry here. Entries are names, looked up when they are needed, so that a
command loads no more than its own result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from reprlib import repr as short
from typing import TYPE_CHECKING, Any, Protocol

from trimtab.errors import ResultFormatError

if TYPE_CHECKING:
    from trimtab.report.page import Page

__all__ = ["RENDERINGS", "Rendering", "Result", "commands", "read_result", "rendering_of"]


class Result(Protocol):
    """What a command measured: a frozen dataclass."""

    @property
    def provenance(self) -> Mapping[str, Any]:
        """How it was made."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with `format` and `format_version`."""
        ...


@dataclass(frozen=True)
class Rendering:
    """Where the parts of a kind of result are, each as `module:name` below `trimtab`.

    Attributes:
        command: Which makes it.
        result: Its class, which has `from_dict`.
        text: Function of the result and `styled`: a table for the terminal.
        page: Function of the result: what a page tells of it.
        is_drawn_from_data: `text` and `page` take `to_dict()`: results of training are above the
            layer that draws.
    """

    command: str
    result: str
    text: str
    page: str
    is_drawn_from_data: bool = False

    def load(self, data: Mapping[str, Any]) -> Result:
        """Read it back.

        Raises:
            ResultFormatError: It is damaged, or of another version.
        """
        result: Result = _found(self.result).from_dict(data)
        return result

    def render_text(self, result: Result, *, styled: bool) -> str:
        """A table for the terminal."""
        text: str = _found(self.text)(self._drawn(result), styled=styled)
        return text

    def page_of(self, result: Result) -> Page:
        """What a page tells of it; `trimtab.report.page.render` draws it."""
        page: Page = _found(self.page)(self._drawn(result))
        return page

    def _drawn(self, result: Result) -> Any:
        return result.to_dict() if self.is_drawn_from_data else result


RENDERINGS: Mapping[str, Rendering] = {
    "trimtab.comparison": Rendering(
        command="trimtab compare",
        result="compare.result:Comparison",
        text="report.comparison_table:render_table",
        page="report.comparison_page:comparison_page",
    ),
    "trimtab.trajectory": Rendering(
        command="trimtab trajectory",
        result="compare.trajectory_result:Trajectory",
        text="report.trajectory_table:render_trajectory_table",
        page="report.trajectory_page:trajectory_page",
    ),
    "trimtab.identity": Rendering(
        command="trimtab identity",
        result="masks.identity.result:Identity",
        text="report.identity_table:render_identity_table",
        page="report.identity_page:identity_page",
    ),
    "trimtab.overlap": Rendering(
        command="trimtab mask overlap",
        result="masks.overlap.result:Overlap",
        text="report.overlap_table:render_overlap_table",
        page="report.overlap_page:overlap_page",
    ),
    "trimtab.split": Rendering(
        command="trimtab mask share",
        result="masks.split:Split",
        text="report.split_table:render_split",
        page="report.split_page:split_page",
    ),
    "trimtab.prediction": Rendering(
        command="trimtab mask score",
        result="masks.prediction.result:PredictionScore",
        text="report.prediction_table:render_prediction_table",
        page="report.prediction_page:prediction_page",
    ),
    "trimtab.structure": Rendering(
        command="trimtab mask structure",
        result="masks.structure.result:Structure",
        text="report.structure_table:render_structure_table",
        page="report.structure_page:structure_page",
    ),
    "trimtab.evaluation": Rendering(
        command="trimtab evaluate",
        result="training.evaluation.result:Evaluation",
        text="report.evaluation_table:render_evaluation_table",
        page="report.evaluation_page:evaluation_page",
        is_drawn_from_data=True,
    ),
    "trimtab.robustness": Rendering(
        command="trimtab robustness",
        result="training.robustness.result:Robustness",
        text="report.robustness_table:render_robustness_table",
        page="report.robustness_page:robustness_page",
        is_drawn_from_data=True,
    ),
    "trimtab.paper": Rendering(
        command="trimtab paper run",
        result="papers.results:PaperResult",
        text="report.paper_table:render_paper_table",
        page="report.paper_page:paper_page",
        is_drawn_from_data=True,
    ),
}
"""Format of a result file -> what reads and draws it."""


def rendering_of(result: Result) -> Rendering:
    """The entry of a result, by its class: as data it may be megabytes."""
    place = f"{type(result).__module__.removeprefix('trimtab.')}:{type(result).__name__}"
    return next(rendering for rendering in RENDERINGS.values() if rendering.result == place)


def read_result(data: Any) -> Result:
    """Read back what `to_dict` gave.

    Raises:
        ResultFormatError: No command of this trimtab made it, or it is damaged.
    """
    format = data.get("format") if isinstance(data, dict) else None
    if not isinstance(format, str) or format not in RENDERINGS:
        raise ResultFormatError(
            f"expected a result of {commands()}; found the format {short(format)}"
        )
    return RENDERINGS[format].load(data)


def commands() -> str:
    """The commands that make results, in words."""
    *most, last = (f"`{rendering.command}`" for rendering in RENDERINGS.values())
    return f"{', '.join(most)} or {last}"


def _found(place: str) -> Any:
    module, name = place.split(":")
    return getattr(import_module(f"trimtab.{module}"), name)
