"""A base and a tuned checkpoint with every dtype, special values, and tensors of no element."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from tests.checkpoints.building import entry, file_bytes
from tests.elements.cases import edge_pair
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.elements.dtypes import DTYPES, Bits

INDEX = "model.safetensors.index.json"
OTHERS = {"config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{ }", "vocab.txt": b"a\n"}

Tensors = Mapping[str, tuple[str, Bits]]
"""Name -> dtype and bits."""


def random_bits(dtype: str, shape: tuple[int, ...], seed: int) -> Bits:
    """Any bits; of BOOL those that it has."""
    kind = DTYPES[dtype]
    raw = np.random.default_rng(seed).integers(0, 256, (*shape, kind.num_bytes), dtype=np.uint8)
    return (raw & 1 if kind.kind == "bool" else raw).view(kind.bits)[..., 0]


def pair() -> tuple[Tensors, Tensors]:
    """Base and tuned."""
    base: dict[str, tuple[str, Bits]] = {}
    tuned: dict[str, tuple[str, Bits]] = {}
    for seed, (name, dtype) in enumerate(DTYPES.items()):
        old, new = (random_bits(name, (9, 31), 2 * seed + i) for i in range(2))
        hit = np.random.default_rng(seed).random(old.shape) < 0.2
        base[f"layers.{name}.bits"] = name, old
        tuned[f"layers.{name}.bits"] = name, np.where(hit, new, old)
        if dtype.is_float:
            old, new = edge_pair(dtype)
            base[f"layers.{name}.edges"], tuned[f"layers.{name}.edges"] = (name, old), (name, new)
    for name, shape in {"scalar": (), "nothing": (0, 3), "all": (5,), "same": (4, 4)}.items():
        old = random_bits("BF16", shape, 99)
        base[name] = "BF16", old
        tuned[name] = "BF16", old if name == "same" else old ^ np.uint16(0x8000)
    return base, tuned


def save(folder: Path, tensors: Tensors, *, num_shards: int = 1) -> Path:
    """Write a checkpoint of one file, or of several with an index."""
    folder.mkdir()
    for name, content in OTHERS.items():
        (folder / name).write_bytes(content)
    names = list(tensors)
    weight_map = {}
    for number in range(num_shards):
        file = f"model-{number + 1:05d}-of-{num_shards:05d}.safetensors"
        file = "model.safetensors" if num_shards == 1 else file
        mine = names[number::num_shards]
        (folder / file).write_bytes(bytes_of(tensors, mine))
        weight_map.update(dict.fromkeys(mine, file))
    if num_shards > 1:
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def bytes_of(
    tensors: Tensors, names: Iterable[str], metadata: Mapping[str, str] | None = None
) -> bytes:
    """A safetensors file of some of the tensors."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"} if metadata is None else metadata}
    data = b""
    for name in names:
        dtype, bits = tensors[name]
        raw = bits.tobytes()
        header[name] = entry(dtype, list(bits.shape), len(data), len(data) + len(raw))
        data += raw
    return file_bytes(header, data)


def saved_pair(folder: Path, *, num_shards: int = 2) -> tuple[Path, Path]:
    """Base and tuned as folders."""
    base, tuned = pair()
    return (
        save(folder / "base", base, num_shards=num_shards),
        save(folder / "tuned", tuned, num_shards=num_shards),
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def bits_in(folder: Path) -> dict[str, Bits]:
    """Every tensor of a checkpoint."""
    with open_checkpoint(folder) as checkpoint:
        return {name: tensor.read() for name, tensor in checkpoint.tensors.items()}
