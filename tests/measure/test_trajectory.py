"""`trajectory` on real files, against NumPy on the same bits."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import trimtab
from tests.measure.checkpoints import LLAMA, Tensors, llama_tensors, save, save_sharded
from trimtab.checkpoints import checkpoint as checkpoint_module
from trimtab.checkpoints import stream
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.elements import fast
from trimtab.errors import AnalysisError, CheckpointError, TensorMismatchError
from trimtab.measure.trajectory_result import PointCounts, Trajectory

KINDS = {
    "model.embed_tokens.weight": "embed",
    "model.norm.weight": "norm",
    "input_layernorm.weight": "norm",
    "q_proj.weight": "q_proj",
    "k_proj.weight": "k_proj",
    "up_proj.weight": "up_proj",
    "down_proj.weight": "down_proj",
}

BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


def walk(num_points: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> list[Tensors]:
    """A base and points after it, in which elements move, come back, turn -0.0 or NaN."""
    generator = torch.Generator().manual_seed(seed)
    base = llama_tensors(seed, dtype)
    base["model.norm.weight"] = torch.zeros(32, dtype=dtype)
    points = [base]
    for _ in range(num_points):
        now = {}
        for name, before in points[-1].items():
            draw = torch.rand(before.shape, generator=generator)
            after = torch.where(draw < 0.1, before + 0.25, before)
            after = torch.where((draw >= 0.1) & (draw < 0.15), base[name], after)
            after = torch.where((draw >= 0.15) & (draw < 0.18), -0.0, after)
            after = torch.where((draw >= 0.18) & (draw < 0.2), torch.nan, after)
            now[name] = after.to(dtype)
        points.append(now)
    return points


def kind_of(name: str) -> str:
    (kind,) = {kind for end, kind in KINDS.items() if name.endswith(end)}
    return kind


def expected(points: Sequence[Tensors]) -> list[dict[str, PointCounts]]:
    """The counts by kind at every point, from all bits at once."""
    found: list[dict[str, PointCounts]] = []
    paths = {
        kind: np.concatenate(
            [
                torch.stack([p[name] for p in points])
                .view(BITS[tensor.dtype])
                .numpy()
                .reshape(len(points), -1)
                for name, tensor in points[0].items()
                if kind_of(name) == kind
            ],
            axis=1,
        )
        for kind in dict.fromkeys(map(kind_of, points[0]))
    }
    for at in range(1, len(points)):
        row = {}
        for kind, path in paths.items():
            changed = path[at] != path[0]
            ever = (path[1 : at + 1] != path[0]).any(axis=0)
            final = path[-1] != path[0]
            row[kind] = PointCounts(
                num_elements=path.shape[1],
                changed=int(changed.sum()),
                stepped=int((path[at] != path[at - 1]).sum()),
                ever=int(ever.sum()),
                returned=int((ever & ~changed).sum()),
                in_final=int((changed & final).sum()),
                ever_in_final=int((ever & final).sum()),
            )
        found.append(row)
    return found


def saved(folder: Path, points: Sequence[Tensors]) -> tuple[Path, list[Path]]:
    """Write a series; each checkpoint in a folder `run/checkpoint-…` of its step."""
    base, *after = points
    run = [save(folder / "run" / f"checkpoint-{5 * at}", t) for at, t in enumerate(after, 1)]
    return save(folder / "base", base), run


def stable(result: Trajectory) -> dict[str, Any]:
    """Everything but what may differ between two runs on the same tensors."""
    data = result.to_dict()
    for key in ("date", "threads"):
        data["provenance"].pop(key)
    for record in (data["provenance"]["base"], *(p["checkpoint"] for p in data["points"])):
        record.pop("id")
    for point in data["points"]:
        point.pop("label")
    return data


@pytest.mark.parametrize("dtype", BITS, ids=str)
@pytest.mark.parametrize("num_points", [1, 2, 5])
def test_counts_equal_numpy(tmp_path: Path, dtype: torch.dtype, num_points: int) -> None:
    points = walk(num_points, dtype)
    base, run = saved(tmp_path, points)
    result = trimtab.trajectory(base, run)
    assert [point.by_kind for point in result.points] == expected(points)
    assert [point.step for point in result.points] == [5 * at for at in range(1, num_points + 1)]
    assert (result.observed, result.every) == ("checkpoints", 5)
    assert result.coverage is not None
    assert result.coverage.is_complete
    assert result.conversion is None
    num_elements = sum(tensor.numel() for tensor in points[0].values())
    assert result.coverage.num_base == result.coverage.num_compared == num_elements


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**31), num_points=st.integers(1, 4), num_elements=st.integers(0, 150))
def test_random_series(
    tmp_path_factory: pytest.TempPathFactory, seed: int, num_points: int, num_elements: int
) -> None:
    values = np.random.default_rng(seed).integers(0, 3, (num_points + 1, num_elements))
    points = [{"model.norm.weight": torch.tensor(row).to(torch.bfloat16)} for row in values]
    base, run = saved(tmp_path_factory.mktemp("series"), points)
    assert [p.by_kind for p in trimtab.trajectory(base, run).points] == expected(points)


def test_it_is_what_compare_counts(tmp_path: Path) -> None:
    base, run = saved(tmp_path, walk(3))
    result = trimtab.trajectory(base, run)
    before = base
    for point, folder in zip(result.points, run, strict=True):
        comparison = trimtab.compare(base, folder)
        assert point.checkpoint == comparison.tuned
        assert result.base == comparison.base
        assert point.total.changed == comparison.total.num_changed["bits"]
        for kind, counts in comparison.by_kind().items():
            assert point.by_kind[kind].changed == counts.num_changed["bits"]
        assert point.total.stepped == trimtab.compare(before, folder).total.num_changed["bits"]
        before = folder
    assert list(result.final.by_kind) == list(trimtab.compare(base, run[-1]).by_kind())


def test_a_run_is_taken_in_the_order_of_steps(tmp_path: Path) -> None:
    base, run = saved(tmp_path, walk(3))
    assert [folder.name for folder in run] == ["checkpoint-5", "checkpoint-10", "checkpoint-15"]
    result = trimtab.trajectory(base, tmp_path / "run")
    assert stable(result) == stable(trimtab.trajectory(base, run))
    assert [point.label for point in result.points] == [str(folder) for folder in run]
    with pytest.raises(AnalysisError, match="checkpoint-10 comes after"):
        trimtab.trajectory(base, [run[2], run[1]])


def test_shards_threads_chunks_and_kernels_make_no_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = walk(4)
    base, run = saved(tmp_path, points)
    whole = stable(trimtab.trajectory(base, run, threads=1))
    sharded = [
        save_sharded(tmp_path / f"shards-{num}" / f"checkpoint-{5 * num}", p, 1 + num)
        for num, p in enumerate(points)
    ]
    again = stable(trimtab.trajectory(sharded[0], sharded[1:], threads=4))
    # Shards give the kinds another order.
    by_kind = [point.pop("by_kind") for point in again["points"]]
    assert by_kind == [point.pop("by_kind") for point in whole["points"]]
    assert again == whole
    monkeypatch.setattr(stream, "CHUNK_ELEMENTS", 50)
    monkeypatch.setattr(fast, "COMPILED_FROM", 0)
    small = trimtab.trajectory(base, run)
    assert [point.by_kind for point in small.points] == expected(points)


def test_open_checkpoints_are_left_open(tmp_path: Path) -> None:
    base, run = saved(tmp_path, walk(2))
    with open_checkpoint(base) as first, open_checkpoint(run[0]) as second:
        result = trimtab.trajectory(first, [second, run[1]])
        assert stable(result) == stable(trimtab.trajectory(base, run))
        assert second.tensors["model.norm.weight"].read().shape == (32,)
        alone = trimtab.trajectory(first, second)
    assert [point.label for point in alone.points] == [str(run[0])]


def test_a_long_series_opens_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer files are open than there are checkpoints, at any moment."""
    monkeypatch.setattr(checkpoint_module, "MOST_SHARED", 3)
    points = walk(20)
    base, run = saved(tmp_path, points)
    num_open = []

    def look(num_bytes: int, total: int) -> None:
        files = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.exists()]
        num_open.append(sum(file.is_relative_to(tmp_path) for file in files))

    result = trimtab.trajectory(base, run, threads=1, progress=look)
    assert max(num_open) == 3
    assert [point.by_kind for point in result.points] == expected(points)


