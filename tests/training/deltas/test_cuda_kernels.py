"""On a GPU what changed is found and applied where tensors are: the same changes, bit for bit.

Without a GPU the kernels run in Triton's interpreter, on CPU tensors. `TRITON_INTERPRET=0` runs the
tests on the GPU. The interpreter runs in one thread only.
"""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import trimtab
from tests.deltas.building import write_folder
from tests.deltas.test_changes import SIZES, assert_equal, pair
from tests.training.deltas.test_loading import (
    Arrays,
    arrays_pair,
    bits_of,
    made,
    module_of,
    raw,
    tensor_of,
)
from trimtab.deltas import changes as host
from trimtab.elements.dtypes import DTYPES, DType
from trimtab.errors import DeltaError
from trimtab.training import load_delta, save_delta
from trimtab.training.deltas import live

pytest.importorskip("triton")
from trimtab.training.deltas import cuda_kernels

pytestmark = pytest.mark.train

DEVICE = "cpu" if os.environ["TRITON_INTERPRET"] == "1" else "cuda"


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """The kernels run, wherever tensors are; counts the bytes of changes and of whole tensors."""
    crossed = {"changes": 0, "whole": 0}
    find, apply, read = cuda_kernels.find_changes, cuda_kernels.apply_changes, live.LiveTensor.read

    def counted_find(*arguments: Any) -> host.Changes:
        found = find(*arguments)
        crossed["changes"] += found.num_bytes
        return found

    def counted_apply(bits: torch.Tensor, changes: host.Changes, **options: Any) -> None:
        crossed["changes"] += changes.num_bytes
        apply(bits, changes, **options)

    def counted_read(self: live.LiveTensor) -> Any:
        crossed["whole"] += self.num_bytes
        return read(self)

    monkeypatch.setattr(live, "has_kernel", lambda device: device.type == DEVICE)
    monkeypatch.setattr(cuda_kernels, "find_changes", counted_find)
    monkeypatch.setattr(cuda_kernels, "apply_changes", counted_apply)
    monkeypatch.setattr(live.LiveTensor, "read", counted_read)
    yield crossed


@pytest.mark.parametrize("name", ["F64", "F32", "BF16", "F8_E4M3", "F8_E8M0", "I64", "I16", "U8"])
@settings(max_examples=12, deadline=None)
@given(size=SIZES, share=st.sampled_from([0.0, 0.02, 0.5, 1.0]), seed=st.integers(0, 2**20))
def test_the_same_as_on_the_host(name: str, size: int, share: float, seed: int) -> None:
    dtype = DTYPES[name]
    before, after = pair(dtype, size, share, seed)
    old, new = (
        tensor_of(name, bits).view(live.INTEGERS[dtype.num_bytes]).to(DEVICE)
        for bits in (before, after)
    )
    expected = host.find_changes(before, after, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_kernels, "CHUNK", 2 * host.ROW)
        assert_equal(cuda_kernels.find_changes(old, new, dtype), expected)
    assert cuda_kernels.fingerprint(old) == host.fingerprint(before)
    assert cuda_kernels.fingerprint(new[1:]) == host.fingerprint(after[1:])  # at any address
    bits = old.clone()
    cuda_kernels.apply_changes(bits, expected, is_float=dtype.is_float)
    assert torch.equal(bits, new)
    cuda_kernels.apply_changes(bits, expected, is_float=dtype.is_float, back=True)
    assert torch.equal(bits, old)


def test_a_model_is_saved_and_loaded_by_its_changes(tmp_path: Path, on_gpu: dict[str, int]) -> None:
    base, tuned = arrays_pair()
    write_folder(tmp_path / "base", base)
    model, reference = module_of(tuned).to(DEVICE), module_of(base).to(DEVICE)
    save_delta(model, tmp_path / "base", tmp_path / "x.delta", reference=reference, threads=1)
    assert on_gpu["changes"] > 0
    assert on_gpu["whole"] == 0
    on_gpu["changes"] = 0
    save_delta(model, tmp_path / "base", tmp_path / "plain.delta", threads=1)
    assert on_gpu["changes"] == 0
    with (
        trimtab.DeltaFile(tmp_path / "x.delta") as x,
        trimtab.DeltaFile(tmp_path / "plain.delta") as y,
    ):
        assert x.manifest.tensors == y.manifest.tensors
        assert x.manifest.result == y.manifest.result
    places = {name: tensor.data_ptr() for name, tensor in reference.state_dict().items()}
    on_gpu.update(changes=0, whole=0)
    loaded = load_delta(reference, tmp_path / "x.delta", threads=1)
    once = sum(bits.nbytes for _, bits in base.values())
    assert on_gpu == {"changes": loaded.num_bytes, "whole": once}
    assert bits_of(reference) == raw(tuned)
    with pytest.raises(DeltaError, match="the delta was applied before; nothing was changed"):
        load_delta(reference, tmp_path / "x.delta", threads=1)
    on_gpu.update(changes=0, whole=0)
    with torch.no_grad():
        reference.get_parameter("F32").view(torch.int32)[0, 0] ^= 1
    with pytest.raises(DeltaError, match="F32 changed since the delta was applied"):
        loaded.revert(threads=1)
    with torch.no_grad():
        reference.get_parameter("F32").view(torch.int32)[0, 0] ^= 1
    on_gpu.update(changes=0, whole=0)
    loaded.revert(threads=1)
    assert on_gpu == {"changes": loaded.num_bytes, "whole": 0}
    assert bits_of(reference) == raw(base)
    assert {name: tensor.data_ptr() for name, tensor in reference.state_dict().items()} == places


