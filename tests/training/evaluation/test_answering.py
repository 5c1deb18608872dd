"""What a model is asked and how it is judged, against a generate loop without cache or padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.training.evaluation.conftest import Pair
from trimtab.errors import CheckpointError, SettingsError
from trimtab.results.answers import Answers
from trimtab.training.addition import end_token, is_correct, split_questions
from trimtab.training.evaluation.answering import ask, load_model, load_tokenizer
from trimtab.training.evaluation.questions import Questions, addition_questions
from trimtab.training.rollouts.rewards import checked_reward
from trimtab.training.runs.data import Rows
from trimtab.training.runs.rewards import Reward

pytestmark = pytest.mark.train


def questions(prompts: Sequence[Any], function: Any = None, **more: Any) -> Questions:
    """Questions that are right if the function says so; by default if they have an `e`."""

    def has_e(completions: Sequence[str], **_: Any) -> list[float]:
        return [float("e" in text) for text in completions]

    rows = Rows("here", [{"prompt": prompt} for prompt in prompts], "")
    reward = Reward(checked_reward(function or has_e, "test"), (), {})
    return Questions(rows, reward, (None,) * len(prompts), max_completion_length=6, **more)


@pytest.fixture(scope="module")
def model(pair: Pair) -> Any:
    return load_model(pair.base, "fp32", "cpu")


@pytest.fixture(scope="module")
def tokenizer(pair: Pair) -> Any:
    return load_tokenizer(pair.base)


PROMPTS = ("a", "to be or not", "12+", "x" * 30, "q?")


def column(answers: Answers, name: str) -> tuple[Any, ...]:
    return tuple(getattr(answer, name) for answer in answers.answers)


def likeliest(model: Any, tokenizer: Any, prompt: str, num: int) -> tuple[str, bool]:
    """Greedy decoding of a single prompt, from the start for every token."""
    import torch

    ids = tokenizer(prompt)["input_ids"]
    messages: list[int] = []
    for _ in range(num):
        with torch.no_grad():
            token = int(model(torch.tensor([ids + messages])).logits[0, -1].argmax())
        messages.append(token)
        if token == tokenizer.eos_token_id:
            break
    ended = messages[-1] == tokenizer.eos_token_id
    return tokenizer.decode(messages, skip_special_tokens=True), ended


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_greedy_answers_do_not_depend_on_the_batch(
    model: Any, tokenizer: Any, batch_size: int
) -> None:
    printed = ask(
        model, tokenizer, questions(PROMPTS), seed=0, num_samples=0, batch_size=batch_size
    )
    expected = [likeliest(model, tokenizer, prompt, 6) for prompt in PROMPTS]
    assert list(zip(column(printed, "greedy"), column(printed, "ended"), strict=True)) == expected
    assert column(printed, "correct") == tuple("e" in text for text, _ in expected)
    assert column(printed, "num_sampled_correct") == (0,) * len(PROMPTS)


def test_samples_are_those_of_their_seed(model: Any, tokenizer: Any) -> None:
    asked = questions(PROMPTS)
    first = ask(model, tokenizer, asked, seed=1, num_samples=6)
    assert all(0 <= correct <= 6 for correct in column(first, "num_sampled_correct"))
    assert ask(model, tokenizer, asked, seed=1, num_samples=6) == first
    other = ask(model, tokenizer, asked, seed=2, num_samples=6)
    assert column(other, "greedy") == column(first, "greedy")
    assert column(other, "num_sampled_correct") != column(first, "num_sampled_correct")


def test_samples_stay_with_their_question(model: Any, tokenizer: Any) -> None:
    """Right for one prompt only, in batches that cut its samples apart."""

    def for_one(completions: Sequence[str], prompts: Sequence[str], **_: Any) -> list[float]:
        return [float(prompt == "12+") for prompt in prompts]

    text = ask(model, tokenizer, questions(PROMPTS, for_one), seed=0, num_samples=5, batch_size=3)
    assert column(text, "num_sampled_correct") == (0, 0, 5, 0, 0)


def test_sampling_follows_the_model(model: Any, tokenizer: Any) -> None:
    """The share of each first token is its probability; at a low temperature, the likeliest."""
    import torch

    asked = replace(questions(["a"]), max_completion_length=1)
    with torch.no_grad():
        ids = torch.tensor([tokenizer("a")["input_ids"]])
        chances = model(ids).logits[0, -1].softmax(0)
    token = tokenizer("e")["input_ids"][0]
    text = ask(model, tokenizer, asked, seed=0, num_samples=4000, batch_size=1000)
    expected = float(chances[token])
    spread = (expected * (1 - expected) / 4000) ** 0.5
    assert text.sampled_accuracy == pytest.approx(expected, abs=5 * spread)
    cold = ask(model, tokenizer, asked, seed=0, num_samples=8, temperature=1e-6)
    assert column(cold, "num_sampled_correct") == (8 * column(text, "correct")[0],)


def test_random_state_is_left_alone(model: Any, tokenizer: Any) -> None:
    import torch

    before = torch.get_rng_state()
    ask(model, tokenizer, questions(["a"]), seed=1, num_samples=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_progress_counts_batches(model: Any, tokenizer: Any) -> None:
    seen: list[tuple[int, int]] = []
    ask(
        model,
        tokenizer,
        questions(PROMPTS),
        seed=0,
        num_samples=2,
        batch_size=4,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(place, 5) for place in range(1, 6)]


@pytest.mark.parametrize("length", [1, 2])
def test_a_stop_ends_the_answer_and_is_no_part_of_it(
    model: Any, tokenizer: Any, length: int
) -> None:
    """Of one token or of several."""
    whole, _ = likeliest(model, tokenizer, "to be or not", 6)
    stop = whole[2 : 2 + length]
    asked = questions(["to be or not"], stop=stop)
    text = ask(model, tokenizer, asked, seed=0, num_samples=0)
    assert column(text, "greedy") == (whole[: whole.index(stop)],)
    assert column(text, "ended") == (True,)


def test_addition_is_judged_as_in_training(model: Any, tokenizer: Any) -> None:
    heldout = split_questions(0).heldout[:6]
    printed = ask(model, tokenizer, addition_questions(heldout), seed=1, num_samples=4)
    assert column(printed, "correct") == tuple(
        is_correct(text, question.answer)
        for text, question in zip(column(printed, "greedy"), heldout, strict=True)
    )
    assert not any("\n" in text for text in column(printed, "greedy"))


def test_messages_are_written_by_the_chat_template(model: Any, pair: Pair) -> None:
    """The reward gets messages, as in training."""
    tokenizer = load_tokenizer(pair.base)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    seen: list[Any] = []

    def note(completions: Sequence[Any], **_: Any) -> list[float]:
        seen.extend(completions)
        return [1.0] * len(completions)

    asked = questions([[{"role": "user", "content": "a"}]], note)
    text = ask(model, tokenizer, asked, seed=0, num_samples=0)
    assert column(text, "greedy") == (likeliest(model, tokenizer, "a", 6)[0],)
    assert seen == [[{"role": "assistant", "content": column(text, "greedy")[0]}]]


@pytest.mark.parametrize(("value", "is_right"), [(0.99, False), (1.0, True), (2.0, True)])
def test_right_is_a_reward_of_one(model: Any, tokenizer: Any, value: float, is_right: bool) -> None:
    asked = questions(["a"], lambda completions, **_: [value] * len(completions))
    assert ask(model, tokenizer, asked, seed=0, num_samples=0).answers[0].correct == is_right


def test_a_reward_that_fails_is_told(model: Any, tokenizer: Any) -> None:
    asked = questions(["a"], lambda completions, **_: [])
    with pytest.raises(SettingsError, match="returned 0 rewards for 1 completions"):
        ask(model, tokenizer, asked, seed=0, num_samples=0)


def test_weights_that_are_not_finite_are_refused(model: Any, pair: Pair, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    broken: Any = AutoModelForCausalLM.from_pretrained(pair.base)
    with torch.no_grad():
        broken.model.norm.weight[3] = torch.nan
    broken.save_pretrained(tmp_path / "broken")
    with pytest.raises(CheckpointError, match=r"NaN or infinity in model\.norm\.weight"):
        load_model(tmp_path / "broken", "fp32", "cpu")


def test_the_end_of_a_line_must_be_one_token() -> None:
    def two_tokens(text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [5, 6]}

    with pytest.raises(CheckpointError, match="as 2 tokens, expected 1"):
        end_token(two_tokens)
