"""`Settings`: the content of a run file, checked without opening other files.

All problems are reported together. Paths are relative to the run file, so it can be moved together
with its data and used from any folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from trimtab.errors import SettingsError
from trimtab.inputs import read_json, read_toml
from trimtab.masks.makers.kinds import KINDS
from trimtab.results.tables import check_table, unknown_key
from trimtab.training.runs.algorithms import ALGORITHMS, Algorithm
from trimtab.training.runs.evaluate_table import EvaluateTable
from trimtab.training.runs.factors import with_factors

CELL_FORMAT, CELL_VERSION = "trimtab.cell", 1
"""Format of the run of a cell of a sweep."""

ADDITION = "addition"

REASONING_GYM = "reasoning_gym:"
"""Prefix of the tasks of that package."""


@dataclass(frozen=True)
class DataTable:
    """`[data]`: exactly one of `file` and `task`.

    Attributes:
        file: JSON Lines.
        task: `addition`, or `reasoning_gym:` and the name of a task of that package.
        size: Number of questions of a reasoning-gym task.
        chat: Whether its questions are user messages instead of texts.
        config: Configuration of a reasoning-gym task.
        seed: Seed for the questions of a task; None for the seed of the run.
    """

    file: str | None = None
    task: str | None = None
    size: int = 500
    chat: bool = False
    config: dict[str, Any] | None = None
    seed: int | None = None

    @property
    def is_gym(self) -> bool:
        """Whether it is a task of reasoning-gym."""
        return self.task is not None and self.task.startswith(REASONING_GYM)


@dataclass(frozen=True)
class RewardTable:
    """`[reward]`: exactly one of `function`, `kind` and `model`.

    Attributes:
        function: `file.py:name`, called as TRL calls a reward function.
        kind: A built-in comparison of the completion with a column of the data.
        column: The column with the correct answer; for `kind`.
        pattern: Regular expression whose first group is the answer; for `kind = "regex"`.
        model: Folder of a sequence classifier whose single output is the reward.
    """

    function: str | None = None
    kind: Literal["exact", "regex", "math"] | None = None
    column: str = "answer"
    pattern: str | None = None
    model: str | None = None


@dataclass(frozen=True)
class SamplesTable:
    """`[samples]`: train on samples of the model itself, judged by the reward.

    Attributes:
        num: Samples per prompt.
        temperature: Sampling temperature.
        max_completion_length: Maximum number of tokens of a sample.
        stop: A text that ends a sample, in addition to the end token.
        rule: Which samples are good: `threshold`, those with enough reward; `best`, the one of
            each prompt with the highest reward, paired with the one with the lowest.
        threshold: Minimum reward of a good sample; for `rule = "threshold"`.
        most: Maximum number of good samples (or pairs) per prompt; None for all.
        batch_size: Samples that are drawn at a time.
    """

    num: int = 8
    temperature: float = 1.0
    max_completion_length: int = 256
    stop: str | None = None
    rule: Literal["threshold", "best"] = "threshold"
    threshold: float = 1.0
    most: int | None = None
    batch_size: int = 32


@dataclass(frozen=True)
class OptimizerTable:
    """`[optimizer]`.

    Attributes:
        name: The algorithm.
        master: How masked elements keep fp32 precision; by default the choice of `SparseAdamW`.
        state_dtype: Dtype of the moments; int8 is a code of 8 bits for each.
        clip_by: Norm by which gradients are clipped.
        nonfinite: What to do on a gradient that is not finite.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    master: Literal["lo16", "lo8", "fp32", "none"] | None = None
    state_dtype: Literal["fp32", "bf16", "int8"] = "fp32"
    clip_by: Literal["masked", "full"] = "masked"
    nonfinite: Literal["raise", "skip"] = "raise"


@dataclass(frozen=True)
class AutoTable:
    """`[auto]`, for `mask = "auto"`.

    Attributes:
        probe: How the mask is found: `adamw` trains everything for some steps and selects the moved
            elements; `gradients` trains nothing and selects those with the largest gradients.
        steps: Maximum number of steps of the probe.
        every: Steps between two looks at the moved elements.
        settle: The probe ends when a smaller share of the moved elements is new since the last
            look.
        density: Fraction of all elements to select; for `gradients` only.
    """

    probe: Literal["adamw", "gradients"] = "adamw"
    steps: int = 50
    every: int = 10
    settle: float = 0.05
    density: float | None = None


