"""`mask = "auto"`: find the mask of a run in its own first steps, or in a probe before them.

With `probe = "adamw"` everything is trained by a sparse optimizer until the set of elements that
differ from the base settles. Then the last checkpoint is rewritten as one of masked training: the
selected elements keep weights, masters and moments, all others return to the base, and the run
resumes from it. The state of everything is read from the checkpoint one tensor at a time, after its
trainer has been freed. With `probe = "gradients"` nothing is trained: absolute gradients are summed
for some steps, the largest are selected, and the run starts from the base.
"""

from __future__ import annotations

import shutil
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.elements.counts import percent
from trimtab.errors import SettingsError
from trimtab.masks.header import provenance_of
from trimtab.masks.mask import Mask
from trimtab.outputs import new_folder
from trimtab.progress import note, stage
from trimtab.training.folders import last_checkpoint, read_json
from trimtab.training.masked_checkpoint import MASK_FILE, RECORD_FILE, write_beside_weights
from trimtab.training.runs.base_model import load_model_of
from trimtab.training.runs.prepare import Run, Stop, build_trainer, follow
from trimtab.training.runs.settings import Settings
from trimtab.training.runs.trainer_arguments import CHECKPOINTS
from trimtab.training.runtime import PeakMemory, give_back_unused
from trimtab.words import first_few

if TYPE_CHECKING:
    from rich.progress import Progress

EXPLORED = "explored"
"""Folder of the probe in the folder of the run; removed when the probe is over."""

FOUND = "mask.safetensors"
"""File of the mask, in the folder of the run."""

MOST = 0.5
"""Density of a mask above which the user is notified that it selects most of the model."""

REWRITTEN = {"optimizer.pt", "scheduler.pt", MASK_FILE, RECORD_FILE}


def find_mask(run: Run, bars: Progress, stop: Stop) -> Mask:
    """Find the mask of a run, or read the one that an earlier call found.

    Returns:
        The mask, whose provenance records how it was found and the peak memory.

    Raises:
        SettingsError: Nothing moved, or the run is too short.
        KeyboardInterrupt: `stop` returned True.
    """
    path = run.output / FOUND
    if not path.exists():
        missing = [name for name in run.base.shapes if name not in run.base.tensors]
        if missing:
            raise SettingsError(
                f"auto: the checkpoint does not store {first_few(missing)} under this name, so "
                'changes of it cannot be measured: use mask = "random:…" or a file'
            )
        probe = {"adamw": _explore, "gradients": _sum_gradients}[run.file.auto.probe]
        mask = probe(run, bars, stop)
        give_back_unused()  # the trainer of the probe is part of a reference cycle
        if not mask.num_selected():
            raise SettingsError(
                f"auto: nothing moved in {run.file.auto.steps} steps: use more steps, or a higher "
                "learning rate"
            )
        if run.file.auto.probe == "adamw":
            _rewrite_checkpoint(run, mask)
            give_back_unused()  # the optimizer state of all elements
        mask.save(path)
    shutil.rmtree(run.output / EXPLORED, ignore_errors=True)
    mask = Mask.load(path)
    for sentence in notes_of(mask, run.file):
        note(bars, sentence)
    return mask


def notes_of(mask: Mask, file: Settings) -> list[str]:
    """Warnings about a mask that a run found."""
    auto = file.auto
    if file.mask != "auto" or auto.probe != "adamw":
        return []
    step, notes = mask.provenance["steps"][-1], []
    share, after = step["looks"][-1]["share_new"], step["after_steps"]
    if share is None:
        notes.append(
            f"auto: there was one look, after {after} steps, so it is not known whether the set of "
            "moved elements has settled: set auto.every below auto.steps"
        )
    elif share and share >= auto.settle:
        notes.append(
            f"auto: the set of moved elements had not settled after {after} steps: "
            f"{percent(share, 1)} of it is new since the previous look (auto.settle: "
            f"{percent(auto.settle, 1)}). Elements that would move later stay at the base: raise "
            "auto.steps"
        )
    if mask.density > MOST:
        notes.append(
            f"auto: the mask selects {percent(mask.num_selected(), mask.num_elements())} of the "
            "weights, which is most of the model: lower the learning rate or auto.steps, or set "
            'probe = "gradients" and a density'
        )
    return notes


