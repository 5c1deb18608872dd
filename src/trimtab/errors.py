"""Every error that trimtab raises on purpose; each also derives from the built-in that it refines.

A message names the tensor, file or key, what was expected, what was found, and what to do. All
problems of one run are collected and raised once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

Given = ParamSpec("Given")
Returned = TypeVar("Returned")


class TrimtabError(Exception):
    """Base of all errors that trimtab raises on purpose."""


class CheckpointWarning(UserWarning):
    """A checkpoint was read, and may not be the one that was meant; says what was read."""


class CheckpointError(TrimtabError, ValueError):
    """A file or folder is not a checkpoint that can be read."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """No such path, hub id or revision, or the hub cannot be reached."""


class TensorMismatchError(TrimtabError, ValueError):
    """Tensors of the base and the tuned checkpoint do not fit each other."""


class MaskError(TrimtabError, ValueError):
    """A file or arrays that are not a mask, or a mask that cannot be used."""


class MaskMismatchError(MaskError):
    """A mask was made for another model, or against other weights than these."""


class DeltaError(TrimtabError, ValueError):
    """A file or folder that is not a delta, or a delta that cannot be applied to this base."""


class SyncError(TrimtabError, RuntimeError):
    """A place of published versions cannot be used, or what lies there is not to be trusted."""


class CriterionError(TrimtabError, ValueError):
    """A criterion for "changed" that cannot be understood."""


class AnalysisError(TrimtabError, ValueError):
    """Settings of an analysis that cannot be used."""


class ResultFormatError(TrimtabError, ValueError):
    """A saved result has another format or version than this trimtab reads."""


class SettingsError(TrimtabError, ValueError):
    """Settings of a training run that cannot be used."""


class OptimizerError(TrimtabError, RuntimeError):
    """Parameters, gradients or a saved state that an optimizer cannot work with."""


class OutputExistsError(TrimtabError, FileExistsError):
    """An output file exists already, and `force` (--force) was not set."""


class WriteError(TrimtabError, OSError):
    """Output without room (a full disk, a quota, a limit), or that the hub does not take."""


class MissingExtraError(TrimtabError, ImportError):
    """An optional part of trimtab is not installed."""


class Problems:
    """Collects errors, to raise all of them at once; equal ones are raised as one."""

    def __init__(self) -> None:
        self._errors: dict[str, tuple[TrimtabError, list[str]]] = {}

    def __bool__(self) -> bool:
        return bool(self._errors)

    def add(self, error: TrimtabError, context: str = "") -> None:
        """Collect an error.

        Args:
            error: The error.
            context: What the error belongs to, for the message: `cell sft`; or nothing.
        """
        self._errors.setdefault(str(error), (error, []))[1].append(context)

    @contextmanager
    def collect(self, context: str = "") -> Iterator[None]:
        """Collect the error that the block raises, if any."""
        try:
            yield
        except TrimtabError as error:
            self.add(error, context)

    def result(
        self, function: Callable[Given, Returned], *args: Given.args, **kwargs: Given.kwargs
    ) -> Returned | None:
        """Return the result of a function, or None if it fails."""
        with self.collect():
            return function(*args, **kwargs)
        return None

    def raise_all(self, where: str = "") -> None:
        """Raise the collected errors, if there are any.

        Args:
            where: Prefix of a message with several errors, or with a context: `run.toml: `, or
                nothing.

        Raises:
            TrimtabError: The only error, of its own class; or a `SettingsError` that lists all.
        """
        if not self._errors:
            return
        (first, contexts), *others = self._errors.values()
        if not others and not any(contexts):
            raise first
        sentences = [
            f"{_first_of(contexts)}: {message}" if any(contexts) else message
            for message, (_, contexts) in self._errors.items()
        ]
        kind = SettingsError if others else type(first)
        raise kind(f"{where}{'; '.join(sentences)}")


def _first_of(contexts: list[str]) -> str:
    return contexts[0] if len(contexts) == 1 else f"{contexts[0]} and {len(contexts) - 1} more"
