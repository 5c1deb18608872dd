"""Prove that an engine serves the weights of a version, bit for bit; and whether they moved."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, ClassVar

from trimtab.checkpoints.checkpoint import opened
from trimtab.deltas.file import DeltaFile
from trimtab.deltas.manifest import TensorEntry
from trimtab.elements.absorption import base_histogram, count_movable, num_finite
from trimtab.elements.dtypes import DTYPES
from trimtab.errors import SettingsError, SyncError
from trimtab.inputs import AnyPath
from trimtab.results.records import Row, content_hash
from trimtab.sync.chain import Chain, Version, at_place, read_chain
from trimtab.sync.engines.control import EngineControl
from trimtab.sync.fetching import fetch
from trimtab.sync.places import Place
from trimtab.words import first_few, one_line, out_of, plural

FEW = 1e-3
"""Share of the elements below which the reason is given why few moved."""


@dataclass(frozen=True)
class Difference:
    """A tensor that the engine does not serve as the version has it.

    Attributes:
        name: Its name in the version.
        expected: xxh3-128 of its bytes in the version; empty if the place does not say it.
        served: The same of what is served; empty if that cannot be seen.
        problem: Why it cannot be seen, or nothing.
    """

    name: str
    expected: str
    served: str
    problem: str

    def __repr__(self) -> str:
        return one_line(self, f"{self.name}: {self.problem or 'other values'}")


@dataclass(frozen=True)
class Proof:
    """What an engine serves beside a version of a run.

    Attributes:
        engine: URL of the engine.
        place: Where the run is published.
        version: The version that it was compared with.
        newest: The newest version at the place.
        step: Step of the trainer that made the version, if that is known.
        content_hash: Of the version, as in `CheckpointRecord`.
        served_hash: The same of what the engine serves; empty if that cannot be seen.
        is_proven: Whether they are equal.
        num_tensors: Tensors of the version.
        num_elements: Their elements.
        num_unseen: Elements that a product does not show (see `checker`); their tensors count as
            equal if all others are.
        differences: The tensors that differ, or cannot be seen.
        checker: How the weights were looked at.
        movement: Whether the version differs from the one before, and if hardly, why.
    """

    PLAIN: ClassVar = (
        *("engine", "place", "version", "newest", "step", "content_hash", "served_hash"),
        *("is_proven", "num_tensors", "num_elements", "num_unseen", "differences", "checker"),
        "movement",
    )

    engine: str
    place: str
    version: int
    newest: int
    step: int | None
    content_hash: str
    served_hash: str
    is_proven: bool
    num_tensors: int
    num_elements: int
    num_unseen: int
    differences: tuple[Difference, ...]
    checker: str
    movement: str

    def __repr__(self) -> str:
        return one_line(self, self.verdict)

    @property
    def verdict(self) -> str:
        """One sentence."""
        which = f"version {self.version}"
        if self.step is not None:
            which += f" (step {self.step})"
        if self.is_proven:
            return f"{self.engine} serves {which}: all {plural(self.num_tensors, 'tensor')} equal"
        names = [each.name for each in self.differences]
        if not names:
            return f"{self.engine} does not serve {which}; no link says in which tensors"
        return f"{self.engine} does not serve {which}: {first_few(names)} {_verb(names)}"


def _verb(names: list[str]) -> str:
    return "differs" if len(names) == 1 else "differ"


def prove(
    engine: str | EngineControl,
    place: AnyPath | Place,
    *,
    version: int | None = None,
    base: AnyPath | None = None,
    lr: float | None = None,
) -> Proof:
    """Compare what a vLLM server serves with a version of the run that it follows.

    The server is asked what it really multiplies by, its packing undone, not what it was given: a
    weight that was changed there, or not changed, differs.

    Args:
        engine: URL of the server, which has to follow the run.
        place: Where the run is published: a folder, a URL of an object store, or an open place.
        version: The version to compare with; by default the one that the engine says it has.
        base: The checkpoint that the run began with, to say how many elements can move.
        lr: Learning rate of the trainer, for the same.

    Raises:
        CheckpointError: `base` cannot be read.
        SettingsError: One of `base` and `lr` was given without the other.
        SyncError: The server or the place cannot be reached, or the version is not listed.
    """
    if (base is None) != (lr is None) or (lr is not None and not lr > 0):
        raise SettingsError("base and lr say together how many elements can move: give both")
    server = EngineControl(engine) if isinstance(engine, str) else engine
    there = at_place(place)
    chain = read_chain(there)
    if chain is None:
        raise SyncError(f"{there}: nothing is published yet")
    answer = server.served()
    served = _tensors(answer, server.url)
    target = _target(chain, version, answer, there)
    entries = _entries(chain, target, there)
    rows, differences = _compare(entries, served)
    found = content_hash(sorted(rows)) if len(rows) == (len(entries) or len(served)) else ""
    ways = Counter(each["way"] for each in served.values())
    num_unseen = sum(each["num_unseen"] for each in served.values())
    return Proof(
        engine=server.url,
        place=str(there),
        version=target.number,
        newest=chain.newest.number,
        step=target.step,
        content_hash=target.content_hash,
        served_hash=found,
        is_proven=found == target.content_hash,
        num_tensors=len(entries) or len(served),
        num_elements=sum(prod(shape) for _, _, shape, _ in rows),
        num_unseen=num_unseen,
        differences=tuple(differences),
        checker=_checker(ways, num_unseen),
        movement=_movement(target, chain, base, lr),
    )


def _tensors(answer: Mapping[str, Any], url: str) -> dict[str, dict[str, Any]]:
    """The part of an answer on tensors; a stranger's server may answer anything."""
    wanted = {"dtype": str, "shape": list, "hash": str, "num_unseen": int, "way": str}
    found = answer.get("tensors")
    if not isinstance(found, dict) or not all(
        isinstance(one, dict)
        and all(isinstance(one.get(key), kind) for key, kind in {**wanted, "problem": str}.items())
        and all(isinstance(n, int) for n in one["shape"])
        for one in found.values()
    ):
        raise SyncError(f"{url} does not say what it serves: is it a vLLM with this trimtab?")
    return found


