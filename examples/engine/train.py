"""TRL's GRPO, sampled by a vLLM server that follows the run.

    python train.py MODEL PLACE URL [STEPS]

MODEL is the folder that the server was started with (`serve.sh`), PLACE a folder or the URL of an
object store that both sides reach, URL the address of the server.
"""

import sys

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from trimtab.training import DeltaPublisher, EngineRollouts


def right(completions, answer, **_):
    """1 for a completion that begins with the answer."""
    pairs = zip(completions, answer, strict=True)
    return [float(text.strip().startswith(gold)) for text, gold in pairs]


def main(base, place, url, steps="20"):
    """Train on one-digit sums."""
    rows = [
        {"prompt": f"3+4=7\n2+9=11\n{a}+{b}=", "answer": str(a + b)}
        for a in range(10)
        for b in range(10)
    ]
    trainer = GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(base, dtype="bfloat16"),
        right,
        args=GRPOConfig(
            "out",
            bf16=False,  # the weights are: no autocast
            max_steps=int(steps),
            per_device_train_batch_size=32,
            num_generations=8,
            max_completion_length=3,
            learning_rate=1e-5,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(base),
    )
    publisher = DeltaPublisher(place, base=base).attach(trainer)  # publish each step
    EngineRollouts(url, publisher).attach(trainer)  # sample from the server that follows
    trainer.train()


if __name__ == "__main__":
    main(*sys.argv[1:])
