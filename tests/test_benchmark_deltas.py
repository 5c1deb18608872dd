"""The benchmark of deltas measures what its page says."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import PackageNotFoundError, version
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks import delta_models, delta_pairs
from benchmarks.delta_codecs import CODECS, PACKAGES, TENSOR_CODECS, Change
from benchmarks.deltas import (
    OURS,
    by_rank,
    forget,
    label,
    measure_chains,
    measure_pair,
    measure_steps,
    opened,
)

from tests.deltas.building import write_folder
from trimtab.elements.dtypes import DTYPES, Bits


def is_here(codec: str) -> bool:
    if "--patch-from" in codec and shutil.which("zstd") is None:
        return False
    try:
        return bool(version(PACKAGES[codec])) if codec in PACKAGES else True
    except PackageNotFoundError:
        return False


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """1,024 elements of two exponents; 64 of the second moved by one step, half of them up."""
    folder = tmp_path_factory.mktemp("pair")
    before = np.full((16, 64), 0x3F81, np.uint16)
    before[8:] = 0x3E81
    after = before.copy()
    after[8, :32] += 1
    after[8, 32:] -= 1
    base = write_folder(folder / "base", {"w": ("BF16", before)})
    return base, write_folder(folder / "tuned", {"w": ("BF16", after)})


def test_every_codec_and_the_entropies(pair: tuple[Path, Path]) -> None:
    codecs = [name for name in CODECS if is_here(name)]
    result: dict[str, Any] = {}
    measure_pair(*pair, CODECS, result)
    assert list(result["sizes"]) == codecs
    assert result["num_bytes"] == 2048
    assert (result["num_elements"], result["num_changed"]) == (1024, 64)

    def binary(num: int, share: float) -> float:
        return -num * (share * log2(share) + (1 - share) * log2(1 - share)) / 8

    flat, given = (result["entropies"][name] for name in ("flat", "given exponent"))
    assert flat["positions"] == pytest.approx(binary(1024, 1 / 16))
    assert given["positions"] == pytest.approx(binary(512, 1 / 8))
    for part in (flat, given):
        assert part["distances"] == 0 and part["signs"] == 8
        assert part["sum"] == pytest.approx(part["positions"] + 8)
    # Indices of 4 bytes and values of 2, with a header.
    assert 0 < result["sizes"]["u32 index and value"] - 64 * 6 < 400


def test_what_was_measured_before_stays(pair: tuple[Path, Path]) -> None:
    name = "zstd -3, without the base"
    result: dict[str, Any] = {"sizes": {"xdelta3": 1}}
    measure_pair(*pair, [name, "xdelta3"], result)
    assert list(result["sizes"]) == ["xdelta3", name]
    assert result["sizes"]["xdelta3"] == 1


def test_what_is_to_be_measured_again_is_forgotten(pair: tuple[Path, Path]) -> None:
    chain = {"links": {"1": {"sizes": {OURS: 1, "xdelta3": 2}}}, "compacted": {"num_changed": 3}}
    pairs = {"p": {"sizes": {OURS: 1}, "by_rank": {"0": {"all": 1}}}}
    for part in (chain, pairs):
        forget(part, [OURS])
    assert chain == {"links": {"1": {"sizes": {"xdelta3": 2}}}, "compacted": {"num_changed": 3}}
    assert pairs == {"p": {"sizes": {}}}


def test_kinds_of_our_bytes_add_up(pair: tuple[Path, Path]) -> None:
    result: dict[str, Any] = {"1": {"all": 0}}
    by_rank(*pair, (0, 1), result)
    assert result["1"] == {"all": 0}  # measured before
    kinds = [result["0"][kind] for kind in ("positions", "signs", "distances", "predictors")]
    assert 0 <= result["0"]["all"] - sum(kinds) < 24
    assert result["0"]["elements_by_rank"] == {"0": 1024}


@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")  # of arc_v3
@pytest.mark.parametrize("name", TENSOR_CODECS)
@pytest.mark.parametrize("places", [[], [0], [199_999], [0, 65_535, 131_071, 199_998, 199_999]])
def test_codecs_decode_what_they_coded(name: str, places: list[int]) -> None:
    if not is_here(name):
        pytest.skip(f"{PACKAGES[name]} is not installed")
    base: Bits = np.arange(200_000, dtype=np.uint16).reshape(400, 500)
    tuned = base.copy()
    tuned.reshape(-1)[places] ^= 3
    change = Change("w", DTYPES["BF16"], base, tuned)
    codec = TENSOR_CODECS[name]
    coded = codec.encode(change)
    assert codec.decode(change, coded).tobytes() == tuned.tobytes()
    assert 0 < codec.size(coded) < 2000


@pytest.mark.parametrize("name", delta_pairs.SHARES)
def test_synthetic_pairs_change_as_much_as_they_should(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta_pairs, "TENSORS", 1)
    monkeypatch.setattr(delta_pairs, "SIDE", 512)
    monkeypatch.setattr(delta_pairs, "PIECE", 1 << 18)
    paths = delta_pairs.write_synthetic(tmp_path, name)
    with opened(*paths) as (base, tuned):
        (before,), (after,) = (
            [tensor.read() for tensor in side.tensors.values()] for side in (base, tuned)
        )
        assert before.size == 1 << 18
        share = float(np.mean(before != after))
        assert share == pytest.approx(delta_pairs.SHARES[name], rel=0.05)
    times = [path.stat().st_mtime_ns for path in paths]
    assert delta_pairs.write_synthetic(tmp_path, name) == paths
    assert [path.stat().st_mtime_ns for path in paths] == times


@pytest.mark.train
def test_models_are_trained_once_and_resume_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("reasoning_gym")
    monkeypatch.setattr(delta_models, "NUM_QUESTIONS", 20)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    delta_models.make(whole, ["tiny"], save_every=1)
    made = {path: path.stat().st_mtime_ns for path in whole.rglob("*.safetensors")}
    delta_models.make(whole, ["tiny"], save_every=1)
    assert made == {path: path.stat().st_mtime_ns for path in whole.rglob("*.safetensors")}

    update = delta_models.Training.update

    def interrupted(self: Any, loss: Any, **values: float) -> None:
        if self.step == 1 and not self.folder.with_suffix(".was-here").exists():
            self.folder.with_suffix(".was-here").touch()
            raise KeyboardInterrupt
        update(self, loss, **values)

    monkeypatch.setattr(delta_models.Training, "update", interrupted)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            delta_models.make(stopped, ["tiny"], save_every=1)
    delta_models.make(stopped, ["tiny"], save_every=1)
    for path in made:
        assert (stopped / path.relative_to(whole)).read_bytes() == path.read_bytes()
    history = json.loads((whole / "tiny" / "rl" / "history.json").read_text())
    assert [(row["step"], "reward" in row) for row in history] == [(1, True), (2, True)]

    trained = delta_models.summary(whole, ["tiny"])["tiny"]
    assert trained["base"]["steps"] == trained["runs"]["sft"]["steps"] == 2
    kinds = trained["runs"]["sft"]["directions"]
    assert len(kinds) == 9 and kinds["q_proj"]["fp32"]["for_90_percent"] >= 1
    assert len(trained["runs"]["rl"]["reward"]) == len(trained["runs"]["sft"]["loss"]) == 2

    steps: dict[str, Any] = {}
    chains: dict[str, Any] = {}
    measure_steps(whole, ["tiny"], steps, lambda: None)
    measure_chains(whole, ["tiny"], chains, lambda: None)
    assert list(steps) == list(chains) == ["tiny, SFT", "tiny, RL"]
    assert list(steps["tiny, RL"]) == ["1", "2"] == list(chains["tiny, RL"]["links"])
    first, again = chains["tiny, SFT"]["links"]["1"], steps["tiny, SFT"]["1"]
    assert first["num_changed"] == again["num_changed"] > 0
    assert first["entropies"] == again["entropies"]
    both = chains["tiny, SFT"]["compacted"]["num_changed"]
    links = [link["num_changed"] for link in chains["tiny, SFT"]["links"].values()]
    assert max(links) <= both <= sum(links) and both > 0


def test_directions_of_an_update() -> None:
    torch = pytest.importorskip("torch")
    start = torch.zeros(8, 20)
    update = torch.zeros(8, 20)
    update[range(3), range(3)] = torch.tensor([3.0, 2.0, 1.0])  # energies 9, 4, 1
    spread = delta_models.directions(update, start)
    assert spread["fp32"] == spread["bf16"] == {"for_90_percent": 2, "share_of_16": 1}
    assert delta_models.directions(update.T, start.T) == spread


def test_names_of_runs() -> None:
    assert [label(run) for run in ("rl", "sft", "rl-1e-6")] == ["RL", "SFT", "RL, 1e-6"]


def test_tokens_are_characters() -> None:
    assert delta_models.text_of(delta_models.tokens_of("3+4=7\n2")) == "3+4=7\n"
