"""Time of each stage between trainer and follower, and what publishing costs a trainer.

`replayed` takes a model through steps of `benchmarks.sync_runs` again, which were real ones, and
publishes and follows each alone, so that processor time can be told by side. `contest` trains, with
and without publishing, in turn.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

from benchmarks.processes import in_own_process
from benchmarks.runs import paced
from benchmarks.sync_runs import Steps, train
from benchmarks.turns import Turn, in_turn

Report = dict[str, Any]

ALONE, PUBLISHED = "alone", "published"


class Clock:
    """Seconds of wall time and of this process since the last reading."""

    def __init__(self) -> None:
        self._last = perf_counter(), process_time()

    def read(self) -> tuple[float, float]:
        """Both, and begin again."""
        now = perf_counter(), process_time()
        passed = now[0] - self._last[0], now[1] - self._last[1]
        self._last = now
        return passed


def replayed(base: Path, deltas: Sequence[Path]) -> list[Report]:
    """Publish each step of a run, and follow it with another model in memory.

    Args:
        base: The checkpoint that the run began with.
        deltas: Its steps.

    Returns:
        Of each step: bytes, seconds of each stage, and processor seconds of what the trainer waits
        for (`blocked`), of what happens meanwhile (`background`), and of the follower.
    """
    from transformers import AutoModelForCausalLM

    from trimtab.training import load_delta, runtime
    from trimtab.training.sync.follower import DeltaFollower
    from trimtab.training.sync.publisher import DeltaPublisher

    rows: list[Report] = []
    with TemporaryDirectory() as folder, runtime.quiet():
        trained, served = (AutoModelForCausalLM.from_pretrained(base, dtype="auto") for _ in "12")
        with (
            DeltaPublisher(folder, base=base) as publisher,
            DeltaFollower(served, folder, base=base, name="served", threads=1) as follower,
        ):
            publisher.publish(trained, step=0)
            for step, delta in enumerate(deltas, 1):
                load_delta(trained, delta, threads=1)
                clock = Clock()
                before = publisher.version
                if publisher.publish(trained, step=step) == before:
                    continue  # bf16 has absorbed the step
                blocked = clock.read()
                publisher.wait()
                background = clock.read()
                follower.update()
                followed = clock.read()
                version = publisher.published[-1]
                assert follower.last is not None and follower.version == publisher.version
                rows.append(
                    {
                        "step": step,
                        "num_bytes": version.num_bytes,
                        "num_dense_bytes": version.num_dense_bytes,
                        "num_changed": version.num_changed,
                        "seconds": {**version.seconds, **follower.last.seconds},
                        "processor_seconds": {
                            "blocked": blocked[1],
                            "background": background[1],
                            "follower": followed[1],
                        },
                        "wall_seconds": {
                            "blocked": blocked[0],
                            "background": background[0],
                            "follower": followed[0],
                        },
                    }
                )
    return rows


def measure_stages(base: Path, deltas: Sequence[Path]) -> Report:
    """Medians over steps; the first one compiles, and is left out."""
    rows = in_own_process(replayed, base, deltas)[1:]
    return {
        "steps": [row["step"] for row in rows],
        "num_bytes": median(row["num_bytes"] for row in rows),
        "num_dense_bytes": rows[0]["num_dense_bytes"],
        **{
            kind: {
                stage: median(row[kind].get(stage, 0.0) for row in rows) for stage in rows[0][kind]
            }
            for kind in ("seconds", "processor_seconds", "wall_seconds")
        },
    }


def contest(
    turn: Turn, publishes: bool, base: Path, learning_rate: float, rounds: int
) -> list[float]:
    """Train by turns of one step, in a process of its own.

    Returns:
        Processor seconds of each step after the first, those of its threads included.
    """
    from transformers import TrainerCallback

    from trimtab.training.sync.publisher import DeltaPublisher

    warnings.simplefilter("ignore")
    times: list[float] = []

    class Timed(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            times.append(process_time())

    with TemporaryDirectory() as folder:
        place = Path(folder, "place")
        publisher = DeltaPublisher(place, base=base) if publishes else None
        run = Steps("SmolLM2-135M", learning_rate, 1 + rounds)
        train(run, base, Path(folder), [Timed(), paced(turn, 1)], publisher)
    return [after - before for before, after in pairwise(times)]


def measure_overhead(base: Path, learning_rate: float, rounds: int) -> Report:
    """Processor time of a step that is published, as a ratio to one that is not."""
    played = in_turn(
        contest,
        {
            ALONE: (False, base, learning_rate, rounds),
            PUBLISHED: (True, base, learning_rate, rounds),
        },
        rounds,
    )
    times = {name: of.result for name, of in played.items()}
    pairs = list(zip(times[ALONE], times[PUBLISHED], strict=True))
    return {
        "rounds": rounds,
        "learning_rate": learning_rate,
        "processor_seconds": {name: median(result) for name, result in times.items()},
        "ratio": median(published / alone for alone, published in pairs),
        "wall_seconds": {name: median(of.seconds) for name, of in played.items()},
    }
