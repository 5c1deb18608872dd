"""`StoredMask` against the `Mask` of the same file, also while the file changes."""

from __future__ import annotations

import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from tests.masks.masks import any_mask, example_mask
from trimtab.errors import MaskError
from trimtab.masks.mask import Mask
from trimtab.masks.on_disk import StoredMask, open_mask


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A mask file."""
    path = tmp_path / "m.safetensors"
    example_mask().save(path)
    return path


def check_same(stored: StoredMask, mask: Mask) -> None:
    """Check that both say the same."""
    assert stored.names == mask.names == tuple(stored)
    assert len(stored) == len(mask)
    assert stored.digest == mask.digest
    assert dict(stored.base) == dict(mask.base)
    assert dict(stored.provenance) == dict(mask.provenance)
    assert stored.num_selected() == mask.num_selected()
    assert stored.num_elements() == mask.num_elements()
    assert stored.density == mask.density
    for name in mask:
        assert name in stored
        assert stored.shape(name) == mask.shape(name)
        assert stored.num_selected(name) == mask.num_selected(name)
        assert stored.num_elements(name) == mask.num_elements(name)
        assert stored.packed(name).dtype == np.uint8
        assert stored.packed(name).tobytes() == mask.packed(name).tobytes()


@given(mask=any_mask())
def test_reads_like_the_mask(tmp_path_factory: pytest.TempPathFactory, mask: Mask) -> None:
    path = tmp_path_factory.mktemp("mask") / "m.safetensors"
    mask.save(path)
    with open_mask(path) as stored:
        check_same(stored, mask)
        assert "absent" not in stored or "absent" in mask


def test_it_names_its_file(path: Path) -> None:
    with open_mask(path) as stored:
        assert stored.path == str(path)
        assert repr(stored) == f"StoredMask({path}, digest {example_mask().digest})"


def test_nothing_can_be_written_to_it(path: Path) -> None:
    with open_mask(path) as stored:
        with pytest.raises(ValueError, match="read-only"):
            stored.packed("model.norm.weight")[0] = 255
        with pytest.raises(TypeError):
            stored.base["w"] = stored.base["scalar"]  # type: ignore[index]


def test_threads_read_at_once(path: Path) -> None:
    mask = example_mask()
    with open_mask(path) as stored, ThreadPoolExecutor(8) as threads:
        names = [*stored] * 50
        for name, bits in zip(names, threads.map(stored.packed, names), strict=True):
            assert bits.tobytes() == mask.packed(name).tobytes()


def write_unnoticed(path: Path, at: int, data: bytes) -> None:
    """Overwrite bytes of a file and put its old time back."""
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_file_that_changes_is_noticed(path: Path) -> None:
    with open_mask(path) as stored:
        raw = path.read_bytes()
        path.write_bytes(raw)
        with pytest.raises(MaskError, match="the file changed while it was being read"):
            stored.packed("scalar")
    with open_mask(path) as stored:
        with path.open("r+b") as file:
            file.truncate(len(raw) - 400)
        with pytest.raises(MaskError, match="the file changed while it was being read"):
            stored.packed("scalar")


def test_bits_that_change_unnoticed_are_held_against_the_header(path: Path) -> None:
    name = "model.embed_tokens.weight"
    raw = path.read_bytes()
    with open_mask(path) as stored:
        write_unnoticed(path, len(raw) - 1, b"\xff")  # of the scalar, which has one bit
        with pytest.raises(MaskError, match="'scalar' has bits set after its last element"):
            stored.packed("scalar")
        write_unnoticed(path, raw.index(example_mask().packed(name).tobytes()), b"\xff")
        with pytest.raises(MaskError, match=f"'{name}' says it selects"):
            stored.packed(name)


def test_a_closed_mask_cannot_be_read(path: Path) -> None:
    stored = open_mask(path)
    stored.close()
    with pytest.raises(ValueError, match="closed"):
        stored.packed("scalar")


def test_memory_is_that_of_a_tensor(tmp_path: Path) -> None:
    num_bytes, num_tensors = 1 << 18, 16
    arrays = {f"w{i}": np.arange(8 * num_bytes) % 3 == 0 for i in range(num_tensors)}
    Mask.from_arrays(arrays).save(tmp_path / "m.safetensors")
    del arrays
    tracemalloc.start()
    try:
        with open_mask(tmp_path / "m.safetensors") as stored:
            for name in stored:
                assert stored.packed(name).nbytes == num_bytes
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert num_bytes < peak < 3 * num_bytes
