"""What Python shows of a result, and of each part of one, is a short line."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

import trimtab
from tests.docs.pages import PAGES, ROOT
from tests.report.factory import make_comparison
from tests.report.identity_factory import make_identity
from tests.report.overlap_factory import make_overlap
from tests.report.split_factory import make_split
from tests.report.structure_factory import make_structure
from tests.report.trajectory_factory import make_trajectory
from tests.training.evaluation.results import make_evaluation
from tests.training.robustness.results import make_probe
from trimtab.example import write_example
from trimtab.masks.algebra import DerivedMask
from trimtab.masks.extract import extract_mask
from trimtab.masks.header import MaskHeader
from trimtab.masks.on_disk import open_mask
from trimtab.masks.prediction import score_prediction
from trimtab.masks.pruning import prune
from trimtab.masks.selection.quotas import Quotas
from trimtab.masks.wanda import InputNorms
from trimtab.measure.tracked_file import KindFigures, StepFigures
from trimtab.papers.results import PaperResult
from trimtab.sync.engines.drive import Driven
from trimtab.sync.engines.prove import Difference
from trimtab.training.runs.settings import DataTable
from trimtab.words import MAX_REPR, one_line, plural

SETTINGS = {"PPOConfig", "PRIMEConfig", "RolloutConfig"}
"""Public dataclasses that are as TRL's are."""


def results(folder: Path) -> Iterator[Any]:
    """One of each, of a name longer than anybody gives; the last are only public."""
    write_example(folder)
    base, tuned = folder / "base", folder / "tuned"
    mask = extract_mask(base, tuned)
    mask.save(folder / "mask.safetensors")
    yield make_comparison(analysed=True)
    yield trimtab.compare(base, folder / "other", cast="bf16", lr=1e-5)
    yield make_trajectory()
    yield make_identity()
    yield make_overlap(5)
    yield make_overlap().total()
    yield [*make_overlap().total().nulls.values(), make_overlap(3).consensus()]
    yield make_split()
    yield score_prediction(mask, extract_mask(base, folder / "sub"), base=base)
    yield score_prediction(mask, extract_mask(base, folder / "sub"), base=base).total
    yield make_structure(folder / "structure", 3, has_base=True)
    yield make_evaluation(suites=True)
    yield make_probe()
    for path in (ROOT / "papers").glob("*/results/*.json"):
        yield PaperResult.from_dict(json.loads(path.read_text("utf-8")))
    yield prune(base, folder / "pruned", sparsity=0.5)
    yield trimtab.make_delta(base, tuned, folder / "run.delta")
    yield trimtab.Store.create(folder / "store", base).add(tuned, "a-name-" * 14)
    with trimtab.Publisher(folder / "place", base) as publisher:
        publisher.publish(tuned)
        publisher.wait()
        holder = trimtab.FolderHolder(folder / "served", base)
        follower = trimtab.Follower(publisher.place, holder, name="a-name-" * 14)
        yield [
            follower.update(),
            publisher.acknowledged(),
            publisher.log(),
            trimtab.Served(1, True, 3, 4),
            Driven(3, {}),
            trimtab.Proof(
                *("http://127.0.0.1:8000", "place", 3, 4, 10, "0" * 32, "", False, 2, 10, 0),
                differences=(Difference("w" * 200, "", "", ""),),
                checker="",
                movement="",
            ),
        ]
    with trimtab.open_checkpoint(base) as checkpoint:
        yield [checkpoint, checkpoint.tensors]
    with open_mask(folder / "mask.safetensors") as stored:
        yield [mask, stored, mask.base]
    yield StepFigures(3, {f"kind {number}": KindFigures() for number in range(100)})
    yield DerivedMask(MaskHeader({}, {}, {}), lambda name: pytest.fail(name))
    yield InputNorms({})
    yield Quotas.of_density(0.5, match="tensor", shapes={"w": (4, 4)})
    yield trimtab.parse_criterion("bits")
    yield trimtab.PrecisionProbe(1e-5, 20)
    yield DataTable()


