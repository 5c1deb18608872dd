"""Deltas in sequence: their order, and the tensors that come of replaying them on a base."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import accumulate
from math import prod
from threading import Lock
from typing import NamedTuple

import numpy as np
import xxhash

from trimtab.checkpoints.checkpoint import Checkpoint
from trimtab.checkpoints.tensors import hash_of
from trimtab.deltas.file import DeltaFile
from trimtab.deltas.manifest import TensorEntry
from trimtab.deltas.masked import AnyMask, Masks
from trimtab.deltas.signature import check_signature
from trimtab.deltas.source import TunedTensor, Weights, chunks_of, hash_of_chunks, readable
from trimtab.deltas.workers import Workers
from trimtab.elements.dtypes import DTYPES, Bits, DType
from trimtab.elements.update_coding import CHUNK, Mapped, decode_frame, ensure_fits
from trimtab.elements.update_fit import Readable
from trimtab.elements.update_predictor import read_predictor
from trimtab.errors import CheckpointError, DeltaError, SettingsError
from trimtab.inputs import AnyPath
from trimtab.words import first_few


@contextmanager
def opened_chain(
    paths: AnyPath | Sequence[AnyPath],
    *,
    signers: AnyPath | None = None,
    signature: AnyPath | None = None,
    mask: AnyMask | Sequence[AnyMask] | None = None,
) -> Iterator[tuple[DeltaFile, ...]]:
    """Open deltas and put them in the order in which they are applied.

    Args:
        paths: One delta file or hub id, or several in any order.
        signers: If given, each has to be signed by a key in this file, as in `verify_signature`.
        signature: The signature of a single delta; by default each lies beside its delta.
        mask: The mask, or masks, over which deltas are coded; what is not given is looked for
            beside them under `mask_file_name` when it is needed, which is for decoding.

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
        masks = stack.enter_context(Masks(mask))
        deltas = [stack.enter_context(DeltaFile(path, masks)) for path in paths]
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
            if ends[other] == (start, end):
                raise DeltaError(
                    f"{other.path} and {delta.path} lead from the same checkpoint to the same one: "
                    "give one of them"
                )
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


CHUNK_BYTES = 2 * CHUNK
"""About what a chunk takes; a tensor of the base is read at once if it is not larger."""


