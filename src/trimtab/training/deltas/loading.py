"""Apply a delta to a model in memory, and take it back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from time import perf_counter
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor, nn

from trimtab.checkpoints.checkpoint import Checkpoint, opened
from trimtab.deltas.chain import Replay, opened_chain
from trimtab.deltas.changes import Changes, find_changes
from trimtab.deltas.make import some_delta
from trimtab.deltas.manifest import Manifest, TensorEntry
from trimtab.deltas.masked import AnyMask
from trimtab.deltas.source import Weights
from trimtab.deltas.workers import Workers
from trimtab.elements.dtypes import Bits
from trimtab.errors import DeltaError
from trimtab.inputs import AnyPath
from trimtab.training.deltas.live import LiveModel, LiveTensor, stored_tensors
from trimtab.words import first_few, one_line


class _Change(NamedTuple):
    """A tensor, what is changed in it, and its digests before and after."""

    tensor: LiveTensor
    changes: Changes | None  # None if nothing is
    before: str
    after: str


class LoadedDelta:
    """A delta that `load_delta` applied to a model.

    To switch between fine-tunes of one base, keep the handles of all::

        first = load_delta(model, "first.delta")
        first.revert(keep=True)
        second = load_delta(model, "second.delta")
        second.revert(keep=True)
        first.apply()  # reads and decodes nothing

    Attributes:
        manifest: What the delta says of the result.
        num_bytes: Bytes in memory that `revert` and `apply` need.
        apply_seconds: How long the model was being changed and checked.
    """

    def __init__(
        self, manifest: Manifest, changes: Sequence[_Change], apply_seconds: float = 0.0
    ) -> None:
        self.manifest = manifest
        self._changes: tuple[_Change, ...] | None = tuple(changes)
        self.num_bytes = _num_bytes(changes)
        self.apply_seconds = apply_seconds
        self._is_applied = True
        self._is_whole = True  # all tensors are as `_is_applied` says

    def __repr__(self) -> str:
        state = f"{self.num_bytes:,} bytes to revert it"
        if not self._is_applied:
            kept = "" if self._changes is None else f"; {self.num_bytes:,} bytes to apply it"
            state = f"reverted{kept}"
        return one_line(self, f"{self.manifest!r}; {state}")

    def revert(self, *, keep: bool = False, threads: int | None = None) -> None:
        """Give the model the weights from before, bit for bit.

        If it is interrupted, call it again.

        Args:
            keep: Keep in memory what `apply` needs.
            threads: Tensors changed at the same time; by default one for each core.

        Raises:
            DeltaError: It was reverted before, or the weights were changed since, by training or by
                another delta; the model is left as it is.
        """
        if not self._is_applied or self._changes is None:
            raise DeltaError("the delta was reverted before: apply it again with load_delta")
        self._turn(self._changes, threads, back=True)
        if not keep:
            self._changes = None

    def apply(self, *, threads: int | None = None) -> None:
        """Give the model the weights of the delta again, after `revert(keep=True)`.

        If it is interrupted, call it again.

        Args:
            threads: Tensors changed at the same time; by default one for each core.

        Raises:
            DeltaError: It is applied already, `revert` did not keep it, or the model has other
                weights than after `revert`; it is left as it is.
        """
        if self._is_applied:
            raise DeltaError("the delta is applied already: revert it first")
        if self._changes is None:
            raise DeltaError(
                "the delta was reverted without keep=True: apply it again with load_delta"
            )
        self._turn(self._changes, threads, back=False)

    def _turn(self, changes: Sequence[_Change], threads: int | None, *, back: bool) -> None:
        """Take the changes back, or apply them, if nobody else touched the tensors."""
        # Each tensor is hashed right after it was changed, and all are turned back if one is not
        # right: so they are looked at once, not twice. After an interruption some are changed
        # already, and are looked at first.
        is_whole, self._is_whole = self._is_whole, False
        digests = None if is_whole else _digests(changes, threads)
        touched = [
            change.tensor.name
            for change, digest in zip(changes, digests or (), strict=digests is not None)
            if digest not in (change.before, change.after)
        ]
        if not touched:
            touched = _turned(changes, threads, back=back, digests=digests)
            if touched:
                _turned(changes, threads, back=not back)
        self._is_whole = is_whole or not touched
        if touched:
            raise DeltaError(
                f"{first_few(touched)} changed since the delta was "
                f"{'applied' if back else 'reverted'} (by training, or by another delta that is to "
                "be reverted first): the model is left as it is"
            )
        self._is_applied = not back


class PreparedDelta:
    """A delta that `prepare_delta` decoded for a model, to which nothing is written yet.

    Attributes:
        manifest: What the delta says of the result.
        changes: Name of each tensor that `commit` changes, as in files -> where and by how much.
        num_bytes: Bytes in memory of the changes.
        decode_seconds: How long it took to decode and check it.
    """

    def __init__(
        self, manifest: Manifest, made: Sequence[_Change], decode_seconds: float = 0.0
    ) -> None:
        self.manifest = manifest
        self._made: tuple[_Change, ...] | None = tuple(made)
        self.changes: Mapping[str, Changes] = MappingProxyType(
            {c.tensor.name: c.changes for c in made if c.changes is not None}
        )
        self.num_bytes = _num_bytes(made)
        self.decode_seconds = decode_seconds

    def __repr__(self) -> str:
        return one_line(self, f"{self.manifest!r}; {self.num_bytes:,} bytes to apply it")

    def commit(self, *, threads: int | None = None) -> LoadedDelta:
        """Change the model; all tensors are then compared with the result, also unchanged ones.

        Nothing is read or decoded. If anything fails, the model is as it was.

        Args:
            threads: Tensors changed at the same time; by default one for each core.

        Returns:
            A handle whose `revert` takes the delta back.

        Raises:
            DeltaError: The model was changed since the delta was prepared, or it is applied.
        """
        if self._made is None:
            raise DeltaError("the delta is applied already: use what commit returned")
        made, start = self._made, perf_counter()
        try:
            _change(made, threads)
            found = _digests(made, threads)
            wrong = [c.tensor.name for c, d in zip(made, found, strict=True) if d != c.after]
        except BaseException as error:
            if lost := _turned(made, threads, back=True, digests=_digests(made, threads)):
                raise DeltaError(
                    f"{first_few(lost)} cannot be given back: load the model again"
                ) from error
            raise
        if wrong:
            _change(made, threads, back=True)
            raise DeltaError(
                f"{first_few(wrong)} of the model: not what was written there: it was changed "
                "since the delta was prepared, or shares memory with another tensor; the model is "
                "left as it is"
            )
        self._made = None
        changed = [change for change in made if change.changes is not None]
        return LoadedDelta(self.manifest, changed, perf_counter() - start)


def prepare_delta(
    model: nn.Module | Mapping[str, Tensor],
    deltas: AnyPath | Sequence[AnyPath],
    *,
    base: AnyPath | Checkpoint | None = None,
    signers: AnyPath | None = None,
    signature: AnyPath | None = None,
    mask: AnyMask | Sequence[AnyMask] | None = None,
    threads: int | None = None,
) -> PreparedDelta:
    """Decode deltas for a model in memory, and check them; nothing is written before `commit`.

    Meanwhile the model may be in use, as long as nobody changes its weights; it has to wait for the
    `commit` alone::

        prepared = prepare_delta(model, "run.delta")
        with lock:
            prepared.commit()

    Args:
        model: The model, on any device, in the dtypes in which it is stored; or a `state_dict` with
            the names that files have.
        deltas: One delta file, or those of a chain in any order.
        base: The checkpoint on disk that the (first) delta was made against, if the model has other
            weights than that by now: then only what differs from these is changed. By default the
            model has the weights of the base. With a base and no deltas it gets those.
        signers: As in `apply_delta`; likewise `signature`.
        signature: The signature, of a single delta that does not lie beside its own.
        mask: As in `apply_delta`.
        threads: Tensors or chunks decoded at the same time; by default one for each core.

    Returns:
        What `commit` applies.

    Raises:
        CheckpointError: `base` cannot be read.
        DeltaError: The model, or `base`, is not the base of the deltas; the model has other
            tensors, shapes or dtypes than the result; they are no chain, or one is damaged.
    """
    start = perf_counter()
    with ExitStack() as stack:
        some = stack.enter_context(some_delta(base, deltas))
        chain = stack.enter_context(
            opened_chain(some, signers=signers, signature=signature, mask=mask)
        )
        live = stored_tensors(model, chain[-1].tensors)
        held: dict[str, Bits] = {}
        own = None
        if base is None:
            own = stored_tensors(model, _base_names(chain[0].manifest))
            origins = {name: _Origin.of(tensor, held) for name, tensor in own.tensors.items()}
            replay = Replay(Weights("the model", origins, own.tied), chain)
        else:
            (checkpoint,) = stack.enter_context(opened(base))
            replay = Replay(checkpoint, chain)
        targets = _targets(replay, own, live)
        with Workers(threads) as workers:
            decoded = workers.in_order(
                targets,
                lambda target: _decode(replay, *target, None if own is None else held, workers),
                lambda target: target[0].num_bytes,
            )
            made = list(decoded)
    return PreparedDelta(replay.manifest, made, perf_counter() - start)


def load_delta(
    model: nn.Module | Mapping[str, Tensor],
    deltas: AnyPath | Sequence[AnyPath],
    *,
    base: AnyPath | Checkpoint | None = None,
    signers: AnyPath | None = None,
    signature: AnyPath | None = None,
    mask: AnyMask | Sequence[AnyMask] | None = None,
    threads: int | None = None,
) -> LoadedDelta:
    """Give a model in memory the weights that deltas make of its own, bit for bit.

    The parameters and persistent buffers are changed in place, on any device. Before anything is
    written, every tensor is compared with the base by its hash, decoded, and compared with the
    result; afterwards the model is compared with it. If anything fails, the model is as it was.

    This is `prepare_delta` and `commit` at once, with the same arguments.

    Args:
        model: The base of the (first) delta, in the dtypes in which it is stored; or a
            `state_dict` with the names that files have.
        deltas: One delta file, or those of a chain in any order.
        base: That base on disk, if the model has other weights by now.
        signers: As in `apply_delta`; likewise `signature`.
        signature: The signature, of a single delta that does not lie beside its own.
        mask: As in `apply_delta`.
        threads: Tensors or chunks coded at the same time; by default one for each core.

    Returns:
        A handle whose `revert` takes the delta back.

    Raises:
        CheckpointError: `base` cannot be read.
        DeltaError: The model is not the base of the deltas; it has other tensors, shapes or dtypes
            than the result; they are no chain, or one is damaged.
    """
    prepared = prepare_delta(
        model,
        deltas,
        base=base,
        signers=signers,
        signature=signature,
        mask=mask,
        threads=threads,
    )
    return prepared.commit(threads=threads)


@contextmanager
def applied_delta(
    model: nn.Module | Mapping[str, Tensor],
    deltas: AnyPath | Sequence[AnyPath],
    *,
    signers: AnyPath | None = None,
    signature: AnyPath | None = None,
    mask: AnyMask | Sequence[AnyMask] | None = None,
    threads: int | None = None,
) -> Iterator[LoadedDelta]:
    """`load_delta` for the duration of a `with` block, and `revert` at its end.

    Args are those of `load_delta`.

    Raises:
        DeltaError: As of `load_delta`; or, at the end, the block changed the weights.
    """
    loaded = load_delta(
        model, deltas, signers=signers, signature=signature, mask=mask, threads=threads
    )
    try:
        yield loaded
    finally:
        loaded.revert(threads=threads)


@dataclass(frozen=True, eq=False, repr=False)
class _Origin(LiveTensor):
    """A tensor of the model of which the bits may be on the host already."""

    held: Mapping[str, Bits]

    @classmethod
    def of(cls, tensor: LiveTensor, held: Mapping[str, Bits]) -> _Origin:
        return cls(tensor.name, tensor.dtype, tensor.piece, tensor.sources, held)

    def read(self) -> Bits:
        bits = self.held.get(self.name)
        return super().read() if bits is None else bits


def _targets(
    replay: Replay, base: LiveModel | None, live: LiveModel
) -> list[tuple[TensorEntry, LiveTensor]]:
    """Every tensor of the model, with the entry of the last delta that makes it.

    Args:
        replay: The deltas.
        base: The model under the names of their base; None if that is a checkpoint on disk.
        live: The model under the names of the result.
    """
    path = replay.deltas[-1].path
    entries = replay.deltas[-1].tensors
    if missing := [name for name in entries if live.get(name) is None]:
        raise DeltaError(
            f"the model has no {first_few(missing)}, which {path} makes: expected a model of "
            f"{replay.manifest.base.id}"
        )
    made: dict[str, TensorEntry] = {}
    for name, entry in entries.items():
        tensor = live.tensors[live.tied.get(name, name)]
        if (entry.dtype, entry.shape) != (tensor.dtype.name, tensor.shape):
            raise DeltaError(
                f"{name} is {tensor.dtype.name} {list(tensor.shape)} in the model, and "
                f"{entry.dtype} {list(entry.shape)} in {path}: load the base in the dtypes of its "
                "files (dtype='auto')"
            )
        origin = None if base is None else _origin(replay, entry)
        before = base.get(origin) if base is not None and origin is not None else None
        if before is not None and not before.is_same(tensor):
            raise DeltaError(
                f"{path} makes {name} of {origin}, another tensor of the model: apply it to "
                "files, with trimtab delta apply"
            )
        other = made.setdefault(tensor.name, entry)
        if other.hash != entry.hash:
            raise DeltaError(
                f"{other.name} and {name} are one tensor in the model, and two in {path}: untie "
                "them in the config of the model"
            )
    if more := [name for name in live.tensors if name not in made]:
        raise DeltaError(
            f"{path} makes no {first_few(more)}, which the model has: expected a model of "
            f"{replay.manifest.base.id}"
        )
    return [(entry, live.tensors[name]) for name, entry in made.items()]


def _base_names(manifest: Manifest) -> dict[str, None]:
    return {entry.base: None for entry in manifest.tensors if entry.base is not None}


def _origin(replay: Replay, entry: TensorEntry) -> str | None:
    """The tensor of the base that the deltas make a tensor of; None if it is stored whole."""
    for delta in reversed(replay.deltas):
        entry = delta.tensors.get(entry.copy_of or entry.name, entry)
        if entry.base is None:
            return None
        if delta is replay.deltas[0]:
            break
        before = replay.deltas[replay.deltas.index(delta) - 1].tensors.get(entry.base)
        if before is None:
            return None
        entry = before
    return entry.base


def _decode(
    replay: Replay,
    entry: TensorEntry,
    tensor: LiveTensor,
    held: dict[str, Bits] | None,
    workers: Workers,
) -> _Change:
    """What changes in a tensor.

    If the model is the base, the bits of the tensor are read once, into `held` while it is decoded.
    """
    before = tensor.read()
    origin = None if held is None else _origin(replay, entry)
    if held is not None and origin is not None:
        origin = replay.base.tied.get(origin, origin)
        held[origin] = before
    try:
        after = replay.tensor(entry, mapped=workers.map)
    finally:
        if held is not None and origin is not None:
            del held[origin]
    changes = find_changes(before, after, tensor.dtype)
    digest = tensor.digest_of(after, entry.hash)
    if not changes.places.size:
        return _Change(tensor, None, digest, digest)
    return _Change(tensor, changes, tensor.digest_of(before), digest)


def _num_bytes(changes: Iterable[_Change]) -> int:
    return sum([c.changes.num_bytes for c in changes if c.changes is not None])


def _change(changes: Sequence[_Change], threads: int | None, *, back: bool = False) -> None:
    """Apply changes, or take them back, whatever the tensors have now; nothing is checked."""

    def change(item: _Change) -> None:
        if item.changes is not None:
            item.tensor.change(item.changes, back=back)

    with Workers(threads) as workers:
        for _ in workers.in_order(changes, change):
            pass


def _digests(made: Sequence[_Change], threads: int | None) -> list[str]:
    """The digests that the tensors have now."""
    with Workers(threads) as workers:
        return list(
            workers.in_order(
                made,
                lambda change: change.tensor.digest(),
                lambda change: change.tensor.num_bytes,
            )
        )


def _turned(
    changes: Sequence[_Change],
    threads: int | None,
    *,
    back: bool,
    digests: Sequence[str] | None = None,
) -> list[str]:
    """Apply changes, or take them back.

    Args:
        changes: Tensors and what is changed in them.
        threads: Tensors changed at the same time.
        back: Take them back.
        digests: Those that the tensors have now, if some may be changed already.

    Returns:
        Names of the tensors that are not what they should be then.
    """

    def turn(item: tuple[_Change, str | None]) -> str | None:
        change, digest = item
        if change.changes is None:
            return None
        source, target = (change.after, change.before) if back else (change.before, change.after)
        if digest in (None, source):
            change.tensor.change(change.changes, back=back)
            digest = change.tensor.digest()
        return None if digest == target else change.tensor.name

    known: Sequence[str | None] = digests if digests is not None else [None] * len(changes)
    items = list(zip(changes, known, strict=True))
    with Workers(threads) as workers:
        names = list(workers.in_order(items, turn, lambda item: item[0].tensor.num_bytes))
    return [name for name in names if name is not None]
