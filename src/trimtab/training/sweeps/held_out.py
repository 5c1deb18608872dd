"""What trained models are asked, and what they answer: `[evaluate]` of a sweep.

Each cell is asked what it was not trained on. Cells whose seeds differ may be asked other
questions, since a task is split by the seed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trimtab.training.evaluation.engine import evaluate
from trimtab.training.evaluation.questions import (
    Questions,
    file_questions,
    questions_of_run,
    questions_of_task,
    reward_of,
)
from trimtab.training.folders import read_json, write_json
from trimtab.training.runs.datasets import read_rows
from trimtab.training.runs.execute import MODEL
from trimtab.training.runs.tables import DataTable, RewardTable
from trimtab.training.sweeps.cells import Cell
from trimtab.training.sweeps.sweep_file import SweepFile

__all__ = ["ANSWERS", "Examiner", "questions_of_cell"]

ANSWERS = "evaluation.json"
"""What a cell answered, in its folder."""


@dataclass(frozen=True)
class Examiner:
    """Asks each cell its questions, once.

    Attributes:
        questions: Name of a cell -> what it is asked.
    """

    questions: Mapping[str, Questions]

    def has_asked(self, cell: Cell) -> bool:
        """Whether an earlier call asked a cell the same questions."""
        return self._known(cell) is not None

    def ask(self, cell: Cell) -> dict[str, Any]:
        """What a finished cell answers, or answered to the same questions before."""
        if (known := self._known(cell)) is not None:
            return known
        questions = self.questions[cell.name]
        answered = evaluate([str(cell.out / MODEL)], questions=questions).to_dict()
        write_json(cell.folder / ANSWERS, answered)
        return answered

    def _known(self, cell: Cell) -> dict[str, Any] | None:
        asked = json.loads(json.dumps(self.questions[cell.name].describe()))
        try:
            known: dict[str, Any] = read_json(cell.folder / ANSWERS)
            return known if known["questions"]["record"] == asked else None
        except (OSError, ValueError, LookupError, TypeError):
            return None


def questions_of_cell(sweep: SweepFile, cell: Cell) -> Questions:
    """What a cell is asked: nothing that it was trained on.

    Raises:
        SettingsError: There are none, or nothing to judge the answers by.
    """
    table, file = sweep.evaluate, cell.file()
    assert table is not None
    if table.file is not None:
        judge = RewardTable(kind=table.kind, column=table.column, pattern=table.pattern)
        reward = reward_of(judge, sweep.path.parent)
        asked = file_questions(sweep.path.parent / table.file, reward, column=table.column)
        if file.data.file is not None:
            seen = read_rows(file.resolve(file.data.file), ("prompt",)).rows
            asked = asked.unseen(row["prompt"] for row in seen)
        return asked.first(table.questions)
    if table.task is None or table.task == file.data.task:
        return questions_of_run(file, num=table.questions)
    return questions_of_task(DataTable(task=table.task), seed=file.seed, num=table.questions)
