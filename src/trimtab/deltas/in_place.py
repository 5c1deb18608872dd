"""Apply a delta to a folder in place, so that an interruption at any point is completed or undone.

All new files are written and checked beside the old ones first, in `.trimtab-delta/`. Then a marker
is written, and every file takes its place by a rename, `config.json` last: while files of both
checkpoints are mixed there is none, so nothing loads the folder. Without the marker the folder is
untouched, and with it the same command completes what is left.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trimtab import inputs
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.checkpoints.folder import SHARD, is_foreign
from trimtab.checkpoints.stream import Progress
from trimtab.checkpoints.tensors import hash_of_file
from trimtab.deltas.apply import apply_delta
from trimtab.deltas.make import make_delta
from trimtab.deltas.manifest import Manifest
from trimtab.deltas.masked import AnyMask
from trimtab.errors import CheckpointNotFoundError, DeltaError
from trimtab.inputs import AnyPath
from trimtab.outputs import is_same_file, lock, write_text

STAGE, NEW, MARKER = ".trimtab-delta", "new", "ready.json"
"""In the folder: where work is prepared; in that, the new files and the marker."""

UNDO, ADDED = ".trimtab-undo.delta", ".trimtab-undo.json"
"""What `revert` uses: the way back, and path -> hash of the files that were not there before."""

CONFIG = "config.json"


def apply_in_place(
    folder: AnyPath,
    deltas: AnyPath | Sequence[AnyPath] | None = None,
    *,
    keep_undo: bool = True,
    signers: AnyPath | None = None,
    signature: AnyPath | None = None,
    mask: AnyMask | Sequence[AnyMask] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Manifest | None:
    """Turn the checkpoint in a folder into what deltas make of it.

    Files that the deltas do not know are left alone; files of weights that the result does not have
    are removed. While it runs, the folder takes the space of both checkpoints.

    Args:
        folder: Folder of the checkpoint that the first delta was made against.
        deltas: One delta file, or those of a chain in any order; None to complete what was
            interrupted.
        keep_undo: Write the delta back as `.trimtab-undo.delta`, for `revert`.
        signers: As in `apply_delta`; likewise `signature`.
        signature: The signature, of a single delta that does not lie beside its own.
        mask: As in `apply_delta`.
        threads: Tensors or chunks coded at the same time; by default one for each core.
        progress: Called with bytes done and bytes in all.

    Returns:
        What the last delta says of the result; None where an interrupted one was completed.

    Raises:
        CheckpointError: The folder holds no checkpoint that can be read.
        DeltaError: The checkpoint is not the base of the deltas, they are no chain, one is damaged,
            or another process is at work in the folder. The folder was not changed.
    """
    target = Path(folder)
    if not target.is_dir():
        raise CheckpointNotFoundError(f"{target}: no such folder")
    with lock(target / f"{STAGE}.lock") as is_held:
        if not is_held:
            raise DeltaError(f"{target}: another process applies a delta to it: wait for its end")
        stage = target / STAGE
        if (stage / MARKER).exists():
            _swap(target)
            return None
        shutil.rmtree(stage, ignore_errors=True)
        if deltas is None:
            raise DeltaError(f"{target}: nothing was interrupted there: give a delta to apply")
        stage.mkdir()
        try:
            manifest = _prepare(
                target,
                deltas,
                keep_undo,
                signers=signers,
                signature=signature,
                mask=mask,
                threads=threads,
                progress=progress,
            )
        except BaseException:
            if not (stage / MARKER).exists():
                shutil.rmtree(stage, ignore_errors=True)
            raise
        _swap(target)
        return manifest


def revert(
    folder: AnyPath, *, threads: int | None = None, progress: Progress | None = None
) -> Manifest | None:
    """Undo the last `apply_in_place`: the folder holds the checkpoint from before, bit for bit.

    Files that it added are removed, unless they were changed since.

    Raises:
        DeltaError: There is nothing to undo, or the folder was changed since.
    """
    target = Path(folder)
    if (target / STAGE / MARKER).exists():
        apply_in_place(target)
    undo = target / UNDO
    if not undo.exists():
        raise DeltaError(f"{target}: no delta was applied to it in place, or without its undo file")
    return apply_in_place(target, undo, keep_undo=False, threads=threads, progress=progress)


def _prepare(
    target: Path,
    deltas: AnyPath | Sequence[AnyPath],
    keep_undo: bool,
    *,
    threads: int | None,
    progress: Progress | None,
    **settings: Any,
) -> Manifest:
    """Write everything that is needed, and the marker as its last."""
    stage = target / STAGE
    with open_checkpoint(target) as base:
        old = {tensor.file.path.relative_to(target).as_posix() for tensor in base.tensors.values()}
        manifest = apply_delta(
            base, deltas, stage / NEW, threads=threads, progress=progress, **settings
        )
        files = {file.path: file.hash for file in manifest.files}
        if keep_undo:
            with open_checkpoint(stage / NEW) as result:
                make_delta(
                    result,
                    base,
                    stage / UNDO,
                    carry=[*files],
                    threads=threads,
                    progress=progress,
                )
            added = {name: hash for name, hash in files.items() if not (target / name).exists()}
            write_text(stage / ADDED, json.dumps({"files": added}))
    gone = {*old, *(f"{SHARD.sub('', name)}.index.json" for name in old)}
    if isinstance(deltas, str | os.PathLike) and is_same_file(deltas, target / UNDO):
        gone |= _still_added(target)
    plan = {
        "files": files,
        "gone": [name for name in sorted(gone - files.keys()) if (target / name).exists()],
        "keeps_undo": keep_undo,
    }
    _sync(stage)
    write_text(stage / MARKER, json.dumps(plan))
    _sync(stage)
    return manifest


def _swap(target: Path) -> None:
    """Put the prepared files into their places. Every step may be repeated."""
    stage = target / STAGE
    plan = _plan(stage / MARKER)
    files: dict[str, str] = plan["files"]
    _move_away(target / CONFIG, files, stage)
    for name in plan["gone"]:
        (target / name).unlink(missing_ok=True)
    for name in sorted(files, key=lambda name: name == CONFIG):
        source, place = stage / NEW / name, target / name
        if source.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            source.replace(place)
        elif not place.exists() or hash_of_file(place) != files[name]:
            raise DeltaError(
                f"{target}: {name} changed while a delta was being applied: get the checkpoint and "
                f"the delta again, and remove {stage}"
            )
    for name in (ADDED, UNDO):
        if (stage / name).exists():
            (stage / name).replace(target / name)
        elif not plan["keeps_undo"]:
            (target / name).unlink(missing_ok=True)
    _sync(target)
    (stage / MARKER).unlink()
    shutil.rmtree(stage)


def _move_away(config: Path, files: dict[str, str], stage: Path) -> None:
    """Take the old config away, so that nothing loads the folder until the new one is there."""
    if CONFIG in files and config.exists() and (stage / NEW / CONFIG).exists():
        config.replace(stage / f"old-{CONFIG}")


def _still_added(target: Path) -> set[str]:
    """Files that the last `apply_in_place` added, if they are what it wrote."""
    path = target / ADDED
    files = _plan(path)["files"] if path.exists() else {}
    return {
        name
        for name, hash in files.items()
        if (target / name).is_file() and hash_of_file(target / name) == hash
    }


def _plan(path: Path) -> dict[str, Any]:
    plan = inputs.read_json(path, DeltaError)
    names = [*plan.get("files", {}), *plan.get("gone", [])] if isinstance(plan, dict) else [""]
    if any(not isinstance(name, str) or is_foreign(name) for name in names):
        what = path if path.name == ADDED else path.parent
        raise DeltaError(f"{path}: damaged: remove {what} and try again")
    return {"files": {}, "gone": [], "keeps_undo": True, **plan}


def _sync(folder: Path) -> None:
    """Wait until the names in a folder are on disk."""
    if os.name == "nt":
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
