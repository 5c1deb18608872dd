"""Files of scores: what is written is read, chunk by chunk, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from trimtab.checkpoints import weights
from trimtab.errors import MaskError, OutputExistsError
from trimtab.masks.header import BaseTensor
from trimtab.masks.selection import scores
from trimtab.masks.selection.scores import ArrayScores, ScoreFile, write_scores

BASE = {"w": BaseTensor("BF16", "0" * 32)}


def example() -> ArrayScores:
    rng = np.random.default_rng(0)
    arrays = {"w": rng.normal(size=(30, 7)), "scalar": np.float32(2), "none": np.zeros((0, 3))}
    return ArrayScores({name: np.asarray(array) for name, array in arrays.items()}, BASE)


def test_what_is_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (scores, weights):
        monkeypatch.setattr(module, "CHUNK_ELEMENTS", 64)
    path = tmp_path / "new" / "s.safetensors"
    held = example()
    write_scores(path, held, provenance={"step": "test", "cost": {"seconds": 1.5}})
    with ScoreFile(path) as file:
        assert file.shapes == held.shapes
        assert file.base == BASE
        assert file.provenance["step"] == "test"
        assert file.provenance["cost"] == {"seconds": 1.5}
        for name in held.shapes:
            for _ in range(2):
                found, expected = (list(one.chunks(name)) for one in (file, held))
                assert [len(chunk) for chunk in found] == [len(chunk) for chunk in expected]
                assert all(map(np.array_equal, found, expected))
        assert [len(chunk) for chunk in file.chunks("w")] == [64, 64, 64, 18]
    with safe_open(path, "np") as other:  # any program can read them
        assert np.array_equal(other.get_tensor("w"), held._arrays["w"].astype(np.float32))


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    write_scores(path, example(), provenance={})
    with pytest.raises(OutputExistsError):
        write_scores(path, example(), provenance={})
    write_scores(path, example(), provenance={}, force=True)


def test_nan_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    with pytest.raises(MaskError, match="the scores of w hold NaN"):
        write_scores(path, ArrayScores({"w": np.array([1.0, np.nan])}), provenance={})
    assert not list(tmp_path.iterdir())


GOOD = {"format": "trimtab.scores", "format_version": "1", "base": "{}", "provenance": "{}"}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "not a file of scores: .* found none"),
        ({"format": "trimtab.mask"}, "not a file of scores: .* found 'trimtab.mask'"),
        ({**GOOD, "format_version": "9"}, "format version '9'"),
        ({**GOOD, "base": "[]"}, "damaged file of scores"),
        ({**GOOD, "base": "{"}, "damaged file of scores"),
        ({**GOOD, "base": json.dumps({"w": {"dtype": "F32"}})}, "damaged file of scores"),
        ({**GOOD, "base": json.dumps({"w": {"dtype": "F32", "digest": "x"}})}, "digest"),
        ({**GOOD, "base": json.dumps({"v": BASE["w"]._asdict()})}, "v has a base and no scores"),
        ({**GOOD, "provenance": "7"}, "damaged file of scores"),
        ({key: GOOD[key] for key in ("format", "format_version")}, "damaged file of scores"),
    ],
)
def test_other_files_are_refused(
    tmp_path: Path, metadata: dict[str, str] | None, message: str
) -> None:
    path = tmp_path / "s.safetensors"
    save_file({"w": np.zeros(3, dtype=np.float32)}, path, metadata)
    with pytest.raises(MaskError, match=message):
        ScoreFile(path)


def test_other_dtypes_and_other_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    save_file({"w": np.zeros(3, dtype=np.float16)}, path, GOOD)
    with pytest.raises(MaskError, match="w is F16"):
        ScoreFile(path)
    path.write_bytes(b"12345678")
    with pytest.raises(MaskError, match="not a valid safetensors file"):
        ScoreFile(path)
