"""The trainer of each algorithm has the loss of its paper, on the same tokens.

Trainers are built as a run builds them, in fp32. The policy is moved away from the base first, so
that it differs from the reference, which TRL loads from the base.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.training import tiny
from tests.training.runs import paper_losses
from tests.training.runs.paper_losses import log_probs
from tests.training.runs.run_files import content, write
from trimtab.training import runtime
from trimtab.training.runs.algorithms import ALGORITHMS
from trimtab.training.runs.prepare import build_trainer, prepare
from trimtab.training.runs.settings import Settings

pytestmark = pytest.mark.train

Base = tuple[Path, dict[str, Any]]

PAIRS = [
    {"prompt": "1+1=", "chosen": "2", "rejected": "11"},
    {"prompt": "12+30=", "chosen": "42", "rejected": "7"},
    {"prompt": "5=", "chosen": "5+0", "rejected": "50"},
    {"prompt": "2+2+2=", "chosen": "6", "rejected": "222"},
]

GROUP = 4

END = 1
"""Id of the end token."""


class Built:
    """The trainer of a run on some rows, and the log-probabilities that its paper speaks of."""

    def __init__(
        self, algorithm: str, base: Base, folder: Path, rows: Sequence[Any], **trainer: Any
    ) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        settings = {"per_device_train_batch_size": len(rows), **trainer}
        values = content(
            algorithm, base[0], data={"file": "rows.jsonl"}, dtype="fp32", trainer=settings
        )
        path = write(folder, values)
        (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        with runtime.quiet():
            self.trainer, _ = build_trainer(prepare(Settings.read(path)), None, folder / "w", [])
            self.reference = AutoModelForCausalLM.from_pretrained(base[0], dtype=torch.float32)
        self.policy = self.trainer.model
        self.move(0)

    def move(self, seed: int) -> None:
        """Change every weight of the policy."""
        import torch

        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in self.policy.parameters():
                parameter += 0.02 * torch.randn_like(parameter)

    def loss(self, inputs: Any = None) -> Any:
        """The trainer's own, of all rows at once."""
        self.trainer.current_gradient_accumulation_steps = 1
        with runtime.quiet():
            if inputs is None:
                (inputs,) = self.trainer.get_train_dataloader()
            return self.trainer.compute_loss(self.policy, inputs)

    def of(self, model: Any, rows: Sequence[Mapping[str, Any]], column: str) -> list[Any]:
        """Log-probabilities of the texts of a column, each with an end token."""
        return [log_probs(model, ids(row["prompt"]), [*ids(row[column]), END]) for row in rows]

    def sides(self, model: Any) -> tuple[list[Any], list[Any]]:
        """Those of the chosen completions of `PAIRS`, and of the rejected ones."""
        return self.of(model, PAIRS, "chosen"), self.of(model, PAIRS, "rejected")


def ids(text: str) -> list[int]:
    found: list[int] = tiny.tokenizer()(text)["input_ids"]
    return found


def assert_close(loss: Any, expected: Any) -> None:
    assert loss.item() == pytest.approx(expected.item(), rel=2e-5)


def test_sft(base: Base, tmp_path: Path) -> None:
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS]
    built = Built("sft", base, tmp_path, rows)
    assert_close(built.loss(), paper_losses.sft(built.of(built.policy, rows, "completion")))


def test_rft(base: Base, tmp_path: Path) -> None:
    drawn = [(row["prompt"], ids(row["chosen"])) for row in PAIRS]  # without an end token
    rows = [{"prompt": prompt, "completion_ids": completion} for prompt, completion in drawn]
    built = Built("rft", base, tmp_path, rows)
    policy = [log_probs(built.policy, ids(prompt), completion) for prompt, completion in drawn]
    assert_close(built.loss(), paper_losses.sft(policy))


def test_dpo(base: Base, tmp_path: Path) -> None:
    built = Built("dpo", base, tmp_path, PAIRS, beta=0.3)
    chosen, rejected = built.sides(built.policy)
    expected = paper_losses.dpo(chosen, rejected, *built.sides(built.reference), beta=0.3)
    assert_close(built.loss(), expected)


def test_orpo(base: Base, tmp_path: Path) -> None:
    built = Built("orpo", base, tmp_path, PAIRS, beta=0.3)
    whole = []
    for row in PAIRS:
        first, *rest = [*ids(row["prompt"]), *ids(row["chosen"]), END]
        whole.append(log_probs(built.policy, [first], rest))
    chosen, rejected = built.sides(built.policy)
    assert_close(built.loss(), paper_losses.orpo(whole, chosen, rejected, weight=0.3))


