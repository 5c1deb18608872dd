"""Forgetting: the divergence of a model from its base on text that it was not trained on.

The measure is KL(base || tuned) of the next-token distributions, in nats, averaged over the tokens
of the text. It is 0 for the base itself, and needs no reference answers.

Source:
    Shenfeld, Pari and Agrawal 2025 (arXiv 2509.04259): the divergence from the base correlates with
    forgetting. There it is measured on the new task; here on neutral text, with the base first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from trimtab.errors import CheckpointError, SettingsError
from trimtab.inputs import MAX_DATA_BYTES, read_bytes
from trimtab.results.answers import Forgetting, Passage
from trimtab.words import one_line

if TYPE_CHECKING:
    from torch import Tensor

NEUTRAL = "neutral.txt"

PASSAGE = 512
"""Maximum number of tokens of a passage; longer ones are split."""

ROWS = 64
"""Tokens whose distributions are compared at a time, in fp64."""


@dataclass(frozen=True)
class NeutralText:
    """A text for the models to read.

    Attributes:
        source: The file, or a description of trimtab's text.
        digest: xxh3-128 of its bytes.
        passages: Passages, which are read separately.
    """

    source: str
    digest: str
    passages: tuple[str, ...]

    __repr__ = one_line

    def describe(self) -> dict[str, Any]:
        """The record of the text, for results."""
        return {
            "source": self.source,
            "xxh3_128": self.digest,
            "num_passages": len(self.passages),
        }


def read_text(path: Path | None = None) -> NeutralText:
    """Read a text; empty lines separate its passages.

    Args:
        path: A text file in UTF-8; None for trimtab's text.

    Raises:
        SettingsError: It cannot be read, or is empty.
    """
    if path is None:
        content = files("trimtab.training.evaluation").joinpath(NEUTRAL).read_bytes()
    else:
        content = read_bytes(path, SettingsError, limit=MAX_DATA_BYTES, where="text: ")
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise SettingsError(f"text: {path}: not UTF-8 ({error.reason})") from None
    passages: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            passages[-1].append(line)
        elif passages[-1]:
            passages.append([])
    written = tuple("\n".join(passage) for passage in passages if passage)
    if not written:
        raise SettingsError(f"text: {path}: it is empty")
    return NeutralText(
        "the neutral text of trimtab" if path is None else str(path),
        xxhash.xxh3_128_hexdigest(content),
        written,
    )


def passage_length(folder: Path) -> int:
    """Maximum tokens of a passage for a checkpoint: `PASSAGE`, or its context if that is less."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder).get_text_config()
    return min(PASSAGE, getattr(config, "max_position_embeddings", None) or PASSAGE)


def pieces(tokenizer: Any, text: NeutralText, length: int) -> list[list[int]]:
    """Token ids of the passages, split where they are too long; without those of a single token.

    Args:
        tokenizer: Tokenizer of both models.
        text: The text.
        length: Maximum tokens of a piece.

    Raises:
        SettingsError: There is no passage of two tokens or more.
    """
    passages = []
    for passage in text.passages:
        ids = tokenizer(passage)["input_ids"]
        cuts = [ids[start : start + length] for start in range(0, len(ids), length)]
        passages += [piece for piece in cuts if len(piece) > 1]
    if not passages:
        raise SettingsError(f"text: {text.source}: no passage of two tokens or more")
    return passages


def measure_forgetting(
    base: Any,
    tuned: Any,
    passages: Sequence[Sequence[int]],
    progress: Callable[[int, int], None] | None = None,
) -> Forgetting:
    """Compare the predictions of both models on passages, one at a time to avoid padding.

    Args:
        base: A causal language model of Transformers, in evaluation mode.
        tuned: Another one, with the same vocabulary.
        passages: Token ids of each passage; at least two.
        progress: Called with the number of passages read, and of all.

    Raises:
        CheckpointError: Predictions are not finite.
    """
    import torch

    rows = []
    for number, ids in enumerate(passages, start=1):
        with torch.no_grad():  # not inference mode, see `bf16_products`
            sums = sums_of(next_logits(base, ids), next_logits(tuned, ids), ids)
        if not all(map(isfinite, sums)):
            raise CheckpointError(
                "the divergence from the base is not finite: a model gives probability 0 to what "
                "the other expects, or its arithmetic overflows (try fp32)"
            )
        rows.append(Passage(len(ids) - 1, *sums))
        if progress is not None:
            progress(number, len(passages))
    return Forgetting(tuple(rows))


def next_logits(model: Any, ids: Sequence[int]) -> Tensor:
    """The logits after each token but the last."""
    import torch

    input_ids = torch.tensor([list(ids)], device=model.device)
    logits: Tensor = model(input_ids=input_ids, use_cache=False).logits[0, :-1]
    # The next operation is in fp64, which only CPUs and CUDA support.
    return logits if logits.device.type == "cuda" else logits.cpu()


def sums_of(base: Tensor, tuned: Tensor, ids: Sequence[int]) -> tuple[float, float, float]:
    """Divergence, surprise of the base and of the tuned model, summed over the tokens.

    In fp64: the divergence of two close models is a small difference of large numbers.
    """
    import torch

    following = torch.tensor(list(ids[1:]), device=base.device).unsqueeze(1)
    divergence = base_surprise = tuned_surprise = 0.0
    for chunk in (slice(start, start + ROWS) for start in range(0, len(following), ROWS)):
        tokens = following[chunk]
        log_base = base[chunk].double().log_softmax(1)
        log_tuned = tuned[chunk].to(log_base).log_softmax(1)
        probs = log_base.exp()
        terms = probs * (log_base - log_tuned)
        # A token of probability 0 under the base adds nothing.
        divergence += float(terms.masked_fill(probs == 0, 0.0).sum())
        base_surprise -= float(log_base.gather(1, tokens).sum())
        tuned_surprise -= float(log_tuned.gather(1, tokens).sum())
    return divergence, base_surprise, tuned_surprise
