"""`Paper`: the claims of a paper and their tests; and `Scale`: the runs that papers share.

They are described in `papers/` of the project, which a wheel has as data (see `papers_folder`): in
`<id>/expected.json` the claims, in `<id>/config.toml` their trials, and in `scales/<name>` the arms
of a scale. Papers name arms, so papers that use the same arm share its cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import trimtab
from trimtab.errors import SettingsError
from trimtab.inputs import read_json, read_toml
from trimtab.papers.measures import MEASURES
from trimtab.papers.results import BOUNDS
from trimtab.results.tables import made_from_table
from trimtab.training.sweeps.cell import CELLS, Cell, made_cell
from trimtab.training.sweeps.settings import Arm, ArmTable

CONFIG, EXPECTED, SCALES, SCALE = "config.toml", "expected.json", "scales", "scale.toml"

BASE = "base"
"""Folder of the base of all cells, in the folder of the scale's runs."""

Made = TypeVar("Made")

BaseName = Literal["smollm2", "tiny"]
"""The base model of a scale."""


@dataclass(frozen=True)
class Evaluate:
    """The questions for every trained model.

    Attributes:
        file: JSON Lines with `prompt` and `answer`, in the folder of the scale.
        pattern: Regular expression whose first group is the answer.
        max_tokens: Maximum tokens of an answer.
        samples: Sampled answers per question, in addition to the greedy one.
    """

    file: str
    pattern: str
    max_tokens: int
    samples: int


@dataclass(frozen=True)
class PaperArm(Arm):
    """An arm of a sweep with further keys, those of `[[arm]]` of a scale.

    Attributes:
        asked: File of questions that replaces that of the scale.
        more_seeds: Seeds in addition to those of a paper, for arms that are cheap enough.
        minutes: Duration of a cell, if it differs from that of the scale.
    """

    asked: str | None = None
    more_seeds: tuple[int, ...] = ()
    minutes: float | None = None


@dataclass(frozen=True)
class _PaperArmTable(ArmTable):
    asked: str | None = None
    more_seeds: tuple[int, ...] = ()
    minutes: float | None = None


@dataclass(frozen=True)
class _Top:
    """Top-level keys of a scale."""

    base: BaseName
    minutes: float


@dataclass(frozen=True)
class Scale:
    """The arms of one scale.

    Attributes:
        folder: Folder of its description.
        base: Its base model.
        minutes: Approximate duration of a cell on one CPU core.
        evaluate: The questions for the models.
        arms: By name; arms come after those that they need.
    """

    folder: Path
    base: BaseName
    minutes: float
    evaluate: Evaluate
    arms: Mapping[str, PaperArm]

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.name

    @classmethod
    def read(cls, folder: Path) -> Scale:
        """Read and check the description of a scale.

        Raises:
            SettingsError: The description is invalid; lists all problems.
        """
        path = folder / SCALE
        content = read_toml(path, SettingsError)
        problems: list[str] = []
        tables = ("evaluate", "arm")
        keys = {key: value for key, value in content.items() if key not in tables}
        top = made_from_table(_Top, keys, "the scale", problems)
        evaluate = made_from_table(Evaluate, content.get("evaluate"), "[evaluate]", problems)
        arms: dict[str, PaperArm] = {}
        for number, given in enumerate(content.get("arm", []), start=1):
            where = f"arm {given.get('name', number)}"
            table = made_from_table(_PaperArmTable, given, where, problems)
            if table is None or table.run is None:
                if table is not None:
                    problems.append(f"{where} lacks run")
                continue
            rest = {key: v for key, v in vars(table).items() if key not in ("run", "set")}
            arm = PaperArm(run=folder / table.run, settings=table.set or {}, **rest)
            if table.name in arms:
                problems.append(f"two arms are named {table.name}")
            if not arm.run.is_file():
                problems.append(f"{where}: {arm.run} is not a file")
            if any(seed < 0 for seed in arm.more_seeds):
                problems.append(
                    f"{where}: more_seeds is {list(arm.more_seeds)}, expected none below 0"
                )
            problems += arm.problems(arms)
            arms[table.name] = arm
        if problems:
            raise SettingsError(f"{path}: {'; '.join(problems)}")
        assert top is not None and evaluate is not None
        return cls(folder, top.base, top.minutes, evaluate, arms)


@dataclass(frozen=True)
class PaperCell:
    """An arm of a scale with one seed.

    Attributes:
        scale: The scale.
        arm: The arm.
        seed: The seed.
        root: Folder of the scale's cells and base.
        cell: The cell of a sweep.
    """

    scale: Scale
    arm: PaperArm
    seed: int
    root: Path
    cell: Cell

    @property
    def name(self) -> str:
        """Arm and seed."""
        return self.cell.name

    @property
    def base(self) -> Path:
        """The base of the scale."""
        return self.root / BASE

    @property
    def questions(self) -> Path:
        """File of the questions for its model."""
        return self.scale.folder / (self.arm.asked or self.scale.evaluate.file)

    @property
    def minutes(self) -> float:
        """Approximate duration of its training on one CPU core."""
        return self.scale.minutes if self.arm.minutes is None else self.arm.minutes

    @property
    def is_saved_as_fp32(self) -> bool:
        """Whether its model is saved in fp32 instead of the dtype of the base."""
        return self.arm.settings.get("save_dtype") == "fp32"


