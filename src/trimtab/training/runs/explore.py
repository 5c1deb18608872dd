"""`mask = "auto"`: find the mask of a run in its own first steps, or in a probe before them.

With `probe = "adamw"` everything is trained, with masters and running means as masked training
keeps them, until the set of elements that differ from the base settles. Then the last checkpoint of
that phase is rewritten as one of masked training: the chosen elements keep weights, masters and
running means, all others the base. The run goes on from it, and its learning rate, data and random
state know of no break. Nothing is ever held twice: the wide state is read from the checkpoint, one
tensor at a time, when the trainer that made it is gone.

With `probe = "gradients"` nothing is trained: absolute gradients are summed for some steps, one
fp32 number for each element, and the largest are taken. The run then starts from the base.
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
"""Folder of the first phase, in the folder of the run; gone when it is over."""

FOUND = "mask.safetensors"
"""The mask that was found, in the folder of the run."""

MOST = 0.5
"""Density of a mask from which on it is told that it takes most of the model."""

WRITTEN_ANEW = {"optimizer.pt", "scheduler.pt", MASK_FILE, RECORD_FILE}


def find_mask(run: Run, bars: Progress, stop: Stop) -> Mask:
    """Find the mask of a run, or read the one that an earlier call found.

    Returns:
        The mask, whose provenance says how it was found and what memory that took.

    Raises:
        SettingsError: Nothing moved, or the run is too short.
        KeyboardInterrupt: It was asked to stop.
    """
    path = run.output / FOUND
    if not path.exists():
        missing = [name for name in run.base.shapes if name not in run.base.tensors]
        if missing:
            raise SettingsError(
                f"auto: the checkpoint does not store {first_few(missing)} under this name, so "
                'what moves in it cannot be told: use mask = "random:…" or a file'
            )
        probe = {"adamw": _explore, "gradients": _sum_gradients}[run.file.auto.probe]
        mask = probe(run, bars, stop)
        give_back_unused()  # the trainer of this phase, which it and its callbacks hold in a ring
        if not mask.num_selected():
            raise SettingsError(
                f"auto: nothing moved in {run.file.auto.steps} steps: take more of them, or a "
                "higher learning rate"
            )
        if run.file.auto.probe == "adamw":
            _go_over(run, mask)
            give_back_unused()  # the state of everything
        mask.save(path)
    shutil.rmtree(run.output / EXPLORED, ignore_errors=True)
    mask = Mask.load(path)
    for sentence in notes_of(mask, run.file):
        note(bars, sentence)
    return mask


def notes_of(mask: Mask, file: Settings) -> list[str]:
    """What a person should know of a mask that a run found, before its figures are believed."""
    auto = file.auto
    if file.mask != "auto" or auto.probe != "adamw":
        return []
    step, notes = mask.provenance["steps"][-1], []
    share, after = step["looks"][-1]["share_new"], step["after_steps"]
    if share is None:
        notes.append(
            f"auto: it was looked once, after {after} steps, so whether what moves had settled is "
            "not known: set auto.every below auto.steps"
        )
    elif share and share >= auto.settle:
        notes.append(
            f"auto: what moves had not settled after {after} steps: {percent(share, 1)} of it had "
            f"not moved at the look before (auto.settle: {percent(auto.settle, 1)}). What moves "
            "first from now on stays at the base: raise auto.steps"
        )
    if mask.density > MOST:
        notes.append(
            f"auto: the mask takes {percent(mask.num_selected(), mask.num_elements())} of the "
            "weights, so it is nearly the whole model that is trained: lower the learning rate or "
            'auto.steps, or set probe = "gradients" and a density'
        )
    return notes


def _explore(run: Run, bars: Progress, stop: Stop) -> Mask:
    """Train everything until the set of moved elements settles; the mask is that set."""
    from trimtab.training.auto_mask import nearly_all

    auto, work = run.file.auto, run.output / EXPLORED
    looks = _Looks(run)
    if not looks.is_over(last_checkpoint(work)):
        name = f"{run.algorithm.name}: find the mask"
        with open_checkpoint(run.base.folder) as stored, stage(bars, name, auto.steps) as line:
            callbacks = [follow(run, line, stop, auto.steps), looks.callback(stored.tensors, bars)]
            trainer, _ = build_trainer(run, nearly_all(run.base.shapes), work, callbacks)
            peak = PeakMemory(trainer.args.device)
            checkpoint = last_checkpoint(work)
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            looks.peak_memory = peak.read()
            if not looks.is_over(last_checkpoint(work)):
                raise KeyboardInterrupt
    return looks.mask(_step_of(last_checkpoint(work)))


class _Looks:
    """What had moved at each look, kept on disk so that an interrupted phase knows it, too."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._auto = run.file.auto
        self.peak_memory: dict[str, Any] | None = None

    def callback(self, stored: Any, bars: Progress) -> Any:
        """A Trainer callback that looks, says what it saw, and ends the phase."""
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
                here = looks._run.base.layout_of(model).tensors(parameters)
                now = moved_elements(here, stored, tensors, {})
                now.save(looks._path(done), force=True)
                note(bars, looks.sentence(done))
                if looks._settled_at(done):
                    control.should_save = control.should_training_stop = True

        return Look()

    def sentence(self, done: int) -> str:
        """What there was to see at a step."""
        look = self._look(done)
        moved = percent(look["num_moved"], sum(map(prod, self._run.base.shapes.values())))
        new = ""
        if look["share_new"] is not None:
            limit = percent(self._auto.settle, 1)
            new = f", {percent(look['share_new'], 1)} of it since the look before (limit: {limit})"
        return f"auto: after {done} steps {moved} of the weights had moved{new}"

    def is_over(self, checkpoint: Path | None) -> bool:
        """Whether the phase ended at a checkpoint."""
        return checkpoint is not None and self._settled_at(_step_of(checkpoint))

    def mask(self, last: int) -> Mask:
        """What had moved at the last look, with all looks in its provenance."""
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
        """The steps of all looks up to one."""
        auto = self._auto
        steps = [*range(auto.every, auto.steps, auto.every), auto.steps]
        return [step for step in steps if step <= last]

    def _path(self, done: int) -> Path:
        return self._run.output / EXPLORED / f"moved-{done}.safetensors"


