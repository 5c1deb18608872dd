"""bf16 products by fp32 kernels, against fp64 and against torch's own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.training.runs.run_files import content, train, write
from trimtab.training import evaluate
from trimtab.training.addition import split_questions
from trimtab.training.bf16_products import LEAST_SIZE, fast_bf16
from trimtab.training.evaluation.questions import addition_questions

pytestmark = pytest.mark.train


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


def check(found: torch.Tensor, exact: torch.Tensor) -> None:
    """Rounded once, from a sum that is as exact as fp32 makes it."""
    assert found.dtype == torch.bfloat16
    half_a_step = exact.abs() * 2.0**-8  # at most
    assert ((found.double() - exact).abs() <= half_a_step + 1e-4).all()


def test_products_are_rounded_sums() -> None:
    a, b, c = random(40, 64), random(64, 48), random(40, 48)
    x, y, z = random(3, 40, 64), random(3, 64, 48), random(3, 40, 48)
    with fast_bf16():
        found = a @ b, torch.addmm(c, a, b, beta=0.5), x @ y, torch.baddbmm(z, x, y, alpha=2)
    wide = [one.double() for one in (a, b, c, x, y, z)]
    check(found[0], wide[0] @ wide[1])
    check(found[1], 0.5 * wide[2] + wide[0] @ wide[1])
    check(found[2], wide[3] @ wide[4])
    check(found[3], wide[5] + 2 * (wide[3] @ wide[4]))


def test_gradients_go_the_same_way() -> None:
    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    inputs = random(40, 64).float()
    with fast_bf16(), torch.autocast("cpu", torch.bfloat16):
        out = torch.nn.functional.linear(inputs, weight)
    assert out.dtype == torch.bfloat16
    with fast_bf16():
        out.float().sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    expected = inputs.double().sum(0).expand(48, 64)
    assert torch.allclose(weight.grad.double(), expected, rtol=2.0**-7, atol=1e-2)


@pytest.mark.parametrize("rows", [1, LEAST_SIZE - 1])
def test_few_rows_are_left_to_torch(rows: int) -> None:
    a, b = random(rows, 64), random(64, 48)
    with fast_bf16():
        found = a @ b
    assert torch.equal(found, a @ b)


def test_other_dtypes_are_left_alone() -> None:
    a, b = random(40, 64).float(), random(64, 48).float()
    with fast_bf16():
        assert torch.equal(a @ b, torch.mm(a, b))
        assert (a.double() @ b.double()).dtype == torch.float64


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the dtypes of large matrices that are multiplied, below every other mode."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look, and do what is asked."""
        name = func.name().partition("::")[2].partition(".")[0]
        if name in ("mm", "addmm", "bmm", "baddbmm", "linear", "matmul"):
            matrices = [one for one in args if isinstance(one, torch.Tensor) and one.dim() > 1][-2:]
            rows, inner, columns = *matrices[0].shape[-2:], matrices[-1].shape[-1]
            if min(rows, inner, columns) >= LEAST_SIZE:
                self.dtypes.add(matrices[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=[True, False], ids=["slow processor", "fast processor"])
def expected(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, set[torch.dtype]]:
    """What is recorded, and how large matrices are multiplied, on either kind of processor."""
    monkeypatch.setattr("trimtab.training.bf16_products.is_slow", lambda device: request.param)
    if request.param:
        return "by fp32 kernels", {torch.float32}
    return "by torch", {torch.bfloat16}


def test_a_run_multiplies_as_its_processor_does_fast(
    base: tuple[Path, Any], tmp_path: Path, expected: tuple[str, set[torch.dtype]]
) -> None:
    settings = content("sft", base[0], trainer={"per_device_train_batch_size": 16})
    with Products() as products:
        result = train(write(tmp_path, settings))
    assert (result["device"]["bf16_products"], products.dtypes) == expected
    assert result["precision"]["weights"] == "bfloat16"


def test_an_evaluation_multiplies_as_its_processor_does_fast(
    base: tuple[Path, Any], tmp_path: Path, expected: tuple[str, set[torch.dtype]]
) -> None:
    shutil.copytree(base[0], tmp_path / "tuned")
    (tmp_path / "text.txt").write_text("3+4=7\n" * 40)
    with Products() as products:
        evaluation = evaluate(
            [str(tmp_path / "tuned")],
            base=str(base[0]),
            questions=addition_questions(split_questions(0).heldout),
            text=tmp_path / "text.txt",
        )
    assert evaluation.settings["dtype"] == "bf16"
    found = evaluation.provenance["device"]["bf16_products"], products.dtypes
    assert found == expected


def test_fp32_is_no_matter_of_the_processor(base: tuple[Path, Any]) -> None:
    evaluation = evaluate(
        [str(base[0])], questions=addition_questions(split_questions(0).heldout), dtype="fp32"
    )
    assert evaluation.provenance["device"]["bf16_products"] == "by torch"