def test_memory_does_not_grow_with_the_series(tmp_path: Path) -> None:
    """A chunk of four checkpoints is held, however many there are and however large."""

    def peak(num_points: int, num_rows: int) -> int:
        folder = tmp_path / f"{num_points}-{num_rows}"
        tensor = torch.zeros(num_rows, 1024, dtype=torch.bfloat16)
        files = [
            save(folder / f"checkpoint-{at}", {"model.layers.0.mlp.up_proj.weight": tensor})
            for at in range(num_points + 1)
        ]
        tracemalloc.start()
        try:
            trimtab.trajectory(files[0], files[1:], threads=1)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1, 8)  # whatever is loaded only once
    few, many, large = peak(3, 1024), peak(30, 1024), peak(3, 4096)
    one_chunk = 2 * stream.CHUNK_ELEMENTS
    assert many < few + one_chunk
    assert large < few + one_chunk


def test_missing_extra_and_other_shapes_are_listed(tmp_path: Path) -> None:
    points = walk(3)
    points[0]["only.base"] = torch.zeros(3, dtype=torch.bfloat16)
    points[1]["only.base"] = torch.zeros(3, dtype=torch.bfloat16)
    points[2]["only.later"] = torch.zeros(7, dtype=torch.bfloat16)
    points[3]["model.norm.weight"] = torch.zeros(5, dtype=torch.bfloat16)
    base, run = saved(tmp_path, points)
    result = trimtab.trajectory(base, run)
    labels = [str(folder) for folder in run]
    coverage = result.coverage
    assert coverage is not None
    rows = {(row["name"], row["why"]): row for row in coverage.not_compared}
    assert rows.keys() == {
        ("only.base", "missing"),
        ("only.later", "extra"),
        ("model.norm.weight", "shape"),
    }
    assert rows["only.base", "missing"]["points"] == labels[1:]
    assert rows["only.later", "extra"]["points"] == labels[1:2]
    assert rows["only.later", "extra"]["num_elements"] == 7
    assert rows["model.norm.weight", "shape"]["points"] == labels[2:]
    assert not coverage.is_complete
    num_base = sum(tensor.numel() for tensor in points[0].values())
    assert coverage.num_base == num_base
    assert coverage.num_compared == result.final.total.num_elements == num_base - 3 - 32
    for name in ("only.base", "only.later", "model.norm.weight"):
        for tensors in points:
            tensors.pop(name, None)
    assert [point.by_kind for point in result.points] == expected(points)
    # What is not followed is part of what a checkpoint was, all the same.
    assert result.final.checkpoint == trimtab.compare(base, run[-1]).tuned


