"""The files that measures are read from: each is made by one command, once, beside its cell."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimtab.errors import ResultFormatError, TrimtabError
from trimtab.inputs import MAX_RESULT_BYTES, read_json
from trimtab.masks.overlap import overlap
from trimtab.outputs import write_text
from trimtab.papers.cells import Cell
from trimtab.papers.library import Trial
from trimtab.papers.measures import MEASURES
from trimtab.results.statistics import PAIR

__all__ = ["SOURCES", "Command", "Measuring"]

Command = Callable[[Sequence[str], Path], int]
"""Runs `trimtab` with some arguments, its talk going to a log; returns its exit code."""

OVERLAPS = "overlaps"


def _compare(cell: Cell) -> list[str]:
    # fp32 weights are compared as such: fp32 has every value of the base.
    cast = ["--cast", "fp32"] if cell.is_saved_as_fp32 else []
    return ["compare", str(cell.start), str(cell.model), *cast]


def _evaluate(cell: Cell) -> list[str]:
    asked = cell.scale.evaluate
    return [
        *("evaluate", str(cell.base), str(cell.model), "--data", str(cell.questions)),
        *("--verifier", "regex", "--pattern", asked.pattern, "--max-tokens", str(asked.max_tokens)),
        *("--samples", str(asked.samples), "--seed", str(cell.seed)),
    ]


def _identity(cell: Cell) -> list[str]:
    (full,) = (other for other in cell.needs() if other.arm.name == cell.arm.of)
    checkpoints = map(str, (cell.base, full.model, cell.model))
    return ["identity", *checkpoints, "--mask", str(cell.mask)]


def _trajectory(cell: Cell) -> list[str]:
    return ["trajectory", str(cell.result.with_name("updates.trimtab"))]


SOURCES: Mapping[str, Callable[[Cell], list[str]]] = {
    "comparison": _compare,
    "rank": lambda cell: [*_compare(cell), "--rank"],
    "geometry": lambda cell: [*_compare(cell), "--geometry"],
    "evaluation": _evaluate,
    "identity": _identity,
    "trajectory": _trajectory,
}
"""Name of a file -> the command that makes it."""


@dataclass(frozen=True)
class Measuring:
    """Makes what is missing and reads figures.

    Attributes:
        command: Runs `trimtab`.
    """

    command: Command
    _read: dict[Path, Any] = field(default_factory=dict, repr=False)

    def values(self, trial: Trial, cells: Mapping[str, Sequence[Cell]]) -> dict[str, Any]:
        """The figures of a trial.

        Args:
            trial: The trial.
            cells: Arm -> its cells that are trained, one for each seed.

        Returns:
            `values` and, if it has another arm to subtract, `other_values`: seed -> figure; for an
            overlap, both seeds.
        """
        if trial.other is not None:
            return {"values": self._overlaps(trial, cells)}
        values = {"values": self._figures(trial, cells[trial.arm])}
        if trial.than is not None:
            values["other_values"] = self._figures(trial, cells[trial.than])
        return values

    def _figures(self, trial: Trial, cells: Sequence[Cell]) -> dict[str, float]:
        return {
            str(cell.seed): _figure(trial, self.read(cell, MEASURES[trial.measure].source), cell)
            for cell in cells
        }

    def _overlaps(self, trial: Trial, cells: Mapping[str, Sequence[Cell]]) -> dict[str, float]:
        """Of masks of one arm, every two seeds; of those of two arms, the same seed of both."""
        assert trial.other is not None
        first, second = cells[trial.arm], cells[trial.other]
        pairs = [
            (one, two)
            for one in first
            for two in second
            if (one.seed < two.seed if trial.arm == trial.other else one.seed == two.seed)
        ]
        return {
            str(one.seed) if one.seed == two.seed else f"{one.seed}{PAIR}{two.seed}": _figure(
                trial, self._overlap(one, two), one
            )
            for one, two in pairs
        }

    def read(self, cell: Cell, source: str) -> Any:
        """The content of a file of a trained cell, made if it is not there.

        Raises:
            TrimtabError: The command that makes it failed.
        """
        if source == "result":
            return self._json(cell.result)
        path = cell.folder / f"{source}.json"
        if not path.exists():
            self.run([*SOURCES[source](cell), "-o", str(path)], cell)
        return self._json(path)

    def run(self, arguments: Sequence[str], cell: Cell) -> None:
        """Run a command for a cell.

        Raises:
            TrimtabError: It failed; the end of its log says why.
        """
        log = cell.folder / "log.txt"
        if self.command(arguments, log):
            said = [line for line in log.read_text("utf-8").splitlines() if line.strip()]
            raise TrimtabError(f"{cell.name}: trimtab {arguments[0]}: {said[-1] if said else log}")

    def _overlap(self, one: Cell, two: Cell) -> Any:
        names = (cell.name.replace("/seed-", "-") for cell in (one, two))
        path = one.root / OVERLAPS / f"{'--'.join(names)}.json"
        if not path.exists():
            told = overlap(one.changed, two.changed, base=one.base).to_dict()
            write_text(path, json.dumps(told, indent=1) + "\n", force=True)
        return self._json(path)

    def _json(self, path: Path) -> Any:
        if path not in self._read:
            self._read[path] = read_json(path, ResultFormatError, limit=MAX_RESULT_BYTES)
        return self._read[path]


def _figure(trial: Trial, data: Any, cell: Cell) -> float:
    measure = MEASURES[trial.measure]
    try:
        return measure.read(data, **trial.settings)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise TrimtabError(
            f"{cell.name}: no {trial.measure} can be read from its {measure.source} ({error!r})"
        ) from None
