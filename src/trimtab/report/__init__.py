"""Reports of results, for a terminal or as an HTML page.

Nothing here opens a checkpoint. The module of a result is imported when it is needed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from reprlib import repr as short
from typing import TYPE_CHECKING, Any

from trimtab.errors import ResultFormatError

if TYPE_CHECKING:
    from trimtab.report.document import Document
    from trimtab.results.result import Result


@dataclass(frozen=True)
class Report:
    """The report of a kind of result.

    Attributes:
        command: The command that produces the result.
        kind: Module of `trimtab.report` with its `<kind>_document`; it imports the class, too.
        result: Name of the class of the result.
        module: Module of the class, if `trimtab.report` may not import it.
    """

    command: str
    kind: str
    result: str
    module: str = ""

    def load(self, data: Mapping[str, Any]) -> Result:
        """Read a result from its plain data.

        Raises:
            ResultFormatError: It is damaged, or of another version.
        """
        module = self.module or f"trimtab.report.{self.kind}"
        result: Result = getattr(import_module(module), self.result).from_dict(data)
        return result

    def document(self, result: Any) -> Document:
        """The document of a result."""
        describe = getattr(import_module(f"trimtab.report.{self.kind}"), f"{self.kind}_document")
        document: Document = describe(result)
        return document

    def text(self, result: Any, *, styled: bool) -> str:
        """A result as text for a terminal."""
        from trimtab.report.terminal import render_text

        return render_text(self.document(result), styled=styled)


REPORTS: Mapping[str, Report] = {
    "trimtab.comparison": Report("trimtab compare", "comparison", "Comparison"),
    "trimtab.trajectory": Report("trimtab trajectory", "trajectory", "Trajectory"),
    "trimtab.identity": Report("trimtab identity", "identity", "Identity"),
    "trimtab.overlap": Report("trimtab mask overlap", "overlap", "Overlap"),
    "trimtab.split": Report("trimtab mask share", "split", "Split"),
    "trimtab.prediction": Report("trimtab mask score", "prediction", "PredictionScore"),
    "trimtab.structure": Report("trimtab mask structure", "structure", "Structure"),
    "trimtab.evaluation": Report("trimtab evaluate", "evaluation", "Evaluation"),
    "trimtab.robustness": Report("trimtab robustness", "robustness", "Robustness"),
    "trimtab.delta": Report("trimtab delta info", "delta", "Manifest"),
    "trimtab.sync": Report("trimtab sync publish", "sync", "SyncLog"),
    "trimtab.paper": Report("trimtab paper run", "paper", "PaperResult", "trimtab.papers.results"),
}
"""Format of a result file -> its report. A new kind of result is one entry here."""


def report_of(result: Result) -> Report:
    """The report of a result, by the name of its class."""
    name = type(result).__name__
    return next(report for report in REPORTS.values() if report.result == name)


def document_of(result: Result) -> Document:
    """The document of a result, to be printed, drawn as a page or written as tables."""
    return report_of(result).document(result)


def text_of(result: Result, *, styled: bool = False) -> str:
    """Draw a result for a terminal.

    Args:
        result: A result.
        styled: Use bold, dim and yellow, for a terminal that shows them.
    """
    return report_of(result).text(result, styled=styled)


def html_of(*results: Result) -> str:
    """Draw results below each other on a complete HTML page.

    Raises:
        MissingExtraError: The chart library is not installed.
    """
    from trimtab.report.html import render

    return render(*map(document_of, results))


def read_result(data: Any) -> Result:
    """Read a result from the data of `to_dict`.

    Raises:
        ResultFormatError: It is not a result of this version of trimtab, or it is damaged.
    """
    format = data.get("format") if isinstance(data, dict) else None
    if not isinstance(format, str) or format not in REPORTS:
        raise ResultFormatError(
            f"expected a result of {commands()}; found the format {short(format)}"
        )
    return REPORTS[format].load(data)


def load_result(path: str | os.PathLike[str]) -> Result:
    """Read a result that was written by `save`, or by `-o` of a command.

    Args:
        path: The file.

    Raises:
        ResultFormatError: The file is not JSON, or not a result of this version.
    """
    from trimtab.results.result import read_result_file

    return read_result_file(path, read_result, expected=f"JSON from -o of {commands()}")


def commands() -> str:
    """The commands that produce results, as a list in words."""
    *most, last = (f"`{report.command}`" for report in REPORTS.values())
    return f"{', '.join(most)} or {last}"
