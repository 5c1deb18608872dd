"""Deltas in sequence: their order, and the tensors that come of replaying them on a base."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np

from trimtab.checkpoints.checkpoint import Checkpoint
from trimtab.checkpoints.tensors import StoredTensor, hash_of
from trimtab.deltas.file import DeltaFile
from trimtab.deltas.manifest import TensorEntry
from trimtab.deltas.signature import check_signature
from trimtab.elements.dtypes import DTYPES, Bits
from trimtab.elements.update_coding import decode_tensor
from trimtab.errors import CheckpointError, DeltaError, SettingsError
from trimtab.inputs import AnyPath
from trimtab.words import first_few


@contextmanager
def opened_chain(
    paths: AnyPath | Sequence[AnyPath],
    *,
    signers: AnyPath | None = None,
    signature: AnyPath | None = None,
) -> Iterator[tuple[DeltaFile, ...]]:
    """Open deltas and put them in the order in which they are applied.

    Args:
        paths: One delta file or hub id, or several in any order.
        signers: If given, each has to be signed by a key in this file, as in `verify_signature`.
        signature: The signature of a single delta; by default each lies beside its delta.

    Raises:
        DeltaError: One cannot be read, is not signed, or together they are no chain.
        SettingsError: `signature` is given without `signers`, or for several deltas.
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    if signature is not None and (signers is None or len(paths) > 1):
        raise SettingsError(
            "a signature was given without signers, who are trusted"
            if signers is None
            else f"one signature was given for {len(paths)} deltas: expected one beside each"
        )
    with ExitStack() as stack:
        deltas = [stack.enter_context(DeltaFile(path)) for path in paths]
        if signers is not None:
            for delta, path in zip(deltas, paths, strict=True):
                check_signature(delta, path, signers, signature)
        yield in_sequence(deltas)


def in_sequence(deltas: Sequence[DeltaFile]) -> tuple[DeltaFile, ...]:
    """Put deltas in the order in which they are applied.

    Raises:
        DeltaError: There are none, or there is a gap, a fork or a circle; the message names the
            files.
    """
    if not deltas:
        raise DeltaError("no deltas: give one or more")
    ends = {delta: (_start(delta), delta.manifest.result.content_hash) for delta in deltas}
    following: dict[str, DeltaFile] = {}
    for delta, (start, end) in ends.items():
        if start != end and (other := following.setdefault(start, delta)) is not delta:
            raise DeltaError(
                f"{other.path} and {delta.path} are both deltas of {start}: a fork; give the ones "
                "that lead to the checkpoint that you want"
            )
    idle: dict[str, list[DeltaFile]] = {}
    for delta, (start, end) in ends.items():
        if start == end:  # it changes nothing
            idle.setdefault(start, []).append(delta)
    results = {ends[delta][1] for delta in following.values()}
    starts = [start for start in following or idle if start not in results]
    chain: list[DeltaFile] = []
    at = starts[0] if starts else None
    while at is not None:
        chain += idle.pop(at, [])
        if (after := following.pop(at, None)) is None:  # each once: they may lead back
            break
        chain.append(after)
        at = ends[after][1]
    if apart := [str(delta.path) for delta in deltas if delta not in chain]:
        raise DeltaError(
            f"no chain: {first_few(apart)} {'do' if len(apart) > 1 else 'does'} not follow "
            f"{chain[-1].path}: a delta between them is missing"
            if chain
            else f"no chain: {first_few(apart)} lead back to their own base"
        )
    return tuple(chain)


def _start(delta: DeltaFile) -> str:
    return delta.manifest.base.content_hash


