"""What reaches a terminal: no control character, no bidi mark, whatever files are named."""

from __future__ import annotations

import ast
import io
import json
import logging
import os
import pty
import re
import shutil
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path

import pytest

import trimtab.cli
from tests.cli.conftest import Run
from tests.measure.checkpoints import llama_tensors, moved, save
from trimtab.cli.terminal import guarded, say
from trimtab.escaping import GuardedStream, escaped

EVIL = "\x1b]0;title\x07\x1b[2J\x1b[8mEVIL\u202egnp\x9b31m\u2066\U000e0041\r\x00\u2028"
CATEGORIES = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def steering(text: str) -> set[str]:
    """Characters of a text that a terminal does not show, but the newline and our own styles."""
    for style in ("\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[33m", "\x1b[1;33m"):
        text = text.replace(style, "")
    return {c for c in text if unicodedata.category(c) in CATEGORIES and c != "\n"}


def test_escapes_are_those_of_json() -> None:
    assert steering(escaped(EVIL)) == set()
    assert json.loads(f'"{escaped(EVIL)}"') == EVIL
    assert escaped("w\u00e9ight ≠ 重み 🙂\u00a0x") == "w\u00e9ight ≠ 重み 🙂\u00a0x"
    assert escaped("a\nb", keep="\n") == "a\nb"
    assert escaped("\udcff") == "\\udcff"


def test_our_styles_pass_and_others_do_not() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), "utf-8", newline="")
    guard = GuardedStream(stream)
    guard.write(f"\x1b[1mbold\x1b[0m \x1b[8mhidden {EVIL}\n")
    stream.seek(0)
    text = stream.read()
    assert text.startswith("\x1b[1mbold\x1b[0m \\u001b[8mhidden")
    assert steering(text) == set()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_an_encoding_lacks_is_escaped_as_json_does(encoding: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding, newline="")
    GuardedStream(stream).write(json.dumps({"é→🙂": EVIL}, ensure_ascii=False))
    stream.seek(0)
    assert json.loads(stream.read()) == {"é→🙂": EVIL}


def test_everything_that_is_said_goes_through_the_guard(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with guarded():
        say(EVIL)
        say(EVIL, err=True)
        print(EVIL)
        logging.lastResort.emit(logging.makeLogRecord({"msg": EVIL}))  # type: ignore[union-attr]
        sys.stderr.writelines([warnings.formatwarning(EVIL, UserWarning, "file", 1)])
    captured = capsys.readouterr()
    for text in captured:
        assert "EVIL" in text
        assert steering(text) == set()
    assert captured.out.count("EVIL") == 2
    assert captured.err.count("EVIL") == 3


def test_nothing_else_prints() -> None:
    """click, rich and the stream are named in one place; `say` is what verbs call."""
    folder = Path(trimtab.cli.__file__).parent
    for path in folder.rglob("*.py"):
        if path.name == "terminal.py":
            continue
        called = {
            ast.unparse(node.func)
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.Call)
        }
        printing = {"print", "click.echo", "click.secho", "sys.stdout.write", "sys.stderr.write"}
        assert not called & printing, path


def on_a_terminal(*arguments: object, cwd: Path) -> str:
    """What a command writes to a terminal of its own, stdout and stderr."""
    main, worker = pty.openpty()
    command = [sys.executable, "-m", "trimtab", *map(str, arguments)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200", "LINES": "50"}
    with subprocess.Popen(
        command, cwd=cwd, stdin=worker, stdout=worker, stderr=worker, env=environment
    ) as child:
        os.close(worker)
        message = b""
        try:
            while chunk := os.read(main, 65536):
                message += chunk
        except OSError:  # how Linux says that the other side was closed
            pass
        child.wait()
    os.close(main)
    return message.decode("utf-8")


def test_on_a_terminal(run: Run, tmp_path: Path) -> None:
    base = llama_tensors()
    save(tmp_path / "base", base)
    save(tmp_path / "tuned", moved(base))
    evil = EVIL.replace("\x00", "").replace("/", "")
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / f"{evil}.gguf").write_bytes(b"")
    shards = tmp_path / "shards"
    shards.mkdir()
    index = {"weight_map": {EVIL: "a.safetensors"}}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.copy(tmp_path / "base" / "model.safetensors", shards / "a.safetensors")
    toml = "".join(f"\\u{ord(c):04x}" if ord(c) < 0x10000 else "" for c in EVIL)
    (tmp_path / "run.toml").write_text(f'"{toml}" = 1\nalgorithm = "{toml}"\n')
    for arguments in (
        ("compare", tmp_path / "base", folder),
        ("compare", tmp_path / "base", shards),
        ("train", tmp_path / "run.toml", "--dry-run"),
        ("compare", f"--{evil}"),
        (evil,),
        ("--debug", "report", tmp_path / evil),
    ):
        output = on_a_terminal(*arguments, cwd=tmp_path)
        assert "EVIL" in output, output
        assert "\x1b[8m" not in output
        # What draws a progress bar: start of the line, erase it, up, show or hide the cursor.
        assert steering(re.sub(r"\r|\x1b\[(?:[\d;]*[mAK]|\?25[hl])", "", output)) == set(), (
            arguments
        )
    # A whole comparison on a terminal, with its progress bar.
    output = on_a_terminal("compare", tmp_path / "base", tmp_path / "tuned", cwd=tmp_path)
    assert "Traceback" not in output
    assert "elements" in output


def test_json_is_the_same_json(run: Run, tmp_path: Path) -> None:
    base = llama_tensors()
    save(tmp_path / "base", base)
    save(tmp_path / "tuned", moved(base))
    config = json.dumps({"architectures": [EVIL]})
    (tmp_path / "tuned" / "config.json").write_text(config)
    code, out, _ = run("compare", tmp_path / "base", tmp_path / "tuned", "--json")
    assert code == 0
    assert steering(out) == set()
    assert json.loads(out)["provenance"]["tuned"]["architecture"] == EVIL
