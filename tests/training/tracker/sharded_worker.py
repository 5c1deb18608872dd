"""What the processes of `test_sharded` do: tracked training of a tiny model, as a Trainer would."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.training import tiny, tiny_trainers
from tests.training.tracker.watching import Watcher, whole
from tests.training.workers import process_group
from trimtab.errors import TrimtabError
from trimtab.masks.mask import Mask
from trimtab.measure.tracked import read_steps, read_tracked
from trimtab.training import SparseAdamW
from trimtab.training.tracker.callback import UpdateTracker

STEPS = 4


def run(rank: int, world: int, folder: Path) -> None:
    """One process: every scenario in turn."""
    with process_group(rank, world, folder / "rendezvous"):
        found = {scenario.__name__: scenario(folder) for scenario in SCENARIOS}
        torch.save(found, folder / f"results-{rank}.pt")


def new_model(dtype: torch.dtype, *, sharded: bool = True) -> Any:
    """The tiny model; layers are sharded on their own, the rest together."""
    model = tiny.model().to(torch.bfloat16).to(dtype)
    if sharded:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)


def train(
    tracker: UpdateTracker, watcher: Watcher, model: Any, optimizer: Any, steps: range
) -> None:
    """Call back as a Trainer does."""
    state = SimpleNamespace(global_step=steps.start, max_steps=STEPS, log_history=[])
    shared = (SimpleNamespace(load_best_model_at_end=False), state)
    more = {"model": model, "optimizer": optimizer}
    for callback in (tracker, watcher):
        callback.on_train_begin(*shared, SimpleNamespace(should_save=False), **more)
    for step in steps:
        generator = torch.Generator().manual_seed(10 * step + dist.get_rank())
        ids = torch.randint(2, 15, (2, 6), generator=generator)
        model(input_ids=ids, labels=ids).loss.backward()
        for callback in (watcher, tracker):
            callback.on_pre_optimizer_step(*shared, None, **more)
        optimizer.step()
        for callback in (watcher, tracker):
            callback.on_optimizer_step(*shared, None, **more)
        optimizer.zero_grad()
        model.zero_grad()
        state.global_step += 1
        tracker.on_step_end(*shared, SimpleNamespace(should_save=False), **more)
    tracker.on_train_end(*shared, None, **more)


def gradient(optimizer: Any, name: str, parameter: Tensor) -> Tensor | None:
    return None if parameter.grad is None else whole(parameter.grad)


def exp_avg(optimizer: Any, name: str, parameter: Tensor) -> Tensor:
    return whole(optimizer.state[parameter]["exp_avg"])


def outcome(path: Path, watcher: Watcher) -> dict[str, Any]:
    """What the file says, and what it should say; plain data."""
    dist.barrier()
    counts, figures = watcher.expected()
    points = read_tracked(path).points
    return {
        "found": [_plain(point.by_kind) for point in points],
        "expected": [_plain(one) for one in counts],
        "figures": [(step, _plain(by_kind)) for step, by_kind in read_steps(path)],
        "expected_figures": [(step, _plain(by_kind)) for step, by_kind in figures],
        "norms": [(one.total.step_norm, one.total.update_norm) for one in read_steps(path)],
        "expected_norms": watcher.norms(),
        "left": sorted(one.name for one in path.parent.iterdir() if one.name.startswith(path.name)),
    }


def _plain(by_kind: Any) -> dict[str, list[Any]]:
    return {kind: list(item) for kind, item in by_kind.items()}


def sharded_fp32(folder: Path) -> dict[str, Any]:
    model = new_model(torch.float32)
    watcher = Watcher(torch.bfloat16, gradient, exp_avg)
    path = folder / "fp32"
    train(UpdateTracker(path), watcher, model, adamw(model), range(STEPS))
    return outcome(path, watcher)


def sharded_masked(folder: Path) -> dict[str, Any]:
    """bf16 with masters; what is asked of the elements of the mask is not looked at here."""
    model = new_model(torch.bfloat16)
    mask = Mask.from_arrays(tiny_trainers.arrays(model, 0.3))
    optimizer = SparseAdamW(model.named_parameters(), mask, lr=3e-4)
    watcher = Watcher(torch.bfloat16, lambda *_: None, lambda *_: None)
    path = folder / "masked"
    train(UpdateTracker(path), watcher, model, optimizer, range(STEPS))
    return {**outcome(path, watcher), "selected": mask.num_selected()}


def resumed(folder: Path) -> dict[str, Any]:
    model = new_model(torch.float32)
    optimizer = adamw(model)
    watcher = Watcher(torch.bfloat16, gradient, exp_avg)
    path = folder / "resumed"
    for steps in (range(2), range(2, STEPS)):
        train(UpdateTracker(path), watcher, model, optimizer, steps)
    return outcome(path, watcher)


def refused(folder: Path) -> list[str]:
    """Every process refuses what one of them finds."""
    model = new_model(torch.float32)
    watcher = Watcher(torch.bfloat16, gradient, exp_avg)
    path = folder / "refused"
    message = []
    train(UpdateTracker(path), watcher, model, adamw(model), range(2))
    if dist.get_rank() == 1:
        (folder / "refused.base-1").write_bytes(b"other")
    dist.barrier()
    for tracker, start in ((UpdateTracker(path), 0), (UpdateTracker(path), 2)):
        try:
            train(tracker, watcher, model, adamw(model), range(start, STEPS))
        except TrimtabError as error:
            message.append(str(error))
        dist.barrier()
    return message


def copies(folder: Path) -> dict[str, Any]:
    """A model that is not sharded is tracked by the first process alone."""
    model = new_model(torch.float32, sharded=False)
    watcher = Watcher(torch.bfloat16, gradient, exp_avg)
    path = folder / "copies"
    train(UpdateTracker(path), watcher, model, adamw(model), range(STEPS))
    return outcome(path, watcher)


SCENARIOS = (sharded_fp32, sharded_masked, resumed, refused, copies)
