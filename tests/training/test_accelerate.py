"""A loop with accelerate has the bits of one without it, also when it is resumed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.training import tiny, tiny_trainers
from trimtab.masks.mask import Mask
from trimtab.training import SparseAdamW, runtime

pytestmark = pytest.mark.train

Base = tuple[Path, dict[str, Any]]

NUM_STEPS = 4


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def started(base: Base) -> tuple[Any, Any, Any]:
    import torch

    net = tiny_trainers.model(base[0])
    mask = Mask.from_arrays(tiny_trainers.arrays(net))
    optimizer = SparseAdamW(net.named_parameters(), mask, lr=1e-2, max_grad_norm=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1 + step))
    net.train()
    return net, optimizer, schedule


def batches(step: int) -> Any:
    import torch

    sums = [f"{step + 1}+{a}={step + 1 + a}\n"[:6] for a in range(1, 5)]
    tokens: Any = torch.tensor(tiny.tokenizer()(sums)["input_ids"])
    return tokens.split(2)


def plain(base: Base) -> dict[str, Any]:
    net, optimizer, schedule = started(base)
    for step in range(NUM_STEPS):
        for rows in batches(step):
            (net(input_ids=rows, labels=rows).loss / 2).backward()
        optimizer.step()
        schedule.step()
    optimizer.close()
    return tiny_trainers.weights(net)


def accelerated(base: Base, folder: Path, first: int, last: int) -> dict[str, Any]:
    """Train some of the steps; the others were, or are to be trained by another call."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    net, optimizer, schedule = accelerator.prepare(*started(base))
    if first:
        with runtime.quiet():
            accelerator.load_state(folder)
    for step in range(first, last):
        for rows in batches(step):
            with accelerator.accumulate(net):
                accelerator.backward(net(input_ids=rows, labels=rows).loss)
                accelerator.clip_grad_norm_(net.parameters(), 0.5)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
    if last < NUM_STEPS:
        with runtime.quiet():
            accelerator.save_state(folder)
    optimizer.optimizer.close()
    return tiny_trainers.weights(accelerator.unwrap_model(net))


def test_the_same_bits(base: Base, tmp_path: Path) -> None:
    expected = plain(base)
    whole = accelerated(base, tmp_path, 0, NUM_STEPS)
    tiny_trainers.assert_same_bits(expected, whole)
    accelerated(base, tmp_path, 0, 2)
    tiny_trainers.assert_same_bits(expected, accelerated(base, tmp_path, 2, NUM_STEPS))
    before = tiny_trainers.weights(tiny_trainers.model(base[0]))
    assert any(item.any() for item in tiny_trainers.moved(before, whole).values())