def _target(chain: Chain, version: int | None, answer: Mapping[str, Any], place: Place) -> Version:
    """The version to compare with."""
    number = answer.get("version") if version is None else version
    if number is None:
        raise SyncError(
            f"{place}: the engine has no version of this run yet: update it first, or say which "
            "version it should have"
        )
    target = chain.at(number)
    if target is None:
        raise SyncError(
            f"{place}: version {number} is not listed: the newest is {chain.newest.number}, and "
            "of older ones some are no longer there"
        )
    return target


def _entries(chain: Chain, target: Version, place: Place) -> list[tuple[Row, str | None]]:
    """The tensors of a version and the names that their bases have; none if no link has them."""
    links = [link for link in chain.links if target.number in (link.version, link.base)]
    if not links:
        return []
    link = min(links, key=lambda each: (each.version != target.number, each.num_bytes))
    with (
        tempfile.TemporaryDirectory(prefix="trimtab-prove-") as folder,
        DeltaFile(fetch(place, link, Path(folder))) as delta,
    ):
        tensors = delta.manifest.tensors
    if link.version == target.number:
        return [((e.name, e.dtype, e.shape, e.hash), e.base) for e in tensors]
    whole = [entry for entry in tensors if entry.base is not None and _is_of_base(entry)]
    if len(whole) != len(tensors):
        return []
    return [((e.base or "", e.dtype, e.shape, e.base_hash), None) for e in whole]


def _is_of_base(entry: TensorEntry) -> bool:
    return entry.num_common == entry.num_elements