def test_a_resized_vocabulary_has_its_common_rows_followed(tmp_path: Path) -> None:
    points = [llama_tensors(vocab=vocab) for vocab in (40, 44, 37, 40)]
    base, run = saved(tmp_path, points)
    result = trimtab.trajectory(base, run)
    common = [
        {name: t[:37] if "embed" in name else t for name, t in tensors.items()}
        for tensors in points
    ]
    assert [point.by_kind for point in result.points] == expected(common)
    assert result.coverage is not None
    (row,) = result.coverage.not_compared
    assert (row["name"], row["why"]) == ("model.embed_tokens.weight", "resized")
    assert row["points"] == [str(run[0]), str(run[1])]
    assert row["num_elements"] == (44 - 37) * 32
    assert result.coverage.num_base - result.coverage.num_compared == 3 * 32


def test_other_prefixes_are_matched_and_said(tmp_path: Path) -> None:
    points = walk(2)
    base = save(tmp_path / "base", points[0])
    run = [
        save(tmp_path / "checkpoint-1", {f"module.{name}": t for name, t in points[1].items()}),
        save(tmp_path / "checkpoint-2", points[2]),
    ]
    result = trimtab.trajectory(base, run)
    assert [point.by_kind for point in result.points] == expected(points)
    assert result.coverage is not None
    assert result.coverage.is_complete
    assert len(result.coverage.renamed) == len(points[0])
    assert result.coverage.renamed[0]["points"] == [str(run[0])]
    row = result.coverage.renamed[0]
    assert row["renamed"] == f"module.{row['name']}"


