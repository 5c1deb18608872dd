"""The divergence against a dense fp64 reference; the text and its passages."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.training.evaluation.conftest import Pair
from tests.training.evaluation.results import forgetting_of
from trimtab.errors import CheckpointError, SettingsError
from trimtab.results.answers import Forgetting
from trimtab.results.schema import from_plain, to_plain
from trimtab.training.evaluation.answering import load_model, load_tokenizer
from trimtab.training.evaluation.forgetting import (
    NeutralText,
    measure_forgetting,
    pieces,
    read_text,
)

pytestmark = pytest.mark.train

THREE = forgetting_of((2, 3, 5), (0.2, 0.3, 1.5), (2.0, 3.0, 5.0), (4.0, 6.0, 10.0))


def test_figures_by_hand() -> None:
    assert THREE.kl == pytest.approx(0.2)
    # Residuals 0.2 - 0.4, 0.3 - 0.6, 1.5 - 1.0; variance 3/2 of their squares; over 10 tokens.
    assert THREE.kl_standard_error == pytest.approx(math.sqrt(1.5 * (0.04 + 0.09 + 0.25)) / 10)
    # 1.96 standard errors of 0.0755, cut at 0.
    assert THREE.kl_interval == pytest.approx((0.0520, 0.3480), abs=1e-4)
    assert THREE.base_perplexity == pytest.approx(math.e)
    assert THREE.tuned_perplexity == pytest.approx(math.e**2)
    single = forgetting_of((2,), (0.2,), (1.0,), (1.0,))
    assert single.kl_standard_error is None
    assert single.kl_interval is None
    assert to_plain(single)["kl_interval"] is None


def test_round_trip_through_json() -> None:
    data = json.loads(json.dumps(to_plain(THREE), allow_nan=False))
    assert from_plain(Forgetting, data, what="passages") == THREE
    assert data["num_tokens"] == 10
    assert len(data["passages"]) == 3


def test_equal_passages_have_the_standard_error_of_a_mean() -> None:
    result = forgetting_of((4, 4, 4), (1.0, 2.0, 6.0), (1.0,) * 3, (1.0,) * 3)
    means = [0.25, 0.5, 1.5]
    spread = math.sqrt(sum((mean - 0.75) ** 2 for mean in means) / 2)
    assert result.kl_standard_error == pytest.approx(spread / math.sqrt(3))


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_probe_is_the_dense_divergence(pair: Pair, dtype: str) -> None:
    """Reference: both distributions of all tokens as fp64 probabilities, no chunks, no gather."""
    import torch

    base, tuned = (load_model(folder, dtype, "cpu") for folder in pair)
    passages = [list(range(3, 40)), [5, 6], [(7 * place) % 90 + 2 for place in range(150)]]
    seen: list[tuple[int, int]] = []
    result = measure_forgetting(
        base, tuned, passages, lambda done, total: seen.append((done, total))
    )
    assert [passage.num_tokens for passage in result.passages] == [36, 1, 149]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for place, ids in enumerate(passages):
        with torch.no_grad():
            p, q = (
                torch.softmax(model(torch.tensor([ids])).logits[0].double(), -1)
                for model in (base, tuned)
            )
        divergence = surprise_p = surprise_q = 0.0
        for step, token in enumerate(ids[1:]):
            divergence += float((p[step] * (p[step] / q[step]).log()).sum())
            surprise_p -= math.log(float(p[step, token]))
            surprise_q -= math.log(float(q[step, token]))
        assert result.passages[place].divergence == pytest.approx(divergence, rel=1e-9)
        assert result.passages[place].base_surprise == pytest.approx(surprise_p, rel=1e-9)
        assert result.passages[place].tuned_surprise == pytest.approx(surprise_q, rel=1e-9)
    assert result.kl > 1e-5


def test_a_model_has_forgotten_nothing_of_itself(pair: Pair) -> None:
    base = load_model(pair.base, "bf16", "cpu")
    result = measure_forgetting(base, base, [[3, 4, 5, 6]])
    assert result.kl == 0
    assert result.base_perplexity == result.tuned_perplexity


def test_what_the_base_rules_out_adds_nothing() -> None:
    """Infinities on both sides: a vocabulary that is padded with minus infinity."""
    import torch

    class Fixed(torch.nn.Module):
        def __init__(self, logits: list[float]) -> None:
            super().__init__()
            self.device = torch.device("cpu")
            self._logits = torch.tensor(logits)

        def forward(self, input_ids: Any, use_cache: bool) -> Any:
            class Output:
                logits = self._logits.expand(*input_ids.shape, -1)

            return Output()

    base = Fixed([0.0, 0.0, -math.inf])
    assert measure_forgetting(base, Fixed([0.0, 0.0, 0.0]), [[0, 1]]).kl == pytest.approx(
        math.log(3 / 2)
    )
    assert measure_forgetting(base, base, [[0, 1]]).kl == 0
    with pytest.raises(CheckpointError, match="not finite"):
        measure_forgetting(Fixed([0.0, 0.0, 0.0]), base, [[0, 1]])


def test_our_own_text_is_of_a_useful_size() -> None:
    text = read_text()
    words = [len(passage.split()) for passage in text.passages]
    assert sum(words) > 2000
    assert len(words) >= 15
    assert min(words) > 60
    assert max(words) < 200
    assert text.source == "the neutral text of trimtab"


def test_empty_lines_part_passages(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("\n\none\ntwo\n \n\nthree\n", encoding="utf-8")
    text = read_text(path)
    assert text.passages == ("one\ntwo", "three")
    assert text.describe()["num_passages"] == 2
    assert text.describe()["source"] == str(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "it is empty"), (b" \n\n", "it is empty"), (b"\xff", "not UTF-8")],
)
def test_texts_that_cannot_be_read(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=message):
        read_text(path)


def test_no_text(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.txt: no such file"):
        read_text(tmp_path / "none.txt")


def test_passages_are_cut_and_single_tokens_left_out(pair: Pair) -> None:
    tokenizer = load_tokenizer(pair.base)
    text = NeutralText("here", "", ("abcdefg", "h", "ij"))
    cut = pieces(tokenizer, text, 3)
    assert [tokenizer.decode(piece) for piece in cut] == ["abc", "def", "ij"]
    with pytest.raises(SettingsError, match="no passage of two tokens"):
        pieces(tokenizer, NeutralText("here", "", ("h",)), 3)
