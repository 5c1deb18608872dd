"""The Triton kernel equals single operations of torch, bit for bit.

Without a GPU the kernel runs in Triton's interpreter, on CPU tensors. `TRITON_INTERPRET=0` runs the
tests on the GPU.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.training.optimizers.reference import (
    backward,
    bits,
    gradients_of,
    parameters_of,
    random_mask,
)
from trimtab.masks.mask import Mask
from trimtab.training import SparseAdamW
from trimtab.training.optimizers import adamw, cpu_adamw, elements, kernels
from trimtab.training.optimizers.kernels import BLOCK, AdamWFactors, Kernels, Positions
from trimtab.training.optimizers.kernels import adamw_step as reference_step

pytest.importorskip("triton")
from trimtab.training.optimizers import cuda_kernels

pytestmark = pytest.mark.train

DEVICE = "cpu" if os.environ["TRITON_INTERPRET"] == "1" else "cuda"

BF16, FP32, FP16, INT8 = torch.bfloat16, torch.float32, torch.float16, torch.int8

SMALL_BLOCK, SMALL_SHARED = 32, 8
"""For `cuda_kernels.BLOCK` and `kernels.BLOCK`."""

CODES_OF: dict[str, kernels.Code] = {"exp_avg": "signed", "exp_avg_sq": "squares"}

PRECISIONS = [
    (BF16, "lo16"),
    (BF16, "lo8"),
    (BF16, "fp32"),
    (BF16, "none"),
    (FP32, "none"),
    (FP16, "fp32"),
]

SPECIAL = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 3.4e38, -3.39e38, 1e-40, -1e-45]


@pytest.fixture(autouse=True)
def _no_warnings_of_numpy() -> Iterator[None]:
    """The interpreter computes with NumPy, which warns of overflow."""
    with np.errstate(all="ignore"):
        yield


def same(found: Tensor, expected: Tensor) -> bool:
    """Whether bits are equal, but for the payloads of NaN."""
    nan = expected.isnan()
    if found.dtype != expected.dtype or not torch.equal(found.isnan(), nan):
        return False
    return torch.equal(bits(found)[~nan], bits(expected)[~nan])


class Case:
    """A tensor before its first step, for the kernel and for the reference."""

    def __init__(
        self,
        n: int,
        kind: str,
        dtype: torch.dtype,
        master: str,
        state_dtype: torch.dtype,
        seed: int,
    ) -> None:
        self.random = torch.Generator().manual_seed(seed)
        total = {"all": n, "near": 2 * n + 3, "far": 2 * n + 3 + 3 * kernels.FAR}[kind]
        selected = torch.zeros(total, dtype=torch.bool)
        chosen = torch.randperm(n if kind == "all" else 2 * n + 3, generator=self.random)[:n]
        chosen[: n // 2] += total - (n if kind == "all" else 2 * n + 3)
        selected[chosen] = True
        if kind == "far" and n:
            selected[selected.nonzero()[0]] = False
            selected[0] = True
        n = int(selected.sum())
        self.selected = selected
        self.dtype, self.master, self.state_dtype = dtype, master, state_dtype
        self.masters = self._masters(n)
        self.moments = [torch.zeros(n), torch.zeros(n)]
        self.before = torch.randn(total, generator=self.random).to(dtype)
        self.positions = Positions(selected.nonzero().flatten(), total)
        self.weights = self.before.clone()
        self.weights[selected] = self.masters.to(dtype)
        self.state: dict[str, Tensor] = {}
        for key, code in CODES_OF.items():
            form = kernels.CODES[code] if state_dtype == INT8 else state_dtype
            self.state[key] = torch.zeros(n, dtype=form)
            if state_dtype == INT8:
                self.state[f"{key}_scale"] = torch.zeros(-(-n // kernels.BLOCK))
        if master == "lo16":
            remainder = torch.zeros(n, dtype=torch.int16)
            _, ties = kernels.split_lo16(self.masters, remainder)
            self.state |= {"remainder": remainder, "ties": ties}
        if master == "lo8":
            self.weights[selected], self.state["remainder"] = self._split()
        if master == "fp32":
            self.state["master"] = self.masters.clone()

    def _split(self) -> tuple[Tensor, Tensor]:
        """Weights and remainders of the masters, which keep what these hold."""
        remainder = torch.zeros(len(self.masters), dtype=torch.int8)
        weights = kernels.split_lo8(self.masters, remainder)
        self.masters = weights.float()
        kernels.join_lo8(self.masters, remainder)
        return weights, remainder

    def _masters(self, n: int) -> Tensor:
        """fp32 numbers, half of them half way between two of bf16, and some special ones."""
        masters = torch.randn(n, generator=self.random)
        patterns = masters.view(torch.int32)
        patterns[::2] = (patterns[::2] & ~0xFFFF) | 0x8000
        special = torch.rand(n, generator=self.random) < 0.2
        chosen = torch.randint(len(SPECIAL), (n,), generator=self.random)
        masters = torch.where(special, torch.tensor(SPECIAL)[chosen], masters)
        return masters if self.master != "none" else masters.to(self.dtype).float()

    def step(self, factors: AdamWFactors) -> None:
        """Take a step with both."""
        n = len(self.masters)
        gradient = torch.randn(n, generator=self.random)
        gradient[torch.rand(n, generator=self.random) < 0.1] = 0.0
        gradient[torch.rand(n, generator=self.random) < 0.1] *= 1e-23  # squares are subnormal
        gradient = gradient.to(self.dtype)

        self.weights = self.weights.to(DEVICE)
        self.state = {key: value.to(DEVICE) for key, value in self.state.items()}
        positions = self.positions.to(torch.device(DEVICE))
        vector = gradient.to(DEVICE)
        cuda_kernels.fused_adamw_step(self.weights, positions, vector, self.state, factors)
        assert torch.equal(bits(vector.cpu()), bits(gradient))

        mean, square = self.moments
        reference_step(self.masters, gradient.float(), mean, square, factors)
        if self.master == "none":
            self.masters = self.masters.to(self.dtype).float()
        if self.state_dtype == INT8:
            self.moments = [self._coded(key, value) for key, value in self._named()]
        else:
            self.moments = [one.to(self.state_dtype).float() for one in (mean, square)]

    def _named(self) -> list[tuple[str, Tensor]]:
        return list(zip(CODES_OF, self.moments, strict=True))

    def _coded(self, key: str, values: Tensor) -> Tensor:
        """Compare the codes, and return what they stand for."""
        code = CODES_OF[key]
        codes = torch.empty(len(values), dtype=kernels.CODES[code])
        scales = torch.empty(-(-len(values) // kernels.BLOCK))
        kernels.encode(values, code, codes, scales)
        assert torch.equal(self.state[key].cpu(), codes), key
        assert torch.equal(self.state[f"{key}_scale"].cpu(), scales), key
        kernels.decode(codes, code, scales, values)
        return values

    def check(self) -> None:
        """Compare everything there is."""
        weights = self.weights.cpu()
        assert torch.equal(bits(weights)[~self.selected], bits(self.before)[~self.selected])
        if self.master == "lo8":
            number = ~self.masters.isnan()
            expected, _ = self._split()
            assert same(weights[self.selected], expected)
            joined = weights[self.selected].float()
            kernels.join_lo8(joined, self.state["remainder"].cpu())
            assert torch.equal(bits(joined)[number], bits(self.masters)[number])
        else:
            assert same(weights[self.selected], self.masters.to(self.dtype))
        for key, moment in self._named():
            if self.state_dtype != INT8:
                assert same(self.state[key].cpu(), moment.to(self.state_dtype)), key
        if self.master == "fp32":
            assert same(self.state["master"].cpu(), self.masters)
        if self.master == "lo16":
            ties = kernels.ties_as_positions(self.state["ties"].cpu())
            vector = weights[self.selected].float()
            kernels.join_lo16(vector, self.state["remainder"].cpu(), ties)
            assert same(vector, self.masters)
            assert torch.equal(ties, kernels.find_ties(self.masters.nan_to_num(1.0, 1.0, 1.0)))


@given(
    n=st.one_of(
        st.sampled_from([k * SMALL_BLOCK + d for k in (1, 2) for d in (-1, 0, 1)]),
        st.integers(1, 3 * SMALL_BLOCK),
    ),
    kind=st.sampled_from(["near", "far", "all"]),
    precision=st.sampled_from(PRECISIONS),
    state_dtype=st.sampled_from([FP32, BF16, INT8]),
    lr=st.sampled_from([0.0, 1e-6, 1e-2]),
    weight_decay=st.sampled_from([0.0, 0.1, 50.0]),
    eps=st.sampled_from([1e-8, 0.0]),
    clip=st.sampled_from([1.0, 0.3]),
    seed=st.integers(0, 2**20),
)
@settings(deadline=None, max_examples=120)
def test_equals_single_operations(
    n: int,
    kind: str,
    precision: tuple[torch.dtype, str],
    state_dtype: torch.dtype,
    lr: float,
    weight_decay: float,
    eps: float,
    clip: float,
    seed: int,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_kernels, "BLOCK", SMALL_BLOCK)
        patch.setattr(kernels, "BLOCK", SMALL_SHARED)
        case = Case(n, kind, *precision, state_dtype, seed)
        for step in range(1, 4):
            case.step(
                AdamWFactors.of_step(
                    step,
                    lr=lr,
                    betas=(0.8, 0.95),
                    eps=eps,
                    weight_decay=weight_decay,
                    clip=float(np.float32(clip)),
                )
            )
            case.check()


@pytest.mark.parametrize("n", [0, 1, 1023, 1024, 1025, 5000])
@pytest.mark.parametrize(("master", "state_dtype"), [("lo16", FP32), ("lo8", INT8)])
def test_blocks_as_they_are(n: int, master: str, state_dtype: torch.dtype) -> None:
    case = Case(n, "near", BF16, master, state_dtype, seed=n)
    for step in range(1, 3):
        case.step(
            AdamWFactors.of_step(
                step, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1, clip=1.0
            )
        )
        case.check()


def test_ties_stay_ties_while_nothing_moves() -> None:
    case = Case(3 * SMALL_BLOCK, "near", BF16, "lo16", FP32, seed=0)
    num_ties = len(case.state["ties"])
    assert num_ties > 10
    for step in range(1, 4):
        case.step(
            AdamWFactors.of_step(
                step, lr=0.0, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0, clip=1.0
            )
        )
        case.check()
        assert len(kernels.ties_as_positions(case.state["ties"])) == num_ties


def test_a_step_can_end_on_ties() -> None:
    n = 2 * SMALL_BLOCK + 5
    selected = torch.rand(n, generator=torch.Generator().manual_seed(0)) < 0.5
    k = int(selected.sum())
    positions = Positions(selected.nonzero().flatten(), n).to(torch.device(DEVICE))
    weights = torch.ones(n, dtype=BF16, device=DEVICE)
    state = {
        "exp_avg": torch.zeros(k, device=DEVICE),
        "exp_avg_sq": torch.zeros(k, device=DEVICE),
        "remainder": torch.zeros(k, dtype=torch.int16, device=DEVICE),
        "ties": torch.empty(0, dtype=torch.int32, device=DEVICE),
    }
    to_a_tie = AdamWFactors.of_step(
        1, lr=1.0, betas=(0.9, 0.99), eps=1e-8, weight_decay=3 / 512, clip=1.0
    )
    cuda_kernels.fused_adamw_step(
        weights, positions, torch.zeros(k, device=DEVICE), state, to_a_tie
    )
    ties = kernels.ties_as_positions(state["ties"].cpu())
    assert torch.equal(ties, torch.arange(k, dtype=torch.int32))
    expected = torch.where(selected, 1 - 3 / 512, 1.0)
    assert torch.equal(weights.cpu(), expected.to(BF16))
    assert (state["remainder"] == -(2**15)).all()


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("out_dtype", [None, FP32])
@pytest.mark.parametrize("dtype", [BF16, FP32, FP16])
@pytest.mark.parametrize("far", [0, 3 * kernels.FAR])
def test_gradients_are_collected_as_by_the_reference(
    far: int, dtype: torch.dtype, out_dtype: torch.dtype | None, add: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    index = torch.randperm(4000, generator=generator)[:1300].sort().values
    index[700:] += far
    positions = Positions(index, 4000 + far)
    dense = torch.randn(4000 + far, generator=generator).to(dtype)
    out = torch.randn(1300 - BLOCK, generator=generator).to(
        dtype if out_dtype is None else out_dtype
    )
    results = []
    for kind, device in ((Kernels, "cpu"), (cuda_kernels.CudaKernels, DEVICE)):
        vector = out.to(device, copy=True)
        one = kind(positions.to(torch.device(device)))
        (one.add if add else one.read)(dense.to(device), vector, BLOCK)
        results.append(vector.cpu())
    assert same(results[1], results[0])


def test_bf16_rounds_as_torch_does() -> None:
    """Every upper half of a pattern, with the lower halves where rounding turns."""
    upper = torch.arange(-(2**15), 2**15, dtype=torch.int32) << 16
    lower = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int32)
    values = (upper.view(-1, 1) | lower).flatten().view(FP32)
    weights = torch.zeros(len(values), dtype=BF16, device=DEVICE)
    state = {key: torch.zeros_like(values, device=DEVICE) for key in ("exp_avg", "exp_avg_sq")}
    state["master"] = values.to(DEVICE, copy=True)
    positions = Positions(torch.arange(len(values)), len(values)).to(torch.device(DEVICE))
    still = AdamWFactors(
        clip=1, decay=1, new_mean=0, old_square=0, new_square=0, root=1, eps=1, size=-0.0
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_kernels, "BLOCK", 2**17)
        cuda_kernels.fused_adamw_step(
            weights, positions, torch.zeros_like(state["master"]), state, still
        )
    assert same(weights.cpu(), values.to(BF16))


Outcome = tuple[dict[str, Tensor], dict[str, Any]]

SHAPES = {"sparse": (37, 11), "nearly_whole": (203,), "whole": (19,), "not_in_mask": (5,)}

MASK = Mask.from_arrays(
    {
        "sparse": random_mask({"of": (37, 11)}, 0.3).array("of"),
        "nearly_whole": random_mask({"of": (203,)}, 0.9).array("of"),
        "whole": np.ones(19, dtype=bool),
    }
)


def train(
    steps: range,
    *,
    kernel: bool,
    dtype: torch.dtype = BF16,
    start: Outcome | None = None,
    lr: float = 1e-2,
    weight_decay: float = 0.1,
    **more: Any,
) -> Outcome:
    """Train by the kernel, or by the reference on a CPU; weights and saved state after it."""
    device = DEVICE if kernel else "cpu"
    weights = parameters_of(SHAPES, dtype) if start is None else start[0]
    parameters = {
        name: torch.nn.Parameter(item.detach().to(device)) for name, item in weights.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adamw, "has_kernel", lambda _: kernel)
        patch.setattr(adamw, "SINGLE_OPERATIONS", ("cpu",))
        patch.setattr(cpu_adamw, "is_torchs", lambda: False)
        patch.setattr(elements, "tail_of", lambda *_: kernels.Tail(0, 0, 0))  # as it is on a GPU
        optimizer = SparseAdamW(
            parameters.items(),
            MASK,
            lr=lr,
            weight_decay=weight_decay,
            max_grad_norm=1.0,
            no_decay=lambda name: name == "whole",
            **more,
        )
        if start is not None:
            optimizer.load_state_dict(start[1])
        for step in steps:
            gradients = gradients_of(parameters_of(SHAPES, dtype), seed=step)
            backward(parameters, {name: item.to(device) for name, item in gradients.items()})
            optimizer.step()
        optimizer.close()
    return {name: item.detach().cpu() for name, item in parameters.items()}, optimizer.state_dict()


def check_outcome(found: Outcome, expected: Outcome) -> None:
    """Compare weights and saved states."""
    for name, weights in expected[0].items():
        assert torch.equal(bits(found[0][name]), bits(weights)), name
    assert found[1]["state"].keys() == expected[1]["state"].keys()
    for number, state in expected[1]["state"].items():
        assert found[1]["state"][number].keys() == state.keys()
        for key, value in state.items():
            other = found[1]["state"][number][key].cpu()
            assert other.dtype == value.dtype
            assert torch.equal(other, value), key


@pytest.mark.parametrize("state_dtype", [FP32, BF16, INT8])
@pytest.mark.parametrize(("dtype", "master"), PRECISIONS)
def test_the_optimizer_gets_the_same_bits_with_and_without(
    dtype: torch.dtype, master: Any, state_dtype: torch.dtype
) -> None:
    one: dict[str, Any] = {"dtype": dtype, "master": master, "state_dtype": state_dtype}
    check_outcome(train(range(4), kernel=True, **one), train(range(4), kernel=False, **one))


def test_a_saved_state_goes_on_with_and_without() -> None:
    whole = train(range(6), kernel=False)
    for first, then in ((True, True), (True, False), (False, True)):
        half = train(range(3), kernel=first)
        check_outcome(train(range(3, 6), kernel=then, start=half), whole)


def test_ties_are_saved_as_positions() -> None:
    still: dict[str, Any] = {"lr": 0.0, "weight_decay": 0.0}
    start = train(range(1), kernel=True, **still)
    for number, name in enumerate(("sparse", "nearly_whole")):
        selected = start[0][name][torch.from_numpy(MASK.array(name))]
        even = ((bits(selected) & 1) == 0).nonzero().flatten()
        state = start[1]["state"][number]
        assert len(state["ties"]) == 0
        state["remainder"][even] = -(2**15)  # half way below, or above if listed
        state["ties"] = even[::3].int()
        assert len(state["ties"]) > 5
    found = train(range(1, 3), kernel=True, start=start, **still)
    check_outcome(found, train(range(1, 3), kernel=False, start=start, **still))
    for number in range(2):
        assert torch.equal(found[1]["state"][number]["ties"], start[1]["state"][number]["ties"])


def test_which_devices_have_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    capability = {"of": (8, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability["of"])
    monkeypatch.setattr(torch.version, "hip", None)
    asked = kernels.has_kernel.__wrapped__
    gpu = torch.device("cuda", 0)
    assert asked(gpu)
    assert not asked(torch.device("cpu"))
    capability["of"] = (7, 5)
    assert not asked(gpu)
    capability["of"] = (9, 0)
    monkeypatch.setattr(triton, "__version__", "3.5.1")
    assert not asked(gpu)
    monkeypatch.setattr(triton, "__version__", "3.10.0+git1a2b3c4d")
    assert asked(gpu)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert not asked(gpu)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "triton", None)
    assert not asked(gpu)


COMPILE = """
import sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from trimtab.training.optimizers.kernels import BLOCK as SHARED, AdamWFactors
from trimtab.training.optimizers.cuda_kernels import BLOCK, OPTIONS, _step

