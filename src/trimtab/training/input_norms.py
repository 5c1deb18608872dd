"""Norms of the input features of each linear layer on calibration texts: what Wanda prunes by.

A hook on every linear layer sums the squares of its inputs by feature, over all tokens; passages
are fed one at a time, without padding.

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
    """Run a model on texts and measure the inputs of its linear layers.

    Layers that no token reached, such as an expert that was never chosen, are left out, and so are
    experts that are stacked in one tensor, because their inputs differ.

    Args:
        checkpoint: A folder, or a hub id with an optional `@revision`.
        text: A text file with empty lines between passages; None for trimtab's neutral text.
        prompts: A JSON Lines file whose rows have a `prompt`, used instead of a text.
        progress: A running display to add a line to; by default a new one on stderr.

    Raises:
        CheckpointError: The model cannot be used, or its inputs are not finite.
        SettingsError: The text or the prompts cannot be used.
        MissingExtraError: A package is missing.
    """
    runtime.start(offline=False)
    base = open_base(os.fspath(checkpoint), Path())
    tokenizer = load_tokenizer(base.folder)
    length = passage_length(base.folder)
    read: dict[str, Any]
    if prompts is None:
        passage_text = read_text(text)
        passages = pieces(tokenizer, passage_text, length)
        read = passage_text.describe()
    else:
        rows = read_rows(prompts, ("prompt",))
        passages = [prompt_ids(tokenizer, row["prompt"])[:length] for row in rows.rows]
        read = {"source": rows.source, "xxh3_128": rows.digest}
    dtype = base.training_dtype(None)
    with ExitStack() as stack:
        bars = progress or stack.enter_context(progress_bars())
        stack.enter_context(runtime.quiet())
        device = runtime.accelerator()
        model = load_model(base, dtype, device)
        line = stack.enter_context(stage(bars, "input norms", len(passages)))
        vectors = _measured(model, passages, lambda done: line.step(done, {}))
    stored = base.layout_of(model).stored_name
    norms = {stored[n]: vector for n, vector in vectors.items() if stored.get(n) in base.tensors}
    if wrong := [name for name, vector in norms.items() if not vector.isfinite().all()]:
        raise CheckpointError(f"{base.record.id}: the inputs of {wrong[0]} are not finite")
    return InputNorms(
        {name: vector.float().numpy() for name, vector in norms.items()},
        made_now(
            base=base.record.to_dict(),
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
    """Return the fp64 norms of the inputs of each linear layer, by name of its weight."""
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
