"""Forgetting: how far a model has moved from its base on text that it was not trained on.

The base reads the text, and so does the tuned model. At every token both say how likely each next
token is; the figure is the divergence KL(base || tuned) of the two, in nats, averaged over tokens.
It is 0 for the base itself, and needs no right answers.

Source:
    Shenfeld, Pari and Agrawal 2025 (arXiv 2509.04259): the divergence from the base goes with how
    much is forgotten. There it is measured on the new task; here on neutral text, with the base
    first.
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
"""Tokens of a passage, at most; longer ones are cut."""

ROWS = 64
"""Tokens whose distributions are compared at a time, in fp64."""


@dataclass(frozen=True)
class NeutralText:
    """What the models read.

    Attributes:
        source: The file, or that it is trimtab's own.
        digest: xxh3-128 of its bytes.
        passages: Each is read on its own.
    """

    source: str
    digest: str
    passages: tuple[str, ...]

    __repr__ = one_line

    def describe(self) -> dict[str, Any]:
        """What is recorded of it."""
        return {
            "source": self.source,
            "xxh3_128": self.digest,
            "num_passages": len(self.passages),
        }


def read_text(path: Path | None = None) -> NeutralText:
    """Read a text; empty lines part its passages.

    Args:
        path: A text file in UTF-8; None for trimtab's own.

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
    """Tokens of a passage that a model reads, at most: `PASSAGE`, or its context if that is less.

    Args:
        folder: A checkpoint.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder).get_text_config()
    return min(PASSAGE, getattr(config, "max_position_embeddings", None) or PASSAGE)


def pieces(tokenizer: Any, text: NeutralText, length: int) -> list[list[int]]:
    """Token ids of the passages, cut where they are longer; those with nothing to predict left out.

    Args:
        tokenizer: Of both models.
        text: The text.
        length: Tokens of a piece, at most.

    Raises:
        SettingsError: Nothing is left.
    """
    found = []
    for passage in text.passages:
        ids = tokenizer(passage)["input_ids"]
        cuts = [ids[start : start + length] for start in range(0, len(ids), length)]
        found += [piece for piece in cuts if len(piece) > 1]
    if not found:
        raise SettingsError(f"text: {text.source}: no passage of two tokens or more")
    return found


def probe(
    base: Any,
    tuned: Any,
    passages: Sequence[Sequence[int]],
    progress: Callable[[int, int], None] | None = None,
) -> Forgetting:
    """Have both models read passages, one at a time, so that no figure depends on padding.

    Args:
        base: A causal language model of transformers, in evaluation mode.
        tuned: Another one, with the same vocabulary.
        passages: Token ids of each; two or more.
        progress: Called with passages read, and passages in all.

    Raises:
        CheckpointError: A model predicts something that is not finite.
    """
    import torch

    rows = []
    for number, ids in enumerate(passages, start=1):
        with torch.no_grad():  # and not inference mode: see `bf16_products`
            sums = sums_of(next_logits(base, ids), next_logits(tuned, ids), ids)
        if not all(map(isfinite, sums)):
            raise CheckpointError(
                "the divergence from the base is not finite: a model rules out what the other "
                "expects, or its arithmetic overflows (try fp32)"
            )
        rows.append(Passage(len(ids) - 1, *sums))
        if progress is not None:
            progress(number, len(passages))
    return Forgetting(tuple(rows))


def next_logits(model: Any, ids: Sequence[int]) -> Tensor:
    """What a model says after each token but the last."""
    import torch

    whole = torch.tensor([list(ids)], device=model.device)
    logits: Tensor = model(input_ids=whole, use_cache=False).logits[0, :-1]
    # fp64 is wanted next, which only CPUs and CUDA have.
    return logits if logits.device.type == "cuda" else logits.cpu()


def sums_of(base: Tensor, tuned: Tensor, ids: Sequence[int]) -> tuple[float, float, float]:
    """Divergence, surprise of the base and of the tuned model, summed over the tokens.

    In fp64: the divergence of two close models is a small difference of large numbers.
    """
    import torch

    following = torch.tensor(list(ids[1:]), device=base.device).unsqueeze(1)
    divergence = base_surprise = tuned_surprise = 0.0
    for chunk in (slice(start, start + ROWS) for start in range(0, len(following), ROWS)):
        of_base, of_tuned, tokens = base[chunk], tuned[chunk], following[chunk]
        log_base = of_base.double().log_softmax(1)
        log_tuned = of_tuned.to(log_base).log_softmax(1)
        chances = log_base.exp()
        terms = chances * (log_base - log_tuned)
        # A token that the base rules out adds nothing, whatever the tuned model says of it.
        divergence += float(terms.masked_fill(chances == 0, 0.0).sum())
        base_surprise -= float(log_base.gather(1, tokens).sum())
        tuned_surprise -= float(log_tuned.gather(1, tokens).sum())
    return divergence, base_surprise, tuned_surprise