def cells_of(
    scale: Scale,
    arms: Iterable[str],
    seeds: Sequence[int],
    root: Path,
    *,
    with_more_seeds: bool = False,
) -> list[PaperCell]:
    """Cells of some arms and of those that they need, each after the cells that it needs.

    They are ordered by seed, so that a comparison of arms is complete as early as possible.

    Args:
        scale: The scale of the arms.
        arms: Names of arms.
        seeds: Seeds of every arm.
        root: Folder of the scale's cells and base.
        with_more_seeds: Also include the additional seeds of arms.
    """
    wanted: dict[str, set[int]] = {}

    def add(name: str, under: Iterable[int]) -> None:
        for other in scale.arms[name].needs:
            add(other, under)
        wanted.setdefault(name, set()).update(under)

    for name in arms:
        add(name, [*seeds, *(scale.arms[name].more_seeds if with_more_seeds else ())])
    contents = {name: read_toml(scale.arms[name].run, SettingsError) for name in wanted}
    cells: list[PaperCell] = []
    for seed in dict.fromkeys([*seeds, *sorted(set().union(*wanted.values()))]):
        of_seed: dict[str, Cell] = {}
        for name in (name for name, under in wanted.items() if seed in under):
            arm = scale.arms[name]
            base = {} if arm.start else {"model": str((root / BASE).resolve())}
            of_seed[name] = made_cell(
                arm,
                contents[name],
                {**arm.settings, "seed": seed, **base},
                of_seed,
                name=f"{name}/seed-{seed}",
                arm_name=name,
                folder=root / CELLS / name / f"seed-{seed}",
            )
            cells.append(PaperCell(scale, arm, seed, root, of_seed[name]))
    return cells


@dataclass(frozen=True)
class Claim:
    """A claim of a paper.

    Attributes:
        id: Id within the paper.
        place: Table, figure or section.
        claim: The claim in our words.
        expected: Quantity -> value, as printed.
        unit: Unit of the values.
        source: arXiv number, if it differs from that of the paper.
        note: Errata and remarks.
        untestable: Why it cannot be tested at any scale; None if it can.
        same_as: An identical figure of another paper: `pair` and `criterion`.
    """

    id: str
    place: str
    claim: str
    expected: Mapping[str, float | str] = field(default_factory=dict)
    unit: str = ""
    source: str | None = None
    note: str | None = None
    untestable: str | None = None
    same_as: Mapping[str, str] | None = None


@dataclass(frozen=True)
class PublicPair:
    """A claim about two published checkpoints.

    Attributes:
        id: Id in the file of `--checkpoints`.
        place: Table, figure or section.
        base: The base model, as the paper names it.
        tuned: The tuned model.
        sparsity: Criterion -> percent unchanged, as printed; the digits give the precision.
        note: Errata.
    """

    id: str
    place: str
    base: str
    tuned: str
    sparsity: Mapping[str, str]
    note: str | None = None


@dataclass(frozen=True)
class Trial:
    """A figure of our runs that tests a claim, or a control.

    Attributes:
        claim: The id of the claim.
        measure: A key of `MEASURES`.
        arm: The arm that is measured.
        settings: Settings of the measure.
        than: The arm whose figure is subtracted, seed by seed.
        other: For `overlap`: the arm of the second masks.
        premise: Whether the claim is only meaningful if this trial holds.
        bound: One of `above`, `below` and `within` -> its value; empty for a control.
        scales: Scales at which it is run.
    """

    claim: str
    measure: str
    arm: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    than: str | None = None
    other: str | None = None
    premise: bool = False
    bound: Mapping[str, float] = field(default_factory=dict)
    scales: tuple[str, ...] = ("small",)

    def problems(self) -> Iterator[str]:
        """Problems of the trial."""
        if len(self.bound) > 1:
            yield f"a trial of {self.claim} has {' and '.join(self.bound)}: expected one"
        measure = MEASURES.get(self.measure)
        if measure is None:
            yield f"there is no measure {self.measure}, only {', '.join(MEASURES)}"
        elif strangers := self.settings.keys() - set(measure.settings):
            yield f"the measure {self.measure} has no setting {', '.join(strangers)}"

    def describe(self) -> str:
        """A short description."""
        arms = f"{self.arm} − {self.than}" if self.than else self.arm
        if self.other:
            is_one = self.arm == self.other
            arms = f"two seeds of {self.arm}" if is_one else f"{self.arm} and {self.other}"
        return f"{MEASURES[self.measure].describe(self.settings)} ({arms})"

    @property
    def arms(self) -> tuple[str, ...]:
        """All arms that it needs."""
        return tuple(arm for arm in (self.arm, self.than, self.other) if arm is not None)


