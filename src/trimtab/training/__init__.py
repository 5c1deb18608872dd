"""Train a model, or only the elements of a mask; needs the train extra.

Nothing here imports torch, transformers or TRL before a name is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trimtab.extras import lazy_names

if TYPE_CHECKING:
    from trimtab.results.evaluation import Evaluation as Evaluation
    from trimtab.results.robustness import Robustness as Robustness
    from trimtab.training.deltas.checkpoints import DeltaCheckpoint as DeltaCheckpoint
    from trimtab.training.deltas.loading import LoadedDelta as LoadedDelta
    from trimtab.training.deltas.loading import PreparedDelta as PreparedDelta
    from trimtab.training.deltas.loading import applied_delta as applied_delta
    from trimtab.training.deltas.loading import load_delta as load_delta
    from trimtab.training.deltas.loading import prepare_delta as prepare_delta
    from trimtab.training.deltas.saving import save_delta as save_delta
    from trimtab.training.evaluation.evaluate import evaluate as evaluate
    from trimtab.training.evaluation.questions import file_questions as file_questions
    from trimtab.training.evaluation.questions import questions_of_run as questions_of_run
    from trimtab.training.evaluation.questions import questions_of_task as questions_of_task
    from trimtab.training.input_norms import measure_input_norms as measure_input_norms
    from trimtab.training.masked_training import MaskedTraining as MaskedTraining
    from trimtab.training.masked_training import train_only as train_only
    from trimtab.training.model_masks import mask_from_model as mask_from_model
    from trimtab.training.model_masks import suggested_learning_rate as suggested_learning_rate
    from trimtab.training.optimizers.adamw import SparseAdamW as SparseAdamW
    from trimtab.training.optimizers.sgd import SparseSGD as SparseSGD
    from trimtab.training.perturbation.probe import robustness as robustness
    from trimtab.training.ppo import PPOConfig as PPOConfig
    from trimtab.training.ppo import PPOTrainer as PPOTrainer
    from trimtab.training.prime import PRIMEConfig as PRIMEConfig
    from trimtab.training.prime import PRIMETrainer as PRIMETrainer
    from trimtab.training.runs.settings import DataTable as DataTable
    from trimtab.training.sync.follower import DeltaFollower as DeltaFollower
    from trimtab.training.sync.publisher import DeltaPublisher as DeltaPublisher
    from trimtab.training.sync.rollouts import EngineRollouts as EngineRollouts
    from trimtab.training.tracker.callback import UpdateTracker as UpdateTracker
    from trimtab.training.trainer_callback import MaskedTrainingCallback as MaskedTrainingCallback
    from trimtab.training.trainer_callback import sparse_adamw as sparse_adamw

_MODULES = {
    "applied_delta": "trimtab.training.deltas.loading",
    "DataTable": "trimtab.training.runs.settings",
    "DeltaCheckpoint": "trimtab.training.deltas.checkpoints",
    "DeltaFollower": "trimtab.training.sync.follower",
    "DeltaPublisher": "trimtab.training.sync.publisher",
    "EngineRollouts": "trimtab.training.sync.rollouts",
    "evaluate": "trimtab.training.evaluation.evaluate",
    "Evaluation": "trimtab.results.evaluation",
    "file_questions": "trimtab.training.evaluation.questions",
    "load_delta": "trimtab.training.deltas.loading",
    "LoadedDelta": "trimtab.training.deltas.loading",
    "mask_from_model": "trimtab.training.model_masks",
    "MaskedTraining": "trimtab.training.masked_training",
    "MaskedTrainingCallback": "trimtab.training.trainer_callback",
    "measure_input_norms": "trimtab.training.input_norms",
    "prepare_delta": "trimtab.training.deltas.loading",
    "PreparedDelta": "trimtab.training.deltas.loading",
    "PPOConfig": "trimtab.training.ppo",
    "PPOTrainer": "trimtab.training.ppo",
    "PRIMEConfig": "trimtab.training.prime",
    "PRIMETrainer": "trimtab.training.prime",
    "questions_of_run": "trimtab.training.evaluation.questions",
    "questions_of_task": "trimtab.training.evaluation.questions",
    "Robustness": "trimtab.results.robustness",
    "robustness": "trimtab.training.perturbation.probe",
    "save_delta": "trimtab.training.deltas.saving",
    "SparseAdamW": "trimtab.training.optimizers.adamw",
    "SparseSGD": "trimtab.training.optimizers.sgd",
    "sparse_adamw": "trimtab.training.trainer_callback",
    "suggested_learning_rate": "trimtab.training.model_masks",
    "train_only": "trimtab.training.masked_training",
    "UpdateTracker": "trimtab.training.tracker.callback",
}
"""Public name -> module that defines it."""

__all__ = [*_MODULES]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(__name__, _MODULES, "pip install 'trimtab[train]'")
