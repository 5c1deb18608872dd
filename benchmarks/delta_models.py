"""Models that are trained from scratch and tuned here, whose deltas `benchmarks.deltas` measures.

    python -m benchmarks.delta_models out --only native

Both are Llamas that read characters. They are trained on questions of reasoning-gym and on sums of
digits, half of which have a random answer, and saved in bf16. Then they are tuned on the project's
own task, one-digit addition: by SFT on the right answers, and by a policy gradient with the
advantages of GRPO, 32 sequences a step, as in the demo. Weights are fp32 while they are tuned, with
torch's AdamW, and every saved step is their rounding to bf16.

Runs are left where they are: what is finished is not trained again, and what was interrupted
resumes from its last saved state.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from random import Random
from statistics import fmean, median
from time import perf_counter
from typing import Any

CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
PAD, END = 0, 1
"""Tokens: the padding, the end of a line, then every other character."""

GYM = ("spell_backward", "number_sorting", "word_sorting", "letter_counting", "chain_sum", "gcd")
"""Tasks of reasoning-gym whose questions the base models are trained on."""

NUM_QUESTIONS = 2000
"""Of each of them."""

SUMS, RIGHT = 0.5, 0.5
"""Share of the windows that hold sums, and share of the sums with the right answer."""

WINDOW = 64
"""Tokens of a sequence in the training of a base."""

QUESTIONS, SAMPLES, NUM_TOKENS = 4, 8, 3
"""Questions of a step of RL, answers to each, and the most tokens of an answer."""

DIRECTIONS = "directions.json"
"""In the folder of a run."""

CLIP = 1.0
"""Largest norm of a gradient."""


@dataclass(frozen=True)
class Tuning:
    """A run that starts from a base.

    Attributes:
        method: `sft` or `rl`.
        learning_rate: Of AdamW, constant.
        saved: Steps after which the weights are saved; the last one ends the run.
    """

    method: str
    learning_rate: float
    saved: tuple[int, ...]


@dataclass(frozen=True)
class Model:
    """A base and the runs that start from it.

    Attributes:
        shape: For LlamaConfig.
        num_steps: Steps in which the base is trained.
        batch: Sequences of such a step.
        learning_rate: Highest one of these steps.
        runs: Name of a run -> what it does.
    """

    shape: Mapping[str, int]
    num_steps: int
    batch: int
    learning_rate: float
    runs: Mapping[str, Tuning]


SHORT = (*range(1, 17), 20)
LONG = (*SHORT, 50, 100, 150, 200, 240)
"""Saved steps; the first ones are a chain."""

MODELS: Mapping[str, Model] = {
    "native": Model(
        {
            "hidden_size": 512,
            "intermediate_size": 1408,
            "num_hidden_layers": 7,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
        },
        num_steps=400,
        batch=16,
        learning_rate=1e-3,
        runs={
            "rl": Tuning("rl", 1e-5, LONG),
            "sft": Tuning("sft", 1e-5, LONG),
            "rl-1e-6": Tuning("rl", 1e-6, SHORT),
        },
    ),
    "wide": Model(
        {
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 2,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
        },
        num_steps=160,
        batch=8,
        learning_rate=3e-4,
        runs={"sft": Tuning("sft", 1e-5, (20,)), "rl": Tuning("rl", 1e-5, (20,))},
    ),
    "tiny": Model(
        {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
        },
        num_steps=2,
        batch=2,
        learning_rate=1e-3,
        runs={"sft": Tuning("sft", 1e-5, (1, 2)), "rl": Tuning("rl", 1e-5, (1, 2))},
    ),
}
"""`wide` has matrices of 2048 x 5632; `tiny` shows that the code works."""


def tokens_of(text: str) -> list[int]:
    """A token for each character that a model knows."""
    return [1 + CHARACTERS.index(character) for character in text if character in CHARACTERS]


def text_of(tokens: Sequence[int]) -> str:
    """The inverse of `tokens_of`, up to the end token."""
    text = "".join(CHARACTERS[token - 1] if token else "" for token in tokens)
    return text[: text.index("\n") + 1] if "\n" in text else text


def windows(random: Random) -> Iterator[list[int]]:
    """Sequences of `WINDOW` tokens, without end."""
    factory = import_module("reasoning_gym.factory")
    texts = [
        f"{item['question']}\n{item['answer']}\n"
        for name in GYM
        for item in factory.create_dataset(name, size=NUM_QUESTIONS, seed=0)
    ]
    while True:
        is_sum = random.random() < SUMS
        tokens: list[int] = []
        while len(tokens) < WINDOW:
            tokens += tokens_of(_sum(random) if is_sum else random.choice(texts))
        yield tokens[:WINDOW]


def _sum(random: Random) -> str:
    a, b = random.randrange(10), random.randrange(10)
    answer = a + b if random.random() < RIGHT else random.randrange(19)
    return f"{a}+{b}={answer}\n"


class Training:
    """A model in fp32, its optimizer and random numbers, in a folder that can be resumed."""

    def __init__(self, model: Any, learning_rate: float, folder: Path) -> None:
        """Resume from the saved state of the folder, if it has one."""
        import torch

        self.torch, self.model, self.folder = torch, model, folder
        torch.manual_seed(0)
        self.random = Random(0)
        self.learning_rate = learning_rate
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=learning_rate, weight_decay=0.0, foreach=False, fused=True
        )
        self.step, self.history = 0, []
        if self.state.exists():
            state = torch.load(self.state, weights_only=False)
            model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            torch.set_rng_state(state["torch"])
            self.random.setstate(state["random"])
            self.step, self.history = state["step"], state["history"]

    @property
    def state(self) -> Path:
        """The file to resume from."""
        return self.folder / "state.pt"

    def save_state(self) -> None:
        """Write what resuming needs; a file that was being written is never read."""
        draft = self.state.with_suffix(".draft")
        content = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "torch": self.torch.get_rng_state(),
            "random": self.random.getstate(),
            "step": self.step,
            "history": self.history,
        }
        self.torch.save(content, draft)
        draft.replace(self.state)

    def save_weights(self, name: str) -> None:
        """Write the weights of this moment as a checkpoint in bf16."""
        rounded = {
            key: value.to(self.torch.bfloat16) for key, value in self.model.state_dict().items()
        }
        self.model.save_pretrained(self.folder / name, state_dict=rounded)

    def log_probabilities(self, tokens: Any, labels: Any) -> Any:
        """Of each label, given what comes before it; 0 where the label is the padding."""
        logits = self.model(input_ids=tokens).logits[:, :-1].float()
        chosen = logits.log_softmax(-1).gather(-1, labels[:, 1:, None]).squeeze(-1)
        return chosen * (labels[:, 1:] != PAD)

    def update(self, loss: Any, **values: float) -> None:
        """Take a step down a loss."""
        loss.backward()
        self.torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.history.append({"step": self.step, "loss": loss.item(), **values})


def pretrain(model: Model, folder: Path, save_every: int) -> None:
    """Train a base from random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        **model.shape,
        vocab_size=1 + len(CHARACTERS),
        max_position_embeddings=256,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=END,
    )
    training = Training(LlamaForCausalLM(config), model.learning_rate, folder)
    texts = windows(training.random)
    warm_up = model.num_steps // 10 + 1
    while (step := training.step) < model.num_steps:
        share = min((step + 1) / warm_up, (model.num_steps - step) / (model.num_steps - warm_up))
        training.optimizer.param_groups[0]["lr"] = share * model.learning_rate
        tokens = torch.tensor([next(texts) for _ in range(model.batch)])
        training.update(-training.log_probabilities(tokens, tokens).mean())
        _between(training, save_every)
    training.save_weights("model")
    _finish(training)