@pytest.mark.parametrize("stored_in", [(0, 1, 2), (1,), (1, 2), (0,)])
def test_a_stored_copy_of_tied_embeddings_counts_once(
    tmp_path: Path, stored_in: tuple[int, ...]
) -> None:
    points = walk(2)
    stored = [
        {**t, "lm_head.weight": t["model.embed_tokens.weight"].clone()} if at in stored_in else t
        for at, t in enumerate(points)
    ]
    base, run = saved(tmp_path, stored)
    result = trimtab.trajectory(base, run)
    assert [point.by_kind for point in result.points] == expected(points)
    assert result.coverage is not None
    assert result.coverage.is_complete
    (row,) = result.coverage.tied
    assert (row["name"], row["tied_to"]) == ("lm_head.weight", "model.embed_tokens.weight")
    assert result.coverage.num_base == result.coverage.num_compared


def test_a_head_that_one_checkpoint_stores_and_another_does_not_know(tmp_path: Path) -> None:
    points = walk(2)
    head = {"lm_head.weight": points[1]["model.embed_tokens.weight"] + 1}
    base = save(tmp_path / "base", points[0])
    run = [
        save(tmp_path / "stored", {**points[1], **head}),
        save(tmp_path / "no-config", points[2], config=None),
    ]
    result = trimtab.trajectory(base, run)
    assert [point.by_kind for point in result.points] == expected(points)
    assert result.coverage is not None
    assert result.coverage.not_compared == (
        {
            "name": "lm_head.weight",
            "why": "missing",
            "points": [str(run[1])],
            "num_elements": head["lm_head.weight"].numel(),
        },
    )


def test_embeddings_that_came_untied_are_followed(tmp_path: Path) -> None:
    points = walk(2)
    head = points[2]["model.embed_tokens.weight"] + 1
    base, run = saved(tmp_path, [*points[:2], {**points[2], "lm_head.weight": head}])
    result = trimtab.trajectory(base, run)
    assert result.final.by_kind["lm_head"].changed > 0.9 * head.numel()
    first = result.points[0].by_kind
    assert first["lm_head"].changed == first["embed"].changed


def test_the_parts_of_a_fused_tensor_are_apart(tmp_path: Path) -> None:
    """GPT-2 fuses query, key and value side by side in columns."""
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 8, "n_head": 2}
    name = "transformer.h.0.attn.c_attn.weight"
    weight = torch.zeros(8, 24, dtype=torch.bfloat16)
    first, second = weight.clone(), weight.clone()
    first[0, 0] = first[1, 8] = second[1, 8] = second[2, 16] = second[3, 23] = 1
    base = save(tmp_path / "base", {name: weight}, config)
    run = [save(tmp_path / str(at), {name: t}, config) for at, t in enumerate((first, second))]
    result = trimtab.trajectory(base, run)
    assert {kind: c.ever for kind, c in result.final.by_kind.items()} == {
        "q_proj": 1,
        "k_proj": 1,
        "v_proj": 2,
    }
    assert result.final.by_kind["q_proj"] == PointCounts(64, 0, 1, 1, 1, 0, 0)
    assert result.points[0].by_kind["k_proj"] == PointCounts(64, 1, 1, 1, 0, 1, 1)