def _go_over(run: Run, mask: Mask) -> None:
    """Rewrite the last checkpoint of the first phase as one of masked training."""
    import torch

    from trimtab.training.auto_mask import nearly_all, put_back, select_state
    from trimtab.training.layout import Layout

    old = last_checkpoint(run.output / EXPLORED)
    assert old is not None, "the phase ends with a checkpoint"
    new = run.output / CHECKPOINTS / old.name
    shutil.rmtree(new, ignore_errors=True)  # left by a call that ended before it kept the mask
    with new_folder(new) as draft:
        model = load_model_of(old, run.dtype)
        layout = run.base.layout_of(model)
        with open_checkpoint(run.base.folder) as stored, torch.no_grad():
            put_back(dict(model.named_parameters()), layout, stored.tensors, mask)
        model.save_pretrained(draft)
        for file in old.iterdir():
            if file.name not in WRITTEN_ANEW and not (draft / file.name).exists():
                shutil.copy2(file, draft / file.name)
        saved = torch.load(old / "optimizer.pt", mmap=True, weights_only=True)
        wide = layout.in_memory(nearly_all(run.base.shapes))
        mask = Layout.of(model).in_files(mask)  # as masked training will have it
        narrow = select_state(saved, wide, layout.in_memory(mask))
        torch.save(narrow, draft / "optimizer.pt")
        schedule = torch.load(old / "scheduler.pt", weights_only=True)
        torch.save(_for_groups(schedule, len(narrow["param_groups"])), draft / "scheduler.pt")
        record = read_json(old / RECORD_FILE)
        kept = ("settings", "base", "trainer", "step", "versions")
        write_beside_weights(draft, mask, {key: record[key] for key in kept})


def _for_groups(schedule: dict[str, Any], num_groups: int) -> dict[str, Any]:
    """The state of a learning-rate schedule for fewer groups of parameters, alike in their rate."""
    return {
        key: value[:num_groups] if isinstance(value, list) else value
        for key, value in schedule.items()
    }


def _sum_gradients(run: Run, bars: Progress, stop: Stop) -> Mask:
    """Sum absolute gradients at the base; the mask is where they are largest."""
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
        # It never finds a gradient, and so never takes a step.
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
        found = sums.largest(auto.density, provenance_of([step]))
        return run.base.layout_of(trainer.model).in_files(found).with_base(run.base.tensors)


def _step_of(checkpoint: Path | None) -> int:
    assert checkpoint is not None
    return int(checkpoint.name.rpartition("-")[2])
