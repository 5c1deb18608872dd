"""The demo's training half: one base, and the arms that are trained from it.

Every stage leaves its result in the output folder and is skipped when it is there::

    out/base/             the base checkpoint, bf16            (origin.json)
    out/grpo/, out/sft/   the trained checkpoints, bf16        (run.json)
    out/mask.safetensors  what GRPO changed
    out/grpo-mask/        trained again, only there            (run.json)
    out/evaluation.json   held-out answers of all of them
    out/.work/            Trainer checkpoints of an unfinished arm
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from trimtab.errors import CheckpointError
from trimtab.masks.mask import Mask
from trimtab.progress import progress_bars, stage
from trimtab.results.answers import Answers
from trimtab.results.evaluation import MajorityBaseline, majority_baseline
from trimtab.results.schema import from_plain
from trimtab.training import runtime
from trimtab.training.addition import Question
from trimtab.training.arm import check_settings, train_arm
from trimtab.training.demo_arms import ARMS, DemoArm, demo_arms, demo_masks, mask_file
from trimtab.training.evaluation.answering import ask, load_model, load_tokenizer
from trimtab.training.evaluation.questions import addition_questions
from trimtab.training.folders import read_json, write_json
from trimtab.training.recipe import Recipe
from trimtab.training.smollm2 import export_base

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["ArmResult", "DemoRun", "train_demo"]

NUM_SAMPLES = 8
"""Sampled answers to each held-out question, beside the greedy one."""

_EVALUATION = "evaluation.json"
_EVALUATION_VERSION = 2
"""History: 1 had no `ended`, and no number."""
_WORK = ".work"


@dataclass(frozen=True)
class ArmResult:
    """A trained arm of the demo.

    Attributes:
        algorithm: `grpo` or `sft`.
        folder: The trained checkpoint.
        mask: The file of the mask that it trained only; None if it trained every weight.
        record: Its `run.json`: settings, precision, optimizer, tokens, history, seconds, versions,
            device.
        answers: To the held-out questions.
    """

    algorithm: str
    folder: Path
    mask: Path | None
    record: Mapping[str, Any]
    answers: Answers

    @property
    def num_forward_tokens(self) -> int:
        """Tokens that went forward and backward in training, prompts included."""
        return int(self.record["tokens"]["num_forward"])

    @property
    def num_loss_tokens(self) -> int:
        """Completion tokens: those that the loss is taken on."""
        return int(self.record["tokens"]["num_loss"])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "folder": str(self.folder),
            "mask": None if self.mask is None else str(self.mask),
            "record": dict(self.record),
            "evaluation": self.answers.to_dict(),
        }


@dataclass(frozen=True)
class DemoRun:
    """What the demo trained and measured.

    Attributes:
        base: Folder of the base checkpoint.
        origin: Its record: where the weights come from and what was done to them.
        before: Answers of the base to the held-out questions.
        heldout: The held-out questions.
        majority: What the best constant answer scores on them.
        arms: The trained arms, by name; those of every weight come first.
        seconds: Wall time of each stage in this call; one that was finished before takes no time.
        num_train_questions: Questions that the arms were trained on.
    """

    base: Path
    origin: Mapping[str, Any]
    before: Answers
    heldout: tuple[Question, ...]
    majority: MajorityBaseline
    arms: Mapping[str, ArmResult]
    seconds: Mapping[str, float]
    num_train_questions: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "base": str(self.base),
            "origin": dict(self.origin),
            "num_train_questions": self.num_train_questions,
            "heldout": list(map(str, self.heldout)),
            "majority_baseline": self.majority.to_dict(),
            "before": self.before.to_dict(),
            "arms": {name: arm.to_dict() for name, arm in self.arms.items()},
            "seconds": dict(self.seconds),
        }


def train_demo(
    out: str | Path,
    *,
    arms: Sequence[str] = ARMS,
    controls: bool = False,
    steps: int = 20,
    seed: int = 0,
    progress: Progress | None = None,
    make_base: Callable[[Path], dict[str, Any]] = export_base,
) -> DemoRun:
    """Make the base, train the arms, and ask all of them the held-out questions.

    Can be interrupted at any time and called again with the same arguments: finished stages are
    kept and an unfinished arm goes on from its last checkpoint.

    Args:
        out: Output folder; made if it does not exist.
        arms: Which arms to train, any of `ARMS`; `grpo-mask` needs `grpo`.
        controls: Train the controls of the mask, too: as many weights at random places, as many of
            each size, all that are not in it, and every weight under the next seed.
        steps: Optimizer steps of each arm.
        seed: Of the split, the order of the questions and the sampling.
        progress: A running rich progress display to add lines to; by default an own one on
            stderr, which is silent where that is no terminal.
        make_base: Makes the base checkpoint in a folder, or returns the record of a finished one.

    Returns:
        Folders, accuracies, token counts and times.

    Raises:
        SettingsError: An unknown arm, one that needs another, or steps or seed out of range.
        MissingExtraError: The train extra or the package of the model is not installed.
        OutputExistsError: `out` holds a run with other settings.
        CheckpointError: A folder in `out` is not what an earlier call wrote.
        MaskError: GRPO changed nothing, so there is nothing to retrain.
    """
    recipe = Recipe(steps=steps, seed=seed)
    wanted = demo_arms(recipe, arms, controls=controls)
    runtime.start()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    split = recipe.split()
    with ExitStack() as stack:
        bars = progress or stack.enter_context(progress_bars())
        run = _Run(out, recipe, split.heldout, bars)
        origin = run.base(make_base)
        # Also of arms that are not asked for: `out` is one run. Those in a mask wait for it.
        for arm in demo_arms(recipe, controls=True):
            if arm.mask is None:
                run.check(arm, origin)
        before = run.answers("base", origin)
        results = {}
        masks: dict[str, Mask] = {}
        for arm in wanted:
            if arm.mask is not None and not masks:
                masks = run.masks([other.mask for other in wanted if other.mask is not None])
            mask = None if arm.mask is None else masks[arm.mask]
            record = run.arm(arm, origin, mask)
            results[arm.name] = ArmResult(
                arm.algorithm,
                out / arm.name,
                None if arm.mask is None else mask_file(out, arm.mask),
                record,
                run.answers(arm.name, record),
            )
        run.clear()
    return DemoRun(
        base=out / "base",
        origin=origin,
        before=before,
        heldout=split.heldout,
        majority=majority_baseline(question.answer for question in split.heldout),
        arms=results,
        seconds=run.seconds,
        num_train_questions=len(split.train),
    )


@dataclass
class _Run:
    """The stages of one call, with their progress lines and times."""

    out: Path
    recipe: Recipe
    heldout: Sequence[Question]
    bars: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    def work(self, arm: DemoArm) -> Path:
        return self.out / _WORK / arm.name

    def clear(self) -> None:
        """Remove the folder of unfinished state, unless another arm still has some there."""
        work = self.out / _WORK
        if work.is_dir() and not any(work.iterdir()):
            work.rmdir()

    def base(self, make_base: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        with self._timed("base"), stage(self.bars, "base: de-quantise, save as bf16"):
            return make_base(self.out / "base")

    def check(self, arm: DemoArm, origin: Mapping[str, Any]) -> None:
        """Refuse what another run left of an arm that trains every weight."""
        check_settings(arm.algorithm, arm.recipe, origin, self.out / arm.name, self.work(arm))

    def masks(self, wanted: Sequence[str]) -> dict[str, Mask]:
        with self._timed("masks"), stage(self.bars, "mask: what GRPO changed"):
            return demo_masks(self.out, wanted, self.recipe.seed)

    def arm(self, arm: DemoArm, origin: Mapping[str, Any], mask: Mask | None) -> dict[str, Any]:
        with (
            self._timed(arm.name),
            stage(self.bars, f"{arm.name}: train", arm.recipe.steps) as line,
        ):
            return train_arm(
                arm.algorithm,
                arm.recipe,
                self.out / "base",
                origin,
                self.out / arm.name,
                self.work(arm),
                mask=mask,
                on_step=line.step,
            )

    def answers(self, name: str, record: Mapping[str, Any]) -> Answers:
        """The answers of one checkpoint; kept ones count for the same weights and seed only."""
        path = self.out / _EVALUATION
        try:
            kept = read_json(path)
        except FileNotFoundError:
            kept = {}
        except ValueError as error:
            raise CheckpointError(f"{path} is not JSON ({error}): delete it") from error
        key = {
            "version": _EVALUATION_VERSION,
            "weights": record["weights"]["xxh3_128"],
            "seed": self.recipe.seed,
        }
        entry = kept.get(name, {})
        if {field: entry.get(field) for field in key} == key:
            told = {field: value for field, value in entry.items() if field not in key}
            return from_plain(Answers, told, what=f"entry {name} of {path}")
        with self._timed(f"{name}: evaluation"), stage(self.bars, f"{name}: held-out questions"):
            answers = self._ask(self.out / name)
        write_json(path, {**kept, name: {**key, **answers.to_dict()}})
        return answers

    def _ask(self, checkpoint: Path) -> Answers:
        """Ask the saved bf16 weights, not the fp32 ones of the trainer.

        The accuracy then belongs to the same file as the sparsity.
        """
        questions = replace(
            addition_questions(self.heldout),
            max_completion_length=self.recipe.max_completion_tokens,
        )
        with runtime.quiet():
            return ask(
                load_model(checkpoint, "bf16", "cpu"),
                load_tokenizer(checkpoint),
                questions,
                seed=self.recipe.seed,
                num_samples=NUM_SAMPLES,
                batch_size=len(self.heldout) * NUM_SAMPLES,
            )

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = perf_counter()
        yield
        self.seconds[name] = perf_counter() - started
