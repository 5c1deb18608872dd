"""Trainers that sample from an engine: a real vLLM, and what is computed of its answers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from tests.sync.http_server import MODELS, completion, http_server
from tests.sync.vllm_server import vllm_server
from tests.training import tiny
from tests.training.rollouts.trainers import ROWS, logged, ppo, prime
from tests.training.runs.run_files import content, write
from tests.training.tiny_trainers import build, model, train
from trimtab import FolderHolder, Follower
from trimtab.errors import SettingsError, SyncError
from trimtab.processes import Interrupted
from trimtab.progress import progress_bars
from trimtab.training import DeltaFollower, DeltaPublisher
from trimtab.training.runs.base_model import open_base
from trimtab.training.runs.execute import execute
from trimtab.training.runs.prepare import prepare
from trimtab.training.runs.settings import Settings

pytestmark = pytest.mark.train

KINDS = ["grpo", "rloo", "ppo", "prime"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seeded Llama of a size that vLLM takes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from trimtab.training import runtime

    runtime.start()
    config = LlamaConfig(
        vocab_size=2 + len(tiny.CHARACTERS),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    folder = tmp_path_factory.mktemp("served") / "base"
    with runtime.quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
        tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engine(served: Path) -> Iterator[str]:
    """A vLLM server of that model."""
    with vllm_server(served, "--weight-transfer-config", '{"backend": "trimtab"}') as url:
        yield url


def made(kind: str, of: Any, base: Path, out: Path, **more: Any) -> Any:
    """A trainer of a kind, of two steps: each samples, where a round has one step."""
    import torch

    torch.manual_seed(0)
    usual = {"max_steps": 2, "learning_rate": 1e-3}
    if kind in ("ppo", "prime"):
        builder = {"ppo": ppo, "prime": prime}[kind]
        return builder(of, out, **{**usual, "num_ppo_epochs": 1, **more})
    usual |= {"num_generations": 4, "per_device_train_batch_size": 8}
    return build(kind, of, base, out, **{**usual, **more})


def engine_of(trainer: Any, url: str, **more: Any) -> Any:
    from trimtab.training.sync.rollouts import EngineRollouts

    rollouts = EngineRollouts(url, **more)
    rollouts.attach(trainer)
    return rollouts


def published(trainer: Any, place: Path, base: Path) -> DeltaPublisher:
    """What is trained in fp32, in bf16 as the engine has it."""
    return DeltaPublisher(place, base=base, stored_dtype="bfloat16").attach(trainer)


@pytest.mark.engine
@pytest.mark.parametrize("kind", KINDS)
def test_a_real_engine(kind: str, served: Path, engine: str, tmp_path: Path) -> None:
    """Its log-probabilities are the trainer's, up to bf16, while the weights are the same."""
    trainer = made(kind, model(served, "float32"), served, tmp_path)
    rollouts = engine_of(trainer, engine, max_staleness=None, record=tmp_path / "r.jsonl")
    train(trainer)
    assert trainer.state.global_step == 2
    num = 16 if kind in ("grpo", "rloo", "prime") else 8
    assert rollouts.samples == {0: num}
    assert logged(trainer, "engine/staleness") == [0, 1]
    first, second = logged(trainer, "engine/logp_difference_mean")
    assert 0 < first < 5e-3  # two ways to compute in bf16, of about 1.7 nats
    assert second > 4 * first  # the engine has kept its weights
    largest = logged(trainer, "engine/logp_difference_max")
    assert first < largest[0] < 2e-2
    assert 0 <= logged(trainer, "engine/kl")[0] < 1e-4
    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert len(rows) == num
    assert {row["version"] for row in rows} == {0}
    assert all(1 <= row["num_tokens"] <= 4 and row["log_prob"] < 0 for row in rows)
    assert all(row["has_ended"] or row["num_tokens"] == 4 for row in rows)


@pytest.mark.engine
@pytest.mark.parametrize("kind", KINDS)
def test_on_policy(kind: str, served: Path, engine: str, tmp_path: Path) -> None:
    """Each sample is of the weights of its step, also where the engine followed another run."""
    trainer = made(kind, model(served, "float32"), served, tmp_path, max_steps=3)
    publisher = published(trainer, tmp_path / "run", served)
    rollouts = engine_of(trainer, engine, publisher=publisher)
    train(trainer)
    assert rollouts.samples.keys() == {0, 1, 2}
    assert logged(trainer, "engine/version") == [0, 1, 2]
    assert logged(trainer, "engine/staleness") == [0, 0, 0]
    assert max(logged(trainer, "engine/logp_difference_max")) < 3e-2
    assert len(logged(trainer, "engine/pause_s")) == 3
    assert logged(trainer, "sync/version") == [1, 2, 3]


