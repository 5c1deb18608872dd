"""A Trainer callback that publishes the weights as they are trained, for engines that follow."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers import TrainerCallback

from trimtab.checkpoints.checkpoint import opened
from trimtab.deltas.manifest import MAX_FILE_BYTES
from trimtab.deltas.masked import AnyMask
from trimtab.deltas.source import other_files
from trimtab.errors import CheckpointError, SettingsError, SyncError
from trimtab.inputs import AnyPath, read_bytes
from trimtab.masks.mask import Mask
from trimtab.sync.chain import at_place
from trimtab.sync.follower import Acknowledgement
from trimtab.sync.places import Place
from trimtab.sync.published import Published, SyncLog
from trimtab.sync.publisher import Publisher
from trimtab.training import runtime
from trimtab.training.deltas.live import LiveModel, cast, stored_tensors
from trimtab.training.deltas.saving import config_files, live_source
from trimtab.training.deltas.sharded import Gathering, gathered
from trimtab.training.layout import STORED, Layout
from trimtab.training.optimizers.sparse import SparseOptimizer
from trimtab.training.tracker.gradients import unwrapped
from trimtab.training.tracker.parts import parse_stored_dtype
from trimtab.words import one_line


class DeltaPublisher(TrainerCallback):  # type: ignore[misc]
    """Publishes the weights of a run after each step, or every few, for any number of followers.

    With a Trainer, also of TRL, also with `train_only`::

        DeltaPublisher("s3://bucket/run").attach(trainer)
        trainer.train()

    In a loop of your own::

        with DeltaPublisher("/shared/run") as publisher:
            for step in range(100):
                ...
                publisher.publish(model, step=step + 1)

    Version 0 is published when training begins, then each version as what it changes in the one
    before: the trainer waits while that is found, and a thread encodes and stores it during the
    next step. A run that is resumed adds versions to those that are there. If a version cannot be
    stored, the next step fails, or the end of training, and nothing that was published is lost.

    The Trainer's logs have, as means for each version since the last log, the seconds of each stage
    (`sync/diff_s`, `sync/encode_s`, `sync/publish_s`), those that the trainer waited in all
    (`sync/blocked_s`), `sync/bytes`, `sync/bytes_share` of the dense bytes, `sync/changed` as a
    share of the elements, and the last `sync/version`.

    Attributes:
        place: Where the run is published.
        seconds_blocked: Seconds that `publish` took in all, which the trainer waited for.
    """

    def __init__(
        self,
        place: AnyPath | Place,
        *,
        every: int = 1,
        base: AnyPath | None = None,
        stored_dtype: str | None = None,
        mask: AnyMask | Literal[True] | None = None,
        wait_for: int | Collection[str] = 0,
        max_staleness: int = 0,
        timeout: float = 600.0,
        **options: Any,
    ) -> None:
        """Set what to publish; nothing is read or written before training starts.

        Args:
            place: A folder, a URL of an object store, or an open place; of one run.
            every: Steps from one version to the next. The last step is always published.
            base: The checkpoint that training begins with, if all followers have it; then it is not
                published. By default version 0 is published whole, with the tokenizer.
            stored_dtype: Dtype in which fp32 weights are published: `bfloat16`, `float16` or
                `float32`; by default as they are. Others are published in their own.
            mask: As in `trimtab.Publisher`; True for that of `train_only`, or of a `SparseAdamW` or
                `SparseSGD` that the Trainer has. With True and a base, elements that these cannot
                change are compared with the base only when training begins and ends.
            wait_for: Followers that must keep up, by their number or their names: training waits
                for them.
            max_staleness: Versions that these may be behind when the next one is published; with 0,
                training waits until they have it.
            timeout: Seconds to wait for followers; then training ends with an error that says which
                version who has.
            **options: `anchor_every`, `fold_every`, `keep`, `max_rank`, `wire` and so on, as in
                `trimtab.Publisher`.

        Raises:
            SettingsError: A number is out of range.
            SyncError: No such place can be opened.
        """
        if every < 1:
            raise SettingsError(f"every is {every}, expected a number of steps of at least 1")
        if max_staleness < 0:
            raise SettingsError(f"max_staleness is {max_staleness}, expected 0 or more")
        if isinstance(wait_for, str):
            wait_for = {wait_for}
        self.place = at_place(place)
        self.seconds_blocked = 0.0
        self._every, self._base = every, base
        self._wait_for, self._behind, self._timeout = wait_for, max_staleness, timeout
        self._stored = parse_stored_dtype(stored_dtype)
        self._options = options
        self._mask: AnyMask | Literal[True] | None = mask
        self._trained: Mask | None = None  # by a sparse optimizer
        self._publisher: Publisher | None = None
        self._others: Mapping[str, Callable[[], bytes]] = {}
        self._version: int | None = None
        self._given: int | None = None
        self._step: int | None = None  # of the last version, in a Trainer
        self._published: list[Published] = []
        self._blocked: list[float] = []  # since the last log
        self._num_logged = 0
        self._log: SyncLog | None = None

    def __repr__(self) -> str:
        at = "nothing yet" if self._version is None else f"version {self._version}"
        return one_line(self, f"{self.place}: {at}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def version(self) -> int | None:
        """The newest version, which may not be stored yet; None before the first."""
        return self._version

    @property
    def step(self) -> int | None:
        """The step that `publish` was given last; None before."""
        return self._given

    @property
    def published(self) -> tuple[Published, ...]:
        """The versions that are stored: their bytes, and seconds by stage."""
        now = () if self._publisher is None else self._publisher.published
        return (*self._published, *now)

    def log(self) -> SyncLog:
        """What was measured of versions and followers, to be saved and drawn by `trimtab report`.

        Raises:
            SyncError: Nothing was published yet.
        """
        before = self._log
        if self._publisher is None:
            if before is None:
                raise SyncError(f"{self.place}: nothing was published yet")
            return before
        now = self._publisher.log()
        if before is None:
            return now
        versions, followed = before.versions + now.versions, before.followed + now.followed
        return replace(now, versions=versions, followed=followed)

    def acknowledged(self) -> tuple[Acknowledgement, ...]:
        """The versions that followers have."""
        return () if self._publisher is None else self._publisher.acknowledged()

    def attach(self, trainer: Any) -> Self:
        """Publish the training of a trainer.

        It is put before the trainer's other callbacks, so that those that report to TensorBoard and
        so on find its figures in the logs. (With `callbacks=[...]` it would come after them, and
        only `trainer.state.log_history` would have them.)

        Raises:
            SettingsError: Its model is a PEFT adapter.
        """
        _refuse_adapter(trainer.model)
        callbacks = trainer.callback_handler.callbacks
        if self not in callbacks:
            callbacks.insert(0, self)
        return self

    def publish(
        self,
        model: nn.Module | Mapping[str, Tensor],
        *,
        step: int | None = None,
        tokenizer: Any = None,
    ) -> int | None:
        """Publish the weights that a model has now; the first call also publishes version 0.

        The weights may change as soon as this returns. A model that is sharded (FSDP2, tensor
        parallelism) is gathered one parameter at a time: all processes must call this. Otherwise
        the first process publishes, and calls in others do nothing.

        Args:
            model: The model, on any device, or its gathered `state_dict` with the names that files
                have. Its tensors are the same each time.
            step: Step of the trainer, for whoever reads the list of versions.
            tokenizer: What is stored beside the weights of version 0, if no base was given.

        Returns:
            The number of the version; that of the last one if nothing changed. None in processes
            that publish nothing.

        Raises:
            DeltaError: The model is without values, or sharded by FSDP1 or DeepSpeed ZeRO-3.
            SettingsError: The model is a PEFT adapter.
            SyncError: The tensors are others than before; the version before could not be stored;
                or followers did not keep up.
        """
        started = time.monotonic()
        if isinstance(model, DataParallel | DistributedDataParallel):
            model = model.module
        _refuse_adapter(model)
        live = stored_tensors(model, sharded=True)
        gathering = Gathering(
            {name: value for t in live.tensors.values() for name, value in t.sources.items()}
        )
        if gathering.is_needed:
            whole = gathered(live, gathering)
            self._version = gathering.run(lambda: self._publish(model, whole, step, tokenizer))
        elif _is_first():
            self._publish(model, live, step, tokenizer)
        took = time.monotonic() - started
        self.seconds_blocked += took
        self._blocked.append(took)
        self._given = step
        return self._version

    def wait(self) -> None:
        """Wait until the last version is stored.

        Raises:
            SyncError: It could not be stored.
        """
        if self._publisher is not None:
            self._publisher.wait()

    def close(self) -> None:
        """Wait until the last version is stored, and end.

        Raises:
            SyncError: It could not be stored.
        """
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            try:
                publisher.wait()
                self._publisher = publisher
                with suppress(SyncError, OSError):  # the place is out of reach, or has nothing
                    self._log = self.log()
            finally:
                self._publisher = None
                self._published += publisher.published
                publisher.close()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Publish version 0, or the weights from which the run is resumed."""
        self.close()  # of a run that was interrupted
        self._step = None
        model = kwargs["model"]
        if self._mask is True:
            optimizer = unwrapped(kwargs["optimizer"])
            if not isinstance(optimizer, SparseOptimizer):
                raise SettingsError(
                    f"mask=True, and the Trainer has a {type(optimizer).__name__}, which trains "
                    "every element: use train_only, or give no mask"
                )
            self._trained = Layout.of(model).in_files(optimizer.trained_mask)
        self._of_trainer(state, model, kwargs.get("processing_class"))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Publish every so many steps."""
        if state.global_step % self._every == 0:
            self._of_trainer(state, kwargs["model"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Publish the model that training ends with, and wait until it is stored."""
        is_new = self._step != state.global_step or args.load_best_model_at_end
        self._step = None  # all elements are compared
        if is_new or self._trained is not None:
            self._of_trainer(state, kwargs["model"])
        try:
            if self._publisher is not None and self._wait_for:
                self._await(0)
        finally:
            self.close()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Add the figures of the versions since the last log to the logs of a step."""
        if not logs or "loss" not in logs or not self._blocked:
            return
        figures = self._figures()
        logs.update(figures)
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(figures)

    def _of_trainer(self, state: Any, model: Any, tokenizer: Any = None) -> None:
        """Publish the weights of a step; after an error training ends, and so does publishing."""
        try:
            self.publish(model, step=state.global_step, tokenizer=tokenizer)
        except BaseException:
            with suppress(Exception):
                self.close()
            raise
        self._step = state.global_step  # from now on; None before the first and for the last

    def _figures(self) -> dict[str, float]:
        """What the logs get; the version that is being stored counts the next time."""
        blocked, self._blocked = self._blocked, []
        figures: dict[str, float] = {"sync/blocked_s": sum(blocked) / len(blocked)}
        if self._version is not None:
            figures["sync/version"] = self._version
        new = self.published[self._num_logged :]
        self._num_logged += len(new)
        for stage in dict.fromkeys(stage for each in new for stage in each.seconds):
            figures[f"sync/{stage}_s"] = sum(each.seconds.get(stage, 0.0) for each in new) / len(
                new
            )
        if new:
            num_bytes = sum(each.num_bytes for each in new)
            figures["sync/bytes"] = num_bytes / len(new)
            figures["sync/bytes_share"] = num_bytes / sum(each.num_dense_bytes for each in new)
            figures["sync/changed"] = sum(each.num_changed for each in new) / sum(
                each.num_elements for each in new
            )
        return figures

    def _publish(
        self,
        model: nn.Module | Mapping[str, Tensor],
        live: LiveModel,
        step: int | None,
        tokenizer: Any,
    ) -> int:
        """`publish` in the process that does."""
        if self._publisher is None:
            dtype = None if self._stored is None else STORED[self._stored]
            files = {**self._files(tokenizer), **config_files(model, dtype)}
            self._others = {name: partial(bytes, content) for name, content in files.items()}
            mask = self._trained if self._mask is True else self._mask
            self._publisher = Publisher(self.place, self._base, mask=mask, **self._options)
        elif self._wait_for and self._behind:
            self._await(self._behind - 1)
        if self._stored is not None:
            live = cast(live, self._stored)
        source = live_source(model, live, self._others)
        if self._trained is not None and self._step is not None and isinstance(model, nn.Module):
            parameters = {name for name, _ in model.named_parameters()}
            names = {n for n, t in live.tensors.items() if parameters.issuperset(t.sources)}
            source = replace(source, trained_by_mask=names)
        self._version = self._publisher.publish(source, step=step)
        if self._wait_for and not self._behind:
            self._await(0)
        return self._version

    def _await(self, behind: int) -> None:
        """Wait until followers are at most so many versions behind the last one."""
        assert self._publisher is not None
        if behind <= (self._version or 0):
            self._publisher.wait_for(self._wait_for, behind=behind, timeout=self._timeout)

    def _files(self, tokenizer: Any) -> dict[str, bytes]:
        """What is stored beside the weights: the files of the base, or of the tokenizer."""
        if self._base is not None:
            with opened(self._base) as (base,):
                weights = {tensor.file.path.name for tensor in base.tensors.values()}
                others, _ = other_files(base, weights)
                return {n: read() for n, read in others.items() if not n.endswith(".index.json")}
        if not hasattr(tokenizer, "save_pretrained"):
            return {}
        with TemporaryDirectory() as folder, runtime.quiet():
            tokenizer.save_pretrained(folder)
            return {
                path.name: read_bytes(path, CheckpointError, limit=MAX_FILE_BYTES)
                for path in sorted(Path(folder).iterdir())
                if path.is_file()
            }


def _refuse_adapter(model: Any) -> None:
    if hasattr(model, "peft_config"):
        raise SettingsError(
            "the model is a PEFT adapter, whose tensors no engine has: train the whole model or a "
            "mask, or publish the merged model from a loop of your own"
        )


def _is_first() -> bool:
    distributed = torch.distributed
    is_one_of_many = distributed.is_available() and distributed.is_initialized()
    return not is_one_of_many or distributed.get_rank() == 0
