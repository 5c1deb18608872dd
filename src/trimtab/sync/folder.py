"""A local checkpoint that follows a run: always whole, and complete with config and tokenizer."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from trimtab.checkpoints.checkpoint import open_checkpoint, opened
from trimtab.deltas.apply import write_folder
from trimtab.deltas.chain import Replay, opened_chain
from trimtab.deltas.make import some_delta
from trimtab.deltas.manifest import Manifest
from trimtab.deltas.source import NOTHING, hashes_of
from trimtab.errors import CheckpointError, DeltaError, OutputExistsError
from trimtab.inputs import AnyPath
from trimtab.outputs import remove_drafts
from trimtab.results.records import record_of
from trimtab.sync.follower import Start

CURRENT = "current"
"""Name of the link to the newest checkpoint."""


OURS = re.compile("[0-9a-f]{16}")
"""Name of a checkpoint: the start of its content hash."""


class FolderHolder:
    """Writes every version to a folder of its own, and moves the link `current` to it.

        out/3f9c0b1e6a7d4c52/    a checkpoint; its name is the start of its content hash
        out/current              a link to it

    Whoever loads `current` gets one version, whole. The one before stays until the next comes.
    """

    def __init__(
        self, folder: AnyPath, base: AnyPath | None = None, *, threads: int | None = None
    ) -> None:
        """Set the folder; nothing is written before the first version comes.

        Args:
            folder: To be made, or one that followed before.
            base: The checkpoint that the run began with, if it is here.
            threads: Tensors or chunks decoded at the same time; by default one for each core.

        Raises:
            OutputExistsError: The folder holds something else.
        """
        self.folder = Path(folder)
        self._base = base
        self._threads = threads
        ensure_followed(self.folder, OURS)

    def __repr__(self) -> str:
        return f"FolderHolder({os.fspath(self.folder)!r})"

    @property
    def has_base(self) -> bool:
        """Whether version 0 is at hand."""
        return self._base is not None

    @property
    def _link(self) -> Path:
        return self.folder / CURRENT

    def content_hash(self) -> str | None:
        """Of the current checkpoint; None if there is none, or it is damaged."""
        try:
            return _hash_of(self._link)
        except CheckpointError:
            return None

    def apply(self, deltas: Sequence[Path], start: Start, seconds: dict[str, float]) -> Manifest:
        """Write the checkpoint that deltas make, and move the link.

        Args:
            deltas: Files in the order in which they are applied.
            start: `own` is the current checkpoint.
            seconds: Gets `decode` and `apply`.

        Raises:
            DeltaError: They cannot be applied.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_drafts(self.folder)
        started = time.monotonic()
        base = {"own": self._link.resolve(), "base": self._base, "nothing": None}[start]
        with (
            some_delta(base, deltas) as some,
            opened_chain(some) as chain,
            opened(*([] if base is None else [base])) as found,
        ):
            replay = Replay(found[0] if found else NOTHING, chain)
            content = replay.manifest.result.content_hash
            target = self.folder / content[:16]
            if target.exists() and _hash_of(target) != content:
                raise DeltaError(f"{target} was changed: delete it, and try again")
            if not target.exists():
                write_folder(replay, target, threads=self._threads)
        seconds["decode"] = time.monotonic() - started
        started = time.monotonic()
        move_link(self.folder, target.name, OURS)
        seconds["apply"] = time.monotonic() - started
        return replay.manifest


def ensure_followed(folder: Path, ours: re.Pattern[str]) -> None:
    """Check that a folder is new, or holds only what another process left that followed there.

    Args:
        folder: The folder.
        ours: Names of checkpoints.

    Raises:
        OutputExistsError: It holds something else.
    """

    def is_ours(path: Path) -> bool:
        is_named = path.name == CURRENT if path.is_symlink() else ours.fullmatch(path.name)
        return bool(is_named) or path.name.startswith(".")

    if folder.exists() and not (folder.is_dir() and all(map(is_ours, folder.iterdir()))):
        raise OutputExistsError(
            f"{folder} holds something else: choose another folder, or delete it first"
        )


def move_link(folder: Path, name: str, ours: re.Pattern[str]) -> None:
    """Let the link `current` lead to a checkpoint, and remove all but that one and the last.

    Args:
        folder: Where they are.
        name: Of the checkpoint.
        ours: Names of checkpoints, which may be removed.
    """
    link = folder / CURRENT
    before = link.resolve().name if link.is_symlink() else None
    draft = folder / f".{CURRENT}-{os.getpid()}"
    draft.unlink(missing_ok=True)
    draft.symlink_to(name)
    draft.replace(link)
    for path in folder.iterdir():
        if ours.fullmatch(path.name) and path.name not in (before, name):
            shutil.rmtree(path, ignore_errors=True)


def _hash_of(path: Path) -> str:
    with open_checkpoint(path) as checkpoint:
        return record_of(checkpoint, hashes_of(checkpoint)).content_hash
