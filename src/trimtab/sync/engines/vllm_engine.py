"""The weight-transfer engine `trimtab` of vLLM: what runs in each of its workers.

A copy of the checkpoint on the host follows the run: a thread fetches and decodes while the model
is in use. What changed then goes to the model between two steps of the scheduler, at once, when
vLLM calls `receive_weights`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from vllm.config import set_current_vllm_config
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from trimtab.errors import SyncError
from trimtab.sync.chain import read_chain
from trimtab.sync.engines import vllm_weights
from trimtab.sync.engines.mirror import HostCopy
from trimtab.sync.engines.vllm import check_version, processors
from trimtab.sync.follower import Follower
from trimtab.training.deltas.live import NAMES
from trimtab.training.deltas.loading import PreparedDelta
from trimtab.words import first_few

check_version()


@dataclass
class Init(WeightTransferInitInfo):  # type: ignore[misc]
    """What `/init_weight_transfer_engine` takes.

    Attributes:
        folder: Where the run is published: a folder, or a URL of an object store.
        base: The checkpoint that the run began with; by default the model that vLLM was started
            with.
        name: Of this follower at the place, unlike that of any other.
    """

    folder: str
    base: str | None = None
    name: str | None = None


@dataclass
class Update(WeightTransferUpdateInfo):  # type: ignore[misc]
    """What `/update_weights` takes.

    Attributes:
        version: The version to serve; by default the newest.
    """

    version: int | None = None


class TrimtabEngine(WeightTransferEngine):  # type: ignore[misc]
    """Follows a run in a worker of vLLM."""

    init_info_cls = Init
    update_info_cls = Update
    supports_draft_weight_update = False

    def __init__(self, config: Any, vllm_config: Any, device: Any, model: Any) -> None:
        super().__init__(config, vllm_config, device, model)
        self.vllm_config = vllm_config
        self._holder: HostCopy | None = None
        self._base = ""
        self._follower: Follower | None = None
        self._step: _Step | None = None  # that was asked for and is not applied
        self._layers: dict[str, frozenset[str]] = {}
        self._refusing: Any = None
        self._is_whole = True  # the model has the weights of the copy
        _add_calls()

    def init_transfer_engine(self, init_info: Init) -> None:
        """Read the checkpoint that the run began with, and find out where its tensors go.

        If it is the same as of the call before, the copy stays as it is, as does the model.
        """
        self.shutdown()
        own = self.vllm_config.model_config.model
        base = init_info.base or own
        if self._holder is None or base != self._base:
            is_loaded = base == own and self.vllm_config.load_config.load_format != "dummy"
            self._is_whole = is_loaded and self._holder is None
            self._holder, self._base = HostCopy(base), base
            with set_current_vllm_config(self.vllm_config):
                self._layers = vllm_weights.layers_of(self.model, self._holder.tensors)
            self._check_layers()
        name = init_info.name
        if name is not None and self.parallel_config.world_size > 1:
            name = f"{name}-{self.parallel_config.rank}"
        self._follower = Follower(init_info.folder, self._holder, name=name)

    def start_weight_update(self) -> None:
        """Nothing: the model changes at once, in `receive_weights`."""

    def receive_weights(self, update_info: Update) -> None:
        """Bring the model to a version; it is prepared now unless it was before.

        Raises:
            TrimtabError: It cannot be fetched or applied. The model has the weights of before; if
                it does not, it refuses to be used until an update succeeds.
        """
        step = self._step
        if step is not None and step.is_for_other_than(update_info.version):
            step.cancel()
            step = None
        if step is None:
            step = self._prepare(update_info.version)
        self._step = None
        prepared = step.wait()
        if prepared is not None:
            step.settle(self._apply, prepared)
        step.result()
        if not self._is_whole:
            self._load_all()

    def finish_weight_update(self) -> None:
        """Nothing, likewise."""

    def shutdown(self) -> None:
        """End the thread, and take back the acknowledgement if it has no name of its own."""
        if self._step is not None:
            self._step.cancel()
            self._step = None
        if self._follower is not None:
            self._follower.close()
            self._follower = None

    def prepare(self, version: int | None) -> None:
        """Fetch and decode a version in a thread, unless one is at it."""
        if self._step is None or self._step.state == "idle":
            self._step = self._prepare(version)

    def status(self) -> dict[str, Any]:
        """What the engine serves, and what it is preparing."""
        follower, step = self._follower, self._step
        return {
            "place": None if follower is None else str(follower.place),
            "name": None if follower is None else follower.name,
            "version": None if follower is None else follower.version,
            "content_hash": None if follower is None else follower.content_hash,
            "is_whole": self._is_whole,
            "state": "idle" if step is None else step.state,
            "error": None if step is None or step.error is None else str(step.error),
        }

    def served(self) -> dict[str, Any]:
        """What is really served of each tensor of the checkpoint, its packing undone.

        Raises:
            SyncError: It follows no run yet.
        """
        if self._holder is None:
            raise _not_initialized()
        with set_current_vllm_config(self.vllm_config):
            served = vllm_weights.served_weights(self.model, self._holder.tensors)
        copy = self._holder.tensors
        return {
            **self.status(),
            "world_size": self.parallel_config.world_size,
            "tensors": {
                name: {
                    "dtype": NAMES[copy[name].dtype],
                    "shape": [*copy[name].shape],
                    **one._asdict(),
                }
                for name, one in served.items()
            },
        }

    def _prepare(self, version: int | None) -> _Step:
        if self._follower is None or self._holder is None:
            raise _not_initialized()
        return _Step(self._follower, self._holder, version)

    def _apply(self, prepared: PreparedDelta, seconds: dict[str, float]) -> None:
        """Change the copy and the model, or neither."""
        started = time.monotonic()
        loaded = prepared.commit()
        was_whole, self._is_whole = self._is_whole, False
        try:
            if was_whole:
                self._load(prepared)
                self._set_whole()
            else:
                self._load_all()
        except BaseException:
            loaded.revert()
            self._load_all()
            raise
        finally:
            seconds["apply"] = time.monotonic() - started

    def _load(self, prepared: PreparedDelta) -> None:
        """Give the model the tensors that a delta changed in the copy."""
        assert self._holder is not None
        names = set(prepared.changes)
        if self._is_opaque:
            names = set(self._holder.tensors)
        elif self.device.type == "cuda":
            names -= vllm_weights.apply_patches(
                self.model, self.device, self._holder.tensors, prepared.changes, self._layers
            )
        self._reload(names)

    def _load_all(self) -> None:
        """Give the model all tensors of the copy; if that fails, it can no longer be used."""
        assert self._holder is not None
        try:
            with set_current_vllm_config(self.vllm_config):
                self._reload(self._holder.tensors.keys())
        except BaseException as error:
            if self._refusing is None:
                self._refusing = self.model.register_forward_pre_hook(_refuse)
            raise SyncError(
                f"the model of this engine is not whole: {error}; it refuses to be used until an "
                "update succeeds"
            ) from error
        self._set_whole()

    def _set_whole(self) -> None:
        self._is_whole = True
        if self._refusing is not None:
            self._refusing.remove()
            self._refusing = None

    def _reload(self, names: Collection[str]) -> None:
        assert self._holder is not None
        layers, needed = vllm_weights.whole_layers(self._layers, names)
        if self._is_opaque:
            layers = {name for name, _ in self.model.named_modules()}
        if layers:
            weights = {name: t for name, t in self._holder.tensors.items() if name in needed}
            vllm_weights.reload_layers(self.model, self.model_config, weights, layers)

    def _check_layers(self) -> None:
        """Refuse what the reload of vLLM leaves unpacked on a CPU: answers would be wrong.

        Raises:
            SyncError: The model has such layers.
        """
        opaque = vllm_weights.opaque_layers(self.model, self._layers)
        if opaque and self.device.type == "cpu" and not self._is_opaque:
            self._holder = None
            raise SyncError(
                f"{first_few(opaque)}: on a CPU vLLM packs such layers (experts) when it loads a "
                "model and not when it reloads one: this model can follow a run on a GPU only"
            )

    @property
    def _is_opaque(self) -> bool:
        """Whether vLLM makes of the weights of a layer what another layer uses."""
        config = self.model_config
        return config.quantization is not None or bool(getattr(config, "use_mla", False))


class _Step:
    """A step of the follower to another version, in a thread that waits before anything changes."""

    def __init__(self, follower: Follower, holder: HostCopy, version: int | None) -> None:
        self.error: BaseException | None = None
        self._version = version
        self._prepared: PreparedDelta | None = None
        self._seconds: dict[str, float] = {}
        self._is_ready, self._is_settled = threading.Event(), threading.Event()
        self._failure: BaseException | None = None
        holder.use = self.offer
        self._follower, self._holder = follower, holder
        self._thread = threading.Thread(target=self._run, name="trimtab-follow", daemon=True)
        self._thread.start()

    @property
    def state(self) -> str:
        """`preparing`, `prepared` (to be applied), or `idle`: there is nothing to apply."""
        if not self._is_ready.is_set():
            return "preparing"
        return "prepared" if self._prepared is not None else "idle"

    def is_for_other_than(self, version: int | None) -> bool:
        """Whether it is of no use for an update to a version."""
        is_over = self._is_ready.is_set() and self._prepared is None
        return is_over or version != self._version

    def offer(self, prepared: PreparedDelta, seconds: dict[str, float]) -> None:
        """In the thread: wait until it is applied; raise what that failed with."""
        self._prepared, self._seconds = prepared, seconds
        self._is_ready.set()
        self._is_settled.wait()
        if self._failure is not None:
            raise self._failure

    def wait(self) -> PreparedDelta | None:
        """Wait until something is prepared; None if there is nothing to apply."""
        self._is_ready.wait()
        return self._prepared

    def settle(self, apply: Any, prepared: PreparedDelta) -> None:
        """Apply what is prepared, and let the thread end."""
        try:
            apply(prepared, self._seconds)
        except BaseException as error:
            self._failure = error
        self._is_settled.set()

    def cancel(self) -> None:
        """Let the thread end without applying anything."""
        self._failure = SyncError("another version was asked for")
        self._is_settled.set()
        self._thread.join()

    def result(self) -> None:
        """Wait for the end of the thread.

        Raises:
            TrimtabError: What it failed with.
        """
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        if processors:
            os.sched_setaffinity(0, processors)  # of this thread
        try:
            self._holder.look_at(read_chain(self._follower.place))
            self._follower.update(self._version)
        except BaseException as error:
            self.error = error
        self._is_ready.set()


def _refuse(*_: Any) -> None:
    raise RuntimeError("the weights are not whole: an update by trimtab failed")


def _not_initialized() -> SyncError:
    return SyncError("it follows no run yet: call /init_weight_transfer_engine first")


def _add_calls() -> None:
    """Methods of a worker, for `/collective_rpc`: the routes of vLLM return nothing."""
    from vllm.v1.worker.worker_base import WorkerBase

    def trimtab_status(self: Any) -> dict[str, Any]:
        return self.weight_transfer_engine.status()

    def trimtab_prepare(self: Any, version: int | None = None) -> dict[str, Any]:
        self.weight_transfer_engine.prepare(version)
        return self.weight_transfer_engine.status()

    def trimtab_served(self: Any) -> dict[str, Any]:
        return self.weight_transfer_engine.served()

    for call in (trimtab_status, trimtab_prepare, trimtab_served):
        setattr(WorkerBase, call.__name__, call)
