"""Comparisons made by hand, with the shape and the look of real ones and no checkpoint behind."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from trimtab.elements.counts import ChangeCounts
from trimtab.elements.criteria import DEFAULT_CRITERIA
from trimtab.measure.compare_result import Comparison, Coverage, Profile, TensorChange
from trimtab.measure.geometry import GeometryAnalysis
from trimtab.measure.rank import RankAnalysis
from trimtab.report.demo_record import DemoRecord, Score
from trimtab.results.records import CheckpointRecord
from trimtab.results.statistics import wilson

DENSITY = {"attention": 0.144, "mlp": 0.117, "embed": 0.025, "norm": 0.011}
KEPT = {"bits": 1.0, "value": 0.999, "rel=0.001": 0.998, "atol=0": 0.999, "atol=1e-06": 0.97}
KEPT |= {"atol=1e-08": 0.99, "atol=1e-07": 0.99, "atol=1e-05": 0.86, "atol=0.0001": 0.12}
CRITERIA = {one.key: KEPT[one.key.removeprefix("strict_")] for one in DEFAULT_CRITERIA}
ULP_LABELS = (*map(str, range(1, 9)), "9..16", "17..32", "33..64", "65..128")
STEPS = (*(f"-{label.replace('..', '..-')}" for label in ULP_LABELS), *ULP_LABELS)
_LESS = 0.55 ** np.arange(1, len(ULP_LABELS) + 1)
SHARES = np.tile(_LESS / _LESS.sum() / 2, 2)


def tensor_shapes(
    num_layers: int, *, hidden: int = 576, ffn: int = 1536, kv: int = 192, experts: int = 0
) -> dict[str, tuple[int | None, str, tuple[int, ...]]]:
    """Name -> layer, kind, shape of a Llama, or of a mixture of experts in its place."""
    shapes: dict[str, tuple[int | None, str, tuple[int, ...]]] = {
        "model.embed_tokens.weight": (None, "embed", (49152, hidden))
    }
    for layer in range(num_layers):
        prefix = f"model.layers.{layer}"
        attention = {"q_proj": hidden, "k_proj": kv, "v_proj": kv}
        for kind, rows in attention.items():
            shapes[f"{prefix}.self_attn.{kind}.weight"] = (layer, kind, (rows, hidden))
        shapes[f"{prefix}.self_attn.o_proj.weight"] = (layer, "o_proj", (hidden, hidden))
        mlp = {"gate_proj": (ffn, hidden), "up_proj": (ffn, hidden), "down_proj": (hidden, ffn)}
        for kind, shape in mlp.items():
            for expert in range(experts):
                name = f"{prefix}.mlp.experts.{expert}.{kind}.weight"
                shapes[name] = (layer, f"expert.{kind}", shape)
            if not experts:
                shapes[f"{prefix}.mlp.{kind}.weight"] = (layer, kind, shape)
        if experts:
            shapes[f"{prefix}.mlp.gate.weight"] = (layer, "router", (experts, hidden))
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}.{norm}.weight"] = (layer, "norm", (hidden,))
    shapes["model.norm.weight"] = (None, "norm", (hidden,))
    return shapes


def make_counts(num_elements: int, density: float, rng: np.random.Generator) -> ChangeCounts:
    """Counts of a tensor whose elements changed with some probability, in steps of 1e-5."""
    changed = int(rng.binomial(num_elements, density))
    num_changed = {key: round(changed * kept) for key, kept in CRITERIA.items()}
    steps = rng.multinomial(num_changed["value"], SHARES)
    half = len(ULP_LABELS)
    size = 4e-5 * (1 + rng.random())
    return ChangeCounts(
        num_elements=num_elements,
        num_changed=num_changed,
        num_zero_sign_flips=changed - num_changed["value"],
        num_increased=int(steps[half:].sum()),
        num_decreased=int(steps[:half].sum()),
        ulp_histogram={
            label: int(count) for label, count in zip(STEPS, steps, strict=True) if count
        },
        update_sum=changed * size * 1e-3,
        update_sum_abs=changed * size,
        update_sum_squares=changed * size**2,
        update_max_abs=size * 9 * rng.random() if changed else 0.0,
    )


def make_tensor(
    name: str, layer: int | None, kind: str, shape: tuple[int, ...], counts: ChangeCounts
) -> TensorChange:
    """A bf16 tensor with given counts."""
    changed = counts.num_changed["bits"]
    rows, columns = prod(shape[:-1]), shape[-1]
    return TensorChange(
        name=name,
        layer=layer,
        kind=kind,
        shape=shape,
        dtype="BF16",
        base_dtype="BF16",
        tuned_dtype="BF16",
        base_hash="0" * 32,
        tuned_hash="1" * 32,
        counts=counts,
        rows=Profile(rows, min(rows, changed), min(columns, changed)),
        columns=Profile(columns, min(columns, changed), min(rows, changed)),
    )


def make_record(name: str, num_tensors: int, num_elements: int) -> CheckpointRecord:
    """Where a made-up checkpoint came from."""
    return CheckpointRecord(
        id=name,
        revision=None,
        architecture="LlamaForCausalLM",
        num_tensors=num_tensors,
        num_elements=num_elements,
        dtypes={"BF16": num_elements},
        content_hash="5f0c2a9be1d34478a6b1f0e2c3d4e5f6",
    )


def wrap(tensors: list[TensorChange], **fields: Any) -> Comparison:
    """A comparison of given tensors with complete coverage, unless `fields` say otherwise."""
    num_elements = sum(tensor.counts.num_elements for tensor in tensors)
    defaults: dict[str, Any] = {
        "base": make_record("demo/base", len(tensors), num_elements),
        "tuned": make_record("demo/grpo", len(tensors), num_elements),
        "coverage": Coverage(
            num_base=num_elements,
            num_tuned=num_elements,
            num_compared=num_elements,
            tied=(
                {
                    "name": "lm_head.weight",
                    "tied_to": "model.embed_tokens.weight",
                    "num_elements": 28311552,
                },
            ),
        ),
        "provenance": {
            "trimtab_version": "0.1.0",
            "command": "trimtab compare demo/base demo/grpo --html report.html",
            "date": "2026-11-21T10:00:00+00:00",
            "threads": 2,
        },
    }
    return Comparison(tensors=tuple(tensors), **(defaults | fields))


def make_comparison(
    num_layers: int = 30,
    seed: int = 0,
    *,
    density: Mapping[str, float] = DENSITY,
    hidden: int = 576,
    ffn: int = 1536,
    kv: int = 192,
    experts: int = 0,
    analysed: bool = False,
    **fields: Any,
) -> Comparison:
    """A comparison as a short RL run of SmolLM2-135M leaves it (the shape can be changed)."""
    rng = np.random.default_rng(seed)
    tensors = []
    shapes = tensor_shapes(num_layers, hidden=hidden, ffn=ffn, kv=kv, experts=experts)
    for name, (layer, kind, shape) in shapes.items():
        family = "attention" if kind in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
        share = density.get(kind, density[family])
        depth = 0.0 if layer is None else layer / num_layers
        wave = 0.75 + 0.5 * np.sin(np.pi * depth) * rng.uniform(0.8, 1.2)
        counts = make_counts(prod(shape), float(min(1.0, share * wave)), rng)
        tensors.append(make_tensor(name, layer, kind, shape, counts))
    comparison = wrap(tensors, **fields)
    return wrap(tensors, analyses=make_analyses(comparison), **fields) if analysed else comparison


def make_analyses(comparison: Comparison) -> dict[str, Any]:
    """Precision by hand, in step with the counts; rank and geometry of small random matrices."""
    by_kind: dict[str, dict[str, Any]] = {}
    for kind, counts in comparison.by_kind().items():
        changed = counts.num_changed["bits"]
        by_kind[kind] = {
            "num_elements": counts.num_elements,
            "one_step": changed // 5,
            "random_walk": changed * 0.93,
            "straight_line": min(counts.num_elements, changed * 3),
            "adam_bound": min(counts.num_elements, changed * 6),
        }
    total: dict[str, Any] = {
        key: sum(row[key] for row in by_kind.values())
        for key in ("num_elements", "one_step", "random_walk", "straight_line", "adam_bound")
    }
    for row in (*by_kind.values(), total):
        row |= {"num_nonfinite": 0, "num_not_float": 0, "dtypes": {"BF16": row["num_elements"]}}
        row["sparsity"] = {}
    section: dict[str, Any] = {"lr": 1e-5, "steps": 20, "betas": [0.9, 0.999]}
    section |= {"adam_step_bound": 1e-5, "adam_displacement_bound": 2e-4}
    rank, geometry = RankAnalysis(), GeometryAnalysis()
    rng = np.random.default_rng(0)
    for index in range(4):
        base = rng.normal(0, 0.02, (24, 16)).astype(np.float32)
        update = np.where(rng.random(base.shape) < 0.1, 1e-4, 0).astype(np.float32)
        rank.add(f"model.layers.{index}.self_attn.q_proj.weight", 0 * update, update)
        geometry.add(f"model.layers.{index}.self_attn.q_proj.weight", base, base + update)
    norm = np.ones(16, dtype=np.float32)
    rank.add("model.norm.weight", 0 * norm, norm)
    geometry.add("model.norm.weight", norm, norm)
    return {
        "precision": {**section, "by_kind": by_kind, "total": total},
        "rank": rank.to_dict(),
        "geometry": geometry.to_dict(),
    }


def score(correct: int, total: int) -> Score:
    """A score of independent answers, with the interval that evaluations give it."""
    return {"correct": correct, "total": total, "interval": list(wilson(correct / total, total))}


def with_masked(demo: DemoRecord, *labels: str) -> DemoRecord:
    """That demo with further runs, set beside `grpo` in the way of a mask or of its controls."""
    grpo: Any = demo["arms"]["grpo"]
    every = {"num_selected": 10**6, "num_elements": 10**6, "state_bytes": 8 * 10**6}
    some = {**every, "num_selected": 10**5, "state_bytes": 8 * 10**5, "index_bytes": 4 * 10**5}
    runs: Any = {
        label: {
            **grpo,
            "accuracy_greedy": score(15, 21),
            "optimizer": some,
            "same_answers": score(18, 21),
            "about": f"{label} again.",
        }
        for label in labels
    }
    data: Any = {
        **demo,
        "arms": {
            **demo["arms"],
            "grpo": {**grpo, "optimizer": {**every, "index_bytes": 0}},
            **runs,
        },
        "full": "grpo",
        "mask_notes": ["Samples differ."],
    }
    record: DemoRecord = data
    return record


def make_demo() -> DemoRecord:
    """The record of a demo with the arms `grpo` and `sft`."""
    steps = range(1, 21)
    return {
        "base_id": "SmolLM2-135M-Instruct",
        "model_note": "The base weights are de-quantised 4-bit numbers, saved as bf16.",
        "task": "one-digit addition with a two-shot prompt",
        "before": {
            "accuracy_greedy": score(3, 21),
            "accuracy_sampled": score(9, 84),
        },
        "majority_baseline": {"correct": 3, "total": 21, "answer": "9"},
        "arms": {
            "grpo": {
                "accuracy_greedy": score(17, 21),
                "accuracy_sampled": score(46, 84),
                "history": [{"step": step, "reward": 0.7 - 0.6 / step} for step in steps],
                "seconds": 326.2,
                "loss_tokens": 2412,
                "settings": {"lr": 1e-5, "steps": 20, "completions": 32, "betas": [0.9, 0.999]},
            },
            "sft": {
                "accuracy_greedy": score(21, 21),
                "accuracy_sampled": score(53, 84),
                "history": [{"step": step, "loss": 0.3 + 2.5 / step} for step in steps],
                "seconds": 166.1,
                "loss_tokens": 960,
                "settings": {"lr": 1e-5, "steps": 20, "answers": 16, "betas": [0.9, 0.999]},
            },
        },
    }
