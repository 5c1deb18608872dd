"""The command line as a person meets it: what is printed, where, and the exit code."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import trimtab
from tests.cli.conftest import Run
from trimtab.cli import trimtab as command_line


def process(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the installed command as its own process."""
    command = [str(Path(sys.executable).with_name("trimtab")), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_version_and_help() -> None:
    assert process("--version").stdout == f"trimtab, version {trimtab.__version__}\n"
    shown = process("--help").stdout
    for verb in command_line.commands:
        assert verb in shown
        assert "Example: trimtab" in process(verb, "--help").stdout


def test_python_m_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trimtab", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == process("--version").stdout


def test_compare_prints_a_table_and_nothing_else(pair: tuple[Path, Path]) -> None:
    done = process("compare", *pair)
    assert done.returncode == 0
    assert done.stderr == ""
    result = trimtab.compare(*pair)
    assert f"of {result.total.num_elements:,} weights" in done.stdout
    assert "(criterion: bits)" in done.stdout
    for kind in result.by_kind():
        assert f"\n{kind} " in done.stdout


def test_a_note_on_what_was_read_is_printed_once(run: Run, pair: tuple[Path, Path]) -> None:
    base, tuned = pair
    (base / "pytorch_model.bin").write_bytes(b"")
    result = run("compare", base, base)
    assert result.code == 0
    assert result.err.count("note: ") == 1
    assert f"note: {base}: model.safetensors is read, which comes first" in result.err
    result = run("mask", "extract", base, tuned, "-o", base.parent / "m.safetensors")
    assert result.err.startswith(f"note: {base}: ")
    report = run("mask", "info", base.parent / "m.safetensors", "--json").out
    assert json.loads(report)["provenance"]["steps"][0]["base"]["notes"]


def test_json_on_stdout_and_in_a_file(run: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    code, out, err = run("compare", *pair, "--json", "--changed", "atol=1e-5")
    assert (code, err) == (0, "")
    printed = json.loads(out)
    assert printed["criterion"] == "atol=1e-05"
    target = tmp_path / "cmp.json"
    code, out, err = run("compare", *pair, "-o", target)
    assert (code, out) == (0, "")
    assert err == f"wrote {target}\n"
    saved = json.loads(target.read_text())
    assert saved["total"] == printed["total"]
    assert saved["provenance"]["command"] == f"trimtab compare {pair[0]} {pair[1]} -o {target}"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_html_and_report_draw_the_same_page(
    run: Run, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    first, saved, again = tmp_path / "a.html", tmp_path / "cmp.json", tmp_path / "b.html"
    code, out, _ = run("compare", *pair, "-o", saved, "--html", first, "--lr", "1e-4")
    assert (code, out) == (0, "")
    assert run("report", saved, "-o", again).code == 0
    assert again.read_text() == first.read_text()
    assert run("report", saved).out == _table_of(run, pair)


def _table_of(run: Run, pair: tuple[Path, Path]) -> str:
    return run("compare", *pair, "--lr", "1e-4").out


def test_a_report_of_several_results_and_their_figures(
    run: Run, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    saved, page, figures = tmp_path / "cmp.json", tmp_path / "r.html", tmp_path / "figures"
    assert run("compare", *pair, "-o", saved).code == 0
    table = run("report", saved).out
    assert run("report", saved, saved).out == f"{table}\n{table}"
    code, out, err = run("report", saved, saved, "-o", page, "--figures", figures)
    assert (code, out) == (0, "")
    names = sorted(path.name for path in figures.iterdir())
    assert err == f"wrote {page}\nwrote {len(names)} figures to {figures}\n"
    assert {name[0] for name in names} == {"1", "2"}
    assert page.read_text().count("<article") == 2
    code, _, err = run("report", saved, "--figures", figures)
    assert code == 1
    assert "exists already" in err
    assert run("report", saved, "--figures", figures, "--format", "png").code == 0
    assert (figures / names[0].replace(".svg", ".png")).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("ending", "start"),
    [(".csv", "table,kind,"), (".md", "# "), (".tex", "% \\usepackage{booktabs}\n")],
)
def test_a_report_as_tables(
    run: Run, pair: tuple[Path, Path], tmp_path: Path, ending: str, start: str
) -> None:
    saved, tables = tmp_path / "cmp.json", tmp_path / f"tables{ending}"
    assert run("compare", *pair, "-o", saved).code == 0
    assert run("report", saved, "-o", tables) == (0, "", f"wrote {tables}\n")
    assert tables.read_text("utf-8").startswith(start)
    code, _, err = run("report", saved, "-o", tables)
    assert (code, "exists already" in err) == (1, True)


def test_open_shows_the_page(
    run: Run, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def show(url: str) -> bool:
        opened.append(url)
        return len(opened) == 1

    monkeypatch.setattr("webbrowser.open", show)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, _, err = run("compare", *pair, "--open")
    (page,) = tmp_path.glob("trimtab-*/report.html")
    assert (code, err) == (0, f"wrote {page}\n")
    target = tmp_path / "mine.html"
    _, _, err = run("compare", *pair, "--html", target, "--open")
    assert err == f"wrote {target}\nno browser was found to open {target}\n"
    assert opened == [page.as_uri(), target.as_uri()]


def test_outputs_are_not_overwritten(run: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    target = tmp_path / "cmp.json"
    target.write_text("precious")
    code, _, err = run("compare", *pair, "-o", target)
    assert code == 1
    assert err == f"trimtab: {target} exists already: add --force to replace it\n"
    assert target.read_text() == "precious"
    assert run("compare", *pair, "-o", target, "--force").code == 0
    assert json.loads(target.read_text())["format"] == "trimtab.comparison"


def test_a_failed_compare_leaves_no_output(
    run: Run, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    weights = pair[1] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    target = tmp_path / "out" / "cmp.json"
    code, out, err = run("compare", *pair, "-o", target, "--html", tmp_path / "r.html")
    assert (code, out) == (1, "")
    assert "model.safetensors" in err
    assert not target.parent.exists()
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compare"], "Missing argument 'BASE'"),
        (["compare", "a", "b", "--changed", "exact"], "unknown criterion 'exact'"),
        (["compare", "a", "b", "--threads", "0"], "'--threads'"),
        (["compere"], "No such command 'compere'"),
        (["compare", "a", "b", "--no-such-option"], "No such option"),
    ],
)
def test_wrong_usage_is_code_2(run: Run, arguments: list[str], words: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert "Traceback" not in err


def test_settings_out_of_range(run: Run, pair: tuple[Path, Path]) -> None:
    code, out, err = run("compare", *pair, "--lr", "-1")
    assert (code, out) == (1, "")
    assert "learning rate -1.0" in err


def _garbage(path: Path) -> None:
    path.mkdir()
    (path / "model.safetensors").write_bytes(b"\xff" * 64)


def _huge_header(path: Path) -> None:
    path.mkdir()
    (path / "model.safetensors").write_bytes((2**40).to_bytes(8, "little") + b"{}")


def _empty(path: Path) -> None:
    path.mkdir()


def _no_checkpoint(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").write_text("nothing here")


def _adapter(path: Path) -> None:
    path.mkdir()
    (path / "adapter_config.json").write_text("{}")
    (path / "adapter_model.safetensors").write_bytes(b"")


def _missing_shard(path: Path) -> None:
    path.mkdir()
    index = {"weight_map": {"w": "model-00001-of-00002.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def _bad_index(path: Path) -> None:
    path.mkdir()
    (path / "model.safetensors.index.json").write_text("{")


def _nothing(path: Path) -> None:
    """A path that does not exist."""


@pytest.mark.parametrize(
    "spoil",
    [
        _garbage,
        _huge_header,
        _empty,
        _no_checkpoint,
        _adapter,
        _missing_shard,
        _bad_index,
        _nothing,
    ],
)
def test_bad_input_is_one_sentence(
    run: Run, pair: tuple[Path, Path], tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    path = tmp_path / "bad"
    spoil(path)
    for arguments in ((pair[0], path), (path, pair[1])):
        code, out, err = run("compare", *arguments)
        assert (code, out) == (1, "")
        assert err.startswith("trimtab: ")
        assert err.count("\n") == 1
        assert str(path) in err


def test_a_hub_id_without_network(run: Run, pair: tuple[Path, Path]) -> None:
    code, out, err = run("compare", "some-org/no-such-model", pair[1])
    assert (code, out) == (1, "")
    assert "some-org/no-such-model" in err
    assert err.count("\n") == 1


def test_a_saved_result_that_is_none(run: Run, tmp_path: Path) -> None:
    for text, words in (
        ("no json", "expected JSON"),
        ("[]", "expected a result of"),
        ('{"format": "trimtab.comparison", "format_version": 99}', "format version 99"),
        ('{"format": "trimtab.comparison", "format_version": 1}', "damaged comparison"),
    ):
        path = tmp_path / "cmp.json"
        path.write_text(text)
        code, out, err = run("report", path)
        assert (code, out) == (1, "")
        assert words in err
        assert str(path) in err
    assert run("report", tmp_path / "none.json").code == 1


def test_debug_shows_the_traceback(pair: tuple[Path, Path], tmp_path: Path) -> None:
    done = process("--debug", "compare", pair[0], tmp_path / "none")
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_a_closed_pipe_is_no_error(pair: tuple[Path, Path]) -> None:
    command = Path(sys.executable).with_name("trimtab")
    with subprocess.Popen(
        [command, "compare", *pair, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.wait() == 1
        assert child.stderr.read() == b""


@pytest.mark.skipif(os.name != "posix", reason="needs a FIFO")
def test_ctrl_c_leaves_nothing_behind(run: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Interrupted while it writes a page to a pipe whose reader takes no more."""
    saved, pipe, target = tmp_path / "cmp.json", tmp_path / "pipe", tmp_path / "figures"
    assert run("compare", *pair, "-o", saved).code == 0
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    command = Path(sys.executable).with_name("trimtab")
    arguments: list[str | Path] = [command, "report", saved, "-o", pipe, "--figures", target]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as child:
        select.select([reader], [], [], 60)  # it has begun, and a page is longer than a pipe holds
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=60)
    os.close(reader)
    assert child.returncode == 130
    assert err.strip() == "trimtab: interrupted"
    assert not target.exists()


@pytest.mark.parametrize(
    "command",
    [
        "evaluate a b --task addition",
        "robustness a --mask m --base b --task addition",
        "mask make fisher --base b --task addition --density 0.1 -o x",
        "demo --out out",
    ],
)
def test_a_verb_that_needs_torch_says_how_to_get_it(command: str, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'transformers', 'trl'])); "
        f"from trimtab.cli import main; main({command.split()!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == "trimtab: torch is not installed: run `pip install 'trimtab[train]'`"
