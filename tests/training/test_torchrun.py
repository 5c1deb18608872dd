"""A Trainer of several processes, started as users start it, trains what one would, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training import plain_script
from tests.training.tiny_trainers import Base, arrays, assert_same_bits, model, moved, weights
from trimtab.masks.mask import Mask
from trimtab.training import runtime
from trimtab.training.folders import WEIGHTS, read_json
from trimtab.training.masked_checkpoint import MASK_FILE, RECORD_FILE

pytestmark = pytest.mark.train


def test_two_processes_train_and_resume_as_one_that_accumulates(base: Base, tmp_path: Path) -> None:
    """Two halves of a batch are averaged as two microbatches are: exactly, so the bits are equal.

    accelerate wraps the model in DistributedDataParallel.
    """
    from safetensors.torch import load_file

    net = model(base[0])
    before, selected = weights(net), arrays(net)
    mask = Mask.from_arrays(selected)
    mask.save(tmp_path / "m.safetensors")
    given = (str(base[0]), str(tmp_path / "m.safetensors"))
    two, one = str(tmp_path / "two"), str(tmp_path / "one")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    root = str(Path(__file__).parents[2])
    started = subprocess.run(
        [sys.executable, *launcher, plain_script.__file__, *given, two, "1"],
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert started.returncode == 0, started.stderr[-3000:]
    assert started.stderr.count("[trimtab] Trainer trains") == 2  # a line for each run, of rank 0
    with runtime.quiet():
        plain_script.main(*given, one, "2")
    expected = torch.load(f"{one}/whole-0.pt", weights_only=True)
    for name in ("whole-0", "whole-1", "resumed-0", "resumed-1"):
        assert_same_bits(torch.load(f"{two}/{name}.pt", weights_only=True), expected)
    changed = moved(before, {name: expected[name] for name in before})
    assert all(not changed[name][~net].any() for name, net in selected.items())
    assert any(net.any() for net in changed.values())
    saved = load_file(f"{two}/resumed/{WEIGHTS}")
    assert_same_bits(saved, {name: expected[name] for name in saved})
    assert Mask.load(f"{two}/whole/checkpoint-4/{MASK_FILE}") == mask
    assert read_json(Path(two, "whole", "checkpoint-4", RECORD_FILE))["step"] == 4
