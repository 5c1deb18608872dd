"""The `trimtab` command: one module for each group of verbs. The only place that prints or exits.

`trimtab --help` imports all of them, so what a verb needs is imported inside it.

Exit codes: 0 success; 1 an expected error, reported in one line; 2 wrong usage; 3 a check failed;
130 interrupted; 143 terminated.
"""

from __future__ import annotations

import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from trimtab._version import __version__
from trimtab.cli import (
    delta,
    demo,
    evaluate,
    mask,
    measure,
    paper,
    prune,
    report,
    store,
    sync,
    train,
)
from trimtab.cli.options import Group
from trimtab.cli.terminal import guarded, say, termination_interrupts
from trimtab.errors import CheckpointWarning, CriterionError, TrimtabError
from trimtab.processes import Terminated, end_with_parent


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    epilog="Start with: trimtab example",
)
@click.version_option(__version__, prog_name="trimtab")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def trimtab(debug: bool) -> None:
    """Measure the small part of a language model's weights that RL fine-tuning moves."""


for _verb in (  # in the order in which they are used
    demo.example,
    measure.compare,
    measure.trajectory,
    mask.mask,
    measure.identity,
    prune.prune,
    train.train,
    train.sweep,
    evaluate.evaluate,
    evaluate.robustness,
    demo.demo,
    delta.delta,
    store.store,
    sync.sync,
    paper.paper,
    report.report,
):
    trimtab.add_command(_verb)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    with guarded():
        try:
            _run(list(sys.argv[1:] if arguments is None else arguments))
        except Exception:  # a bug; text from files in the traceback goes through the guard
            traceback.print_exc()
            sys.exit(1)


def _run(arguments: list[str]) -> None:
    try:
        command = shlex.join(["trimtab", *arguments])
        with termination_interrupts(), _notices():
            end_with_parent()
            code = trimtab.main(arguments, prog_name="trimtab", standalone_mode=False, obj=command)
    except click.exceptions.Abort as abort:  # click raises it for an interrupt
        _end(abort.__cause__)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (TrimtabError, OSError) as error:
        if "--debug" in arguments:
            raise
        if isinstance(error, BrokenPipeError):  # the reader of our output is gone, such as `head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        _stop(str(error), 2 if isinstance(error, CriterionError) else 1)
    except ModuleNotFoundError as error:  # a package of an extra
        if "--debug" in arguments or error.name is None or error.name.startswith("trimtab"):
            raise
        _stop(f"{error.name} is not installed: run `pip install 'trimtab[train]'`", 1)
    except KeyboardInterrupt as interrupt:
        _end(interrupt)
    sys.exit(code if isinstance(code, int) else 0)


@contextmanager
def _notices() -> Iterator[None]:
    """Print each warning about a checkpoint once, to stderr."""
    printed = set()
    with warnings.catch_warnings():
        warnings.simplefilter("always", CheckpointWarning)
        show = warnings.showwarning

        def notify(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
            if not issubclass(category, CheckpointWarning):
                show(message, category, *where, **more)
            elif (note := " ".join(str(message).split())) not in printed:
                printed.add(note)
                say(f"note: {note}", err=True)

        warnings.showwarning = notify
        yield


def _end(interrupt: BaseException | None) -> None:
    """Exit with the code of the signal; the message of the interrupt says how to resume."""
    event, code = ("terminated", 143) if isinstance(interrupt, Terminated) else ("interrupted", 130)
    how = "" if interrupt is None else str(interrupt)
    _stop(f"{event}: {how}" if how else event, code)


def _stop(message: str, code: int) -> None:
    say(f"trimtab: {' '.join(message.split())}", err=True)
    sys.exit(code)
