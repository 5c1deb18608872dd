"""`SweepSettings`: the content of a sweep file, checked without opening other files.

A sweep sets keys of run files: those of `[set]` in every cell, and every combination of the lists
of `[sweep]` in each `[[arm]]`. An arm can take its mask or its model from another arm. Paths are
relative to the sweep file; paths that it sets in a run file are relative to the run file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from math import prod
from pathlib import Path
from typing import Any, Literal

from trimtab.errors import SettingsError
from trimtab.inputs import read_toml
from trimtab.results.tables import check_table, unknown_key
from trimtab.training.runs.evaluate_table import QuestionsTable
from trimtab.training.runs.overrides import dotted_keys

MOST_CELLS = 1_000

MaskKind = Literal["own", "random", "matched", "complement", "low-magnitude"]
"""Which mask to derive from what another run changed: that itself, or a control."""


@dataclass(frozen=True)
class Arm:
    """A group of cells with the same run file and settings.

    Attributes:
        name: Name in the file; None for the only arm of a file without `[[arm]]`.
        run: The run file.
        settings: Dotted keys of the run file -> values, for all its cells.
        mask: Which mask its cells derive from the changes of arm `of`.
        of: The arm whose changes the mask is derived from.
        start: The arm whose models its cells start from; None for the model of the run file.
    """

    name: str | None
    run: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    mask: MaskKind | None = None
    of: str | None = None
    start: str | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """Arms that must finish first, with the same values of `[sweep]`."""
        return tuple(name for name in (self.of, self.start) if name is not None)

    def problems(self, before: Iterable[str]) -> Iterator[str]:
        """Problems of its needs, given the names of the arms before it."""
        if missing := [name for name in self.needs if name not in before]:
            yield f"arm {self.name} needs {', '.join(missing)}, expected an arm before it"
        if (self.mask is None) != (self.of is None):
            yield f"arm {self.name}: expected both of mask and of, or neither"
        for key, other in (("mask", self.of), ("model", self.start)):
            if other is not None and key in self.settings:
                yield f"arm {self.name}: its {key} is that of arm {other}, and {key} is also set"


@dataclass(frozen=True)
class SweepSettings:
    """The content of a sweep file.

    Attributes:
        path: The TOML file.
        output: Output folder of the sweep.
        arms: At least one.
        axes: Dotted key of the run file -> its values in each arm.
        evaluate: The questions for the trained models; None for no evaluation.
    """

    path: Path
    output: Path
    arms: tuple[Arm, ...]
    axes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    evaluate: QuestionsTable | None = None

    @classmethod
    def read(cls, path: str | Path) -> SweepSettings:
        """Read and check a sweep file.

        Raises:
            SettingsError: The file cannot be read, or its settings are invalid; lists all problems.
        """
        path = Path(path)
        content = read_toml(path, SettingsError)
        problems: list[str] = []
        problems += [unknown_key(key, _KNOWN) for key in content if key not in _KNOWN]
        top = check_table(_Top, {key: content[key] for key in _TOP if key in content}, "", problems)
        axes = _axes(_table(content, "sweep", problems), problems)
        common = _settings(_table(content, "set", problems), "set", problems)
        arms = _arms(content.get("arm"), top.get("run"), path.parent, common, problems)
        evaluate = None
        if "evaluate" in content:
            evaluate = _evaluate(_table(content, "evaluate", problems), problems)
        if not top.get("output"):
            problems.append("missing: output, the folder of the sweep")
        if len(arms) * prod(map(len, axes.values())) > MOST_CELLS:
            problems.append(f"more than {MOST_CELLS:,} cells")
        elif not problems and not axes and len(arms) < 2:
            problems.append("nothing to sweep: expected [sweep] with lists of values, or [[arm]]s")
        if problems:
            raise SettingsError(f"{path}: {'; '.join(problems)}")
        return cls(path, path.parent / Path(top["output"]).expanduser(), arms, axes, evaluate)


@dataclass(frozen=True)
class _Top:
    """Top-level keys."""

    run: str
    output: str


@dataclass(frozen=True)
class ArmTable:
    """Keys of `[[arm]]`."""

    name: str
    run: str | None = None
    set: dict[str, Any] | None = None
    mask: MaskKind | None = None
    of: str | None = None
    start: str | None = None


_TOP = tuple(key.name for key in fields(_Top))
_KNOWN = (*_TOP, "set", "sweep", "arm", "evaluate")


def _table(content: Mapping[str, Any], name: str, problems: list[str]) -> Mapping[str, Any]:
    given = content.get(name, {})
    if isinstance(given, dict):
        return given
    problems.append(f"{name} is not a table: expected [{name}] and its keys below")
    return {}


def _axes(given: Mapping[str, Any], problems: list[str]) -> dict[str, tuple[Any, ...]]:
    axes: dict[str, tuple[Any, ...]] = {}
    for key, values in _settings(given, "sweep", problems).items():
        shown = key.removeprefix("factors.")
        if not isinstance(values, list) or not values:
            problems.append(f"sweep.{shown}: expected a list of values")
        elif any(values.count(value) > 1 for value in values):
            problems.append(f"sweep.{shown} has the same value twice")
        else:
            axes[key] = tuple(values)
    return axes


def _arms(
    given: Any, run: str | None, folder: Path, common: Mapping[str, Any], problems: list[str]
) -> tuple[Arm, ...]:
    if given is None:
        if run is None:
            problems.append("missing: run, the run file; or [[arm]]s, each with a run")
            return ()
        return (Arm(None, folder / Path(run).expanduser(), common),)
    if not isinstance(given, list) or not all(isinstance(arm, dict) for arm in given) or not given:
        problems.append("arm is not a list of tables: expected [[arm]] and its keys below")
        return ()
    arms = []
    for number, table in enumerate(given, 1):
        good = check_table(ArmTable, table, f"arm {number}: ", problems)
        own = good.get("run", run)
        if not good.get("name"):
            problems.append(f"arm {number} has no name")
        elif own is None:
            problems.append(f"arm {good['name']} has no run, and the sweep has none")
        else:
            where = f"arm {good['name']}"
            settings = _settings(good.get("set") or {}, f"{where}: set", problems)
            needs = {key: good.get(key) for key in ("mask", "of", "start")}
            place = folder / Path(own).expanduser()
            arms.append(Arm(good["name"], place, {**common, **settings}, **needs))
            problems += arms[-1].problems([arm.name for arm in arms[:-1] if arm.name is not None])
    names = [arm.name for arm in arms]
    problems += [
        f"two arms are named {name}" for name in dict.fromkeys(names) if names.count(name) > 1
    ]
    return tuple(arms)


def _evaluate(given: Mapping[str, Any], problems: list[str]) -> QuestionsTable:
    table = QuestionsTable(**check_table(QuestionsTable, given, "evaluate.", problems))
    problems += table.problems()
    return table


def _settings(given: Mapping[str, Any], where: str, problems: list[str]) -> dict[str, Any]:
    """Return dotted keys of the run file -> values."""
    if "output" in given:
        problems.append(f"{where}.output: every cell has its own folder in that of the sweep")
    others = {key: value for key, value in given.items() if key != "output"}
    return dotted_keys(others, f"{where}.", problems)
