"""Coded updates: the same bits again for every dtype and pattern, exact bytes, sizes, damage."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.elements import update_coding
from trimtab.elements.dtypes import DTYPES, Bits, DType
from trimtab.elements.update_coding import CODED, SAME, STORED, Mapped, decode_tensor, encode_tensor
from trimtab.elements.update_predictor import read_predictor
from trimtab.errors import CheckpointError

BF16 = DTYPES["BF16"]


def encode(base: Bits, tuned: Bits, dtype: DType) -> bytes:
    """The one frame of a small tensor that has no predictor."""
    predictor, frame = encode_tensor(base, tuned, dtype, max_rank=0)
    assert not predictor
    return frame


def decode(base: Bits, frame: bytes, dtype: DType) -> Bits:
    return decode_tensor(base, [b"", frame], dtype)


@pytest.mark.parametrize("name", DTYPES)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_bits_come_back(name: str, data: st.DataObject) -> None:
    dtype = DTYPES[name]
    size = data.draw(st.integers(1, 300))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    base = random.integers(0, 256, size * dtype.num_bytes, np.uint8).view(dtype.bits)
    tuned = base.copy()
    for place in data.draw(st.lists(st.integers(0, size - 1), max_size=size)):
        with np.errstate(over="ignore"):
            tuned[place] += dtype.bits.type(
                2 ** (8 * dtype.num_bytes) - 1 if random.random() < 0.3 else random.integers(1, 9)
            )
    coded = encode(base, tuned, dtype)
    assert len(coded) <= 1 + tuned.nbytes
    assert decode(base, coded, dtype).tobytes() == tuned.tobytes()


@pytest.mark.parametrize("name", [name for name, dtype in DTYPES.items() if dtype.is_float])
def test_special_values_come_back(name: str) -> None:
    dtype = DTYPES[name]
    width = 8 * dtype.num_bytes
    top = 1 << (width - 1)
    largest = dtype.largest_magnitude
    special = [0, top, 1, top + 1, largest, top + largest, largest - 1, top - 1, 2 * top - 1]
    pairs = np.array([(a, b) for a in special for b in special] * 40, dtype.bits)
    base, tuned = pairs.T.copy()
    coded = encode(base, tuned, dtype)
    assert decode(base, coded, dtype).tobytes() == tuned.tobytes()


def test_every_pattern_of_bf16_moves_to_every_distance() -> None:
    base = np.arange(1 << 16, dtype=np.uint16)
    for step in (1, 3, 0x7FFF, 0x8000, 0xFFFF):
        tuned = base.copy()
        tuned[::9] += np.uint16(step)
        assert np.array_equal(decode(base, encode(base, tuned, BF16), BF16), tuned)


def test_exact_bytes() -> None:
    base = np.full(64, 0x3F80, np.uint16)
    tuned = base.copy()
    assert encode(base, tuned, BF16) == bytes([SAME])
    tuned[5] += np.uint16(1)
    tuned[40] -= np.uint16(2)
    assert encode(base, tuned, BF16).hex() == "017f00db758ada"
    other = base[::-1] ^ np.arange(64, dtype=np.uint16) * np.uint16(40_503)
    assert encode(base, other, BF16) == bytes([STORED]) + other.tobytes()


def test_an_update_that_follows_the_exponent_takes_its_conditional_entropy() -> None:
    random = np.random.default_rng(0)
    base = (random.integers(110, 120, 1 << 20) << 7 | random.integers(0, 128, 1 << 20)).astype(
        np.uint16
    )
    chance = np.where((base >> 7) < 113, 0.3, 0.002)
    moved = random.random(base.size) < chance
    signs = random.choice(np.array([1, 0xFFFF], np.uint16), base.size)
    tuned = base + moved.astype(np.uint16) * signs
    coded = encode(base, tuned, BF16)
    entropy = -(chance * np.log2(chance) + (1 - chance) * np.log2(1 - chance)).sum() / 8
    entropy += moved.sum() / 8
    assert coded[0] == CODED
    assert entropy * 0.98 < len(coded) < entropy * 1.06
    assert np.array_equal(decode(base, coded, BF16), tuned)


def test_what_is_no_coding_is_refused() -> None:
    base = np.arange(1000, dtype=np.uint16)
    tuned = base + (base % 7 == 0).astype(np.uint16)
    coded = encode(base, tuned, BF16)
    assert coded[0] == CODED
    for damaged in (b"", b"\3", b"\0\0", b"\1", coded[:-1], coded + b"\0", b"\2" + bytes(1999)):
        with pytest.raises(CheckpointError, match=r"does not fit 1000 elements of BF16"):
            decode(base, damaged, BF16)


def test_noise_decodes_to_an_array_of_the_base_or_is_refused() -> None:
    base = np.arange(500, dtype=np.uint16)
    random = np.random.default_rng(0)
    for _ in range(2000):
        try:
            decoded = decode(
                base, bytes([CODED]) + random.bytes(int(random.integers(0, 200))), BF16
            )
        except CheckpointError:
            continue
        assert decoded.shape == base.shape


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (64,), (65, 3), (2, 5, 100)])
@pytest.mark.parametrize("mapped", [map, ThreadPoolExecutor(3).map])
def test_a_tensor_comes_back_from_its_frames(
    shape: tuple[int, ...], mapped: Mapped, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(update_coding, "CHUNK", 64)
    random = np.random.default_rng(0)
    base = random.integers(0, 1 << 16, shape, np.uint16)
    tuned = base + (random.random(shape) < 0.2).astype(np.uint16)
    frames = encode_tensor(base, tuned, BF16, mapped=mapped)
    assert len(frames) == 1 + -(-base.size // 64)
    assert frames == encode_tensor(base, tuned, BF16)
    decoded = decode_tensor(base, frames, BF16, mapped=mapped)
    assert decoded.shape == shape
    assert np.array_equal(decoded, tuned)
    for wrong in (frames[:-1], [*frames, b"\0"], [b"\1", *frames[1:]]):
        with pytest.raises(CheckpointError, match=r"do(es)? not fit "):
            decode_tensor(base, wrong, BF16, mapped=mapped)


def low_rank_update(rows: int, columns: int, dtype: DType) -> tuple[Bits, Bits]:
    """Weights, and what steps with two directions made of them."""
    random = np.random.default_rng(0)
    weights = random.normal(0, 0.05, (rows, columns))
    steps = random.normal(0, 1, (rows, 2)) @ random.normal(0, 1, (2, columns))
    noise = random.normal(0, 0.3, steps.shape)
    return dtype.encode(weights), dtype.encode(weights + 2e-4 * (steps + noise))


@pytest.mark.parametrize("name", ["BF16", "F16", "F32", "F8_E4M3"])
@pytest.mark.parametrize("chunk", [1 << 22, 64 * 77])
def test_a_matrix_comes_back_from_its_predictor(
    name: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(update_coding, "CHUNK", chunk)
    dtype = DTYPES[name]
    base, tuned = low_rank_update(300, 130, dtype)
    frames = encode_tensor(base, tuned, dtype, mapped=ThreadPoolExecutor(2).map)
    assert read_predictor(frames[0], base.shape).rank in ((0, 2) if "8" in name else (2,))
    assert np.array_equal(decode_tensor(base, frames, dtype), tuned)
    assert frames == encode_tensor(base, tuned, dtype)
    plain = encode_tensor(base, tuned, dtype, max_rank=0)
    assert sum(map(len, frames)) <= sum(map(len, plain)) * (
        1 if frames[0] == b"" or chunk < base.size else 0.99
    )
    assert encode_tensor(base, tuned, dtype, max_rank=1)[0][:1] in (b"", b"\1")


@pytest.mark.parametrize("name", ["BF16", "F32"])
def test_a_predictor_withstands_special_values(name: str) -> None:
    dtype = DTYPES[name]
    base, tuned = low_rank_update(200, 130, dtype)
    width = 8 * dtype.num_bytes
    special = [0, 1 << (width - 1), dtype.largest_magnitude, (1 << width) - 1, 1]
    random = np.random.default_rng(0)
    for bits in (base, tuned):
        places = random.random(bits.shape) < 0.02
        bits[places] = random.choice(np.array(special, bits.dtype), int(places.sum()))
    frames = encode_tensor(base, tuned, dtype)
    assert frames[0]
    assert np.array_equal(decode_tensor(base, frames, dtype), tuned)


def test_an_update_without_directions_has_no_predictor() -> None:
    random = np.random.default_rng(0)
    base = random.integers(0x3C00, 0x3D00, (200, 130), np.uint16)
    tuned = base + random.choice(np.array([0, 1, 0xFFFF], np.uint16), base.shape)
    assert encode_tensor(base, tuned, BF16)[0] == b""
    assert encode_tensor(base, base, BF16) == [b"", bytes([SAME])]


def test_a_damaged_predictor_is_refused_or_decodes_to_something() -> None:
    base, tuned = low_rank_update(200, 130, BF16)
    frames = encode_tensor(base, tuned, BF16)
    random = np.random.default_rng(0)
    num_refused = 0
    for _ in range(500):
        damaged = [bytearray(frame) for frame in frames]
        frame = damaged[int(random.integers(2))]
        match int(random.integers(3)):
            case 0:
                frame[int(random.integers(min(40, len(frame))))] ^= int(random.integers(1, 256))
            case 1:
                del frame[int(random.integers(len(frame))) :]
            case 2:
                frame[int(random.integers(len(frame)))] ^= int(random.integers(1, 256))
        try:
            decoded = decode_tensor(base, [bytes(frame) for frame in damaged], BF16)
        except CheckpointError:
            num_refused += 1
        else:
            assert decoded.shape == base.shape
    assert num_refused > 100
    for shape in ((), (26_000,), (8, 3250), (2, 13_000)):
        with pytest.raises(CheckpointError, match="does not fit a tensor of shape"):
            read_predictor(frames[0], shape)