class Replay:
    """The tensors that a chain of deltas makes of a base.

    Args:
        base: The checkpoint that the first delta was made against.
        deltas: In the order in which they are applied.
    """

    def __init__(self, base: Checkpoint | Weights, deltas: Sequence[DeltaFile]) -> None:
        self.base = base
        self.deltas = tuple(deltas)
        self.manifest = self.deltas[-1].manifest

    def tensor(self, entry: TensorEntry, *, mapped: Mapped = map) -> Bits:
        """Bits of a tensor of the last delta, in its shape; they have the hash of the entry.

        Args:
            entry: Of the last delta.
            mapped: Decodes chunks, perhaps some at a time.

        Raises:
            DeltaError: The base is another one, or a delta is damaged.
        """
        decoded = self._opened(len(self.deltas), entry)
        bits: Bits = np.empty(entry.num_elements, DTYPES[entry.dtype].bits)

        def fill(start: int) -> None:
            part = bits[start : start + CHUNK]
            part[:] = decoded.elements(start, start + part.size)

        for _ in mapped(fill, range(0, bits.size, CHUNK)):
            pass
        self._check(len(self.deltas), entry, hash_of(bits))
        return bits.reshape(entry.shape)

    def chunks(
        self, entries: Iterable[TensorEntry], workers: Workers
    ) -> Iterator[tuple[TensorEntry, Bits]]:
        """Tensors of the last delta as vectors, a chunk at a time, in order.

        The last chunk of a tensor comes only if its bytes have the hash of the entry.

        Raises:
            DeltaError: The base is another one, or a delta is damaged.
        """

        def parts() -> Iterator[_Part]:
            tensors = (
                _Part(entry, None, _Once(partial(self._opened, len(self.deltas), entry)))
                for entry in entries
            )
            following = next(tensors, None)
            while following is not None:
                part, following = following, next(tensors, None)
                if following is not None and following.entry.num_elements > CHUNK:
                    yield following  # its base is hashed while chunks of this one are decoded
                for start in range(0, max(1, part.entry.num_elements), CHUNK):
                    yield part._replace(start=start)

        def decode(part: _Part) -> tuple[_Part, Bits] | None:
            tensor = part.tensor()
            if part.start is None:
                return None
            stop = min(part.start + CHUNK, part.entry.num_elements)
            return part, tensor.elements(part.start, stop)

        digest, num = xxhash.xxh3_128(), 0
        for decoded in workers.in_order(parts(), decode, lambda part: part.num_bytes):
            if decoded is None:
                continue
            (entry, _, _), bits = decoded
            digest.update(bits.view(np.uint8).data)
            num += bits.size
            if num == entry.num_elements:
                self._check(len(self.deltas), entry, digest.hexdigest())
                digest.reset()
                num = 0
            yield entry, bits

    def before(self, entry: TensorEntry) -> Readable | None:
        """The tensor that an entry of the last delta is coded against; None without one.

        Raises:
            DeltaError: The base is another one, or a delta is damaged.
        """
        if entry.base is None:
            return None
        return self._before(len(self.deltas), entry, entry.base)

    def _opened(self, level: int, entry: TensorEntry) -> Readable:
        """A tensor of a delta, of which nothing is decoded yet."""
        delta = self.deltas[level - 1]
        if entry.copy_of is not None:
            original = delta.tensors[entry.copy_of]
            if (original.dtype, original.num_elements) != (entry.dtype, entry.num_elements):
                raise DeltaError(
                    f"{delta.path}: {entry.name} is a copy of a tensor of another size"
                )
            return self._opened(level, original)
        before = None if entry.base is None else self._before(level, entry, entry.base)
        try:
            return _Decoded(delta, entry, before)
        except CheckpointError as error:
            raise DeltaError(f"{delta.path}: {entry.name}: {error}") from None

    def _before(self, level: int, entry: TensorEntry, name: str) -> Readable:
        """The tensor that an entry is coded against, as the entry knows it."""
        delta = self.deltas[level - 1]
        result: Readable
        if level > 1:
            before = self.deltas[level - 2].tensors.get(name)
            if before is None or before.hash != entry.base_hash:
                raise DeltaError(
                    f"{delta.path}: {entry.name} was not made against {name} of "
                    f"{self.deltas[level - 2].path}"
                )
            result, dtype, num = self._opened(level - 1, before), before.dtype, before.num_elements
        else:
            tensor = self.base.tensors.get(self.base.tied.get(name, name))
            if tensor is None:
                raise DeltaError(
                    f"{self.base.id} has no tensor {name}, against which {delta.path} was made: "
                    f"give the base {delta.manifest.base.id}"
                )
            dtype, num = tensor.dtype.name, prod(tensor.shape)
            result = readable(tensor, CHUNK_BYTES)
            if (found := hash_of_chunks(chunks_of(result, num))) != entry.base_hash:
                raise _wrong_base(self.base.id, tensor, found, entry, delta)
        if DTYPES[dtype].bits != DTYPES[entry.dtype].bits or num < entry.num_common:
            raise DeltaError(f"{delta.path}: {entry.name} does not fit its base {entry.base}")
        return result

    def _check(self, level: int, entry: TensorEntry, found: str) -> None:
        """Compare the hash of what was decoded with that of an entry.

        Raises:
            DeltaError: It differs; it names the first delta that decodes to something else.
        """
        if found == entry.hash:
            return
        delta = self.deltas[level - 1]
        origin = delta.tensors[entry.copy_of] if entry.copy_of is not None else entry
        if level > 1 and origin.base is not None:
            before = self.deltas[level - 2].tensors[origin.base]
            decoded = chunks_of(self._opened(level - 1, before), before.num_elements)
            self._check(level - 1, before, hash_of_chunks(decoded))
        raise DeltaError(
            f"{delta.path}: {entry.name} decodes to bytes of xxh3-128 {found}, expected "
            f"{entry.hash}: the file is damaged; get it again"
        )