@dataclass(frozen=True)
class Paper:
    """A paper, or several under one heading.

    Attributes:
        folder: Folder of its description.
        title: Title.
        arxiv: arXiv number.
        status: Published, withdrawn, ...
        claims: Claims, in the order of the paper.
        trials: Trials, in the order of the claims.
        public: Claims about published checkpoints.
        seeds: Scale -> seeds of its runs.
    """

    folder: Path
    title: str
    arxiv: str
    status: str
    claims: tuple[Claim, ...]
    trials: tuple[Trial, ...]
    public: tuple[PublicPair, ...]
    seeds: Mapping[str, Sequence[int]]

    @property
    def id(self) -> str:
        """The name of its folder."""
        return self.folder.name

    def scale(self, name: str) -> Scale:
        """One of its scales.

        Raises:
            SettingsError: The paper has no such scale, or the scale lacks an arm of a trial.
        """
        if name not in self.seeds:
            raise SettingsError(f"{self.id} has no scale {name}, only {', '.join(self.seeds)}")
        scale = Scale.read(self.folder.parent / SCALES / name)
        wanted = {arm for trial in self.trials_at(name) for arm in trial.arms}
        if missing := sorted(wanted - scale.arms.keys()):
            raise SettingsError(
                f"{self.folder / CONFIG}: scale {name} has no arm {', '.join(missing)}"
            )
        return scale

    def trials_at(self, scale: str) -> list[Trial]:
        """The trials of a scale."""
        return [trial for trial in self.trials if scale in trial.scales]

    def arms_at(self, scale: str) -> list[str]:
        """Arms of the trials at a scale, in the order of the trials."""
        arms = (arm for trial in self.trials_at(scale) for arm in trial.arms)
        return list(dict.fromkeys(arms))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "id": self.id,
            "title": self.title,
            "arxiv": self.arxiv,
            "status": self.status,
            "claims": [
                {
                    **asdict(claim),
                    "trials": [
                        {**asdict(trial), "about": trial.describe()}
                        for trial in self.trials
                        if trial.claim == claim.id
                    ],
                }
                for claim in self.claims
            ],
            "public": [asdict(pair) for pair in self.public],
        }


def papers_folder() -> Path:
    """The folder of the papers: data of the package in a wheel, next to `src` in a checkout.

    Raises:
        SettingsError: Neither exists.
    """
    package = Path(trimtab.__file__).parent
    candidates = (package / "papers" / "files", package.parent.parent / "papers")
    for candidate in candidates:
        if (candidate / SCALES).is_dir():
            return candidate
    raise SettingsError(f"no papers are installed: looked in {candidates[0]} and {candidates[1]}")


def paper_ids(folder: Path) -> list[str]:
    """Ids of the papers in a folder."""
    return sorted(path.parent.name for path in folder.glob(f"*/{EXPECTED}"))


def read_paper(id: str, folder: Path) -> Paper:
    """Read and check a paper.

    Raises:
        SettingsError: There is no such paper, or its files are invalid; lists all problems.
    """
    known = paper_ids(folder)
    if id not in known:
        raise SettingsError(f"there is no paper {id}, only {', '.join(known)}")
    expected = read_json(folder / id / EXPECTED, SettingsError)
    config = read_toml(folder / id / CONFIG, SettingsError)
    problems: list[str] = []
    claims = _all_made(Claim, expected["claims"], "claim", problems)
    public = _all_made(PublicPair, expected["public"], "pair", problems)
    trials = _all_made(Trial, map(_with_bound, config.get("trial", [])), "trial of", problems)
    problems += [problem for trial in trials for problem in trial.problems()]
    ids = [claim.id for claim in claims] + [pair.id for pair in public]
    problems += [f"two claims have the id {id}" for id in {id for id in ids if ids.count(id) > 1}]
    problems += [
        f"a trial is of the claim {trial.claim}, which {EXPECTED} does not have"
        for trial in trials
        if trial.claim not in ids
    ]
    if problems:
        raise SettingsError(f"{folder / id}: {'; '.join(problems)}")
    seeds = {scale: table["seeds"] for scale, table in config["scale"].items()}
    about = (expected["title"], expected["arxiv"], expected["status"])
    return Paper(folder / id, *about, claims, trials, public, seeds)


def _all_made(
    cls: type[Made], tables: Iterable[Mapping[str, Any]], what: str, problems: list[str]
) -> tuple[Made, ...]:
    """Tables as objects, without those that have a problem."""
    made = [
        made_from_table(cls, table, f"{what} {table.get('id', table.get('claim'))}", problems)
        for table in tables
    ]
    return tuple(one for one in made if one is not None)


def _with_bound(table: Mapping[str, Any]) -> dict[str, Any]:
    """A trial from TOML, with its bound as a mapping."""
    bound = {key: table[key] for key in BOUNDS if key in table}
    rest = {key: value for key, value in table.items() if key not in bound}
    return {**rest, "bound": bound} if bound else rest
