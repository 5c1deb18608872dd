"""What the processes of `test_distributed` do: each scenario returns what its process saw.

One set of processes runs all scenarios in turn, because a process takes seconds to start.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from tests.training.optimizers.reference import random_mask
from tests.training.workers import process_group
from trimtab.errors import TrimtabError
from trimtab.masks.mask import Mask
from trimtab.training import SparseAdamW
from trimtab.training.optimizers.sparse import SparseOptimizer

STEPS = 4
MICROBATCHES = 2
BATCH = 8
SETTINGS: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1, "max_grad_norm": 0.5}


class Model(nn.Module):
    """9 rows are uneven on 2 and 4 processes; of 3 rows, one of 4 processes has none."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 9)
        self.free = nn.Linear(9, 9)
        self.second = nn.Linear(9, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(torch.tanh(self.free(torch.tanh(self.first(inputs)))))


def new_model(dtype: torch.dtype = torch.float32) -> Model:
    torch.manual_seed(0)
    return Model().to(dtype)


def new_mask(seed: int = 0) -> Mask:
    """Masks with the same number of elements in each tensor, whatever the seed."""
    shapes = {
        name: tuple(p.shape)
        for name, p in new_model().named_parameters()
        if not name.startswith("free")
    }
    mask = random_mask(shapes, 0.5)
    return mask.random_like(seed) if seed else mask


def batches(step: int, rank: int, world: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The microbatches of a step, or the part of them that a process has."""
    generator = torch.Generator().manual_seed(step)
    for _ in range(MICROBATCHES):
        inputs = torch.randn(BATCH, 5, generator=generator)
        targets = torch.randn(BATCH, 3, generator=generator)
        yield inputs[rank::world], targets[rank::world]


def train(
    model: nn.Module,
    optimizer: SparseOptimizer,
    steps: range,
    rank: int = 0,
    world: int = 1,
    *,
    before: Callable[[bool], None] = lambda last: None,
    freed_from: int = 0,
) -> list[float | None]:
    """Take steps; returns the norms of their gradients.

    Args:
        model: The model.
        optimizer: Its optimizer.
        steps: Numbers of the steps, which decide their batches.
        rank: Which part of each batch to take.
        world: Of how many.
        before: Called before each microbatch, with whether it is the last of a step.
        freed_from: The first step in which the optimizer frees gradients at once.
    """
    norms = []
    for step in steps:
        for number, (inputs, targets) in enumerate(batches(step, rank, world)):
            before(number == MICROBATCHES - 1)
            dtype = next(model.parameters()).dtype
            loss = (model(inputs.to(dtype)) - targets.to(dtype)).square().mean() / MICROBATCHES
            loss.backward()
            kept = [name for name, p in model.named_parameters() if p.grad is not None]
            if optimizer._clip_by == "masked" and step >= freed_from:
                assert not [name for name in kept if name in optimizer.elements or not freed_from]
            else:
                assert kept
        optimizer.step()
        model.zero_grad()
        norms.append(optimizer.grad_norm)
    return norms


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: whole(p.detach()).clone() for name, p in model.named_parameters()}


def whole(tensor: Tensor) -> Tensor:
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def result(model: nn.Module, norms: list[float | None], optimizer: SparseOptimizer) -> Any:
    return {"weights": weights_of(model), "norms": norms, "describe": optimizer.describe()}


def refusal(attempt: Callable[[], object]) -> str:
    """What is said when something is refused; all processes must come back."""
    try:
        attempt()
    except TrimtabError as error:
        return str(error)
    return "not refused"


# Copies of the model in every process.


def copies(rank: int, world: int, **more: Any) -> Any:
    model = new_model()
    optimizer = SparseAdamW(model.named_parameters(), new_mask(), **SETTINGS, **more)
    return result(model, train(model, optimizer, range(STEPS), rank, world), optimizer)


def copies_clipped_by_full_norm(rank: int, world: int) -> Any:
    return copies(rank, world, clip_by="full")


def copies_in_ddp(rank: int, world: int) -> Any:
    """The reducer runs although nothing needs it."""
    model = new_model()
    optimizer = SparseAdamW(model.named_parameters(), new_mask(), **SETTINGS)
    wrapped = DistributedDataParallel(model)
    norms = []
    for step in range(STEPS):
        for inputs, targets in batches(step, rank, world):
            ((wrapped(inputs) - targets).square().mean() / MICROBATCHES).backward()
        optimizer.step()
        norms.append(optimizer.grad_norm)
    return result(model, norms, optimizer)


def gradient_in_one_process(rank: int, world: int) -> Any:
    """As with an expert that gets tokens in one process only."""
    model = new_model()
    optimizer = SparseAdamW(model.named_parameters(), new_mask(), **SETTINGS)
    outputs = model.second(torch.ones(1, 9)) if rank == 0 else model.first(torch.ones(1, 5))
    outputs.sum().backward()
    optimizer.step()
    return result(model, [optimizer.grad_norm], optimizer)


def no_gradient_at_all(rank: int, world: int) -> Any:
    model = new_model()
    optimizer = SparseAdamW(model.named_parameters(), new_mask(), **SETTINGS)
    optimizer.step()
    return result(model, [optimizer.grad_norm], optimizer)


def one_process_by_itself(rank: int, world: int) -> Any:
    """A group of one: nothing is averaged."""
    groups = [dist.new_group([member]) for member in range(world)]
    model = new_model()
    optimizer = SparseAdamW(
        model.named_parameters(), new_mask(), **SETTINGS, process_group=groups[rank]
    )
    return result(model, train(model, optimizer, range(STEPS)), optimizer)


def nan_in_one_process(rank: int, world: int) -> Any:
    return nan_in(new_model(), rank)


def nan_in(model: nn.Module, rank: int) -> Any:
    """The last process has a NaN: all raise, and all skip."""
    inputs = torch.full((1, 5), float("nan") if rank == dist.get_world_size() - 1 else 1.0)
    optimizer = SparseAdamW(model.named_parameters(), new_mask(), **SETTINGS)
    model(inputs).sum().backward()
    message = refusal(optimizer.step)
    optimizer.close()
    optimizer = SparseAdamW(model.named_parameters(), new_mask(), **SETTINGS, nonfinite="skip")
    model(inputs).sum().backward()
    optimizer.step()
    return {"said": message, "skipped": optimizer.num_skipped_steps, "weights": weights_of(model)}


def refused_disagreement(rank: int, world: int) -> Any:
    model = new_model()
    named = model.named_parameters
    with torch.no_grad():
        model.free.weight[0, 0] += rank
        model.second.bias[0] += rank
    message = [refusal(lambda: SparseAdamW(named(), new_mask(), lr=0.1))]
    message.append(
        refusal(lambda: SparseAdamW(new_model().named_parameters(), new_mask(rank), lr=1))
    )
    wrapped = DistributedDataParallel(new_model())
    message.append(refusal(lambda: SparseAdamW(wrapped.named_parameters(), new_mask(), lr=0.1)))
    return message


def traffic(rank: int, world: int) -> Any:
    """Bytes that a step sends."""
    model = nn.Linear(400, 300, bias=False)
    nn.init.ones_(model.weight)
    mask = random_mask({"weight": (300, 400)}, 0.05)
    optimizer = SparseAdamW(model.named_parameters(), mask, lr=0.01)
    model(torch.ones(1, 400)).sum().backward()
    with patch.object(dist, "all_reduce", wraps=dist.all_reduce) as sent:
        optimizer.step()
    return {
        "bytes": sum(call.args[0].nbytes for call in sent.call_args_list),
        "selected": mask.num_selected(),
    }


# Parameters sharded by FSDP2.


def sharded(dtype: torch.dtype = torch.float32, mesh: Any = None) -> Model:
    model = new_model(dtype)
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for part in (model.first, model.second, model):
        fully_shard(part, mesh=mesh, mp_policy=policy)
    return model


def fsdp(rank: int, world: int, mesh: Any = None, **more: Any) -> Any:
    model = sharded(mesh=mesh)
    optimizer = SparseAdamW(model.named_parameters(), new_mask(), **SETTINGS, **more)
    return result(model, train(model, optimizer, range(STEPS), rank, world), optimizer)


def fsdp_clipped_by_full_norm(rank: int, world: int) -> Any:
    return fsdp(rank, world, clip_by="full")


def fsdp_without_sync(rank: int, world: int) -> Any:
    """Gradients are reduced once a step, in the last microbatch."""
    model = sharded()
    optimizer = SparseAdamW(model.named_parameters(), new_mask(), **SETTINGS)
    assert isinstance(model, FSDPModule)
    before = model.set_requires_gradient_sync
    norms = train(model, optimizer, range(STEPS), rank, world, before=before)
    return result(model, norms, optimizer)


def fsdp_with_ignored_parameters(rank: int, world: int) -> Any:
    """Those are copies, which nobody else averages."""
    model = new_model()
    fully_shard(model, ignored_params={*model.second.parameters()})
    assert not hasattr(model.second.weight, "placements")
    optimizer = SparseAdamW(model.named_parameters(), new_mask(), **SETTINGS)
    return result(model, train(model, optimizer, range(STEPS), rank, world), optimizer)


def hybrid(rank: int, world: int) -> Any:
    """HSDP: sharded in a row of the mesh, copied between the rows."""
    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("copy", "shard"))
    return fsdp(rank, world, mesh=mesh)


def fsdp_bf16(rank: int, world: int) -> Any:
    """Every process has the whole batch, so that the mean of their bf16 gradients is exact."""
    model = sharded(torch.bfloat16)
    optimizer = SparseAdamW(model.named_parameters(), new_mask(), **SETTINGS)
    return result(model, train(model, optimizer, range(STEPS)), optimizer)


def fsdp_nan(rank: int, world: int) -> Any:
    return nan_in(sharded(), rank)


def fsdp_by_columns(rank: int, world: int) -> Any:
    """Sharded along the second dimension of one weight, which has to be even."""
    model = new_model()
    model.first = nn.Linear(8, 9)
    fully_shard(model, shard_placement_fn=lambda p: Shard(1) if p.shape == (9, 8) else None)
    mask = Mask.from_arrays({"first.weight": np.arange(72).reshape(9, 8) % 3 == 0})
    optimizer = SparseAdamW(model.named_parameters(), mask, lr=0.01)
    model(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    moved = weights_of(model)["first.weight"]
    return {"moved": moved, "said": refusal(optimizer.sharded_state_dict)}


def fsdp_over_tensor_parallelism(rank: int, world: int) -> str:
    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("data", "tensor"))
    model = new_model()
    parallelize_module(model.first, mesh["tensor"], ColwiseParallel())
    fully_shard(model.first, mesh=mesh["data"])
    parameters = {f"first.{name}": p for name, p in model.first.named_parameters()}
    array = np.arange(45).reshape(9, 5) % 3 == 0
    mask = Mask.from_arrays({"first.weight": array})
    return refusal(lambda: SparseAdamW(parameters.items(), mask, lr=0.01))


def sharded_after_construction(**more: Any) -> tuple[Model, SparseAdamW]:
    model = new_model()
    optimizer = SparseAdamW(model.named_parameters(), new_mask(), **SETTINGS, **more)
    for part in (model.first, model.second, model):
        fully_shard(part)
    return model, optimizer


def rebound(rank: int, world: int) -> Any:
    model, optimizer = sharded_after_construction()
    optimizer.rebind(model.named_parameters())
    found = result(model, train(model, optimizer, range(STEPS), rank, world), optimizer)
    return found | {"late": refusal(lambda: optimizer.rebind(model.named_parameters()))}


def replaced_parameters(rank: int, world: int) -> Any:
    """accelerate's order: optimizer, wrap, swap."""
    model, optimizer = sharded_after_construction()
    swap(model, optimizer)
    norms = train(model, optimizer, range(STEPS), rank, world, freed_from=1)
    found = result(model, norms, optimizer)
    model, optimizer = sharded_after_construction(clip_by="full")
    swap(model, optimizer)
    return found | {"full": refusal(optimizer.step)}


def swap(model: nn.Module, optimizer: SparseOptimizer) -> None:
    parameters = dict(model.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [parameters[name] for name in group["param_names"]]


# Checkpoints, in bf16.


def start(seed: int = 0, folder: Path | None = None) -> tuple[Model, SparseAdamW]:
    """Sharded model and optimizer, as new or as a checkpoint has them."""
    model = sharded(torch.bfloat16)
    optimizer = SparseAdamW(model.named_parameters(), new_mask(seed), **SETTINGS)
    if folder is not None:
        load(folder, model, optimizer)
    return model, optimizer


def save(folder: Path, model: nn.Module, optimizer: SparseOptimizer) -> None:
    content = {"model": model.state_dict(), "optimizer": optimizer.sharded_state_dict()}
    dcp_save(content, checkpoint_id=folder)


def load(folder: Path, model: nn.Module, optimizer: SparseOptimizer, **more: Any) -> None:
    content = {"model": model.state_dict(), "optimizer": optimizer.sharded_state_dict()}
    dcp_load(content, checkpoint_id=folder, **more)
    model.load_state_dict(content["model"])
    optimizer.load_sharded_state_dict(content["optimizer"])


def checkpoints(rank: int, world: int, folder: Path) -> Any:
    """Save after half of the steps; go on without a break, and from what was saved."""
    half = range(STEPS // 2)
    rest = range(STEPS // 2, STEPS)
    model, optimizer = start()
    train(model, optimizer, half)
    save(folder / f"from-{world}", model, optimizer)
    own = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
    train(model, optimizer, rest)
    found: dict[str, Any] = {"without_break": weights_of(model)}

    model, optimizer = start(folder=folder / f"from-{world}")
    found["lr"] = optimizer.param_groups[0]["lr"]
    train(model, optimizer, rest)
    found["resumed"] = weights_of(model)

    model, optimizer = start()
    model.load_state_dict(own[0])
    optimizer.load_state_dict(own[1])
    train(model, optimizer, rest)
    found["resumed_from_own_state"] = weights_of(model)

    message = [refusal(lambda: start(seed=1, folder=folder / f"from-{world}"))]
    torch.save(own[1], folder / f"own-{world}-{rank}.pt")
    if world == 4:
        model, optimizer = start(folder=folder / "from-2")
        save(folder / "from-2-by-4", model, optimizer)
        train(model, optimizer, rest)
        found["from_2"] = weights_of(model)
        other = torch.load(folder / f"own-2-{rank % 2}.pt", weights_only=True)
        message.append(refusal(lambda: optimizer.load_state_dict(other)))
    return found | {"said": message}


SCENARIOS: list[Callable[[int, int], Any]] = [
    copies,
    copies_clipped_by_full_norm,
    copies_in_ddp,
    gradient_in_one_process,
    no_gradient_at_all,
    one_process_by_itself,
    nan_in_one_process,
    refused_disagreement,
    fsdp,
    fsdp_clipped_by_full_norm,
    fsdp_without_sync,
    fsdp_with_ignored_parameters,
    hybrid,
    fsdp_bf16,
    fsdp_nan,
    fsdp_by_columns,
    fsdp_over_tensor_parallelism,
    rebound,
    replaced_parameters,
    traffic,
]


def run(rank: int, world: int, folder: Path) -> None:
    """Run every scenario as one of `world` processes, and save what each returned."""
    with process_group(rank, world, folder / f"meeting-{world}"):
        results = {one.__name__: one(rank, world) for one in SCENARIOS}
        results["checkpoints"] = checkpoints(rank, world, folder)
        torch.save(results, folder / f"results-{world}-{rank}.pt")