def test_a_reference_with_other_weights_changes_nothing(
    tmp_path: Path, on_gpu: dict[str, int]
) -> None:
    base, tuned = arrays_pair()
    write_folder(tmp_path / "base", base)
    other = module_of(base)
    other.get_parameter("BF16").view(torch.int16)[3, 3] ^= 1  # as if it was synchronised
    other.register_parameter("F16", nn.Parameter(torch.zeros(3), requires_grad=False))
    other = other.to(DEVICE)
    model = module_of(tuned).to(DEVICE)
    with pytest.warns(UserWarning, match="other weights than .* in BF16: these tensors were cop"):
        save_delta(model, tmp_path / "base", tmp_path / "x.delta", reference=other, threads=1)
    assert on_gpu["whole"] == tuned["BF16"][1].nbytes + tuned["F16"][1].nbytes
    with_it = module_of(base).to(DEVICE)
    load_delta(with_it, tmp_path / "x.delta", threads=1)
    assert bits_of(with_it) == raw(tuned)


def test_tensors_that_are_not_together_in_memory_are_copied(
    tmp_path: Path, on_gpu: dict[str, int]
) -> None:
    base, tuned = arrays_pair()
    parts: Arrays = {"a": base["BF16"], "b": base["F32"]}
    delta = made(tmp_path, parts, {"a": tuned["BF16"], "b": tuned["F32"]})
    model = nn.Module()
    turned = tensor_of("BF16", base["BF16"][1].T.copy()).to(DEVICE).T
    model.a = nn.Parameter(turned, requires_grad=False)
    model.b = nn.Parameter(tensor_of(*base["F32"]).to(DEVICE), requires_grad=False)
    loaded = load_delta(model, delta, threads=1)
    assert bits_of(model) == {"a": tuned["BF16"][1].tobytes(), "b": tuned["F32"][1].tobytes()}
    loaded.revert(threads=1)
    assert bits_of(model) == {"a": base["BF16"][1].tobytes(), "b": base["F32"][1].tobytes()}


class Allocated(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The largest number of bytes of tensors that operations made and that were alive."""

    def __init__(self, *given: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = self._now = 0
        self._known = {tensor.untyped_storage().data_ptr() for tensor in given}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **kwargs or {})
        storage = result.untyped_storage() if isinstance(result, torch.Tensor) else None
        if storage is not None and storage.data_ptr() not in self._known:
            self._known.add(storage.data_ptr())
            self._now += storage.nbytes()
            self.most = max(self.most, self._now)
            weakref.finalize(storage, self._free, storage.data_ptr(), storage.nbytes())
        return result

    def _free(self, address: int, num_bytes: int) -> None:
        self._known.discard(address)
        self._now -= num_bytes


class Uncounted:
    """A kernel of which the tensors of the interpreter are not counted."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel

    def __getitem__(self, grid: Any) -> Any:
        def run(*arguments: Any, **options: Any) -> None:
            with _disable_current_modes():
                self._kernel[grid](*arguments, **options)

        return run


@pytest.mark.skipif(DEVICE != "cpu", reason="counts what is allocated on a CPU")
def test_memory_is_that_of_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    name, dtype, chunk = "BF16", DTYPES["BF16"], 1 << 13
    most: list[int] = []
    real = cuda_kernels._find_in_chunk

    def measured(before: torch.Tensor, after: torch.Tensor, dtype: DType) -> host.Changes:
        with Allocated(before, after) as allocated:
            found = real(before, after, dtype)
        most.append(allocated.most)
        return found

    monkeypatch.setattr(cuda_kernels, "CHUNK", chunk)
    monkeypatch.setattr(cuda_kernels, "_find", Uncounted(cuda_kernels._find))
    monkeypatch.setattr(cuda_kernels, "_find_in_chunk", measured)
    before, after = pair(dtype, 3 * chunk + 1, 1.0, 0)
    old, new = (tensor_of(name, b).view(live.INTEGERS[dtype.num_bytes]) for b in (before, after))
    assert_equal(
        cuda_kernels.find_changes(old, new, dtype), host.find_changes(before, after, dtype)
    )
    assert len(most) == 4
    assert 2 * chunk < max(most) <= (3 + dtype.num_bytes) * chunk


COMPILE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from trimtab.training.deltas.cuda_kernels import ROW, ROWS, _find
from trimtab.training.optimizers.cuda_kernels import OPTIONS

types = {"before": "*i16", "after": "*i16", "counts": "*i32", "num": "i32", "num_rows": "i32"}
types |= {"starts": "*i32", "places": "*u8", "steps": "*i8", "wide": "*i16"}
names = _find.arg_names
source = ASTSource(
    _find,
    {name: types.get(name, "constexpr") for name in names},
    {
        (names.index(name),): value
        for name, value in {"STORE": True, "FLOAT": True, "ROW": ROW, "ROWS": ROWS}.items()
    },
    {(names.index(name),): [["tt.divisibility", 16]] for name in ("before", "after", "num")},
)
print(compile(source, target=GPUTarget("cuda", 80, 32), options=OPTIONS).asm["ptx"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler is for Linux")
def test_compiled_for_a_gpu_all_arithmetic_is_of_integers(tmp_path: Path) -> None:
    """Compiling needs no GPU."""
    script = tmp_path / "compile_kernel.py"
    script.write_text(COMPILE)
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    ptx = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert "ld.global.v4.b32" in ptx, "threads load fewer than 16 bytes at once"
    assert ".f16" not in ptx
    assert ".f32" not in ptx


@pytest.mark.skipif(
    DEVICE != "cpu" or not torch.cuda.is_available(), reason="needs a GPU that CUDA runs on"
)
def test_on_a_gpu() -> None:
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", __file__],
        env=os.environ | {"TRITON_INTERPRET": "0"},
        check=True,
    )
