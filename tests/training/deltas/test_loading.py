"""Deltas of models in memory: applied and taken back bit for bit, or not at all."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import trimtab
from tests.deltas.building import moved, random_bits, write_folder
from tests.deltas.signing import Signer
from tests.training import architectures, tiny
from trimtab.deltas.changes import Changes
from trimtab.elements.dtypes import DTYPES, Bits
from trimtab.errors import DeltaError
from trimtab.training import LoadedDelta, applied_delta, load_delta, prepare_delta
from trimtab.training.deltas.live import INTEGERS, NAMES, LiveTensor

pytestmark = pytest.mark.train

TORCH = {name: dtype for dtype, name in NAMES.items()}

Arrays = dict[str, tuple[str, Bits]]


def tensor_of(dtype: str, bits: Bits) -> torch.Tensor:
    integers = INTEGERS[bits.itemsize]
    signed = bits.copy().view(f"i{bits.itemsize}" if bits.itemsize > 1 else "u1")
    return torch.from_numpy(signed).view(integers).view(TORCH[dtype])


def module_of(arrays: Mapping[str, tuple[str, Bits]]) -> nn.Module:
    """Floats are parameters, others buffers."""
    module = nn.Module()
    for name, (dtype, bits) in arrays.items():
        values = tensor_of(dtype, bits)
        if DTYPES[dtype].is_float:
            module.register_parameter(name, nn.Parameter(values, requires_grad=False))
        else:
            module.register_buffer(name, values)
    return module


def bits_of(model: nn.Module) -> dict[str, bytes]:
    return {
        name: tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, tensor in model.state_dict().items()
    }


def raw(arrays: Arrays) -> dict[str, bytes]:
    return {name: bits.tobytes() for name, (_, bits) in arrays.items()}


def arrays_pair() -> tuple[Arrays, Arrays]:
    """Every dtype, with NaN payloads and both zeros; empty and 0-d; one that does not change."""
    shapes = dict.fromkeys(DTYPES, (7, 9)) | {"F64": (), "I64": (0, 3), "BF16": (50, 8)}
    base: Arrays = {n: (n, random_bits(n, shape, i)) for i, (n, shape) in enumerate(shapes.items())}
    base["same"] = ("BF16", random_bits("BF16", (5,), 99))
    tuned: Arrays = {
        n: (dtype, moved(bits, 0.2, 1) if n not in ("same", "BOOL") else bits.copy())
        for n, (dtype, bits) in base.items()
    }
    tuned["BF16"][1].reshape(-1)[:4] = (0x7FC1, 0xFF81, 0x8000, 0x0000)
    return base, tuned


def made(folder: Path, base: Arrays, tuned: Arrays, name: str = "x") -> Path:
    one = write_folder(folder / f"{name}-base", base)
    other = write_folder(folder / f"{name}-tuned", tuned)
    trimtab.make_delta(one, other, folder / f"{name}.delta")
    return folder / f"{name}.delta"


def interrupted(stop: int) -> Callable[..., None]:
    """`LiveTensor.change` with an interrupt at a call: after it, or for even numbers before it."""
    real, numbers = LiveTensor.change, count(1)

    def change(self: LiveTensor, changes: Changes, *, back: bool = False) -> None:
        num = next(numbers)  # tensors are changed in several threads
        if num != stop or stop % 2:
            real(self, changes, back=back)
        if num == stop:
            raise KeyboardInterrupt

    return change


def test_every_dtype_there_and_back(tmp_path: Path) -> None:
    base, tuned = arrays_pair()
    delta = made(tmp_path, base, tuned)
    model = module_of(base)
    places = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    loaded = load_delta(model, delta, threads=2)
    assert bits_of(model) == raw(tuned)
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == places
    assert 0 < loaded.num_bytes < sum(bits.nbytes for _, bits in tuned.values()) * 1.1
    assert "bytes to revert it" in repr(loaded)
    with pytest.raises(DeltaError, match="the delta was applied before; nothing was changed"):
        load_delta(model, delta)
    assert bits_of(model) == raw(tuned)
    loaded.revert()
    assert bits_of(model) == raw(base)
    with pytest.raises(DeltaError, match="the delta was reverted before"):
        loaded.revert()
    with applied_delta(model, delta) as again:
        assert isinstance(again, LoadedDelta)
        assert bits_of(model) == raw(tuned)
    assert bits_of(model) == raw(base)


def test_switching_between_two_fine_tunes(tmp_path: Path) -> None:
    base, tuned = arrays_pair()
    others: Arrays = {n: (dtype, moved(bits, 0.3, 7)) for n, (dtype, bits) in base.items()}
    model = module_of(base)
    handles = []
    for name, weights in (("one", tuned), ("two", others)):
        loaded = load_delta(model, made(tmp_path, base, weights, name))
        assert bits_of(model) == raw(weights)
        with pytest.raises(DeltaError, match="applied already: revert it first"):
            loaded.apply()
        loaded.revert(keep=True)
        assert bits_of(model) == raw(base) and "bytes to apply it" in repr(loaded)
        handles.append((loaded, weights))
    for loaded, weights in [*handles, *handles]:
        loaded.apply()
        assert bits_of(model) == raw(weights)
        for other, _ in handles:
            if other is not loaded:
                with pytest.raises(DeltaError, match="changed since the delta was reverted"):
                    other.apply()
        assert bits_of(model) == raw(weights)
        loaded.revert(keep=True)
        assert bits_of(model) == raw(base)
    loaded.apply()
    loaded.revert()
    with pytest.raises(DeltaError, match="reverted without keep=True"):
        loaded.apply()


def test_only_signed_deltas(tmp_path: Path) -> None:
    base, tuned = arrays_pair()
    delta, signer = made(tmp_path, base, tuned), Signer.new()
    model = module_of(base)
    (tmp_path / "signers").write_text(signer.line)
    with pytest.raises(DeltaError, match=r"x\.delta has no signature"):
        load_delta(model, delta, signers=tmp_path / "signers")
    (tmp_path / "signature").write_text(Signer.new().sign(delta.read_bytes()))
    files = tmp_path / "signers", tmp_path / "signature"
    with (
        pytest.raises(DeltaError, match="a key that is not among"),
        applied_delta(model, delta, signers=files[0], signature=files[1]),
    ):
        pass
    assert bits_of(model) == raw(base)
    (tmp_path / "signature").write_text(signer.sign(delta.read_bytes()))
    with applied_delta(model, delta, signers=files[0], signature=files[1]):
        assert bits_of(model) == raw(tuned)


def test_a_chain_is_applied_at_once(tmp_path: Path) -> None:
    base, tuned = arrays_pair()
    last: Arrays = {
        n: (dtype, moved(bits, 0.1, 5)) for n, (dtype, bits) in tuned.items() if n != "BOOL"
    }
    last = {n: last.get(n, tuned[n]) for n in tuned}
    one = made(tmp_path, base, tuned)
    other = write_folder(tmp_path / "last", last)
    trimtab.make_delta(tmp_path / "x-tuned", other, tmp_path / "2.delta", after=one)
    model = module_of(base)
    with applied_delta(model, [tmp_path / "2.delta", one]):
        assert bits_of(model) == raw(last)
    assert bits_of(model) == raw(base)


def test_the_model_is_left_alone_where_it_is_not_the_base(tmp_path: Path) -> None:
    base, tuned = arrays_pair()
    delta = made(tmp_path, base, tuned)
    other = {n: (dtype, bits.copy()) for n, (dtype, bits) in base.items()}
    other["same"][1][3] ^= 1  # not even a tensor that changes
    cases: list[tuple[Arrays, str]] = [
        (other, "same has xxh3-128 .* give the base"),
        ({n: v for n, v in base.items() if n != "F16"}, "the model has no F16, which"),
        ({**base, "more": base["F16"]}, "makes no more, which the model has"),
        (
            {**base, "F16": ("F16", base["F16"][1][:5])},
            r"F16 is F16 \[5, 9\] in the model, and F16",
        ),
        ({**base, "F16": ("BF16", base["F16"][1])}, "dtypes of its files"),
    ]
    for arrays, message in cases:
        model = module_of(arrays)
        before = bits_of(model)
        with pytest.raises(DeltaError, match=message):
            load_delta(model, delta)
        assert bits_of(model) == before


def test_a_damaged_delta_and_an_interrupt_leave_the_model_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tuned = arrays_pair()
    delta = made(tmp_path, base, tuned)
    model = module_of(base)
    content = delta.read_bytes()
    with trimtab.DeltaFile(delta) as opened:  # flip a bit of the last tensor that is stored
        start = opened._parts["tensors"].offset + opened._starts["U8"]
        num_bytes = opened.tensors["U8"].num_stored
    damaged = bytearray(content)
    damaged[start + num_bytes // 2] ^= 16
    (tmp_path / "damaged.delta").write_bytes(damaged)
    with pytest.raises(DeltaError, match="U8"):
        load_delta(model, tmp_path / "damaged.delta", threads=1)
    assert bits_of(model) == raw(base)

    for stop in range(1, 9):
        monkeypatch.setattr(LiveTensor, "change", interrupted(stop))
        with pytest.raises(KeyboardInterrupt):
            load_delta(model, delta)
        monkeypatch.undo()
        assert bits_of(model) == raw(base)


def test_a_copy_that_is_interrupted_leaves_the_tensor_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a parameter that is not contiguous all bits are written, perhaps in several steps."""
    bits = random_bits("BF16", (6, 4), 0)
    delta = made(tmp_path, {"a": ("BF16", bits)}, {"a": ("BF16", moved(bits, 0.5, 1))})
    model = nn.Module()
    model.a = nn.Parameter(tensor_of("BF16", bits.T.copy()).T, requires_grad=False)
    real, num = LiveTensor.write, 0

    def write(self: LiveTensor, bits: Bits) -> None:
        nonlocal num
        num += 1
        if num > 1:
            real(self, bits)
            return
        real(self, np.where(np.arange(bits.size).reshape(bits.shape) % 2, bits, ~bits))
        raise KeyboardInterrupt

    monkeypatch.setattr(LiveTensor, "write", write)
    with pytest.raises(KeyboardInterrupt):
        load_delta(model, delta)
    assert bits_of(model) == {"a": bits.tobytes()}


