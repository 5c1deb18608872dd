"""Follow a folder in slime's layout, whoever writes it: slime, miles, ModelExpress, trimtab."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from trimtab.checkpoints.checkpoint import opened
from trimtab.deltas.exchange.importing import import_delta
from trimtab.deltas.exchange.slime import INDEX, check_slime_anchor
from trimtab.errors import DeltaError, SyncError, TrimtabError
from trimtab.inputs import AnyPath, read_json
from trimtab.outputs import remove_drafts, scratch_folder
from trimtab.sync.folder import CURRENT, ensure_followed, move_link
from trimtab.sync.follower import Update, repeatedly
from trimtab.words import one_line

FOLDER = re.compile(r"weight_v(\d{1,12})")


class _Found(NamedTuple):
    """A version in the folder: before which one it comes, None if it is whole."""

    number: int
    base: int | None
    folder: Path


class SlimeFollower:
    """Keeps a folder at the newest version of a run in slime's layout.

        out/weight_v000012/    a checkpoint
        out/current            a link to it

    Every version is written anew beside the one before: XOR is never applied in place, so it cannot
    be applied twice. The checksums in the run's files are compared; tensors that a delta does not
    have are those of the version before. Nobody is told which version is here.

    Attributes:
        source: The folder of the run.
        output: The folder that follows.
    """

    def __init__(self, source: AnyPath, output: AnyPath, base: AnyPath | None = None) -> None:
        """Set up; nothing is read yet.

        Args:
            source: The folder that has `weight_v000001` and so on.
            output: To be made, or one that followed before.
            base: The checkpoint that the run began with: version 0.

        Raises:
            OutputExistsError: `output` holds something else.
        """
        self.source, self.output = Path(source), Path(output)
        self._base = base
        ensure_followed(self.output, FOLDER)

    def __repr__(self) -> str:
        at = "no version yet" if self.version is None else f"version {self.version}"
        return one_line(self, f"{self.source}: {at}")

    @property
    def version(self) -> int | None:
        """The version that `current` leads to; None without one."""
        link = self.output / CURRENT
        match = FOLDER.fullmatch(link.readlink().name) if link.is_symlink() else None
        return int(match[1]) if match is not None and link.exists() else None

    def update(self) -> Update | None:
        """Write the newest version, if `current` is another one.

        Returns:
            What was done; None if there was nothing to do, or nothing is published yet.

        Raises:
            SyncError: No versions lead to the newest one.
            CheckpointError: A file cannot be read.
            DeltaError: A version is damaged, or made of another base.
        """
        found = _versions_in(self.source)
        own = self.version
        if not found or own == max(found):
            return None
        started = time.monotonic()
        newest = max(found)
        at, way = self._way(found, newest, own)
        self.output.mkdir(parents=True, exist_ok=True)
        remove_drafts(self.output)
        target = self.output / f"weight_v{newest:06}"
        with scratch_folder(target) as scratch:
            for version in way:
                last = scratch / f"{version.number}"
                if version.base is None:
                    check_slime_anchor(version.folder)
                    if len(way) > 1:
                        at = version.folder
                        continue
                    shutil.copytree(version.folder, last)
                else:
                    assert at is not None
                    import_delta(
                        at, version.folder, last, format="slime", base_version=version.base
                    )
                if at is not None and at.parent == scratch:
                    shutil.rmtree(at)
                at = last
            assert at is not None
            shutil.rmtree(target, ignore_errors=True)  # of another run, perhaps
            at.rename(target)
        decoded = time.monotonic()
        move_link(self.output, target.name, FOLDER)
        return Update(
            before=own,
            version=newest,
            step=None,
            links=tuple(version.folder.name for version in way),
            num_bytes=sum(
                path.stat().st_size for version in way for path in version.folder.iterdir()
            ),
            seconds={"decode": decoded - started, "apply": time.monotonic() - decoded},
        )

    def updates(
        self, *, poll: float = 1.0, warn: Callable[[TrimtabError | OSError], None] | None = None
    ) -> Iterator[Update]:
        """Follow the run; as in `Follower`."""
        return repeatedly(self.update, poll=poll, warn=warn)

    def _way(
        self, found: dict[int, _Found], newest: int, own: int | None
    ) -> tuple[Path | None, list[_Found]]:
        """Where to begin, None for nothing, and the versions from there in their order."""
        way: list[_Found] = []
        number: int = newest
        while True:
            if number == own:
                return (self.output / CURRENT).resolve(), way[::-1]
            version = found.get(number)
            if version is None:
                break
            way.append(version)
            if version.base is None:
                return None, way[::-1]
            if version.base >= number:
                raise SyncError(f"{version.folder}: leads from version {version.base} back")
            number = version.base
        if number == 0 and self._base is not None:
            with opened(self._base) as (checkpoint,):
                return checkpoint.folder, way[::-1]
        raise SyncError(
            f"{self.source}: its versions lead from version {number} to {newest}, the newest, and "
            f"{self.output} has {'none' if own is None else own}: "
            + ("give the base" if number == 0 else "wait for the next whole checkpoint")
        )


def is_slime(folder: AnyPath) -> bool:
    """Whether a folder has versions in slime's layout."""
    path = Path(folder)
    return path.is_dir() and any(FOLDER.fullmatch(each.name) for each in path.iterdir())


def newest_in(folder: AnyPath) -> int | None:
    """The newest version in a folder in slime's layout; None without one."""
    return max(_versions_in(Path(folder)), default=None)


def _versions_in(folder: Path) -> dict[int, _Found]:
    """Number -> a version that is complete."""
    found = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        match = FOLDER.fullmatch(path.name)
        if match is None or path.is_symlink() or not (path / INDEX).is_file():
            continue
        index: Any = read_json(path / INDEX, DeltaError, strict=True)
        metadata = index.get("metadata") if isinstance(index, dict) else None
        if not isinstance(metadata, dict):
            raise DeltaError(f"{path / INDEX}: expected an object with metadata")
        base = None
        if "delta_encoding" in metadata:
            digits = re.search(r"\d+$", str(metadata.get("base_version")))
            if digits is None:
                raise DeltaError(f"{path / INDEX}: its base_version is no number")
            base = int(digits[0])
        found[int(match[1])] = _Found(int(match[1]), base, path)
    return found