@dataclass(frozen=True)
class PublishTable:
    """`[publish]`: the weights are published as they are trained, for engines that follow.

    Attributes:
        to: Where: a folder, or the URL of an object store.
        every: Optimizer steps from one version to the next.
        whole: Whether the base is published, too, for followers that do not have it.
    """

    to: str = ""
    every: int = 1
    whole: bool = False


@dataclass(frozen=True)
class RolloutsTable:
    """`[rollouts]`: completions are sampled by a vLLM server that follows the run.

    Attributes:
        engine: URL of the server.
        max_staleness: Versions that it may be behind; 0 is on policy.
        follower: Name of the engine, if somebody else lets it follow; by default the run does.
        model: Name of the served model; by default the first that the server names.
        timeout: Seconds that it may take to answer a request, or to get to a version.
        importance_cap: For PPO and PRIME: largest weight of a token, by the ratio of its
            probabilities under trainer and engine; 0 for no weights.
    """

    engine: str = ""
    max_staleness: int = 0
    follower: str | None = None
    model: str | None = None
    timeout: float = 600.0
    importance_cap: float = 2.0


def contradictions(top: Mapping[str, Any], tables: Mapping[str, Any]) -> Iterator[str]:
    """Yield the contradictions in a run file.

    Args:
        top: The top-level keys.
        tables: The tables that the file has.
    """
    if not 0 <= top.get("seed", 0) < 2**32:
        yield f"seed is {top['seed']}, expected 0 to 2**32 - 1"
    yield from (f"{key} is empty" for key in ("model", "output", "mask") if top.get(key) == "")
    if not 0 <= top.get("dropout", 0) < 1:
        yield f"dropout is {top['dropout']}, expected at least 0 and below 1"
    if (track := top.get("track")) is not None:
        yield from _of_track(track, top.get("mask"), tables.get("auto", AutoTable()))
    data, reward, samples = (tables.get(name) for name in ("data", "reward", "samples"))
    if data is not None:
        yield from _of_data(data)
    if reward is not None:
        yield from _of_reward(reward)
    if samples is not None:
        yield from _of_samples(samples)
    yield from _of_sync(top.get("algorithm"), tables.get("publish"), tables.get("rollouts"))
    yield from _of_algorithm(top.get("algorithm"), data, "reward" in tables, "samples" in tables)
    yield from _of_mask(top.get("mask"), tables.get("optimizer"))
    if top.get("also"):
        yield from _of_also(top.get("mask"), tables.get("auto", AutoTable()))
    if (auto := tables.get("auto")) is not None:
        yield from _of_auto(top.get("mask"), auto)
    if (evaluate := tables.get("evaluate")) is not None:
        yield from evaluate.problems()


def _of_track(track: int, mask: str | None, auto: AutoTable | None) -> Iterator[str]:
    if track < 1:
        yield f"track is {track}, expected a number of steps from 1 on"
    if mask == "auto" and auto is not None and auto.probe == "adamw":
        yield 'track: mask = "auto" with probe = "adamw" trains twice, and only one can be tracked'


def _of_also(mask: str | None, auto: AutoTable | None) -> Iterator[str]:
    if mask in ("none", "all"):
        yield f'also has no effect with mask = "{mask}", which trains everything'
    if mask == "auto" and auto is not None and auto.probe == "adamw":
        yield 'also: not with mask = "auto" and probe = "adamw", which selects what moves'


def _of_data(data: DataTable) -> Iterator[str]:
    if (data.file is None) == (data.task is None):
        yield "data: expected one of file and task"
    if data.task not in (None, ADDITION) and not data.is_gym:
        yield f'data.task is "{data.task}", expected "{ADDITION}" or "{REASONING_GYM}NAME"'
    if not data.is_gym:
        yield from _without_effect(
            "data",
            data,
            DataTable(),
            ("size", "chat", "config"),
            f'without a task "{REASONING_GYM}…"',
        )
    if data.seed is not None and data.task is None:
        yield "data.seed has no effect without a task"
    elif not 0 <= (data.seed or 0) < 2**32:
        yield f"data.seed is {data.seed}, expected 0 to 2**32 - 1"
    if data.size < 1:
        yield f"data.size is {data.size}, expected at least 1"


