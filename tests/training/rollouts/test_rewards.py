"""Rewards: functions as TRL calls them, reward models, their sum, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training import tiny
from trimtab.errors import SettingsError

pytestmark = pytest.mark.train

ROWS = [{"prompt": "1+1=", "answer": "2"}, {"prompt": "1+2=", "answer": "3"}]


def rewards(*sources: Any) -> Any:
    import torch

    from trimtab.training.rollouts.rewards import Rewards

    return Rewards(sources, tiny.tokenizer(), torch.device("cpu"))


def classifier(num_labels: int = 1) -> Any:
    import torch
    from transformers import LlamaForSequenceClassification

    config = tiny.model().config
    config.num_labels = num_labels
    torch.manual_seed(1)
    return LlamaForSequenceClassification(config)


def test_functions_are_called_as_trl_calls_them_and_added_up() -> None:
    given = []

    def right(completions: list[str], answer: list[str], **_: Any) -> list[float]:
        return [float(text == item) for text, item in zip(completions, answer, strict=True)]

    def all_of_it(**columns: Any) -> list[int]:
        given.append(columns)
        return [10, 20]

    found = rewards(right, all_of_it)(ROWS, ["2", "2"], [[4], [4]])
    assert found.tolist() == [11.0, 20.0]
    assert given == [
        {
            "completions": ["2", "2"],
            "prompts": ["1+1=", "1+2="],
            "completion_ids": [[4], [4]],
            "answer": ["2", "3"],
        }
    ]


def _fails(**_: Any) -> list[float]:
    raise KeyError("answer")


def _none(**_: Any) -> list[None]:
    return [None, None]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (_fails, r"the reward function _fails fails: KeyError\('answer'\)"),
        (lambda **_: [1.0], "returned 1 rewards for 2 completions"),
        (lambda **_: [1.0, float("nan")], "returned nan, expected a number"),
        (lambda **_: [1.0, float("-inf")], "returned -inf, expected a number"),
        (lambda **_: ["good", "bad"], "could not convert string to float"),
        (_none, "the reward function _none: float"),
        (lambda **_: 1.0, "fails: TypeError"),
    ],
)
def test_functions_that_do_not_do_what_they_should(function: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        rewards(function)(ROWS, ["2", "2"], [[4], [4]])


def test_a_reward_model_scores_prompt_and_completion() -> None:
    import torch

    model = classifier()
    found = rewards(model)(ROWS, ["2\n", "345"], [[4], [4]])
    for row, text, score in zip(ROWS, ["2\n", "345"], found.tolist(), strict=True):
        ids = tiny.tokenizer()(row["prompt"] + text)["input_ids"]
        with torch.no_grad():
            assert score == float(model(torch.tensor([ids])).logits[0, 0])
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_reward_model_reads_messages() -> None:
    import torch

    from tests.training.rollouts.test_prompts import TEMPLATE
    from trimtab.training.rollouts.rewards import RewardModel

    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = TEMPLATE
    model = RewardModel(classifier(), tokenizer, torch.device("cpu"))
    of_texts = model(["1+1="], ["2"])
    of_messages = model(
        [[{"role": "user", "content": "1+1="}]], [[{"role": "assistant", "content": "2"}]]
    )
    assert of_texts == of_messages


def test_a_reward_model_by_its_path_has_its_own_tokenizer(tmp_path: Path) -> None:
    from trimtab.training import runtime

    with runtime.quiet():
        classifier().save_pretrained(tmp_path)
        tiny.tokenizer().save_pretrained(tmp_path)
        by_path = rewards(str(tmp_path))
    expected = rewards(classifier())(ROWS, ["2", "3"], [])
    assert by_path(ROWS, ["2", "3"], []).tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_reward_models_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="has 2 outputs, expected 1"):
        rewards(classifier(2))
    with pytest.raises(SettingsError, match="cannot be loaded"):
        rewards(tmp_path / "nowhere")


def test_what_is_no_reward() -> None:
    from trimtab.training.rollouts.rewards import reward_problems

    assert reward_problems([_fails, "folder", Path("folder"), classifier()]) == []
    assert reward_problems([]) == [
        "reward_funcs is empty: expected a function, a reward model, or a list of them"
    ]
    assert "reward_funcs has a int" in reward_problems([_fails, 3])[0]
