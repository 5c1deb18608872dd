"""A data set for TRL's trainers that returns rows exactly as they were given.

Arrow has one type per column: it converts 7 next to 2.5 to 7.0, gives every object the keys of all
others (with None), and refuses numbers above 64 bits, so rewards and chat templates would not see
the values of the file. Here values are stored as JSON text and parsed on access. (`datasets.Json`
reads the text "7" as the number, and rounds fractions.)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any

from datasets import Dataset


class ExactDataset(Dataset):  # type: ignore[misc]
    """A `datasets.Dataset` whose rows equal those that it was made from.

    Columns that `map` adds are ordinary ones; columns that it replaces stay exact.
    """

    _exact: frozenset[str] = frozenset()
    """Columns that are stored as JSON text."""

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> ExactDataset:
        """Create a data set from rows of JSON values that all have the same columns."""
        texts = {name: [json.dumps(row[name]) for row in rows] for name in rows[0]}
        dataset: ExactDataset = cls.from_dict(texts)
        dataset._exact = frozenset(texts)
        return dataset

    def __getitem__(self, key: Any) -> Any:
        """A row, a batch of rows, or a column."""
        stored = super().__getitem__(key)
        if self.format["type"] is not None or isinstance(key, str):  # columns are views of rows
            return stored
        return self._read(stored, is_batch=not isinstance(key, int))

    def __iter__(self) -> Iterator[Any]:
        """Row by row."""
        is_plain = self.format["type"] is None
        return (self._read(row) if is_plain else row for row in super().__iter__())

    def map(self, function: Callable[..., Any] | None = None, *args: Any, **kwargs: Any) -> Dataset:
        """See `datasets.Dataset.map`; the function sees parsed rows."""
        if function is None or self.format["type"] is not None or kwargs.get("input_columns"):
            return super().map(function, *args, **kwargs)
        is_batch = kwargs.get("batched", False)

        @wraps(function)
        def on_rows(stored: Mapping[str, Any], *more: Any, **also: Any) -> Any:
            result = function(self._read(stored, is_batch), *more, **also)
            return self._written(result, is_batch) if isinstance(result, Mapping) else result

        return self._like(super().map(on_rows, *args, **kwargs))

    def select(self, *args: Any, **kwargs: Any) -> Dataset:
        """See `datasets.Dataset.select`."""
        return self._like(super().select(*args, **kwargs))

    def shuffle(self, *args: Any, **kwargs: Any) -> Dataset:
        """See `datasets.Dataset.shuffle`."""
        return self._like(super().shuffle(*args, **kwargs))

    def _like(self, other: Dataset) -> ExactDataset:
        """Wrap a result of `datasets`, which is a plain `Dataset`."""
        dataset = type(self)(other.data, other.info, other.split, other._indices)
        dataset._exact = self._exact & set(other.column_names)
        return dataset

    def _read(self, stored: Mapping[str, Any], is_batch: bool = False) -> dict[str, Any]:
        parse = _each(json.loads) if is_batch else json.loads
        return {
            name: parse(value) if name in self._exact else value for name, value in stored.items()
        }

    def _written(self, result: Mapping[str, Any], is_batch: bool) -> dict[str, Any]:
        write = _each(json.dumps) if is_batch else json.dumps
        return {
            name: write(value) if name in self._exact else value for name, value in result.items()
        }


def _each(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda values: [function(value) for value in values]
