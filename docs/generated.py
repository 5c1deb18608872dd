"""Generated text of the documentation: help, real output, tables of real results.

`python -m cogapp -r -P README.md docs/*.md`, run from the root of the project, writes it into the
pages; with `--check` instead of `-r` it checks whether they are up to date. All functions print
Markdown.
"""

from __future__ import annotations

import ast
import atexit
import contextlib
import io
import json
import os
import re
import shlex
import shutil
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import numpy as np

import trimtab
from trimtab import errors
from trimtab.cli import main
from trimtab.cli import trimtab as command_line
from trimtab.elements.absorption import rounding_reach
from trimtab.elements.counts import percent
from trimtab.elements.criteria import DEFAULT_CRITERIA, changed, parse_criterion
from trimtab.elements.dtypes import DTYPES
from trimtab.example import write_example
from trimtab.masks.extract import extract_mask
from trimtab.masks.identity import identity
from trimtab.masks.mask import Mask, summarise
from trimtab.masks.overlap import overlap

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
WIDTH = 80

_TEXT = re.compile(r"<text[^>]*>([^<]*)<")
"""The texts of a drawing."""

CONVENTIONS = {
    "1.0 → the next number": (0x3F80, 0x3F81),
    "2⁻¹⁰ → the next number": (0x3A80, 0x3A81),
    "+0 → −0": (0x0000, 0x8000),
    "NaN → the same NaN": (0x7FC0, 0x7FC0),
    "NaN → another NaN": (0x7FC0, 0x7FC1),
    "1.0 → NaN": (0x3F80, 0x7FC0),
    "+∞ → +∞": (0x7F80, 0x7F80),
    "1.0 → +∞": (0x3F80, 0x7F80),
    "+∞ → −∞": (0x7F80, 0xFF80),
}
"""What happens to a bf16 element -> its bits before and after."""


