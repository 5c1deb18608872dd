"""A trainer, and a follower that generates, for processes of their own; each says what it had."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def digest(model: Any) -> str:
    """Of all weights, computed without trimtab."""
    import torch

    hasher = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        hasher.update(name.encode())
        hasher.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return hasher.hexdigest()


def say(path: Path, **line: Any) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def train(folder: Path, kind: str, steps: int) -> None:
    """Train from the base; the weights are hashed before they are published."""
    from transformers import TrainerCallback

    from tests.training import tiny_trainers
    from trimtab.training import DeltaPublisher

    model = tiny_trainers.model(folder / "base")
    trainer = tiny_trainers.build(kind, model, folder / "base", folder / "out", max_steps=steps)
    publisher = DeltaPublisher(folder / "run", base=folder / "base")

    class Before(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **kwargs: Any) -> None:
            say(folder / "trainer.jsonl", hash=digest(kwargs["model"]))

        on_train_begin = on_step_end

    class After(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **kwargs: Any) -> None:
            say(folder / "trainer.jsonl", hash=digest(kwargs["model"]), version=publisher.version)

        on_train_begin = on_step_end

    trainer.add_callback(After())
    publisher.attach(trainer)
    trainer.callback_handler.callbacks.insert(0, Before())
    tiny_trainers.train(trainer)
    say(folder / "trainer.jsonl", hash=digest(model), version=publisher.version, last=True)


def follow(folder: Path, last: int) -> None:
    """Generate until the weights are those of a version; they are hashed before and after."""
    import torch

    from tests.training import tiny
    from trimtab.training import DeltaFollower

    model = tiny.model(1).to(torch.bfloat16)
    ids = torch.arange(2, 8).reshape(1, 6)
    with DeltaFollower(model, folder / "run", base=folder / "base", name="engine") as follower:
        follower.start(poll=0.01)
        while follower.version is None or follower.version < last:
            with follower.lock:
                version, before = follower.version, digest(model)
                made = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
                after = digest(model)
            if version is not None:
                line = {"version": version, "before": before, "after": after}
                say(folder / "engine.jsonl", **line, made=made.tolist())
        say(
            folder / "engine.jsonl",
            version=follower.version,
            before=digest(model),
            error=str(follower.error),
        )