@pytest.mark.engine
def test_two_versions_behind(served: Path, engine: str, tmp_path: Path) -> None:
    trainer = made("grpo", model(served, "float32"), served, tmp_path, max_steps=5)
    publisher = published(trainer, tmp_path / "run", served)
    engine_of(trainer, engine, publisher=publisher, max_staleness=2)
    train(trainer)
    assert logged(trainer, "engine/version") == [0, 0, 0, 3, 3]
    assert logged(trainer, "engine/staleness") == [0, 1, 2, 0, 1]


@pytest.mark.engine
def test_a_run_file_that_is_interrupted(served: Path, engine: str, tmp_path: Path) -> None:
    """It goes on at the same place, on policy again."""
    tables = {"publish": {"to": "run"}, "rollouts": {"engine": engine}}
    trainer = {"max_steps": 4, "max_completion_length": 3, "save_steps": 2}
    values = content("grpo", served, mask="none", trainer=trainer, **tables)
    run = prepare(Settings.read(write(tmp_path, values)))
    calls = iter([False, True])
    with progress_bars() as bars, pytest.raises(Interrupted):
        execute(run, bars, stop=lambda: next(calls, True))
    with progress_bars() as bars:
        result = execute(prepare(run.file), bars)
    assert result["resumed_from_step"] == 2
    assert [row["engine/staleness"] for row in result["history"]] == [0, 0, 0, 0]
    assert max(row["engine/logp_difference_max"] for row in result["history"]) < 5e-2
    rows = [json.loads(line) for line in (run.output / "rollouts.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [step for step in range(4) for _ in range(4)]
    with Follower(tmp_path / "run", FolderHolder(tmp_path / "followed", served)) as follower:
        follower.update()
        saved = open_base(str(run.output / "model"), tmp_path)
        assert follower.content_hash == saved.record.content_hash


@pytest.mark.engine
def test_the_examples(served: Path, engine: str, tmp_path: Path) -> None:
    """The script of a trainer, in a process of its own."""
    script = Path(__file__).parents[3] / "examples" / "engine" / "train.py"
    command = [sys.executable, *map(str, (script, served, "place", engine, 2))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("'engine/staleness': '0'") == 2


@pytest.mark.engine
def test_log_probabilities_of_another_temperature(
    served: Path, engine: str, tmp_path: Path
) -> None:
    trainer = made("grpo", model(served, "float32"), served, tmp_path, temperature=0.7)
    with pytest.raises(SyncError, match="--logprobs-mode processed_logprobs"):
        engine_of(trainer, engine)


@pytest.mark.engine
def test_what_a_real_engine_refuses(engine: str) -> None:
    from trimtab.sync.engines.client import EngineClient

    asked: dict[str, Any] = {"num": [1], "max_tokens": 4, "end_tokens": [1]}
    with pytest.raises(SyncError, match=r"the server has .*base"):
        EngineClient(engine, model="other").complete([[2]], **asked)
    with pytest.raises(SyncError, match=r"--max-model-len 204 or more"):
        EngineClient(engine).complete([[2] * 200], **asked)
    with pytest.raises(SyncError, match=r"status 400: .*vocabulary"):
        EngineClient(engine).complete([[10**6]], **asked)
    assert EngineClient(engine).weight_version()  # `default`, or that of the run before
    made = EngineClient(engine).complete([[2], [3, 4]], [3, 2], max_tokens=4, end_tokens=[1])
    assert [len(group) for group in made] == [3, 2]


def answering(handler: Any, content: Any) -> Any:
    """Two tokens of log-probability -0.5 and -1, then the end."""
    return MODELS if content is None else completion(content)


@pytest.mark.parametrize("kind", KINDS)
def test_on_policy_needs_an_engine_that_follows(kind: str, base: Any, tmp_path: Path) -> None:
    trainer = made(kind, model(base[0], "float32"), base[0], tmp_path)
    with http_server(answering) as url:
        engine_of(trainer, url)
        with pytest.raises(SyncError, match="weights of step 0, and the trainer is at step 1"):
            train(trainer)
    assert trainer.state.global_step == 1


class Follows(TrainerCallback):  # type: ignore[misc]
    """A copy of the model that somebody else lets follow, as far as a version."""

    def __init__(self, publisher: DeltaPublisher, copy: Any, last: int) -> None:
        self.publisher = publisher
        self.last = last
        self.follower = DeltaFollower(copy, publisher.place, name="engine-0")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.publisher.wait()
        if state.global_step <= self.last:
            self.follower.update()

    on_train_begin = on_step_end


def test_an_engine_that_follows_by_itself(base: Any, tmp_path: Path) -> None:
    """Its acknowledgements are waited for, so long."""
    trainer = made("grpo", model(base[0]), base[0], tmp_path, max_steps=4)
    publisher = DeltaPublisher(tmp_path / "run", base=base[0]).attach(trainer)
    trainer.add_callback(Follows(publisher, model(base[0]), last=2))
    with publisher, http_server(answering) as url:
        options = {"publisher": publisher, "follower": "engine-0", "timeout": 2.0}
        rollouts = engine_of(trainer, url, **options)
        told = "after 2 s the engine has version 2, and the trainer version 3"
        with pytest.raises(SyncError, match=told):
            train(trainer)
    assert rollouts.samples == {0: 8, 1: 8, 2: 8}


def test_steps_that_were_not_published(base: Any, tmp_path: Path) -> None:
    """On policy they are, before they are sampled from."""
    trainer = made("grpo", model(base[0]), base[0], tmp_path, max_steps=2)
    publisher = DeltaPublisher(tmp_path / "run", base=base[0], every=100).attach(trainer)
    with publisher, http_server(answering) as url:
        engine_of(trainer, url, publisher=publisher, follower="engine-0", timeout=0.1)
        with pytest.raises(SyncError, match="the engine has no version, and the trainer version 0"):
            train(trainer)
        trainer.vllm_generation._rollouts._served = lambda: publisher.version
        train(trainer)
    assert [each.step for each in publisher.published] == [1, 2]


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_groups_of_trl(kind: str, base: Any, tmp_path: Path) -> None:
    """One request for each prompt, with as many completions as the group has."""
    asked = []

    def answer(handler: Any, content: Any) -> Any:
        if content is not None:
            asked.append(content)
        return answering(handler, content)

    trainer = made(kind, model(base[0], "float32"), base[0], tmp_path, max_steps=1, top_p=0.9)
    with http_server(answer) as url:
        engine_of(trainer, url)
        train(trainer)
    assert [(each["n"], each["max_tokens"], each["top_p"]) for each in asked] == [(4, 4, 0.9)] * 2
    assert all(each["stop_token_ids"] == [1] for each in asked)
    assert len({each["seed"] for each in asked}) == 2
    assert logged(trainer, "completions/mean_length") == [3.0]


def test_a_round_of_ppo_by_hand(base: Any, tmp_path: Path) -> None:
    """Samples as the engine drew them; advantages times the ratio of trainer and engine."""
    import torch

    from trimtab.training.rollouts.sampling import token_log_probs

    rounds = []
    for cap in (None, 0.3):
        trainer = made("ppo", model(base[0], "float32"), base[0], tmp_path, temperature=1.0)
        with http_server(answering) as url:
            engine_of(trainer, url, importance_cap=cap)
            torch.manual_seed(3)
            rounds.append(trainer.make_round(ROWS[:4]))
    plain, capped = rounds
    samples = plain[0].samples
    assert samples.completion_ids.tolist() == [[5, 6, 1]] * 4
    assert samples.completion_mask.all() and samples.has_ended.all()
    engine = torch.tensor([[-0.5, -1.0, -1.5]] * 4)
    assert torch.equal(samples.engine_log_probs, engine)
    with torch.no_grad():
        own = token_log_probs(trainer.model, samples, 1.0)
    ratio = (own - engine).exp().clamp(max=0.3)
    assert 0 < float(ratio.min()) < 0.3
    expected = plain[0].advantages * ratio
    assert torch.allclose(capped[0].advantages, expected, atol=1e-6)
    difference = (own - engine).double()
    means = trainer.means.take()
    assert means["engine/logp_difference_mean"] == pytest.approx(float(difference.abs().mean()))
    assert means["engine/logp_difference_max"] == pytest.approx(float(difference.abs().max()))
    expected_kl = float((difference.exp() - 1 - difference).mean())
    assert means["engine/kl"] == pytest.approx(expected_kl, rel=1e-4)


def test_trainers_that_do_not_fit(base: Any, tmp_path: Path) -> None:
    url = "http://127.0.0.1:9"
    other = build("sft", model(base[0], "float32"), base[0], tmp_path)
    with pytest.raises(SettingsError, match="SFTTrainer: expected a GRPOTrainer"):
        engine_of(other, url)
    trainer = made("grpo", model(base[0], "float32"), base[0], tmp_path)
    trainer.rollout_func = print
    with pytest.raises(SettingsError, match="has a rollout_func"):
        engine_of(trainer, url)
    trainer.rollout_func = None
    engine_of(trainer, url)
    with pytest.raises(SettingsError, match="use_vllm is set, or rollouts are attached"):
        engine_of(trainer, url)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"max_staleness": -1}, "max_staleness is -1, expected 0 or more"),
        ({"importance_cap": 0.0}, "importance_cap is 0.0"),
    ],
)
def test_settings(more: dict[str, Any], message: str) -> None:
    from trimtab.training.sync.rollouts import EngineRollouts

    with pytest.raises(SettingsError, match=message):
        EngineRollouts("http://127.0.0.1:9", **more)