def _of_reward(reward: RewardTable) -> Iterator[str]:
    ways = [way for way in ("function", "kind", "model") if getattr(reward, way) is not None]
    if len(ways) != 1:
        yield "reward: expected one of function, kind and model"
        return
    if reward.kind is None:
        names = ("column", "pattern")
        yield from _without_effect("reward", reward, RewardTable(), names, f"with {ways[0]}")


def _of_samples(samples: SamplesTable) -> Iterator[str]:
    for name in ("num", "max_completion_length", "batch_size", "most"):
        if (value := getattr(samples, name)) is not None and value < 1:
            yield f"samples.{name} is {value}, expected at least 1"
    if not samples.temperature > 0:
        yield f"samples.temperature is {samples.temperature}, expected above 0"
    if samples.stop == "":
        yield "samples.stop is empty"
    if samples.rule == "best":
        names = ("threshold", "most")
        yield from _without_effect("samples", samples, SamplesTable(), names, 'with rule = "best"')


def _of_sync(
    algorithm: str | None, publish: PublishTable | None, rollouts: RolloutsTable | None
) -> Iterator[str]:
    if publish is not None and not publish.to:
        yield "publish: expected a key to: a folder, or the URL of an object store"
    if publish is not None and publish.every < 1:
        yield f"publish.every is {publish.every}, expected at least 1"
    if rollouts is None:
        return
    if not rollouts.engine.startswith(("http://", "https://")):
        yield f'rollouts.engine is "{rollouts.engine}", expected the URL of a vLLM server'
    if publish is None:
        yield "rollouts: without a table [publish] the engine would keep the weights of the base"
    known = ALGORITHMS.get(algorithm or "")
    if known is not None and not known.takes_reward:
        yield f"rollouts: {algorithm} samples nothing while it trains"
    for name, least in (("max_staleness", 0), ("importance_cap", 0), ("timeout", 1)):
        if (value := getattr(rollouts, name)) < least:
            yield f"rollouts.{name} is {value}, expected at least {least}"


def _of_algorithm(
    name: str | None, data: DataTable | None, has_reward: bool, has_samples: bool
) -> Iterator[str]:
    if name is None:
        return
    if name not in ALGORITHMS:
        near = get_close_matches(name, ALGORITHMS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(ALGORITHMS)}"
        yield f'algorithm is "{name}": {hint}'
        return
    algorithm = ALGORITHMS[name]
    if has_samples and algorithm.made_of_samples is None:
        yield f"samples: {_why_no_samples(algorithm)}"
        return
    is_rewarded = algorithm.takes_reward or algorithm.needs_samples or has_samples
    has_task = data is not None and data.task is not None
    if has_reward and not is_rewarded:
        hint = " without [samples]" if algorithm.made_of_samples else ""
        yield f"reward: {name} takes none{hint}"
    elif has_reward and has_task:
        yield "reward: a task brings its own"
    elif is_rewarded and not has_reward and not has_task:
        yield f"{name} needs a table [reward], with function, kind or model"
    learns_wrong_ones = "rejected" in algorithm.columns or "label" in algorithm.columns
    if data is not None and data.is_gym and not is_rewarded and learns_wrong_ones:
        yield f"data.task: reasoning_gym has no wrong answers for {name}: add a table [samples]"


def _why_no_samples(algorithm: Algorithm) -> str:
    if algorithm.takes_reward:
        return f"{algorithm.name} draws its samples while it trains"
    return f'{algorithm.name} trains on the data: expected algorithm = "rft" for samples of its own'


