"""SGLang, as it is released, follows a published run: a custom weight loader, and its client.

The server is started with `--custom-weight-loader trimtab.sync.engines.sglang.load`. Each request
of `update_sglang` then has, in place of weights, an instruction: from where, and to which version.
Every worker fetches and decodes it by itself, and all of them change their weights or none does.
"""

from __future__ import annotations

import base64
import json
import logging
import pickle
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trimtab.errors import SyncError, TrimtabError
from trimtab.inputs import AnyPath
from trimtab.sync.chain import at_place, read_chain
from trimtab.sync.engines.client import EngineClient
from trimtab.sync.engines.mirror import HostCopy
from trimtab.sync.follower import FOLDER, Acknowledgement, Follower, acknowledgements
from trimtab.sync.places import Place
from trimtab.training.deltas.loading import PreparedDelta

INSTRUCTION = "__trimtab__"
"""Name of the tensor that holds one."""

LOADER = f"{__name__}.load"

TESTED = "0.5.23"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Instruction:
    """What a request tells the workers.

    Attributes:
        place: Where the run is published, for them: a folder, or a URL of an object store.
        base: A checkpoint that they can read, with the weights of version 0 or of another version:
            the model with which the server was started.
        version: The version to serve.
        name: Each worker acknowledges it as `NAME-RANK`.
    """

    place: str
    base: str
    version: int
    name: str

    def tensors(self) -> list[tuple[str, Tensor]]:
        """As tensors with names, which is what SGLang sends to its workers."""
        content = bytearray(json.dumps(asdict(self)).encode())
        return [(INSTRUCTION, torch.frombuffer(content, dtype=torch.uint8))]


