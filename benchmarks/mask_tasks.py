"""The models and tasks of `benchmarks.which_mask`.

**Letters.** A Llama of 0.2 M weights, trained from scratch in a minute to follow three instructions
on words of four letters: copy the word (`C`), write it backwards (`R`), swap its halves (`S`). The
prompt is an instruction, a word and `=`. It has never seen the instruction `?`, nor the words that
a task is taught and asked with. A task is what `?` means: to write backwards, which the base can
under another name (`backwards`); or to move the last letter to the front, which it cannot
(`rotate`).

**Sums.** SmolLM2-135M, the base of the papers' scale `small`, on sums of two digits (`sums`), with
the split of the demo and without solved examples in the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

from trimtab.outputs import new_folder
from trimtab.papers.bases import make_base as make_base_of_scale
from trimtab.training import runtime
from trimtab.training.addition import split_questions

Row = Mapping[str, list[int]]
"""`input_ids`, `labels` (-100 outside the answer and its end) and `attention_mask`."""

SETS = "train", "heldout"


@dataclass(frozen=True)
class Task:
    """What a model is taught.

    Attributes:
        base: `letters` or `sums`.
        examples: Seed and base folder -> rows to train on, and rows to ask.
        steps: Optimizer steps.
        batch: Sequences a step.
    """

    base: str
    examples: Callable[[int, Path], tuple[list[Row], list[Row]]]
    steps: int
    batch: int


LETTERS, LENGTH = "abcdefgh", 4
SYMBOLS = ("<pad>", "\n", *LETTERS, "C", "R", "S", "?", "=")
IDS: Mapping[str, int] = {symbol: index for index, symbol in enumerate(SYMBOLS)}

KNOWN: Mapping[str, Callable[[str], str]] = {
    "C": lambda word: word,
    "R": lambda word: word[::-1],
    "S": lambda word: word[2:] + word[:2],
}
"""What the base is trained on."""

STEPS, BATCH, RATE = 1500, 64, 2e-3
"""Training of the base of letters."""

NUM_TRAIN, NUM_HELDOUT = 256, 256


def _words(seen: bool) -> list[str]:
    """The half of all words that the base is trained on, or the other half."""
    words = ["".join(letters) for letters in product(LETTERS, repeat=LENGTH)]
    Random(0).shuffle(words)
    half = len(words) // 2
    return words[:half] if seen else words[half:]


def _row(given: list[int], wanted: list[int], length: int = 0) -> dict[str, list[int]]:
    """A prompt and its answer, padded on the right."""
    pad = max(0, length - len(given) - len(wanted))
    return {
        "input_ids": given + wanted + [0] * pad,
        "labels": [-100] * len(given) + wanted + [-100] * pad,
        "attention_mask": [1] * (len(given) + len(wanted)) + [0] * pad,
    }


def _letters_row(instruction: str, word: str, answer: str) -> dict[str, list[int]]:
    texts = f"{instruction}{word}=", f"{answer}\n"
    given, wanted = ([IDS[symbol] for symbol in text] for text in texts)
    return _row(given, wanted)


def _letters(meaning: Callable[[str], str]) -> Task:
    def examples(seed: int, _: Path) -> tuple[list[Row], list[Row]]:
        words = Random(seed).sample(_words(seen=False), NUM_TRAIN + NUM_HELDOUT)
        rows: list[Row] = [_letters_row("?", word, meaning(word)) for word in words]
        return rows[:NUM_TRAIN], rows[NUM_TRAIN:]

    return Task("letters", examples, steps=25, batch=32)


def _sums(seed: int, base: Path) -> tuple[list[Row], list[Row]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)

    def rows(questions: Iterable[Any]) -> list[Row]:
        texts = [(f"{question}=", question.gold) for question in questions]
        pairs = [[tokenizer(text)["input_ids"] for text in pair] for pair in texts]
        length = max(len(given) + len(wanted) for given, wanted in pairs)
        return [_row(given, wanted, length) for given, wanted in pairs]

    split = split_questions(seed)
    return rows(split.train), rows(split.heldout)


TASKS: Mapping[str, Task] = {
    "rotate": _letters(lambda word: word[-1] + word[:-1]),
    "backwards": _letters(KNOWN["R"]),
    "sums": Task("sums", _sums, steps=20, batch=8),
}


def make_base(base: str, folder: Path) -> None:
    """Make the base of some tasks in a folder, unless it exists."""
    if base == "sums":
        make_base_of_scale("smollm2", folder)
    elif not folder.exists():
        with runtime.quiet(), new_folder(folder) as draft:
            _letters_model().save_pretrained(draft)


def _letters_model() -> Any:
    """The base of letters, trained, in bf16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    random = Random(0)
    config = LlamaConfig(
        vocab_size=len(SYMBOLS),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    model: Any = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    words = _words(seen=True)
    for _ in range(STEPS):
        batch = []
        for _ in range(BATCH):
            instruction, word = random.choice(list(KNOWN)), random.choice(words)
            batch.append(_letters_row(instruction, word, KNOWN[instruction](word)))
        model(**as_tensors(batch)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.to(torch.bfloat16)


def as_tensors(rows: Iterable[Row]) -> dict[str, Any]:
    """Rows as a batch: int64 `[rows, tokens]` each."""
    import torch

    rows = list(rows)
    return {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}