def _of_mask(mask: str | None, optimizer: OptimizerTable | None) -> Iterator[str]:
    if mask == "none" and optimizer is not None:
        default = OptimizerTable(name=optimizer.name)
        names = [field.name for field in fields(default)]
        yield from _without_effect("optimizer", optimizer, default, names, 'with mask = "none"')
    kind, colon, density = (mask or "").partition(":")
    if kind in KINDS:
        try:
            good = bool(colon) and 0 < float(density) <= 1
        except ValueError:
            good = False
        if not good:
            yield f'mask is "{mask}", expected {kind}:DENSITY, above 0 and at most 1'


def _of_auto(mask: str | None, auto: AutoTable) -> Iterator[str]:
    if mask != "auto":
        yield 'auto: for mask = "auto" only'
    for name, minimum in (("steps", 1), ("every", 1), ("settle", 0)):
        if (value := getattr(auto, name)) < minimum:
            yield f"auto.{name} is {value}, expected at least {minimum}"
    if auto.probe == "gradients" and (auto.density is None or not 0 < auto.density < 1):
        yield f'auto.density is {auto.density}, and probe = "gradients" needs one between 0 and 1'
    if auto.probe == "adamw" and auto.density is not None:
        yield 'auto.density has no effect with probe = "adamw": the mask is what moved'


def _without_effect(
    table: str, given: object, default: object, names: Any, where: str
) -> Iterator[str]:
    """Yield keys that are set but not used."""
    for name in names:
        if getattr(given, name) != getattr(default, name):
            yield f"{table}.{name} has no effect {where}"


@dataclass(frozen=True)
class Settings:
    """The content of a run file.

    Attributes:
        path: The TOML file.
        algorithm: A key of `ALGORITHMS`.
        model: A checkpoint folder, or a hub id with an optional `@revision`.
        output: Output folder of the run.
        mask: A file, `KIND:DENSITY` (`random:0.05`, `low-magnitude:0.05`, and the other kinds of
            `trimtab.masks.makers.kinds`), `none`, `all` or `auto`.
        also: Parameters to train in full, in addition to the mask; see `train_only`.
        seed: Random seed.
        dtype: Dtype of the weights during training; None for that of the stored model.
        data: The training data, or the prompts for samples.
        reward: The reward; None if the file has no such table.
        samples: How samples of the model are drawn before training; None if they are not.
        optimizer: Settings of the sparse optimizer; the others are in `trainer`.
        auto: How `mask = "auto"` finds its mask.
        publish: Where the weights are published; None if they are not.
        rollouts: The engine that samples; None for the trainer itself.
        evaluate: The questions that are asked during training; None for none.
        trainer: Passed to the configuration class of TRL.
        save_dtype: Dtype of the saved weights: that of the stored model, or `fp32`.
        dropout: Probability of every dropout of the model; None for that of its config.
        track: Optimizer steps between two points of an `UpdateTracker`; None for no tracker.
        factors: The factors of the file; the keys that they stand for are already set.
        overrides: Dotted keys that were set on the command line -> values; already set.
    """

    path: Path
    algorithm: str
    model: str
    output: str
    mask: str
    data: DataTable
    seed: int = 0
    dtype: Literal["bf16", "fp32"] | None = None
    reward: RewardTable | None = None
    samples: SamplesTable | None = None
    optimizer: OptimizerTable = field(default_factory=OptimizerTable)
    auto: AutoTable = field(default_factory=AutoTable)
    publish: PublishTable | None = None
    rollouts: RolloutsTable | None = None
    evaluate: EvaluateTable | None = None
    trainer: Mapping[str, Any] = field(default_factory=dict)
    save_dtype: Literal["stored", "fp32"] = "stored"
    dropout: float | None = None
    track: int | None = None
    factors: Mapping[str, Any] = field(default_factory=dict)
    also: Sequence[str] = field(default_factory=list)
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> Settings:
        """Read and check a run file, or the run of a cell of a sweep (`.json`).

        Raises:
            SettingsError: The file cannot be read, or its settings are invalid; lists all problems.
        """
        return cls.of(*read_run_file(Path(path)))

    @classmethod
    def of(
        cls,
        path: str | Path,
        content: Mapping[str, Any],
        overrides: Mapping[str, Any] | None = None,
    ) -> Settings:
        """Check the content of a run file.

        Args:
            path: The run file, for messages and relative paths.
            content: The parsed TOML, with all overrides.
            overrides: Dotted keys that were set on the command line -> values.

        Raises:
            SettingsError: The settings are invalid; lists all problems.
        """
        path = Path(path)
        problems: list[str] = []
        content = with_factors(content, problems)
        tables = {
            name: _table(content, name, table, problems)
            for name, table in TABLES.items()
            if name in content
        }
        known = [field.name for field in fields(cls) if field.name not in NO_KEYS]
        problems += [unknown_key(key, known) for key in content if key not in known]
        given = {key: content[key] for key in known if key in content and key not in tables}
        top = check_table(cls, given, "", problems)
        missing = [key for key in _REQUIRED if key not in content]
        if missing:
            problems.append(f"missing: {', '.join(missing)}")
        problems += contradictions(top, tables)
        if problems:
            raise SettingsError(f"{_named(path, overrides)}: {'; '.join(problems)}")
        if ALGORITHMS[top["algorithm"]].needs_samples:
            tables.setdefault("samples", SamplesTable())
        return cls(path=path, overrides=overrides or {}, **top, **tables)

    @property
    def named(self) -> str:
        """The file in messages, with the keys that were set on the command line."""
        return _named(self.path, self.overrides)

    def resolve(self, name: str) -> Path:
        """A path of the file, relative to the folder of the file."""
        return self.path.parent / Path(name).expanduser()

    @property
    def task_seed(self) -> int:
        """Seed for the questions of a task."""
        return self.seed if self.data.seed is None else self.data.seed

    @property
    def made_mask(self) -> tuple[str, float] | None:
        """Kind and density of a mask that is made from the base; None for other masks."""
        kind, colon, density = self.mask.partition(":")
        return (kind, float(density)) if kind in KINDS and colon else None


