"""`trimtab mask score`."""

from __future__ import annotations

from pathlib import Path

import click

from trimtab.cli.progress import byte_progress
from trimtab.cli.results import Outputs, result_options
from trimtab.masks.prediction import score_prediction

__all__ = ["command"]


@click.command(
    "score",
    epilog="Example: trimtab mask score predicted.safetensors m.safetensors --base base/",
)
@click.argument("pred", type=click.Path(path_type=Path))
@click.argument("true", type=click.Path(path_type=Path))
@click.option(
    "--scores",
    type=click.Path(path_type=Path),
    help="The scores that PRED was selected by: judge their whole ranking.",
)
@click.option(
    "--base",
    metavar="BASE",
    help="The checkpoint that both were made against; with it, PRED is set beside random masks of "
    "its magnitudes, and beside the smallest weights.",
)
@result_options
@click.pass_obj
def command(
    typed: str, pred: Path, true: Path, scores: Path | None, base: str | None, outputs: Outputs
) -> None:
    """Ask how well the mask PRED predicts the mask TRUE.

    Precision is the share of PRED that is in TRUE, recall the share of TRUE that is in PRED, and
    average precision that of the ranking by --scores, or of PRED alone. Beside them stands the
    lift over random masks of as many elements in all, in each tensor and (with --base) in each
    tensor at each magnitude, and over as many of the smallest weights.

    Without -o, a table is printed.
    """
    with byte_progress("counting") as progress:
        result = score_prediction(pred, true, scores=scores, base=base, progress=progress)
    outputs.give(result, typed)
