"""`RunFile`: what a person wrote in a TOML file, checked as far as the file alone allows.

All problems are told at once. Relative paths are relative to the file, so a run file and its data
can be moved together and used from any folder.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from trimtab.errors import SettingsError
from trimtab.training.runs.algorithms import ALGORITHMS
from trimtab.training.runs.checking import check_table, unknown_key

__all__ = ["AutoTable", "DataTable", "OptimizerTable", "RewardTable", "RunFile"]


@dataclass(frozen=True)
class DataTable:
    """`[data]`: exactly one of the two.

    Attributes:
        file: JSON Lines.
        task: A built-in task.
    """

    file: str | None = None
    task: Literal["addition"] | None = None


@dataclass(frozen=True)
class RewardTable:
    """`[reward]`: exactly one of `function` and `kind`.

    Attributes:
        function: `file.py:name`, called as TRL calls a reward function.
        kind: A built-in comparison of the completion with a column of the data.
        column: The column that holds the right answer.
        pattern: Regular expression whose first group is the answer; for `kind = "regex"`.
    """

    function: str | None = None
    kind: Literal["exact", "regex"] | None = None
    column: str = "answer"
    pattern: str | None = None


@dataclass(frozen=True)
class OptimizerTable:
    """`[optimizer]`.

    Attributes:
        name: The algorithm.
        master: How masked elements keep fp32 precision; by default as `SparseAdamW` chooses.
        state_dtype: Of the moments.
        clip_by: Norm that gradients are clipped by.
        nonfinite: What a gradient that is not finite does.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    master: Literal["lo16", "fp32", "none"] | None = None
    state_dtype: Literal["fp32", "bf16"] = "fp32"
    clip_by: Literal["masked", "full"] = "masked"
    nonfinite: Literal["raise", "skip"] = "raise"


@dataclass(frozen=True)
class AutoTable:
    """`[auto]`, for `mask = "auto"`.

    Attributes:
        probe: What finds the mask: `adamw` trains everything for a while and takes what moved;
            `gradients` trains nothing and takes what has the largest gradients.
        steps: Steps of the probe, at most.
        every: Steps between two looks at what moved.
        settle: The probe ends when a smaller share of what moved is new since the look before.
        density: Share of all elements to take; for `gradients` only.
    """

    probe: Literal["adamw", "gradients"] = "adamw"
    steps: int = 50
    every: int = 10
    settle: float = 0.05
    density: float | None = None


@dataclass(frozen=True)
class RunFile:
    """A run as it was asked for.

    Attributes:
        path: The TOML file.
        algorithm: A key of `ALGORITHMS`.
        model: A checkpoint folder, or a hub id with an optional `@revision`.
        output: Folder that the run makes.
        mask: A file, `random:DENSITY`, `none` or `auto`.
        seed: Of everything that is drawn.
        dtype: Of the weights while they are trained; None is that in which the model is stored.
        data: What is trained on.
        reward: What GRPO is rewarded for; None if the file has no such table.
        optimizer: The optimizer, where the mask decides; the rest is in `trainer`.
        auto: How `mask = "auto"` finds its mask.
        trainer: Passed to the configuration class of TRL.
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
    optimizer: OptimizerTable = field(default_factory=OptimizerTable)
    auto: AutoTable = field(default_factory=AutoTable)
    trainer: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> RunFile:
        """Read and check a run file.

        Raises:
            SettingsError: It is no TOML, or says something that cannot be meant; all at once.
        """
        path = Path(path)
        content = _parse(path)
        problems: list[str] = []
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
        problems += _contradictions(top, tables)
        if problems:
            raise SettingsError(f"{path}: {'; '.join(problems)}")
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


_TABLES: Mapping[str, type] = {
    "data": DataTable,
    "reward": RewardTable,
    "optimizer": OptimizerTable,
    "auto": AutoTable,
    "trainer": dict,
}

_REQUIRED = ("algorithm", "model", "output", "mask", "data")


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such file") from None
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path}: not TOML ({error})") from None


def _table(content: Mapping[str, Any], name: str, cls: type, problems: list[str]) -> Any:
    """A table of the file as its dataclass; None, and a problem, if it is something else."""
    given = content[name]
    if not isinstance(given, dict):
        problems.append(f"{name} is not a table: expected [{name}] and its keys below")
        return None
    return given if cls is dict else cls(**check_table(cls, given, f"{name}.", problems))


def _contradictions(top: Mapping[str, Any], tables: Mapping[str, Any]) -> Iterator[str]:
    """What each key allows and the file as a whole does not."""
    if not 0 <= top.get("seed", 0) < 2**32:
        yield f"seed is {top['seed']}, expected 0 to 2**32 - 1"
    yield from (f"{key} is empty" for key in ("model", "output", "mask") if top.get(key) == "")
    data, reward = tables.get("data"), tables.get("reward")
    if data is not None and (data.file is None) == (data.task is None):
        yield "data: expected one of file and task"
    if reward is not None and (reward.function is None) == (reward.kind is None):
        yield "reward: expected one of function and kind"
    yield from _problems_of_algorithm(top.get("algorithm"), data, reward is not None)
    yield from _problems_of_mask(top.get("mask"), tables.get("optimizer"))
    if (auto := tables.get("auto")) is not None:
        yield from _problems_of_auto(top.get("mask"), auto)


def _problems_of_algorithm(
    name: str | None, data: DataTable | None, has_reward: bool
) -> Iterator[str]:
    if name is None:
        return
    if name not in ALGORITHMS:
        near = get_close_matches(name, ALGORITHMS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(ALGORITHMS)}"
        yield f'algorithm is "{name}": {hint}'
        return
    has_task = data is not None and data.task is not None
    if has_reward and not ALGORITHMS[name].takes_reward:
        yield f"reward: {name} takes none"
    elif has_reward and has_task:
        yield "reward: a task brings its own"
    elif ALGORITHMS[name].takes_reward and not has_reward and not has_task:
        yield f"{name} needs a table [reward], with function or kind"


def _problems_of_mask(mask: str | None, optimizer: OptimizerTable | None) -> Iterator[str]:
    if mask == "none" and optimizer is not None:
        usual = OptimizerTable(name=optimizer.name)
        for field_ in fields(usual):
            if getattr(optimizer, field_.name) != getattr(usual, field_.name):
                yield f'optimizer.{field_.name} has no effect with mask = "none"'
    kind, colon, density = (mask or "").partition(":")
    if kind == "random":
        try:
            good = bool(colon) and 0 < float(density) <= 1
        except ValueError:
            good = False
        if not good:
            yield f'mask is "{mask}", expected random:DENSITY, above 0 and at most 1'


def _problems_of_auto(mask: str | None, auto: AutoTable) -> Iterator[str]:
    if mask != "auto":
        yield 'auto: for mask = "auto" only'
    for name, least in (("steps", 1), ("every", 1), ("settle", 0)):
        if (value := getattr(auto, name)) < least:
            yield f"auto.{name} is {value}, expected at least {least}"
    if auto.probe == "gradients" and (auto.density is None or not 0 < auto.density < 1):
        yield f'auto.density is {auto.density}, and probe = "gradients" needs one between 0 and 1'
    if auto.probe == "adamw" and auto.density is not None:
        yield 'auto.density has no effect with probe = "adamw": the mask is what moved'