class DecodedTensor(NamedTuple):
    """A tensor of the last delta of a replay, decoded when it is read.

    Attributes:
        replay: The deltas on their base.
        entry: Of the last delta.
    """

    replay: Replay
    entry: TensorEntry

    @property
    def name(self) -> str:
        """Its name."""
        return self.entry.name

    @property
    def dtype(self) -> DType:
        """Its dtype."""
        return DTYPES[self.entry.dtype]

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.entry.shape

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return self.entry.num_bytes

    def read(self) -> Bits:
        """Its bits."""
        return self.replay.tensor(self.entry)


class _Once:
    """Opens a tensor when the first of its chunks is asked for, in any thread."""

    def __init__(self, opened: Callable[[], Readable]) -> None:
        self._open = opened
        self._lock = Lock()
        self._tensor: Readable | None = None

    def __call__(self) -> Readable:
        with self._lock:
            if self._tensor is None:
                self._tensor = self._open()
            return self._tensor


class _Part(NamedTuple):
    """A chunk of a tensor; the tensor itself, to be opened, if there is no start."""

    entry: TensorEntry
    start: int | None
    tensor: _Once

    @property
    def num_bytes(self) -> int:
        """Bytes of the chunk."""
        num = 0 if self.start is None else min(self.entry.num_elements - self.start, CHUNK)
        return num * DTYPES[self.entry.dtype].num_bytes


class _Decoded:
    """A tensor that a delta makes of the one before it, decoded chunk by chunk.

    Args:
        delta: The delta.
        entry: Its entry of the tensor, which is no copy.
        before: The tensor that it is coded against, if there is one; it fits.

    Raises:
        CheckpointError: The frames are none of such a tensor.
        DeltaError: It is coded over a mask that is not at hand, or does not fit.
    """

    def __init__(self, delta: DeltaFile, entry: TensorEntry, before: Readable | None) -> None:
        self._delta = delta
        self._entry = entry
        self._before = before
        self._dtype = DTYPES[entry.dtype]
        self._starts = [0, *accumulate(entry.frames)]
        self._selection = delta.selection(entry)
        if entry.frames:
            ensure_fits(len(entry.frames), entry.num_common)
            frame = delta.stored(entry, 0, entry.frames[0])
            self._predictor = read_predictor(frame, entry.common_shape)

    def elements(self, start: int, stop: int) -> Bits:
        """A vector of its elements from `start` to `stop`, in C order.

        Raises:
            DeltaError: A frame is damaged.
        """
        parts = []
        common = min(stop, self._entry.num_common)
        if start < common:
            for first in range(start - start % CHUNK, common, CHUNK):
                parts.append(self._chunk(first)[max(0, start - first) : common - first])
        if stop > common:
            parts.append(self._rest(max(start, common), stop))
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty(0, self._dtype.bits)

    def _chunk(self, first: int) -> Bits:
        """The elements of a chunk that are coded."""
        entry = self._entry
        assert self._before is not None  # or the manifest would have been refused
        before = self._before.elements(first, min(first + CHUNK, entry.num_common))
        if not entry.frames:
            return before
        number = 1 + first // CHUNK
        frame = self._delta.stored(entry, self._starts[number], entry.frames[number])
        selection = self._selection
        old = before if selection is None else selection.gather(before, first)
        new = np.empty_like(old)
        try:
            decode_frame(old, frame, self._dtype, first, self._predictor, new)
        except CheckpointError as error:
            raise DeltaError(f"{self._delta.path}: {entry.name}: {error}") from None
        if selection is None:
            return new
        after = before.copy()
        selection.scatter(new, after, first)
        return after

    def _rest(self, start: int, stop: int) -> Bits:
        """Elements that are stored whole."""
        width = self._dtype.num_bytes
        offset = self._starts[-1] + (start - self._entry.num_common) * width
        raw = self._delta.stored(self._entry, offset, (stop - start) * width)
        return np.frombuffer(raw, self._dtype.bits)


def _wrong_base(
    id: str, tensor: TunedTensor, found: str, entry: TensorEntry, delta: DeltaFile
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