def tune(base: Path, run: Tuning, folder: Path, save_every: int) -> None:
    """Tune a base, and save its weights after the steps that are asked for."""
    import torch
    from transformers import LlamaForCausalLM

    from trimtab.training.addition import split_questions

    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    start = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    training = Training(model, run.learning_rate, folder)
    questions = split_questions(0).train
    steps: Mapping[str, Callable[[Training, Any], None]] = {"sft": sft_step, "rl": rl_step}
    while training.step < run.saved[-1]:
        steps[run.method](training, questions)
        if training.step in run.saved:
            training.save_weights(f"step-{training.step}")
        _between(training, save_every)
    spread = {
        name: directions(weight.detach(), start[name])
        for name, weight in model.named_parameters()
        if weight.ndim == 2
    }
    (folder / DIRECTIONS).write_text(json.dumps(spread, indent=1) + "\n")
    _finish(training)


def directions(weight: Any, start: Any) -> dict[str, dict[str, float]]:
    """In how many directions an update of a matrix has its energy, in fp32 and rounded to bf16.

    The energy is the sum of the squares of the singular values.
    """
    import torch

    def spread(update: Any) -> dict[str, float]:
        narrow = (update if update.shape[0] <= update.shape[1] else update.T).double()
        energies = torch.linalg.eigvalsh(narrow @ narrow.T).flip(0).clamp(min=0)
        shares = (energies / energies.sum()).cumsum(0)
        return {
            "for_90_percent": int((shares < 0.9).sum()) + 1,
            "share_of_16": float(shares[min(15, len(shares) - 1)]),
        }

    return {"fp32": spread(weight - start), "bf16": spread(weight.bfloat16().float() - start)}


def sft_step(training: Training, questions: Sequence[Any]) -> None:
    """A step on right answers."""
    rows = [training.random.choice(questions) for _ in range(QUESTIONS * SAMPLES)]
    texts = [(tokens_of(row.prompt), tokens_of(row.gold)) for row in rows]
    longest = max(len(prompt) + len(answer) for prompt, answer in texts)
    padded = [[*p, *a, *[PAD] * (longest - len(p) - len(a))] for p, a in texts]
    tokens = training.torch.tensor(padded)
    labels = tokens.clone()
    for row, (prompt, _) in zip(labels, texts, strict=True):
        row[: len(prompt)] = PAD
    chosen = training.log_probabilities(tokens, labels)
    training.update(-chosen.sum() / (labels != PAD).sum())


