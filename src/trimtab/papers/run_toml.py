"""Run files as text: the part of TOML that they need, for which Python has a reader only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["as_toml"]


def as_toml(content: Mapping[str, Any]) -> str:
    """Tables of numbers, strings, booleans and lists of these, one level deep, as TOML.

    JSON's strings, numbers and lists are TOML's, too, where floats have a point or an exponent.
    """
    alone = [_line(key, value) for key, value in content.items() if not isinstance(value, Mapping)]
    tables = [
        "\n".join([f"[{name}]", *(_line(key, value) for key, value in table.items())])
        for name, table in content.items()
        if isinstance(table, Mapping)
    ]
    return "\n\n".join(["\n".join(alone), *tables]) + "\n"


def _line(key: str, value: Any) -> str:
    return f"{key} = {json.dumps(value, ensure_ascii=False)}"