TABLES: Mapping[str, type] = {
    "data": DataTable,
    "reward": RewardTable,
    "samples": SamplesTable,
    "optimizer": OptimizerTable,
    "auto": AutoTable,
    "publish": PublishTable,
    "rollouts": RolloutsTable,
    "evaluate": EvaluateTable,
    "trainer": dict,
    "factors": dict,
}
"""Table of a run file -> its dataclass."""

NO_KEYS = ("path", "overrides")
"""Fields of `Settings` that are no keys of a run file."""

_REQUIRED = ("algorithm", "model", "output", "mask", "data")


def _table(content: Mapping[str, Any], name: str, cls: type, problems: list[str]) -> Any:
    """A table of the file as its dataclass; None, and a problem, if it is not a table."""
    given = content[name]
    if not isinstance(given, dict):
        problems.append(f"{name} is not a table: expected [{name}] and its keys below")
        return None
    return given if cls is dict else cls(**check_table(cls, given, f"{name}.", problems))


def _named(path: Path, overrides: Mapping[str, Any] | None) -> str:
    return f"{path} with {', '.join(overrides)} set" if overrides else str(path)


def read_run_file(path: Path) -> tuple[Path, dict[str, Any]]:
    """Read a run file, or the run of a cell of a sweep (`.json`): its path, and its content.

    Raises:
        SettingsError: The file cannot be read.
    """
    if path.suffix == ".json":
        return _cell_content(path)
    return path, read_toml(path, SettingsError)


def _cell_content(path: Path) -> tuple[Path, dict[str, Any]]:
    """The run file of a cell of a sweep, and its content with the keys of the cell.

    Paths in the folder of the cell (`here`) are relative to it, so that it can be moved.
    """
    record = read_json(path, SettingsError)
    try:
        if (record["format"], record["format_version"]) != (CELL_FORMAT, CELL_VERSION):
            raise SettingsError(
                f"{path}: expected {CELL_FORMAT} of version {CELL_VERSION}, found "
                f"{record['format']!r} of {record['format_version']!r}"
            )
        run = (path.parent / record["run_file"]).resolve()
        relative = record.get("here", {"output": "out"})  # cells of 0.1 have nothing else there
        paths = {key: str((path.parent / target).resolve()) for key, target in relative.items()}
        return run, {**record["content"], **paths}
    except (LookupError, TypeError, AttributeError) as error:
        raise SettingsError(f"{path}: not the run of a cell ({error!r})") from None
