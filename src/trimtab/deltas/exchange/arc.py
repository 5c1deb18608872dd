"""The delta files of Fireworks: arc_v2.

Beside each safetensors file of the base lies one of the delta with the same name and tensors, all
of them, changed or not. Each tensor is a vector of bytes: a zstd frame of the tuned bytes XOR those
of the base. `__metadata__` has, by the tensor's name, Adler-32 of the tuned bytes as a decimal
number. Other files are copies of the base's.

arc_v3 is refused. Its payloads are pickles, and reading a pickle runs the code in it.
"""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

from trimtab.checkpoints.checkpoint import Checkpoint
from trimtab.checkpoints.stream import Progress
from trimtab.checkpoints.tensors import StoredTensor
from trimtab.checkpoints.weights import copy_other_files, ensure_rewritable
from trimtab.deltas.exchange.payloads import (
    DecimalAdler32,
    Exported,
    OpenDelta,
    PayloadFile,
    apply_xor,
    change_of,
    check_digest,
    check_payloads,
    ensure_same_tensors,
    pool_of_delta,
    read_file,
    xor_pieces,
)
from trimtab.elements.dtypes import Bits
from trimtab.errors import DeltaError
from trimtab.outputs import new_folder
from trimtab.words import first_few

LEVEL = 3
"""Level of zstd, as Fireworks has it."""

ZSTD = b"\x28\xb5\x2f\xfd"
ENVELOPE = b"ARC3_ENVELOPE\0"
ARC_V3 = (
    "arc_v3 is not read: its envelope is a pickle, which runs code of whoever wrote it; write "
    "the delta as arc_v2"
)


def write_arc_v2(
    base: Checkpoint,
    tuned: Checkpoint,
    folder: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
) -> Exported:
    """Write a tuned checkpoint as a delta folder of Fireworks.

    Args:
        base: The base, opened: a folder of safetensors files.
        tuned: The tuned checkpoint, opened: the same names, dtypes and shapes.
        folder: The folder to make.
        progress: Called after each tensor.

    Raises:
        TensorMismatchError: The two do not have the same tensors.
        CheckpointError: The base is not a folder of safetensors files.
        OutputExistsError: The folder exists.
    """
    ensure_rewritable(base, base.id)
    ensure_same_tensors(base, tuned, "arc_v2")
    total = sum(tensor.num_bytes for tensor in base.tensors.values())
    num_changed = num_bytes = 0
    with new_folder(folder) as draft:
        copy_other_files(base, draft)
        for place, tensors in _by_place(base).items():
            (draft / place).parent.mkdir(parents=True, exist_ok=True)
            with closing(PayloadFile(draft, level=LEVEL)) as file:
                for tensor in tensors:
                    new = tuned.tensors[tensor.name]
                    digest, num = change_of(tensor, new, DecimalAdler32)
                    num_changed += num > 0
                    file.add(tensor.name, digest, xor_pieces(tensor, new), tensor.num_bytes)
                    if progress is not None:
                        progress(tensor.num_bytes, total)
                num_bytes += file.write(draft / place)
    return Exported(len(base.tensors), num_changed, num_bytes)


def _by_place(base: Checkpoint) -> dict[Path, list[StoredTensor]]:
    """Path of each file of weights in the base's folder -> its tensors."""
    places: dict[Path, list[StoredTensor]] = {}
    for tensor in base.tensors.values():
        places.setdefault(tensor.file.path.relative_to(base.folder), []).append(tensor)
    return places


def open_arc_v2(base: Checkpoint, source: str | os.PathLike[str]) -> OpenDelta:
    """Open a delta of Fireworks: headers are read and checked, and no payload.

    Args:
        base: The base, opened.
        source: The folder of the delta, or its file if the base is one file.

    Raises:
        DeltaError: It is not arc_v2, or does not have the tensors of the base.
    """
    source = Path(source)
    places = _by_place(base)
    if not source.is_dir() and len(places) > 1:
        raise DeltaError(
            f"{source}: one file, and {base.id} has {len(places)} files of weights: give the "
            "folder of the delta"
        )
    with pool_of_delta() as pool:
        payloads: dict[str, StoredTensor] = {}
        digests: dict[str, str] = {}
        for place, expected in places.items():
            path = source / place if source.is_dir() else source
            tensors, checksums = read_file(path, pool)
            check_payloads(base, path, tensors.values(), checksums)
            if differ := sorted(tensors.keys() ^ {tensor.name for tensor in expected}):
                raise DeltaError(
                    f"{path}: expected the tensors of the base's {place}, all of them: "
                    f"{first_few(differ)} are in one of them only"
                )
            payloads |= tensors
            digests |= {name: checksums[name] for name in tensors}

        def tuned(name: str) -> Bits:
            bits = apply_xor(payloads[name], base.tensors[name])
            check_digest(bits, digests[name], DecimalAdler32, payloads[name].file.path, name)
            return bits

        for payload in payloads.values():
            ensure_zstd(payload)
        return OpenDelta(source, tuple(payloads), tuned, pool)


def ensure_zstd(payload: StoredTensor) -> None:
    """Check that a payload is what arc_v2 has, and name the format if it is another's.

    Raises:
        DeltaError: It is not.
    """
    start = payload.file.read(payload.offset, min(payload.num_bytes, len(ENVELOPE)))
    if start.startswith(ZSTD):
        return
    where = f"{payload.file.path}: {payload.name}"
    if start == ENVELOPE or start[8:9] == b"{":  # or a safetensors file in a safetensors file
        raise DeltaError(f"{where}: {ARC_V3}")
    if start.startswith(b"\x78"):
        raise DeltaError(f"{where}: arc_v1 (zlib) is not read: write the delta as arc_v2")
    raise DeltaError(f"{where}: its payload is not a zstd frame")
