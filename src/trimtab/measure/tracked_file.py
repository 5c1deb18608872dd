"""The file of a tracked run, record by record; `trimtab.measure.tracked` makes a trajectory of it.

The first record says what is tracked, each other one is a point. A record is its head (the length
of
its content, and a hash of that length and of the record's position), its content, and a hash of
that. The last record of an interrupted run may be cut off: the file then ends with the last whole
record. A head that does not fit its hash is damage, never the end of the file.

A point holds, for each part of the model (a tensor, or the part of it that one process had), the
elements that entered or left the changed set. Memory is bounded by the length of the file, not by
what it claims.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from math import sqrt
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from trimtab.elements import index_coding
from trimtab.elements.dtypes import DTYPES
from trimtab.errors import ResultFormatError
from trimtab.inputs import identity_of, open_regular, parse_json
from trimtab.results.records import CheckpointRecord
from trimtab.words import one_line

FORMAT = "trimtab.updates"
FORMAT_VERSION = 2
"""History: 1, the first, whose heads are a length without a hash; 2, heads have a hash."""

MAGIC = b"trimtab.updates 2\n"
"""The first bytes of a file of this version."""

MAGIC_1 = b"trimtab.updates\n"
"""The first bytes of a file of version 1, which is still read and continued."""

LENGTH = 8
"""Bytes of a length, and of a hash; little-endian."""

SIZES = np.dtype("<u8")


class Part(NamedTuple):
    """What is counted together: a tensor, or the part of it that one process had.

    Attributes:
        name: Of the tensor; a part of a fused tensor adds its label.
        kind: What it is: `q_proj`, `norm`, ...
        dtype: safetensors name of the dtype in which elements are compared.
        num_elements: Elements in it.
        process: Which process counted it; 0 unless the model was sharded.
    """

    name: str
    kind: str
    dtype: str
    num_elements: int
    process: int = 0


class KindFigures(NamedTuple):
    """The figures of one kind at a point. None: not observed.

    Attributes:
        stepped: Elements that differ from the previous point, or from the base at the first.
        gradient_elements: Elements whose gradient was seen: all, or those of the mask.
        gradient_nonzero: Those of them whose gradient was not 0.
        asked: Elements that the optimizer moved, before rounding.
        absorbed: Those of them whose stored bits did not change.
        step_squares: Sum of squares of the moves of the stored weights since the previous point.
        update_squares: Sum of squares of the differences of the stored weights from the base.
    """

    stepped: int = 0
    gradient_elements: int | None = None
    gradient_nonzero: int | None = None
    asked: int | None = None
    absorbed: int | None = None
    step_squares: float = 0.0
    update_squares: float = 0.0

    @classmethod
    def sum_of(cls, figures: Iterable[KindFigures]) -> KindFigures:
        """Figures of all these elements together; what none of them observed stays None."""
        columns: Iterable[tuple[Any, ...]] = zip(cls(), *figures, strict=True)
        known = [[value for value in column if value is not None] for column in columns]
        sums: list[Any] = [sum(values) if values else None for values in known]
        return cls(*sums)

    @property
    def gradient_density(self) -> float | None:
        """Share of the gradients seen that are not 0."""
        return _share(self.gradient_nonzero, self.gradient_elements)

    @property
    def absorbed_share(self) -> float | None:
        """Share of the elements moved by the optimizer whose stored bits did not change."""
        return _share(self.absorbed, self.asked)

    @property
    def step_norm(self) -> float:
        """Euclidean norm of the move of the stored weights since the previous point."""
        return sqrt(self.step_squares)

    @property
    def update_norm(self) -> float:
        """Euclidean norm of the difference of the stored weights from the base."""
        return sqrt(self.update_squares)


class StepFigures(NamedTuple):
    """The figures of one point.

    Attributes:
        step: Optimizer steps taken.
        by_kind: Kind -> its figures.
    """

    step: int
    by_kind: Mapping[str, KindFigures]

    def __repr__(self) -> str:
        return one_line(self)

    @property
    def total(self) -> KindFigures:
        """Of the whole model."""
        return KindFigures.sum_of(self.by_kind.values())


class TrackedPoint(NamedTuple):
    """One point, as stored in the file.

    Attributes:
        figures: Its step and figures.
        codings: Encoding of the set of each part.
        offsets: Byte offsets of the sets, and the end of the last; one more than there are parts.
        end: Byte offset of the end of its record.
    """

    figures: StepFigures
    codings: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    end: int

    def __repr__(self) -> str:
        return one_line(self)


@dataclass(frozen=True)
class TrackedFile:
    """A file of tracked updates, whose sets stay on disk.

    Attributes:
        path: Path of the file.
        header: The first record.
        parts: The parts that are counted.
        points: Whole points, by ascending step.
        end: Byte offset of the end of the last whole record.
        num_cut_off: Bytes after it, of a record that was cut off.
        hashes: Of the content of each record, the header first.
        identity: Identity of the file as it was read.
    """

    path: Path
    header: Mapping[str, Any]
    parts: tuple[Part, ...]
    points: tuple[TrackedPoint, ...]
    end: int
    num_cut_off: int
    hashes: tuple[bytes, ...]
    identity: tuple[int, ...]

    @property
    def version(self) -> int:
        """Of the format."""
        version: int = self.header["format_version"]
        return version

    __repr__ = one_line

    def toggles(
        self, number: int, points: Sequence[TrackedPoint] | None = None
    ) -> Iterator[NDArray[np.int64]]:
        """The elements of a part that entered or left the changed set, point by point.

        Args:
            number: Index of the part.
            points: Points of this file; None for all.

        Raises:
            ResultFormatError: They cannot be read, or have changed since the file was opened.
        """
        part = self.parts[number]
        with open_regular(self.path, ResultFormatError) as raw, BufferedReader(raw) as file:
            for point in self.points if points is None else points:
                begin, end = (int(offset) for offset in point.offsets[number : number + 2])
                file.seek(begin)
                coding, content = int(point.codings[number]), file.read(end - begin)
                try:
                    yield index_coding.decode(coding, content, part.num_elements)
                except ValueError as error:
                    where = f"{part.name} at step {point.figures.step}"
                    self.check()
                    raise damaged(self.path, f"{where}: {error}") from None
        self.check()

    def check(self) -> None:
        """Check that the file still begins with the records that were read.

        A running run appends to it; a resumed one removes points.

        Raises:
            ResultFormatError: It does not.
        """
        try:
            identity = identity_of(self.path.stat())
        except OSError as error:
            raise ResultFormatError(f"{self.path}: cannot be read ({error.strerror})") from None
        if identity == self.identity:
            return
        if open_tracked(self.path).hashes[: len(self.hashes)] != self.hashes:
            raise ResultFormatError(
                f"{self.path}: the file changed while it was being read, by more than new points: "
                "start again"
            )
        object.__setattr__(self, "identity", identity)  # the new file contains all that was read


def is_tracked(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins like a file of tracked updates."""
    try:
        with open_regular(path, ResultFormatError) as raw, BufferedReader(raw) as file:
            return _version(file) is not None
    except (ResultFormatError, OSError):
        return False


