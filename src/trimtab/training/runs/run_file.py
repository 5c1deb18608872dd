"""`RunFile`: what a person wrote in a TOML file, checked as far as the file alone allows.

All problems are told at once. Relative paths are relative to the file, so a run file and its data
can be moved together and used from any folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from trimtab.errors import SettingsError
from trimtab.inputs import read_toml
from trimtab.training.runs.algorithms import ALGORITHMS
from trimtab.training.runs.checking import check_table, unknown_key
from trimtab.training.runs.contradictions import contradictions
from trimtab.training.runs.factors import with_factors
from trimtab.training.runs.tables import (
    AutoTable,
    DataTable,
    OptimizerTable,
    RewardTable,
    SamplesTable,
)

__all__ = ["RunFile"]


@dataclass(frozen=True)
class RunFile:
    """A run as it was asked for.

    Attributes:
        path: The TOML file.
        algorithm: A key of `ALGORITHMS`.
        model: A checkpoint folder, or a hub id with an optional `@revision`.
        output: Folder that the run makes.
        mask: A file, `random:DENSITY`, `none`, `all` or `auto`.
        also: Parameters to train whole, beside the mask; see `train_only`.
        seed: Of everything that is drawn.
        dtype: Of the weights while they are trained; None is that in which the model is stored.
        data: What is trained on, or the prompts of what is.
        reward: What samples are rewarded for; None if the file has no such table.
        samples: How the model's own samples are drawn before training; None if they are not.
        optimizer: The optimizer, where the mask decides; the rest is in `trainer`.
        auto: How `mask = "auto"` finds its mask.
        trainer: Passed to the configuration class of TRL.
        save_dtype: Of the saved weights: that in which the model is stored, or `fp32`.
        dropout: Probability of every dropout of the model; None for what its config says.
        track: Optimizer steps between two points of an `UpdateTracker`; None for no tracker.
        factors: Those that were asked for; the keys that they stand for are set accordingly.
    """

    path: Path
    algorithm: str
    model: str
    output: str
    mask: str
    data: DataTable
    seed: int = 0
    dtype: Literal["bf16", "fp32"] | None = None
    reward: RewardTable | None = None
    samples: SamplesTable | None = None
    optimizer: OptimizerTable = field(default_factory=OptimizerTable)
    auto: AutoTable = field(default_factory=AutoTable)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    save_dtype: Literal["stored", "fp32"] = "stored"
    dropout: float | None = None
    track: int | None = None
    factors: Mapping[str, Any] = field(default_factory=dict)
    also: Sequence[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: str | Path) -> RunFile:
        """Read and check a run file.

        Raises:
            SettingsError: It is no TOML, or says something that cannot be meant; all at once.
        """
        return cls.of(path, read_toml(path, SettingsError))

    @classmethod
    def of(cls, path: str | Path, content: Mapping[str, Any]) -> RunFile:
        """Check what a run file says, or would say.

        Args:
            path: The run file, for messages and for paths that are relative to it.
            content: As TOML has it.

        Raises:
            SettingsError: It says something that cannot be meant; all at once.
        """
        path = Path(path)
        problems: list[str] = []
        content = with_factors(content, problems)
        tables = {
            name: _table(content, name, table, problems)
            for name, table in _TABLES.items()
            if name in content
        }
        known = [field.name for field in fields(cls) if field.name != "path"]
        problems += [unknown_key(key, known) for key in content if key not in known]
        given = {key: content[key] for key in known if key in content and key not in tables}
        top = check_table(_Top, given, "", problems)
        missing = [key for key in _REQUIRED if key not in content]
        if missing:
            problems.append(f"missing: {', '.join(missing)}")
        problems += contradictions(top, tables)
        if problems:
            raise SettingsError(f"{path}: {'; '.join(problems)}")
        if ALGORITHMS[top["algorithm"]].needs_samples:
            tables.setdefault("samples", SamplesTable())
        return cls(path=path, **top, **tables)

    def resolve(self, name: str) -> Path:
        """A path of the file, relative to the folder of the file."""
        return self.path.parent / Path(name).expanduser()

    @property
    def density(self) -> float | None:
        """The density of a random mask; None for any other."""
        kind, colon, density = self.mask.partition(":")
        return float(density) if kind == "random" and colon else None


@dataclass(frozen=True)
class _Top:
    """Types of the keys that are in no table."""

    algorithm: str
    model: str
    output: str
    mask: str
    seed: int
    dtype: Literal["bf16", "fp32"]
    save_dtype: Literal["stored", "fp32"]
    dropout: float
    track: int
    also: list[str]


_TABLES: Mapping[str, type] = {
    "data": DataTable,
    "reward": RewardTable,
    "samples": SamplesTable,
    "optimizer": OptimizerTable,
    "auto": AutoTable,
    "trainer": dict,
    "factors": dict,
}

_REQUIRED = ("algorithm", "model", "output", "mask", "data")


def _table(content: Mapping[str, Any], name: str, cls: type, problems: list[str]) -> Any:
    """A table of the file as its dataclass; None, and a problem, if it is something else."""
    given = content[name]
    if not isinstance(given, dict):
        problems.append(f"{name} is not a table: expected [{name}] and its keys below")
        return None
    return given if cls is dict else cls(**check_table(cls, given, f"{name}.", problems))
