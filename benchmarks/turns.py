"""Contestants that take turns, each in a process of its own, which waits until it is asked.

So each has its memory to itself, and still a slow minute of the machine hits all of them.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any, NamedTuple

__all__ = ["Played", "Turn", "in_turn"]


class Turn:
    """The turns of a contestant, in its process."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._started = 0.0

    def wait(self) -> None:
        """Sleep until the next turn."""
        self._connection.recv()
        self._started = perf_counter()

    def over(self) -> None:
        """End the turn: tell how long it took."""
        self._connection.send(perf_counter() - self._started)


class Played(NamedTuple):
    """What came of a contestant.

    Attributes:
        seconds: Of each of its turns but the first, which warms up.
        result: What its function returned.
    """

    seconds: list[float]
    result: Any


def in_turn(
    function: Callable[..., Any], contestants: Mapping[str, tuple[Any, ...]], rounds: int
) -> dict[str, Played]:
    """Let contestants take turns, round by round.

    Args:
        function: Called in each process with a `Turn` and the arguments of the contestant; it must
            wait for, and end, `1 + rounds` turns.
        contestants: Name -> arguments.
        rounds: Rounds that count.

    Raises:
        RuntimeError: A contestant ended too early; its process has said why on stderr.
    """
    context = multiprocessing.get_context("spawn")
    connections: dict[str, Connection] = {}
    processes = []
    try:
        for name, arguments in contestants.items():
            connections[name], theirs = context.Pipe()
            process = context.Process(target=_play, args=(function, theirs, arguments), daemon=True)
            process.start()
            processes.append(process)
            theirs.close()  # so that the end of the process is the end of the connection
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(1 + rounds):
            for name, connection in connections.items():
                seconds[name].append(_ask(name, connection))
        results = {name: _answer(name, connection) for name, connection in connections.items()}
        for process in processes:
            process.join()
        return {name: Played(seconds[name][1:], results[name]) for name in contestants}
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _play(function: Callable[..., Any], connection: Connection, arguments: tuple[Any, ...]) -> None:
    connection.send(function(Turn(connection), *arguments))


def _ask(name: str, connection: Connection) -> float:
    try:
        connection.send(None)
    except BrokenPipeError:
        raise _early(name) from None
    seconds: float = _answer(name, connection)
    return seconds


def _answer(name: str, connection: Connection) -> Any:
    try:
        return connection.recv()
    except (EOFError, ConnectionResetError):
        raise _early(name) from None


def _early(name: str) -> RuntimeError:
    return RuntimeError(f"{name} ended before its last turn")