class Replay:
    """The tensors that a chain of deltas makes of a base.

    Args:
        base: The checkpoint that the first delta was made against.
        deltas: In the order in which they are applied.
    """

    def __init__(self, base: Checkpoint, deltas: Sequence[DeltaFile]) -> None:
        self.base = base
        self.deltas = tuple(deltas)
        self.manifest = self.deltas[-1].manifest

    def tensor(self, entry: TensorEntry, *, threads: int = 1) -> Bits:
        """Bits of a tensor of the last delta, in its shape; they have the hash of the entry.

        Raises:
            DeltaError: The base is another one, or a delta is damaged.
        """
        return self._tensor(len(self.deltas), entry, threads)

    def before(self, entry: TensorEntry) -> Bits | None:
        """Bits of the tensor that an entry of the last delta is coded against; None without one.

        Raises:
            DeltaError: The base is another one, or a delta is damaged.
        """
        if entry.base is None:
            return None
        return self._before(len(self.deltas), entry, entry.base, 1)

    def check_base(self) -> None:
        """Compare every tensor that the first delta needs of the base with the hash of it there.

        Raises:
            DeltaError: The base is another one.
        """
        for entry in self.deltas[0].tensors.values():
            if entry.base is not None:
                self._before(1, entry, entry.base, 1)

    def _tensor(self, level: int, entry: TensorEntry, threads: int) -> Bits:
        delta = self.deltas[level - 1]
        if entry.copy_of is not None:
            bits = self._tensor(level, delta.tensors[entry.copy_of], threads)
        else:
            bits = self._decoded(level, entry, threads)
        if (found := hash_of(bits)) != entry.hash:
            raise DeltaError(
                f"{delta.path}: {entry.name} decodes to bytes of xxh3-128 {found}, expected "
                f"{entry.hash}: the file is damaged; get it again"
            )
        if bits.size != entry.num_elements:
            raise DeltaError(f"{delta.path}: {entry.name} is a copy of a tensor of another size")
        return bits.reshape(entry.shape)

    def _decoded(self, level: int, entry: TensorEntry, threads: int) -> Bits:
        delta, dtype = self.deltas[level - 1], DTYPES[entry.dtype]
        frames, rest = delta.frames(entry)
        after = np.frombuffer(rest, dtype.bits)
        if entry.base is None:
            return after
        before = self._before(level, entry, entry.base, threads).reshape(-1)
        if before.dtype != dtype.bits or before.size < entry.num_common:
            raise DeltaError(f"{delta.path}: {entry.name} does not fit its base {entry.base}")
        common = before[: entry.num_common]
        if frames:
            try:
                common = common.reshape(entry.common_shape)
                common = decode_tensor(common, frames, dtype, threads=threads).reshape(-1)
            except CheckpointError as error:
                raise DeltaError(f"{delta.path}: {entry.name}: {error}") from None
        return np.concatenate((common, after)) if after.size else common

    def _before(self, level: int, entry: TensorEntry, name: str, threads: int) -> Bits:
        """The tensor that an entry is coded against, as the entry knows it."""
        delta = self.deltas[level - 1]
        if level > 1:
            before = self.deltas[level - 2].tensors.get(name)
            if before is None or before.hash != entry.base_hash:
                raise DeltaError(
                    f"{delta.path}: {entry.name} was not made against {name} of "
                    f"{self.deltas[level - 2].path}"
                )
            return self._tensor(level - 1, before, threads)
        tensor = self.base.tensors.get(self.base.tied.get(name, name))
        if tensor is None:
            raise DeltaError(
                f"{self.base.id} has no tensor {name}, against which {delta.path} was made: give "
                f"the base {delta.manifest.base.id}"
            )
        bits = tensor.read()
        if (found := hash_of(bits)) != entry.base_hash:
            raise _wrong_base(self.base.id, tensor, found, entry, delta)
        return bits


def _wrong_base(
    id: str, tensor: StoredTensor, found: str, entry: TensorEntry, delta: DeltaFile
) -> DeltaError:
    if found == entry.hash:
        return DeltaError(
            f"{id}: {tensor.name} already is what {delta.path} makes of it: the delta was applied "
            f"before; nothing was changed"
        )
    return DeltaError(
        f"{id}: {tensor.name} has xxh3-128 {found}, and {delta.path} was made against "
        f"{entry.base_hash}: give the base {delta.manifest.base.id}"
    )
