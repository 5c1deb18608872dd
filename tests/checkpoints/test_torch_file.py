"""pytorch_model.bin: the same bytes as torch.load, without loading or executing anything."""

from __future__ import annotations

import os
import pickle
import tempfile
import tracemalloc
import warnings
import zipfile
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trimtab.checkpoints import state_dict, torch_file
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.checkpoints.tensors import DataFile, FilePool
from trimtab.checkpoints.torch_file import read_torch_file
from trimtab.elements.dtypes import DTYPES
from trimtab.errors import CheckpointError

torch: Any = pytest.importorskip("torch")
pytestmark = pytest.mark.train


def names(path: Path) -> list[str]:
    with closing(FilePool()) as pool:
        return [tensor.name for tensor in read_torch_file(DataFile(path, pool))]


def save(path: Path, value: Any, **options: Any) -> Path:
    torch.save(value, path / "pytorch_model.bin", **options)
    return path / "pytorch_model.bin"


def test_every_dtype_has_the_bytes_that_torch_loads(tmp_path: Path) -> None:
    raw = np.random.default_rng(0).integers(0, 2, 24, dtype=np.uint8).tobytes()
    state = {
        name: torch.frombuffer(bytearray(raw), dtype=getattr(torch, dtype.storage.name))
        for name, dtype in DTYPES.items()
    }
    path = save(tmp_path, state)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tensors.keys() == DTYPES.keys()
        for name, tensor in checkpoint.tensors.items():
            assert tensor.dtype.name == name
            assert tensor.read().tobytes() == raw


def test_shapes_offsets_parameters_and_slices(tmp_path: Path) -> None:
    whole = torch.arange(60.0)
    state = {
        "slice": whole[6:18].view(3, 4),
        "parameter": torch.nn.Parameter(torch.randn(2, 3, dtype=torch.bfloat16)),
        "scalar": torch.tensor(7, dtype=torch.int64),
        "empty": torch.empty(0, 3),
    }
    path = save(tmp_path, state)
    loaded = torch.load(path, weights_only=True)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tensors.keys() == state.keys()
        for name, tensor in checkpoint.tensors.items():
            assert tensor.shape == tuple(loaded[name].shape)
            expected = loaded[name].detach().contiguous().reshape(-1).view(torch.uint8)
            assert tensor.read().tobytes() == expected.numpy().tobytes()


@pytest.mark.parametrize("order", [1, -1])
def test_shared_storage_is_one_tensor_and_its_tied_name(tmp_path: Path, order: int) -> None:
    shared = torch.randn(4, 2)
    state = {"model.embed_tokens.weight": shared, "lm_head.weight": shared, "x": shared[:2]}
    path = save(tmp_path, dict(list(state.items())[::order]))
    with open_checkpoint(path) as checkpoint:
        assert set(checkpoint.tensors) == {"model.embed_tokens.weight", "x"}
        assert dict(checkpoint.tied) == {"lm_head.weight": "model.embed_tokens.weight"}


def test_no_data_is_loaded(tmp_path: Path) -> None:
    path = save(tmp_path, {"w": torch.zeros(64_000_000, dtype=torch.uint8)})
    before = Path("/proc/self/statm").read_text().split()[1]
    tracemalloc.start()
    assert names(path) == ["w"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    after = Path("/proc/self/statm").read_text().split()[1]
    assert peak < 8_000_000
    assert (int(after) - int(before)) * os.sysconf("SC_PAGESIZE") < 32_000_000


class Malicious:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call = (call, arguments)

    def __reduce__(self) -> Any:
        return self.call


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    path = save(tmp_path, {"w": Malicious(os.system, f"touch {proof}")})
    with pytest.raises(CheckpointError, match=r"system.*trimtab executes no pickle") as caught:
        names(path)
    assert "\n" not in str(caught.value)
    path = save(tmp_path, {"w": Malicious(eval, "1")})
    with pytest.raises(CheckpointError, match=r"asks for \S*eval\)"):
        names(path)
    path.write_bytes(pickle.dumps(Malicious(os.system, f"touch {proof}")))
    with pytest.raises(CheckpointError, match="not a zip file"):
        names(path)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ([1], "expected a state dict, found a list"),
        ({"model": {"w": torch.zeros(1)}}, "'model' is a dict, not a tensor"),
        ({"epoch": 3}, "'epoch' is a int, not a tensor"),
        ({3: torch.zeros(1)}, "a key of the type int is not a tensor name"),
        ({"w": torch.zeros(2, 3).t()}, r"'w' is a view with strides \(1, 3\)"),
        ({"w": torch.zeros(3).expand(2, 3)}, r"'w' is a view with strides \(0, 1\)"),
        ({"w": torch.zeros(2, dtype=torch.complex64)}, "'w' has dtype torch.complex64"),
        ({"w": torch.eye(2).to_sparse()}, "'w' is sparse"),
    ],
)
def test_what_is_not_a_plain_state_dict_is_refused(
    tmp_path: Path, state: Any, expected: str
) -> None:
    with pytest.raises(CheckpointError, match=expected) as caught:
        names(save(tmp_path, state))
    assert "pytorch_model.bin: " in str(caught.value)
    assert str(caught.value).endswith("save it as safetensors")