def _compare(
    entries: list[tuple[Row, str | None]], served: Mapping[str, dict[str, Any]]
) -> tuple[list[Row], list[Difference]]:
    """What is served as rows of the version, and which tensors differ."""
    rows: list[Row] = []
    differences: list[Difference] = []
    if not entries:
        for name, each in served.items():
            if each["problem"] or not each["hash"]:
                differences.append(Difference(name, "", each["hash"], each["problem"]))
            else:
                rows.append((name, each["dtype"], tuple(each["shape"]), each["hash"]))
        return rows, differences
    for (name, dtype, shape, expected), base in entries:
        one: dict[str, Any] | None = served.get(name) or served.get(base or "")
        if one is None:
            differences.append(Difference(name, expected, "", "the engine has no such tensor"))
            continue
        if one["hash"]:
            rows.append((name, one["dtype"], tuple(one["shape"]), one["hash"]))
        if one["hash"] != expected or (one["dtype"], tuple(one["shape"])) != (dtype, shape):
            differences.append(Difference(name, expected, one["hash"], one["problem"]))
    return rows, differences


def _checker(ways: Mapping[str, int], num_unseen: int) -> str:
    """How the weights were looked at."""
    num = sum(ways.values())
    text = f"trimtab read {plural(num, 'tensor')} back through vLLM's own weight loaders"
    if products := ways.get("product", 0):
        text += (
            f", {products} of them as products with an identity matrix, since this vLLM packs them"
        )
    if num_unseen:
        text += f"; of {num_unseen:,} elements a product does not show the sign of zero, a "
        text += "subnormal value, or what stands in one row with an infinite value"
    if rounded := ways.get("rounded", 0):
        text += f"; {rounded} are served in a coarser dtype, as their values rounded to it"
    return text


def _movement(target: Version, chain: Chain, base: AnyPath | None, lr: float | None) -> str:
    """Whether a version differs from the one before, and if hardly, why."""
    if target.number == 0:
        return "version 0 is what the run began with"
    total = chain.base.num_elements
    text = (
        f"{out_of(target.num_changed, total, 'element')} of version {target.number} differ from "
        "the version before"
    )
    if target.content_hash == chain.base.content_hash:
        text += ", and none from version 0"
    dtypes = "/".join(sorted(chain.base.dtypes))
    if target.num_changed < FEW * total:
        text += (
            f"; the trainer's steps are smaller than half the distance between numbers of {dtypes}"
            " (or it made none): they are rounded away, unless they add up in fp32 master weights"
        )
    if base is not None and lr is not None:
        movable, finite = _movable(base, lr)
        share = movable / max(finite, 1)
        text += (
            f"; one step of AdamW at a learning rate of {lr:g} can change {share:.2%} of the base's"
            f" elements in {dtypes}"
        )
    return text


def _movable(base: AnyPath, lr: float) -> tuple[int, int]:
    """Elements of the base that a move by the learning rate changes, and all finite ones."""
    movable = finite = 0
    with opened(base) as (checkpoint,):
        for tensor in checkpoint.tensors.values():
            dtype = DTYPES[tensor.dtype.name]
            if dtype.is_float:
                histogram = base_histogram(tensor.read(), dtype)
                movable += count_movable(histogram, dtype, lr)
                finite += num_finite(histogram, dtype)
    return movable, finite


def lines_of(proof: Proof) -> Iterator[str]:
    """What the command line shows."""
    yield proof.verdict
    for each in proof.differences[:20]:
        reason = each.problem or f"xxh3-128 {each.served}, expected {each.expected}"
        yield f"  {each.name}: {reason}"
    if (more := len(proof.differences) - 20) > 0:
        yield f"  and {more} more"
    if proof.newest != proof.version:
        behind = proof.newest - proof.version
        yield f"the newest version is {proof.newest}: {plural(behind, 'version')} later"
    yield f"checked by: {proof.checker}"
    yield proof.movement