def test_different_dtypes_are_refused_until_a_cast_is_asked_for(tmp_path: Path) -> None:
    # Rounding a NaN keeps that it is one, not which.
    points = [{name: t.nan_to_num() for name, t in tensors.items()} for tensors in walk(3)]
    wide = [{name: t.float() for name, t in tensors.items()} for tensors in points]
    base, run = saved(tmp_path, [points[0], wide[1], points[2], wide[3]])
    with pytest.raises(TensorMismatchError) as error:
        trimtab.trajectory(base, run)
    assert "12 tensors are stored in different dtypes: " in str(error.value)
    assert f"is BF16 in base, F32 in {run[0]}, F32 in {run[2]}" in str(error.value)
    assert f"{run[1]}" not in str(error.value)
    result = trimtab.trajectory(base, run, cast="bf16")
    assert [point.by_kind for point in result.points] == expected(points)
    assert result.conversion == "elements stored as BF16, F32 rounded to BF16"


def test_fp8_blocks_as_stored_and_dequantised(tmp_path: Path) -> None:
    config = {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [16, 16]},
    }
    name = "model.layers.0.mlp.up_proj.weight"
    weight = torch.ones(40, 50).to(torch.float8_e4m3fn)
    scales = [torch.ones(3, 4), torch.ones(3, 4), torch.ones(3, 4)]
    scales[1][0, 0] = scales[2][0, 1] = 2
    base, *run = (
        save(tmp_path / str(at), {name: weight, f"{name}_scale_inv": scale}, config)
        for at, scale in enumerate(scales)
    )
    stored = trimtab.trajectory(base, run)
    assert {kind: c.ever for kind, c in stored.final.by_kind.items()} == {"up_proj": 0, "scale": 2}
    real = trimtab.trajectory(base, run, dequantize=True)
    assert real.final.by_kind == {"up_proj": PointCounts(2000, 256, 512, 512, 256, 256, 256)}
    assert real.coverage is not None
    assert real.coverage.is_complete
    assert real.coverage.folded == ({"name": f"{name}_scale_inv", "into": name},)
    assert real.base == stored.base


def test_nothing_in_common(tmp_path: Path) -> None:
    base, run = saved(tmp_path, walk(2))
    other = save(tmp_path / "other", {"something.else": torch.zeros(3)}, None)
    with pytest.raises(TensorMismatchError, match=r"other have no tensor in common"):
        trimtab.trajectory(base, [run[0], other])
    apart = [
        save(
            tmp_path / "first", {"model.norm.weight": torch.zeros(32, dtype=torch.bfloat16)}, LLAMA
        ),
        save(
            tmp_path / "then",
            {"model.layers.0.input_layernorm.weight": walk(0)[0]["model.norm.weight"]},
            LLAMA,
        ),
    ]
    with pytest.raises(TensorMismatchError, match=r"no tensor is in all of"):
        trimtab.trajectory(base, apart)


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    points = walk(3)
    points[2]["only.later"] = torch.zeros(7, dtype=torch.bfloat16)
    base, run = saved(tmp_path, points)
    reports: list[tuple[int, int]] = []
    trimtab.trajectory(base, run, progress=lambda *report: reports.append(report))
    num_bytes = 2 * sum(tensor.numel() for tensors in points for tensor in tensors.values())
    assert {total for _, total in reports} == {num_bytes}
    assert sum(done for done, _ in reports) == num_bytes


def test_a_checkpoint_that_cannot_be_read(tmp_path: Path) -> None:
    base, run = saved(tmp_path, walk(2))
    with pytest.raises(CheckpointError, match="no such file"):
        trimtab.trajectory(base, [run[0], tmp_path / "nowhere"])
    file = run[1] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        trimtab.trajectory(base, run)
