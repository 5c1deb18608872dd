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

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from math import exp, isfinite, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import xxhash

from trimtab.errors import CheckpointError, SettingsError
from trimtab.inputs import MAX_DATA_BYTES, read_bytes
from trimtab.results.schema import Amount
from trimtab.training.evaluation.intervals import Interval, normal_interval
from trimtab.words import one_line, plural

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "PASSAGE",
    "Forgetting",
    "NeutralText",
    "next_logits",
    "passage_length",
    "pieces",
    "probe",
    "read_text",
    "sums_of",
]

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


@dataclass(frozen=True)
class Forgetting:
    """How two models read the same text; one entry for each passage.

    Attributes:
        num_tokens: Tokens that are predicted.
        divergence: Sum of KL(base || tuned) over them, in nats.
        base_surprise: Sum of -log p of each token under the base, in nats.
        tuned_surprise: The same under the tuned model.
    """

    READ_AS: ClassVar[type]

    num_tokens: tuple[int, ...]
    divergence: tuple[float, ...]
    base_surprise: tuple[float, ...]
    tuned_surprise: tuple[float, ...]

    def __repr__(self) -> str:
        return one_line(self, f"KL {self.kl:.4g} over {plural(sum(self.num_tokens), 'token')}")

    @property
    def kl(self) -> float:
        """KL(base || tuned) of a token, in nats; every token counts alike."""
        return sum(self.divergence) / sum(self.num_tokens)

    @property
    def kl_standard_error(self) -> float | None:
        """Standard error of `kl`, over passages; None for fewer than two.

        Source:
            Cochran 1977, Sampling Techniques, sec. 6.4: the standard error of a ratio.
        """
        num = len(self.num_tokens)
        if num < 2:
            return None
        residuals = (
            divergence - self.kl * tokens
            for divergence, tokens in zip(self.divergence, self.num_tokens, strict=True)
        )
        variance = sum(residual**2 for residual in residuals) * num / (num - 1)
        return sqrt(variance) / sum(self.num_tokens)

    @property
    def kl_interval(self) -> Interval | None:
        """Of `kl`, over passages; None for fewer than two."""
        error = self.kl_standard_error
        return None if error is None else normal_interval(self.kl, error, low=0.0)

    @property
    def base_perplexity(self) -> float:
        """Of the base: e to the power of its mean surprise at a token."""
        return exp(sum(self.base_surprise) / sum(self.num_tokens))

    @property
    def tuned_perplexity(self) -> float:
        """Of the tuned model."""
        return exp(sum(self.tuned_surprise) / sum(self.num_tokens))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the figures, and the sums of each passage."""
        return {
            "num_tokens": sum(self.num_tokens),
            "kl": self.kl,
            "kl_standard_error": self.kl_standard_error,
            "kl_interval": None if self.kl_interval is None else list(self.kl_interval),
            "base_perplexity": self.base_perplexity,
            "tuned_perplexity": self.tuned_perplexity,
            "passages": [
                dict(zip(self.__dict__, passage, strict=True))
                for passage in zip(*self.__dict__.values(), strict=True)
            ],
        }


@dataclass(frozen=True)
class _Passage:
    """A row of the JSON."""

    num_tokens: int
    divergence: float
    base_surprise: Amount
    tuned_surprise: Amount


@dataclass(frozen=True)
class _Passages:
    """Passages as the JSON has them; the figures beside them are computed anew."""

    PLAIN: ClassVar = (
        *("num_tokens=_derived", "kl=_derived", "kl_standard_error=_derived"),
        "kl_interval=_derived",
        *("base_perplexity=_derived", "tuned_perplexity=_derived", "passages"),
    )

    passages: tuple[_Passage, ...]

    def problems(self) -> Iterator[str]:
        """What cannot have been read."""
        if not self.passages:
            yield "it has no passages"
        for place, row in enumerate(self.passages):
            if row.num_tokens < 1:
                yield f"passages[{place}].num_tokens is {row.num_tokens}"

    def made(self) -> Forgetting:
        """The passages by column."""
        rows = self.passages
        return Forgetting(
            num_tokens=tuple(row.num_tokens for row in rows),
            divergence=tuple(row.divergence for row in rows),
            base_surprise=tuple(row.base_surprise for row in rows),
            tuned_surprise=tuple(row.tuned_surprise for row in rows),
        )


Forgetting.READ_AS = _Passages


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
        with torch.inference_mode():
            sums = sums_of(next_logits(base, ids), next_logits(tuned, ids), ids)
        if not all(map(isfinite, sums)):
            raise CheckpointError(
                "the divergence from the base is not finite: a model rules out what the other "
                "expects, or its arithmetic overflows (try fp32)"
            )
        rows.append((len(ids) - 1, *sums))
        if progress is not None:
            progress(number, len(passages))
    return Forgetting(*zip(*rows, strict=True))


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