def parts_of(value: Any) -> Iterator[Any]:
    """A result and all in it that has a class of ours."""
    if type(value).__module__.startswith("trimtab."):
        yield value
    if is_dataclass(value):
        inner = [getattr(value, field.name) for field in fields(value)]
    elif isinstance(value, Mapping):
        inner = [*value.values()]
    elif isinstance(value, list | tuple):
        inner = [*value]
    else:
        inner = []
    for part in inner:
        yield from parts_of(part)


def public_dataclasses() -> set[str]:
    """Names of those that the page on Python lists."""
    found = set()
    listed = re.findall(r"^::: (trimtab\.[\w.]+)$", PAGES["docs/api.md"].read_text("utf-8"), re.M)
    for module, _, name in (place.rpartition(".") for place in listed):
        kind = getattr(importlib.import_module(module), name)
        if inspect.isclass(kind) and (is_dataclass(kind) or issubclass(kind, tuple)):
            found.add(name)
    return found


@pytest.mark.train
def test_one_short_line_of_every_result_and_part(tmp_path: Path) -> None:
    folder = tmp_path / ("a-folder-with-quite-a-name-" * 5)
    seen = set()
    for result in results(folder):
        for part in parts_of(result):
            seen.add(type(part).__name__)
            text = repr(part)
            assert len(text) <= MAX_REPR, (type(part), len(text))
            assert "\n" not in text and text.startswith(type(part).__name__)
    assert public_dataclasses() - SETTINGS <= seen
    assert {"Mask", "StoredMask", "Checkpoint", "PaperResult"} <= seen


def test_it_says_what_one_wants_to_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_example()
    result = trimtab.compare("base", "tuned")
    assert repr(result) == "Comparison(base → tuned: 7,202 of 16,800 elements changed (bits))"
    assert repr(result.tensors[0]) == (
        "TensorChange(model.embed_tokens.weight: 546 of 1,280 elements changed (bits))"
    )
    assert repr(result.total) == "ChangeCounts(7,202 of 16,800 elements changed (bits))"
    assert repr(result.base) == "CheckpointRecord(base: 16,800 elements in 20 tensors)"
    assert repr(trimtab.compare("base", "other", cast="bf16")).endswith(", coverage INCOMPLETE)")
    followed = trimtab.trajectory("base", "run")
    assert repr(followed) == (
        "Trajectory(base → run/checkpoint-80, 8 points: 6,728 of 16,800 elements changed)"
    )
    assert repr(extract_mask("base", "tuned")).startswith(
        "Mask(7,202 of 16,800 elements in 20 tensors, digest "
    )
    with trimtab.open_checkpoint("base") as checkpoint:
        assert repr(checkpoint) == "Checkpoint(base, 20 tensors)"
        assert repr(checkpoint.tensors["model.norm.weight"]) == (
            "StoredTensor(model.norm.weight: BF16 [32])"
        )


def test_fields_are_shortened() -> None:
    assert one_line(trimtab.parse_criterion("rel=1e-3")) == (
        "Criterion(rule='rel', tolerance=0.001)"
    )
    assert repr(make_overlap().coverage) == (
        "OverlapCoverage(num_compared=790352, not_compared=(), other_base=())"
    )
    assert repr(make_overlap().total()) == (
        "Shared(num_elements=790352, num_first=157994, num_second=158208, intersection=44650, "
        "finer=<2 items>)"
    )
    assert one_line(1, "\x1b[31m") == r"int(\x1b[31m)"
    assert one_line(1, "a\nb " * 100) == f"int({('a b ' * 100)[: MAX_REPR - 6]}…)"


def test_counted_nouns() -> None:
    assert [plural(num, "matrix", "matrices") for num in (0, 1, 2000)] == [
        "0 matrices",
        "1 matrix",
        "2,000 matrices",
    ]
