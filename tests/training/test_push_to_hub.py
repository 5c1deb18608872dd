"""What a Trainer pushes to the hub, here a stand-in: with the mask and its record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints.test_hub import REPOSITORIES
from tests.forks import Forks
from tests.pushable_hub import Running, run, running_hub
from tests.training.runs.run_files import content, write
from trimtab.deltas.hub import push_folder
from trimtab.errors import WriteError
from trimtab.masks.mask import Mask

pytestmark = pytest.mark.train

Base = tuple[Path, dict[str, Any]]

ROOT = Path(__file__).parents[2]

PUSHING = """
import json, sys
from pathlib import Path

root, base, how = sys.argv[1:]
sys.path.insert(0, root)

import torch
from huggingface_hub import hf_hub_download
from tests.training import tiny_trainers
from transformers import AutoModelForCausalLM
from trimtab import Mask
from trimtab.training import MaskedTrainingCallback, sparse_adamw, train_only

base, repository = Path(base), f"org/{how}"
net = tiny_trainers.model(base)
mask = Mask.from_arrays(tiny_trainers.arrays(net))
more = {"push_to_hub": True, "hub_model_id": repository, "hub_strategy": "checkpoint"}
more |= {"save_strategy": "steps", "save_steps": 3}
kind = "plain" if how == "callback" else "sft"
trainer = tiny_trainers.build(kind, net, base, Path("out"), **more)
if how == "callback":
    trainer.optimizer = sparse_adamw(net, mask, trainer.args)
    trainer.add_callback(MaskedTrainingCallback())
else:
    train_only(trainer, mask)
trainer.train()
pushed = hf_hub_download(repository, "last-checkpoint/trimtab.json")
assert json.loads(Path(pushed).read_text())["step"] == 3
assert Mask.load(hf_hub_download(repository, "trimtab_mask.safetensors")).digest == mask.digest
trainer.push_to_hub()
assert Mask.load(hf_hub_download(repository, "trimtab_mask.safetensors")).digest == mask.digest
model = AutoModelForCausalLM.from_pretrained(repository, dtype=torch.bfloat16)
for one, other in zip(model.parameters(), net.parameters(), strict=True):
    assert torch.equal(one, other)
"""


@pytest.fixture
def hub(forks: Forks) -> Iterator[Running]:
    with running_hub(forks) as running:
        yield running


@pytest.mark.parametrize("how", ["train_only", "callback"])
def test_mask_and_record_are_pushed(how: str, hub: Running, base: Base, tmp_path: Path) -> None:
    done = run(tmp_path, hub, PUSHING, str(ROOT), str(base[0]), how)
    assert done.returncode == 0, done.stderr
    files = REPOSITORIES[f"org/{how}"]
    ours = {"trimtab_mask.safetensors", "trimtab.json"}
    assert {*ours, "README.md", "config.json", "model.safetensors"} <= files.keys()
    folders = ("", "last-checkpoint/")
    assert {f"{folder}{name}" for folder in folders for name in ours} <= files.keys()
    for folder in folders:
        (tmp_path / "pushed").write_bytes(files[f"{folder}trimtab_mask.safetensors"])
        mask = Mask.load(tmp_path / "pushed")
        record = json.loads(files[f"{folder}trimtab.json"])
        assert record["mask"]["digest"] == mask.digest
        assert record["step"] == 3
    card = files["README.md"].decode()
    if how == "callback":
        assert "Trained in a mask" not in card
    else:
        share = f"{mask.num_selected():,} of {mask.num_elements():,} weights"
        assert card.count("## Trained in a mask") == 1
        assert f"{share} ({100 * mask.density:.2f} %)" in card
        assert f'hf_hub_download("org/{how}", "trimtab_mask.safetensors")' in card
        assert "- trimtab-mask\n" in card
        assert "- trl\n" in card


def test_a_run_pushes_its_model(hub: Running, base: Base, tmp_path: Path) -> None:
    """With mask, record and model card; the checkpoints of the search for the mask stay here."""
    trainer = {"push_to_hub": True, "hub_model_id": "org/run", "max_steps": 4, "save_steps": 3}
    auto = {"steps": 2, "every": 1, "settle": 0.0}
    values = content("sft", base[0], mask="auto", auto=auto, trainer=trainer)
    file = write(tmp_path, values)
    done = run(tmp_path, hub, "import trimtab.__main__", "train", str(file))
    assert done.returncode == 0, done.stderr
    files = REPOSITORIES["org/run"]
    model = tmp_path / "out/model"
    for path in model.iterdir():
        assert files[path.name] == path.read_bytes(), path.name
    assert json.loads(files["trimtab.json"])["step"] == 4
    assert '"trimtab_mask.safetensors"))' in files["README.md"].decode()
    ours = {path.name for path in model.iterdir()}
    assert files.keys() - ours <= {"training_args.bin", "chat_template.jinja"}


def test_a_push_that_fails(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"org/run: not pushed: HF_HUB_OFFLINE is set\. The files"):
        push_folder(tmp_path, "org/run")