@cache
def _example() -> str:
    """A folder with the output of `trimtab example`, made once for all pages."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    write_example(folder)
    return folder


@contextlib.contextmanager
def tiny_pair() -> Iterator[None]:
    """Work in a temporary folder with the output of `trimtab example`."""
    settings = {"COLUMNS": str(WIDTH), "HF_HUB_OFFLINE": "1"}
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
        patch.dict(os.environ, settings),
    ):
        shutil.copytree(_example(), folder, dirs_exist_ok=True)
        yield


def shell(*commands: str) -> None:
    """Run commands in the folder of `base` and `tuned`, and show them with their output."""
    print("```console")
    with tiny_pair():
        for command in commands:
            print(f"$ {command}\n{_printed_by(command)}")
    print("```")


def part_of(command: str, start: str) -> None:
    """Run a command in the folder of `base` and `tuned`, and show its output from a line on."""
    with tiny_pair():
        lines = _printed_by(command).splitlines()
    (first,) = (index for index, line in enumerate(lines) if line.startswith(start))
    print("\n".join(["```console", f"$ {command}", "…", *lines[first:], "```"]))


def _printed_by(command: str) -> str:
    program, *arguments = shlex.split(command)
    assert program == "trimtab", command
    with (
        contextlib.redirect_stdout(io.StringIO()) as printed,
        contextlib.redirect_stderr(printed),
        contextlib.suppress(SystemExit),
    ):
        main(arguments)
    return printed.getvalue().rstrip()


def session(source: str) -> None:
    """Run Python in the folder of `base` and `tuned`, and show it as an interactive session."""
    source = textwrap.dedent(source).strip()
    names: dict[str, Any] = {}
    print("```pycon")
    with tiny_pair():
        lines = source.splitlines()
        for statement in ast.parse(source).body:
            first, *rest = lines[statement.lineno - 1 : statement.end_lineno]
            print("\n".join([f">>> {first}", *(f"... {line}" for line in rest)]))
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(ast.Interactive([statement]), "session", "single"), names)
            print(printed.getvalue(), end="")
    print("```")


def help_of(*path: str) -> None:
    """The `--help` of the command line, of one of its commands, or of a subcommand."""
    context = click.Context(
        command_line, info_name="trimtab", terminal_width=WIDTH, **command_line.context_settings
    )
    for name in path:
        assert isinstance(context.command, click.Group), path
        command = context.command.get_command(context, name)
        assert command is not None, path
        context = click.Context(command, context, name)
    print(f"```text\n{context.get_help()}\n```")


def verbs() -> None:
    """The commands with a description of each."""
    rows(
        ["command", "description"],
        (
            [f"`trimtab {name}`", str(verb.short_help)]
            for name, verb in command_line.commands.items()
        ),
    )


def rows(titles: Sequence[str], cells: Any) -> None:
    """A Markdown table; without rows, a sentence."""
    lines = list(cells)
    if not lines:
        print("*Not measured yet.*")
        return
    for line in (titles, ["---"] * len(titles), *lines):
        print(f"| {' | '.join(line)} |")


def show_drawing(file: str, content: bytes) -> None:
    """A figure as an image of a page, written when its marks have changed.

    The digest of all marks is printed with it, so that a picture of old results is noticed.

    Args:
        file: Its name in `docs/images`.
        content: The figure as SVG.
    """
    path, marks = IMAGES / file, _marks(content.decode())
    if not path.exists() or _marks(path.read_text("utf-8")) != marks:
        path.write_bytes(content)
    title, *_ = _TEXT.findall(content.decode())
    print(f"![{title}](images/{file})\n\n<!-- {sha256(marks.encode()).hexdigest()[:16]} -->")


def _marks(svg: str) -> str:
    """The content of a drawing without its geometry: labels of its marks, and its text."""
    return "\n".join(sorted({*re.findall(r'aria-label="([^"]*)"', svg), *_TEXT.findall(svg)}))


def default_criteria() -> None:
    """The criteria of every comparison, in a sentence."""
    print(", ".join(f"`{criterion.key}`" for criterion in DEFAULT_CRITERIA) + ".")


def conventions() -> None:
    """Which criteria see which change of a bf16 element, by the definition itself."""
    keys = ("bits", "value", "atol=0", "atol=1e-05", "rel=0.001")

    def cells(bits: tuple[int, int]) -> list[str]:
        before, after = (np.array([pattern], dtype=np.uint16) for pattern in bits)
        seen = (changed(before, after, DTYPES["BF16"], parse_criterion(key)).item() for key in keys)
        return ["changed" if is_seen else "·" for is_seen in seen]

    rows(
        ["bf16 element", *(f"`{key}`" for key in keys)],
        ([words, *cells(bits)] for words, bits in CONVENTIONS.items()),
    )


def absorption() -> None:
    """The spacing of bf16 at some weights, and the smallest move that survives storage."""
    bf16 = DTYPES["BF16"]
    weights = {"2⁻¹²": 2**-12, "2⁻⁹": 2**-9, "0.02": 0.02, "0.1": 0.1, "1": 1.0}
    bits = bf16.encode(np.array(list(weights.values())))
    above = bits + bits.dtype.type(1)
    gaps = bf16.decode(above) - bf16.decode(bits)
    seen = changed(bits, above, bf16, parse_criterion("atol=1e-5"))
    down, up = rounding_reach(bits, bf16)
    columns = zip(weights, gaps, seen, down, up, strict=True)
    rows(
        ["weight", "one ulp up", "seen by `atol=1e-05`", "least move down", "least move up"],
        (
            [name, f"{gap:.2g}", "yes" if is_seen else "no", f"{low:.2g}", f"{high:.2g}"]
            for name, gap, is_seen, low, high in columns
        ),
    )


def dtypes() -> None:
    """The dtypes that are read."""
    meaning = {
        "float": "floating point",
        "scale": "exponent only (a scale)",
        "int": "integer",
        "uint": "unsigned integer",
        "bool": "boolean",
    }
    table = ([f"`{d.name}`", str(d.num_bytes), meaning[d.kind]] for d in DTYPES.values())
    rows(["dtype", "bytes", "meaning"], table)


def error_tree() -> None:
    """The classes of errors, by inheritance, each with the built-in that it refines."""
    print("```text")
    print(*_error_lines(errors.TrimtabError), sep="\n")
    print("```")


def _error_lines(kind: type[Exception], before: str = "", after: str = "") -> list[str]:
    builtin = [base.__name__ for base in kind.__bases__ if base.__module__ == "builtins"]
    name = before + kind.__name__ + (f" ({builtin[0]})" if builtin and before else "")
    first = (kind.__doc__ or "").partition("\n")[0].rstrip(".")
    lines = [f"{name:<52}{first}"]
    children = [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]
    for child in children:
        is_last = child is children[-1]
        lines += _error_lines(
            child, after + ("└── " if is_last else "├── "), after + ("    " if is_last else "│   ")
        )
    return lines


@cache
def example_comparison() -> dict[str, Any]:
    """A result with every optional section, identical on every machine and day."""
    with tiny_pair():
        comparison = trimtab.compare(
            "base", "tuned", lr=1e-5, steps=20, rank=True, geometry=True, threads=1
        )
    command = "trimtab compare base tuned --lr 1e-5 --steps 20 --rank --geometry -o cmp.json"
    stamp = {"command": command, "date": "2026-11-21T12:00:00+00:00"}
    return replace(comparison, provenance={**comparison.provenance, **stamp}).to_dict()


@cache
def example_identity() -> dict[str, Any]:
    """An identity check, identical on every machine and day."""
    with tiny_pair():
        extract_mask("base", "tuned", threads=1).save("mask.safetensors")
        result = identity("base", "tuned", "sub", "mask.safetensors", threads=1)
    command = "trimtab identity base tuned sub --mask mask.safetensors -o identity.json"
    stamp = {"command": command, "date": "2026-11-21T12:00:00+00:00"}
    made = {**result.mask.provenance, "date": stamp["date"]}
    return replace(
        result,
        mask=replace(result.mask, provenance=made),
        provenance={**result.provenance, **stamp},
    ).to_dict()


def example_json(*path: str | int, leave_out: Sequence[str] = ()) -> None:
    """A part of the comparison as JSON, the values of keys to leave out as `…`."""
    _json_of(example_comparison(), path, leave_out)


def identity_json(*path: str | int, leave_out: Sequence[str] = ()) -> None:
    """A part of the identity check as JSON."""
    _json_of(example_identity(), path, leave_out)


@cache
def example_overlap() -> dict[str, Any]:
    """An overlap of a mask with a random control, identical on every machine and day."""
    with tiny_pair():
        mask = extract_mask("base", "tuned")
        result = overlap(mask, mask.random_like(1), base="base", threads=1)
    command = "trimtab mask overlap a.safetensors b.safetensors --base base -o overlap.json"
    stamp = {"command": command, "date": "2026-11-21T12:00:00+00:00"}
    return replace(result, provenance={**result.provenance, **stamp}).to_dict()


def overlap_json(*path: str | int, leave_out: Sequence[str] = ()) -> None:
    """A part of the overlap as JSON."""
    _json_of(example_overlap(), path, leave_out)


@cache
def example_trajectory() -> dict[str, Any]:
    """A trajectory, identical on every machine and day."""
    with tiny_pair():
        result = trimtab.trajectory("base", "run", threads=1)
    command = "trimtab trajectory base run -o trajectory.json"
    stamp = {"command": command, "date": "2026-11-21T12:00:00+00:00"}
    return replace(result, provenance={**result.provenance, **stamp}).to_dict()


def trajectory_json(*path: str | int, leave_out: Sequence[str] = ()) -> None:
    """A part of the trajectory as JSON."""
    _json_of(example_trajectory(), path, leave_out)


def _json_of(value: Any, path: Sequence[str | int], leave_out: Sequence[str]) -> None:
    for step in path:
        value = value[step]
    if isinstance(value, dict):
        value = {key: "…" if key in leave_out else part for key, part in value.items()}
    print(f"```json\n{compact_json(rounded(value))}\n```")


@cache
def example_mask() -> Mask:
    """A random control of an extracted mask, identical on every machine and day."""
    with tiny_pair():
        mask = extract_mask("base", "tuned", threads=1).random_like(1)
    command = "trimtab mask random mask.safetensors --seed 1 -o control.safetensors"
    return mask.with_provenance(command=command, date="2026-11-21T12:00:00+00:00")


def mask_metadata() -> dict[str, Any]:
    """The metadata in the file of the example mask, its JSON read."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "control.safetensors"
        example_mask().save(path)
        raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    metadata: dict[str, Any] = header["__metadata__"]
    return metadata | {key: json.loads(metadata[key]) for key in ("tensors", "provenance")}


