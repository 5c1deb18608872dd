"""Memory of making, applying and verifying deltas: bytes, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.deltas.building import write_folder

MB = 1 << 20
LARGE = 128 * MB
"""Bytes of the one large tensor; beside it there are many small ones."""

MOST = 96 * MB
"""That the work may take beyond what the process had before: less than the large tensor."""

PROGRAM = """
import json, sys
from pathlib import Path

import trimtab
from trimtab.deltas import chain, make

tiny, folder, holds_tensors = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "True"

def resident(key):
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key))

def steps(folder, measured):
    base, tuned, delta = (folder / name for name in ("base", "tuned", "first.delta"))
    work = {
        "make": lambda: trimtab.make_delta(base, tuned, delta, threads=2),
        "apply": lambda: trimtab.apply_delta(base, delta, folder / "result", threads=2),
        "verify": lambda: trimtab.verify_delta(base, delta, threads=2),
    }
    for name, step in work.items():
        Path("/proc/self/clear_refs").write_text("5")  # forget the highest size so far
        before = resident("VmRSS")
        step()
        measured[name] = resident("VmHWM") - before

steps(tiny, {})  # compiles and loads what is needed
if holds_tensors:
    make.HELD_BYTES = chain.CHUNK_BYTES = 1 << 40
measured = {}
steps(folder, measured)
print(json.dumps(measured))
"""


def write_pair(folder: Path, num_large: int) -> None:
    """A large tensor of which a few parts changed, and 60 small matrices that moved."""
    rng = np.random.default_rng(0)
    weights = (rng.standard_normal(1 << 20, np.float32) * 0.02).view(np.uint32) >> 16
    large = np.resize(weights.astype(np.uint16), num_large)
    small = {f"layers.{i}.weight": weights[: 1 << 16].reshape(256, 256) for i in range(60)}
    for name in ("base", "tuned"):
        if name == "tuned":
            large[::97] += 1
            small = {key: bits + (rng.random(bits.shape) < 0.1) for key, bits in small.items()}
        arrays = {key: ("BF16", bits.astype(np.uint16)) for key, bits in small.items()}
        write_folder(folder / name, {"embed.weight": ("BF16", large), **arrays})


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel of Linux")
@pytest.mark.slow
@pytest.mark.parametrize("holds_tensors", [False, True])
def test_memory_does_not_grow_with_the_largest_tensor(tmp_path: Path, holds_tensors: bool) -> None:
    """The second case holds tensors as a whole, which the same measure must show."""
    write_pair(tmp_path / "tiny", 1 << 10)
    write_pair(tmp_path / "pair", LARGE // 2)
    folders = (str(tmp_path / name) for name in ("tiny", "pair"))
    command = [sys.executable, "-c", PROGRAM, *folders, str(holds_tensors)]
    done = subprocess.run(command, capture_output=True, check=True)
    measured = json.loads(done.stdout)
    assert measured.keys() == {"make", "apply", "verify"}
    for step, num_bytes in measured.items():
        assert (num_bytes > LARGE) if holds_tensors else (num_bytes < MOST), (step, measured)
