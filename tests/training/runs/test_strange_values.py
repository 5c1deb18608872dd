"""Every key of a run file, and of what lies beside the weights, with values that nobody means.

Whatever the value, the run is prepared or refused in a sentence: no other exception comes out.
"""

from __future__ import annotations

import datetime
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tests.training import tiny
from tests.training.runs.run_files import content, write
from trimtab.errors import TrimtabError
from trimtab.training import runtime
from trimtab.training.runs import settings
from trimtab.training.runs.algorithms import ALGORITHMS
from trimtab.training.runs.base_model import open_base
from trimtab.training.runs.evaluate_table import EvaluateTable
from trimtab.training.runs.execute import check_output
from trimtab.training.runs.factors import FactorsTable
from trimtab.training.runs.prepare import prepare
from trimtab.training.runs.settings import Settings
from trimtab.training.runs.trainer_arguments import trainer_arguments

pytestmark = pytest.mark.train

STRANGE: tuple[Any, ...] = (
    *(True, 0, -1, 3, 2**63, 10**400),
    *(0.5, -1e308, math.inf, math.nan),
    *("", "\0", "x", "..", "a" * 5000, "random:nan"),
    *([], [1], ["a"], {}, {"a": 1}),
    datetime.date(2026, 1, 1),
)
TOP = ("algorithm", "model", "output", "mask", "seed", "dtype", "save_dtype", "dropout", "track")
TABLES: dict[str, type] = {
    "data": settings.DataTable,
    "reward": settings.RewardTable,
    "samples": settings.SamplesTable,
    "optimizer": settings.OptimizerTable,
    "auto": settings.AutoTable,
    "evaluate": EvaluateTable,
    "factors": FactorsTable,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("strange") / "base"
    tiny.make_base(folder)
    return folder


def changed(usual: dict[str, Any]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Key, value, and the file with it."""
    for key in (*TOP, *TABLES, "trainer"):
        for value in STRANGE:
            yield key, value, {**usual, key: value}
    for table, cls in TABLES.items():
        start = {**usual, "mask": "auto"} if table == "auto" else usual
        for field in fields(cls):
            for value in STRANGE:
                result = {**start.get(table, {}), field.name: value}
                if field.name in ("kind", "model", "column", "pattern"):
                    result.pop("function", None)
                yield f"{table}.{field.name}", value, {**start, table: result}


def test_keys_of_a_run_file(base: Path, tmp_path: Path) -> None:
    usual = content("grpo", base)
    path = write(tmp_path, usual)
    bases: dict[Path, Any] = {}
    for key, value, file in changed(usual):
        try:
            run = prepare(Settings.of(path, file), bases)
            json.dumps(run.describe())
            check_output(run)
        except TrimtabError as error:
            assert str(error), key
        except Exception as error:
            pytest.fail(f"{key} = {value!r}: {error!r}")


@pytest.mark.parametrize(
    ("name", "values"),
    [("grpo", (0, -1, math.inf, "x", [1], {"a": 1})), ("sft", (0, math.inf)), ("ppo", (0, -1))],
)
def test_keys_of_a_trainer(name: str, values: tuple[Any, ...], base: Path, tmp_path: Path) -> None:
    usual = content(name, base)
    path, algorithm = tmp_path / "run.toml", ALGORITHMS[name]
    for field in fields(algorithm.config_class()):
        for value in values:
            file = {**usual, "trainer": {**usual["trainer"], field.name: value}}
            try:
                trainer_arguments(Settings.of(path, file), algorithm, tmp_path).to_dict()
            except TrimtabError as error:
                assert str(error)
            except Exception as error:
                pytest.fail(f"trainer.{field.name} = {value!r}: {error!r}")


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"save_steps": math.inf}, "trainer.save_steps is inf, which the configuration fails on"),
        ({"num_generations": 0}, "trainer.num_generations is 0, which the configuration fails on"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 0, expected a finite"),
        ({"per_device_train_batch_size": -1}, "is -1, expected a finite number of at least 1"),
        ({"learning_rate": math.inf}, "trainer.learning_rate is inf, expected a finite number of"),
        ({"max_steps": 2**63}, "trainer.max_steps has a whole number of more than 64 bits"),
        ({"run_name": "a\0"}, "trainer.run_name has a NUL character"),
    ],
)
def test_the_key_is_named(
    trainer: dict[str, Any], message: str, base: Path, tmp_path: Path
) -> None:
    usual = content("grpo", base)
    file = Settings.of(tmp_path / "run.toml", {**usual, "trainer": {**usual["trainer"], **trainer}})
    with pytest.raises(TrimtabError) as error:
        trainer_arguments(file, ALGORITHMS["grpo"], tmp_path)
    assert message in str(error.value)


MORE = {
    "config.json": ("auto_map", "rope_scaling", "torch_dtype", "text_config", "id2label"),
    "tokenizer_config.json": ("chat_template", "bos_token", "added_tokens_decoder", "auto_map"),
    "generation_config.json": ("temperature", "max_length", "do_sample"),
}


@pytest.mark.parametrize("name", MORE)
def test_keys_of_the_files_beside_weights(name: str, base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    path = folder / name
    good = json.loads(path.read_text())
    for key in {*good, *MORE[name]}:
        for value in (None, 1, -1, 2**70, "x", [1], {"a": 1}):
            path.write_text(json.dumps({**good, key: value}))
            try:
                with runtime.quiet():
                    open_base(str(folder), tmp_path)
            except TrimtabError as error:
                assert str(error), key
            except Exception as error:
                pytest.fail(f"{key} = {value!r}: {error!r}")


def test_a_config_of_more_layers_than_tensors(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, "num_hidden_layers": 10**9}))
    with pytest.raises(
        TrimtabError, match=r"num_hidden_layers = 1000000000, and it has \d+ tensors"
    ):
        open_base(str(folder), tmp_path)
