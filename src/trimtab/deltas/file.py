"""A delta file: read strictly, and written.

It is a safetensors file of `U8` vectors, so that its own header has the checks of that format and
any safetensors reader finds every part by its byte range: `tensors` holds the frames of all
tensors, `file:PATH` the compressed header of a weights file or another file, and `manifest` the
compressed JSON of a `Manifest`. See docs/formats.md, "Delta".
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import xxhash
import zstandard

from trimtab.checkpoints.folder import HUB_ID, fetch_file
from trimtab.checkpoints.safetensors import file_start, read_with_metadata
from trimtab.checkpoints.tensors import DataFile, FilePool, Pooled
from trimtab.deltas.manifest import MAX_FILE_BYTES, FileEntry, Manifest, TensorEntry
from trimtab.deltas.masked import Masks, Selection
from trimtab.errors import CheckpointError, DeltaError, MaskError, ResultFormatError
from trimtab.inputs import parse_json
from trimtab.masks.header import PackedMask
from trimtab.outputs import new_file
from trimtab.words import first_few, one_line

FORMAT, VERSION = "trimtab.delta", "1"

HUB_NAME = "model.delta"
"""Name of the delta in a repository on the hub."""

MAX_MANIFEST_BYTES = 256 << 20
"""Longest manifest that is decompressed: about a million tensors."""

PIECE = 1 << 22
"""Bytes of a part that are copied at once."""

LEVEL = 19
"""Of zstd. What is compressed is small beside the tensors, and read more often than written."""


class DeltaFile(Pooled):
    """An open delta file: its manifest is in memory, the rest stays on disk until it is read.

    Use it as a context manager, or call `close`.

    Attributes:
        path: Where it is.
        manifest: What it says of itself.
        tensors: Name -> entry of the manifest.
        num_bytes: Its size.
    """

    def __init__(self, path: str | os.PathLike[str], masks: Masks | None = None) -> None:
        """Open a delta file and check everything but the parts that stay on disk.

        Args:
            path: A file, or a hub id `org/name` with an optional `@revision`: then the file
                `model.delta` of that repository. An existing path, and a name that ends in
                `.delta`, is never taken for a hub id.
            masks: Where its mask is, if it is coded over one and is to be decoded.

        Raises:
            DeltaError: It cannot be read, is no delta, or is damaged.
        """
        self.path = Path(path)
        self._masks = masks
        self._pool = FilePool()
        try:
            self.path = located(path)
            if self.path.is_dir():
                raise DeltaError(
                    f"{self.path}: expected a delta file, found a folder; `trimtab delta import` "
                    "applies deltas of other programs"
                )
            self._file = DataFile(self.path, self._pool)
            self.num_bytes = self._file.size
            stored, metadata = read_with_metadata(self._file)
            self._parts = {tensor.name: tensor for tensor in stored}
            self.manifest = self._read_manifest(metadata)
        except CheckpointError as error:
            self.close()
            raise DeltaError(str(error)) from None
        except BaseException:
            self.close()
            raise
        self.tensors = MappingProxyType(dict(self.manifest.by_name()))
        ends = accumulate(entry.num_stored for entry in self.manifest.tensors)
        self._starts = dict(zip(self.tensors, (0, *ends), strict=False))

    def __repr__(self) -> str:
        return one_line(self, f"{self.path}: {self.manifest!r}")

    def open(self) -> io.FileIO:
        """The file, to be read from its start; the caller closes it.

        Raises:
            DeltaError: It changed since it was opened.
        """
        try:
            return self._file.open()
        except CheckpointError as error:
            raise DeltaError(str(error)) from None

    def stored(self, entry: TensorEntry, start: int, num_bytes: int) -> bytes:
        """Bytes that are stored of a tensor: its frames, then the elements that are stored whole.

        Args:
            entry: An entry of the manifest.
            start: The first byte.
            num_bytes: How many.

        Raises:
            DeltaError: The file cannot be read, or changed since it was opened.
        """
        return self._read("tensors", self._starts[entry.name] + start, num_bytes)

    def mask(self) -> PackedMask | None:
        """The mask over whose elements it is coded; None without one.

        Raises:
            DeltaError: It is not at hand, or damaged.
        """
        if self.manifest.mask is None:
            return None
        if self._masks is None:
            raise DeltaError(f"{self.path} is coded over a mask, which does not work here")
        return self._masks.find(self.manifest.mask, self.path)

    def selection(self, entry: TensorEntry) -> Selection | None:
        """The elements that the frames of a tensor code; None for all.

        Raises:
            DeltaError: The mask is not at hand, or is damaged, or does not fit the tensor.
        """
        mask = self.mask() if entry.mask is not None else None
        if mask is None or entry.mask is None:
            return None
        found = f"shape {list(mask.shape(entry.mask))}" if entry.mask in mask else "no such tensor"
        if found != f"shape {list(entry.shape)}":
            raise DeltaError(
                f"{self.path}: {entry.name} of shape {list(entry.shape)} is coded over {entry.mask}"
                f" of the mask {mask.digest}, which has {found}: the delta is damaged; get it again"
            )
        try:
            return Selection(mask.tensor(entry.mask, entry.shape))
        except MaskError as error:
            raise DeltaError(str(error)) from None

    def content(self, file: FileEntry, base: bytes) -> bytes:
        """The content of a file: of weights, its header with the length of the header.

        Args:
            file: An entry of the manifest.
            base: Its counterpart in the base; empty if it has none.

        Raises:
            DeltaError: The file cannot be read, or is damaged.
        """
        if not file.num_stored:
            return base
        packed = self._read(f"file:{file.path}", 0, file.num_stored)
        return _decompress(packed, file.num_content, f"{self.path}: file:{file.path}", base)

    def copy(self, path: str | os.PathLike[str], manifest: Manifest) -> None:
        """Write the same delta with a manifest that says something else of its base.

        Raises:
            DeltaError: The file cannot be read, or changed since it was opened.
            OutputExistsError: The path exists.
        """
        contents = self.manifest.contents()
        with new_delta(path, contents) as writer:
            for name in self._parts:
                if name in contents:
                    writer.add(
                        name,
                        (
                            self._read(name, start, min(PIECE, contents[name] - start))
                            for start in range(0, contents[name], PIECE)
                        ),
                    )
            writer.finish(manifest)

    def _read(self, name: str, start: int, num_bytes: int) -> bytes:
        if not num_bytes:
            return b""
        try:
            return self._parts[name].elements(start, start + num_bytes).tobytes()
        except CheckpointError as error:
            raise DeltaError(str(error)) from None

    def _read_manifest(self, metadata: Mapping[str, str]) -> Manifest:
        if metadata.get("format") != FORMAT or "manifest" not in self._parts:
            raise DeltaError(f"{self.path}: a safetensors file, but not a delta")
        if metadata.get("format_version") != VERSION:
            found = metadata.get("format_version")
            raise DeltaError(
                f"{self.path}: a delta of format version {found!r}: this trimtab reads version "
                f"{VERSION}; install a newer one"
            )
        damaged = f"{self.path}: damaged delta"
        sizes = {}
        for name, part in self._parts.items():
            if part.dtype.name != "U8" or len(part.shape) != 1:
                raise DeltaError(f"{damaged}: {name!r} is not a vector of U8")
            sizes[name] = part.num_bytes
        packed = self._parts["manifest"].read().tobytes()
        if xxhash.xxh3_128_hexdigest(packed) != metadata.get("manifest_hash"):
            raise DeltaError(f"{damaged}: its manifest does not have the hash in the header")
        raw = _decompress(packed, None, f"{self.path}: manifest")
        try:
            manifest = Manifest.from_dict(parse_json(raw, strict=True))
        except (ResultFormatError, ValueError) as error:
            raise DeltaError(f"{self.path}: {error}") from None
        expected = {**manifest.contents(), "manifest": len(packed)}
        wrong = sorted(
            f"{name!r} has {sizes.get(name, 'no')} bytes, expected {expected.get(name, 'none')}"
            for name in sizes.keys() | expected.keys()
            if sizes.get(name) != expected.get(name)
        )
        if wrong:
            raise DeltaError(f"{damaged}: {first_few(wrong, '; ')}")
        return manifest


def located(ref: str | os.PathLike[str], suffix: str = "") -> Path:
    """The local path of a delta, or of the file beside it whose name has a suffix more.

    It is downloaded if it is on the hub.
    """
    path = Path(ref)
    match = HUB_ID.fullmatch(os.fspath(ref))
    if path.exists() or path.suffix == ".delta" or match is None or "/" not in match["repository"]:
        return Path(f"{path}{suffix}")
    return fetch_file(match["repository"], match["revision"], HUB_NAME + suffix)


class DeltaWriter:
    """Writes a delta file part by part; the header is filled in at the end.

    Args:
        file: An empty file.
        limits: Name of each part that may come -> most bytes of it.
    """

    def __init__(self, file: BinaryIO, limits: Mapping[str, int]) -> None:
        self._file = file
        self._sizes: dict[str, int] = {}
        # No part is longer than its limit, so no number of the header has more digits than here.
        widest = {**limits, "manifest": MAX_MANIFEST_BYTES}
        header = {name: ("U8", (size,)) for name, size in widest.items()}
        self._start = len(file_start(header, _metadata("0" * 32)))
        file.write(b" " * self._start)

    def add(self, name: str, pieces: Iterable[bytes]) -> None:
        """Write a part piece by piece, unless it is empty; or more of the part that was last."""
        size = sum(self._file.write(piece) for piece in pieces)
        if size:
            assert name not in self._sizes or name == next(reversed(self._sizes))
            self._sizes[name] = self._sizes.get(name, 0) + size

    def finish(self, manifest: Manifest) -> int:
        """Write the manifest and the header.

        Returns:
            Bytes of the whole file.
        """
        text = json.dumps(manifest.to_dict(), separators=(",", ":"), allow_nan=False)
        packed = compress(text.encode())
        self.add("manifest", [packed])
        end = self._file.tell()
        self._file.seek(0)
        header = {name: ("U8", (size,)) for name, size in self._sizes.items()}
        digest = xxhash.xxh3_128_hexdigest(packed)
        self._file.write(file_start(header, _metadata(digest), num_bytes=self._start))
        self._file.seek(end)
        return end


@contextmanager
def new_delta(
    path: str | os.PathLike[str], limits: Mapping[str, int], *, force: bool = False
) -> Iterator[DeltaWriter]:
    """Yield a writer whose file takes its name when the block succeeds.

    Raises:
        OutputExistsError: The file exists and `force` is not set, or the path is a folder.
        WriteError: There is no room for it.
    """
    with new_file(path, force=force) as file:
        yield DeltaWriter(file, limits)


def compress(content: bytes, base: bytes = b"") -> bytes:
    """Zstd of a content, given one that may be like it."""
    return zstandard.ZstdCompressor(level=LEVEL, dict_data=_dictionary(base)).compress(content)


def _decompress(packed: bytes, num_bytes: int | None, where: str, base: bytes = b"") -> bytes:
    """The inverse of `compress`; allocates no more than `num_bytes`, or the limit of a manifest."""
    try:
        # zstandard allocates what a frame claims: the claim is checked first.
        claimed = zstandard.frame_content_size(packed)
        limit = MAX_MANIFEST_BYTES if num_bytes is None else min(num_bytes, MAX_FILE_BYTES)
        if not 0 <= claimed <= limit or num_bytes not in (None, claimed):
            raise DeltaError(
                f"{where}: damaged: it claims {claimed} bytes, expected "
                f"{f'at most {limit}' if num_bytes is None else num_bytes}"
            )
        return zstandard.ZstdDecompressor(dict_data=_dictionary(base)).decompress(packed)
    except zstandard.ZstdError as error:
        raise DeltaError(f"{where}: damaged: {error}") from None


def _dictionary(base: bytes) -> zstandard.ZstdCompressionDict | None:
    if not base:
        return None
    return zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def _metadata(digest: str) -> dict[str, str]:
    return {"format": FORMAT, "format_version": VERSION, "manifest_hash": digest}
