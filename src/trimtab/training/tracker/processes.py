"""The processes that share a sharded model, and how they agree; one, where none is sharded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from trimtab.errors import TrimtabError
from trimtab.training.optimizers.sharding import as_sharded

__all__ = ["Processes"]

Result = TypeVar("Result")


class Processes:
    """All processes if a parameter is sharded, else the first alone.

    Every method is collective: all processes that take part must call it alike.

    Attributes:
        takes_part: Whether this process has anything to count.
        number: Of this process; 0 writes the file.
        size: How many take part.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        is_initialized = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank = torch.distributed.get_rank() if is_initialized else 0
        is_sharded = any(as_sharded(parameter) is not None for parameter in parameters)
        self.takes_part = is_sharded or rank == 0
        self.number = rank
        self.size = torch.distributed.get_world_size() if is_sharded else 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes the file."""
        return self.number == 0

    def together(self, action: Callable[[], Result]) -> list[Result]:
        """Do something in each process, and return the results of all, in each.

        Raises:
            TrimtabError: It failed in one; raised by all of them.
        """
        outcome: Any
        try:
            outcome = action()
        except (TrimtabError, OSError) as error:
            outcome = error
            if self.size == 1:
                raise
        if self.size == 1:
            return [outcome]
        outcomes: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(outcomes, outcome)
        for of in outcomes:
            if isinstance(of, (TrimtabError, OSError)):
                raise of
        return outcomes

    def by_first(self, action: Callable[[], Result]) -> Result:
        """Do something in the first process, and return its result in each.

        Raises:
            TrimtabError: It failed; raised by all of them.
        """
        return self.together(lambda: action() if self.is_first else None)[0]  # type: ignore[return-value]

    def to_first(self, value: Result) -> list[Result]:
        """The values of all processes in the first; nothing in the others."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_first else None
        torch.distributed.gather_object(value, values)
        return values or []

    def from_first(self, values: Sequence[Result]) -> Result:
        """The value that the first process has for this one."""
        if self.size == 1:
            return values[0]
        received: list[Any] = [None]
        torch.distributed.scatter_object_list(received, list(values) if self.is_first else None)
        return received[0]
