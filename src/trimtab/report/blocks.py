"""Names of an earlier form of `trimtab.report.document`, for results that are not in it yet."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from trimtab.report.document import Figure, Key, Role, Section, Table
from trimtab.report.document import plain_table as table

__all__ = ["Column", "Figure", "Key", "Section", "Table", "run_column", "table"]

Column: TypeAlias = tuple[str, Role]


def run_column(labels: Iterable[str]) -> list[Column]:
    """A column for the labels of the runs, if they have any."""
    return [("run", "text")] if any(labels) else []
