"""Several processes train as one would, and decide alike; real processes, which talk by gloo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.optimizers import distributed_worker as worker
from tests.training.optimizers.reference import bits, masters_of
from tests.training.workers import run_workers
from trimtab.training import SparseAdamW

pytestmark = pytest.mark.train

Results = dict[int, list[dict[str, Any]]]
"""Number of processes -> what the scenarios returned in each."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    found = {}
    for world in (2, 4):
        run_workers(worker.run, world, folder, num=world, loads="torch")
        paths = [folder / f"results-{world}-{rank}.pt" for rank in range(world)]
        found[world] = [torch.load(path, weights_only=True) for path in paths]
    return found


@pytest.fixture(params=[2, 4])
def ranks(request: pytest.FixtureRequest, results: Results) -> list[dict[str, Any]]:
    return results[request.param]


def alone(dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    """What one process gets that has the whole batch."""
    model = worker.new_model(dtype)
    optimizer = SparseAdamW(model.named_parameters(), worker.new_mask(), **worker.SETTINGS, **more)
    return worker.result(model, worker.train(model, optimizer, range(worker.STEPS)), optimizer)


def assert_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, weights in expected.items():
        assert torch.equal(bits(found[name]), bits(weights)), name


def assert_close(ranks: list[dict[str, Any]], scenario: str, expected: Any) -> None:
    """Near a single process; the same bits in all; off the mask the bits of the start."""
    for rank in ranks:
        found = rank[scenario]
        assert_bits(found["weights"], ranks[0][scenario]["weights"])
        assert found["norms"] == ranks[0][scenario]["norms"]
        assert found["norms"] == pytest.approx(expected["norms"], rel=1e-6)
        for name, weights in expected["weights"].items():
            torch.testing.assert_close(found["weights"][name], weights, rtol=0.0, atol=1e-6)
    assert_off_mask(ranks[0][scenario]["weights"])


def assert_off_mask(found: dict[str, Tensor]) -> None:
    mask = worker.new_mask()
    for name, before in worker.new_model(found["first.bias"].dtype).named_parameters():
        selected = torch.zeros(before.shape, dtype=torch.bool)
        if name in mask:
            selected = torch.from_numpy(mask.array(name))
            assert not torch.equal(found[name][selected], before[selected])
        assert torch.equal(bits(found[name])[~selected], bits(before)[~selected])


@pytest.mark.parametrize(
    "scenario",
    [
        "copies",
        "copies_in_ddp",
        "fsdp",
        "fsdp_without_sync",
        "fsdp_with_ignored_parameters",
        "hybrid",
        "rebound",
        "replaced_parameters",
    ],
)
def test_as_one_process(ranks: list[dict[str, Any]], scenario: str) -> None:
    assert_close(ranks, scenario, alone())


@pytest.mark.parametrize("scenario", ["copies", "fsdp"])
def test_full_norm_as_one_process(ranks: list[dict[str, Any]], scenario: str) -> None:
    expected = alone(clip_by="full")
    assert expected["norms"] != pytest.approx(alone()["norms"], rel=1e-2)
    assert_close(ranks, f"{scenario}_clipped_by_full_norm", expected)


def test_bf16_as_one_process(ranks: list[dict[str, Any]]) -> None:
    expected = alone(torch.bfloat16)
    for rank in ranks:
        found = rank["fsdp_bf16"]
        assert_bits(found["weights"], ranks[0]["fsdp_bf16"]["weights"])
        assert found["norms"] == pytest.approx(expected["norms"], rel=1e-3)
        for name, weights in expected["weights"].items():
            torch.testing.assert_close(found["weights"][name], weights, rtol=2**-7, atol=0.0)
    assert_off_mask(ranks[0]["fsdp_bf16"]["weights"])


def test_group_of_one_process_is_by_itself(ranks: list[dict[str, Any]]) -> None:
    expected = alone()
    for rank in ranks:
        assert_bits(rank["one_process_by_itself"]["weights"], expected["weights"])


def test_gradient_in_one_process_only(ranks: list[dict[str, Any]]) -> None:
    """It is averaged with zeros, and every process takes the step."""
    model = worker.new_model()
    optimizer = SparseAdamW(model.named_parameters(), worker.new_mask(), **worker.SETTINGS)
    outputs = model.second(torch.ones(1, 9)).sum() / len(ranks)
    rest = model.first(torch.ones(1, 5)).sum() * (len(ranks) - 1) / len(ranks)
    (outputs + rest).backward()
    optimizer.step()
    assert_close(
        ranks, "gradient_in_one_process", worker.result(model, [optimizer.grad_norm], optimizer)
    )


def test_no_gradient_at_all(ranks: list[dict[str, Any]]) -> None:
    start = {name: p.detach() for name, p in worker.new_model().named_parameters()}
    for rank in ranks:
        assert rank["no_gradient_at_all"]["norms"] == [None]
        assert_bits(rank["no_gradient_at_all"]["weights"], start)


@pytest.mark.parametrize("scenario", ["nan_in_one_process", "fsdp_nan"])
def test_all_raise_or_all_skip(ranks: list[dict[str, Any]], scenario: str) -> None:
    start = {name: p.detach() for name, p in worker.new_model().named_parameters()}
    for rank in ranks:
        found = rank[scenario]
        assert found["said"].startswith("NaN or infinity in the gradient of first.weight")
        assert found["said"] == ranks[0][scenario]["said"]
        assert found["skipped"] == 1
        assert_bits(found["weights"], start)


def test_traffic_follows_the_mask(ranks: list[dict[str, Any]]) -> None:
    sent = ranks[0]["traffic"]
    assert 4 * sent["selected"] <= sent["bytes"] <= 4 * sent["selected"] + 512


def test_every_process_refuses(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        weights, mask, wrapped = rank["refused_disagreement"]
        assert weights.startswith("the weights of free.weight, second.bias differ between")
        assert mask.startswith("the processes have different parameters, masks or optimizers")
        assert "DistributedDataParallel" in wrapped
        assert "`.module`" in wrapped


def test_description_counts_the_whole_and_weighs_the_part(ranks: list[dict[str, Any]]) -> None:
    mask, expected = worker.new_mask(), alone()["describe"]
    result = [rank["fsdp"]["describe"] for rank in ranks]
    for one in result:
        assert one["num_selected"] == mask.num_selected()
        assert one["density"] == expected["density"]
    assert max(one["state_bytes"] for one in result) < expected["state_bytes"]


def test_sharded_along_another_dimension(ranks: list[dict[str, Any]]) -> None:
    selected = torch.arange(72).reshape(9, 8) % 3 == 0
    moved = ranks[0]["fsdp_by_columns"]["moved"]
    with torch.random.fork_rng():
        worker.new_model()
        before = torch.nn.Linear(8, 9).weight.detach()
    assert torch.equal(moved != before, selected)
    assert "another dimension than the first" in ranks[0]["fsdp_by_columns"]["said"]


def test_sharded_in_strides(results: Results) -> None:
    for rank in results[4]:
        message = rank["fsdp_over_tensor_parallelism"]
        assert message.startswith("the mask cannot be trained: first.weight is sharded as (")
        assert "use fully_shard alone" in message


def test_replaced_parameters(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert "before its first step" in rank["rebound"]["late"]
        assert "call rebind(model.named_parameters())" in rank["replaced_parameters"]["full"]
        result = rank["replaced_parameters"]["describe"]
        assert result["density"] == rank["fsdp"]["describe"]["density"]


# Checkpoints.


@pytest.mark.parametrize("scenario", ["resumed", "resumed_from_own_state"])
def test_resume_in_as_many_processes(ranks: list[dict[str, Any]], scenario: str) -> None:
    for rank in ranks:
        found = rank["checkpoints"]
        assert_bits(found[scenario], found["without_break"])
        assert_off_mask(found[scenario])
        assert found["lr"] == worker.SETTINGS["lr"]


def test_resume_in_more_processes(results: Results) -> None:
    for rank in results[4]:
        for name, weights in results[2][0]["checkpoints"]["without_break"].items():
            found = rank["checkpoints"]["from_2"][name]
            torch.testing.assert_close(found, weights, rtol=2**-7, atol=0.0)
        assert_off_mask(rank["checkpoints"]["from_2"])


ALONE = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
"""DCP says that it loads in a single process, also when it was told to."""


def load_alone(folder: Path) -> tuple[worker.Model, SparseAdamW]:
    model = worker.new_model(torch.bfloat16)
    optimizer = SparseAdamW(model.named_parameters(), worker.new_mask(), **worker.SETTINGS)
    worker.load(folder, model, optimizer, no_dist=True)
    return model, optimizer


def all_masters(optimizer: SparseAdamW) -> dict[str, Tensor]:
    return {name: masters_of(optimizer, name) for name in optimizer.elements}


@ALONE
def test_saved_state_is_the_same_whoever_loads_it(folder: Path, results: Results) -> None:
    """2 processes saved it; 4 loaded and saved it again."""
    first, again = load_alone(folder / "from-2"), load_alone(folder / "from-2-by-4")
    assert_bits(worker.weights_of(again[0]), worker.weights_of(first[0]))
    expected, found = first[1].state_dict(), again[1].state_dict()
    assert found["param_groups"] == expected["param_groups"]
    for number, state in expected["state"].items():
        for key, value in state.items():
            assert found["state"][number][key].dtype == value.dtype
            assert torch.equal(found["state"][number][key], value), key
        assert state["step"] == worker.STEPS // 2
        assert state["exp_avg_sq"].count_nonzero() == state["exp_avg_sq"].numel()


@ALONE
@pytest.mark.parametrize("world", [2, 4])
def test_resume_in_one_process(folder: Path, results: Results, world: int) -> None:
    """What is loaded are the masters that one process would have after the same number of steps."""
    expected = worker.new_model(torch.bfloat16)
    optimizer = SparseAdamW(expected.named_parameters(), worker.new_mask(), **worker.SETTINGS)
    worker.train(expected, optimizer, range(worker.STEPS // 2))
    resumed, again = load_alone(folder / f"from-{world}")
    masters = all_masters(optimizer)
    for name, found in all_masters(again).items():
        torch.testing.assert_close(found, masters[name], rtol=0.0, atol=1e-6)
    worker.train(resumed, again, range(worker.STEPS // 2, worker.STEPS))
    assert_off_mask(worker.weights_of(resumed))


def test_state_of_another_run(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        message = rank["checkpoints"]["said"]
        assert "it differs in mask" in message[0]
        assert all("sharded_state_dict()" in one for one in message[1:])