def open_tracked(path: str | os.PathLike[str]) -> TrackedFile:
    """Read and check a file of tracked updates without its sets.

    Raises:
        ResultFormatError: It is not such a file, or a damaged one.
    """
    try:
        with open_regular(path, ResultFormatError) as raw, BufferedReader(raw) as file:
            return _read(Path(path), file)
    except OSError as error:
        raise ResultFormatError(f"{os.fspath(path)}: cannot be read ({error.strerror})") from None


def pack_record(content: bytes, begin: int, version: int = FORMAT_VERSION) -> bytes:
    """Pack a record: length of the content, hash of the head, content, hash of the content.

    Args:
        content: The content.
        begin: Byte offset of the record in the file.
        version: Version of the file.
    """
    length = len(content).to_bytes(LENGTH, "little")
    head = length if version == 1 else length + _hash_of_head(begin, length)
    return head + content + _hash(content)


def pack_point(figures: StepFigures, sets: Sequence[tuple[int, bytes]]) -> bytes:
    """Pack the content of the record of a point.

    Args:
        figures: Its step and figures.
        sets: Encoding and bytes of what entered or left the changed set, for each part.
    """
    by_kind = {kind: list(values) for kind, values in figures.by_kind.items()}
    description = json.dumps(
        {"step": figures.step, "by_kind": by_kind}, separators=(",", ":")
    ).encode()
    return b"".join(
        [
            len(description).to_bytes(LENGTH, "little"),
            description,
            bytes(coding for coding, _ in sets),
            np.array([len(content) for _, content in sets], SIZES).tobytes(),
            *(content for _, content in sets),
        ]
    )


