"""Every verb once or more, by the commands that a person would type.

All are typed in one folder, in which `trimtab example` was, after the commands of `BEFORE`. `{out}`
stands for the options that write a result and its page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

BEFORE: Sequence[str] = (
    "example",
    "mask extract base tuned -o mask.safetensors",
    "mask extract base sub -o sub.safetensors",
    "mask extract base run/checkpoint-80 -o run.safetensors",
    "mask random mask.safetensors --seed 1 -o random.safetensors",
    "mask random mask.safetensors --match magnitude --base base -o matched.safetensors",
    "mask make low-magnitude --base base --density 0.3 --scores scores.safetensors "
    "-o small.safetensors",
    "mask share mask.safetensors sub.safetensors run.safetensors -o parts",
    "mask share mask.safetensors run.safetensors --base base -o parts-base",
    "compare base other --cast bf16 -o first.json",
    "mask overlap mask.safetensors sub.safetensors -o second.json",
)
"""What makes the world; what they print is a golden text too."""

MEASURED: Mapping[str, str] = {
    "compare": "compare base tuned {out}",
    "compare-all": "compare base tuned --lr 1e-5 --steps 20 --rank --geometry --profiles {out}",
    "compare-gaps": "compare base gaps {out}",
    "trajectory": "trajectory base run {out}",
    "overlap": "mask overlap mask.safetensors matched.safetensors run.safetensors "
    "--base base {out}",
    "score": "mask score small.safetensors mask.safetensors --base base "
    "--scores scores.safetensors {out}",
    "structure": "mask structure mask.safetensors run.safetensors --base base "
    "--map model.layers.1.self_attn.v_proj.weight {out}",
    "identity": "identity base tuned sub --mask mask.safetensors {out}",
}
"""Golden -> the command that measures it; its result is drawn again by `trimtab report`."""

STORED: Mapping[str, Sequence[str]] = {
    "share": ("parts/split.json",),
    "share-base": ("parts-base/split.json",),
    "tracked": ("inputs/tracked.json",),
    "delta": ("inputs/delta.json",),
    "sync": ("inputs/sync.json",),
    "evaluate": ("inputs/evaluation.json",),
    "evaluate-one": ("inputs/evaluation-one.json",),
    "robustness": ("inputs/robustness.json",),
    "paper-balashov": ("papers/balashov-2025/results/small.json",),
    "paper-critics": ("papers/critics/results/small.json",),
    "paper-mukherjee": ("papers/mukherjee-2025/results/small.json",),
    "several": ("first.json", "second.json"),
}
"""Golden -> stored results that `trimtab report` draws: of runs too long for here, and of 0.1."""

SESSIONS: Mapping[str, Sequence[str]] = {
    "more": (
        "compare base tuned",
        "compare base tuned --changed atol=1e-5",
        "compare base base",
        "compare base other --cast bf16 --lr 1e-5",
        "trajectory base run/checkpoint-10 run/checkpoint-80",
        "trajectory base tuned other --cast bf16",
        "mask overlap mask.safetensors sub.safetensors",
        "mask score small.safetensors mask.safetensors",
        "mask structure mask.safetensors",
        "identity base tuned run/checkpoint-80 --mask random.safetensors",
    ),
    "mask-algebra": (
        "mask and mask.safetensors run.safetensors -o m/and.safetensors",
        "mask or mask.safetensors run.safetensors -o m/or.safetensors",
        "mask xor mask.safetensors run.safetensors -o m/xor.safetensors",
        "mask minus mask.safetensors run.safetensors -o m/minus.safetensors",
        "mask complement mask.safetensors -o m/complement.safetensors",
        "mask restrict mask.safetensors --kinds q_proj,k_proj --layers 1 -o m/qk.safetensors",
        "mask restrict mask.safetensors --tensors '*norm*' -o m/norms.safetensors",
        "mask transfer mask.safetensors --to tuned -o m/carried.safetensors",
        "mask extract base other --cast bf16 --changed atol=1e-5 -o m/atol.safetensors",
    ),
    "mask-make": (
        "mask make random --base base --density 0.1 -o m/random.safetensors",
        "mask make complement mask.safetensors -o m/outside.safetensors",
        "mask make low-magnitude --base base --like mask.safetensors -o m/low.safetensors",
        "mask make low-magnitude --base base --density 0.1 --match total -o m/lowest.safetensors",
        "mask make high-magnitude --base base --density 0.1 -o m/high.safetensors",
        "mask make principal --base base --density 0.1 -o m/principal.safetensors",
        "mask make off-principal --base base --density 0.1 -o m/off.safetensors",
        "mask make safe --base base --density 0.1 -o m/safe.safetensors",
        "mask make absorption --base base --lr 1e-5 -o m/absorbed.safetensors",
        "mask make absorption --base base --density 0.1 --match magnitude -o m/first.safetensors",
        "mask make consensus --at-least 2 mask.safetensors sub.safetensors run.safetensors "
        "-o m/agreed.safetensors",
    ),
    "mask-info": (
        "mask info mask.safetensors",
        "mask info mask.safetensors --json",
        "mask info small.safetensors",
        "mask restrict mask.safetensors --kinds norm,o_proj --layers 0-1 -o m/few.safetensors",
        "mask random m/few.safetensors --seed 3 -o m/few-random.safetensors",
        "mask info m/few-random.safetensors",
        "mask info parts/core.safetensors",
    ),
    "prune": (
        "prune base -o pruned --sparsity 0.5 --survivors alive.safetensors",
        "mask survivors pruned -o m/survivors.safetensors",
        "mask info m/survivors.safetensors",
        "compare base pruned",
    ),
    "paper": (
        "paper list",
        "paper show balashov-2025",
        "paper show critics",
        "paper run mukherjee-2025 --scale small --out papers-out --dry-run",
    ),
    "errors": (
        "compare base nowhere",
        "compare base other",
        "compare base tuned --changed little",
        "mask info base/model.safetensors",
        "mask overlap mask.safetensors",
        "identity base tuned sub --mask scores.safetensors",
        "mask extract base tuned -o mask.safetensors",
        "report base/config.json",
        "mask share mask.safetensors",
    ),
}
"""Golden -> commands whose texts, and the bits of the masks that they write, are all there is."""

TRAINING: Mapping[str, str] = {
    "train": "train tune.toml",
    "evaluate-live": "evaluate out/model other/model --base base --data rows.jsonl --by level "
    "--samples 2 --max-tokens 3 --text text.txt --json",
    "robustness-live": "robustness out/model --mask mask.safetensors --base base "
    "--data rows.jsonl --questions 4 --max-tokens 3 --text text.txt --noise sign --levels 0.3,1 "
    "--seeds 2 --json",
    "tracked-live": "trajectory out/updates.trimtab --json",
    "train-dry": "train tune.toml --dry-run",
    "sweep-dry": "sweep sweep.toml --dry-run",
    "sweep-dry-json": "sweep sweep.toml --dry-run --json",
    "fisher": "mask make fisher --base base --prompts rows.jsonl --density 0.1 --num-prompts 2 "
    "--samples 2 --max-tokens 3 -o fisher.safetensors",
    "snip": "mask make snip --base base --prompts rows.jsonl --density 0.1 --loss sft --batches 2 "
    "--batch-size 3 -o snip.safetensors",
    "sign-consistency": "mask make sign-consistency --base base --prompts rows.jsonl "
    "--density 0.1 --loss sft --batches 2 --batch-size 3 -o signs.safetensors",
    "warm": "mask make warm --base base out/updates.trimtab --steps 5 -o warm.safetensors",
    "prune-wanda": "prune base -o pruned --sparsity 0.5 --method wanda --text text.txt",
}
"""Golden -> a command that trains or asks, typed where the documentation's models are.

What comes out is not the same on every machine: these golden files hold its shape.
"""

ELSEWHERE: Mapping[str, str] = {
    "demo": "tests/cli/test_demo.py",
    "demo-controls": "tests/cli/test_demo.py",
    "sweep": "tests/cli/test_sweep.py",
    "paper-run": "tests/papers/test_run.py",
}
"""Golden -> the tests that have trained what it holds, and compare it."""
