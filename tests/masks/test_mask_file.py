"""The mask file: its bytes, and what is done with bytes that a stranger chose."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from tests.checkpoints.building import entry, file_bytes
from tests.masks.masks import example_mask
from trimtab.errors import MaskError, OutputExistsError
from trimtab.masks.header import BaseTensor
from trimtab.masks.mask import Mask
from trimtab.masks.on_disk import open_mask

Header = dict[str, Any]


def header_of(raw: bytes) -> tuple[Header, bytes]:
    """The header and the data of a file."""
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def described(header: Header) -> dict[str, Any]:
    """What the metadata says about tensors."""
    tensors: dict[str, Any] = json.loads(header["__metadata__"]["tensors"])
    return tensors


@pytest.fixture
def saved(tmp_path: Path) -> bytes:
    """The bytes of a mask."""
    path = tmp_path / "good.safetensors"
    example_mask().save(path)
    return path.read_bytes()


def test_a_mask_overwritten_while_its_bits_are_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    Mask.from_arrays({"w": np.eye(8, dtype=np.bool_)}).save(path)
    with open_mask(path) as mask:
        mask.packed("w")
        with path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\x80")  # the same byte
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
        with pytest.raises(MaskError, match="changed while it was being read"):
            mask.packed("w")


def test_the_file_byte_by_byte(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    mask = Mask.from_arrays(
        {
            "b": np.array([[1, 0, 0, 1, 0], [0, 0, 0, 1, 1]], dtype=np.bool_),
            "a": np.array(True),
        }
    )
    mask.save(path)
    raw = path.read_bytes()
    header, data = header_of(raw)
    assert data == bytes([1, 0b00001001, 0b00000011])  # in the order of the digest, by name
    assert (len(raw) - len(data)) % 8 == 0
    assert header["a"] == entry("U8", [1], 0, 1)
    assert header["b"] == entry("U8", [2], 1, 3)
    metadata = header.pop("__metadata__")
    assert list(json.loads(metadata["tensors"])) == ["b", "a"]  # in the order of the mask
    assert json.loads(metadata.pop("tensors")) == {
        "b": {"shape": [2, 5], "num_selected": 4, "base": None},
        "a": {"shape": [], "num_selected": 1, "base": None},
    }
    assert metadata == {
        "format": "trimtab.mask",
        "format_version": "1",
        "digest": mask.digest,
        "provenance": "{}",
    }


def test_the_safetensors_library_reads_it(tmp_path: Path) -> None:
    mask = example_mask()
    mask.save(tmp_path / "m.safetensors")
    loaded = load_file(tmp_path / "m.safetensors")
    assert set(loaded) == set(mask)
    for name, bits in loaded.items():
        np.testing.assert_array_equal(bits, mask.packed(name))


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    path = tmp_path / "new" / "m.safetensors"
    example_mask().save(path)
    before = path.read_bytes()
    with pytest.raises(OutputExistsError, match="exists already"):
        example_mask(seed=1).save(path)
    assert path.read_bytes() == before
    example_mask(seed=1).save(path, force=True)
    assert Mask.load(path) == example_mask(seed=1)
    assert list(path.parent.iterdir()) == [path]


def test_an_interrupted_write_leaves_the_old_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.safetensors"
    example_mask().save(path)

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        example_mask(seed=1).save(path, force=True)
    assert Mask.load(path) == example_mask()
    assert list(tmp_path.iterdir()) == [path]


def refused(path: Path, raw: bytes) -> str:
    """The one sentence that a file is refused with, before a bit is used, however it is read."""
    path.write_bytes(raw)
    messages = []
    for read in (Mask.load, open_mask):
        with pytest.raises(MaskError) as caught:
            read(path)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert messages[0].startswith(str(path))
    return messages[0]


def with_header(raw: bytes, change: Callable[[Header], object]) -> bytes:
    """The file with something of its header changed."""
    header, data = header_of(raw)
    change(header)
    return file_bytes(header, data)


def with_tensors(raw: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The file with something changed of what the metadata says about tensors."""

    def change_header(header: Header) -> None:
        tensors = described(header)
        change(tensors)
        header["__metadata__"]["tensors"] = json.dumps(tensors)

    return with_header(raw, change_header)


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t[NORM].update(shape=[41]), "expected U8 and [6] for a tensor of shape [41]"),
        (lambda t: t[NORM].update(shape=[2**62, 2**62]), "expected a list of sizes that fit"),
        (lambda t: t["nothing"].update(shape=[0, 2**62, 2**62]), "expected a list of sizes"),
        (lambda t: t[NORM].update(shape=[1] * 65), "expected a list of sizes"),
        (lambda t: t[NORM].update(shape=[-33]), "expected a list of sizes"),
        (lambda t: t[NORM].update(shape=[33.0]), "expected a list of sizes"),
        (lambda t: t[NORM].update(shape="33"), "expected a list of sizes"),
        (lambda t: t[NORM].update(num_selected=3), "'model.norm.weight' says it selects 3"),
        (lambda t: t[NORM].update(num_selected=None), "says it selects None"),
        (lambda t: t[NORM].update(num_selected=34), "expected a number from 0 to 33"),
        (lambda t: t[NORM].update(num_selected=-1), "expected a number from 0 to 33"),
        (lambda t: t[NORM].update(num_selected=2.0), "expected a number from 0 to 33"),
        (lambda t: t["scalar"].update(num_selected=True), "expected a number from 0 to 1"),
        (lambda t: t[NORM].pop("num_selected"), "lacks one of shape, num_selected, base"),
        (lambda t: t.update({NORM: [33]}), "lacks one of shape, num_selected, base"),
        (lambda t: t[NORM].update(base="BF16"), "expected dtype and digest, two strings"),
        (lambda t: t[NORM]["base"].update(dtype=3), "expected dtype and digest, two strings"),
        (lambda t: t[NORM]["base"].update(digest="x" * 32), "not 32 hexadecimal digits"),
        (lambda t: t.pop(NORM), "'model.norm.weight' has no shape"),
        (lambda t: t.update(more=t[NORM]), "'more' has no bits"),
        # 33 bits as 34 elements fit the same bytes; only the digest knows.
        (lambda t: t[NORM].update(shape=[34]), "its bits have the digest"),
    ],
)
def test_claims_about_tensors(
    tmp_path: Path, saved: bytes, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    assert words in refused(tmp_path / "bad.safetensors", with_tensors(saved, change))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.clear(), "not a mask: expected a file from `trimtab mask`"),
        (lambda m: m.update(format="pt"), "found 'pt'"),
        (
            lambda m: m.update(format_version="2"),
            "format version '2'; this trimtab reads version 1",
        ),
        (lambda m: m.pop("tensors"), "its metadata lacks 'tensors'"),
        (lambda m: m.update(tensors="{"), "its metadata 'tensors' is not JSON"),
        (lambda m: m.update(tensors="[" * 100_000), "its metadata 'tensors' is not JSON"),
        (lambda m: m.update(tensors="[]"), "its metadata 'tensors' is no object"),
        (lambda m: m.update(tensors='{"a": 1, "a": 2}'), "appears twice"),
        (lambda m: m.update(tensors='{"a": {"shape": [], "shape": [1]}}'), "appears twice"),
        (lambda m: m.update(tensors=f'{{"a": {"9" * 5000}}}'), "is not JSON"),
        (lambda m: m.update(provenance='{"seed": NaN}'), "NaN is not a JSON number"),
        (lambda m: m.update(provenance='{"seed": 1e999}'), "is too large a number"),
        (lambda m: m.update(provenance='{"steps": [1]}'), "not a list of objects"),
        (lambda m: m.pop("digest"), "the file says ''"),
        (lambda m: m.update(digest="0" * 32), "its bits have the digest"),
    ],
)
def test_claims_of_the_metadata(
    tmp_path: Path, saved: bytes, change: Callable[[dict[str, str]], object], words: str
) -> None:
    raw = with_header(saved, lambda header: change(header["__metadata__"]))
    assert words in refused(tmp_path / "bad.safetensors", raw)


