"""`Paper`: what a paper claims and how each claim is tried, as `papers/<id>/` says.

`expected.json` is what the paper says, `config.toml` what we do about it. They are the project's
`papers/`, which a wheel carries as data: see `papers_folder`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import trimtab
from trimtab.errors import SettingsError
from trimtab.inputs import read_json, read_toml
from trimtab.papers.measures import MEASURES
from trimtab.papers.scale import Scale
from trimtab.papers.verdicts import BOUNDS

__all__ = ["Claim", "Paper", "PublicPair", "Trial", "paper_ids", "papers_folder", "read_paper"]

CONFIG, EXPECTED, SCALES = "config.toml", "expected.json", "scales"


@dataclass(frozen=True)
class Claim:
    """What a paper says.

    Attributes:
        id: Of the claim, within the paper.
        place: Table, figure or section.
        claim: In our words.
        expected: What was measured -> the figure, as it is printed there.
        unit: Of the figures.
        source: arXiv number, where it is not that of the paper.
        note: Errata, and what to know.
        untestable: Why it cannot be tried at any scale; None if it can.
        same_as: A figure of another paper that it equals: `pair` and `criterion`.
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
    """A figure about two checkpoints that others published.

    Attributes:
        id: By which `--checkpoints` says where they are.
        place: Table, figure or section.
        base: Before, as the paper names it.
        tuned: After.
        sparsity: Criterion -> percent unchanged, as printed: its digits say how exact it is.
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
    """A figure of our runs that a claim is tried by, or a control beside it.

    Attributes:
        claim: The id of the claim.
        measure: A key of `MEASURES`.
        arm: Whose runs are measured.
        settings: Of the measure.
        than: The arm whose figure is subtracted, seed by seed.
        other: For `overlap`: the arm whose masks are the second ones.
        premise: Whether the claim means nothing unless this holds.
        bound: One of `above`, `below` and `within`, or nothing for a control -> its value.
        scales: At which it is tried.
    """

    claim: str
    measure: str
    arm: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    than: str | None = None
    other: str | None = None
    premise: bool = False
    bound: Mapping[str, float] = field(default_factory=dict)
    scales: Sequence[str] = ("small",)

    def describe(self) -> str:
        """What it is, in a few words."""
        arms = f"{self.arm} − {self.than}" if self.than else self.arm
        if self.other:
            is_one = self.arm == self.other
            arms = f"two seeds of {self.arm}" if is_one else f"{self.arm} and {self.other}"
        return f"{MEASURES[self.measure].words(**self.settings)} ({arms})"

    @property
    def arms(self) -> tuple[str, ...]:
        """All arms that it needs."""
        return tuple(arm for arm in (self.arm, self.than, self.other) if arm is not None)


@dataclass(frozen=True)
class Paper:
    """A paper, or several under one heading.

    Attributes:
        folder: Where it is described.
        title: Of the paper.
        arxiv: Its number.
        status: Published, withdrawn, ...
        claims: In the order of the paper.
        trials: In the order of the claims.
        public: Figures about published checkpoints.
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
        """Of the paper: the name of its folder."""
        return self.folder.name

    def scale(self, name: str) -> Scale:
        """The runs of one of its scales.

        Raises:
            SettingsError: It has no such scale, or an arm that is tried is not there.
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
        """Arms that are tried at a scale, in the order of the trials."""
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
    """Where the papers are: in the wheel as data of this package, in a checkout beside `src`.

    Raises:
        SettingsError: Neither is there.
    """
    package = Path(trimtab.__file__).parent
    places = (package / "papers" / "files", package.parent.parent / "papers")
    for place in places:
        if (place / SCALES).is_dir():
            return place
    raise SettingsError(f"no papers are installed: looked in {places[0]} and {places[1]}")


def paper_ids(folder: Path) -> list[str]:
    """Ids of the papers in a folder of papers."""
    return sorted(path.parent.name for path in folder.glob(f"*/{EXPECTED}"))


def read_paper(id: str, folder: Path) -> Paper:
    """Read and check a paper.

    Raises:
        SettingsError: There is none of this id, or its files say what cannot be meant; all
            problems at once.
    """
    known = paper_ids(folder)
    if id not in known:
        raise SettingsError(f"there is no paper {id}, only {', '.join(known)}")
    expected, config = _json(folder / id / EXPECTED), read_toml(folder / id / CONFIG, SettingsError)
    problems: list[str] = []
    claims = tuple(_made(Claim, table, "claim", problems) for table in expected["claims"])
    public = tuple(_made(PublicPair, table, "public", problems) for table in expected["public"])
    trials = tuple(_trial(table, problems) for table in config.get("trial", []))
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
    about = {key: expected[key] for key in ("title", "arxiv", "status")}
    return Paper(folder / id, **about, claims=claims, trials=trials, public=public, seeds=seeds)


def _trial(table: Mapping[str, Any], problems: list[str]) -> Trial:
    bound = {key: table[key] for key in BOUNDS if key in table}
    rest = {key: value for key, value in table.items() if key not in bound}
    if len(bound) > 1:
        problems.append(f"a trial of {table.get('claim')} has {' and '.join(bound)}: expected one")
    trial = _made(Trial, {**rest, "bound": bound}, "trial", problems)
    measure = MEASURES.get(trial.measure)
    if measure is None:
        problems.append(f"there is no measure {trial.measure}, only {', '.join(MEASURES)}")
    elif strangers := trial.settings.keys() - set(measure.settings):
        problems.append(f"the measure {trial.measure} has no setting {', '.join(strangers)}")
    return trial


def _made(cls: type[Any], table: Mapping[str, Any], what: str, problems: list[str]) -> Any:
    names = [of.name for of in fields(cls)]
    problems += [
        f"a {what} has a key {key}, expected some of {', '.join(names)}"
        for key in table.keys() - set(names)
    ]
    try:
        return cls(**{key: value for key, value in table.items() if key in names})
    except TypeError as error:
        raise SettingsError(f"a {what} lacks a key: {error} in {dict(table)}") from None


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = read_json(path, SettingsError)
    return content
