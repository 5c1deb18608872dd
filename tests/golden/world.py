"""The folder that the commands of the golden files are typed in, and what they leave."""

from __future__ import annotations

import json
import shutil
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from shlex import split
from typing import NamedTuple
from zlib import crc32

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.golden.cases import BEFORE
from trimtab.cli import main

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


class Printed(NamedTuple):
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


def typed(command: str, printed: Printed) -> str:
    """A command with what it printed, as in a terminal; each line of stderr has a mark."""
    errors = "".join(f"! {line}\n" for line in printed.err.splitlines())
    code = f"[{printed.code}]\n" if printed.code else ""
    return f"$ trimtab {command}\n{printed.out}{errors}{code}"


def make_world() -> str:
    """Put what the commands name into the current folder; the text of what did it."""
    text = "".join(typed(command, type_in(command)) + "\n" for command in BEFORE)
    make_gaps()
    shutil.copytree(HERE / "inputs", "inputs")
    shutil.copytree(ROOT / "papers", "papers")
    Path("m").mkdir()
    return text


def make_gaps() -> None:
    """A checkpoint that does not fit the base in every way that is allowed."""
    Path("gaps").mkdir()
    config = json.loads(Path("base/config.json").read_text("utf-8"))
    Path("gaps/config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = load_file("tuned/model.safetensors")
    embed = tensors["model.embed_tokens.weight"]
    tensors["model.embed_tokens.weight"] = np.concatenate([embed, embed[:3]])
    tensors["model.model.norm.weight"] = tensors.pop("model.norm.weight")
    tensors["model.extra.weight"] = tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, "gaps/model.safetensors")


def bits_of(path: Path) -> str:
    """What a mask file selects, below its name: of each tensor the packed bits, as a checksum."""
    lines = [
        f"  {crc32(tensor.tobytes()):08x} {tensor.dtype} {list(tensor.shape)} {name}"
        for name, tensor in sorted(load_file(path).items())
    ]
    return "\n".join([str(path), *lines, ""])


def type_in(command: str) -> Printed:
    """Type a command, without `trimtab`, in this process."""
    with (
        redirect_stdout(StringIO()) as out,
        redirect_stderr(StringIO()) as err,
        pytest.raises(SystemExit) as stop,
    ):
        main(split(command))
    assert isinstance(stop.value.code, int)
    return Printed(stop.value.code, out.getvalue(), err.getvalue())
