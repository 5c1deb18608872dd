"""`Cell`: an arm of a scale under one seed, as a folder with an ordinary run file in it.

::

    OUT/small/base/                     the base of all cells
    OUT/small/data/                     what they are trained on and asked
    OUT/small/cells/grpo/seed-0/
        run.toml                        `trimtab train run.toml` trains it, or goes on with it
        mask.safetensors                what is trained, where not everything is
        out/                            what the run leaves
        changed.safetensors             what it changed, by bits in the dtype of the base
        comparison.json, evaluation.json, …
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.errors import OutputExistsError, SettingsError
from trimtab.inputs import read_toml
from trimtab.outputs import new_file
from trimtab.papers.run_toml import as_toml
from trimtab.papers.scale import Arm, Scale

__all__ = ["BASE", "DATA", "Cell", "cells_of"]

BASE, DATA = "base", "data"
CELLS = "cells"
RUN = "run.toml"
MASK = "mask.safetensors"
OUT = "out"


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        scale: Whose arm it is.
        arm: The arm.
        seed: Its seed.
        root: Folder of the scale's cells and base.
    """

    scale: Scale
    arm: Arm
    seed: int
    root: Path

    @property
    def name(self) -> str:
        """Arm and seed."""
        return f"{self.arm.name}/seed-{self.seed}"

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.root / CELLS / self.arm.name / f"seed-{self.seed}"

    @property
    def run(self) -> Path:
        """Its run file."""
        return self.folder / RUN

    @property
    def mask(self) -> Path:
        """The mask that it trains only, if its arm has one."""
        return self.folder / MASK

    @property
    def changed(self) -> Path:
        """The mask of what it changed, by bits in the dtype of the base."""
        return self.folder / "changed.safetensors"

    @property
    def model(self) -> Path:
        """The trained checkpoint."""
        return self.folder / OUT / "model"

    @property
    def result(self) -> Path:
        """What the run says of itself; written last, so it marks a finished run."""
        return self.folder / OUT / "result.json"

    @property
    def base(self) -> Path:
        """The base of the scale."""
        return self.root / BASE

    @property
    def start(self) -> Path:
        """What its training starts from: the base, or the model of another cell."""
        for other in self.needs():
            if other.arm.name == self.arm.start:
                return other.model
        return self.base

    @property
    def questions(self) -> Path:
        """What its model is asked."""
        return self.root / DATA / Path(self.arm.asked or self.scale.evaluate.file).name

    @property
    def is_trained(self) -> bool:
        """Whether its run is finished."""
        return self.result.exists()

    @property
    def is_done(self) -> bool:
        """Whether what it changed is known, too."""
        return self.changed.exists()

    @property
    def minutes(self) -> float:
        """What its training takes, roughly, on one CPU core."""
        return self.scale.minutes if self.arm.minutes is None else self.arm.minutes

    @property
    def is_saved_as_fp32(self) -> bool:
        """Whether its model is stored as it was trained, and not in the dtype of the base."""
        return self.arm.set.get("save_dtype") == "fp32"

    def needs(self) -> tuple[Cell, ...]:
        """Cells of the same seed that must be finished before."""
        arms = (self.scale.arms[name] for name in self.arm.needs)
        return tuple(Cell(self.scale, arm, self.seed, self.root) for arm in arms)

    def content(self) -> dict[str, Any]:
        """The run file: that of the arm, with its keys, the seed, and paths from this folder."""
        file = self.scale.folder / self.arm.run
        content = read_toml(file, SettingsError)
        for key, value in self.arm.set.items():
            table, _, name = key.rpartition(".")
            (content.setdefault(table, {}) if table else content)[name] = value
        data = content["data"]
        data["file"] = self._from_here(self.root / DATA / Path(data["file"]).name)
        given = {
            "model": self._from_here(self.start),
            "output": OUT,
            "seed": self.seed,
            **({} if self.arm.mask is None else {"mask": MASK}),
        }
        return {**content, **given}

    def check(self) -> None:
        """Refuse what is there of another run.

        Raises:
            OutputExistsError: The run file there says something else.
        """
        if self.run.exists() and self.run.read_text("utf-8") != as_toml(self.content()):
            raise OutputExistsError(
                f"{self.run} is of another run than {self.scale.folder / self.arm.run} says now: "
                "choose another --out, or delete the folder"
            )

    def write(self) -> None:
        """Write the run file.

        Raises:
            OutputExistsError: There is one that says something else.
        """
        self.check()
        self.folder.mkdir(parents=True, exist_ok=True)
        with new_file(self.run, force=True) as file:
            file.write(as_toml(self.content()).encode())

    def _from_here(self, path: Path) -> str:
        return Path(os.path.relpath(path, self.folder)).as_posix()


def cells_of(
    scale: Scale,
    arms: Iterable[str],
    seeds: Sequence[int],
    root: Path,
    *,
    with_more_seeds: bool = False,
) -> list[Cell]:
    """Cells of some arms and of all that these need, each after those that it needs.

    Cells of one seed come together, so that a comparison of arms is whole as soon as it can be.

    Args:
        scale: Whose arms they are.
        arms: Their names.
        seeds: Of every arm.
        root: Folder of the scale's cells and base.
        with_more_seeds: Also run an arm under the further seeds that the scale has for it.
    """
    wanted: dict[str, set[int]] = {}

    def add(name: str, under: Iterable[int]) -> None:
        for other in scale.arms[name].needs:
            add(other, under)
        wanted.setdefault(name, set()).update(under)

    for name in arms:
        add(name, [*seeds, *(scale.arms[name].more_seeds if with_more_seeds else ())])
    every = dict.fromkeys([*seeds, *sorted(set().union(*wanted.values()))])
    return [
        Cell(scale, scale.arms[name], seed, root)
        for seed in every
        for name, under in wanted.items()
        if seed in under
    ]