def mask_json() -> None:
    """That metadata, shown with its first tensors."""
    metadata = mask_metadata()
    first = dict(list(metadata["tensors"].items())[:2])
    print(f"```json\n{compact_json({**metadata, 'tensors': first | {'…': '…'}})}\n```")


def mask_summary_json() -> None:
    """What `trimtab mask info --json` prints of it, shortened."""
    data = summarise(example_mask())
    kind, group = next(iter(data["by_kind"].items()))
    shown = {
        **data,
        "by_kind": {kind: group, "…": "…"},
        "tensors": [data["tensors"][0], "…"],
        "provenance": "…",
    }
    print(f"```json\n{compact_json(rounded(shown))}\n```")


def rounded(value: Any) -> Any:
    """Floats to six digits: the last ones depend on the machine's linear algebra."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, list) else value


def compact_json(value: Any, indent: int = 0) -> str:
    """JSON with every object and list that fits on one line."""
    flat = json.dumps(value, ensure_ascii=False)
    if len(flat) + indent <= WIDTH or not isinstance(value, dict | list):
        return flat
    pad, inner = " " * indent, " " * (indent + 1)
    if isinstance(value, dict):
        parts = [
            f"{json.dumps(key, ensure_ascii=False)}: {compact_json(part, indent + 1)}"
            for key, part in value.items()
        ]
        opening, closing = "{", "}"
    else:
        parts = [compact_json(part, indent + 1) for part in value]
        opening, closing = "[", "]"
    lines = f",\n{inner}".join(parts)
    return f"{opening}\n{inner}{lines}\n{pad}{closing}"


def recorded(name: str) -> dict[str, Any] | None:
    """A result in `benchmarks/results/`; if there is none yet, None, and a sentence is printed."""
    path = ROOT / "benchmarks" / "results" / name
    if not path.exists():
        print("*No result has been recorded for this version yet.*")
        return None
    result: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return result


def benchmark(report: Mapping[str, Any] | None) -> None:
    """The result of `make bench` as tables."""
    if report is None:
        return
    info = report["provenance"]
    print(
        f"Measured on {info['date'][:10]} with trimtab {info['trimtab_version']}, NumPy "
        f"{info['numpy_version']} and Python {info['python_version']} on {info['processor']}, "
        f"{info['processors']} processors; load before: {info['load_before']:.2f}.\n"
    )
    speeds = {name: part for name, part in report.items() if name.startswith("speed, ")}
    seconds = next(iter(speeds.values()))["seconds"]
    figures: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "size of each file": lambda part: f"{part['num_bytes_each'] / 1e9:.2f} GB",
        "changed elements": lambda part: percent(part["density"], 1),
        "rounds": lambda part: str(part["rounds"]),
        **{f"{name}, median": partial(_median, name) for name in seconds},
        "trimtab / numpy, 2 threads": lambda part: f"{part['ratio to numpy, 2 threads']:.2f} ×",
        "trimtab / numpy, 1 thread": lambda part: f"{part['ratio to numpy, 1 thread']:.2f} ×",
        "trimtab / reading, 2 threads": lambda part: f"{part['ratio to reading, 2 threads']:.2f} ×",
        "1 thread / 2 threads": lambda part: f"{part['two threads over one']:.2f} ×",
        "1 thread / 2 threads, reading": lambda part: (
            f"{part['two threads over one, reading']:.2f} ×"
        ),
        "published script / trimtab": lambda part: f"{part['published script over trimtab']:.0f} ×",
        "both files read at": lambda part: f"{part['gigabytes per second, both files']:.1f} GB/s",
    }
    rows(
        ["", *(name.removeprefix("speed, ") for name in speeds)],
        ([name, *(show(part) for part in speeds.values())] for name, show in figures.items()),
    )
    print()
    memory, start = report["memory"], report["start_up"]
    rows(
        ["", ""],
        [
            ["size of each file in the memory test", f"{memory['num_bytes_each'] / 1e9:.1f} GB"],
            ["peak resident memory of that comparison", f"{memory['peak_mb']:.0f} MB"],
            *([f"`{name}`, whole process", f"{took:.2f} s"] for name, took in start.items()),
        ],
    )


def _median(contestant: str, part: Mapping[str, Any]) -> str:
    return f"{part['seconds'][contestant]:.2f} s"


def factors() -> None:
    """Each factor of a run file: the keys that it stands for, by algorithm, and its source."""
    from trimtab.training.runs.algorithms import ALGORITHMS
    from trimtab.training.runs.factors import FACTORS, KEYS_THEMSELVES

    def cells(name: str) -> list[str]:
        by_keys: dict[tuple[str, ...], list[str]] = {}
        for algorithm, keys in FACTORS[name].keys.items():
            by_keys.setdefault(keys, []).append(algorithm)
        shown = [
            f"{', '.join(f'`{key}`' for key in keys)}"
            + (f" ({', '.join(algorithms)})" if len(algorithms) < len(ALGORITHMS) else "")
            for keys, algorithms in by_keys.items()
        ]
        return [f"`{name}`", "; ".join(shown), FACTORS[name].source]

    plain = [[name, f"`{key}` itself", source] for name, (key, source) in KEYS_THEMSELVES.items()]
    rows(["factor", "keys of the run file", "source"], [*map(cells, FACTORS), *plain])