def test_a_pickle_cannot_ask_for_memory(tmp_path: Path) -> None:
    path = save(tmp_path, {"w": Malicious(bytearray, 3_000_000_000)})
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="bytearray"):
        names(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'v' .*; 'w' "):
        names(save(tmp_path, {"v": 1, "w": 2}))


def test_the_old_format_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, {"w": torch.zeros(2)}, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"PyTorch before 1\.6"):
        names(path)


def rezip(path: Path, compression: int, **replaced: bytes) -> None:
    with zipfile.ZipFile(path) as archive:
        records = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in records.items():
            archive.writestr(name, replaced.get(name.rpartition("/")[2], data))


def test_a_file_zipped_anew_has_other_offsets(tmp_path: Path) -> None:
    path = save(tmp_path, {"w": torch.arange(10)})
    rezip(path, zipfile.ZIP_STORED)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tensors["w"].read().tolist() == list(range(10))


def test_compressed_records_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path, {"w": torch.zeros(1000)})
    rezip(path, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="records are compressed"):
        names(path)


def test_big_endian_bytes_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path, {"w": torch.zeros(2)})
    rezip(path, zipfile.ZIP_STORED, byteorder=b"big")
    with pytest.raises(CheckpointError, match="big-endian"):
        names(path)


def test_a_record_shorter_than_its_tensor_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, {"v": torch.zeros(8), "w": torch.zeros(8)})
    rezip(path, zipfile.ZIP_STORED, **{"0": bytes(16)})
    with pytest.raises(CheckpointError, match="'v' needs more bytes than its record"):
        names(path)


def test_torch_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, {"w": torch.zeros(2)})
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    assert names(path) == ["w"]


def records_of(path: Path) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        return [(entry.filename, archive.read(entry)) for entry in archive.infolist()]


def zip_again(path: Path, records: list[tuple[str, bytes]]) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")  # zipfile warns of a name that is there twice
        for name, content in records:
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("byteorder", "BYTEORDER", "'archive/BYTEORDER' should be byteorder"),
        ("data.pkl", "DATA.PKL", "'archive/DATA.PKL' should be data.pkl"),
        ("data/0", "data/1", "two records of the name 'archive/data/1'"),
        (".data/serialization_id", "DATA/1", "two records of the name 'archive/data/1'|DATA/1'"),
        ("data.pkl", "data.txt", "no record data.pkl"),
        ("data/0", "data/7", "'v' lies in the record '0', which is not there"),
    ],
)
def test_records_that_two_readers_could_take_for_another(
    tmp_path: Path, old: str, new: str, expected: str
) -> None:
    path = save(tmp_path, {"v": torch.zeros(2), "w": torch.ones(2)})
    records = [
        (f"archive/{new}" if name == f"archive/{old}" else name, content)
        for name, content in (
            (f"archive/{name.partition('/')[2]}", content) for name, content in records_of(path)
        )
    ]
    with pytest.raises(CheckpointError, match=expected):
        names(zip_again(path, records))


def test_a_record_of_another_folder_and_one_with_a_nul(tmp_path: Path) -> None:
    path = save(tmp_path, {"v": torch.zeros(2)})
    records = records_of(path)
    for odd in ("other/data.pkl", "data.pkl"):
        with pytest.raises(CheckpointError, match="not in the folder of the others"):
            names(zip_again(path, [*records, (odd, b"")]))
    raw = zip_again(path, [*records, ("archive/x0x", b"")]).read_bytes()
    path.write_bytes(raw.replace(b"archive/x0x", b"archive/x\0x"))
    with pytest.raises(CheckpointError, match="not in the folder of the others"):
        names(path)


def test_records_that_overlap_and_a_directory_that_lies(tmp_path: Path) -> None:
    path = save(tmp_path, {"v": torch.zeros(8), "w": torch.ones(8)})
    raw = zip_again(path, records_of(path)).read_bytes()
    with zipfile.ZipFile(path) as archive:
        places = {e.filename.rpartition("/")[2]: e.header_offset for e in archive.infolist()}
    entry = raw.rindex(b"PK\x01\x02", 0, raw.rindex(b"/data/1"))
    moved = bytearray(raw)
    moved[entry + 42 : entry + 46] = places["0"].to_bytes(4, "little")
    path.write_bytes(moved)
    with pytest.raises(CheckpointError, match="is not where its zip directory says"):
        names(path)
    # A record that claims more than there is up to the next one.
    longer = bytearray(raw)
    first = raw.rindex(b"PK\x01\x02", 0, raw.rindex(b"/data/0"))
    for field in (20, 24):
        longer[first + field : first + field + 4] = (200).to_bytes(4, "little")
    path.write_bytes(longer)
    with pytest.raises(CheckpointError, match=r"overlaps another"):
        names(path)


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def doubled(times: int) -> bytes:
    """A tuple of two of itself, so many times over: 2 ** times leaves to hash or to print."""
    return b"K\x01" + b"".join(bytes([*b"q", i, *b"h", i, 0x86]) for i in range(times))


