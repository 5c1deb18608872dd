"""A real vLLM follows a run. It runs in the environment of `make engine`, or in VLLM_PYTHON's."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner

import trimtab
from tests.sync.vllm_server import NO_ENGINE, vllm_python, vllm_server
from tests.training.tiny import tokenizer
from trimtab.cli import trimtab as command
from trimtab.errors import SyncError
from trimtab.sync.chain import at_place, read_chain
from trimtab.sync.engines.client import Completion, EngineClient
from trimtab.sync.follower import acknowledgements
from trimtab.training import runtime

pytestmark = [
    pytest.mark.engine,
    pytest.mark.train,
    pytest.mark.skipif(vllm_python() is None, reason=NO_ENGINE),
]

SECONDS = 500

NUM_VERSIONS = 3

MASKED = ("layers.1.mlp", "embed")
"""All that version 3 changes."""


def make_run(folder: Path) -> Path:
    """Checkpoints of a tiny Llama, and the place where they are published."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    with trimtab.Publisher(folder / "run", folder / "0") as publisher:
        for version in range(NUM_VERSIONS + 1):
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if version == 3 and not any(part in name for part in MASKED):
                        continue
                    moves = torch.rand(parameter.shape) < 0.1
                    parameter += moves * 0.2 * torch.randn(parameter.shape).to(parameter.dtype)
                    # Of these a product with an identity matrix does not show the sign.
                    parameter.view(-1)[::97] = torch.tensor(-0.0)
            with runtime.quiet():
                model.save_pretrained(folder / f"{version}")
                tokenizer().save_pretrained(folder / f"{version}")
            publisher.publish(str(folder / f"{version}"), step=10 * version)
            publisher.wait()
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_model_in_the_engine(run: Path, dtype: str) -> None:
    """On every processor float32 is packed; bfloat16 is on some."""
    script = Path(__file__).with_name("inside_vllm.py")
    done = subprocess.run(
        [f"{vllm_python()}", script, run, dtype],
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    chain = read_chain(at_place(run / "run"))
    assert chain is not None
    hashes = [version.content_hash for version in chain.versions]
    # Answers are those of an engine started with the checkpoint, and of each version they differ.
    assert found["followed"] == found["fresh"]
    assert len({json.dumps(answers) for answers in found["fresh"]}) == NUM_VERSIONS + 1
    assert found["hashes"] == hashes
    assert found["problems"] == []
    if dtype == "float32":
        assert found["ways"] == ["product", "read"]
        assert found["num_unseen"] > 0
    assert found["before"].endswith("call /init_weight_transfer_engine first")
    # A wrong bit shows, also in the packed copy that only logits use.
    assert found["flipped"] == ["model.layers.1.self_attn.k_proj.weight"]
    assert found["mended"] == found["mended_head"] == []
    if dtype == "float32":
        assert found["stale_head"] == "lm_head multiplies by other values in 1 elements"
    # What fails is taken back; if that fails, the model refuses to be used until it is whole.
    assert found["failure"] == "out of memory"
    status, served = found["after_failure"]
    assert (status["version"], status["is_whole"], served) == (1, True, hashes[1])
    assert found["answers_after_failure"] == found["fresh"][1]
    assert "refuses to be used until an update succeeds" in found["lost"]
    assert found["status_lost"]["is_whole"] is False
    assert found["refused"] == "the weights are not whole: an update by trimtab failed"
    assert found["repaired"] == ""
    assert found["status_repaired"]["is_whole"] is True
    assert found["hash_repaired"] == hashes[2]
    assert found["answers_repaired"] == found["fresh"][2]


class Server(NamedTuple):
    """A vLLM server, which has read the checkpoint of version 0."""

    url: str

    def answer(self) -> Completion:
        """A greedy answer, with its log-probabilities."""
        client = EngineClient(self.url)
        ((answer,),) = client.complete(
            [[5, 9, 3, 7]], [1], max_tokens=8, end_tokens=[], temperature=0.0
        )
        return answer


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[Server]:
    flags = ("--dtype", "float32", "--weight-transfer-config", '{"backend": "trimtab"}')
    with vllm_server(run / "0", *flags) as url:
        yield Server(url)


def proven(server: Server, run: Path, *options: str) -> tuple[int, str]:
    arguments = ["sync", "prove", "--engine", server.url, "--folder", str(run / "run"), *options]
    done = CliRunner().invoke(command, arguments, standalone_mode=False)
    code = done.return_value if done.exception is None else 1
    return code, done.output if done.exception is None else str(done.exception)


def test_a_server_follows(server: Server, run: Path) -> None:
    code, said = proven(server, run)
    assert code == 1
    assert said.endswith("it follows no run yet: call /init_weight_transfer_engine first")
    seen = [server.answer()]
    engine = trimtab.EngineControl(server.url)
    engine.follow(run / "run", name="engine-0")
    for version in range(1, NUM_VERSIONS + 1):
        engine.prepare(version)
        assert server.answer() == seen[-1]  # it goes on with the weights that it has
        engine.pause()
        engine.update(version)
        engine.resume()
        code, said = proven(server, run)
        assert code == 0, said
        assert f"serves version {version} (step {10 * version}): all 20 tensors equal" in said
        assert "as products with an identity matrix, since this vLLM packs them" in said
        seen.append(server.answer())
    assert len(set(seen)) == NUM_VERSIONS + 1
    (acknowledged,) = acknowledgements(at_place(run / "run"))
    assert (acknowledged.name, acknowledged.version) == ("engine-0", NUM_VERSIONS)
    assert {"fetch", "decode", "apply"} <= acknowledged.seconds.keys()
    # Back to version 2 by the anchor on disk: the answers of then, to the last digit.
    engine.update(2)
    assert proven(server, run)[0] == 0
    code, said = proven(server, run, "--version", "3")
    assert code == 3
    # Version 3 moves two kinds of tensors.
    proof = trimtab.prove(server.url, run / "run", version=3)
    assert {each.name for each in proof.differences} == {
        "model.embed_tokens.weight",
        *(f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    }
    code, said = proven(server, run, "--version", "9")
    assert (code, "version 9 is not listed: the newest is 3" in said) == (1, True)


def test_a_server_is_driven(server: Server, run: Path, tmp_path: Path) -> None:
    """Answers that run meanwhile are those of one version or another."""
    driver = trimtab.EngineDriver(server.url, run / "run", name="driven")
    before = server.answer()
    answers: list[Completion] = []
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.is_set():
            answers.append(server.answer())

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        driven = driver.update()
    finally:
        is_over.set()
        thread.join()
    assert driven is not None
    assert driven.version == NUM_VERSIONS
    assert driver.update() is None
    # It was told to follow again, under another name: the weights of version 2 were known.
    assert trimtab.prove(server.url, run / "run").is_proven
    names = {each.name for each in acknowledgements(at_place(run / "run"))}
    assert names == {"engine-0", "driven"}
    after = server.answer()
    assert all(answer in (before, after) for answer in answers)
    assert before != after
    with pytest.raises(SyncError, match="nothing is published yet"):
        trimtab.prove(server.url, tmp_path)
