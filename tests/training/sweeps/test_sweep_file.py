"""What a sweep file says, and what it cannot mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.sweeps.sweep_files import write_sweep
from trimtab.errors import SettingsError
from trimtab.training.sweeps.settings import SweepSettings

pytestmark = pytest.mark.train


def read(tmp_path: Path, text: str) -> SweepSettings:
    return SweepSettings.read(write_sweep(tmp_path, text))


def test_keys_with_and_without_quotes_are_the_same(tmp_path: Path) -> None:
    quoted = '"trainer.warmup_steps" = [0, 1]\n"data.file" = ["a", "b"]'
    for lines in (quoted, quoted.replace('"trainer.warmup_steps"', "trainer.warmup_steps")):
        text = f'run = "sft.toml"\noutput = "out"\n[sweep]\n{lines}\nkl = [false, 0.1]\nseed = [1]'
        assert dict(read(tmp_path, text).axes) == {
            "trainer.warmup_steps": (0, 1),
            "data.file": ("a", "b"),
            "factors.kl": (False, 0.1),
            "seed": (1,),
        }


def test_arms(tmp_path: Path) -> None:
    sweep = read(
        tmp_path,
        """
        run = "sft.toml"
        output = "out"
        [set]
        steps = 3
        [[arm]]
        name = "a"
        set = {optimizer = "sgd", "optimizer.clip_by" = "full"}
        [[arm]]
        name = "b"
        run = "other.toml"
        set = {steps = 4}
        """,
    )
    first, second = sweep.arms
    assert (first.name, first.run) == ("a", tmp_path / "sft.toml")
    assert first.settings == {
        "factors.steps": 3,
        "factors.optimizer": "sgd",
        "optimizer.clip_by": "full",
    }
    assert (second.run, second.settings) == (tmp_path / "other.toml", {"factors.steps": 4})
    assert sweep.output == tmp_path / "out"


TOP = 'run = "sft.toml"\noutput = "out"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[sweep\n", "not TOML"),
        ("a" * 100 + "=" + "[" * 5000, "not TOML"),
        ("", "missing: run, the run file; or [[arm]]s"),
        (TOP, "nothing to sweep: expected [sweep] with lists of values, or [[arm]]s"),
        ('run = "sft.toml"\n[sweep]\nseed = [0, 1]', "missing: output"),
        (TOP + "jobs = 2", "there is no key jobs"),
        (TOP + "sweep = 3", "sweep is not a table"),
        (TOP + "set = 3", "set is not a table"),
        (TOP + "arm = 3", "arm is not a list of tables"),
        (TOP + "arm = []", "arm is not a list of tables"),
        (TOP + "evaluate = 3\n[sweep]\nseed=[0,1]", "evaluate is not a table"),
        (TOP + "[sweep]\nseed = 3", "sweep.seed: expected a list of values"),
        (TOP + "[sweep]\nseed = []", "sweep.seed: expected a list of values"),
        (TOP + "[sweep]\nkl = [0.1, 0.1]", "sweep.kl has the same value twice"),
        (TOP + "[sweep]\nlerning_rate = [1]", "no key sweep.lerning_rate: did you mean sweep.lea"),
        (TOP + '[sweep]\noutput = ["a"]', "sweep.output: every cell has its own folder"),
        (TOP + "[sweep]\ntrainer = [1]", "sweep.trainer is a table of the run file: name a key"),
        (TOP + '[sweep]\nkl = [1]\n"factors.kl" = [2]', "sweep.kl occurs twice"),
        (TOP + "[[arm]]\nset = {seed = 1}", "arm 1 has no name"),
        (TOP + '[[arm]]\nname = "a"\nnmae = "b"', "there is no key arm 1: nmae"),
        (TOP + '[[arm]]\nname="a"\n[[arm]]\nname="a"', "two arms are named a"),
        ('output = "o"\n[[arm]]\nname="a"', "arm a has no run, and the sweep has none"),
        (TOP + "[evaluate]\nquestions = 0\n[sweep]\nseed=[0]", "evaluate.questions is 0"),
        (TOP + '[evaluate]\ncolumn = "x"\n[sweep]\nseed=[0]', "evaluate.column has no effect"),
        (
            TOP + '[evaluate]\ntask="a"\nfile="b"\n[sweep]\nseed=[0]',
            "expected one of task and file",
        ),
        (
            TOP + "[sweep]\n" + "\n".join(f"trainer.a{n} = {list(range(99))}" for n in range(9)),
            "more than 1,000 cells",
        ),
    ],
)
def test_what_cannot_be_meant(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError) as error:
        read(tmp_path, text)
    assert message in str(error.value)
    assert str(tmp_path / "sweep.toml") in str(error.value)


def test_all_problems_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as error:
        read(tmp_path, "jobs = 2\n[sweep]\nseed = 3\nkk = [1]")
    for entry in (
        "no key jobs",
        "sweep.seed",
        "no key sweep.kk",
        "missing: run",
        "missing: output",
    ):
        assert entry in str(error.value)