def _read(path: Path, file: BinaryIO) -> TrackedFile:
    version = _version(file)
    if version is None:
        raise ResultFormatError(
            f"{path}: not a file of tracked updates: expected one that "
            "trimtab.training.UpdateTracker wrote"
        )
    header: dict[str, Any] | None = None
    parts: tuple[Part, ...] = ()
    points: list[TrackedPoint] = []
    hashes: list[bytes] = []
    status = os.fstat(file.fileno())
    end, size = file.tell(), status.st_size
    while end < size:
        begin = end
        try:
            content = _content(file, begin, size, version, parts)
            if content is None:
                break
            end = begin + _head_size(version) + len(content) + LENGTH
            if header is None:
                header = _header(content, version)
                parts = _parts(header["parts"])
            else:
                point = _point(content, end - LENGTH - len(content), parts)
                if points and not points[-1].figures.step < point.figures.step:
                    raise ValueError(
                        f"step {point.figures.step} follows step {points[-1].figures.step}"
                    )
                points.append(point)
            hashes.append(_hash(content))
        except (LookupError, TypeError, ValueError, RecursionError) as error:
            record = f"point {len(points) + 1}" if parts else "its header"
            raise damaged(path, f"{record}, at byte {begin:,}: {error}{_cure(points)}") from None
    if header is None:
        raise ResultFormatError(f"{path}: ends before its header: the run stopped as it began")
    return TrackedFile(
        path,
        header,
        parts,
        tuple(points),
        end,
        size - end,
        tuple(hashes),
        identity_of(status),
    )


def _version(file: BinaryIO) -> int | None:
    """The version of a file, read up to its first record; None if it is of another kind."""
    begin = file.read(len(MAGIC))
    if begin == MAGIC:
        return FORMAT_VERSION
    file.seek(len(MAGIC_1))
    return 1 if begin.startswith(MAGIC_1) else None


def _cure(points: Sequence[TrackedPoint]) -> str:
    """How to recover the whole points of a damaged file."""
    if not points:
        return ""
    last = points[-1]
    return (
        f"; put back a whole copy, or keep what is whole, up to step {last.figures.step}, "
        f"as its first {last.end:,} bytes"
    )


def _content(
    file: BinaryIO, begin: int, size: int, version: int, parts: Sequence[Part]
) -> bytes | None:
    """The content of the record at a byte, None if it was cut off; raises ValueError if damaged."""
    file.seek(begin)
    head = file.read(_head_size(version))
    if len(head) < _head_size(version):
        return None
    if not any(head):
        if any(any(piece) for piece in iter(lambda: file.read(1 << 20), b"")):
            raise ValueError("its length is 0, and something follows")
        return None  # allocated, but never written
    length = int.from_bytes(head[:LENGTH], "little")
    end = begin + len(head) + length + LENGTH
    is_sure = version > 1
    if is_sure and head[LENGTH:] != _hash_of_head(begin, head[:LENGTH]):
        raise ValueError("its length does not fit the hash of its head")
    content = file.read(min(length, size))
    if len(content) == length and file.read(LENGTH) == _hash(content):
        return content
    if end < size:
        raise ValueError("its content does not fit its hash")
    if not is_sure and _has_another_length(file, begin + len(head), length, size, parts):
        raise ValueError("its length is not that of what it holds")
    return None


def _has_another_length(
    file: BinaryIO, begin: int, length: int, size: int, parts: Sequence[Part]
) -> bool:
    """Whether a record of version 1 that seems cut off is whole, with another length than claimed.

    The length has no hash, but a point says how much it contains: that much, followed by its hash.
    """
    if not parts:
        return False
    file.seek(begin)
    num_described = int.from_bytes(file.read(LENGTH), "little")
    file.seek(min(begin + LENGTH + num_described + len(parts), size))
    sizes = np.frombuffer(file.read(len(parts) * SIZES.itemsize), np.uint8)
    if len(sizes) < len(parts) * SIZES.itemsize:
        return False
    num_sets = sum(sizes.view(SIZES).tolist())
    true = LENGTH + num_described + len(parts) * (1 + SIZES.itemsize) + num_sets
    if true == length or begin + true + LENGTH > size:
        return False
    file.seek(begin)
    return _hash(file.read(true)) == file.read(LENGTH)


def _head_size(version: int) -> int:
    return LENGTH if version == 1 else 2 * LENGTH


