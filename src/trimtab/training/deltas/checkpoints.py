"""Checkpoints of a Trainer whose weights are stored as deltas."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from trimtab.checkpoints.checkpoint import opened
from trimtab.checkpoints.tensors import hash_of_file
from trimtab.deltas.store import Store
from trimtab.deltas.store_objects import MAX_CHAIN
from trimtab.errors import CheckpointError, DeltaError, SettingsError, TrimtabError
from trimtab.outputs import scratch_folder
from trimtab.training.folders import complete_checkpoints
from trimtab.words import first_few

STORE = "deltas"
"""In the output folder of a Trainer: the store of the weights of its checkpoints."""

STATE, OPTIMIZER = "trainer_state.json", "optimizer.pt"
"""In a checkpoint of a Trainer; the first is written last."""


class DeltaCheckpoint(TrainerCallback):  # type: ignore[misc]
    """A Trainer callback: the weights of its checkpoints are stored as deltas.

    ::

        trainer.add_callback(DeltaCheckpoint("base"))
        trainer.train()
        trimtab.Store("out/deltas").checkout("checkpoint-20", "step-20")

    Whenever the Trainer saved `checkpoint-N`, it is added to the store `OUTPUT_DIR/deltas`, decoded
    and compared. The newest checkpoint keeps its weights as well, so that training resumes from it
    as always, and so does the best one with `load_best_model_at_end`; from the others, and from all
    of them at the end of training, the files of weights are removed. What else a checkpoint holds
    stays as the Trainer wrote it. If no delta can be made, a warning says why and the weights stay.

    Checkpoints may be removed at any time, by `save_total_limit` or by hand: what others are deltas
    against stays in the store until none needs it.
    """

    def __init__(
        self,
        base: str | os.PathLike[str],
        *,
        max_chain: int = 8,
        optimizer_states: int | None = None,
        max_rank: int = 0,
        threads: int | None = None,
    ) -> None:
        """Set the base; nothing is read before training starts.

        Args:
            base: The checkpoint that training starts from: a folder, a file or a hub id.
            max_chain: Most deltas from the base to a checkpoint, at most 32. Each is made against
                the one before, until there are so many; the next is made against the base. With 1
                all of them are: larger files, of which each decodes alone.
            optimizer_states: Newest checkpoints that keep `optimizer.pt`; it is larger than the
                weights, and needed to resume. By default all of them keep it.
            max_rank: As in `trimtab.make_delta`. Training waits while a checkpoint is stored, so it
                is 0 by default: deltas are a fifth larger, and made in less than half the time.
            threads: Tensors or chunks coded at the same time; by default one for each core.

        Raises:
            SettingsError: A number is out of range.
        """
        if not 1 <= max_chain <= MAX_CHAIN:
            raise SettingsError(f"max_chain is {max_chain}, expected 1 to {MAX_CHAIN}")
        if optimizer_states is not None and optimizer_states < 1:
            raise SettingsError(
                f"optimizer_states is {optimizer_states}, expected 1 or more, or None for all: set "
                "save_only_model=True in the Trainer's arguments to store none"
            )
        self._base = base
        self._max_chain = max_chain
        self._optimizer_states = optimizer_states
        self._max_rank = max_rank
        self._threads = threads

    def __repr__(self) -> str:
        return f"DeltaCheckpoint({os.fspath(self._base)!r})"

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make the store, unless training is resumed.

        Raises:
            CheckpointError: The base cannot be read.
            DeltaError: The store is damaged.
        """
        if not args.should_save:
            return
        run = Path(args.output_dir)
        if not (run / STORE).exists():
            Store.create(run / STORE, self._base)
        with opened(self._base):
            store = Store(run / STORE)
        best = _best(args, state)
        if best is not None and best.name in store.names() and best.is_dir():
            _write_weights(store, best, self._base, self._threads)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget a checkpoint of an earlier run that the Trainer is about to write over."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if not (args.should_save and control.should_save and folder.is_dir()):
            return
        (folder / STATE).unlink(missing_ok=True)  # it is incomplete until the Trainer is done
        store = Store(folder.parent / STORE)
        if folder.name in store.names():
            store.remove(folder.name)

    on_epoch_end = on_step_end

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Store the weights of the checkpoint as a delta, and thin out those before it."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if not args.should_save or not folder.is_dir():
            return
        try:
            self._add(Store(folder.parent / STORE), folder)
        except (TrimtabError, OSError) as error:
            warnings.warn(f"{folder} keeps its weights: no delta was made: {error}", stacklevel=2)
        self._thin_out(folder.parent, {folder, _best(args, state)})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove the weights of the newest and of the best checkpoint, which are stored."""
        if args.should_save:
            self._thin_out(Path(args.output_dir), set())

    @staticmethod
    def restore(
        run: str | os.PathLike[str],
        step: int | None = None,
        *,
        base: str | os.PathLike[str] | None = None,
        threads: int | None = None,
    ) -> Path:
        """Write the weights of a checkpoint again, so that training resumes from it bit for bit.

        ::

            checkpoint = DeltaCheckpoint.restore("out")
            trainer.train(resume_from_checkpoint=checkpoint)

        Args:
            run: The output folder of the Trainer.
            step: The step of the checkpoint; by default the last one that is complete, also after
                the process was killed while it saved.
            base: Where the base is now; by default where it was.
            threads: Tensors or chunks decoded at the same time; by default one for each core.

        Returns:
            The folder of the checkpoint.

        Raises:
            CheckpointError: The base cannot be read.
            DeltaError: There is no such checkpoint, its delta is damaged, or this is not its base.

        Warns:
            UserWarning: It has no state of the optimizer: a Trainer starts with a new one.
        """
        store = Store(Path(run) / STORE)
        complete = complete_checkpoints(Path(run))
        if step is None and complete:
            step = max(complete)
        if step not in complete:
            steps = first_few([str(number) for number in sorted(complete)]) or "none"
            raise DeltaError(
                f"{os.fspath(run)}: no complete checkpoint of step {step}: it has {steps}"
                if step is not None
                else f"{os.fspath(run)}: no complete checkpoint"
            )
        folder = complete[step]
        if folder.name in store.names():
            _write_weights(store, folder, base, threads)
        else:  # the process was killed before it was stored, and its weights are there
            try:
                with opened(folder):
                    pass
            except CheckpointError as error:
                raise DeltaError(f"{folder}: neither stored nor whole: {error}") from None
        if not (folder / OPTIMIZER).exists():
            warnings.warn(
                f"{folder} has no {OPTIMIZER}: a Trainer that resumes from it starts with a new "
                "optimizer",
                stacklevel=2,
            )
        return folder

    def _add(self, store: Store, folder: Path) -> None:
        """Store a checkpoint against the one before it, or against the base."""
        _forget_removed(store, folder.parent)
        step = _step(folder.name)
        before = [name for name in store.names() if _step(name) < step]
        against = max(before, key=_step, default="base")
        if against != "base" and store.manifest(against).position >= self._max_chain:
            against = "base"
        store.add(
            folder,
            folder.name,
            against=against,
            base=self._base,
            decoded=folder.with_name(against),
            verify=True,
            force=True,
            max_rank=self._max_rank,
            threads=self._threads,
        )

    def _thin_out(self, run: Path, whole: Collection[Path | None]) -> None:
        """Remove the weights of all checkpoints but some, and old states of the optimizer."""
        try:
            store = Store(run / STORE)
            for name in store.names():
                if run / name not in whole:
                    _thin(store, run / name)
        except (TrimtabError, OSError) as error:
            warnings.warn(f"{run}: checkpoints keep their weights: {error}", stacklevel=2)
        if self._optimizer_states is None:
            return
        complete = complete_checkpoints(run)
        for step in sorted(complete)[: -self._optimizer_states]:
            with _as_old_as_before(complete[step]):
                (complete[step] / OPTIMIZER).unlink(missing_ok=True)


def _step(name: str) -> int:
    """The step in the name of a checkpoint; -1 for a name of somebody else."""
    start, _, number = name.partition("-")
    return int(number) if start == "checkpoint" and number.isdecimal() else -1


def _best(args: Any, state: Any) -> Path | None:
    """The checkpoint that the Trainer will load at the end."""
    if not args.load_best_model_at_end or state.best_model_checkpoint is None:
        return None
    return Path(args.output_dir) / Path(state.best_model_checkpoint).name


def _forget_removed(store: Store, run: Path) -> None:
    """Remove what only checkpoints need whose folders were removed."""
    removed = [name for name in store.names() if _step(name) >= 0 and not (run / name).is_dir()]
    for name in removed:
        store.remove(name)
    if removed:
        store.gc()


def _thin(store: Store, folder: Path) -> None:
    """Remove the files of weights of a checkpoint that is stored."""
    if not any(folder.glob("*.safetensors")):
        return
    with _as_old_as_before(folder):
        for file in store.manifest(folder.name).files:
            path = folder / file.path
            if file.kind != "weights" or not path.exists():
                continue
            if hash_of_file(path) != file.hash:
                raise CheckpointError(f"{path} changed after it was stored")
            path.unlink()


def _write_weights(
    store: Store, folder: Path, base: str | os.PathLike[str] | None, threads: int | None
) -> None:
    """Write the files of weights of a stored checkpoint, unless they are there."""
    files = [file for file in store.manifest(folder.name).files if file.kind == "weights"]
    missing = [
        file.path
        for file in files
        if not (folder / file.path).is_file() or hash_of_file(folder / file.path) != file.hash
    ]
    if not missing:
        return
    with scratch_folder(folder.with_name("restored")) as scratch, _as_old_as_before(folder):
        store.checkout(folder.name, scratch / folder.name, base=base, threads=threads)
        for path in missing:
            (scratch / folder.name / path).replace(folder / path)


@contextmanager
def _as_old_as_before(folder: Path) -> Iterator[None]:
    """Keep the time of a folder: a Trainer removes the checkpoints that are oldest by it."""
    before = folder.stat()
    try:
        yield
    finally:
        os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
