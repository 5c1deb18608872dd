"""The table of results: every entry leads somewhere, and agrees with the class it names."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest

from trimtab.errors import ResultFormatError
from trimtab.report import REPORTS, read_result


@pytest.mark.parametrize("format", REPORTS)
def test_an_entry_leads_to_its_parts(format: str) -> None:
    report = REPORTS[format]
    module = import_module(f"trimtab.report.{report.kind}")
    result = getattr(import_module(report.module or module.__name__), report.result)
    assert format == result.FORMAT
    assert callable(result.from_dict)
    assert callable(getattr(module, f"{report.kind}_document"))


@pytest.mark.parametrize("data", [None, [], {}, {"format": ["x"]}, {"format": "trimtab.mask"}])
def test_what_is_no_result_is_refused(data: Any) -> None:
    with pytest.raises(ResultFormatError, match="expected a result of `trimtab compare`"):
        read_result(data)
