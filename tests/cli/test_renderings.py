"""The table of results: every entry leads somewhere, and agrees with the class it names."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest

from trimtab.cli.renderings import RENDERINGS, read_result
from trimtab.errors import ResultFormatError


def found(place: str) -> Any:
    module, name = place.split(":")
    return getattr(import_module(f"trimtab.{module}"), name)


@pytest.mark.parametrize("format", RENDERINGS)
def test_an_entry_leads_to_its_parts(format: str) -> None:
    rendering = RENDERINGS[format]
    result = found(rendering.result)
    assert format == import_module(result.__module__).FORMAT
    assert callable(result.from_dict)
    assert callable(found(rendering.text))
    assert callable(found(rendering.page))


@pytest.mark.parametrize("data", [None, [], {}, {"format": ["x"]}, {"format": "trimtab.mask"}])
def test_what_is_no_result_is_refused(data: Any) -> None:
    with pytest.raises(ResultFormatError, match="expected a result of `trimtab compare`"):
        read_result(data)
