"""A reward model scores what a policy said, as its own forward pass does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.training import tiny, tiny_trainers
from tests.training.runs.run_files import content, train, write
from trimtab.errors import SettingsError
from trimtab.training import runtime
from trimtab.training.runs.rewards import model_reward

pytestmark = pytest.mark.train

Base = tuple[Path, dict[str, Any]]

PROMPTS = ["1+1=", "12+3=", "7+8="]
COMPLETIONS = ["2", "15\n", "1234567890"]


@pytest.fixture(scope="module")
def judge(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base with a head of one output, saved."""
    import torch

    folder = tmp_path_factory.mktemp("judge") / "model"
    torch.manual_seed(0)
    with runtime.quiet():
        tiny_trainers.reward_model(base[0]).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def test_scores_are_the_logits_of_prompt_and_completion(judge: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    with runtime.quiet():
        reward = model_reward(judge.name, judge.parent)
        scores = reward.function(completions=COMPLETIONS, prompts=PROMPTS)
        model = AutoModelForSequenceClassification.from_pretrained(judge, dtype="auto").eval()
    expected = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        ids = torch.tensor([tiny.tokenizer()(prompt + completion)["input_ids"]])
        with torch.inference_mode():
            expected.append(float(model(ids).logits))
    assert scores == expected
    assert len({round(score, 2) for score in scores}) == 3
    assert reward.columns == ()


def test_messages_are_written_by_its_chat_template(judge: Path, tmp_path: Path) -> None:
    folder = tmp_path / "chat"
    shutil.copytree(judge, folder)
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    message = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    answers = [[{"role": "assistant", "content": text}] for text in COMPLETIONS]
    with runtime.quiet():
        plain = model_reward(str(judge), tmp_path).function(
            completions=COMPLETIONS, prompts=PROMPTS
        )
        chat = model_reward(str(folder), tmp_path).function(completions=answers, prompts=message)
    assert chat == plain


def test_a_run_records_which_weights_judged_it(judge: Path, base: Base, tmp_path: Path) -> None:
    values = content("grpo", base[0], reward={"model": str(judge)})
    result = train(write(tmp_path, values))
    assert result["update"]["num_changed"] > 0
    resolved = json.loads((tmp_path / "out" / "resolved.json").read_text())
    assert len(resolved["settings"]["reward"]["model"]) == 32


def test_models_that_are_no_reward_models(judge: Path, base: Base, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"reward\.model: .*none: expected the folder"):
        model_reward("none", tmp_path)
    with pytest.raises(SettingsError, match=r"is a LlamaForCausalLM .* expected a sequence class"):
        model_reward(str(base[0]), tmp_path)
    folder = tmp_path / "broken"
    shutil.copytree(judge, folder)
    (folder / "config.json").write_text('{"model_type": "unheard-of"}')
    with pytest.raises(SettingsError, match="its config or tokenizer cannot be loaded"):
        model_reward(str(folder), tmp_path)
    two = json.loads((judge / "config.json").read_text())
    two |= {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}
    (folder / "config.json").write_text(json.dumps(two))
    with pytest.raises(SettingsError, match="with 2 outputs, expected"):
        model_reward(str(folder), tmp_path)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(SettingsError, match="its config or tokenizer cannot be loaded"):
        model_reward(str(folder), tmp_path)
