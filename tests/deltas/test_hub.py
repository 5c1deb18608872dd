"""Deltas are pushed to a stand-in of the hub by the hub's own client, and come back as models.

huggingface_hub reads its settings when it is imported, so each command has its own process.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import trimtab
from tests.checkpoints.test_hub import COMMITS, REPOSITORIES
from tests.deltas.building import content_of, moved, random_bits, write_folder
from tests.deltas.signing import Signer
from tests.forks import Forks
from tests.pushable_hub import Running, run, running_hub
from trimtab.deltas.file import DeltaFile
from trimtab.errors import DeltaError

pytestmark = pytest.mark.slow

BASE_COMMIT = COMMITS["step-100"]


@pytest.fixture
def hub(forks: Forks) -> Iterator[Running]:
    """The stand-in; its repositories are as before at the end."""
    with running_hub(forks) as running:
        yield running


def trimtab_says(
    folder: Path, hub: Running, *arguments: str, code: int = 0, **settings: Any
) -> str:
    """What the command line says, after checking its exit code."""
    done = run(folder, hub, "import trimtab.__main__", *arguments, **settings)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def pair(folder: Path) -> None:
    """`base` and `tuned` in a folder; the base is also on the stand-in, as `org/base`."""
    weight = random_bits("BF16", (40, 30), 0)
    name = "model.layers.0.mlp.up_proj.weight"
    base = write_folder(folder / "base", {name: ("BF16", weight)})
    write_folder(folder / "tuned", {name: ("BF16", moved(weight, 0.1, 0))}, config={"b": 2})
    REPOSITORIES["org/base"] = content_of(base)


def test_pushed_and_applied_by_pinned_revisions(hub: Running, tmp_path: Path) -> None:
    pair(tmp_path)
    trimtab_says(tmp_path, hub, "delta", "make", "org/base@step-100", "tuned", "-o", "x.delta")
    said = trimtab_says(tmp_path, hub, "delta", "push", "x.delta", "org/x-delta", "--private")
    assert said == f"pushed org/x-delta@{COMMITS['main']}\n"
    (creation,) = hub.creations
    assert (creation["organization"], creation["name"]) == ("org", "x-delta")
    assert creation.get("visibility") == "private" or creation["private"]  # by the client's age
    files = REPOSITORIES["org/x-delta"]
    assert files.keys() == {"README.md", "model.delta"}
    assert files["model.delta"] == (tmp_path / "x.delta").read_bytes()
    card = files["README.md"].decode()
    assert card.startswith(
        "---\nbase_model: org/base\nlibrary_name: trimtab\ntags:\n- trimtab-delta\n"
        "base_model_relation: finetune\n---\n\n# x-delta\n\n"
    )
    with DeltaFile(tmp_path / "x.delta") as made:
        changed = made.manifest.num_changed
    assert f"Applied to commit `{BASE_COMMIT}` of the base" in card
    assert "| up_proj | 1,200 | " in card
    assert f"| all tensors | 1,200 | {100 * changed / 1200:.2f} % | " in card
    hub.downloads.clear()
    said = trimtab_says(tmp_path, hub, "delta", "apply", "org/x-delta", "-o", "out")
    assert said == "wrote out\n"
    assert content_of(tmp_path / "out") == content_of(tmp_path / "tuned")
    assert hub.downloads == ["model.delta"]  # the base is in the cache
    pinned = f"org/x-delta@{COMMITS['main']}"
    trimtab_says(tmp_path, hub, "delta", "apply", "base", pinned, "-o", "again", offline=True)
    assert content_of(tmp_path / "again") == content_of(tmp_path / "tuned")
    assert "decode" in trimtab_says(tmp_path, hub, "delta", "verify", pinned, "--base", "base")
    assert "up_proj" in trimtab_says(tmp_path, hub, "delta", "info", "org/x-delta")


def test_both_checkpoints_may_be_on_the_hub(hub: Running, tmp_path: Path) -> None:
    pair(tmp_path)
    REPOSITORIES["org/tuned"] = content_of(tmp_path / "tuned")
    trimtab_says(tmp_path, hub, "delta", "make", "org/base@step-100", "org/tuned", "-o", "x.delta")
    trimtab_says(tmp_path, hub, "delta", "apply", "x.delta", "-o", "out")
    assert content_of(tmp_path / "out") == content_of(tmp_path / "tuned")
    with DeltaFile(tmp_path / "x.delta") as made:
        manifest = made.manifest
    assert (manifest.base.revision, manifest.result.revision) == (BASE_COMMIT, COMMITS["main"])


def test_a_local_base_is_named_by_its_place_on_the_hub(hub: Running, tmp_path: Path) -> None:
    pair(tmp_path)
    trimtab_says(tmp_path, hub, "delta", "make", "base", "tuned", "-o", "x.delta")
    said = trimtab_says(tmp_path, hub, "delta", "push", "x.delta", "org/x-delta", code=1)
    assert re.search("was made against base, a local checkpoint: say where it is, by BASE or", said)
    said = trimtab_says(
        tmp_path, hub, "delta", "push", "x.delta", "org/x-delta", "--base", "base", code=1
    )
    assert "base base is a local checkpoint" in said
    said = trimtab_says(
        tmp_path, hub, "delta", "push", "x.delta", "org/x-delta", "--base", "org/whole", code=1
    )
    assert "org/whole has no tensor model.layers.0.mlp.up_proj.weight" in said
    assert "org/x-delta" not in REPOSITORIES
    trimtab_says(
        tmp_path, hub, "delta", "push", "x.delta", "org/x-delta", "--base", "org/base@step-100"
    )
    (tmp_path / "pushed.delta").write_bytes(REPOSITORIES["org/x-delta"]["model.delta"])
    with DeltaFile(tmp_path / "pushed.delta") as pushed, DeltaFile(tmp_path / "x.delta") as local:
        assert (pushed.manifest.base.id, pushed.manifest.base.revision) == ("org/base", BASE_COMMIT)
        assert pushed.manifest.tensors == local.manifest.tensors
    trimtab_says(tmp_path, hub, "delta", "apply", "org/x-delta", "-o", "out")
    assert content_of(tmp_path / "out") == content_of(tmp_path / "tuned")


def test_a_store_has_its_base_from_the_hub(
    hub: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the commit that the branch had when the store was made, wherever the branch is now."""
    pair(tmp_path)
    trimtab_says(tmp_path, hub, "store", "init", "s", "--base", "org/base@step-100")
    trimtab_says(tmp_path, hub, "store", "add", "s", "tuned")
    assert trimtab.Store(tmp_path / "s").base.revision == BASE_COMMIT
    (tmp_path / "hf").rename(tmp_path / "old-cache")
    checkout = ("store", "checkout", "s", "tuned", "-o", "out")
    said = trimtab_says(tmp_path, hub, *checkout, code=1, offline=True)
    assert f"org/base@{BASE_COMMIT}" in said and "--base" in said and said.count("\n") == 1
    monkeypatch.setitem(COMMITS, "step-100", "c" * 40)  # the branch moves on
    monkeypatch.setitem(COMMITS, "before", BASE_COMMIT)
    hub.downloads.clear()
    trimtab_says(tmp_path, hub, *checkout)
    assert "model.safetensors" in hub.downloads
    assert content_of(tmp_path / "out") == content_of(tmp_path / "tuned")