EMBED = "model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h: h[NORM].update(dtype=">U1"), "has dtype '>U1'; expected one of"),
        # Wider elements, whose bytes could be in either order.
        (
            lambda h: h[EMBED].update(dtype="U16", shape=[80]),
            "has bits of dtype U16 and shape [80]",
        ),
        (lambda h: h[EMBED].update(dtype="BOOL"), "has bits of dtype BOOL"),
        (lambda h: h[EMBED].update(shape=[80, 2]), "and shape [80, 2]; expected U8 and [160]"),
        (lambda h: h[NORM].update(data_offsets=h[EMBED]["data_offsets"], shape=[160]), "overlap"),
        (lambda h: h[NORM].update(data_offsets=[2**40, 2**40 + 5]), "belong to no tensor"),
        (lambda h: h["scalar"].update(data_offsets=[9, 10]), "overlap"),
        (lambda h: h[NORM].update(data_offsets=[5, 0]), "expected [begin, end]"),
        (lambda h: h[NORM].update(data_offsets=[-5, 0]), "expected [begin, end]"),
        (lambda h: h[NORM].update(shape=[2**62]), "has 5 bytes; U8 of shape"),
        (lambda h: h.pop(NORM), "belong to no tensor"),
        (lambda h: h.update(__metadata__={"format": 1}), "not a mapping from strings to strings"),
    ],
)
def test_claims_about_where_bits_lie(
    tmp_path: Path, saved: bytes, change: Callable[[Header], object], words: str
) -> None:
    assert words in refused(tmp_path / "bad.safetensors", with_header(saved, change))


