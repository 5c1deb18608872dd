"""What every command checks of the paths that it is given."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from trimtab.masks.mask import Mask


def test_two_outputs_are_never_one_file(run: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The page took the place of the JSON, with --force, and both were said to be written."""
    path = tmp_path / "x"
    (tmp_path / "link").symlink_to(path)
    for other in (path, tmp_path / "link", f"{tmp_path}/base/../x"):
        code, out, err = run("compare", *pair, "-o", path, "--html", other, "--force")
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert "-o and --html are one file" in err
    assert not path.exists()


@pytest.mark.parametrize("read", ["base/model.safetensors", "tuned/model.safetensors"])
def test_what_is_read_is_never_replaced(
    run: Run, pair: tuple[Path, Path], tmp_path: Path, read: str
) -> None:
    before = (tmp_path / read).read_bytes()
    link = tmp_path / "link.safetensors"
    link.symlink_to(tmp_path / read)
    for output in (tmp_path / read, link):
        code, _, err = run("mask", "extract", *pair, "-o", output, "--force")
        assert (code, err.count("\n")) == (1, 1)
        assert "the command reads that file, so it is never replaced" in err
    assert (tmp_path / read).read_bytes() == before
    mask, again = tmp_path / "m.safetensors", tmp_path / "tuned" / "m.safetensors"
    for output in (mask, again, again):  # the last is beside the weights, and not read
        assert run("mask", "extract", *pair, "-o", output, "--force").code == 0
    code, _, err = run("mask", "or", mask, again, "-o", mask, "--force")
    assert (code, "reads that file" in err) == (1, True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("report", "cmp.json", "-o", "x.tsv"), "x.tsv: HTML is written, and .tsv says TSV"),
        (("report", "cmp.json", "-o", "x.json"), "give a name that ends in .html"),
        (("compare", "base", "tuned", "-o", "x.html"), "JSON is written, and .html says HTML"),
        (("compare", "base", "tuned", "--html", "x.PDF"), "HTML is written, and .pdf says PDF"),
        (("mask", "extract", "base", "tuned", "-o", "m.json"), "safetensors is written"),
    ],
)
def test_a_name_that_says_another_format_is_refused(
    run: Run,
    pair: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    run("compare", "base", "tuned", "-o", "cmp.json")
    before = sorted(tmp_path.iterdir())
    code, out, err = run(*options)
    assert (code, out) == (2, "")
    assert words in " ".join(err.split())
    assert sorted(tmp_path.iterdir()) == before


def test_pipes_and_devices(run: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(fifo.read_bytes()))
    reader.start()
    assert run("mask", "extract", *pair, "-o", fifo, "--force").code == 0
    reader.join()
    through = tmp_path / "through.safetensors"
    through.write_bytes(read[0])
    assert Mask.load(through).num_selected() > 0
    assert fifo.is_fifo()
    assert run("compare", *pair, "-o", "/dev/null", "--html", "/dev/null").code == 0
    assert Path("/dev/null").is_char_device()
    code, out, err = run("compare", *pair, "-o", "/dev/full", "--force")
    assert (code, out) == (1, "")
    assert err == "trimtab: /dev/full cannot be written: no space left on device: make room\n"


def test_a_full_disk_is_told_by_name(run: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    from tests.test_outputs import room

    before = sorted(tmp_path.rglob("*"))
    for output, options in (
        ("c.json", ("compare", *pair)),
        ("m.safetensors", ("mask", "extract", *pair)),
        ("pruned", ("prune", pair[0], "--sparsity", "0.5")),
    ):
        with room(1000):
            code, out, err = run(*options, "-o", tmp_path / output)
        assert (code, out) == (1, "")
        assert err == f"trimtab: {tmp_path / output} cannot be written: file too large: make room\n"
    assert sorted(tmp_path.rglob("*")) == before
    assert run("compare", *pair, "-o", tmp_path / "c.json").code == 0
    assert json.loads((tmp_path / "c.json").read_text())
