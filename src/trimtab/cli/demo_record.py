"""What `trimtab demo` tells its report of a finished run: labels, scores, and what each run is."""

from __future__ import annotations

from collections.abc import Mapping
from operator import eq
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.report.demo import DemoRecord, Score
    from trimtab.results.answers import Answers
    from trimtab.training.demo import ArmResult, DemoRun

LABELS = {
    "grpo": "GRPO",
    "sft": "SFT",
    "grpo-mask": "GRPO mask",
    "grpo-random": "random mask",
    "grpo-matched": "matched mask",
    "grpo-complement": "complement mask",
}
ABOUT = {
    "grpo-mask": "GRPO again, from the same base and with the same questions, order and seed, "
    "training only the weights that GRPO changed. All others keep the value of the base. In every "
    "run weights are fp32 while they are trained, and rounded to bf16 once, when they are saved; "
    "the mask is what changed in the saved bf16. Gradients are clipped by the norm of the whole "
    "gradient, as they are where every weight is trained.",
    "grpo-random": "the same with as many weights of each tensor, at random places.",
    "grpo-matched": "the same with as many weights of each tensor and each bf16 exponent, at "
    "random places: as many small and as many large ones.",
    "grpo-complement": "the same with all the weights that GRPO did not change.",
}
ABOUT_SEED = (
    "GRPO of every weight again, on the same questions under another seed: how far two such runs "
    "agree."
)
MEASURES = {"grpo": "reward", "sft": "loss"}
"""What tells of learning; the loss of GRPO hovers around zero by construction."""

ON_SAMPLES = (
    "GRPO learns from answers that it samples itself. As soon as one weight differs so do the "
    "answers, and with them what is learned from: a run in the mask is not the other one bit for "
    "bit. What counts is its accuracy, and the identity beside that of doing nothing and of the "
    "controls."
)
ON_CONTROLS = (
    "Whether it matters which weights are trained, only controls can tell: “trimtab demo "
    "--controls” adds them."
)
ON_RANDOM = (
    "The random mask has as many weights in each tensor as that of GRPO, but they are larger: bf16 "
    "cannot store a small step on a large weight, and saving rounds it away. “Changed” says what "
    "was left. Whether these weights matter, or only that they are small, the matched mask tells: "
    "it has as many of each size."
)


def label_of(name: str) -> str:
    """What an arm is called in tables and charts."""
    return LABELS.get(name) or f"GRPO seed {name.rpartition('-')[2]}"


def demo_record(run: DemoRun) -> DemoRecord:
    """Everything but the comparisons and identity checks, as plain data."""
    majority = run.majority
    record: Any = {
        "base_id": run.origin["model"],
        "model_note": f"Its weights are {run.origin['note']}: they are not bit for bit those that "
        "the model was published with.",
        "task": "one-digit addition with a verifiable reward",
        "before": _scores(run.before),
        "majority_baseline": {
            "correct": majority.num_correct,
            "total": majority.num_questions,
            "answer": str(majority.answer),
        },
        "arms": {label_of(name): _arm(run, name, arm) for name, arm in run.arms.items()},
        "full": LABELS["grpo"],
        "mask_notes": [
            ON_SAMPLES,
            ON_RANDOM if "grpo-random" in run.arms else ON_CONTROLS,
        ],
    }
    demo: DemoRecord = record
    return demo


def _arm(run: DemoRun, name: str, arm: ArmResult) -> dict[str, Any]:
    measure = MEASURES[arm.algorithm]
    settings = {key: of for key, of in arm.record["settings"].items() if of is not None}
    if "mask" in settings:
        settings["mask"] = f"{settings['mask'][:8]}…"  # a table has no room for whole digests
    told: dict[str, Any] = {
        **_scores(arm.answers),
        "history": [{key: row[key] for key in ("step", measure)} for row in arm.record["history"]],
        "seconds": arm.record["seconds"]["train"],
        "loss_tokens": arm.num_loss_tokens,
        "settings": {
            **settings,
            **{f"{what} precision": of for what, of in arm.record["precision"].items()},
            "forward tokens": arm.num_forward_tokens,
        },
        "optimizer": arm.record["optimizer"],
    }
    if name not in ("grpo", "sft"):
        told["about"] = ABOUT.get(name, ABOUT_SEED)
        told["same_answers"] = _same_answers(arm.answers, run.arms["grpo"].answers)
    return told


def _same_answers(answers: Answers, full: Answers) -> Score:
    from trimtab.results.statistics import wilson

    same, total = sum(map(eq, answers.greedy, full.greedy)), full.num_questions
    return {"correct": same, "total": total, "interval": list(wilson(same / total, total))}


def _scores(answers: Answers) -> Mapping[str, Any]:
    told = answers.to_dict()
    return {
        "accuracy_greedy": {
            "correct": told["num_greedy_correct"],
            "total": told["num_questions"],
            "interval": told["greedy_interval"],
        },
        "accuracy_sampled": {
            "correct": sum(answer["num_sampled_correct"] for answer in told["answers"]),
            "total": told["num_questions"] * told["num_samples"],
            "interval": told["sampled_interval"],
        },
    }
