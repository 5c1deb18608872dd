"""What each key of a run file allows, and the file as a whole does not.

Each function yields one sentence for each problem, so that all can be told at once. A table that
is missing, or was no table, is None here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from trimtab.training.runs.algorithms import ALGORITHMS, Algorithm
from trimtab.training.runs.tables import (
    ADDITION,
    REASONING_GYM,
    AutoTable,
    DataTable,
    OptimizerTable,
    RewardTable,
    SamplesTable,
)

__all__ = ["contradictions"]


def contradictions(top: Mapping[str, Any], tables: Mapping[str, Any]) -> Iterator[str]:
    """Say what cannot be meant.

    Args:
        top: The keys that are in no table.
        tables: The tables that the file has.
    """
    if not 0 <= top.get("seed", 0) < 2**32:
        yield f"seed is {top['seed']}, expected 0 to 2**32 - 1"
    yield from (f"{key} is empty" for key in ("model", "output", "mask") if top.get(key) == "")
    if not 0 <= top.get("dropout", 0) < 1:
        yield f"dropout is {top['dropout']}, expected at least 0 and below 1"
    if (track := top.get("track")) is not None:
        yield from _of_track(track, top.get("mask"), tables.get("auto", AutoTable()))
    data, reward, samples = (tables.get(name) for name in ("data", "reward", "samples"))
    if data is not None:
        yield from _of_data(data)
    if reward is not None:
        yield from _of_reward(reward)
    if samples is not None:
        yield from _of_samples(samples)
    yield from _of_algorithm(top.get("algorithm"), data, "reward" in tables, "samples" in tables)
    yield from _of_mask(top.get("mask"), tables.get("optimizer"))
    if top.get("also"):
        yield from _of_also(top.get("mask"), tables.get("auto", AutoTable()))
    if (auto := tables.get("auto")) is not None:
        yield from _of_auto(top.get("mask"), auto)


def _of_track(track: int, mask: str | None, auto: AutoTable | None) -> Iterator[str]:
    if track < 1:
        yield f"track is {track}, expected a number of steps from 1 on"
    if mask == "auto" and auto is not None and auto.probe == "adamw":
        yield 'track: mask = "auto" with probe = "adamw" trains twice, and one can be followed'


def _of_also(mask: str | None, auto: AutoTable | None) -> Iterator[str]:
    if mask in ("none", "all"):
        yield f'also has no effect with mask = "{mask}", which trains everything'
    if mask == "auto" and auto is not None and auto.probe == "adamw":
        yield 'also: not with mask = "auto" and probe = "adamw", which takes what moves'


def _of_data(data: DataTable) -> Iterator[str]:
    if (data.file is None) == (data.task is None):
        yield "data: expected one of file and task"
    if data.task not in (None, ADDITION) and not data.is_gym:
        yield f'data.task is "{data.task}", expected "{ADDITION}" or "{REASONING_GYM}NAME"'
    if not data.is_gym:
        yield from _without_effect(
            "data",
            data,
            DataTable(),
            ("size", "chat", "config"),
            f'without a task "{REASONING_GYM}…"',
        )
    if data.size < 1:
        yield f"data.size is {data.size}, expected at least 1"


def _of_reward(reward: RewardTable) -> Iterator[str]:
    ways = [way for way in ("function", "kind", "model") if getattr(reward, way) is not None]
    if len(ways) != 1:
        yield "reward: expected one of function, kind and model"
        return
    if reward.kind is None:
        names = ("column", "pattern")
        yield from _without_effect("reward", reward, RewardTable(), names, f"with {ways[0]}")


def _of_samples(samples: SamplesTable) -> Iterator[str]:
    for name in ("num", "max_completion_length", "batch_size", "most"):
        if (value := getattr(samples, name)) is not None and value < 1:
            yield f"samples.{name} is {value}, expected at least 1"
    if not samples.temperature > 0:
        yield f"samples.temperature is {samples.temperature}, expected above 0"
    if samples.stop == "":
        yield "samples.stop is empty"
    if samples.rule == "best":
        names = ("threshold", "most")
        yield from _without_effect("samples", samples, SamplesTable(), names, 'with rule = "best"')


def _of_algorithm(
    name: str | None, data: DataTable | None, has_reward: bool, has_samples: bool
) -> Iterator[str]:
    if name is None:
        return
    if name not in ALGORITHMS:
        near = get_close_matches(name, ALGORITHMS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(ALGORITHMS)}"
        yield f'algorithm is "{name}": {hint}'
        return
    algorithm = ALGORITHMS[name]
    if has_samples and algorithm.made_of_samples is None:
        yield f"samples: {_why_no_samples(algorithm)}"
        return
    is_rewarded = algorithm.takes_reward or algorithm.needs_samples or has_samples
    has_task = data is not None and data.task is not None
    if has_reward and not is_rewarded:
        hint = " without [samples]" if algorithm.made_of_samples else ""
        yield f"reward: {name} takes none{hint}"
    elif has_reward and has_task:
        yield "reward: a task brings its own"
    elif is_rewarded and not has_reward and not has_task:
        yield f"{name} needs a table [reward], with function, kind or model"
    learns_wrong_ones = "rejected" in algorithm.columns or "label" in algorithm.columns
    if data is not None and data.is_gym and not is_rewarded and learns_wrong_ones:
        yield f"data.task: reasoning_gym has no wrong answers for {name}: add a table [samples]"


def _why_no_samples(algorithm: Algorithm) -> str:
    if algorithm.takes_reward:
        return f"{algorithm.name} draws its samples while it trains"
    return f'{algorithm.name} trains on the data: expected algorithm = "rft" for samples of its own'


def _of_mask(mask: str | None, optimizer: OptimizerTable | None) -> Iterator[str]:
    if mask == "none" and optimizer is not None:
        usual = OptimizerTable(name=optimizer.name)
        names = [field.name for field in fields(usual)]
        yield from _without_effect("optimizer", optimizer, usual, names, 'with mask = "none"')
    kind, colon, density = (mask or "").partition(":")
    if kind == "random":
        try:
            good = bool(colon) and 0 < float(density) <= 1
        except ValueError:
            good = False
        if not good:
            yield f'mask is "{mask}", expected random:DENSITY, above 0 and at most 1'


def _of_auto(mask: str | None, auto: AutoTable) -> Iterator[str]:
    if mask != "auto":
        yield 'auto: for mask = "auto" only'
    for name, least in (("steps", 1), ("every", 1), ("settle", 0)):
        if (value := getattr(auto, name)) < least:
            yield f"auto.{name} is {value}, expected at least {least}"
    if auto.probe == "gradients" and (auto.density is None or not 0 < auto.density < 1):
        yield f'auto.density is {auto.density}, and probe = "gradients" needs one between 0 and 1'
    if auto.probe == "adamw" and auto.density is not None:
        yield 'auto.density has no effect with probe = "adamw": the mask is what moved'


def _without_effect(
    table: str, given: object, usual: object, names: Any, where: str
) -> Iterator[str]:
    """A key that says something where nothing reads it."""
    for name in names:
        if getattr(given, name) != getattr(usual, name):
            yield f"{table}.{name} has no effect {where}"