def rl_step(training: Training, questions: Sequence[Any]) -> None:
    """A step on sampled answers: each is as good as it is better than the others to its question.

    Advantages are those of GRPO; the samples are the policy's own, so that no ratio is clipped.
    """
    from trimtab.training.addition import reward

    torch = training.torch
    rows = [training.random.choice(questions) for _ in range(QUESTIONS)]
    rows = [row for row in rows for _ in range(SAMPLES)]
    prompts = torch.tensor([tokens_of(row.prompt) for row in rows])
    tokens = prompts
    with torch.no_grad():
        read, cache = prompts, None
        for _ in range(NUM_TOKENS):
            result = training.model(input_ids=read, past_key_values=cache, use_cache=True)
            cache = result.past_key_values
            read = torch.multinomial(result.logits[:, -1].float().softmax(-1), 1)
            tokens = torch.cat([tokens, read], 1)
    answers = [text_of(row) for row in tokens[:, prompts.shape[1] :].tolist()]
    rewards = torch.tensor(reward(answers, [row.answer for row in rows]))
    groups = rewards.view(QUESTIONS, SAMPLES)
    advantages = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
    labels = torch.full_like(tokens, PAD)
    for label, row, answer in zip(labels, tokens, answers, strict=True):
        part = slice(prompts.shape[1], prompts.shape[1] + len(answer))
        label[part] = row[part]
    chosen = training.log_probabilities(tokens, labels)
    loss = -(chosen * advantages.view(-1, 1)).sum() / (labels != PAD).sum()
    training.update(loss, reward=rewards.mean().item())


def _between(training: Training, save_every: int) -> None:
    if training.step % save_every == 0:
        training.save_state()
        latest = training.history[-1]
        print(f"{training.folder.parent.name}/{training.folder.name}: {latest}", flush=True)


def _finish(training: Training) -> None:
    """Leave what happened, and no state to resume from."""
    (training.folder / "history.json").write_text(json.dumps(training.history, indent=1) + "\n")
    training.state.unlink(missing_ok=True)


def make(folder: Path, names: Sequence[str], save_every: int = 40) -> None:
    """Train models and their runs into a folder: what is finished there stays as it is."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in names:
        model = MODELS[name]
        base = folder / name / "base"
        stages = {base: partial(pretrain, model)}
        for run_name, run in model.runs.items():
            stages[folder / name / run_name] = partial(tune, base / "model", run)
        for path, stage in stages.items():
            if (path / "history.json").exists():
                continue
            path.mkdir(parents=True, exist_ok=True)
            start = perf_counter()
            stage(path, save_every)
            print(f"{path}: {perf_counter() - start:.0f} s", flush=True)
        (folder / name / "settings.json").write_text(json.dumps(asdict(model), indent=1) + "\n")


def summary(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """Steps and settings of trained models and their runs, and what they began and ended with.

    Of losses and rewards, the means of the first and the last ten steps.
    """

    def ends(history: Sequence[Mapping[str, float]], key: str) -> list[float]:
        return [fmean(row[key] for row in part) for part in (history[:10], history[-10:])]

    found = {}
    for name in names:
        histories = {
            path.parent.name: json.loads(path.read_text())
            for path in (folder / name).glob("*/history.json")
        }
        runs = {}
        for run, tuning in MODELS[name].runs.items():
            history = histories[run]
            key = "reward" if tuning.method == "rl" else "loss"
            runs[run] = {
                "steps": len(history),
                "learning_rate": tuning.learning_rate,
                key: ends(history, key),
                "directions": _by_kind(folder / name / run / DIRECTIONS),
            }
        base = histories["base"]
        found[name] = {
            "shape": dict(MODELS[name].shape),
            "base": {
                "steps": len(base),
                "learning_rate": MODELS[name].learning_rate,
                "loss": ends(base, "loss"),
            },
            "runs": runs,
        }
    return found


def _by_kind(path: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Medians of `directions` over the matrices of a kind."""
    kinds: dict[str, list[Any]] = {}
    for name, spread in json.loads(path.read_text()).items():
        kinds.setdefault(name.split(".")[-2], []).append(spread)
    return {
        kind: {
            dtype: {key: median(one[dtype][key] for one in spreads) for key in spreads[0][dtype]}
            for dtype in spreads[0]
        }
        for kind, spreads in kinds.items()
    }


def main() -> None:
    """Train them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=MODELS, default=["native", "wide"])
    parser.add_argument("--save-every", type=int, default=40, help="steps between states")
    options = parser.parse_args()
    make(options.folder, options.only, options.save_every)


if __name__ == "__main__":
    main()
