"""Reading parts of tensors: exact bytes, many threads, few open files, files that change."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints.building import opened, random_bits, tensors_bytes
from trimtab.checkpoints.tensors import DataFile, FilePool, Pooled, StoredTensor
from trimtab.elements.dtypes import DTYPES
from trimtab.errors import CheckpointError, CheckpointNotFoundError


@pytest.fixture
def pool() -> Iterator[FilePool]:
    with closing(FilePool(limit=3)) as pool:
        yield pool


def stored(path: Path, num_bytes: int, pool: FilePool) -> StoredTensor:
    return StoredTensor("w", DTYPES["U8"], (num_bytes,), DataFile(path, pool), 0)


def num_open(folder: Path) -> int:
    """Files of a folder that this process holds open."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # another thread closed it meanwhile
            count += folder in link.readlink().parents
    return count


def test_every_range_reads_the_bytes_of_the_file(tmp_path: Path) -> None:
    bits = random_bits((7, 5))
    (tmp_path / "m.safetensors").write_bytes(tensors_bytes({"pad": random_bits((3,)), "w": bits}))
    raw = bits.tobytes()
    with opened(tmp_path / "m.safetensors") as (_, tensor):
        assert (tensor.num_elements, tensor.num_bytes) == (35, 70)
        for start in range(0, 71, 3):
            for stop in range(start, 71, 4):
                out = np.zeros(stop - start, dtype=np.uint8)
                tensor.read_into(start, out)
                assert out.tobytes() == raw[start:stop]
        np.testing.assert_array_equal(tensor.read(), bits)
        assert tensor.read().dtype == np.uint16


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (2, 1, 3)])
def test_shapes_are_kept(tmp_path: Path, shape: tuple[int, ...]) -> None:
    bits = random_bits(shape)
    (tmp_path / "m.safetensors").write_bytes(tensors_bytes({"w": bits}))
    with opened(tmp_path / "m.safetensors") as (tensor,):
        assert tensor.read().shape == shape
        np.testing.assert_array_equal(tensor.read(), bits)


def test_a_range_outside_the_tensor_is_refused(tmp_path: Path, pool: FilePool) -> None:
    (tmp_path / "f").write_bytes(bytes(10))
    with pytest.raises(IndexError, match="bytes 5 to 9 of 8"):
        stored(tmp_path / "f", 8, pool).read_into(5, np.zeros(4, dtype=np.uint8))


def test_a_file_that_ends_early_names_tensor_and_file(tmp_path: Path, pool: FilePool) -> None:
    (tmp_path / "f").write_bytes(bytes(10))
    with pytest.raises(CheckpointError, match=r"^w: .*/f ends after 10 of 12 bytes"):
        stored(tmp_path / "f", 12, pool).read()


def test_a_replaced_file_is_noticed(tmp_path: Path, pool: FilePool) -> None:
    (tmp_path / "f").write_bytes(bytes(10))
    tensor = stored(tmp_path / "f", 10, pool)
    (tmp_path / "f").unlink()
    (tmp_path / "f").write_bytes(bytes(11))
    with pytest.raises(CheckpointError, match="changed while it was being read"):
        tensor.read()
    (tmp_path / "f").unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        tensor.read()


def test_a_file_written_to_between_two_reads_is_noticed(tmp_path: Path, pool: FilePool) -> None:
    """In place and of the same size: an open handle sees the new bytes."""
    path = tmp_path / "f"
    path.write_bytes(bytes(10))
    tensor = stored(path, 10, pool)
    half = np.empty(5, np.uint8)
    tensor.read_into(0, half)
    with path.open("r+b") as file:
        file.write(b"1" * 10)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))  # whatever the clock's resolution
    with pytest.raises(CheckpointError, match="changed while it was being read: wait until"):
        tensor.read_into(5, half)


def test_a_missing_file_is_not_found(tmp_path: Path, pool: FilePool) -> None:
    with pytest.raises(CheckpointNotFoundError, match="no such file"):
        DataFile(tmp_path / "f", pool)


def test_many_threads_read_many_files_through_few_handles(tmp_path: Path, pool: FilePool) -> None:
    contents = random_bits((20, 5000))
    tensors = []
    for number, row in enumerate(contents):
        (tmp_path / f"{number}").write_bytes(row.tobytes())
        tensors.append(stored(tmp_path / f"{number}", 10_000, pool))

    def read(task: int) -> bool:
        number, start = task % 20, (task * 37) % 9000
        out = np.empty(1000, dtype=np.uint8)
        tensors[number].read_into(start, out)
        assert num_open(tmp_path) <= 3 + 8
        return out.tobytes() == contents[number].tobytes()[start : start + 1000]

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(read, range(500)))
    assert num_open(tmp_path) == 3
    pool.close()
    assert num_open(tmp_path) == 0


def test_reading_after_close_is_an_error(tmp_path: Path, pool: FilePool) -> None:
    (tmp_path / "f").write_bytes(bytes(10))
    tensor = stored(tmp_path / "f", 10, pool)
    pool.close()
    with pytest.raises(ValueError, match="closed"):
        tensor.read()


def test_what_reads_through_a_pool_closes_it_whatever_happens(
    tmp_path: Path, pool: FilePool
) -> None:
    class Reader(Pooled):
        def __init__(self) -> None:
            self._pool = pool
            self.tensor = stored(tmp_path / "f", 10, pool)

    (tmp_path / "f").write_bytes(bytes(10))
    with pytest.raises(KeyError), Reader() as reader:  # and what is raised is not swallowed
        reader.tensor.read()
        assert num_open(tmp_path) == 1
        raise KeyError
    assert num_open(tmp_path) == 0
    with pytest.raises(ValueError, match="closed"):
        reader.tensor.read()
