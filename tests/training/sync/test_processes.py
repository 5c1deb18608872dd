"""A trainer publishes, and another process follows and generates: what it had, bit for bit."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from tests.training import tiny
from tests.training.sync import worker
from tests.training.sync.worker import follow, train

pytestmark = pytest.mark.train

PATIENCE = 120
"""Seconds."""


@pytest.fixture
def start() -> Iterator[Callable[..., BaseProcess]]:
    """Starts functions in processes, which are over when the test is."""
    context = multiprocessing.get_context("forkserver")
    loads = ["trl.trainer.grpo_trainer", "trl.trainer.sft_trainer", "tests.training.tiny_trainers"]
    context.set_forkserver_preload([*loads, "trimtab.training.sync.publisher", worker.__name__])
    processes: list[BaseProcess] = []

    def begin(run: Callable[..., None], *arguments: Any) -> BaseProcess:
        processes.append(context.Process(target=run, args=arguments, daemon=True))
        processes[-1].start()
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.join()


def lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    found = []
    for line in whole.splitlines():
        with suppress(ValueError):  # cut off when its process was killed
            found.append(json.loads(line))
    return found


def wait_until(condition: Callable[[], object]) -> None:
    ends = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < ends, "it never happened"
        time.sleep(0.02)


def test_an_engine_has_what_the_trainer_had(
    tmp_path: Path, start: Callable[..., BaseProcess]
) -> None:
    """The trainer is interrupted and another begins, the engine is killed and begins again."""
    tiny.make_base(tmp_path / "base")
    trainer, engine = tmp_path / "trainer.jsonl", tmp_path / "engine.jsonl"
    first = start(train, tmp_path, "grpo", 500)
    one = start(follow, tmp_path, 10**6)
    wait_until(lambda: len({line["version"] for line in lines(engine)}) > 3)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGINT)
    one.kill()
    first.join(PATIENCE)
    one.join(PATIENCE)
    assert first.exitcode == 1
    newest = json.loads((tmp_path / "run/chain.json").read_text())["versions"][-1]["number"]
    with engine.open("a") as file:  # a line that was cut off ends here
        file.write("\n")
    other = start(follow, tmp_path, newest + 9)
    wait_until(lambda: lines(engine)[-1].get("version", 0) >= newest)
    second = start(train, tmp_path, "sft", 8)  # from the base: a version too
    second.join(PATIENCE)
    other.join(PATIENCE)
    assert (second.exitcode, other.exitcode) == (0, 0)
    said = [line for line in lines(trainer) if "hash" in line]
    held = {line["hash"] for line in said}
    of_version = {line["version"]: line["hash"] for line in said if "version" in line}
    served = lines(engine)
    assert served[-1]["error"] == "None" and served[-1]["version"] == newest + 9
    for line in served:
        assert line["before"] in held
        assert line["before"] == of_version.get(line["version"], line["before"])
        assert line.get("after", line["before"]) == line["before"]
    assert len({line["version"] for line in served}) > 6