def test_a_signature_is_pushed_and_checked(hub: Running, tmp_path: Path) -> None:
    pair(tmp_path)
    trimtab_says(
        tmp_path, hub, "delta", "make", "org/base@step-100", "tuned", "-o", "x.delta", "--sha256"
    )
    signer = Signer.new()
    (tmp_path / "x.delta.sig").write_text(signer.sign((tmp_path / "x.delta").read_bytes()))
    (tmp_path / "signers").write_text(signer.line)
    (tmp_path / "strangers").write_text(Signer.new().line)
    push = ("delta", "push", "x.delta", "org/x-delta")
    said = trimtab_says(tmp_path, hub, *push, "--base", "org/base@step-100", code=1)
    assert "x.delta is signed, and naming another base in it would undo that" in said
    trimtab_says(tmp_path, hub, *push)
    assert REPOSITORIES["org/x-delta"].keys() == {"README.md", "model.delta", "model.delta.sig"}
    apply = ("delta", "apply", "org/x-delta", "--signers")
    said = trimtab_says(tmp_path, hub, *apply, "strangers", "-o", "out", code=1)
    assert "a key that is not among the 1 key of strangers" in said
    trimtab_says(tmp_path, hub, *apply, "signers", "-o", "out")
    assert content_of(tmp_path / "out") == content_of(tmp_path / "tuned")
    del REPOSITORIES["org/x-delta"]["model.delta.sig"]
    (tmp_path / "x.delta.sig").unlink()
    trimtab_says(tmp_path, hub, *push)
    said = trimtab_says(tmp_path, hub, "delta", "verify", *apply[2:], "signers", code=1)
    assert said.startswith("trimtab: org/x-delta has no signature that can be read: ")


