"""The demo: three run files, the runs that they describe, and the answers of the trained models.

The run files are in `demo_runs/` and are copied into the output folder, where `trimtab train` can
also train each one separately. Finished parts are kept::

    out/base/             the base checkpoint, bf16            (origin.json)
    out/grpo.toml, …      the run files
    out/grpo/, …          the output of each run               (model/, result.json)
    out/mask.safetensors  the elements that GRPO changed
    out/evaluation.json   held-out answers of all models, as `trimtab evaluate` writes them
    out/grpo.delta        what GRPO changed in the base: with it, its checkpoint byte for byte
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from trimtab.checkpoints.checkpoint import opened
from trimtab.deltas.exchange.arc import write_arc_v2
from trimtab.deltas.exchange.index_value import write_index_value
from trimtab.deltas.exchange.slime import write_slime
from trimtab.deltas.file import DeltaFile
from trimtab.deltas.make import make_delta
from trimtab.errors import DeltaError, MaskError, ResultFormatError, SettingsError
from trimtab.inputs import MAX_RESULT_BYTES, read_json
from trimtab.masks.extract import extract_mask
from trimtab.masks.mask import Mask
from trimtab.outputs import new_file
from trimtab.processes import Interrupted
from trimtab.progress import progress_bars, stage
from trimtab.results.evaluation import Evaluation
from trimtab.training import runtime
from trimtab.training.addition import split_questions
from trimtab.training.evaluation.answering import load_tokenizer
from trimtab.training.evaluation.evaluate import evaluate
from trimtab.training.evaluation.questions import addition_questions
from trimtab.training.folders import write_json
from trimtab.training.runs.base_model import BaseModel, open_base
from trimtab.training.runs.execute import MODEL, RESULT, execute, state_of
from trimtab.training.runs.prepare import Run, Stop, prepare
from trimtab.training.runs.settings import Settings
from trimtab.training.smollm2 import export_base
from trimtab.training.sweeps.cell import derived_mask
from trimtab.training.sweeps.settings import MaskKind

if TYPE_CHECKING:
    from rich.progress import Progress

    from trimtab.results.answers import Answers

FULL = "grpo"
"""The run whose changed elements are the mask."""

MASKED: Mapping[str, MaskKind] = {
    "grpo-mask": "own",
    "grpo-random": "random",
    "grpo-matched": "matched",
    "grpo-complement": "complement",
}
"""Masked run -> which mask to derive from what `FULL` changed; see `derived_mask`."""

NUM_SAMPLES = 8
"""Sampled answers per held-out question, in addition to the greedy one."""

EVALUATION = "evaluation.json"
DELTA = f"{FULL}.delta"
OTHERS = "num_bytes_of_others"


@dataclass(frozen=True)
class TrainedRun:
    """A run of the demo.

    Attributes:
        run: The prepared run.
        result: Its `result.json`.
        mask: File of the mask that it was restricted to; None if it trained every weight.
        answers: Its answers to the held-out questions.
        num_prompt_tokens: Tokens of each prompt.
    """

    run: Run
    result: Mapping[str, Any]
    mask: Path | None
    answers: Answers
    num_prompt_tokens: int

    @property
    def folder(self) -> Path:
        """The trained checkpoint."""
        return self.run.output / MODEL

    @property
    def tokens(self) -> dict[str, int]:
        """Number of tokens in forward and backward passes, and of those with a loss."""
        num_sequences = self.result["steps"] * self.run.args.per_device_train_batch_size
        forward = self.result["num_input_tokens"]
        return {
            "num_sequences": num_sequences,
            "num_prompt_tokens_each": self.num_prompt_tokens,
            "num_forward": forward,
            "num_loss": forward - num_sequences * self.num_prompt_tokens,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        settings = self.run.settings()
        return {
            "folder": str(self.folder),
            "mask": None if self.mask is None else str(self.mask),
            "record": {**self.result, "settings": settings, "tokens": self.tokens},
            "evaluation": self.answers.to_dict(),
        }


@dataclass(frozen=True)
class DemoRun:
    """The results of the demo.

    Attributes:
        base: Folder of the base checkpoint.
        origin: Its record: where the weights come from and how they were converted.
        evaluation: The held-out questions, with the answers of the base and of the runs.
        runs: The trained runs by name; full-model runs come first.
        num_train_questions: Number of questions that the runs were trained on.
        delta: The delta of `FULL`: `path`, `num_bytes`, `num_bytes_whole` of its checkpoint, and
            `num_bytes_of_others`: format of others → bytes.
    """

    base: Path
    origin: Mapping[str, Any]
    evaluation: Evaluation
    runs: Mapping[str, TrainedRun]
    num_train_questions: int
    delta: Mapping[str, Any]

    @property
    def before(self) -> Answers:
        """Answers of the base."""
        answers = self.evaluation.models[0].answers
        assert answers is not None
        return answers

    @property
    def majority(self) -> Mapping[str, Any]:
        """Score of the best constant answer."""
        questions = self.evaluation.questions
        baseline = None if questions is None else questions.baseline()
        assert baseline is not None
        return baseline

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        assert self.evaluation.questions is not None
        return {
            "base": str(self.base),
            "origin": dict(self.origin),
            "num_train_questions": self.num_train_questions,
            "heldout": [row.prompt for row in self.evaluation.questions.rows],
            "majority_baseline": dict(self.majority),
            "before": self.before.to_dict(),
            "arms": {name: run.to_dict() for name, run in self.runs.items()},
            "seconds": {
                name: sum(run.result["seconds"].values()) for name, run in self.runs.items()
            },
            "delta": dict(self.delta),
        }


def run_files(steps: int = 20, seed: int = 0, *, controls: bool = False) -> dict[str, str]:
    """Return the text of each run file by name of the run, in training order.

    All except `sft` are GRPO on the same questions; masked runs differ only in the mask.

    Args:
        steps: Optimizer steps of each run.
        seed: Seed for the held-out questions, their order, and the sampling.
        controls: Add the control masks, and full-model `grpo` with the next seed.
    """
    grpo, sft, mask = (
        _with(
            files("trimtab.training").joinpath("demo_runs", f"{name}.toml").read_text("utf-8"),
            seed=seed,
            max_steps=steps,
        )
        for name in (FULL, "sft", "grpo-mask")
    )
    runs = {FULL: grpo, "sft": sft}
    if controls:
        other = (seed + 1) % 2**32
        name = f"grpo-seed-{other}"
        again = _with(grpo, output=name, seed=other)
        runs[name] = again.replace("[data]\n", f"[data]\nseed = {seed}\n")
    runs["grpo-mask"] = mask
    if controls:
        for name, kind in list(MASKED.items())[1:]:
            runs[name] = _with(mask, output=name, mask=f"mask-{kind}.safetensors")
    return runs


def _with(text: str, **values: str | int) -> str:
    """A run file with other values of some keys."""
    for key, value in values.items():
        shown = f'"{value}"' if isinstance(value, str) else str(value)
        text, num = re.subn(rf'(?m)^{key} = ("[^"]*"|\S+)', f"{key} = {shown}", text, count=1)
        assert num, f"the file has no {key}"
    return text


def train_demo(
    out: str | Path,
    *,
    controls: bool = False,
    steps: int = 20,
    seed: int = 0,
    progress: Progress | None = None,
    stop: Stop = lambda: False,
    make_base: Callable[[Path], dict[str, Any]] = export_base,
) -> DemoRun:
    """Make the base, train the runs, and evaluate all models on the held-out questions.

    The next call resumes an interrupted one; finished runs are kept.

    Args:
        out: Output folder.
        controls: Also train the controls of the mask.
        steps: Optimizer steps of each run.
        seed: Seed for the held-out questions, their order, and the sampling.
        progress: A running display to add lines to; by default a new one on stderr.
        stop: Called after every step; returns whether to stop.
        make_base: Makes the base in a folder and returns its record.

    Raises:
        SettingsError: Steps or seed are out of range.
        MissingExtraError: The train extra or the package of the model is not installed.
        OutputExistsError: `out` holds a run with other settings.
        CheckpointError: A folder in `out` differs from what an earlier call wrote.
        MaskError: GRPO changed nothing, so there is nothing to retrain.
        Interrupted: `stop` returned True.
    """
    if steps < 1:
        raise SettingsError(f"steps is {steps}, expected at least 1")
    runtime.start()
    out = Path(out)
    wanted = run_files(steps, seed, controls=controls)
    bases: dict[Path, BaseModel] = {}
    runs: dict[str, tuple[Run, Mapping[str, Any]]] = {}
    with ExitStack() as stack:
        bars = progress or stack.enter_context(progress_bars())
        with stage(bars, "base: de-quantise, save as bf16"):
            origin = make_base(out / "base")
        # Also check runs that are not requested: the folder holds one demo. Masks do not exist yet.
        for name, text in run_files(steps, seed, controls=True).items():
            if name not in MASKED:
                state_of(prepare(Settings.of(out / f"{name}.toml", tomllib.loads(text)), bases))
        for name, text in wanted.items():
            if stop():
                raise Interrupted(f"the same command resumes with {name}")
            path = out / f"{name}.toml"
            with new_file(path, force=True) as file:
                file.write(text.encode())
            if name in MASKED and not MASKED.keys() & runs.keys():
                with stage(bars, "mask: what GRPO changed"):
                    _make_masks(out, [MASKED[n] for n in wanted if n in MASKED], seed)
            run = prepare(Settings.read(path), bases)
            is_finished = state_of(run) == "finished"
            runs[name] = (
                run,
                _json(run.output / RESULT) if is_finished else execute(run, bars, stop=stop),
            )
        if stop():
            raise Interrupted("the same command resumes with the held-out questions")
        models = [run.output / MODEL for run, _ in runs.values()]
        evaluation = _evaluation(out, models, seed, bars)
        with stage(bars, "delta: what GRPO changed, as a file"):
            delta = _delta(out)
    train = split_questions(seed).train
    tokenizer = load_tokenizer(out / "base")
    num_prompt_tokens = max(len(tokenizer(q.prompt)["input_ids"]) for q in train)
    trained = {}
    for (name, (run, result)), model in zip(runs.items(), evaluation.models[1:], strict=True):
        mask = out / run.file.mask if name in MASKED else None
        assert model.answers is not None
        trained[name] = TrainedRun(run, result, mask, model.answers, num_prompt_tokens)
    return DemoRun(out / "base", origin, evaluation, trained, len(train), delta)


def _make_masks(out: Path, kinds: list[MaskKind], seed: int) -> None:
    """Derive masks from what `FULL` changed and save those whose file is missing or different."""
    changed = extract_mask(out / "base", out / FULL / MODEL, changed="bits")
    if not changed.num_selected():
        raise MaskError(f"{out / FULL} is the base bit for bit, so there is no mask: train longer")
    for kind in kinds:
        path = out / ("mask.safetensors" if kind == "own" else f"mask-{kind}.safetensors")
        mask = derived_mask(kind, changed, out / "base", seed)
        if not _holds(path, mask):
            mask.save(path, force=True)


def _holds(path: Path, mask: Mask) -> bool:
    try:
        return path.exists() and Mask.load(path) == mask
    except MaskError:
        return False  # damaged: written again


def _evaluation(out: Path, models: list[Path], seed: int, bars: Progress) -> Evaluation:
    """Evaluate the base and the models, unless the stored evaluation is of the same weights.

    The saved bf16 weights are evaluated, so accuracy and sparsity refer to the same file.
    """
    path = out / EVALUATION
    checkpoints = [out / "base", *models]
    questions = addition_questions(split_questions(seed).heldout, seed=seed)
    if path.exists():
        known = Evaluation.from_dict(_json(path))
        hashes = [open_base(str(model), Path()).record.content_hash for model in checkpoints]
        if (
            [model.record.content_hash for model in known.models] == hashes
            and known.questions is not None
            and dict(known.questions.record) == questions.describe()
            and known.settings["seed"] == seed
        ):
            return known
    evaluation = evaluate(
        list(map(str, checkpoints)),
        questions=questions,
        num_samples=NUM_SAMPLES,
        dtype="bf16",
        batch_size=len(questions) * NUM_SAMPLES,
        seed=seed,
        progress=bars,
    )
    write_json(path, evaluation.to_dict())
    return evaluation


def _delta(out: Path) -> dict[str, Any]:
    """Write the checkpoint of `FULL` as a delta, unless the file is there already."""
    path, folders = out / DELTA, (out / "base", out / FULL / MODEL)
    hashes = [open_base(str(folder), Path()).record.content_hash for folder in folders]
    manifest = None
    if path.exists():
        with suppress(DeltaError), DeltaFile(path) as delta:  # damaged: written again
            ends = delta.manifest.base, delta.manifest.result
            if [record.content_hash for record in ends] == hashes:
                manifest = delta.manifest
    if manifest is None:
        manifest = make_delta(*folders, path, force=True)
    record: dict[str, Any] = {
        "path": str(path),
        "num_bytes": path.stat().st_size,
        "num_bytes_whole": manifest.num_bytes,
    }
    with suppress(OSError, ResultFormatError):
        before = _json(out / "demo.json").get("delta", {})
        if before.get("num_bytes") == record["num_bytes"] and OTHERS in before:
            return {**record, OTHERS: before[OTHERS]}
    return {**record, OTHERS: _sizes_of_others(*folders)}


def _sizes_of_others(base: Path, tuned: Path) -> dict[str, int]:
    """Bytes that the change takes in formats of others, which are written and removed again."""
    with TemporaryDirectory() as scratch, opened(base, tuned) as (before, after):
        folder = Path(scratch)
        return {
            "Fireworks arc_v2": write_arc_v2(before, after, folder / "arc_v2").num_bytes,
            "slime, XOR": write_slime(before, after, folder / "slime").num_bytes,
            "indices and values": write_index_value(before, after, folder / "pairs").num_bytes,
        }


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = read_json(path, ResultFormatError, limit=MAX_RESULT_BYTES)
    return content
