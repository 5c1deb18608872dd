"""A delta gives the tuned checkpoint back byte for byte, or says in one sentence why not."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open

import trimtab
from tests.deltas.building import content_of, moved, random_bits, write_folder, write_weights
from trimtab.deltas.chain import opened_chain
from trimtab.deltas.file import DeltaFile
from trimtab.elements.dtypes import DTYPES
from trimtab.errors import CheckpointError, DeltaError, OutputExistsError, SettingsError

SHAPES = [(), (0,), (1,), (7,), (3, 5), (2, 0, 3), (4, 1, 3)]


def pair(folder: Path, seed: int = 0, rows: int = 40) -> tuple[Path, Path]:
    """A base and a tuned checkpoint of two bf16 tensors."""
    weight = random_bits("BF16", (rows, 30), seed)
    norm = random_bits("BF16", (30,), seed + 1)
    base = write_folder(folder / "base", {"w": ("BF16", weight), "n": ("BF16", norm)})
    tuned = write_folder(
        folder / "tuned", {"w": ("BF16", moved(weight, 0.1, seed)), "n": ("BF16", norm)}
    )
    return base, tuned


def made(base: Path, tuned: Path, path: Path, **options: Any) -> Path:
    trimtab.make_delta(base, tuned, path, **options)
    return path


def check_round_trip(base: Path, tuned: Path, folder: Path) -> trimtab.Manifest:
    """Make, apply, and compare every file; returns what the delta says."""
    delta = made(base, tuned, folder / "x.delta")
    manifest = trimtab.apply_delta(base, delta, folder / "out")
    assert content_of(folder / "out") == content_of(tuned)
    assert trimtab.verify_delta(base, delta) == manifest
    return manifest


@settings(max_examples=60, deadline=None)
@given(
    dtypes=st.lists(st.sampled_from(sorted(DTYPES)), min_size=1, max_size=4),
    shape=st.sampled_from(SHAPES),
    share=st.sampled_from([0.0, 0.2, 1.0]),
    seed=st.integers(0, 1000),
)
def test_every_dtype_any_bits(
    dtypes: list[str], shape: tuple[int, ...], share: float, seed: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before = {f"t{n}": (d, random_bits(d, shape, seed + n)) for n, d in enumerate(dtypes)}
        after = {
            name: (dtype, bits if dtype == "BOOL" else moved(bits, share, seed))
            for name, (dtype, bits) in before.items()
        }
        base = write_folder(folder / "base", before)
        manifest = check_round_trip(base, write_folder(folder / "tuned", after), folder)
        changed = sum(int((before[n][1] != after[n][1]).sum()) for n in before)
        assert manifest.num_changed == changed


def test_other_shards_other_files_and_other_tensors(tmp_path: Path) -> None:
    """Resharded, rows added, a tensor added, one removed, one of another dtype, a new file."""
    a, b = random_bits("BF16", (30, 8), 0), random_bits("F32", (5, 5), 1)
    base = write_folder(
        tmp_path / "base", {"a": ("BF16", a), "b": ("F32", b), "gone": ("F32", b), "c": ("F32", b)}
    )
    longer = np.concatenate([moved(a, 0.1, 2), random_bits("BF16", (3, 8), 3)])
    tuned = write_folder(
        tmp_path / "tuned",
        {"b": ("F32", moved(b, 0.5, 4)), "new": ("I64", random_bits("I64", (4,), 5))},
        {"a": ("BF16", longer), "c": ("BF16", random_bits("BF16", (5, 5), 6))},
    )
    (tuned / "README.md").write_text("hello")
    (tuned / "optimizer.pt").write_bytes(b"state")
    (tuned / ".hidden").write_bytes(b"no")
    delta = made(base, tuned, tmp_path / "x.delta")
    manifest = trimtab.apply_delta(base, delta, tmp_path / "out")
    assert manifest.left_out == ("optimizer.pt",)
    expected = content_of(tuned)
    del expected["optimizer.pt"]
    assert content_of(tmp_path / "out") == expected
    entries = manifest.by_name()
    assert entries["a"].num_common == 240 and entries["a"].num_stored > 48
    assert entries["new"].base is None and entries["new"].num_stored == 32
    assert entries["c"].base is None and entries["c"].num_changed == 25
    made(base, tuned, tmp_path / "y.delta", carry=["optimizer.*"])
    trimtab.apply_delta(base, tmp_path / "y.delta", tmp_path / "out2")
    assert content_of(tmp_path / "out2") == content_of(tuned)


def test_fewer_rows(tmp_path: Path) -> None:
    a = random_bits("BF16", (30, 8), 0)
    base = write_folder(tmp_path / "base", {"a": ("BF16", a)})
    tuned = write_folder(tmp_path / "tuned", {"a": ("BF16", moved(a, 0.1, 1)[:20].copy())})
    manifest = check_round_trip(base, tuned, tmp_path)
    assert manifest.tensors[0].num_common == 160


def test_a_head_that_is_tied_in_the_base_and_stored_in_the_result(tmp_path: Path) -> None:
    """It is coded once, whether the head was saved as a copy or went its own way."""
    embed = random_bits("BF16", (30, 8), 0)
    config = {"tie_word_embeddings": True, "architectures": ["LlamaForCausalLM"]}
    base = write_folder(
        tmp_path / "base", {"model.embed_tokens.weight": ("BF16", embed)}, config=config
    )
    after = moved(embed, 0.2, 1)
    arrays = {"model.embed_tokens.weight": ("BF16", after), "lm_head.weight": ("BF16", after)}
    tuned = write_folder(tmp_path / "tuned", arrays, config=config)
    head = check_round_trip(base, tuned, tmp_path).by_name()["lm_head.weight"]
    assert head.copy_of == "model.embed_tokens.weight" and head.num_stored == 0
    arrays["lm_head.weight"] = ("BF16", moved(embed, 0.2, 9))
    (tmp_path / "2").mkdir()
    tuned = write_folder(tmp_path / "2" / "tuned", arrays, config=config)
    head = check_round_trip(base, tuned, tmp_path / "2").by_name()["lm_head.weight"]
    assert head.copy_of is None and head.base == "model.embed_tokens.weight"


def test_headers_with_spaces_and_metadata_come_back(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    path = tuned / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length] + b" " * 24
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    check_round_trip(base, tuned, tmp_path)


def test_any_reader_of_safetensors_finds_the_parts(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    delta = made(base, tuned, tmp_path / "x.delta")
    with safe_open(delta, "numpy") as file:
        assert {*file.keys()} == {"manifest", "tensors", "file:model.safetensors"}
        assert file.metadata()["format"] == "trimtab.delta"
        part = file.get_tensor("tensors").tobytes()
    with DeltaFile(delta) as opened:
        assert opened.stored(opened.tensors["w"], 0, len(part)) == part
        assert opened.num_bytes == delta.stat().st_size


def test_a_base_that_was_saved_again_in_other_shards(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    delta = made(base, tuned, tmp_path / "x.delta")
    with trimtab.open_checkpoint(base) as checkpoint:
        bits = {n: ("BF16", t.read()) for n, t in checkpoint.tensors.items()}
    again = write_folder(tmp_path / "again", {"n": bits["n"]}, {"w": bits["w"]})
    trimtab.apply_delta(again, delta, tmp_path / "out")
    assert content_of(tmp_path / "out") == content_of(tuned)


def test_a_file_of_weights_alone(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    delta = made(base / "model.safetensors", tuned / "model.safetensors", tmp_path / "x.delta")
    trimtab.apply_delta(base / "model.safetensors", delta, tmp_path / "out")
    (file,) = (tmp_path / "out").iterdir()
    assert file.read_bytes() == (tuned / "model.safetensors").read_bytes()


def versions(folder: Path, num: int) -> tuple[list[Path], list[Path]]:
    """Checkpoints of a run, and the deltas from each to the next."""
    bits: NDArray[Any] = random_bits("BF16", (40, 30), 0)
    folders = [write_folder(folder / "v0", {"w": ("BF16", bits)})]
    deltas: list[Path] = []
    for number in range(1, num):
        bits = moved(bits, 0.05, number)
        config = {"step": number}
        folders.append(write_folder(folder / f"v{number}", {"w": ("BF16", bits)}, config=config))
        after = deltas[-1] if deltas else None
        deltas.append(made(folders[-2], folders[-1], folder / f"{number}.delta", after=after))
    return folders, deltas


def test_a_chain_in_any_order_and_folded_into_one(tmp_path: Path) -> None:
    folders, deltas = versions(tmp_path, 5)
    with opened_chain(deltas[::-1]) as ordered:
        assert [delta.path for delta in ordered] == deltas
        assert [delta.manifest.position for delta in ordered] == [1, 2, 3, 4]
        assert len({delta.manifest.root for delta in ordered}) == 1
    for last in range(1, 5):
        trimtab.apply_delta(folders[0], deltas[:last][::-1], tmp_path / f"out{last}")
        assert content_of(tmp_path / f"out{last}") == content_of(folders[last])
    folded = trimtab.compact_deltas(folders[0], deltas, tmp_path / "one.delta")
    assert folded.position == 1
    trimtab.apply_delta(folders[0], tmp_path / "one.delta", tmp_path / "folded")
    assert content_of(tmp_path / "folded") == content_of(folders[-1])
    from_start = made(folders[0], folders[-1], tmp_path / "direct.delta")
    with DeltaFile(from_start) as direct:
        assert direct.manifest.tensors == folded.tensors


def test_a_chain_that_leads_back_to_one_of_its_checkpoints(tmp_path: Path) -> None:
    folders, deltas = versions(tmp_path, 3)
    back = made(folders[2], folders[1], tmp_path / "back.delta")
    trimtab.apply_delta(folders[0], [back, *deltas], tmp_path / "out")
    assert content_of(tmp_path / "out") == content_of(folders[1])


def test_a_tuned_checkpoint_without_tensors(tmp_path: Path) -> None:
    base, _ = pair(tmp_path)
    empty = write_folder(tmp_path / "empty", {})
    with pytest.raises(CheckpointError, match="empty holds no tensors: expected a tuned model"):
        trimtab.make_delta(base, empty, tmp_path / "x.delta")
    assert not (tmp_path / "x.delta").exists()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"max_rank": 17}, "max_rank is 17, expected 0 to 16"),
        ({"max_rank": -1}, "max_rank is -1"),
        ({"threads": 0}, "threads is 0, expected 1 or more"),
    ],
)
def test_settings_out_of_range(tmp_path: Path, settings: dict[str, Any], sentence: str) -> None:
    base, tuned = pair(tmp_path)
    with pytest.raises(SettingsError, match=sentence):
        trimtab.make_delta(base, tuned, tmp_path / "x.delta", **settings)
    assert not (tmp_path / "x.delta").exists()


def test_one_pattern_to_carry(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    for name in ("a.pt", "b.bin"):
        (tuned / name).write_bytes(b"1")
    manifest = trimtab.make_delta(base, tuned, tmp_path / "x.delta", carry="*.pt")
    assert manifest.left_out == ("b.bin",)


def test_what_is_no_chain(tmp_path: Path) -> None:
    folders, deltas = versions(tmp_path, 4)
    with pytest.raises(DeltaError, match=r"3\.delta does not follow .*1\.delta: a delta between"):
        trimtab.apply_delta(folders[0], [deltas[0], deltas[2]], tmp_path / "out")
    fork = made(folders[0], folders[2], tmp_path / "fork.delta")
    with pytest.raises(DeltaError, match=r"are both deltas of \w+: a fork"):
        trimtab.apply_delta(folders[0], [deltas[0], fork], tmp_path / "out")
    with pytest.raises(DeltaError, match="to the same one: give one of them"):
        trimtab.apply_delta(folders[0], [deltas[0], deltas[0]], tmp_path / "out")
    back = made(folders[1], folders[0], tmp_path / "back.delta")
    with pytest.raises(DeltaError, match="lead back to their own base"):
        trimtab.verify_delta(folders[0], [deltas[0], back])
    trimtab.apply_delta(
        folders[0],
        [deltas[0], deltas[1], made(folders[2], folders[1], tmp_path / "b.delta")],
        tmp_path / "round",
    )
    assert content_of(tmp_path / "round") == content_of(folders[1])
    with pytest.raises(DeltaError, match="no deltas: give one or more"):
        trimtab.verify_delta(folders[0], [])
    with pytest.raises(DeltaError, match="give the delta that the base was made by"):
        made(folders[2], folders[3], tmp_path / "x.delta", after=deltas[0])
    assert not (tmp_path / "out").exists() and not (tmp_path / "x.delta").exists()


def test_a_wrong_base_a_second_time_and_a_changed_tokenizer(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    delta = made(base, tuned, tmp_path / "x.delta")
    with pytest.raises(
        DeltaError, match=r"w already is what .*x\.delta makes of it: the delta was"
    ):
        trimtab.apply_delta(tuned, delta, tmp_path / "out")
    other, _ = pair(tmp_path / "other", seed=7)
    with pytest.raises(DeltaError, match=r"w has xxh3-128 \w+, and .* was made against \w+: give"):
        trimtab.apply_delta(other, delta, tmp_path / "out")
    write_weights(other / "model.safetensors", {"v": ("U8", random_bits("U8", (3,), 0))})
    with pytest.raises(DeltaError, match="has no tensor w, against which"):
        trimtab.apply_delta(other, delta, tmp_path / "out")
    (base / "tokenizer.json").write_text("{}")
    with pytest.raises(
        DeltaError, match=r"tokenizer\.json is not the one that .*x\.delta was made"
    ):
        trimtab.apply_delta(base, delta, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_outputs_that_are_in_the_way_and_weights_that_are_not_safetensors(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    delta = made(base, tuned, tmp_path / "x.delta")
    with pytest.raises(OutputExistsError, match="add --force"):
        made(base, tuned, delta)
    with pytest.raises(OutputExistsError, match="choose another folder"):
        trimtab.apply_delta(base, delta, tuned)
    import torch

    torch.save({"w": torch.zeros(3)}, tmp_path / "w.bin")
    with pytest.raises(CheckpointError, match=r"stored in w\.bin: expected safetensors"):
        made(base, tmp_path / "w.bin", tmp_path / "y.delta")


def test_what_is_no_delta(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    path = tmp_path / "x.delta"
    path.write_bytes(b"")
    with pytest.raises(DeltaError, match="not a valid safetensors file"):
        DeltaFile(path)
    with pytest.raises(DeltaError, match="a safetensors file, but not a delta"):
        DeltaFile(base / "model.safetensors")
    with pytest.raises(DeltaError, match="expected a delta file, found a folder; `trimtab"):
        DeltaFile(base)
    with pytest.raises(DeltaError, match="no such file"):
        DeltaFile(tmp_path / "nothing")
    path.unlink()
    content = made(base, tuned, path).read_bytes()
    newer = content.replace(b'"format_version":"1"', b'"format_version":"9"')
    path.write_bytes(newer)
    with pytest.raises(DeltaError, match="format version '9': this trimtab reads version 1"):
        DeltaFile(path)


def test_every_damaged_byte_is_refused_or_harmless(tmp_path: Path) -> None:
    """Every byte of a delta, changed: the result is right to the byte, or there is none."""
    base, tuned = pair(tmp_path, rows=8)
    path = made(base, tuned, tmp_path / "x.delta")
    content, expected = path.read_bytes(), content_of(tuned)
    harmless = 0
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            trimtab.apply_delta(base, path, tmp_path / "out", threads=1)
        except (DeltaError, CheckpointError):
            assert not (tmp_path / "out").exists()
            continue
        assert content_of(tmp_path / "out") == expected
        harmless += 1
        for file in (tmp_path / "out").iterdir():
            file.unlink()
        (tmp_path / "out").rmdir()
    assert harmless < len(content) / 20  # spaces of the header, and nothing else


def forged(path: Path, change: Any) -> Path:
    """The delta with its manifest changed and hashed again, as somebody hostile would."""
    from trimtab.deltas.file import new_delta

    with DeltaFile(path) as delta:
        data = delta.manifest.to_dict()
        parts = {
            name: delta._read(name, 0, size) for name, size in delta.manifest.contents().items()
        }
    change(data)
    manifest = trimtab.Manifest.from_dict(json.loads(json.dumps(data)))
    target = path.with_suffix(".forged")
    with new_delta(target, {n: 2 * len(c) for n, c in parts.items()}, force=True) as writer:
        for name, content in parts.items():
            writer.add(name, [content])
        writer.finish(manifest)
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["files"][0].update(path="../x"), "leads out of the folder"),
        (lambda data: data["files"][0].update(path="/x"), "leads out of the folder"),
        (lambda data: data["tensors"][0].update(shape=[2**40]), "fewer|bytes|manifest|hash|size"),
        (lambda data: data["tensors"][0].update(dtype="F99"), "which safetensors does not have"),
        (lambda data: data["tensors"].append(data["tensors"][0]), "two tensors of the name 'w'"),
        (lambda data: data["files"].append(data["files"][1]), "two files of the name"),
        (lambda data: data["tensors"][1].update(copy_of="n"), "which is not there"),
        (lambda data: data.update(position=0), "position is 0"),
        (lambda data: data["tensors"][0].update(frames=[1]), "has .* bytes, expected"),
        (lambda data: data["files"][0].update(num_content=2**50), "too many for a file"),
    ],
)
def test_a_forged_manifest(tmp_path: Path, change: Any, message: str) -> None:
    base, tuned = pair(tmp_path)
    path = made(base, tuned, tmp_path / "x.delta")
    with pytest.raises((DeltaError, trimtab.errors.ResultFormatError), match=message):
        trimtab.apply_delta(base, forged(path, change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_allocation_by_what_a_frame_claims(tmp_path: Path) -> None:
    """A zstd frame that claims a terabyte is refused by its claim."""
    import zstandard

    from trimtab.deltas.file import _decompress

    packed = bytearray(zstandard.ZstdCompressor().compress(b"a" * 300))
    assert zstandard.frame_content_size(bytes(packed)) == 300
    with pytest.raises(DeltaError, match="claims 300 bytes, expected 299"):
        _decompress(bytes(packed), 299, "x")
    huge = b"\x28\xb5\x2f\xfd\xe0" + (2**40).to_bytes(8, "little") + b"\x01\x00\x00"
    with pytest.raises(DeltaError, match="claims 1099511627776 bytes, expected at most"):
        _decompress(huge, None, "x")


def test_the_report_and_the_json(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    manifest = trimtab.make_delta(base, tuned, tmp_path / "x.delta")
    manifest.save(tmp_path / "x.json")
    assert trimtab.load_result(tmp_path / "x.json") == manifest
    assert re.search(r"elements changed; [\d,]+ bytes", trimtab.report.text_of(manifest))
    assert list(manifest.to_dataframe()["name"]) == ["w", "n"]


def test_fp8_weights_with_their_scales(tmp_path: Path) -> None:
    """Both are tensors of their own, stored as they are: nothing is multiplied."""
    weight, scale = random_bits("F8_E4M3", (16, 32), 0), random_bits("F32", (2, 4), 1)
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [8, 8]}}
    names = [f"model.layers.0.mlp.up_proj.{part}" for part in ("weight", "weight_scale_inv")]
    folders = [
        write_folder(
            tmp_path / folder,
            {
                names[0]: ("F8_E4M3", moved(weight, share, 2)),
                names[1]: ("F32", moved(scale, share, 3)),
            },
            config=config,
        )
        for folder, share in (("base", 0.0), ("tuned", 0.2))
    ]
    entries = check_round_trip(folders[0], folders[1], tmp_path).by_name()
    assert [entries[name].dtype for name in names] == ["F8_E4M3", "F32"]
    assert 0 < entries[names[0]].num_stored < weight.nbytes