@pytest.mark.parametrize("trainer", [{}, {"beta": 10.0, "simpo_gamma": 3.0}])
def test_simpo(trainer: dict[str, float], base: Base, tmp_path: Path) -> None:
    built = Built("simpo", base, tmp_path, PAIRS, **trainer)
    chosen, rejected = built.sides(built.policy)
    beta, gamma = trainer.get("beta", 2.0), trainer.get("simpo_gamma", 1.0)
    assert_close(built.loss(), paper_losses.simpo(chosen, rejected, beta, gamma))


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_kto(paired: bool, seed: int, base: Base, tmp_path: Path) -> None:
    ordered: list[Any] = list(ALGORITHMS["kto"].dataset(PAIRS, None, 0))
    rows = PAIRS if paired else ordered
    trainer: dict[str, Any] = {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.5}
    trainer["per_device_train_batch_size"] = len(ordered)
    built = Built("kto", base, tmp_path, rows, **trainer)
    built.move(seed)
    # As the run orders them; the completion of the row before is that of the mismatched pair.
    ordered = list(ALGORITHMS["kto"].dataset(rows, None, 0))
    before = [*ordered[-1:], *ordered[:-1]]
    mismatched = [
        {"prompt": row["prompt"], "completion": other["completion"]}
        for row, other in zip(ordered, before, strict=True)
    ]
    expected = paper_losses.kto(
        built.of(built.policy, ordered, "completion"),
        built.of(built.reference, ordered, "completion"),
        [row["label"] for row in ordered],
        built.of(built.policy, mismatched, "completion"),
        built.of(built.reference, mismatched, "completion"),
        beta=0.3,
        desirable=1.5,
        undesirable=0.5,
    )
    assert_close(built.loss(), expected)


class Sampled:
    """A batch that an online trainer sampled, and what its paper makes of it."""

    def __init__(self, built: Built) -> None:
        trainer = built.trainer
        trainer.model.train()
        with runtime.quiet():
            found = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        # Samples come shuffled; those of a prompt are put together again.
        order = sorted(range(3 * GROUP), key=lambda row: found["prompt_ids"][row].tolist())
        self.inputs = {
            key: value[order] if value is not None and value.dim() else value
            for key, value in found.items()
        }
        pairs = [
            zip(self.inputs[f"{part}_ids"], self.inputs[f"{part}_mask"].bool(), strict=True)
            for part in ("prompt", "completion")
        ]
        self.prompts, self.completions = (
            [row[mask].tolist() for row, mask in pair] for pair in pairs
        )

    def of(self, model: Any) -> list[Any]:
        """Log-probabilities of what was sampled."""
        pairs = zip(self.prompts, self.completions, strict=True)
        return [log_probs(model, *pair) for pair in pairs]

    def rewards(self) -> Any:
        """What `run_files.REWARD` gives."""
        import torch

        texts = [tiny.tokenizer().decode(row, skip_special_tokens=True) for row in self.completions]
        return torch.tensor([text.count("1") + 0.1 * text.count("2") + len(text) for text in texts])


def online(algorithm: str, base: Base, folder: Path, **trainer: Any) -> tuple[Built, Sampled]:
    rows = [{"prompt": f"{a}+1=", "answer": str(a + 1)} for a in range(3)]
    settings = {
        "per_device_train_batch_size": 3 * GROUP,
        "num_generations": GROUP,
        "max_completion_length": 5,
        **trainer,
    }
    built = Built(algorithm, base, folder, rows, **settings)
    return built, Sampled(built)


@pytest.mark.parametrize(
    ("loss_type", "mean_over", "beta", "corrects"),
    [
        ("dapo", "tokens", 0.0, True),
        ("dapo", "tokens", 0.2, True),
        ("grpo", "sequences", 0.2, False),
    ],
)
def test_grpo(
    loss_type: str, mean_over: str, beta: float, corrects: bool, base: Base, tmp_path: Path
) -> None:
    import torch

    # With two steps for each sampling, the trainer keeps the probabilities of the first.
    settings = {"loss_type": loss_type, "beta": beta, "num_iterations": 2, "epsilon": 0.1}
    correction = {"use_bias_correction_kl": corrects}
    built, sampled = online("grpo", base, tmp_path, **settings, **correction)
    expected = paper_losses.group_advantages(sampled.rewards(), GROUP)
    torch.testing.assert_close(sampled.inputs["advantages"], expected)
    assert expected.abs().max() > 0.5
    old = [one.detach() for one in sampled.of(built.policy)]
    built.move(1)
    policy, reference = sampled.of(built.policy), sampled.of(built.reference)
    ratios = (torch.cat(policy) - torch.cat(old)).exp()
    assert 0 < ((ratios - 1).abs() > 0.1).sum() < len(ratios)  # some are clipped
    loss = paper_losses.grpo(policy, old, reference, expected, 0.1, beta, mean_over, corrects)
    assert_close(built.loss(sampled.inputs), loss)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_rloo(beta: float, base: Base, tmp_path: Path) -> None:
    import torch

    built, sampled = online("rloo", base, tmp_path, beta=beta)
    policy, reference = sampled.of(built.policy), sampled.of(built.reference)
    divergence = torch.stack(
        [(p - r).sum().detach() for p, r in zip(policy, reference, strict=True)]
    )
    rewards = sampled.rewards() - beta * divergence.float()
    expected = paper_losses.leave_one_out(rewards, GROUP)
    torch.testing.assert_close(sampled.inputs["advantages"], expected, rtol=1e-4, atol=1e-4)
    assert expected.abs().max() > 0.5
    # On its own samples the ratio is 1: the loss is a constant, and its gradient is REINFORCE.
    parameters = list(built.policy.parameters())
    found = torch.autograd.grad(built.loss(sampled.inputs), parameters)
    wanted = torch.autograd.grad(paper_losses.rloo(policy, expected), parameters)
    assert max(float(item.abs().max()) for item in wanted) > 1e-2
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
