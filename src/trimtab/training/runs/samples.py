"""Samples of the base model: drawn before training, rewarded, selected, and stored with the run.

Every batch has its own seed and is written as soon as it is rewarded, so an interrupted run
continues with the next batch and draws the same samples::

    out/samples.partial.jsonl   one sample per line, while they are drawn
    out/samples.jsonl           all samples

The algorithm decides which are used: accepted ones, pairs, or all with a label. Identical samples
of a prompt count once; samples that were cut off at the length limit are not used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import xxhash

from trimtab.errors import CheckpointError, SettingsError
from trimtab.inputs import MAX_DATA_BYTES, read_bytes
from trimtab.progress import stage
from trimtab.results.journal import Journal
from trimtab.training.addition import ANSWER_END
from trimtab.training.runs.algorithms import Made
from trimtab.training.runs.data import Rows, prompt_ids
from trimtab.training.runs.prepare import Run, Stop
from trimtab.training.runs.settings import SamplesTable
from trimtab.training.runtime import give_back_unused

if TYPE_CHECKING:
    from rich.progress import Progress


@dataclass(frozen=True)
class Sample:
    """A sampled completion of a prompt.

    Attributes:
        completion: A text, or a list with one message.
        completion_ids: Its tokens as sampled, including the end token.
        reward: Its reward.
        has_ended: Whether it ended before the length limit.
    """

    completion: Any
    completion_ids: list[int]
    reward: float
    has_ended: bool


def select(
    prompts: Sequence[Any], samples: Sequence[Sequence[Sample]], made: Made, table: SamplesTable
) -> list[dict[str, Any]]:
    """Select rows to train on.

    Args:
        prompts: The prompts.
        samples: Samples of each prompt.
        made: Which kind of rows to make.
        table: Has the rule that separates good from bad samples.

    Returns:
        Rows with `prompt` and, by `made`: `completion` and `completion_ids`; `chosen` and
        `rejected`; or `completion` and `label`. In the order of the prompts; some may have none.
    """
    rows: list[dict[str, Any]] = []
    for prompt, group in zip(prompts, samples, strict=True):
        good, bad = _parted(_distinct(group), table)
        rows += ({"prompt": prompt, **row} for row in _rows(made, good, bad, table.most))
    return rows


def _distinct(group: Sequence[Sample]) -> list[Sample]:
    """The samples that ended, without duplicates."""
    first: dict[str, Sample] = {}
    for sample in group:
        if sample.has_ended:
            first.setdefault(str(sample.completion), sample)
    return list(first.values())


def _parted(group: Sequence[Sample], table: SamplesTable) -> tuple[list[Sample], list[Sample]]:
    """The good and the bad samples."""
    if table.rule == "threshold":
        good = [sample for sample in group if sample.reward >= table.threshold]
        return good, [sample for sample in group if sample.reward < table.threshold]
    if not group:
        return [], []
    by_reward = attrgetter("reward")
    best, worst = max(group, key=by_reward), min(group, key=by_reward)
    return [best], [worst] if worst.reward < best.reward else []


def _rows(
    made: Made, good: Sequence[Sample], bad: Sequence[Sample], most: int | None
) -> list[dict[str, Any]]:
    """Rows of one prompt, without the prompt; no sample is in two pairs."""
    good, bad = good[:most], bad[:most]
    match made:
        case "completions":
            return [
                {"completion": one.completion, "completion_ids": one.completion_ids} for one in good
            ]
        case "pairs":
            pairs = zip(good, bad, strict=False)
            return [{"chosen": one.completion, "rejected": two.completion} for one, two in pairs]
        case "labels":
            return [
                {"completion": sample.completion, "label": label}
                for label, samples in ((True, good), (False, bad))
                for sample in samples
            ]


SAMPLES = "samples.jsonl"
UNFINISHED = "samples.partial.jsonl"


def sampled_rows(run: Run, bars: Progress, stop: Stop) -> Rows:
    """Draw the samples of a run, or read those of an earlier call, and select rows from them.

    Returns:
        The rows to train on, with counts of samples in their details.

    Raises:
        SettingsError: The reward fails, or no rows are left to train on.
        CheckpointError: The stored samples are damaged.
        KeyboardInterrupt: `stop` returned True.
    """
    table, made = run.file.samples, run.algorithm.made_of_samples
    assert table is not None and made is not None, "the run file was checked for it"
    path = run.output / SAMPLES
    if not path.exists():
        _draw(run, table, bars, stop)
        (run.output / UNFINISHED).replace(path)
    content = read_bytes(path, CheckpointError, limit=MAX_DATA_BYTES)
    expected, cure = len(run.data.rows) * table.num, "delete the folder to start again"
    try:
        drawn = [Sample(**json.loads(line)) for line in content.splitlines()]
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error!r}): {cure}") from None
    if len(drawn) != expected:
        raise CheckpointError(f"{path} has {len(drawn)} samples, expected {expected}: {cure}")
    prompts = [row["prompt"] for row in run.data.rows]
    groups = [drawn[start : start + table.num] for start in range(0, len(drawn), table.num)]
    rows = select(prompts, groups, made, table)
    details = {
        "settings": asdict(table),
        "num_samples": len(drawn),
        "num_not_ended": sum(not sample.has_ended for sample in drawn),
        "mean_reward": sum(sample.reward for sample in drawn) / len(drawn),
        "num_prompts_used": len({str(row["prompt"]) for row in rows}),
    }
    if not rows:
        raise SettingsError(_nothing_left(run, drawn))
    return Rows(SAMPLES, rows, xxhash.xxh3_128_hexdigest(content), details=details)


def _draw(run: Run, table: SamplesTable, bars: Progress, stop: Stop) -> None:
    """Draw samples batch by batch, and write one line per sample."""
    unfinished = Journal(run.output / UNFINISHED, CheckpointError)
    per_batch = max(1, table.batch_size // table.num)
    rows = run.data.rows
    batches = [rows[start : start + per_batch] for start in range(0, len(rows), per_batch)]
    lines = unfinished.lines()
    first = len(lines) // (per_batch * table.num)
    unfinished.path.touch()
    unfinished.keep(lines[: first * per_batch * table.num])
    sampler = _Sampler(run, table)
    with stage(bars, f"{run.algorithm.name}: sample", len(batches)) as line:
        for number, batch in enumerate(batches[first:], start=first):
            if stop():
                raise KeyboardInterrupt
            unfinished.append(*(asdict(sample) for sample in sampler.batch(batch, number)))
            line.step(number + 1, {})
    del sampler
    give_back_unused()  # frees the model before another one is loaded for training


class _Sampler:
    """Samples from the base."""

    def __init__(self, run: Run, table: SamplesTable) -> None:
        from transformers import AutoTokenizer

        from trimtab.training.rollouts.sampling import Sampler

        self._run = run
        self._num = table.num
        self._stop = ANSWER_END if run.data.ends_with_line else table.stop
        self._tokenizer = AutoTokenizer.from_pretrained(run.base.folder)
        model = run.base.load(run.dtype).to(run.args.device)
        self._device = model.device
        self._sampler = Sampler(
            model,
            self._tokenizer,
            table.max_completion_length,
            temperature=table.temperature,
            stop=self._stop,
        )

    def batch(self, rows: Sequence[Mapping[str, Any]], number: int) -> Iterator[Sample]:
        """Rewarded samples of a batch of rows; `number`, the batch index, is part of the seed."""
        from trimtab.training.rollouts.sampling import ids_of, seeded

        repeated = [row for row in rows for _ in range(self._num)]
        ids = [prompt_ids(self._tokenizer, row["prompt"]) for row in repeated]
        seed = xxhash.xxh3_64_intdigest(f"{self._run.file.seed}/{number}".encode())
        with seeded(self._device, seed):
            samples = self._sampler.sample(ids)
        completions = ids_of(samples)
        ended = samples.has_ended.tolist()
        if self._stop is not None:
            cut = [self._up_to_stop(row) for row in completions]
            completions = [row for row, _ in cut]
            ended = [has or is_cut for has, (_, is_cut) in zip(ended, cut, strict=True)]
        texts: list[Any] = self._sampler.texts(completions)
        assert self._run.reward is not None, "the run file was checked for it"
        rewards = self._run.reward.of(repeated, texts)
        if self._run.data.has_messages:
            texts = [[{"role": "assistant", "content": text}] for text in texts]
        return map(Sample, texts, completions, rewards, ended)

    def _up_to_stop(self, completion: list[int]) -> tuple[list[int], bool]:
        """The tokens up to the one that completes the stop text, and whether it occurs."""
        assert self._stop is not None
        if self._stop in self._sampler.texts([completion])[0]:
            for length in range(1, len(completion)):
                if self._stop in self._sampler.texts([completion[:length]])[0]:
                    return completion[:length], True
            return completion, True
        return completion, False


def _nothing_left(run: Run, drawn: Sequence[Sample]) -> str:
    rewards = [sample.reward for sample in drawn]
    num_cut = sum(not sample.has_ended for sample in drawn)
    missing = {
        "completions": "no good sample",
        "pairs": "no prompt with both a good and a bad sample",
        "labels": "no sample that ended",
    }[str(run.algorithm.made_of_samples)]
    return (
        f"samples: {missing} among {len(drawn)} of {len(run.data.rows)} prompts: rewards from "
        f"{min(rewards):g} to {max(rewards):g}, and {num_cut} did not end within "
        "samples.max_completion_length. Change the reward, [samples] or the model, and take "
        "another folder"
    )
