"""`Plan`: all cells of a sweep, checked before any of them trains, and how they differ.

A comparison of arms is only meaningful if they differ in nothing else. So all settings of all
cells, including defaults, are resolved, and the differences are grouped by cause: set by the sweep,
a consequence of what it sets, or neither.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from trimtab.errors import Problems
from trimtab.outputs import flat
from trimtab.training.evaluation.questions import questions_of_table
from trimtab.training.runs.base_model import BaseModel
from trimtab.training.runs.data import prompt_ids
from trimtab.training.runs.execute import state_of
from trimtab.training.runs.factors import FACTORS
from trimtab.training.runs.prepare import Run, prepare
from trimtab.training.sweeps.cell import MASK_ENDING, Cell, Examiner, cells_of, measured
from trimtab.training.sweeps.settings import SweepSettings
from trimtab.words import distinct_names

MOST_ROWS = 1000
"""Number of rows from which the mean number of tokens is estimated."""

COMPLETIONS = ("completion", "chosen", "rejected")


def work_of_a_step(run: Run) -> dict[str, Any]:
    """Sequences and tokens per optimizer step of a run.

    Returns:
        `sequences`: a pair of chosen and rejected counts as two. `tokens`: mean number of tokens
        including prompts and without padding, over the first rows of the data. `is_bound`: whether
        completions are sampled, and counted with their maximum length.
    """
    from transformers import AutoTokenizer

    args, file = run.args, run.file
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
    tokenizer = AutoTokenizer.from_pretrained(run.base.folder)
    is_sampled = run.algorithm.takes_reward or file.samples is not None
    longest = (args.max_completion_length or 0) if run.algorithm.takes_reward else None
    if file.samples is not None:
        longest = file.samples.max_completion_length
    made_of_pairs = "rejected" in run.algorithm.columns
    cut = None if run.algorithm.takes_reward else args.max_length
    lengths = [
        sum(min(n, cut or n) for n in _lengths(tokenizer, row, longest, made_of_pairs))
        for row in run.data.rows[:MOST_ROWS]
    ]
    pairs_to_singles = not made_of_pairs and not is_sampled and "rejected" in run.data.rows[0]
    mean = fmean(lengths) / (2 if pairs_to_singles else 1)
    return {
        "sequences": rows * (2 if made_of_pairs else 1),
        "tokens": round(rows * mean),
        "is_bound": is_sampled,
    }


def _lengths(
    tokenizer: Any, row: Mapping[str, Any], longest: int | None, of_pairs: bool
) -> Iterator[int]:
    """Tokens of each sequence of a row."""
    prompt = len(prompt_ids(tokenizer, row["prompt"]))
    if longest is not None:
        yield from [prompt + longest] * (2 if of_pairs else 1)
        return
    for name in COMPLETIONS:
        if name in row:
            yield prompt + len(tokenizer(_text(row[name]), add_special_tokens=False)["input_ids"])


def _text(completion: Any) -> str:
    """A completion as text; the content of messages."""
    if isinstance(completion, str):
        return completion
    return "".join(str(message["content"]) for message in completion)


STEPS, WORK = "steps", "work_of_a_step"
"""Derived figures that arms must share to be comparable."""

SETTING_OF = {
    "data.file": "data",
    "data.task": "data",
    "optimizer.name": "trainer.optim",
    "trainer.max_steps": STEPS,
    "trainer.num_train_epochs": STEPS,
    "trainer.per_device_train_batch_size": WORK,
}
"""Key of a run file -> the setting that it also determines."""


@dataclass(frozen=True)
class PlannedCell:
    """A checked cell.

    Attributes:
        cell: The cell.
        settings: All settings that determine its result, by dotted name.
        description: Its record before it starts, as in `resolved.json`.
        work: The result of `work_of_a_step`.
    """

    cell: Cell
    settings: Mapping[str, Any]
    description: Mapping[str, Any]
    work: Mapping[str, Any]

    @property
    def is_finished(self) -> bool:
        """Whether an earlier call trained it."""
        return self.cell.is_finished


@dataclass(frozen=True)
class Difference:
    """How a setting differs between cells.

    Attributes:
        setting: Its dotted name.
        why: `asked`, if the sweep sets it; `consequence` of what it sets; `run file`, if run files
            differ in it; or `equal`.
        of: Dotted keys of the sweep that explain it.
        values: Each value with the cells that have it, in order; without cells whose algorithm
            does not have the setting.
    """

    setting: str
    why: str
    of: tuple[str, ...]
    values: tuple[tuple[Any, tuple[str, ...]], ...]

    @property
    def num_cells(self) -> int:
        """Cells that have the setting."""
        return sum(len(cells) for _, cells in self.values)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "setting": self.setting,
            "why": self.why,
            "of": list(self.of),
            "values": [{"value": value, "cells": list(cells)} for value, cells in self.values],
        }


@dataclass(frozen=True)
class Plan:
    """A checked sweep.

    Attributes:
        sweep: The sweep file.
        cells: The cells, in order.
        differences: Differences between cells; those that the sweep sets come first.
        matched: What arms must share to be comparable: `learning_rate`, `steps`, `work_of_a_step`.
        examiner: Evaluates the trained models; None for no evaluation.
    """

    sweep: SweepSettings
    cells: tuple[PlannedCell, ...]
    differences: tuple[Difference, ...]
    matched: Mapping[str, Difference]
    examiner: Examiner | None

    def mask_names(self) -> dict[str, str]:
        """Name of each cell -> its mask for readers: the shortest name of its file, or the kind."""
        sources = {}
        for planned in self.cells:
            source = planned.description["mask"]["source"]
            is_file = planned.cell.of is None and ("/" in source or source.endswith(MASK_ENDING))
            path = planned.cell.run.resolve().parent / Path(source).expanduser()
            sources[planned.cell.name] = os.path.normpath(path) if is_file else source
        names = distinct_names(sources.values(), MASK_ENDING)
        return {cell: names[source] for cell, source in sources.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        masks = self.mask_names()
        return {
            "cells": [
                {
                    "name": planned.cell.name,
                    "arm": planned.cell.arm,
                    "label": planned.cell.label,
                    "mask_name": masks[planned.cell.name],
                    "run_file": str(planned.cell.run),
                    "set": dict(planned.cell.settings),
                    "is_finished": planned.is_finished,
                }
                for planned in self.cells
            ],
            "differences": [difference.to_dict() for difference in self.differences],
            "matched": {name: match.to_dict() for name, match in self.matched.items()},
        }


def plan(sweep: SweepSettings) -> Plan:
    """Check every cell of a sweep, and find how they differ.

    Raises:
        SettingsError: Cells cannot be used; lists all problems with their cells.
        OutputExistsError: A cell was trained with other settings, at least partly.
        TrimtabError: The error of `prepare`, if there is only one problem.
    """
    problems = Problems()
    planned = []
    bases: dict[Path, BaseModel] = {}
    for cell in cells_of(sweep):
        with problems.collect(f"cell {cell.label}"):
            planned.append(_planned(cell, bases))
    examiner = None
    if (table := sweep.evaluate) is not None and not problems:
        questions = {}
        for cell in (one.cell for one in planned):
            with problems.collect(f"cell {cell.label}"):
                questions[cell.name] = questions_of_table(table, cell.file(), sweep.path.parent)
        examiner = Examiner(questions)
    problems.raise_all(f"{sweep.path}: ")
    return Plan(sweep, tuple(planned), tuple(differences(planned)), matched(planned), examiner)


def checked(cell: Cell, bases: dict[Path, BaseModel]) -> Run:
    """Prepare the run of a cell, which may still need others.

    Args:
        cell: The cell.
        bases: Cache of opened models.

    Raises:
        OutputExistsError: It was trained with other settings, at least partly.
        TrimtabError: It cannot be used.
    """
    run = prepare(cell.file(), bases)
    if cell.is_ready and state_of(run) == "finished":
        measured(cell)  # raises now if it cannot be read
    return run


def _planned(cell: Cell, bases: dict[Path, BaseModel]) -> PlannedCell:
    run = checked(cell, bases)
    settings, description = {**run.settings(), **cell.from_others}, run.describe()
    if cell.of is not None:
        description["mask"] = {**description["mask"], "source": cell.from_others["mask"]}
    return PlannedCell(cell, flat(settings), description, work_of_a_step(run))


def differences(planned: Sequence[PlannedCell]) -> list[Difference]:
    """Every setting that differs between cells, and why."""
    names = dict.fromkeys(name for cell in planned for name in cell.settings)
    all_differences = [_difference(planned, name) for name in names]
    order = ("asked", "consequence", "run file")
    unequal = [difference for difference in all_differences if difference.why in order]
    return sorted(unequal, key=lambda difference: order.index(difference.why))


def matched(planned: Sequence[PlannedCell]) -> dict[str, Difference]:
    """Whether cells have the same learning rate, steps and tokens, and if not, why."""
    figures = [replace(cell, settings={**cell.settings, **_figures(cell)}) for cell in planned]
    names = {"learning_rate": "trainer.learning_rate", "steps": STEPS, "work_of_a_step": WORK}
    return {name: _difference(figures, setting) for name, setting in names.items()}


def _figures(cell: PlannedCell) -> dict[str, Any]:
    steps, epochs = cell.settings["trainer.max_steps"], cell.settings["trainer.num_train_epochs"]
    return {
        STEPS: {"steps": steps} if steps > 0 else {"epochs": epochs},
        WORK: dict(cell.work),
    }


def _difference(planned: Sequence[PlannedCell], setting: str) -> Difference:
    values = _by_value(planned, setting)
    if len(values) == 1 and len(values[0][1]) == len(planned):
        return Difference(setting, "equal", (), values)
    setters = {cell.cell.name: _setters(cell, setting) for cell in planned}
    left_alone = [cell for cell in planned if not setters[cell.cell.name]]
    if len(_by_value(left_alone, setting)) < 2 and any(setters.values()):
        keys_set = dict.fromkeys(key for keys in setters.values() for key in keys)
        return Difference(setting, "asked", tuple(keys_set), values)
    causes = tuple(_causes(left_alone, setting))
    if not causes or _differs_otherwise(left_alone, setting, causes):
        return Difference(setting, "run file", (), values)
    return Difference(setting, "consequence", causes, values)


def _by_value(
    planned: Sequence[PlannedCell], setting: str
) -> tuple[tuple[Any, tuple[str, ...]], ...]:
    cells: dict[str, tuple[Any, list[str]]] = {}
    for cell in planned:
        if setting in cell.settings:
            value = cell.settings[setting]
            cells.setdefault(json.dumps(value), (value, []))[1].append(cell.cell.name)
    return tuple((value, tuple(names)) for value, names in cells.values())


def _setters(planned: PlannedCell, setting: str) -> list[str]:
    """Keys of the sweep that directly set a setting of a cell."""
    return [key for key in planned.cell.settings if setting in _names(key, planned)]


def _names(key: str, planned: PlannedCell) -> set[str | None]:
    """Settings that a key sets; those of a factor depend on the algorithm."""
    table, _, name = key.rpartition(".")
    algorithm = planned.settings["algorithm"]
    keys = FACTORS[name].keys.get(algorithm, ()) if table == "factors" else (key,)
    return {*keys, *map(SETTING_OF.get, keys)}


def _causes(planned: Sequence[PlannedCell], setting: str) -> list[str]:
    """Keys of the sweep that change a setting.

    A pair of cells of one run file that differ in a single key identifies it. Where arms set
    several keys at once there may be no such pair; then it is the smallest set of differing keys.
    """
    fewest: list[str] = []
    causes: dict[str, None] = {}
    for one, other in combinations(planned, 2):
        if one.cell.run != other.cell.run:
            continue
        if one.settings.get(setting) == other.settings.get(setting):
            continue
        first, second = one.cell.settings, other.cell.settings
        keys = [key for key in {**first, **second} if first.get(key) != second.get(key)]
        if len(keys) == 1:
            causes[keys[0]] = None
        elif not fewest or len(keys) < len(fewest):
            fewest = keys
    return list(causes) or fewest


def _differs_otherwise(planned: Sequence[PlannedCell], setting: str, causes: Sequence[str]) -> bool:
    """Whether run files differ in a setting although its known causes are equal."""
    have = [cell for cell in planned if setting in cell.settings]
    return any(
        one.cell.run != other.cell.run
        and one.settings[setting] != other.settings[setting]
        and all(one.cell.settings.get(key) == other.cell.settings.get(key) for key in causes)
        for one, other in combinations(have, 2)
    )
