"""`EngineRollouts`: a trainer's completions are sampled by a vLLM server that follows the run.

::

    publisher = DeltaPublisher("/shared/run").attach(trainer)
    EngineRollouts("http://127.0.0.1:8000", publisher).attach(trainer)

The trainer is a `GRPOTrainer` or `RLOOTrainer` of TRL, a `PPOTrainer` or a `PRIMETrainer`. In TRL
the place of its own `vllm_generation` is taken, which both trainers ask for samples and their
log-probabilities; `rollout_func` is of GRPO alone, and with it TRL corrects nothing.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trimtab.errors import SettingsError, SyncError
from trimtab.results.journal import Journal
from trimtab.sync.chain import at_place
from trimtab.sync.engines.client import Completion, EngineClient
from trimtab.sync.engines.control import EngineControl, absolute
from trimtab.sync.engines.drive import EngineDriver
from trimtab.training.rollouts.sampling import PolicyBatch, Samples, left_padded
from trimtab.training.rollouts.trainer import RolloutTrainer
from trimtab.training.sync.publisher import DeltaPublisher
from trimtab.words import one_line


class EngineRollouts:
    """Samples the completions of a trainer from a vLLM server.

    Before a batch is sampled, the engine is brought to the version that the trainer has published,
    unless it may be stale. Each sample is recorded with the version of the weights that it was
    sampled from: the engine says it before and after a batch, and both must be the same. (Of an
    engine that follows by itself and may be stale, the version before is recorded.)

    The log-probabilities of engine and trainer are compared, as soon as the trainer has computed
    its own, and logged: the mean and the largest of |difference|, and an estimate of
    KL(engine || trainer). They differ by arithmetic alone if the version is the trainer's.

    Attributes:
        client: The server.
        samples: How many were sampled from each version.
    """

    def __init__(
        self,
        engine: str,
        publisher: DeltaPublisher | None = None,
        *,
        max_staleness: int | None = 0,
        follower: str | None = None,
        model: str | None = None,
        timeout: float = 600.0,
        importance_cap: float | None = 2.0,
        record: str | os.PathLike[str] | None = None,
    ) -> None:
        """Set up; nothing is sent yet.

        Args:
            engine: URL of the server.
            publisher: What publishes the weights, at a place that the engine can read; attached to
                the trainer. Without one, the engine keeps its weights, which are as old as the
                number of steps.
            max_staleness: Versions that the engine may be behind; it is waited for. 0 is on policy:
                the weights of this very step, which are published for it if they were not. None is
                for any.
            follower: Name of the engine, if somebody else lets it follow the place; then its
                acknowledgements are waited for. By default the trainer tells the engine what to
                load, and when.
            model: Name of the served model; by default the first that the server names.
            timeout: Longest time in seconds that the engine may take to answer a request, or to get
                to a version.
            importance_cap: In PPO and PRIME, the advantage of a token is multiplied by the ratio
                of its probabilities under trainer and engine, at most this; None for no
                correction. TRL has settings of its own (`vllm_importance_sampling_*`).
            record: JSON Lines file that gets the step, version, number of tokens and sum of
                log-probabilities of each sample.

        Raises:
            SettingsError: The URL or a number cannot be used.

        Source:
            Mismatch of trainer and engine: Qi et al. 2025 (arXiv 2510.26788). The truncated ratio:
            Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL
            training", whose cap is 2. The estimate of the KL divergence: k3 of J. Schulman,
            "Approximating KL divergence", 2020.
        """
        if max_staleness is not None and max_staleness < 0:
            raise SettingsError(f"max_staleness is {max_staleness}, expected 0 or more")
        if importance_cap is not None and not 0 < importance_cap < math.inf:
            raise SettingsError(f"importance_cap is {importance_cap}, expected a number above 0")
        self.client = EngineClient(engine, model=model, timeout=timeout)
        self.samples: dict[int, int] = {}
        self._publisher, self._follower = publisher, follower
        self._driver: EngineDriver | None = None
        self._place = "" if publisher is None else absolute(str(publisher.place))
        if publisher is not None and follower is None:
            server = EngineControl(engine, timeout=timeout)
            self._driver = EngineDriver(server, self._place)
        self._max_staleness, self._timeout = max_staleness, timeout
        self._cap = importance_cap
        self._record = None if record is None else Journal(Path(record), SyncError)
        self._is_recorded = False
        self._trainer: Any = None
        self._pending: list[Completion] | None = None

    def __repr__(self) -> str:
        return one_line(self, f"{self.client.url}, {sum(self.samples.values()):,} samples")

    def attach(self, trainer: Any) -> None:
        """Let a trainer sample from the engine.

        Args:
            trainer: A `GRPOTrainer` or `RLOOTrainer` of TRL, a `PPOTrainer` or `PRIMETrainer`.

        Raises:
            SettingsError: It is another trainer, or has an engine or rollouts of its own.
            SyncError: The server cannot be asked; or its log-probabilities cannot be compared.
        """
        if trainer.args.world_size > 1:
            raise SettingsError("rollouts from an engine are of one process: start one")
        if isinstance(trainer, RolloutTrainer):
            if trainer.engine is not None:
                raise SettingsError(f"{type(trainer).__name__}: rollouts are attached already")
            self._check_log_probs(trainer.sampler.sampling.end_tokens[0], trainer.args.temperature)
            trainer.engine = self
        else:
            _check_trl(trainer)
            self._check_log_probs(trainer.eos_token_ids[0], trainer.temperature)
            trainer.use_vllm, trainer.vllm_mode = True, "server"
            trainer.vllm_generation = _Generation(self)
            trainer._last_loaded_step = -1
            self._observe(trainer)
        self._trainer = trainer

    def sample(self, prompts: Sequence[Sequence[int]]) -> Samples:
        """Complete the prompts of a round of PPO or PRIME."""
        sampling = self._trainer.sampler.sampling
        made = self.complete(
            prompts,
            max_tokens=sampling.max_completion_length,
            end_tokens=sampling.end_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
        )
        width = max(len(each.token_ids) for each in made)
        ids = torch.full((len(made), width), sampling.pad_token)
        log_probs = torch.zeros(len(made), width)
        for row, each in enumerate(made):
            ids[row, : len(each.token_ids)] = torch.tensor(each.token_ids)
            log_probs[row, : len(each.token_ids)] = torch.tensor(each.log_probs)
        lengths = torch.tensor([[len(each.token_ids)] for each in made])
        prompt_ids, prompt_mask = left_padded(prompts, sampling.pad_token)
        device = self._trainer.args.device
        return Samples(
            prompt_ids=prompt_ids.to(device),
            prompt_mask=prompt_mask.to(device),
            completion_ids=ids.to(device),
            completion_mask=(torch.arange(width) < lengths).to(device),
            has_ended=torch.tensor([each.has_ended for each in made]).to(device),
            engine_log_probs=log_probs.to(device),
        )

    def corrected(self, whole: PolicyBatch) -> PolicyBatch:
        """Compare the log-probabilities of a round, and weight its advantages."""
        engine, mask = whole.samples.engine_log_probs, whole.samples.completion_mask
        if engine is None:
            return whole
        self._compare(engine[mask], whole.log_probs[mask])
        if self._cap is None:
            return whole
        ratio = (whole.log_probs - engine).nan_to_num(0.0).exp().clamp(max=self._cap)
        return replace(whole, advantages=whole.advantages * ratio)

    def complete(self, prompts: Sequence[Sequence[int]], **sampling: Any) -> list[Completion]:
        """Sample a completion of each prompt, from weights that are as new as they must be.

        Args:
            prompts: Token ids; the same prompt may come several times in a row.
            **sampling: As of `EngineClient.complete`.

        Raises:
            SyncError: The engine cannot be asked, or does not get to the version.
        """
        groups = [(list(ids), len([*rows])) for ids, rows in groupby(map(list, prompts))]
        started = time.monotonic()
        wanted, version = self._wait()
        began = time.monotonic()
        made = self.client.complete(
            [ids for ids, _ in groups],
            [num for _, num in groups],
            seeds=torch.randint(1 << 62, (len(groups),)).tolist(),
            **sampling,
        )
        sampled = time.monotonic() - began
        after = self._served()
        if after != version and (self._driver is not None or self._max_staleness == 0):
            raise SyncError(
                f"{self.client.url}: the engine went from version {version} to {after} while it "
                "sampled: somebody else changes its weights; give its name as `follower` if it is "
                "to follow by itself"
            )
        flat = [completion for group in made for completion in group]
        self.samples[version] = self.samples.get(version, 0) + len(flat)
        self._write(version, flat)
        self._log("engine/version", version)
        self._log("engine/staleness", wanted - version)
        self._log("engine/wait_s", began - started)
        self._log("engine/sample_s", sampled)
        self._pending = flat
        return flat

    def _step(self) -> int:
        step: int = self._trainer.state.global_step
        return step

    def _wait(self) -> tuple[int, int]:
        """The version of the trainer, and that of the engine once it is new enough."""
        publisher, most = self._publisher, self._max_staleness
        if publisher is None:
            return self._without_publisher()
        if publisher.version is None or (most == 0 and publisher.step != self._step()):
            trainer = self._trainer
            publisher.publish(trainer.model, step=self._step(), tokenizer=trainer.processing_class)
        ends, pause = time.monotonic() + self._timeout, 0.01
        while True:
            wanted, served = publisher.version or 0, self._served()
            if served is not None and (most is None or wanted - served <= most):
                return wanted, served
            if time.monotonic() > ends:
                has = "no version" if served is None else f"version {served}"
                raise SyncError(
                    f"{self.client.url}: after {self._timeout:g} s the engine has {has}, and the "
                    f"trainer version {wanted}: look why it does not follow"
                )
            publisher.wait()
            driven = None if self._driver is None else self._driver.update()
            if driven is not None:
                self._log("engine/prepare_s", driven.seconds["prepare"])
                self._log("engine/pause_s", driven.seconds_paused)
                continue
            time.sleep(pause)
            pause = min(2 * pause, 1.0)

    def _without_publisher(self) -> tuple[int, int]:
        step, most = self._step(), self._max_staleness
        if most is not None and step > most:
            raise SyncError(
                f"{self.client.url}: the engine has the weights of step 0, and the trainer is at "
                f"step {step}: give EngineRollouts a DeltaPublisher, or set max_staleness"
            )
        return step, 0

    def _served(self) -> int | None:
        """The version that the engine has; None if it has none of the run."""
        publisher = self._publisher
        if publisher is None:
            return 0
        if self._driver is not None:
            status = self._driver.server.status()
            is_ours = status["place"] == str(at_place(self._place)) and status["is_whole"]
            return status["version"] if is_ours else None
        return next(
            (each.version for each in publisher.acknowledged() if each.name == self._follower), None
        )

    def _check_log_probs(self, token: int, temperature: float) -> None:
        """The log-probabilities must be those of the temperature at which samples are drawn."""
        if temperature == 1:
            return
        # Where no other token is allowed, its log-probability is 0 after processing alone.
        more = {"allowed_token_ids": [token]}
        [[made]] = self.client.complete(
            [[token]], [1], max_tokens=1, end_tokens=[token], temperature=temperature, more=more
        )
        if made.log_probs[0] < -1e-3:
            raise SyncError(
                f"{self.client.url}: its log-probabilities are those of temperature 1, and samples "
                f"are drawn at {temperature:g}: start it with --logprobs-mode processed_logprobs"
            )

    def _observe(self, trainer: Any) -> None:
        """Compare log-probabilities when TRL has computed its own."""
        compute = trainer._get_per_token_logps_and_entropies

        def computed(model: Any, *args: Any, **more: Any) -> Any:
            found = compute(model, *args, **more)
            pending = self._pending
            if pending is None or model is not trainer.model or torch.is_grad_enabled():
                return found
            self._pending = None
            if len(pending) == len(found[0]) and not getattr(trainer, "tools", None):
                engine = [value for each in pending for value in each.log_probs]
                own = [found[0][row, : len(each.log_probs)] for row, each in enumerate(pending)]
                whole = torch.cat(own)
                if len(whole) == len(engine):
                    self._compare(torch.tensor(engine, device=whole.device), whole)
            return found

        trainer._get_per_token_logps_and_entropies = computed

    def _compare(self, engine: Tensor, trainer: Tensor) -> None:
        """Log how far the log-probabilities of the same tokens are apart."""
        difference = (trainer - engine).float()
        difference = difference[~difference.isnan()]
        if not len(difference):
            return
        self._log("engine/logp_difference_mean", float(difference.abs().mean()))
        self._log("engine/logp_difference_max", float(difference.abs().max()))
        self._log("engine/kl", float((difference.expm1() - difference).mean()))

    def _log(self, name: str, value: float) -> None:
        trainer = self._trainer
        if isinstance(trainer, RolloutTrainer):
            trainer.means.add(name, value, 1)
        else:
            mode = "train" if trainer.model.training else "eval"
            trainer._metrics[mode][name].append(value)

    def _write(self, version: int, made: Sequence[Completion]) -> None:
        """Append the samples to the record; lines of steps that are done again are dropped."""
        if self._record is None:
            return
        step = self._step()
        if not self._is_recorded:
            before = self._record.lines()
            if before:
                self._record.keep([line for line in before if json.loads(line)["step"] < step])
            self._is_recorded = True
        self._record.append(
            *(
                {
                    "step": step,
                    "version": version,
                    "num_tokens": len(each.token_ids),
                    "log_prob": sum(value for value in each.log_probs if not math.isnan(value)),
                    "has_ended": each.has_ended,
                }
                for each in made
            )
        )


class _Generation:
    """What TRL's trainers call where they would call their own client of vLLM."""

    def __init__(self, rollouts: EngineRollouts) -> None:
        self._rollouts = rollouts

    def sync_weights(self) -> None:
        """Nothing: the engine follows by itself, and is waited for before it samples."""

    def generate(
        self, prompts: Any, images: Any, num_generations: int, profiler: Any = None
    ) -> tuple[Any, ...]:
        """Complete prompts; those of a group are consecutive rows."""
        if images is not None:
            raise SettingsError(
                "rollouts from an engine are of text alone, and prompts have images"
            )
        trainer = self._rollouts._trainer
        made = self._rollouts.complete(
            prompts,
            max_tokens=trainer.max_completion_length,
            end_tokens=trainer.eos_token_ids,
            temperature=trainer.temperature,
            top_p=trainer.top_p,
            more={**_given(trainer), **(trainer.args.generation_kwargs or {})},
        )
        ids = [[*each.token_ids] for each in made]
        log_probs = [
            [[None if math.isnan(value) else value] for value in each.log_probs] for each in made
        ]
        return prompts, ids, log_probs, None


def _given(trainer: Any) -> dict[str, Any]:
    """Settings of TRL's sampling that are set."""
    names = ("top_k", "min_p", "repetition_penalty")
    return {name: value for name in names if (value := getattr(trainer, name)) is not None}


def _check_trl(trainer: Any) -> None:
    """Refuse a trainer that has no place for an engine."""
    from trl import GRPOTrainer, RLOOTrainer

    name = type(trainer).__name__
    if problems := list(_problems(trainer, isinstance(trainer, GRPOTrainer | RLOOTrainer))):
        raise SettingsError(f"{name}: {'; '.join(problems)}")


def _problems(trainer: Any, is_known: bool) -> Iterator[str]:
    if not is_known:
        yield "expected a GRPOTrainer, RLOOTrainer, PPOTrainer or PRIMETrainer"
        return
    if trainer.use_vllm:
        yield "use_vllm is set, or rollouts are attached already: leave one of them out"
    if getattr(trainer, "rollout_func", None) is not None:
        yield "it has a rollout_func: leave one of them out"
    called = trainer._generate_single_turn.__code__.co_names
    if not {"vllm_generation", "_last_loaded_step", "generate"} <= {*called}:
        yield "this TRL samples in another way than TRL 1.16, with which this was tried"
