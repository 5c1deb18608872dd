"""Rows as a data set of TRL's trainers that gives them back as they were.

Arrow has one type for a column: it turns 7 beside 2.5 into 7.0, gives every object the keys of all
others (with None), and refuses numbers above 64 bits. So rewards and chat templates would not see
what the file says. Here every value travels as its JSON text, and is read when it is looked at.
(`datasets.Json` is no help: it reads the text "7" as the number, and rounds fractions.)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any

from datasets import Dataset


class ExactDataset(Dataset):  # type: ignore[misc]
    """A `datasets.Dataset` whose rows equal those that it was made of.

    What `map` adds are ordinary columns; what it replaces is kept as exactly as before.
    """

    _exact: frozenset[str] = frozenset()
    """Columns that are stored as JSON text."""

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> ExactDataset:
        """Make one.

        Args:
            rows: All with the same columns, of what JSON can hold.
        """
        texts = {name: [json.dumps(row[name]) for row in rows] for name in rows[0]}
        made: ExactDataset = cls.from_dict(texts)
        made._exact = frozenset(texts)
        return made

    def __getitem__(self, key: Any) -> Any:
        """A row, a batch of rows, or a column."""
        got = super().__getitem__(key)
        if self.format["type"] is not None or isinstance(key, str):  # columns are views of rows
            return got
        return self._read(got, is_batch=not isinstance(key, int))

    def __iter__(self) -> Iterator[Any]:
        """Row by row."""
        is_plain = self.format["type"] is None
        return (self._read(row) if is_plain else row for row in super().__iter__())

    def map(self, function: Callable[..., Any] | None = None, *args: Any, **kwargs: Any) -> Dataset:
        """As of `datasets.Dataset`: the function sees the rows, and not how they are stored."""
        if function is None or self.format["type"] is not None or kwargs.get("input_columns"):
            return super().map(function, *args, **kwargs)
        is_batch = kwargs.get("batched", False)

        @wraps(function)
        def on_rows(stored: Mapping[str, Any], *more: Any, **also: Any) -> Any:
            made = function(self._read(stored, is_batch), *more, **also)
            return self._written(made, is_batch) if isinstance(made, Mapping) else made

        return self._like(super().map(on_rows, *args, **kwargs))

    def select(self, *args: Any, **kwargs: Any) -> Dataset:
        """As of `datasets.Dataset`."""
        return self._like(super().select(*args, **kwargs))

    def shuffle(self, *args: Any, **kwargs: Any) -> Dataset:
        """As of `datasets.Dataset`."""
        return self._like(super().shuffle(*args, **kwargs))

    def _like(self, other: Dataset) -> ExactDataset:
        """What was made of this data set, which `datasets` returns as one of its own class."""
        kept = type(self)(other.data, other.info, other.split, other._indices)
        kept._exact = self._exact & set(other.column_names)
        return kept

    def _read(self, stored: Mapping[str, Any], is_batch: bool = False) -> dict[str, Any]:
        read = _each(json.loads) if is_batch else json.loads
        return {name: read(of) if name in self._exact else of for name, of in stored.items()}

    def _written(self, made: Mapping[str, Any], is_batch: bool) -> dict[str, Any]:
        write = _each(json.dumps) if is_batch else json.dumps
        return {name: write(of) if name in self._exact else of for name, of in made.items()}


def _each(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda values: [function(value) for value in values]
