"""The base models of the scales, made once and kept."""

from __future__ import annotations

import json
from pathlib import Path

from trimtab.outputs import new_folder
from trimtab.papers.names import BaseName
from trimtab.papers.tiny_base import make_tiny_base
from trimtab.training.smollm2 import export_base

__all__ = ["make_base"]


def make_base(name: BaseName, folder: Path) -> None:
    """Make a base checkpoint in a folder, unless it is there.

    Raises:
        TrimtabError: What it is made of is not installed.
    """
    if folder.exists():
        return
    with new_folder(folder) as draft:
        if name == "tiny":
            make_tiny_base(draft)
        else:
            export_base(draft)
            _end_with_the_line(draft)


def _end_with_the_line(folder: Path) -> None:
    r"""Make the end of a line the end token of a checkpoint.

    Questions are lines, so a completion ends where its line does. Trainers of given answers append
    the end token, and those that sample stop at it: this way both train on the same tokens, and
    nobody is taught a token that the base would never put there. No weight is touched.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    (end,) = tokenizer("\n", add_special_tokens=False)["input_ids"]
    for file, key, value in (
        ("tokenizer_config.json", "eos_token", tokenizer.convert_ids_to_tokens(end)),
        ("generation_config.json", "eos_token_id", end),
    ):
        path = folder / file
        content = json.loads(path.read_text("utf-8"))
        path.write_text(json.dumps({**content, key: value}, indent=1) + "\n", "utf-8")
