"""Measure, mask, train and ship the small part of a model's weights that RL fine-tuning moves.

The public API is `trimtab.X`, and `trimtab.training.X` for what trains and needs the train extra;
anything deeper is private. Names are imported on first use: `import trimtab` loads no NumPy, no
torch, no compiled kernels and no hub client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trimtab._version import __version__ as __version__
from trimtab.extras import lazy_names

if TYPE_CHECKING:
    from trimtab.checkpoints.checkpoint import Checkpoint as Checkpoint
    from trimtab.checkpoints.checkpoint import open_checkpoint as open_checkpoint
    from trimtab.checkpoints.tensors import StoredTensor as StoredTensor
    from trimtab.deltas.apply import apply_delta as apply_delta
    from trimtab.deltas.apply import compact_deltas as compact_deltas
    from trimtab.deltas.apply import verify_delta as verify_delta
    from trimtab.deltas.file import DeltaFile as DeltaFile
    from trimtab.deltas.hub import load_model as load_model
    from trimtab.deltas.hub import push_delta as push_delta
    from trimtab.deltas.in_place import apply_in_place as apply_in_place
    from trimtab.deltas.in_place import revert as revert
    from trimtab.deltas.info import delta_info as delta_info
    from trimtab.deltas.make import make_delta as make_delta
    from trimtab.deltas.manifest import Manifest as Manifest
    from trimtab.deltas.signature import sign_delta as sign_delta
    from trimtab.deltas.signature import verify_signature as verify_signature
    from trimtab.deltas.store import Store as Store
    from trimtab.deltas.store import StoreEntry as StoreEntry
    from trimtab.elements.counts import ChangeCounts as ChangeCounts
    from trimtab.elements.criteria import Criterion as Criterion
    from trimtab.elements.criteria import parse_criterion as parse_criterion
    from trimtab.errors import TrimtabError as TrimtabError
    from trimtab.masks.algebra import DerivedMask as DerivedMask
    from trimtab.masks.algebra import combine as combine
    from trimtab.masks.algebra import complement as complement
    from trimtab.masks.algebra import restrict as restrict
    from trimtab.masks.coded_mask import pack_mask as pack_mask
    from trimtab.masks.coded_mask import unpack_mask as unpack_mask
    from trimtab.masks.extract import extract_mask as extract_mask
    from trimtab.masks.header import BaseTensor as BaseTensor
    from trimtab.masks.identity import Identity as Identity
    from trimtab.masks.identity import identity as identity
    from trimtab.masks.makers.absorption import absorption_mask as absorption_mask
    from trimtab.masks.makers.absorption import absorption_scores as absorption_scores
    from trimtab.masks.makers.counts import consensus as consensus
    from trimtab.masks.makers.principal import PrincipalScores as PrincipalScores
    from trimtab.masks.makers.principal import safe_scores as safe_scores
    from trimtab.masks.makers.weight_scores import high_magnitude_scores as high_magnitude_scores
    from trimtab.masks.makers.weight_scores import low_magnitude_scores as low_magnitude_scores
    from trimtab.masks.mask import Mask as Mask
    from trimtab.masks.on_disk import StoredMask as StoredMask
    from trimtab.masks.on_disk import open_mask as open_mask
    from trimtab.masks.overlap import overlap as overlap
    from trimtab.masks.overlap_chance import Shared as Shared
    from trimtab.masks.overlap_result import Overlap as Overlap
    from trimtab.masks.prediction import PredictionScore as PredictionScore
    from trimtab.masks.prediction import score_prediction as score_prediction
    from trimtab.masks.pruning import Pruning as Pruning
    from trimtab.masks.pruning import prune as prune
    from trimtab.masks.pruning import survivors as survivors
    from trimtab.masks.selection.quotas import Quotas as Quotas
    from trimtab.masks.selection.quotas import random_matched as random_matched
    from trimtab.masks.selection.scores import ArrayScores as ArrayScores
    from trimtab.masks.selection.scores import ScoreFile as ScoreFile
    from trimtab.masks.selection.scores import Scores as Scores
    from trimtab.masks.selection.scores import write_scores as write_scores
    from trimtab.masks.selection.top_k import select as select
    from trimtab.masks.split import Split as Split
    from trimtab.masks.split import share as share
    from trimtab.masks.structure import structure as structure
    from trimtab.masks.structure_result import Structure as Structure
    from trimtab.masks.transfer import transfer as transfer
    from trimtab.masks.wanda import InputNorms as InputNorms
    from trimtab.measure.compare import compare as compare
    from trimtab.measure.compare_result import Comparison as Comparison
    from trimtab.measure.precision import PrecisionProbe as PrecisionProbe
    from trimtab.measure.tracked import read_steps as read_steps
    from trimtab.measure.tracked import read_tracked as read_tracked
    from trimtab.measure.trajectory import trajectory as trajectory
    from trimtab.measure.trajectory_result import Trajectory as Trajectory
    from trimtab.report import load_result as load_result
    from trimtab.sync.engines.control import EngineControl as EngineControl
    from trimtab.sync.engines.drive import EngineDriver as EngineDriver
    from trimtab.sync.engines.prove import Proof as Proof
    from trimtab.sync.engines.prove import prove as prove
    from trimtab.sync.folder import FolderHolder as FolderHolder
    from trimtab.sync.follower import Acknowledgement as Acknowledgement
    from trimtab.sync.follower import Follower as Follower
    from trimtab.sync.follower import Update as Update
    from trimtab.sync.places import open_place as open_place
    from trimtab.sync.published import Followed as Followed
    from trimtab.sync.published import Published as Published
    from trimtab.sync.published import Served as Served
    from trimtab.sync.published import SyncLog as SyncLog
    from trimtab.sync.publisher import Publisher as Publisher

_NAMES = {
    "checkpoints.checkpoint": ("Checkpoint", "open_checkpoint"),
    "checkpoints.tensors": ("StoredTensor",),
    "deltas.apply": ("apply_delta", "compact_deltas", "verify_delta"),
    "deltas.file": ("DeltaFile",),
    "deltas.hub": ("load_model", "push_delta"),
    "deltas.in_place": ("apply_in_place", "revert"),
    "deltas.info": ("delta_info",),
    "deltas.make": ("make_delta",),
    "deltas.manifest": ("Manifest",),
    "deltas.signature": ("sign_delta", "verify_signature"),
    "deltas.store": ("Store", "StoreEntry"),
    "elements.counts": ("ChangeCounts",),
    "elements.criteria": ("Criterion", "parse_criterion"),
    "errors": ("TrimtabError",),
    "masks.algebra": ("combine", "complement", "DerivedMask", "restrict"),
    "masks.coded_mask": ("pack_mask", "unpack_mask"),
    "masks.extract": ("extract_mask",),
    "masks.header": ("BaseTensor",),
    "masks.identity": ("Identity", "identity"),
    "masks.makers.absorption": ("absorption_mask", "absorption_scores"),
    "masks.makers.counts": ("consensus",),
    "masks.makers.principal": ("PrincipalScores", "safe_scores"),
    "masks.makers.weight_scores": ("high_magnitude_scores", "low_magnitude_scores"),
    "masks.mask": ("Mask",),
    "masks.on_disk": ("open_mask", "StoredMask"),
    "masks.overlap": ("overlap",),
    "masks.overlap_chance": ("Shared",),
    "masks.overlap_result": ("Overlap",),
    "masks.prediction": ("PredictionScore", "score_prediction"),
    "masks.pruning": ("prune", "Pruning", "survivors"),
    "masks.selection.quotas": ("Quotas", "random_matched"),
    "masks.selection.scores": ("ArrayScores", "ScoreFile", "Scores", "write_scores"),
    "masks.selection.top_k": ("select",),
    "masks.split": ("share", "Split"),
    "masks.structure": ("structure",),
    "masks.structure_result": ("Structure",),
    "masks.transfer": ("transfer",),
    "masks.wanda": ("InputNorms",),
    "measure.compare": ("compare",),
    "measure.compare_result": ("Comparison",),
    "measure.precision": ("PrecisionProbe",),
    "measure.tracked": ("read_steps", "read_tracked"),
    "measure.trajectory": ("trajectory",),
    "measure.trajectory_result": ("Trajectory",),
    "report": ("load_result",),
    "sync.engines.control": ("EngineControl",),
    "sync.engines.drive": ("EngineDriver",),
    "sync.engines.prove": ("Proof", "prove"),
    "sync.folder": ("FolderHolder",),
    "sync.follower": ("Acknowledgement", "Follower", "Update"),
    "sync.published": ("Followed", "Published", "Served", "SyncLog"),
    "sync.places": ("open_place",),
    "sync.publisher": ("Publisher",),
}
"""Module, below `trimtab`, -> the public names that it defines."""

_MODULES = {name: f"trimtab.{module}" for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULES, key=str.lower)

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(__name__, _MODULES)