SIX = (3 << 30).to_bytes(6, "little")
CALLS = (
    *("builtins bytearray", "torch Size", "torch._utils _rebuild_tensor_v2", "_codecs encode"),
    *("builtins set", "collections Counter", "torch.storage UntypedStorage", "torch FloatStorage"),
    *("torch zeros", "torch._utils _rebuild_meta_tensor_no_storage", "collections OrderedDict"),
)


@pytest.mark.parametrize(
    "pickled",
    [
        b"}" + doubled(60) + text("a") + b"s.",
        b"}" + text("a") + doubled(60) + b"s.",
        b"}" + doubled(26) + text("a") + b"s.",
        doubled(60) + b".",
        b"}" + text("a") + b"B" + SIX[:4] + b"s.",  # bytes of 3 GiB that are not there
        b"}" + text("a") + b"\x8d" + SIX + b"\0\0" + b"s.",
        b"]q\x00h\x00a.",  # a list in itself
        b"}" + text("a") + b"(lh\x00.",
        b"h\x00.",
        b"0.",
        b"\x86.",
        b"}" + text("a") + text("b") + b"Qs.",
        b"}" + text("a") + b"I" + b"9" * 100_000 + b"\ns.",
        *(
            b"}" + text("a") + b"c" + name.encode().replace(b" ", b"\n") + b"\n\x8a\x06" + SIX
            for name in CALLS
        ),
        *(
            b"}" + text("a") + b"c" + name.encode().replace(b" ", b"\n") + b"\n\x8a\x06" + SIX
            + b"\x85Rs."
            for name in CALLS
        ),
    ],
)  # fmt: skip
def test_no_pickle_costs_more_than_its_length(tmp_path: Path, pickled: bytes) -> None:
    path = save(tmp_path, {"v": torch.zeros(2)})
    records = [
        (name, b"\x80\x02" + pickled if name.endswith("data.pkl") else content)
        for name, content in records_of(path)
    ]
    zip_again(path, records)
    tracemalloc.start()
    with pytest.raises(CheckpointError) as caught:
        names(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000
    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()


def test_a_long_pickle_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, {"v": torch.zeros(2)})
    monkeypatch.setattr(state_dict, "MAX_INSTRUCTIONS", 10)
    with pytest.raises(CheckpointError, match="more than 10 instructions"):
        names(path)
    monkeypatch.setattr(torch_file, "MAX_PICKLE_BYTES", 10)
    with pytest.raises(CheckpointError, match="10 are read"):
        names(path)


def test_a_sparse_file_of_gigabytes_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, {"v": torch.zeros(2)})
    end = path.read_bytes()[-22:]
    with path.open("r+b") as file:
        file.truncate(3 << 30)
        file.seek(0, os.SEEK_END)
        file.write(end[:8] + b"\xfe\xff\xfe\xff" + SIX[:3] + b"\x80" + bytes(4) + bytes(2))
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="zip directory"):
        names(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000


def test_tensors_with_attributes_and_a_module_state_dict(tmp_path: Path) -> None:
    tagged = torch.arange(3.0)
    tagged.tag = 1
    parameter = torch.nn.Parameter(torch.arange(4.0))
    parameter.tag = 2
    state = {**torch.nn.Linear(2, 3).state_dict(), "tagged": tagged, "parameter": parameter}
    path = save(tmp_path, torch.nn.modules.module.OrderedDict(state))
    with open_checkpoint(path) as checkpoint:
        for name, value in state.items():
            assert checkpoint.tensors[name].read().view("f4").tolist() == value.tolist()


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_damaged_files_raise_nothing_else(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = save(Path(folder), {"v": torch.zeros(2), "w": torch.zeros(3)})
        raw = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(raw) - 1))
            if data.draw(st.booleans()):
                raw[at] = data.draw(st.integers(0, 255))
            else:
                del raw[at : at + data.draw(st.integers(1, 60))]
        path.write_bytes(raw)
        try:
            with open_checkpoint(path) as checkpoint:
                for tensor in checkpoint.tensors.values():
                    tensor.read()
        except CheckpointError as error:
            assert "\n" not in str(error)
