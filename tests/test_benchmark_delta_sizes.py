"""The benchmark of the sizes of deltas measures what its page says."""

from __future__ import annotations

import shutil
from importlib.metadata import PackageNotFoundError, version
from math import log2

import numpy as np
import pytest
from benchmarks.delta_sizes import CODECS, PACKAGES, measure_pair

from tests.deltas.building import write_folder


def is_here(codec: str) -> bool:
    if "--patch-from" in codec and shutil.which("zstd") is None:
        return False
    try:
        return bool(version(PACKAGES[codec])) if codec in PACKAGES else True
    except PackageNotFoundError:
        return False


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """1,024 elements of two exponents; 64 of the second moved by one step, half of them up."""
    folder = tmp_path_factory.mktemp("pair")
    before = np.full((16, 64), 0x3F81, np.uint16)
    before[8:] = 0x3E81
    after = before.copy()
    after[8, :32] += 1
    after[8, 32:] -= 1
    base = write_folder(folder / "base", {"w": ("BF16", before)})
    return str(base), str(write_folder(folder / "tuned", {"w": ("BF16", after)}))


def test_every_codec_and_the_entropies(pair: tuple[str, str]) -> None:
    codecs = {name: codec for name, codec in CODECS.items() if is_here(name)}
    result = measure_pair(*pair, codecs, {})
    assert list(result["sizes"]) == list(codecs)
    assert result["num_bytes"] == 2048 and result["density"] == 1 / 16

    def binary(num: int, share: float) -> float:
        return -num * (share * log2(share) + (1 - share) * log2(1 - share)) / 8

    flat, given = (result["entropies"][name] for name in ("flat", "given exponent"))
    assert flat["positions"] == pytest.approx(binary(1024, 1 / 16))
    assert given["positions"] == pytest.approx(binary(512, 1 / 8))
    for part in (flat, given):
        assert part["distances"] == 0 and part["signs"] == 8
        assert part["sum"] == pytest.approx(part["positions"] + 8)
    # Indices of 4 bytes and values of 2, with a header.
    assert 0 < result["sizes"]["u32 index and value"]["num_bytes"] - 64 * 6 < 400


def test_what_was_measured_before_stays(pair: tuple[str, str]) -> None:
    name = "zstd -3, without the base"
    result = measure_pair(*pair, {name: CODECS[name]}, {"xdelta3": {"num_bytes": 1}})
    assert list(result["sizes"]) == ["xdelta3", name]
