"""Every error that trimtab raises on purpose.

Each class also derives from the built-in that it refines, so callers can catch either::

    TrimtabError
    ├── CheckpointError (ValueError)         not a checkpoint that can be read
    │   └── CheckpointNotFoundError (FileNotFoundError)
    │                                        no such path, hub id or revision, or no network
    ├── TensorMismatchError (ValueError)     base and tuned tensors do not fit each other
    ├── MaskError (ValueError)               not a mask, or a mask that cannot be used
    │   └── MaskMismatchError                a mask of another model, or of other weights
    ├── DeltaError (ValueError)              not a delta, or a delta that cannot be used
    ├── CriterionError (ValueError)          a "changed" criterion that cannot be understood
    ├── AnalysisError (ValueError)           settings of an analysis that cannot be used
    ├── ResultFormatError (ValueError)       a saved result of another format or version
    ├── SettingsError (ValueError)           settings of a training run that cannot be used
    ├── OptimizerError (RuntimeError)        an optimizer that cannot train what it was given
    ├── OutputExistsError (FileExistsError)  an output file is in the way, without --force
    ├── WriteError (OSError)                 an output file for which there is no room
    └── MissingExtraError (ImportError)      an optional part is not installed

`CheckpointWarning` is no error: a checkpoint was read, and might not be the one that was meant.

A message names the tensor, file or key, what was expected, what was found, and what to do. All
problems of one run are collected and raised once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

Given = ParamSpec("Given")
Returned = TypeVar("Returned")

__all__ = [
    "AnalysisError",
    "CheckpointError",
    "CheckpointNotFoundError",
    "CheckpointWarning",
    "CriterionError",
    "DeltaError",
    "MaskError",
    "MaskMismatchError",
    "MissingExtraError",
    "OptimizerError",
    "OutputExistsError",
    "ResultFormatError",
    "SettingsError",
    "TensorMismatchError",
    "TrimtabError",
    "WriteError",
]


class TrimtabError(Exception):
    """Base of all errors that trimtab raises on purpose."""


class CheckpointWarning(UserWarning):
    """A folder offers several sets of weights, or integers instead; says what was read."""


class CheckpointError(TrimtabError, ValueError):
    """A file or folder is not a checkpoint that can be read."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """No such path, hub id or revision, or the hub cannot be reached."""


class TensorMismatchError(TrimtabError, ValueError):
    """Tensors of the base and the tuned checkpoint do not fit each other."""


class MaskError(TrimtabError, ValueError):
    """A file or arrays that are no mask, or a mask that cannot be used."""


class MaskMismatchError(MaskError):
    """A mask was made for another model, or against other weights than these."""


class DeltaError(TrimtabError, ValueError):
    """A file or folder that is no delta, or a delta that cannot be applied to this base."""


class CriterionError(TrimtabError, ValueError):
    """A criterion for "changed" that cannot be understood."""


class AnalysisError(TrimtabError, ValueError):
    """An optional analysis was asked for with settings that cannot be used."""


class ResultFormatError(TrimtabError, ValueError):
    """A saved result has another format or version than this trimtab reads."""


class SettingsError(TrimtabError, ValueError):
    """Settings of a training run that cannot be used."""


class OptimizerError(TrimtabError, RuntimeError):
    """Parameters, gradients or a saved state that an optimizer cannot work with."""


class OutputExistsError(TrimtabError, FileExistsError):
    """An output file exists already and overwriting was not asked for."""


class WriteError(TrimtabError, OSError):
    """An output file cannot be written for want of room: a full disk, a quota, a limit."""


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
            context: What it is an error of, for the message: `cell sft`; or nothing.
        """
        self._errors.setdefault(str(error), (error, []))[1].append(context)

    @contextmanager
    def collect(self, context: str = "") -> Iterator[None]:
        """Collect the error that the block raises, if it does."""
        try:
            yield
        except TrimtabError as error:
            self.add(error, context)

    def result(
        self, function: Callable[Given, Returned], *args: Given.args, **kwargs: Given.kwargs
    ) -> Returned | None:
        """What a function returns; None if it fails."""
        with self.collect():
            return function(*args, **kwargs)
        return None

    def raise_all(self, where: str = "") -> None:
        """Raise what was collected, if anything.

        Args:
            where: What precedes several errors, or one with a place: `run.toml: `, or nothing.

        Raises:
            TrimtabError: The only error, of its own class; or a `SettingsError` with all of them.
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