def test_what_the_hub_refuses(hub: Running, tmp_path: Path) -> None:
    pair(tmp_path)
    trimtab_says(tmp_path, hub, "delta", "make", "org/base@step-100", "tuned", "-o", "x.delta")
    push = ("delta", "push", "x.delta", "org/x-delta")
    said = trimtab_says(tmp_path, hub, *push, code=1, token="hf_wrong")
    assert "org/x-delta: not pushed: the hub does not know the token: run `hf auth login`" in said
    said = trimtab_says(tmp_path, hub, *push, code=1, offline=True)
    assert "org/x-delta: not pushed: HF_HUB_OFFLINE is set" in said
    for ref, reason in {
        "org/absent": "the hub has no such repository",
        "org/base": "the repository holds no model.delta",
        "org/base@absent": "the repository has no such revision",
    }.items():
        said = trimtab_says(tmp_path, hub, "delta", "info", ref, code=1)
        assert reason in said
        assert said.count("\n") == 1
    for name in ("org/absent.delta", "/absent"):  # never taken for hub ids
        with pytest.raises(DeltaError, match="no such file"):
            DeltaFile(name)


LOAD = """
import hashlib, json, os, sys, torch, trimtab

def load(delta, **options):
    try:
        model = trimtab.load_model(delta, **options)
    except trimtab.TrimtabError as error:
        return str(error)
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(value.contiguous().view(torch.uint8).numpy().tobytes())
    return [type(model).__name__, str(model.dtype), digest.hexdigest()]

loaded = [load("org/x-delta"), load("org/x-delta", dtype=torch.float32), load("x.delta")]
loaded += [load("x.delta", base="base"), load("x.delta", base="base", device_map="cpu")]
loaded += [load("x.delta", base="base", signers="x.delta")]
models = os.environ["HF_HOME"] + "/assets/trimtab/models/default"
folders = sorted(os.scandir(models), key=lambda folder: folder.stat().st_mtime_ns)
loaded += [[folder.path for folder in folders]]
os.truncate(folders[0].path + "/model.safetensors", 3)
loaded += [load("org/x-delta")]
print(json.dumps(loaded))
"""


@pytest.mark.train
def test_a_model_is_loaded_by_a_hub_id(hub: Running, tmp_path: Path) -> None:
    import torch

    from tests.training import tiny

    base, tuned = tmp_path / "base", tmp_path / "tuned"
    model = tiny.model().to(torch.bfloat16)
    model.save_pretrained(base)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += (torch.rand_like(parameter) < 0.1) * 0.01
    model.save_pretrained(tuned)
    digest = hashlib.sha256()
    for _, value in sorted(model.state_dict().items()):
        digest.update(value.contiguous().view(torch.uint8).numpy().tobytes())
    REPOSITORIES["org/base"] = content_of(base)
    trimtab.make_delta(base, tuned, tmp_path / "x.delta")
    trimtab_says(
        tmp_path, hub, "delta", "push", "x.delta", "org/x-delta", "--base", "org/base@step-100"
    )
    hub.downloads.clear()
    done = run(tmp_path, hub, LOAD)
    assert done.returncode == 0, done.stderr
    by_id, as_float, refused, by_file, placed, unsigned, folders, cut = json.loads(done.stdout)
    assert by_id == by_file == placed == ["LlamaForCausalLM", "torch.bfloat16", digest.hexdigest()]
    assert as_float[:2] == ["LlamaForCausalLM", "torch.float32"]
    assert re.search("x.delta was made against .*/base, a local checkpoint", refused)
    assert "x.delta: expected lines of public keys" in unsigned
    assert len(folders) == 2  # the two deltas differ in what they say of their base
    assert content_of(Path(folders[1])) == content_of(tuned)
    assert f"{folders[0]}: model.safetensors was removed or changed: delete the folder" in cut
    assert hub.downloads == ["model.delta"]  # the base is in the cache, since it was checked
