"""Models side by side: what is evaluated, in which dtype, and what is refused before any work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.training import tiny
from tests.training.evaluation.conftest import Pair
from tests.training.evaluation.test_answering import questions
from trimtab.errors import CheckpointError, MissingExtraError, SettingsError
from trimtab.results.evaluation import Evaluation
from trimtab.training.evaluation.answering import ask, load_model, load_tokenizer
from trimtab.training.evaluation.evaluate import evaluate
from trimtab.training.evaluation.forgetting import PASSAGE, measure_forgetting, pieces, read_text
from trimtab.training.evaluation.suites import Suites

pytestmark = pytest.mark.train

ASKED = questions(("a", "12+", "to be"))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("Some words to read.\n\nAnd some more.\n")
    return path


def test_base_and_tuned(pair: Pair, text: Path) -> None:
    result = evaluate(
        [str(pair.tuned)], base=str(pair.base), questions=ASKED, num_samples=3, text=text, seed=5
    )
    assert [model.record.id for model in result.models] == [str(pair.base), str(pair.tuned)]
    base, tuned = (load_model(folder, "bf16", "cpu") for folder in pair)
    tokenizer = load_tokenizer(pair.base)
    for item, model in zip(result.models, (base, tuned), strict=True):
        assert item.answers == ask(model, tokenizer, ASKED, seed=5, num_samples=3)
    passages = [
        tokenizer(passage)["input_ids"] for passage in ("Some words to read.", "And some more.")
    ]
    assert result.models[0].forgetting is None
    assert result.models[1].forgetting == measure_forgetting(base, tuned, passages)
    assert result.settings == {
        "dtype": "bf16",
        "seed": 5,
        "batch_size": 32,
        "num_samples": 3,
        "temperature": 1.0,
    }
    assert result.text is not None
    assert result.text["source"] == str(text)
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert Evaluation.from_dict(data) == result
    assert data["provenance"]["device"]["type"] == "cpu"


def test_without_a_base_nothing_is_read(pair: Pair) -> None:
    result = evaluate([str(folder) for folder in pair], questions=ASKED)
    assert result.text is None
    assert [model.forgetting for model in result.models] == [None, None]
    assert result.settings["temperature"] is None


def test_forgetting_alone(pair: Pair, text: Path) -> None:
    result = evaluate([str(pair.tuned)], base=str(pair.base), text=text)
    assert result.questions is None
    assert [model.answers for model in result.models] == [None, None]
    assert result.models[1].forgetting is not None


def test_our_own_text_is_read_by_default(pair: Pair) -> None:
    result = evaluate([str(pair.tuned)], base=str(pair.base))
    assert result.text is not None
    assert result.text["source"] == "the neutral text of trimtab"
    forgetting = result.models[1].forgetting
    assert forgetting is not None
    # One token for each character, so that passages are longer than the limit and are cut.
    cut = pieces(load_tokenizer(pair.base), read_text(), PASSAGE)
    assert [p.num_tokens for p in forgetting.passages] == [len(piece) - 1 for piece in cut]
    assert max(p.num_tokens for p in forgetting.passages) == PASSAGE - 1


@pytest.fixture
def wide(pair: Pair, tmp_path: Path) -> Path:
    """The base, stored in fp32."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "wide"
    shutil.copytree(pair.base, folder)
    model: Any = AutoModelForCausalLM.from_pretrained(pair.base, dtype="float32")
    model.save_pretrained(folder)
    return folder


def test_all_models_compute_in_one_dtype(pair: Pair, wide: Path, text: Path) -> None:
    result = evaluate([str(wide)], base=str(pair.base), text=text, questions=ASKED)
    assert result.settings["dtype"] == "fp32"
    assert result.models[1].forgetting is not None
    assert result.models[1].forgetting.kl == 0
    assert result.models[0].answers == result.models[1].answers
    narrow = evaluate([str(wide)], base=str(pair.base), text=text, dtype="bf16")
    assert narrow.settings["dtype"] == "bf16"
    assert narrow.models[1].forgetting is not None
    assert narrow.models[1].forgetting.kl == 0


@pytest.fixture
def unused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be loaded."""

    def fail(*_: Any, **__: Any) -> None:
        pytest.fail("a model was loaded")

    monkeypatch.setattr("trimtab.training.evaluation.evaluate.load_model", fail)


@pytest.mark.usefixtures("unused")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "nothing to evaluate"),
        ({"questions": ASKED, "num_samples": -1}, "num_samples is -1"),
        ({"questions": ASKED, "temperature": 0.0}, "temperature is 0.0, expected a number above 0"),
        ({"questions": ASKED, "temperature": float("inf")}, "temperature is inf"),
        ({"questions": ASKED, "batch_size": 0}, "batch_size is 0"),
        ({"questions": ASKED, "seed": -1}, "seed is -1"),
        ({"questions": ASKED, "text": Path("t")}, "t is for comparison with a base"),
        ({"batch_size": 0}, "batch_size is 0.*; nothing to evaluate"),
    ],
)
def test_settings_that_cannot_be_used(pair: Pair, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        evaluate([str(pair.base)], **settings)


@pytest.mark.usefixtures("unused")
def test_a_model_twice(pair: Pair) -> None:
    with pytest.raises(SettingsError, match=r"given twice: .*base"):
        evaluate([f"{pair.base}/"], base=str(pair.base))
    with pytest.raises(SettingsError, match="no models to evaluate"):
        evaluate([], base=str(pair.base))


@pytest.mark.usefixtures("unused")
def test_all_models_that_cannot_be_used_are_told(pair: Pair, tmp_path: Path) -> None:
    gone = [str(tmp_path / name) for name in ("one", "two")]
    with pytest.raises(SettingsError, match=r"one: no such.*two: no such"):
        evaluate([*gone, str(pair.base)], questions=ASKED)
    with pytest.raises(CheckpointError, match=r"one: no such"):
        evaluate(gone[:1], questions=ASKED)


@pytest.mark.usefixtures("unused")
def test_questions_that_do_not_fit(pair: Pair) -> None:
    with pytest.raises(SettingsError, match="prompts of rows 2 have too many tokens"):
        evaluate([str(pair.base)], questions=questions(("a", "b" * 3000)))
    asked = questions([[{"role": "user", "content": "a"}]])
    with pytest.raises(SettingsError, match="base has no chat template"):
        evaluate([str(pair.base)], questions=asked)


@pytest.mark.usefixtures("unused")
def test_models_that_cannot_be_read_beside_each_other(
    pair: Pair, text: Path, tmp_path: Path
) -> None:
    tiny.make_base(tmp_path / "small")
    with pytest.raises(SettingsError, match="vocabulary of 15 tokens and the base one of 98"):
        evaluate([str(tmp_path / "small")], base=str(pair.base), text=text)
    other = tmp_path / "other"
    shutil.copytree(pair.tuned, other)
    tiny.tokenizer("zyxwvutsrqponmlkjihgfedcba .").save_pretrained(other)
    with pytest.raises(SettingsError, match="tokenises the text differently from the base"):
        evaluate([str(other)], base=str(pair.base), text=text)


@pytest.mark.usefixtures("unused")
def test_suites_without_their_package(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'trimtab\[eval\]'"):
        evaluate([str(pair.base)], suites=Suites(("arc_easy",)))
