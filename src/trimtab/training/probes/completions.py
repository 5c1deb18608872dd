"""Prompts and completions as tokens: given ones, or samples of the model itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import xxhash

from trimtab.errors import SettingsError
from trimtab.training.probes.data import ProbeData
from trimtab.training.rollouts.samples import Samples
from trimtab.training.rollouts.sampling import Sampling, end_tokens, left_padded, sample
from trimtab.training.runs.data import prompt_ids
from trimtab.words import first_few

__all__ = ["Sampler", "Tokens", "given", "one_by_one", "padded"]

Tokens = tuple[list[int], list[int]]
"""Token ids of a prompt, and of its completion."""


class Sampler:
    """A model that completes prompts, and the judge of what it says."""

    def __init__(self, model: Any, tokenizer: Any, data: ProbeData, seed: int) -> None:
        """Prepare to sample at temperature 1 from the whole distribution.

        Args:
            model: A causal language model of transformers.
            tokenizer: Of the model.
            data: What ends a completion, and what judges it.
            seed: With the number of a batch it decides what is drawn.

        Raises:
            SettingsError: Nothing ends a completion.
        """
        self._model = model
        self._tokenizer = tokenizer
        self._data = data
        self._seed = seed
        ends = end_tokens(model, tokenizer)
        if data.stop is not None:
            ends = (*ends, _stop_token(tokenizer, data.stop))
        pad = tokenizer.pad_token_id
        self._sampling = Sampling(
            max_completion_length=data.max_completion_length,
            temperature=1.0,
            top_p=1.0,
            end_tokens=ends,
            pad_token=ends[0] if pad is None else pad,
        )

    def draw(self, rows: Sequence[Mapping[str, Any]], number: int) -> Samples:
        """A completion of each row's prompt. The random state is left as it was.

        Args:
            rows: A row counts as often as it is there.
            number: Of the batch.
        """
        device = self._model.device
        devices = [] if device.type == "cpu" else [device]
        ids = [prompt_ids(self._tokenizer, row["prompt"]) for row in rows]
        with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
            torch.manual_seed(xxhash.xxh3_64_intdigest(f"{self._seed}/{number}".encode()))
            return sample(self._model, ids, self._sampling)

    def rewards(self, rows: Sequence[Mapping[str, Any]], samples: Samples) -> list[float]:
        """What the completions are worth.

        Args:
            rows: Those that were completed.
            samples: Their completions.

        Raises:
            SettingsError: The reward fails.
        """
        assert self._data.reward is not None, "the data was read with a reward"
        pairs = zip(samples.completion_ids, samples.completion_mask, strict=True)
        texts = self._tokenizer.batch_decode(
            [ids[mask] for ids, mask in pairs], skip_special_tokens=True
        )
        return self._data.reward.of(rows, texts)


def given(tokenizer: Any, data: ProbeData) -> list[Tokens]:
    """Prompts and completions of all rows as tokens.

    What ends a text is learned, too: the tokenizer's end token, unless the end of a line ends it.

    Raises:
        SettingsError: Some rows cannot be written as tokens; the first few are named.
    """
    problems = []
    pairs = []
    for number, row in enumerate(data.rows.rows, start=1):
        prompt = prompt_ids(tokenizer, row["prompt"])
        if isinstance(row["prompt"], str):
            completion = tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
            if not data.rows.ends_with_line and tokenizer.eos_token_id is not None:
                completion = [*completion, tokenizer.eos_token_id]
        else:
            written = tokenizer.apply_chat_template(
                [*row["prompt"], *row["completion"]], tokenize=True, return_dict=True
            )["input_ids"]
            completion = written[len(prompt) :]
            if written[: len(prompt)] != prompt:
                problems.append(f"row {number}: the chat template alters a prompt that is answered")
        if not completion:
            problems.append(f"row {number}: the completion has no token")
        pairs.append((prompt, list(completion)))
    if problems:
        raise SettingsError(f"{data.rows.source}: {first_few(problems, '; ')}")
    return pairs


def padded(pairs: Sequence[Tokens], device: Any) -> Samples:
    """Prompts and completions side by side in tensors, as the model takes them."""
    prompts, prompt_mask = left_padded([prompt for prompt, _ in pairs], 0)
    # Padding on the right is padding on the left, read backwards.
    backwards, mask = left_padded([completion[::-1] for _, completion in pairs], 0)
    return Samples(
        prompt_ids=prompts.to(device),
        prompt_mask=prompt_mask.to(device),
        completion_ids=backwards.flip(1).to(device),
        completion_mask=mask.flip(1).to(device),
        has_ended=torch.ones(len(pairs), dtype=torch.bool, device=device),
    )


def one_by_one(samples: Samples) -> Iterator[Samples]:
    """Each row by itself, without padding."""
    for row in range(len(samples)):
        prompt = samples.prompt_ids[row][samples.prompt_mask[row]]
        completion = samples.completion_ids[row][samples.completion_mask[row]]
        yield padded([(prompt.tolist(), completion.tolist())], samples.prompt_ids.device)


def _stop_token(tokenizer: Any, stop: str) -> int:
    ids = tokenizer(stop, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise SettingsError(
            f"the text {stop!r} that ends a completion has {len(ids)} tokens: give one of a single "
            "token, or none"
        )
    token: int = ids[0]
    return token