def test_a_model_that_was_trained_is_not_reverted(tmp_path: Path) -> None:
    base, tuned = arrays_pair()
    delta = made(tmp_path, base, tuned)
    model = module_of(base)
    loaded = load_delta(model, delta)
    with torch.no_grad():
        model.get_parameter("F32").view(torch.int32)[0, 0] ^= 1
    before = bits_of(model)
    with pytest.raises(DeltaError, match="F32 changed since the delta was applied"):
        loaded.revert()
    assert bits_of(model) == before


@pytest.mark.parametrize("stop", range(1, 12))
def test_an_interrupted_swap_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Stopped before or after a tensor, in both directions; what others changed stays."""
    base, tuned = arrays_pair()
    model = module_of(base)
    loaded = load_delta(model, made(tmp_path, base, tuned))
    flipped = model.get_parameter("F32").view(torch.int32)
    turns: list[tuple[Callable[[], None], Arrays]] = [
        (lambda: loaded.revert(keep=True, threads=1), base),
        (lambda: loaded.apply(threads=1), tuned),
    ]
    for turn, weights in turns:
        monkeypatch.setattr(LiveTensor, "change", interrupted(stop))
        with pytest.raises(KeyboardInterrupt):
            turn()
        monkeypatch.undo()
        with torch.no_grad():
            flipped[0, 0] ^= 1
        before = bits_of(model)
        with pytest.raises(DeltaError, match="F32 changed since"):
            turn()
        assert bits_of(model) == before
        with torch.no_grad():
            flipped[0, 0] ^= 1
        turn()
        assert bits_of(model) == raw(weights)


def test_autograd_knows_that_weights_changed(tmp_path: Path) -> None:
    base, tuned = arrays_pair()
    delta = made(tmp_path, {"a": base["F32"]}, {"a": tuned["F32"]})
    model = nn.Module()
    model.a = nn.Parameter(tensor_of(*base["F32"]))
    loss = (model.a * model.a).sum()
    with applied_delta(model, delta), pytest.raises(RuntimeError, match="modified by an inplace"):
        loss.backward()  # type: ignore[no-untyped-call]
    with torch.inference_mode():
        frozen = module_of({"a": base["F32"]})
        load_delta(frozen, delta)
    assert bits_of(frozen) == {"a": tuned["F32"][1].tobytes()}


def test_a_transformers_model_with_tied_embeddings(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from trimtab.training import runtime

    tiny.make_base(tmp_path / "base")
    with runtime.quiet():
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path / "base", dtype="auto", device_map="cpu"
        )
        tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype="auto")
        with torch.no_grad():
            for parameter in tuned.parameters():
                parameter.mul_(1.01)
        tuned.save_pretrained(tmp_path / "tuned")
    trimtab.make_delta(tmp_path / "base", tmp_path / "tuned", tmp_path / "x.delta")
    ids = torch.arange(8).reshape(1, 8)
    before, expected = model(ids).logits, tuned(ids).logits
    assert not torch.equal(before, expected)
    with applied_delta(model, tmp_path / "x.delta"):
        assert torch.equal(model(ids).logits, expected)
        assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model(ids).logits, before)
    modules = [*(f"model.layers.{n}" for n in range(len(model.model.layers))), "model.norm"]
    modules += ["model.embed_tokens", "model.rotary_emb", "lm_head"]
    with runtime.quiet():
        offloaded = AutoModelForCausalLM.from_pretrained(
            tmp_path / "base",
            dtype="auto",
            device_map=dict.fromkeys(modules, "cpu") | {"model.layers.0": "disk"},
            offload_folder=tmp_path / "offloaded",
        )
    with pytest.raises(DeltaError, match=r"layers\.0.* is on the meta device, .* or offloaded"):
        load_delta(offloaded, tmp_path / "x.delta")


def test_fused_experts_are_changed_where_they_are(tmp_path: Path) -> None:
    """Files hold experts one by one, and the model holds them in one parameter."""
    model = architectures.build("Mixtral").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    expected = {n: t.detach().clone() * 1.02 for n, t in model.named_parameters()}
    old = bits_of(model)
    kept = {n: t.detach().clone() for n, t in model.named_parameters()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(expected[name])
        new = bits_of(model)
        model.save_pretrained(tmp_path / "tuned")
        for name, parameter in model.named_parameters():
            parameter.copy_(kept[name])
    trimtab.make_delta(tmp_path / "base", tmp_path / "tuned", tmp_path / "x.delta")
    with applied_delta(model, tmp_path / "x.delta"):
        assert bits_of(model) == new
    assert bits_of(model) == old


def test_odd_memory(tmp_path: Path) -> None:
    """Transposed parameters, and two that share memory without being one object."""
    bits = random_bits("BF16", (6, 4), 0)
    base: Arrays = {"a": ("BF16", bits), "b": ("BF16", bits)}
    new = moved(bits, 0.5, 1)
    delta = made(tmp_path, base, {"a": ("BF16", new), "b": ("BF16", new)})
    model = nn.Module()
    model.a = nn.Parameter(tensor_of("BF16", bits.T.copy()).T, requires_grad=False)
    assert not model.a.is_contiguous()
    model.b = nn.Parameter(model.a.detach(), requires_grad=False)
    with applied_delta(model, delta):
        assert bits_of(model) == {"a": new.tobytes(), "b": new.tobytes()}
    assert bits_of(model) == {"a": bits.tobytes(), "b": bits.tobytes()}
    apart = made(tmp_path, base, {"a": ("BF16", new), "b": ("BF16", bits)}, "apart")
    with pytest.raises(DeltaError, match="a and b are one tensor in the model, and two in"):
        load_delta(model, apart)
    overlapping = nn.Module()
    memory = tensor_of("BF16", np.arange(8, dtype=np.uint16))
    overlapping.a = nn.Parameter(memory[:6], requires_grad=False)
    overlapping.b = nn.Parameter(memory[2:], requires_grad=False)
    halves: Arrays = {
        "a": ("BF16", np.arange(6, dtype=np.uint16)),
        "b": ("BF16", np.arange(2, 8, dtype=np.uint16)),
    }
    changed: Arrays = {n: (dtype, values + np.uint16(100)) for n, (dtype, values) in halves.items()}
    changed["a"][1][5] += 1
    with pytest.raises(DeltaError, match="a and b of the model overlap in memory"):
        load_delta(overlapping, made(tmp_path, halves, changed, "halves"))
    assert bits_of(overlapping) == raw(halves)


def test_a_model_without_values_is_refused(tmp_path: Path) -> None:
    base, tuned = arrays_pair()
    delta = made(tmp_path, base, tuned)
    with pytest.raises(DeltaError, match="is on the meta device, without values"):
        load_delta(module_of(base).to("meta"), delta)
    for mark in ("_is_flat_param", "ds_id"):  # of FSDP1 and DeepSpeed ZeRO-3
        sharded = module_of(base)
        setattr(sharded.get_parameter("F32"), mark, 1)
        with pytest.raises(DeltaError, match="F32 is sharded over processes: save the model"):
            load_delta(sharded, delta)
    odd = module_of({"F32": base["F32"]})
    odd.register_buffer("wave", torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(DeltaError, match=r"wave is a tensor of torch\.complex64"):
        load_delta(odd, delta)


def state_of(arrays: Mapping[str, tuple[str, Bits]]) -> dict[str, torch.Tensor]:
    return {name: tensor_of(dtype, bits) for name, (dtype, bits) in arrays.items()}


def bits_in(state: Mapping[str, torch.Tensor]) -> dict[str, bytes]:
    return {n: t.reshape(-1).view(torch.uint8).numpy().tobytes() for n, t in state.items()}


def test_nothing_is_written_before_the_commit(tmp_path: Path) -> None:
    """Of a `state_dict`; what changed is known by name, position and value."""
    base, tuned = arrays_pair()
    state = state_of(base)
    prepared = prepare_delta(state, made(tmp_path, base, tuned))
    assert bits_in(state) == raw(base) and prepared.decode_seconds > 0
    assert "bytes to apply it" in repr(prepared)
    moving = {n for n in base if raw(base)[n] != raw(tuned)[n]}
    assert {*prepared.changes} == moving and "same" not in moving
    for name, changes in prepared.changes.items():
        before, after = (arrays[name][1].reshape(-1) for arrays in (base, tuned))
        assert changes.positions().tolist() == np.flatnonzero(before != after).tolist()
    loaded = prepared.commit()
    assert bits_in(state) == raw(tuned) and loaded.apply_seconds > 0
    with pytest.raises(DeltaError, match="applied already: use what commit returned"):
        prepared.commit()
    loaded.revert()
    assert bits_in(state) == raw(base)


@pytest.mark.parametrize("name", ["F32", "same"])
def test_a_model_that_changed_since_it_was_prepared_is_left_alone(
    tmp_path: Path, name: str
) -> None:
    base, tuned = arrays_pair()
    state = state_of(base)
    prepared = prepare_delta(state, made(tmp_path, base, tuned))
    state[name].view(-1).view(torch.uint8)[-1] ^= 1
    before = bits_in(state)
    with pytest.raises(DeltaError, match=rf"{name} of the model: .* since the delta was prepared"):
        prepared.commit()
    assert bits_in(state) == before
    state[name].view(-1).view(torch.uint8)[-1] ^= 1
    prepared.commit()
    assert bits_in(state) == raw(tuned)


def test_deltas_of_a_base_on_disk_that_the_model_is_no_longer(tmp_path: Path) -> None:
    """As a follower gets an anchor: against the first version, or against nothing."""
    base, tuned = arrays_pair()
    now: Arrays = {n: (dtype, moved(bits, 0.3, 7)) for n, (dtype, bits) in base.items()}
    delta, state = made(tmp_path, base, tuned), state_of(now)
    with pytest.raises(DeltaError, match="F64 already is what"):
        load_delta(state, delta)
    with pytest.raises(DeltaError, match="F64 already is what"):
        load_delta(state, delta, base=write_folder(tmp_path / "now", now))
    assert bits_in(state) == raw(now)
    loaded = load_delta(state, delta, base=tmp_path / "x-base")
    assert bits_in(state) == raw(tuned)
    loaded.revert()
    assert bits_in(state) == raw(now)

    whole = made(tmp_path, {}, tuned, "whole")
    with trimtab.DeltaFile(whole) as opened:
        assert all(entry.base is None for entry in opened.manifest.tensors)
    model = module_of(now)
    last: Arrays = {n: (dtype, moved(bits, 0.1, 9)) for n, (dtype, bits) in tuned.items()}
    trimtab.make_delta(
        tmp_path / "whole-tuned", write_folder(tmp_path / "last", last), tmp_path / "2", after=whole
    )
    loaded = load_delta(model, [tmp_path / "2", whole])
    assert bits_of(model) == raw(last)
    loaded.revert()
    assert bits_of(model) == raw(now)


def test_loading_needs_neither_trl_nor_accelerate() -> None:
    """It runs in the environment of an inference engine."""
    without = ("transformers", "trl", "datasets", "accelerate", "peft", "pandas", "rich")
    code = f"import sys\nsys.modules.update(dict.fromkeys({without!r}))\n"
    code += "from trimtab.training import DeltaFollower, prepare_delta"
    subprocess.run([sys.executable, "-c", code], check=True)