forms = {
    "lo16": {"exp_avg": "*fp32", "exp_avg_sq": "*fp32", "remainder": "*i16", "ties": "*u8"},
    "lo8": {
        "exp_avg": "*i8", "exp_avg_sq": "*u8", "exp_avg_scale": "*fp32",
        "exp_avg_sq_scale": "*fp32", "values": "*fp32", "remainder": "*i8",
    },
}[sys.argv[1]]
encoded = "values" in forms
fixed = {"MASTER": sys.argv[1], "ENCODED": encoded, "SHARED": SHARED, "BLOCK": BLOCK}
types = {
    "weights": "*i16", "bases": "*i32", "offsets": "*i16", "gradient": "*i16", "n": "i32",
} | forms | dict.fromkeys(AdamWFactors._fields, "fp32")
fixed |= {name: None for name in _step.arg_names if name not in types and name not in fixed}
names = _step.arg_names
source = ASTSource(
    _step,
    {name: types.get(name, "constexpr") for name in names},
    {(names.index(name),): value for name, value in fixed.items()},
    {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names) if types.get(name, "").startswith("*")
    },
)
for capability in (80, 90):
    target = GPUTarget("cuda", capability, 32)
    print(compile(source, target=target, options=OPTIONS).asm["ptx"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler is for Linux")
@pytest.mark.parametrize("master", ["lo16", "lo8"])
def test_compiled_for_a_gpu_nothing_is_contracted_or_flushed(master: str, tmp_path: Path) -> None:
    """Compiling needs no GPU."""
    script = tmp_path / "compile_kernel.py"
    script.write_text(COMPILE)
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    ptx = subprocess.run(
        [sys.executable, script, master],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    operations = set(re.findall(r"\b(\w+(?:\.\w+)*\.f32)\b", ptx)) - {"mov.f32"}
    rounded = {f"{name}.rn.f32" for name in ("add", "sub", "mul", "div", "sqrt")}
    exact = ("setp", "selp", "abs", "min", "max", "cvt.rzi")  # what is converted is whole
    assert {name for name in operations if not name.startswith(exact)} == rounded
    assert "ftz" not in ptx
    if master == "lo16":  # codes are 4 bytes for a thread
        assert "ld.global.v4.b32" in ptx, "threads load fewer than 16 bytes at once"


@pytest.mark.skipif(
    DEVICE != "cpu" or not torch.cuda.is_available(), reason="needs a GPU that CUDA runs on"
)
def test_on_a_gpu() -> None:
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", __file__],
        env=os.environ | {"TRITON_INTERPRET": "0"},
        check=True,
    )
