"""Checkpoints of a Trainer whose weights are stored as deltas."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from trimtab.checkpoints.checkpoint import opened
from trimtab.checkpoints.tensors import hash_of_file
from trimtab.deltas.apply import verify_delta, write_file
from trimtab.deltas.chain import Replay, opened_chain
from trimtab.deltas.make import write_delta
from trimtab.deltas.source import source_of
from trimtab.errors import CheckpointError, DeltaError, SettingsError, TrimtabError
from trimtab.outputs import new_file

DELTA = "weights.delta"
"""In a checkpoint of a Trainer: its weights, and the files beside them."""

STATE = "trainer_state.json"
"""Grows with the run, and stays in the checkpoint: it is not stored a second time."""


class DeltaCheckpoint(TrainerCallback):  # type: ignore[misc]
    """A Trainer callback: the weights of each checkpoint are stored as a delta against the base.

    ::

        trainer.add_callback(DeltaCheckpoint("base"))
        trainer.train()
        trimtab.apply_delta("base", "out/checkpoint-20/weights.delta", "step-20")

    Whenever the Trainer saved `checkpoint-N`, `weights.delta` is written into it, decoded and
    compared with the weights, and only then their files are removed. Everything else (optimizer,
    random numbers, ...) stays as the Trainer wrote it. Every delta is against the base itself, so
    `save_total_limit` may remove any checkpoint. If a delta cannot be made, a warning says why and
    the weights stay.

    `restore` gives a checkpoint its weights back, to resume from it.
    """

    def __init__(self, base: str | os.PathLike[str], *, threads: int | None = None) -> None:
        """Set the base; nothing is read before training starts.

        Args:
            base: The checkpoint that training starts from: a folder, a file or a hub id.
            threads: Tensors or chunks coded at the same time; by default one for each core.
        """
        self._base = base
        self._threads = threads

    def __repr__(self) -> str:
        return f"DeltaCheckpoint({os.fspath(self._base)!r})"

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check that the base can be read.

        Raises:
            CheckpointError: It cannot.
            SettingsError: The Trainer needs the weights of a checkpoint at the end.
        """
        if args.load_best_model_at_end:
            raise SettingsError(
                "load_best_model_at_end=True loads the weights of a checkpoint, and "
                "DeltaCheckpoint stores them as a delta: set it to False, and apply the delta of "
                "the best checkpoint after training"
            )
        with opened(self._base):
            pass

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Store the weights of the checkpoint as a delta."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if not args.should_save or not folder.is_dir():
            return
        try:
            _store(self._base, folder, self._threads)
        except (TrimtabError, OSError) as error:
            warnings.warn(f"{folder} keeps its weights: no delta was made: {error}", stacklevel=2)

    @staticmethod
    def restore(
        run: str | os.PathLike[str],
        step: int,
        *,
        base: str | os.PathLike[str] | None = None,
        threads: int | None = None,
    ) -> Path:
        """Write the weights of a checkpoint again, so that training resumes from it bit for bit.

        ::

            checkpoint = DeltaCheckpoint.restore("out", 20)
            trainer.train(resume_from_checkpoint=checkpoint)

        Args:
            run: The output folder of the Trainer.
            step: The step of the checkpoint.
            base: The base; by default where it was when the delta was made.
            threads: Tensors or chunks decoded at the same time; by default one for each core.

        Returns:
            The folder of the checkpoint.

        Raises:
            CheckpointError: The base cannot be read.
            DeltaError: The checkpoint has no delta, it is damaged, or this is not its base.
        """
        folder = Path(run) / f"checkpoint-{step}"
        if not (folder / DELTA).is_file():
            raise DeltaError(
                f"{folder} has no {DELTA}: expected a checkpoint of a run with DeltaCheckpoint"
            )
        with opened_chain(folder / DELTA) as chain:
            record = chain[0].manifest.base
            if base is None:
                base = f"{record.id}@{record.revision}" if record.revision else record.id
            with opened(base) as (checkpoint,):
                _write_weights(Replay(checkpoint, chain), folder, threads)
        return folder


def _store(base: str | os.PathLike[str], folder: Path, threads: int | None) -> None:
    """Write the delta of a checkpoint, check it, and remove the files of its weights."""
    with opened(base, folder) as (before, tuned):
        source = source_of(tuned)
        others = {name: read for name, read in source.others.items() if name != STATE}
        write_delta(
            before, replace(source, others=others), folder / DELTA, threads=threads, force=True
        )
        manifest = verify_delta(before, folder / DELTA, threads=threads)
    weights = [file for file in manifest.files if file.kind == "weights"]
    for file in weights:
        if hash_of_file(folder / file.path) != file.hash:
            raise CheckpointError(f"{folder / file.path} changed while its delta was being made")
    for file in weights:
        (folder / file.path).unlink()


def _write_weights(replay: Replay, folder: Path, threads: int | None) -> None:
    for file in replay.manifest.files:
        path = folder / file.path
        if file.kind == "weights" and not (path.exists() and hash_of_file(path) == file.hash):
            with new_file(path, force=True) as target:
                write_file(replay, file, target, threads=threads)
