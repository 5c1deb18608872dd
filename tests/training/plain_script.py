"""A script as a user writes it, which the test of several processes starts with `torchrun`.

Usage: plain_script.py BASE MASK OUT ACCUMULATE
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from trimtab.training import train_only

SETTINGS: dict[str, Any] = {
    "max_steps": 4,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "weight_decay": 0.1,
    "max_grad_norm": 0.5,
    "use_cpu": True,
    "save_steps": 2,
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


def main(base: str, mask: str, out: str, accumulate: str) -> None:
    """Train, and again from the middle."""
    rows = [[2 + (i * j) % 11 for j in range(3, 9)] for i in range(1, 33)]
    data = Dataset.from_dict({"input_ids": rows, "labels": rows})
    for name, resume in (("whole", None), ("resumed", f"{out}/whole/checkpoint-2")):
        trainer = Trainer(
            AutoModelForCausalLM.from_pretrained(base, dtype="bfloat16"),
            TrainingArguments(
                f"{out}/{name}", gradient_accumulation_steps=int(accumulate), **SETTINGS
            ),
            train_dataset=data,
        )
        train_only(trainer, mask)
        trainer.train(resume_from_checkpoint=resume)
        trainer.save_model()
        torch.save(trainer.model.state_dict(), f"{out}/{name}-{trainer.args.process_index}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
