"""A copy of the checkpoint on the host, from which an engine takes what changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.deltas.manifest import Manifest
from trimtab.inputs import AnyPath
from trimtab.sync.chain import Chain
from trimtab.sync.follower import Start
from trimtab.training.deltas.live import NAMES
from trimtab.training.deltas.loading import PreparedDelta, prepare_delta
from trimtab.training.sync.follower import ModelHolder

DTYPES = {name: dtype for dtype, name in NAMES.items()}
"""safetensors name -> torch dtype."""


class HostCopy(ModelHolder):
    """A checkpoint in memory, with the names and shapes of its files, that follows a run.

    Engines pack, fuse and shard weights; deltas are made of files. So each worker of an engine
    keeps this copy, and loads from it, as it does from files, whole tensors that changed.

    Attributes:
        tensors: Its tensors, by name.
        use: Called with what leads to another version, and the seconds of the stages: has to
            `commit` it, and to load what changed. To be set before the copy follows.
    """

    use: Callable[[PreparedDelta, dict[str, float]], None]

    def __init__(self, base: AnyPath) -> None:
        """Read a checkpoint.

        Args:
            base: The checkpoint.

        Raises:
            CheckpointError: It cannot be read.
        """
        self.tensors: dict[str, Tensor] = {}
        with open_checkpoint(base) as checkpoint:
            for name, stored in checkpoint.tensors.items():
                bits = torch.from_numpy(stored.read().reshape(-1).view("u1"))
                self.tensors[name] = bits.view(DTYPES[stored.dtype.name]).view(stored.shape)
        super().__init__(self.tensors, base)
        self._base_hash = self._hash = super().content_hash()
        self._run_began_with: str | None = ""

    @property
    def has_base(self) -> bool:
        """Whether the run that is followed began with the checkpoint that was read."""
        return self._base_hash == self._run_began_with

    def look_at(self, chain: Chain | None) -> None:
        """Find out which checkpoint a run began with."""
        self._run_began_with = "" if chain is None else chain.base.content_hash

    def content_hash(self) -> str | None:
        """Of the copy, as in `CheckpointRecord`."""
        if self._hash is None:
            self._hash = super().content_hash()
        return self._hash

    def apply(self, deltas: Sequence[Path], start: Start, seconds: dict[str, float]) -> Manifest:
        """Decode deltas, and have them used."""
        base = self._base if start == "base" else None
        prepared = prepare_delta(self.tensors, deltas, base=base)
        seconds["decode"] = prepared.decode_seconds
        self._hash = None
        self.use(prepared, seconds)
        self._hash = prepared.manifest.result.content_hash
        return prepared.manifest