def load(model: nn.Module, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Bring a model to a version; called by SGLang in each of its workers.

    What cannot be fetched or decoded by one of them changes nothing in any: that is logged, the
    server goes on with the weights that it has, and `update_sglang` finds no acknowledgement. After
    that, an error ends the worker: SGLang does not serve a model that is changed in part.

    Args:
        model: The model, with SGLang's `load_weights`.
        named_tensors: An instruction.

    Raises:
        SyncError: It is no instruction.
    """
    found = dict(named_tensors)
    if found.keys() != {INSTRUCTION}:
        raise SyncError(
            f"found {', '.join(sorted(found))[:200]}: expected an instruction of trimtab: leave "
            f"load_format out to load tensors, or use update_sglang"
        )
    instruction = Instruction(**json.loads(bytes(found[INSTRUCTION].cpu().numpy())))
    worker = _workers.get(id(model))
    if worker is None or worker.base != instruction.base:
        worker = _workers[id(model)] = _Worker(model, instruction.base)
    worker.update(instruction)


class _Worker:
    """A model of one worker, and the copy of the checkpoint that it is loaded from."""

    def __init__(self, model: nn.Module, base: str) -> None:
        self.base = base
        self._model: Any = model
        self._device = next(model.parameters()).device
        self._copy: HostCopy | None = None
        self._is_whole = False  # the model has the weights of the copy
        self._has_agreed = self._is_changing = False

    def update(self, instruction: Instruction) -> None:
        self._has_agreed = self._is_changing = False
        try:
            self._follow(instruction)
            if not self._has_agreed:  # it had the version
                self._agree()
        except (TrimtabError, OSError) as error:
            if self._is_changing:
                raise
            logger.error("version %s is not loaded: %s", instruction.version, error)
            if not self._has_agreed:
                with suppress(_OthersFailedError):
                    self._agree(False)
            return
        if not self._is_whole:
            assert self._copy is not None
            self._load(self._copy.tensors)
            self._is_whole = True

    def _follow(self, instruction: Instruction) -> None:
        if self._copy is None:
            self._copy = HostCopy(self.base)
            self._copy.use = self._use
        chain = read_chain(at_place(instruction.place))
        self._copy.look_at(chain)
        name = f"{instruction.name}-{_rank()}"
        follower = Follower(instruction.place, self._copy, name=name)
        follower.update(instruction.version)
        if follower.version != instruction.version:
            raise SyncError(f"{instruction.place}: there is no version {instruction.version}")

    def _use(self, prepared: PreparedDelta, seconds: dict[str, float]) -> None:
        started = time.monotonic()
        self._agree()
        seconds["pause"] = time.monotonic() - started
        self._is_changing = True
        started = time.monotonic()
        prepared.commit()
        assert self._copy is not None
        if self._is_whole:
            self._load({name: self._copy.tensors[name] for name in prepared.changes})
        else:
            self._load(self._copy.tensors)
            self._is_whole = True
        seconds["apply"] = time.monotonic() - started
        self._is_changing = False

    def _agree(self, is_ready: bool = True) -> None:
        """Go on only if all workers can."""
        self._has_agreed = True
        if not _all(is_ready):
            raise _OthersFailedError("another worker cannot load it: see its log")

    def _load(self, tensors: dict[str, Tensor]) -> None:
        self._model.load_weights((name, t.to(self._device)) for name, t in tensors.items())


class _OthersFailedError(SyncError):
    """Another worker cannot load the version."""


_workers: dict[int, _Worker] = {}
"""By the `id` of their models, which they hold."""


def _rank() -> int:
    distributed = torch.distributed
    is_set_up = distributed.is_available() and distributed.is_initialized()
    return distributed.get_rank() if is_set_up else 0


def _all(value: bool) -> bool:
    """Whether a value is true in all workers of tensor parallelism."""
    try:
        group = import_module("sglang.srt.runtime_context").get_parallel().tp_group
    except (ImportError, AttributeError):
        raise SyncError(
            f"this SGLang has no runtime_context.get_parallel().tp_group, which trimtab uses: use "
            f"SGLang {TESTED}"
        ) from None
    if group.world_size == 1:
        return value
    flag = torch.tensor([int(value)])
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MIN, group=group.cpu_group)
    return bool(flag.item())


def sglang_request(instruction: Instruction, num_ranks: int = 1) -> dict[str, Any]:
    """The JSON for SGLang's `/update_weights_from_tensor` that has its workers load a version.

    Args:
        instruction: What they are told.
        num_ranks: Workers of tensor parallelism.
    """
    content = base64.b64encode(pickle.dumps(instruction.tensors())).decode()
    return {
        "serialized_named_tensors": [content] * num_ranks,
        "load_format": LOADER,
        "flush_cache": True,
        "selector": "target",
    }


def update_sglang(
    url: str,
    place: AnyPath | Place,
    version: int | None = None,
    *,
    base: AnyPath,
    name: str = "sglang",
    num_ranks: int = 1,
    pause: Literal["retract", "abort"] = "retract",
    timeout: float = 600.0,
) -> tuple[Acknowledgement, ...]:
    """Have an SGLang server serve a version of a run, and return when it does.

    Generation pauses meanwhile, and the cache is emptied. If generation cannot go on safely it
    stays paused, as the message says.

    Args:
        url: `http://HOST:PORT` of a server that was started with
            `--custom-weight-loader trimtab.sync.engines.sglang.load`, without data parallelism.
        place: Where the run is published. The workers open it by the same name.
        version: By default the newest.
        base: The checkpoint with which the server was started, as the workers can read it.
        name: Of this server, unlike that of any other follower.
        num_ranks: Its workers, of tensor and pipeline parallelism.
        pause: `retract` computes running requests again with the new weights; `abort` ends them.
        timeout: Longest time in seconds for one request.

    Returns:
        What each worker acknowledged: version, hash of its copy, and seconds of each stage.

    Raises:
        SyncError: The server does not serve the version; the message says why.
    """
    there = at_place(place)
    if version is None:
        chain = read_chain(there)
        if chain is None:
            raise SyncError(f"{there}: nothing is published yet")
        version = chain.newest.number
    instruction = Instruction(str(there), str(base), version, name)
    names = [f"{name}-{rank}" for rank in range(num_ranks)]
    for each in names:  # of a server that was there before
        there.remove(f"{FOLDER}/{each}.json")
    client = EngineClient(url, timeout=timeout, retries=0)
    if client.request("/pause_generation", {"mode": pause}) is None:
        raise SyncError(f"{url}: it has no /pause_generation: expected an SGLang server")
    try:
        has_session = client.request("/begin_weight_update", {"selector": "target"}) is not None
        client.request("/update_weights_from_tensor", sglang_request(instruction, num_ranks))
        if has_session:
            client.request("/end_weight_update", {})
    except SyncError as error:
        raise SyncError(
            f"{error}: generation stays paused, as the weights may be changed in part: restart "
            "the server"
        ) from None
    done = tuple(
        each for each in acknowledgements(there) if each.name in names and each.version == version
    )
    client.request("/continue_generation", {})
    if missing := sorted(set(names) - {each.name for each in done}):
        raise SyncError(
            f"{url}: version {version} was not loaded by {', '.join(missing)}: the server goes on "
            "with the weights that it had, and its log says why"
        )
    client.request(
        "/update_weight_version", {"new_version": str(version), "abort_all_requests": False}
    )
    return done
