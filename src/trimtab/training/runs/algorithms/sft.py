"""SFT by TRL's `SFTTrainer`: the loss is that of the completion, given the prompt."""

from trimtab.training.runs.algorithms.algorithm import Algorithm

__all__ = ["SFT"]

SFT = Algorithm(
    name="sft",
    trainer="trl:SFTTrainer",
    config="trl:SFTConfig",
    columns=("prompt", "completion"),
)