def _hash_of_head(begin: int, length: bytes) -> bytes:
    return _hash(begin.to_bytes(LENGTH, "little") + length)


def _hash(content: bytes) -> bytes:
    return xxhash.xxh3_64_intdigest(content).to_bytes(LENGTH, "little")


def _header(content: bytes, version: int) -> dict[str, Any]:
    header = _json(content)
    if header.get("format") != FORMAT or header.get("format_version") != version:
        raise ValueError(
            f"expected format {FORMAT!r}, version {version}, found "
            f"{header.get('format')!r}, {header.get('format_version')!r}"
        )
    base, provenance, parts = header["base"], header["provenance"], header["parts"]
    if not isinstance(provenance, dict) or not isinstance(parts, list) or not parts:
        raise ValueError("provenance is an object, and parts a list with something in it")
    every, digests = header["every"], header["base_digests"]
    is_known = header["stored_dtype"] in DTYPES and isinstance(digests, list)
    if type(every) is not int or every < 1 or not is_known:
        raise ValueError("every, stored_dtype and base_digests are what a tracker writes")
    dtypes = CheckpointRecord(**base).dtypes
    if not isinstance(dtypes, dict) or not all(type(count) is int for count in dtypes.values()):
        raise ValueError("dtypes of base are counts")
    return header


def _parts(rows: Sequence[Any]) -> tuple[Part, ...]:
    parts = tuple(Part(*row) for row in rows)
    for part in parts:
        is_text = all(isinstance(text, str) for text in (part.name, part.kind, part.dtype))
        is_count = type(part.num_elements) is int and 0 <= part.num_elements < 2**62
        if not is_text or part.dtype not in DTYPES or not is_count:
            raise ValueError(f"{part!r:.200} is no part of a model")
    return parts


def _point(content: bytes, begin: int, parts: Sequence[Part]) -> TrackedPoint:
    """Read a point without its sets; `begin` is the byte offset of the content."""
    num_described = int.from_bytes(content[:LENGTH], "little")
    table = LENGTH + num_described
    first_set = table + len(parts) * (1 + SIZES.itemsize)
    if first_set > len(content):
        raise ValueError("it is too short")
    description = _json(content[LENGTH:table])
    codings = np.frombuffer(content, np.uint8, len(parts), table)
    sizes = np.frombuffer(content, SIZES, len(parts), table + len(parts))
    if int(sizes.max(initial=0)) > len(content) or int(sizes.sum()) != len(content) - first_set:
        raise ValueError("its sets have another size")
    step = description["step"]
    if type(step) is not int or step < 1:
        raise ValueError(f"{step!r} is no step")
    offsets = np.concatenate([[0], np.cumsum(sizes.astype(np.int64))]) + begin + first_set
    figures = StepFigures(step, _figures(description["by_kind"], parts))
    end = begin + len(content) + LENGTH
    return TrackedPoint(figures, codings.copy(), offsets, end)


def _figures(by_kind: Any, parts: Sequence[Part]) -> dict[str, KindFigures]:
    num_elements: dict[str, int] = {}
    for part in parts:
        num_elements[part.kind] = num_elements.get(part.kind, 0) + part.num_elements
    if not isinstance(by_kind, dict) or by_kind.keys() != num_elements.keys():
        raise ValueError("it has other kinds than the header")
    figures = {kind: KindFigures(*values) for kind, values in by_kind.items()}
    for kind, row in figures.items():
        optional = (row.gradient_elements, row.gradient_nonzero, row.asked, row.absorbed)
        counts = [row.stepped, *(count for count in optional if count is not None)]
        if not all(type(count) is int and 0 <= count <= num_elements[kind] for count in counts):
            raise ValueError(f"{kind} has counts that are not between 0 and {num_elements[kind]}")
        if not all(type(sum_) is float and not sum_ < 0 for sum_ in row[-2:]):
            raise ValueError(f"{kind} has sums that are no sums of squares")
    return figures


def _share(part: int | None, whole: int | None) -> float | None:
    return part / whole if whole and part is not None else None


def _json(content: bytes) -> dict[str, Any]:
    try:
        value = parse_json(content, strict=False)
    except ValueError as error:
        raise ValueError(f"it is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    return value


def damaged(path: str | os.PathLike[str], problem: str) -> ResultFormatError:
    """The error for a damaged file of tracked updates."""
    return ResultFormatError(f"{os.fspath(path)}: damaged: {problem}")
