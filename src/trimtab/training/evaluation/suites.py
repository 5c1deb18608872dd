"""Tasks of lm-evaluation-harness, on the models that are being evaluated anyway.

Prompts, answers and metrics are all theirs; a task of the user's own is a YAML file as that
package reads it. The models are passed to it as they are loaded, so dtype and device are those of
everything else that is measured.
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
    """Tasks to be run.

    Attributes:
        names: Of tasks, groups or tags, as `lm_eval` has them.
        folder: Has YAML files of tasks beside those of the package; None for no others.
        num_questions: Of each task, at most; None for all.
    """

    names: tuple[str, ...]
    folder: Path | None = None
    num_questions: int | None = None

    def check(self) -> None:
        """Check that the tasks are known, before any model is loaded.

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
            model: A causal language model of transformers.
            tokenizer: Of the model.
            batch_size: Requests at a time.
            seed: Of everything that the package draws.

        Returns:
            Task -> its number of questions, version, shots, and metrics, each with its standard
            error if it has one.

        Raises:
            SettingsError: A task fails: its data cannot be had, or it needs what is not there.
        """
        lm_eval = require("lm_eval", INSTALL)
        getLogger("lm_eval").setLevel(ERROR)  # it would warn that the model was loaded before
        wrapper = require("lm_eval.models.huggingface", INSTALL)
        try:
            found = lm_eval.simple_evaluate(
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
        return {name: _told(found, name) for name in found["results"]}

    def _manager(self) -> Any:
        tasks = require("lm_eval.tasks", INSTALL)
        return tasks.TaskManager(include_path=None if self.folder is None else str(self.folder))


def _told(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One task; its results are named `metric,filter` and `metric_stderr,filter` there."""
    results = found["results"][name]
    metrics = {}
    for key, value in results.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = results.get(f"{metric}_stderr,{filtered}")
        metrics[metric if filtered == "none" else f"{metric} ({filtered})"] = {
            "value": value,
            "standard_error": error if isinstance(error, int | float) else None,
        }
    return {
        "num_questions": found["n-samples"].get(name, {}).get("effective"),
        "num_shots": found["n-shot"].get(name),
        "version": found["versions"].get(name),
        "metrics": metrics,
    }
