"""The record of a demo: the scores and settings of its runs, as plain data for page and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from trimtab.outputs import flat
from trimtab.results.statistics import wilson


class Score(TypedDict):
    """Right answers, all answers, and the 95 % interval of the ratio, as in `trimtab evaluate`."""

    correct: int
    total: int
    interval: NotRequired[Sequence[float] | None]


class BeforeRecord(TypedDict):
    """Scores of the base on the held-out questions."""

    accuracy_greedy: Score
    accuracy_sampled: Score


class Baseline(Score):
    """Score of always giving the most frequent answer."""

    answer: str


class OptimizerRecord(TypedDict):
    """The elements that a run trained, and the memory of its optimizer.

    Attributes:
        num_selected: Elements trained.
        num_elements: All elements.
        state_bytes: Running means of the optimizer.
        index_bytes: Positions of the elements trained; 0 where all are.
    """

    num_selected: int
    num_elements: int
    state_bytes: int
    index_bytes: int


class ArmRecord(BeforeRecord):
    """One run of a demo: the scores after training, and its cost.

    Attributes:
        history: One entry for each step: `step` and `reward` or `loss`; other keys are ignored.
        seconds: Wall time of training.
        loss_tokens: Tokens whose loss was trained on.
        settings: Settings to show (`lr`, `steps`, ...), as plain data.
        optimizer: What it trained.
        same_answers: Held-out questions to which it gives the greedy answer of the run whose
            changes are the mask.
        about: A sentence that describes the run.
    """

    history: Sequence[Mapping[str, float]]
    seconds: float
    loss_tokens: int
    settings: Mapping[str, Any]
    optimizer: NotRequired[OptimizerRecord]
    same_answers: NotRequired[Score]
    about: NotRequired[str]


class DeltaRecord(TypedDict):
    """The checkpoint of a run as a delta.

    Attributes:
        path: The file.
        num_bytes: Its size.
        num_bytes_whole: Bytes of the checkpoint.
        base: Folder of the base.
        num_bytes_of_others: Format of others → bytes that the same change takes in it.
    """

    path: str
    num_bytes: int
    num_bytes_whole: int
    base: str
    num_bytes_of_others: NotRequired[Mapping[str, int]]


class DemoRecord(TypedDict):
    """A demo, without the comparisons of its runs.

    Attributes:
        base_id: Name of the base model.
        model_note: A remark on the base (de-quantised 4-bit weights).
        task: What the runs trained on, to follow "trained on": `one-digit addition, ...`.
        before: Scores of the base on the held-out questions.
        majority_baseline: Score of a constant answer on the same questions.
        arms: The runs, by the label of their comparisons and identity checks.
        full: Label of the run whose changes are the mask; needed with identity checks.
        mask_notes: Sentences on how the masks were trained.
        delta: The run `full` as a delta.
    """

    base_id: str
    model_note: str
    task: NotRequired[str]
    before: BeforeRecord
    majority_baseline: Baseline
    arms: Mapping[str, ArmRecord]
    full: NotRequired[str]
    mask_notes: NotRequired[Sequence[str]]
    delta: NotRequired[DeltaRecord]


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
    "grpo-random": "the same with an equal number of weights of each tensor, at random places.",
    "grpo-matched": "the same with an equal number of weights of each tensor and each bf16 "
    "exponent, at random places: equally many small and large ones.",
    "grpo-complement": "the same with all the weights that GRPO did not change.",
}
ABOUT_SEED = (
    "GRPO of every weight again, on the same questions under another seed: how far two such runs "
    "agree."
)
MEASURES = {"grpo": "reward", "sft": "loss"}
"""The measure of learning; the loss of GRPO is near zero by construction."""

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
    "The random mask has the same number of weights in each tensor as that of GRPO, but they are "
    "larger: bf16 cannot store a small step on a large weight, and saving rounds it away. "
    "“Changed” says what was left. Whether these weights matter, or only that they are small, the "
    "matched mask shows: it has the same number of each size."
)

SETTINGS = {
    "algorithm": "algorithm",
    "steps": "trainer.max_steps",
    "seed": "seed",
    "sequences a step": "trainer.per_device_train_batch_size",
    "answers to a question": "trainer.num_generations",
    "tokens of an answer": "trainer.max_completion_length",
    "temperature": "trainer.temperature",
    "loss": "trainer.loss_type",
    "KL coefficient": "trainer.beta",
    "optimizer": "trainer.optim",
    "learning rate": "trainer.learning_rate",
    "schedule": "trainer.lr_scheduler_type",
    "beta 1": "trainer.adam_beta1",
    "beta 2": "trainer.adam_beta2",
    "epsilon": "trainer.adam_epsilon",
    "weight decay": "trainer.weight_decay",
    "gradient norm": "trainer.max_grad_norm",
    "clipped by": "optimizer.clip_by",
    "mask": "mask",
}
"""Setting on the page -> its key in `resolved.json`."""


def label_of(name: str) -> str:
    """The label of a run in tables and charts."""
    return LABELS.get(name) or f"GRPO seed {name.rpartition('-')[2]}"


def demo_record(data: Mapping[str, Any]) -> DemoRecord:
    """Everything on the page but the comparisons and identity checks.

    Args:
        data: `DemoRun.to_dict()` of `trimtab.training.demo`.
    """
    majority, runs = data["majority_baseline"], data["arms"]
    record: Any = {
        "base_id": data["origin"]["model"],
        "model_note": f"Its weights are {data['origin']['note']}: they are not bit for bit those "
        "that the model was published with.",
        "task": "one-digit addition with a verifiable reward",
        "before": _scores(data["before"]),
        "majority_baseline": {
            "correct": majority["num_correct"],
            "total": majority["num_questions"],
            "answer": str(majority["answer"]),
        },
        "arms": {label_of(name): _arm(name, run, runs["grpo"]) for name, run in runs.items()},
        "full": LABELS["grpo"],
        "mask_notes": [ON_SAMPLES, ON_RANDOM if "grpo-random" in runs else ON_CONTROLS],
    }
    if "delta" in data:
        record["delta"] = {**data["delta"], "base": data["base"]}
    demo: DemoRecord = record
    return demo


def _arm(name: str, run: Mapping[str, Any], full: Mapping[str, Any]) -> dict[str, Any]:
    result = run["record"]
    settings = flat(result["settings"])
    measure = MEASURES[settings["algorithm"]]
    shown = {
        label: settings[key] for label, key in SETTINGS.items() if settings.get(key) is not None
    }
    if "mask" in shown:
        shown["mask"] = f"{shown['mask'][:8]}…"  # a whole digest is too long for a table
    arm: dict[str, Any] = {
        **_scores(run["evaluation"]),
        "history": [{key: row[key] for key in ("step", measure)} for row in result["history"]],
        "seconds": result["seconds"]["train"],
        "loss_tokens": result["tokens"]["num_loss"],
        "settings": {
            **shown,
            **{f"{part} precision": dtype for part, dtype in result["precision"].items()},
            "forward tokens": result["tokens"]["num_forward"],
        },
        "optimizer": result["optimizer"],
    }
    if name not in ("grpo", "sft"):
        arm["about"] = ABOUT.get(name, ABOUT_SEED)
        pairs = zip(run["evaluation"]["answers"], full["evaluation"]["answers"], strict=True)
        same = [one["greedy"] == other["greedy"] for one, other in pairs]
        num, total = sum(same), len(same)
        interval = list(wilson(num / total, total))
        arm["same_answers"] = {"correct": num, "total": total, "interval": interval}
    return arm


def _scores(answers: Mapping[str, Any]) -> dict[str, Score]:
    return {
        "accuracy_greedy": {
            "correct": answers["num_greedy_correct"],
            "total": answers["num_questions"],
            "interval": answers["greedy_interval"],
        },
        "accuracy_sampled": {
            "correct": sum(answer["num_sampled_correct"] for answer in answers["answers"]),
            "total": answers["num_questions"] * answers["num_samples"],
            "interval": answers["sampled_interval"],
        },
    }
