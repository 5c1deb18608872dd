"""What the processes of `test_several_processes` do: run the blocks of a page, one by one."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import xxhash
from torch import Tensor

from tests.docs import world
from tests.training import tiny_trainers
from trimtab.masks.mask import Mask

PAGE = "docs/distributed.md"
STEPS = 2


def run(rank: int, num: int, shelf: Path, folder: Path) -> None:
    """One process: the copies, the shards, and the checkpoint of the shards."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    copies, shards, save, load = world.replaced(PAGE, "python")
    mask = Mask.load(shelf / "mask.safetensors")
    start = weights_of(new_model(shelf))
    names: dict[str, Any] = {
        "load_model": lambda: new_model(shelf),
        "loss": loss,
        "mask": mask,
        "my_part_of_the_batches": my_part(rank),
        "meeting": {
            "init_method": f"file://{folder / 'meeting'}",
            "rank": rank,
            "world_size": num,
            "timeout": datetime.timedelta(seconds=60),
        },
    }
    exec(copies, names)
    of_copies = weights_of(names["model"])
    assert_trained(start, of_copies, mask)

    shard(names, shards, shelf)
    for batch in names["my_part_of_the_batches"]:
        loss(names["model"], batch).backward()  # type: ignore[no-untyped-call]
        names["optimizer"].step()
    of_shards = weights_of(names["model"])
    assert_trained(start, of_shards, mask)
    names["folder"] = folder / "checkpoint"
    exec(save, names)
    shard(names, shards, shelf)
    exec(load, names)
    tiny_trainers.assert_same_bits(weights_of(names["model"]), of_shards)
    (folder / f"done-{rank}").write_text(f"{digest(of_copies)} {digest(of_shards)}")
    dist.destroy_process_group()


def shard(names: dict[str, Any], shards: str, shelf: Path) -> None:
    """A new model and its optimizer, as the page shards them."""
    names["model"] = new_model(shelf)
    exec(shards, names)


def new_model(shelf: Path) -> Any:
    return tiny_trainers.model(shelf / "base", "float32")


def my_part(rank: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return [torch.randint(2, 15, (2, 6), generator=generator) for _ in range(STEPS)]


def loss(model: Any, batch: Tensor) -> Tensor:
    return model(input_ids=batch, labels=batch).loss


def weights_of(model: Any) -> dict[str, Tensor]:
    """The whole parameters, of shards, too."""
    return {
        name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()
        for name, p in model.named_parameters()
    }


def assert_trained(before: dict[str, Tensor], after: dict[str, Tensor], mask: Mask) -> None:
    """Weights moved, and none outside the mask."""
    moved = tiny_trainers.moved(before, after)
    assert any(item.any() for item in moved.values())
    for name, item in moved.items():
        outside = ~mask.array(name) if name in mask else np.ones(item.shape, bool)
        assert not (item & outside).any(), name


def digest(weights: dict[str, Tensor]) -> str:
    return xxhash.xxh3_128(
        b"".join(tensor.numpy().tobytes() for tensor in weights.values())
    ).hexdigest()