def _explore(run: Run, bars: Progress, stop: Stop) -> Mask:
    """Train everything until the set of moved elements settles; return it as the mask."""
    from trimtab.training.auto_mask import nearly_all

    auto, output = run.file.auto, run.output / EXPLORED
    looks = _Looks(run)
    if not looks.is_over(last_checkpoint(output)):
        name = f"{run.algorithm.name}: find the mask"
        with open_checkpoint(run.base.folder) as stored, stage(bars, name, auto.steps) as line:
            callbacks = [follow(run, line, stop, auto.steps), looks.callback(stored.tensors, bars)]
            trainer, _ = build_trainer(run, nearly_all(run.base.shapes), output, callbacks)
            peak = PeakMemory(trainer.args.device)
            checkpoint = last_checkpoint(output)
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            looks.peak_memory = peak.read()
            if not looks.is_over(last_checkpoint(output)):
                raise KeyboardInterrupt
    return looks.mask(_step_of(last_checkpoint(output)))


class _Looks:
    """The moved elements at each look, stored on disk to survive an interruption."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._auto = run.file.auto
        self.peak_memory: dict[str, Any] | None = None

    def callback(self, stored: Any, bars: Progress) -> Any:
        """A Trainer callback that records the moved elements, and ends the probe."""
        from transformers import TrainerCallback

        from trimtab.training.auto_mask import moved_elements

        auto, looks = self._auto, self

        class Look(TrainerCallback):  # type: ignore[misc]
            def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.max_steps <= auto.steps:
                    raise SettingsError(
                        f"auto.steps is {auto.steps}, and the run has {state.max_steps}: nothing "
                        "would be left to train with the mask"
                    )

            def on_step_end(
                self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
            ) -> None:
                done = state.global_step
                if done % auto.every and done < auto.steps:
                    return
                tensors = looks._run.base.tensors
                parameters = dict(model.named_parameters())
                named = looks._run.base.layout_of(model).tensors(parameters)
                moved_elements(named, stored, tensors, {}).save(looks._path(done), force=True)
                note(bars, looks.sentence(done))
                if looks._settled_at(done):
                    control.should_save = control.should_training_stop = True

        return Look()

    def sentence(self, done: int) -> str:
        """Describe the look after a step."""
        look = self._look(done)
        moved = percent(look["num_moved"], sum(map(prod, self._run.base.shapes.values())))
        new = ""
        if look["share_new"] is not None:
            limit = percent(self._auto.settle, 1)
            share = percent(look["share_new"], 1)
            new = f", {share} of them since the previous look (limit: {limit})"
        return f"auto: after {done} steps {moved} of the weights had moved{new}"

    def is_over(self, checkpoint: Path | None) -> bool:
        """Whether the probe ended at a checkpoint."""
        return checkpoint is not None and self._settled_at(_step_of(checkpoint))

    def mask(self, last: int) -> Mask:
        """The mask of the last look, with all looks in its provenance."""
        mask = Mask.load(self._path(last))
        step = {
            "step": "moved",
            "criterion": "bits",
            "base": self._run.base.record.id,
            "algorithm": self._run.algorithm.name,
            "after_steps": last,
            "looks": [self._look(done) for done in self._steps(last)],
            "peak_memory": self.peak_memory,
        }
        return mask.with_provenance(**provenance_of([step]))

    def _settled_at(self, done: int) -> bool:
        if not self._path(done).exists():
            return False
        share = self._look(done)["share_new"]
        return done >= self._auto.steps or (share is not None and share < self._auto.settle)

    def _look(self, done: int) -> dict[str, Any]:
        from trimtab.training.auto_mask import share_new

        now = Mask.load(self._path(done))
        earlier = [step for step in self._steps(done) if step < done]
        before = Mask.load(self._path(earlier[-1])) if earlier else None
        return {
            "after_steps": done,
            "num_moved": now.num_selected(),
            "share_new": None if before is None else share_new(before, now),
        }

    def _steps(self, last: int) -> list[int]:
        """Steps of all looks up to `last`."""
        auto = self._auto
        steps = [*range(auto.every, auto.steps, auto.every), auto.steps]
        return [step for step in steps if step <= last]

    def _path(self, done: int) -> Path:
        return self._run.output / EXPLORED / f"moved-{done}.safetensors"


def _rewrite_checkpoint(run: Run, mask: Mask) -> None:
    """Rewrite the last checkpoint of the probe as one of masked training."""
    import torch

    from trimtab.training.auto_mask import nearly_all, put_back, select_state
    from trimtab.training.layout import Layout

    old = last_checkpoint(run.output / EXPLORED)
    assert old is not None, "the probe ends with a checkpoint"
    new = run.output / CHECKPOINTS / old.name
    shutil.rmtree(new, ignore_errors=True)  # left by a call that ended before it saved the mask
    with new_folder(new) as draft:
        model = load_model_of(old, run.dtype)
        layout = run.base.layout_of(model)
        with open_checkpoint(run.base.folder) as stored, torch.no_grad():
            put_back(dict(model.named_parameters()), layout, stored.tensors, mask)
        model.save_pretrained(draft)
        for file in old.iterdir():
            if file.name not in REWRITTEN and not (draft / file.name).exists():
                shutil.copy2(file, draft / file.name)
        saved = torch.load(old / "optimizer.pt", mmap=True, weights_only=True)
        wide = layout.in_memory(nearly_all(run.base.shapes))
        mask = Layout.of(model).in_files(mask)  # as masked training will have it
        narrow = select_state(saved, wide, layout.in_memory(mask))
        torch.save(narrow, draft / "optimizer.pt")
        schedule = torch.load(old / "scheduler.pt", weights_only=True)
        torch.save(_for_groups(schedule, len(narrow["param_groups"])), draft / "scheduler.pt")
        record = read_json(old / RECORD_FILE)
        keys = ("settings", "base", "trainer", "step", "versions")
        write_beside_weights(draft, mask, {key: record[key] for key in keys})


def _for_groups(schedule: dict[str, Any], num_groups: int) -> dict[str, Any]:
    """The state of a learning-rate schedule for fewer parameter groups with the same rate."""
    return {
        key: value[:num_groups] if isinstance(value, list) else value
        for key, value in schedule.items()
    }


def _sum_gradients(run: Run, bars: Progress, stop: Stop) -> Mask:
    """Sum absolute gradients at the base; return the mask of the largest."""
    import torch
    from transformers.trainer_utils import SaveStrategy

    from trimtab.training.auto_mask import GradientSums

    auto = run.file.auto
    assert auto.density is not None, "the run file was checked for it"
    with stage(bars, f"{run.algorithm.name}: find the mask", auto.steps) as line:
        trainer, _ = build_trainer(run, None, run.output / EXPLORED, [follow(run, line, stop)])
        trainer.args.max_steps = auto.steps
        trainer.args.max_grad_norm = 0.0
        trainer.args.save_strategy = SaveStrategy.NO
        sums = GradientSums(trainer.model.named_parameters())
        # Gradients are freed by the hooks, so this never changes a parameter.
        trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.0)
        peak = PeakMemory(trainer.args.device)
        trainer.train()
        if trainer.state.global_step < auto.steps:
            raise KeyboardInterrupt
        sums.close()
        step = {
            "step": "largest gradients",
            "base": run.base.record.id,
            "algorithm": run.algorithm.name,
            "after_steps": auto.steps,
            "density": auto.density,
            "peak_memory": peak.read(),
        }
        mask = sums.largest(auto.density, provenance_of([step]))
        return run.base.layout_of(trainer.model).in_files(mask).with_base(run.base.tensors)


def _step_of(checkpoint: Path | None) -> int:
    assert checkpoint is not None
    return int(checkpoint.name.rpartition("-")[2])
