"""What the processes of `test_sharded` do: a sharded model is tuned and written as a delta."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests.training import architectures, tiny
from tests.training.workers import process_group
from trimtab.errors import TrimtabError
from trimtab.training import DeltaPublisher, load_delta, runtime, save_delta


def run(rank: int, world: int, folder: Path) -> None:
    """One process: every model in turn."""
    with process_group(rank, world, folder / "rendezvous"):
        said = {name: one(folder / name, build()) for name, build in MODELS.items()}
        torch.save(said, folder / f"said-{rank}.pt")


MODELS: dict[str, Callable[[], Any]] = {
    "tied": tiny.model,
    "Mixtral": lambda: architectures.build("Mixtral"),
}
"""Mixtral keeps all experts of a layer in one parameter, and files store them one by one."""


def one(folder: Path, model: Any) -> list[str]:
    """Save the base and the tuned model whole, and a delta of the sharded one; what is refused."""
    torch.manual_seed(0)
    model = model.to(torch.bfloat16)
    for parameter in model.parameters():
        dist.broadcast(parameter.data, 0)
    if dist.get_rank() == 0:
        with runtime.quiet():
            model.save_pretrained(folder / "base")
            for parameter in model.parameters():
                parameter.data.mul_(1.01)
            model.save_pretrained(folder / "tuned")
            for parameter in model.parameters():
                parameter.data.zero_()
    dist.barrier()
    with runtime.quiet():
        tuned = type(model).from_pretrained(folder / "tuned", dtype="auto")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in tuned.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(tuned, mesh=mesh)
    manifest = save_delta(tuned, folder / "base", folder / "x.delta")
    said = [manifest.result.content_hash]
    with DeltaPublisher(folder / "run", base=folder / "base") as publisher:
        said.append(f"version {publisher.publish(tuned)}")
    with runtime.quiet():
        whole = type(model).from_pretrained(folder / "tuned", dtype="auto")
    with DeltaPublisher(folder / "ddp") as publisher:
        number = publisher.publish(DistributedDataParallel(whole))
        assert number == (0 if dist.get_rank() == 0 else None)
    for action in (
        lambda: save_delta(tuned, folder / "base", folder / "x.delta"),
        lambda: load_delta(tuned, folder / "x.delta"),
    ):
        try:
            action()
        except TrimtabError as error:
            said.append(str(error))
    return said
