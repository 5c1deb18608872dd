"""`Scale`: the runs that papers share, from one base model, as `papers/scales/<name>` says.

An arm is a run file of `trimtab train` with some keys set. Papers name arms, so two papers that ask
for the same arm share its cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from trimtab.errors import SettingsError
from trimtab.inputs import read_toml
from trimtab.papers.names import BaseName, MaskName

__all__ = ["Arm", "Evaluate", "Scale"]

FILE = "scale.toml"


@dataclass(frozen=True)
class Evaluate:
    """What every trained model is asked.

    Attributes:
        file: JSON Lines with `prompt` and `answer`, in the folder of the scale.
        pattern: Regular expression whose first group is the answer.
        max_tokens: Of an answer.
        samples: Sampled answers to each question, beside the greedy one.
    """

    file: str
    pattern: str
    max_tokens: int
    samples: int


_KEYS = ", ".join(of.name for of in fields(Evaluate))


@dataclass(frozen=True)
class Arm:
    """A run, but for its seed.

    Attributes:
        name: Of the arm and of its folder.
        run: Its run file, in the folder of the scale.
        set: Dotted keys of the run file -> values.
        mask: What is trained: `own`, what arm `of` changed, or another mask of its size.
        of: The arm whose changes the mask is made of.
        start: The arm whose model is trained on; None for the base of the scale.
        asked: What its models are asked in place of what the others are.
        more_seeds: Seeds beside those that a paper asks for: where more can be afforded.
        minutes: That a cell takes, where it is not as those of the others.
    """

    name: str
    run: str
    set: Mapping[str, Any] = field(default_factory=dict)
    mask: MaskName | None = None
    of: str | None = None
    start: str | None = None
    asked: str | None = None
    more_seeds: Sequence[int] = ()
    minutes: float | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """Arms that must be finished before, under the same seed."""
        return tuple(name for name in (self.of, self.start) if name is not None)


@dataclass(frozen=True)
class Scale:
    """The arms of one scale.

    Attributes:
        folder: Where it is described.
        base: Which base model is made.
        minutes: That a cell takes, roughly, on one CPU core.
        evaluate: What the models are asked.
        arms: By name, those that are needed before those that need them.
    """

    folder: Path
    base: BaseName
    minutes: float
    evaluate: Evaluate
    arms: Mapping[str, Arm]

    @property
    def name(self) -> str:
        """Of the scale: that of its folder."""
        return self.folder.name

    @classmethod
    def read(cls, folder: Path) -> Scale:
        """Read and check the description of a scale.

        Raises:
            SettingsError: It cannot be read, or names what there is not; all problems at once.
        """
        path = folder / FILE
        content = read_toml(path, SettingsError)
        problems = _strangers(content, ("base", "minutes", "evaluate", "arm"), "")
        arms: dict[str, Arm] = {}
        for table in content.get("arm", []):
            known = {of.name: table[of.name] for of in fields(Arm) if of.name in table}
            problems += _strangers(table, [of.name for of in fields(Arm)], "arm: ")
            if not {"name", "run"} <= known.keys():
                problems.append(f"an arm lacks name or run: {table}")
                continue
            arm = Arm(**known)
            problems += _problems(arm, arms, folder)
            arms[arm.name] = arm
        evaluate = content.get("evaluate", {})
        if evaluate.keys() != {of.name for of in fields(Evaluate)}:
            problems.append(f"[evaluate] has {', '.join(evaluate)}, expected {_KEYS}")
        if not isinstance(content.get("minutes"), int | float):
            problems.append("minutes is missing, or no number")
        if content.get("base") not in get_args(BaseName):
            problems.append(f"base is {content.get('base')!r}, expected {_either(BaseName)}")
        if problems:
            raise SettingsError(f"{path}: {'; '.join(problems)}")
        return cls(folder, content["base"], content["minutes"], Evaluate(**evaluate), arms)


def _problems(arm: Arm, before: Mapping[str, Arm], folder: Path) -> list[str]:
    problems = []
    if arm.name in before:
        problems.append(f"two arms are named {arm.name}")
    if not (folder / arm.run).is_file():
        problems.append(f"arm {arm.name}: {folder / arm.run} is no file")
    if missing := [name for name in arm.needs if name not in before]:
        problems.append(f"arm {arm.name} needs {', '.join(missing)}, expected an arm before it")
    if arm.mask is not None and arm.mask not in get_args(MaskName):
        problems.append(f"arm {arm.name}: mask is {arm.mask!r}, expected {_either(MaskName)}")
    seeds = arm.more_seeds
    is_list = isinstance(seeds, list | tuple)
    if not is_list or not all(isinstance(seed, int) and seed >= 0 for seed in seeds):
        problems.append(f"arm {arm.name}: more_seeds is {seeds}, expected whole numbers in a list")
    if not isinstance(arm.minutes, int | float | None):
        problems.append(f"arm {arm.name}: minutes is {arm.minutes!r}, expected a number")
    if (arm.mask is None) != (arm.of is None):
        problems.append(f"arm {arm.name}: expected both of mask and of, or neither")
    return problems


def _strangers(table: Mapping[str, Any], known: list[str] | tuple[str, ...], of: str) -> list[str]:
    return [f"{of}there is no key {key}, only {', '.join(known)}" for key in table.keys() - known]


def _either(of: Any) -> str:
    return " or ".join(map(repr, get_args(of)))
