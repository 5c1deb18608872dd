"""A tiny base that can read and write prose, one that was tuned from it, and the two as modules."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.training import tiny

CHARACTERS = string.ascii_letters + string.digits + string.punctuation + " \n"


class Pair(NamedTuple):
    """Folders of two checkpoints."""

    base: Path
    tuned: Path


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A base in bf16, and the same after some noise."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trimtab.training import runtime

    runtime.start()
    folder = tmp_path_factory.mktemp("pair")
    tiny.make_base(folder / "base", CHARACTERS)
    with runtime.quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model: Any = AutoModelForCausalLM.from_pretrained(folder / "base", dtype="bfloat16")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        model.save_pretrained(folder / "tuned")
        AutoTokenizer.from_pretrained(folder / "base").save_pretrained(folder / "tuned")
    return Pair(folder / "base", folder / "tuned")
