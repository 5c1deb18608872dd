"""The list of published versions: which there are, and the files that lead from one to another.

    chain.json              this list, replaced as a whole whenever a version is published
    v000012-1f0c9a3e.delta  a link: what makes version 12 of version 11
    v000008-000016-….delta  a folded link: what makes version 16 of version 8
    followers/NAME.json     the version that a follower has: see `trimtab.sync.follower`
    mask-DIGEST.safetensors a mask over whose elements links are coded

The last part of the name of a link is the start of the hash of its file, so a name never gets
another content.

Version 0 is the checkpoint that training began with. If followers cannot be expected to have it, a
link leads to it from nothing. A version is known by the hash of its contents: whoever holds weights
can say which version they are.
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from trimtab.checkpoints.tensors import HASH
from trimtab.errors import ResultFormatError, SyncError
from trimtab.inputs import AnyPath, parse_json
from trimtab.results.records import CheckpointRecord
from trimtab.results.schema import Count, from_plain, to_plain
from trimtab.sync.places import Place, open_place
from trimtab.words import one_line

FORMAT, VERSION = "trimtab.chain", 1

CHAIN = "chain.json"

MAX_JSON_BYTES = 16 << 20
"""Longest list of versions: some ten thousand of them."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Of a file of a link, and of a follower."""

MOST_OF_A_NAME = 1 << 12
"""Bytes that the file of a mask may take for each tensor beside its bits."""

MAX_FILE_BYTES = 1 << 46
"""Largest link: 64 TiB."""

COST_OF_A_LINK = 1 << 16
"""In bytes: between routes of about the same size, the one of fewer links is taken."""


@dataclass(frozen=True)
class Version:
    """A version of the weights.

    Attributes:
        number: From 0.
        content_hash: As in `CheckpointRecord`: hash over all of its tensors.
        step: Step of the trainer that made it, if that is known.
        num_changed: Elements that differ from the version before.
    """

    number: Count
    content_hash: str
    step: Count | None
    num_changed: Count

    def problems(self) -> Iterator[str]:
        """What no version has."""
        if not HASH.fullmatch(self.content_hash):
            yield "content_hash is not 32 hexadecimal digits"


@dataclass(frozen=True)
class Link:
    """A delta file that leads to a version.

    Attributes:
        base: The version that it is applied to; None if it holds a whole checkpoint.
        version: The version that it makes.
        name: Of the file.
        num_bytes: Its size.
        hash: xxh3-128 of its bytes.
    """

    base: Count | None
    version: Count
    name: str
    num_bytes: Count
    hash: str

    def problems(self) -> Iterator[str]:
        """What no link is."""
        if not NAME.fullmatch(self.name):
            yield f"name is {self.name[:80]!r}, expected letters, digits, and . _ -"
        if not HASH.fullmatch(self.hash):
            yield "hash is not 32 hexadecimal digits"
        if self.num_bytes > MAX_FILE_BYTES:
            yield f"num_bytes is {self.num_bytes}, more than any file has"
        if self.base is not None and self.base >= self.version:
            yield f"it leads from version {self.base} back to {self.version}"


@dataclass(frozen=True)
class MaskFile:
    """A mask over whose elements links are coded: `mask-DIGEST.safetensors`.

    Attributes:
        digest: Of the mask.
        num_bytes: Size of its file.
    """

    digest: str
    num_bytes: Count

    def problems(self) -> Iterator[str]:
        """What no mask is."""
        if not HASH.fullmatch(self.digest):
            yield "digest is not 32 hexadecimal digits"