@pytest.mark.parametrize("length", [0, 1, 100, 10**6, 10**9, 2**63, 2**64 - 1])
def test_a_lie_about_the_length_of_the_header(tmp_path: Path, saved: bytes, length: int) -> None:
    raw = length.to_bytes(8, "little") + saved[8:]
    assert "not a valid safetensors file" in refused(tmp_path / "bad.safetensors", raw)


def test_all_problems_are_told_at_once(tmp_path: Path, saved: bytes) -> None:
    def change(tensors: dict[str, Any]) -> None:
        tensors[NORM]["shape"] = [41]
        tensors["scalar"]["shape"] = [9]

    message = refused(tmp_path / "bad.safetensors", with_tensors(saved, change))
    assert NORM in message
    assert "'scalar'" in message


def test_a_bit_after_the_last_element(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    Mask.from_arrays({"w": np.array([True, False, True])}).save(path)
    raw = bytearray(path.read_bytes())
    raw[-1] = 0b00010001  # two bits, as many as before, and one of them is no element
    assert "'w' has bits set after its last element" in refused(path, bytes(raw))


def test_a_flipped_pair_of_bits_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    Mask.from_arrays({"w": np.array([True, False, True])}).save(path)
    raw = bytearray(path.read_bytes())
    raw[-1] = 0b011
    assert "its bits have the digest" in refused(path, bytes(raw))


def test_a_name_that_is_there_twice(tmp_path: Path, saved: bytes) -> None:
    length = int.from_bytes(saved[:8], "little")
    header = saved[8 : 8 + length].replace(b'"scalar":{"dtype"', b'"nothing":{"dtype"')
    assert "twice" in refused(tmp_path / "m.safetensors", file_bytes(header, saved[8 + length :]))


def test_truncated_files(tmp_path: Path, saved: bytes) -> None:
    for length in (0, 5, 8, 100, len(saved) - 1):
        message = refused(tmp_path / f"{length}.safetensors", saved[:length])
        assert "not a valid safetensors file" in message
    assert "belong to no tensor" in refused(tmp_path / "long.safetensors", saved + b"\0")


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match=r"none\.safetensors: no such file"):
        Mask.load(tmp_path / "none.safetensors")
    with pytest.raises(MaskError, match="found a folder"):
        Mask.load(tmp_path)


def test_a_claim_of_terabytes_allocates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    Mask.from_arrays({"w": np.ones(8, dtype=np.bool_)}).save(path)

    def grow(header: Header) -> None:
        header["w"] = entry("U8", [2**42], 0, 2**42)
        tensors = {"w": {**described(header)["w"], "shape": [2**45]}}
        header["__metadata__"]["tensors"] = json.dumps(tensors)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "truncated" in refused(path, with_header(path.read_bytes(), grow))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes


@given(data=st.data())
def test_any_damage_is_noticed_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Bytes changed, cut out or put in anywhere: an equal mask, or `MaskError`, and no other."""
    path = tmp_path_factory.mktemp("mask") / "m.safetensors"
    mask = example_mask()
    mask.save(path)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(raw) - 1))
        match data.draw(st.sampled_from(["change", "flip", "cut", "insert"])):
            case "change":
                raw[place] = data.draw(st.integers(0, 255))
            case "flip":
                raw[place] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del raw[place : place + data.draw(st.integers(1, 40))]
            case _:
                raw[place:place] = data.draw(st.binary(max_size=8))
        if not raw:
            break
    path.write_bytes(raw)
    check_noticed_or_harmless(path, mask)


def test_any_flipped_bit_is_noticed_or_harmless(tmp_path: Path) -> None:
    """A bit of every byte of the header, and every bit of the data."""
    path = tmp_path / "m.safetensors"
    mask = Mask.from_arrays(
        {"w": np.arange(13) % 3 == 0, "b": np.array([[True]])},
        base={"w": BaseTensor("BF16", "0" * 32)},
        provenance={"steps": [{"step": "extract"}]},
    )
    mask.save(path)
    raw = path.read_bytes()
    data = len(raw) - sum(len(mask.packed(name)) for name in mask)
    flips = [(place, place % 8) for place in range(data)]
    flips += [(place, bit) for place in range(data, len(raw)) for bit in range(8)]
    harmless = []
    for place, bit in flips:
        damaged = bytearray(raw)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        if check_noticed_or_harmless(path, mask):
            harmless.append(place)
    assert all(place < data for place in harmless)
    # Words that do not bear on what is selected, such as the digest of a base.
    digest = raw.index(b"0" * 32)
    assert not set(harmless).isdisjoint(range(digest, digest + 32))


def check_noticed_or_harmless(path: Path, mask: Mask) -> bool:
    """Check that a file is refused in words that name it, or selects what the mask does."""
    try:
        loaded = Mask.load(path)
    except MaskError as error:
        assert str(error).startswith(str(path))
        with pytest.raises(MaskError) as caught:
            open_mask(path)
        assert str(caught.value) == str(error)
        return False
    assert loaded == mask
    with open_mask(path) as stored:
        assert stored.names == loaded.names
        assert stored.digest == mask.digest
    return True
