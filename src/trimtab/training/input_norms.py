"""How large the inputs of each matrix of a model are, measured on texts: what Wanda prunes by.

Every linear layer is watched by a hook while the model reads, one passage at a time and unpadded;
the squares of its inputs are added up by feature, over all tokens.

Source:
    Sun, Liu, Bair and Kolter 2024 (arXiv 2306.11695), sec. 3: the L2 norm of a feature over the
    tokens of all calibration sequences (theirs are 128 sequences of C4).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.errors import CheckpointError
from trimtab.masks.wanda import InputNorms
from trimtab.progress import progress_bars, stage
from trimtab.results.records import made_now
from trimtab.training import runtime
from trimtab.training.evaluation.answering import load_model, load_tokenizer
from trimtab.training.evaluation.forgetting import passage_length, pieces, read_text
from trimtab.training.runs.base_model import open_base
from trimtab.training.runs.data import prompt_ids, read_rows

if TYPE_CHECKING:
    from rich.progress import Progress
    from torch import Tensor


def measure_input_norms(
    checkpoint: str | os.PathLike[str],
    *,
    text: Path | None = None,
    prompts: Path | None = None,
    progress: Progress | None = None,
) -> InputNorms:
    """Have a model read, and measure the inputs of its linear layers.

    A layer that no token reached, as an expert that was never chosen, is left out; so are stacks
    of experts in one tensor, whose inputs differ.

    Args:
        checkpoint: A folder, or a hub id with an optional `@revision`.
        text: A text file, with empty lines between its passages; None for trimtab's neutral text.
        prompts: A JSON Lines file whose rows have a `prompt`, read in place of a text.
        progress: A running display to add a line to; by default an own one on stderr.

    Raises:
        CheckpointError: The model cannot be used, or its inputs are not finite.
        SettingsError: The text or the prompts cannot be used.
        MissingExtraError: A package is missing.
    """
    runtime.start(offline=False)
    of = open_base(os.fspath(checkpoint), Path())
    tokenizer = load_tokenizer(of.folder)
    length = passage_length(of.folder)
    read: dict[str, Any]
    if prompts is None:
        told = read_text(text)
        passages = pieces(tokenizer, told, length)
        read = told.describe()
    else:
        rows = read_rows(prompts, ("prompt",))
        passages = [prompt_ids(tokenizer, row["prompt"])[:length] for row in rows.rows]
        read = {"source": rows.source, "xxh3_128": rows.digest}
    dtype = of.training_dtype(None)
    with ExitStack() as stack:
        bars = progress or stack.enter_context(progress_bars())
        stack.enter_context(runtime.quiet())
        device = runtime.accelerator()
        model = load_model(of, dtype, device)
        line = stack.enter_context(stage(bars, "input norms", len(passages)))
        vectors = _measured(model, passages, lambda done: line.step(done, {}))
    stored = of.layout_of(model).stored_name
    kept = {stored[n]: vector for n, vector in vectors.items() if stored.get(n) in of.tensors}
    if wrong := [name for name, vector in kept.items() if not vector.isfinite().all()]:
        raise CheckpointError(f"{of.record.id}: the inputs of {wrong[0]} are not finite")
    return InputNorms(
        {name: vector.float().numpy() for name, vector in kept.items()},
        made_now(
            base=of.record.to_dict(),
            read={
                **read,
                "num_passages": len(passages),
                "num_tokens": sum(map(len, passages)),
                "max_passage_tokens": length,
            },
            dtype=dtype,
            device=runtime.device(device),
            versions=runtime.versions(),
        ),
    )


def _measured(
    model: Any, passages: Sequence[Sequence[int]], done: Callable[[int], None]
) -> dict[str, Tensor]:
    """Name of each weight of a linear layer -> fp64 norms of its inputs."""
    import torch

    sums: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[Any, tuple[Tensor, ...]], None]:
        def add(module: Any, inputs: tuple[Tensor, ...]) -> None:
            features = inputs[0].detach().flatten(0, -2)
            if len(features):
                squares = features.float().square().sum(0).cpu().double()
                sums[name] = sums[name] + squares if name in sums else squares

        return add

    hooks = [
        module.register_forward_pre_hook(watch(f"{name}.weight"))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    try:
        with torch.inference_mode():
            for number, ids in enumerate(passages, start=1):
                model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False)
                done(number)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: squares.sqrt() for name, squares in sums.items()}