@dataclass(frozen=True)
class Chain:
    """What `chain.json` says.

    Attributes:
        run: Identifies the run; 32 hexadecimal digits.
        writer: Identifies the publisher that may add versions; 32 hexadecimal digits.
        base: Version 0.
        versions: Those that a link leads from or to, and the newest, in ascending order.
        links: Files by which they are reached.
        masks: Those over whose elements links are coded.
    """

    PLAIN: ClassVar = (
        *("format", "format_version", "run", "writer", "base", "versions", "links", "masks?"),
    )

    format: str
    format_version: Count
    run: str
    writer: str
    base: CheckpointRecord
    versions: tuple[Version, ...]
    links: tuple[Link, ...]
    masks: tuple[MaskFile, ...] = ()

    def __post_init__(self) -> None:
        """Take the lists of a file as what they were."""
        for name in ("versions", "links", "masks"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def __repr__(self) -> str:
        return one_line(self, f"version {self.newest.number} of {self.base.id}")

    @property
    def newest(self) -> Version:
        """The newest version."""
        return self.versions[-1]

    def problems(self) -> Iterator[str]:
        """What no list of versions says."""
        if (self.format, self.format_version) != (FORMAT, VERSION):
            yield f"its format is {self.format!r} {self.format_version}, expected {FORMAT} 1"
        if not (HASH.fullmatch(self.run) and HASH.fullmatch(self.writer)):
            yield "run or writer is not 32 hexadecimal digits"
        numbers = [version.number for version in self.versions]
        if not numbers or numbers != sorted(set(numbers)):
            yield "versions are not in ascending order"
        known = {None, *numbers}
        for link in self.links:
            if not {link.base, link.version} <= known:
                yield f"{link.name} leads to or from a version that is not listed"
        most = self.base.num_elements // 8 + (self.base.num_tensors + 16) * MOST_OF_A_NAME
        if large := [mask for mask in self.masks if mask.num_bytes > most]:
            yield f"a mask has {large[0].num_bytes} bytes, more than one of these weights can have"

    def known(self, content_hash: str | None) -> Version | None:
        """The newest version that has a content hash; None without one."""
        return next((v for v in reversed(self.versions) if v.content_hash == content_hash), None)

    def at(self, number: int) -> Version | None:
        """The version of a number; None if it is not listed."""
        return next((v for v in self.versions if v.number == number), None)

    def without(self, link: Link) -> Chain:
        """This list without a link, for readers who cannot use that."""
        return replace(self, links=tuple(each for each in self.links if each != link))

    def route(self, starts: Collection[int | None], to: int) -> tuple[Link, ...] | None:
        """The links of fewest bytes to a version.

        Args:
            starts: Versions that the reader has; None for nothing at all.
            to: The version.

        Returns:
            The links in the order in which they are applied, none if the reader has the version;
            None if no links lead there.
        """
        leaving: dict[int | None, list[Link]] = {}
        for link in self.links:
            leaving.setdefault(link.base, []).append(link)
        # Among routes of one cost, that from the highest version: a reader has it at hand.
        order = sorted(starts, key=lambda number: -1 if number is None else number, reverse=True)
        count = itertools.count()
        queue: list[tuple[int, int, int | None, Link | None]] = [
            (0, next(count), start, None) for start in order
        ]
        arrived: dict[int | None, Link | None] = {}
        while queue:
            cost, _, number, by = heapq.heappop(queue)
            if number in arrived:
                continue
            arrived[number] = by
            if number == to:
                return _walked(arrived, by)
            for link in leaving.get(number, ()):
                further = cost + link.num_bytes + COST_OF_A_LINK
                heapq.heappush(queue, (further, next(count), link.version, link))
        return None

    def to_json(self) -> bytes:
        """The content of `chain.json`."""
        return (json.dumps(to_plain(self), indent=1, allow_nan=False) + "\n").encode()


def _walked(arrived: Mapping[int | None, Link | None], last: Link | None) -> tuple[Link, ...]:
    """The links that lead to a place, given the one by which each was reached."""
    path: list[Link] = []
    while last is not None:
        path.append(last)
        last = arrived[last.base]
    return tuple(reversed(path))


def at_place(place: AnyPath | Place) -> Place:
    """A place that may be open already."""
    return open_place(place) if isinstance(place, str | os.PathLike) else place


def read_chain(place: Place) -> Chain | None:
    """The list of versions at a place; None without one.

    Raises:
        SyncError: It is damaged, or of another version of the format.
    """
    content = place.read(CHAIN, MAX_JSON_BYTES)
    if content is None:
        return None
    return parsed(Chain, content, f"{place}: {CHAIN}")


def parsed(kind: type[Any], content: bytes, where: str) -> Any:
    """An object of a JSON file of a place.

    Raises:
        SyncError: It is not what it should be.
    """
    try:
        data = parse_json(content, strict=True)
        found = data.get("format_version") if isinstance(data, Mapping) else None
        if isinstance(found, int) and found > VERSION:
            raise SyncError(
                f"{where}: format version {found}: this trimtab reads {VERSION}; install a newer "
                "one"
            )
        return from_plain(kind, data, what="file")
    except (ResultFormatError, ValueError) as error:
        raise SyncError(f"{where}: {error}") from None
