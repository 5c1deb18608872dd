"""Runs tasks of lm-evaluation-harness on the models that are evaluated.

Prompts, answers and metrics are those of the package; users can add tasks as YAML files. The models
are passed as they are loaded, so dtype and device are those of the rest of the evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

from trimtab.errors import SettingsError
from trimtab.extras import require

INSTALL = "pip install 'trimtab[eval]'"


@dataclass(frozen=True)
class Suites:
    """Tasks to run.

    Attributes:
        names: Names of tasks, groups or tags of `lm_eval`.
        folder: Folder with YAML files of additional tasks; None for none.
        num_questions: Maximum number of questions of each task; None for all.
    """

    names: tuple[str, ...]
    folder: Path | None = None
    num_questions: int | None = None

    def check(self) -> None:
        """Check that the tasks exist, before any model is loaded.

        Raises:
            MissingExtraError: The package is not installed.
            SettingsError: There is no such folder or task.
        """
        if self.folder is not None and not self.folder.is_dir():
            raise SettingsError(f"suites: {self.folder}: no such folder")
        known = set(self._manager().all_tasks)
        if unknown := [name for name in self.names if name not in known]:
            raise SettingsError(
                f"suites: lm-evaluation-harness has no task {', '.join(unknown)}: `lm_eval ls "
                "tasks` lists them"
            )

    def run(
        self, model: Any, tokenizer: Any, *, batch_size: int, seed: int
    ) -> dict[str, dict[str, Any]]:
        """Run the tasks on a model.

        Args:
            model: A causal language model of Transformers.
            tokenizer: Tokenizer of the model.
            batch_size: Requests at a time.
            seed: Seed of all random numbers of the package.

        Returns:
            Task -> its number of questions, version, shots, and metrics, each with its standard
            error if it has one.

        Raises:
            SettingsError: A task fails, because data or packages are missing.
        """
        lm_eval = require("lm_eval", INSTALL)
        getLogger("lm_eval").setLevel(ERROR)  # it warns about models that are already loaded
        wrapper = require("lm_eval.models.huggingface", INSTALL)
        try:
            results = lm_eval.simple_evaluate(
                model=wrapper.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
                tasks=list(self.names),
                task_manager=self._manager(),
                limit=self.num_questions,
                log_samples=False,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
        except Exception as error:
            raise SettingsError(f"suites: {' '.join(str(error).split()) or repr(error)}") from error
        return {name: _metrics(results, name) for name in results["results"]}

    def _manager(self) -> Any:
        tasks = require("lm_eval.tasks", INSTALL)
        return tasks.TaskManager(include_path=None if self.folder is None else str(self.folder))


def _metrics(results: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The results of a task, which the package names `metric,filter`, `metric_stderr,filter`."""
    values = results["results"][name]
    metrics = {}
    for key, value in values.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = values.get(f"{metric}_stderr,{filtered}")
        metrics[metric if filtered == "none" else f"{metric} ({filtered})"] = {
            "value": value,
            "standard_error": error if isinstance(error, int | float) else None,
        }
    return {
        "num_questions": results["n-samples"].get(name, {}).get("effective"),
        "num_shots": results["n-shot"].get(name),
        "version": results["versions"].get(name),
        "metrics": metrics,
    }
