"""Everything public is documented, and generated text is current."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import pytest
from cogapp import Cog

import trimtab
from docs import (
    generated,
    generated_demo,
    generated_optimizer,
    generated_structure,
    generated_training,
)
from tests.docs import pages
from trimtab import errors
from trimtab.cli import trimtab as command_line
from trimtab.masks.mask import summarise
from trimtab.masks.structure_result import Structure
from trimtab.results.schema import to_plain

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]

NAMED_BY_DATA = {"num_changed", "sparsity", "unweighted_mean_sparsity", "ulp_histogram", "dtypes"}
NAMED_BY_DATA |= {"by_layer", "by_kind", "by_tensor", "num_sub_equal", "num_base_equal"}
"""Objects whose own keys are criteria, distances, dtypes, models, layers, kinds or names."""

keys_of = partial(pages.keys_of, named_by_data=NAMED_BY_DATA)


def page(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


def documented(heading: str) -> set[str]:
    """Names between backquotes in a section of the formats, by hand; of `parts.file` the last."""
    level = heading.split()[0]
    _, found, rest = page("formats.md").partition(f"\n{heading}")
    assert found, heading
    section = re.split(rf"\n#{{2,{len(level)}}} ", pages.by_hand(rest))[0]
    return set(re.findall(r"`(?:\w+\.)*([\w=.-]+?)`", section))


def test_generated_text_is_current(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    code = Cog().main(["cog", "--check", "--diff", "-P", *map(str, PAGES)])
    assert code == 0, "".join(capsys.readouterr())


def commands_below(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """A command and all below it, each with the words that call it."""
    yield path, command
    if isinstance(command, click.Group):
        for name in command.list_commands(context := click.Context(command)):
            below = command.get_command(context, name)
            assert below is not None
            yield from commands_below(f"{path} {name}", below)


COMMANDS = dict(commands_below("trimtab", command_line))


@pytest.mark.parametrize("words", [words for words in COMMANDS if words != "trimtab"])
def test_every_command(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its section shows its current help, and every option has a help text."""
    _, heading, rest = page("cli.md").partition(f"\n{'#' * len(words.split())} {words}\n")
    assert heading, words
    section = re.split(r"\n##+ ", rest)[0]
    generated.help_of(*words.split()[1:])
    assert capsys.readouterr().out in section
    options = [part for part in COMMANDS[words].params if isinstance(part, click.Option)]
    assert all(option.help for option in options)


FLAGS = sorted(
    {
        tuple(parameter.opts)
        for command in COMMANDS.values()
        for parameter in command.params
        if isinstance(parameter, click.Option)
    }
)


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_every_option(flags: tuple[str, ...]) -> None:
    """Some page explains or uses it outside of the generated help."""
    texts = [pages.by_hand(path.read_text("utf-8")) for path in PAGES]
    uses = [rf"(?<![\w-]){flag}(?![\w-])" for flag in flags]
    assert any(re.search(use, text) for use in uses for text in texts)


def test_help_of_options_can_be_read_alone() -> None:
    for words, command in COMMANDS.items():
        for option in command.params:
            if isinstance(option, click.Option):
                help = option.help or ""
                assert re.match(r"(?!Of |Or |And )[A-Z]", help), (words, option.name, help)
                assert len(help) <= 140, (words, option.name, help)


ERRORS = [
    name
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.TrimtabError | Warning)
]


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_class(name: str) -> None:
    assert f"### {name}\n" in page("errors.md")


@pytest.mark.parametrize("name", trimtab.__all__)
def test_every_public_name(name: str) -> None:
    assert f'heading: "trimtab.{name}"' in page("api.md")


def test_every_key_of_a_comparison() -> None:
    data = generated.example_comparison()
    assert {"precision", "rank", "geometry"} <= data.keys()
    assert not set(keys_of(data)) - documented("## The result of a comparison")


def test_every_key_of_an_identity_check() -> None:
    data = generated.example_identity()
    records = data["provenance"]
    # What a checkpoint is, and how a mask was made, is documented with a comparison and a mask.
    documented_elsewhere = {
        **dict.fromkeys(("base", "full", "sub"), 0),
        "mask": {**records["mask"], "provenance": 0},
    }
    data = data | {"provenance": records | documented_elsewhere}
    assert not set(keys_of(data)) - documented("## The result of an identity check")


def test_every_key_of_a_trajectory() -> None:
    data = generated.example_trajectory()
    # What a checkpoint is, is documented with a comparison.
    provenance = {**data["provenance"], "base": None}
    points = [{**point, "checkpoint": None} for point in data["points"]]
    keys = set(keys_of({**data, "provenance": provenance, "points": points}))
    assert not keys - documented("## The result of a trajectory")


def test_every_key_of_a_structure() -> None:
    data = generated_structure.example_structure()
    # What a checkpoint is and what a mask was is documented elsewhere.
    masks = [{**mask, "mask": None} for mask in data["masks"]]
    keys = set(keys_of({**data, "base": None, "masks": masks}))
    assert not keys - documented("## The structure of masks")


def test_a_structure_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    report = generated_structure.record(
        Structure.from_dict(generated_structure.example_structure())
    )
    for name in generated_structure.__all__:
        getattr(generated_structure, name)(report)
    text = capsys.readouterr().out
    assert "| `mask` | 7,202 of 16,800 | 42.87 % |" in text
    neurons = report["masks"][0]["families"][2]
    z2 = f"{neurons['null']['overdispersion']:.2f} | {neurons['control']['overdispersion']:.2f}"
    assert f"| MLP neurons | `mask` | 96 | 0 | 0 | {z2} |" in text
    assert "| attention heads | `mask`, `sub` | " in text


def test_every_key_of_a_mask() -> None:
    known = documented("## The mask file")
    metadata = generated.mask_metadata()
    metadata["tensors"] = list(metadata["tensors"].values())
    # What the base and the tuned checkpoint are is documented with a comparison.
    metadata["provenance"]["steps"][0] |= {"base": None, "tuned": None}
    assert not set(keys_of(metadata)) - known
    summary = summarise(generated.example_mask()) | {"provenance": None}
    assert not set(keys_of(summary)) - known


def test_every_key_of_a_gap_in_coverage(tmp_path: Path) -> None:
    sides = _with_gaps(tmp_path)
    coverage = to_plain(trimtab.compare(*sides).coverage)
    lists = ("tied", "missing", "extra", "shape_mismatch", "renamed")
    assert all(coverage[name] for name in lists)
    assert not set(keys_of(coverage)) - documented("### Coverage {")


def test_every_key_of_a_gap_in_the_coverage_of_a_series(tmp_path: Path) -> None:
    coverage = trimtab.trajectory(*_with_gaps(tmp_path)).coverage
    assert coverage is not None
    data = to_plain(coverage)
    assert all(data[name] for name in ("tied", "not_compared", "renamed"))
    assert not set(keys_of(data)) - documented("### Coverage of a series")


def _with_gaps(folder: Path) -> tuple[Path, Path]:
    """A base and a checkpoint that do not fit each other in every way that is allowed."""
    from tests.measure.checkpoints import llama_tensors, save

    base, tuned = llama_tensors(), llama_tensors(vocab=44)
    base["lm_head.weight"] = base["model.embed_tokens.weight"]
    tuned["lm_head.weight"] = tuned["model.embed_tokens.weight"]
    base["only.base"] = tuned["only.tuned"] = base["model.norm.weight"]
    tuned["model.model.norm.weight"] = tuned.pop("model.norm.weight")
    return save(folder / "a", _unshared(base)), save(folder / "b", _unshared(tuned))


def _unshared(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8")
    for path in DOCS.rglob("*.md"):
        assert re.search(rf"[:-] {path.relative_to(DOCS)}$", navigation, re.MULTILINE), path


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_address_of_a_machine_or_a_registry(path: Path) -> None:
    addresses = re.findall(r"https?://([^/:\s)>\"]+)", path.read_text("utf-8"))
    assert set(addresses) <= {"arxiv.org", "github.com", "127.0.0.1", "engine", "HOST"}
    assert not re.search(r"(?<![\w.])/(?:tmp|home|root|work)/", path.read_text("utf-8"))


def test_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text("utf-8")):
        assert (ROOT / target).exists(), target


def test_a_benchmark_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    speed = {
        "num_bytes_each": 1.2e9,
        "density": 0.01,
        "rounds": 7,
        "seconds": {"numpy": 0.2, "trimtab, 2 threads": 0.3},
        "ratio to numpy, 2 threads": 1.5,
        "ratio to numpy, 1 thread": 2.75,
        "ratio to reading, 2 threads": 3.5,
        "two threads over one": 1.83,
        "two threads over one, reading": 1.9,
        "published script over trimtab": 41.2,
        "gigabytes per second, both files": 8.0,
    }
    generated.benchmark(
        {
            "provenance": {
                "trimtab_version": "0.1.0",
                "numpy_version": "2.4",
                "python_version": "3.11",
                "processor": "a processor",
                "processors": 2,
                "date": "2026-11-21T12:00:00+00:00",
                "load_before": 0.1,
            },
            "start_up": {"trimtab --help": 0.2},
            "speed, 1% changed": speed,
            "speed, 20% changed": {**speed, "density": 0.2},
            "memory": {"num_bytes_each": 8e9, "seconds": 9.0, "peak_mb": 250.0},
        }
    )
    text = capsys.readouterr().out
    assert "|  | 1% changed | 20% changed |" in text
    assert "| changed elements | 1.00 % | 20.00 % |" in text
    assert "| trimtab, 2 threads, median | 0.30 s | 0.30 s |" in text
    assert "| 1 thread / 2 threads, reading | 1.90 × | 1.90 × |" in text
    assert "| peak resident memory of that comparison | 250 MB |" in text


def test_an_optimizer_benchmark_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    info: dict[str, Any] = {"trimtab_version": "0.1.0", "torch_version": "2.13"}
    info |= {
        "peft_version": "0.21",
        "processor": "a processor",
        "processors": 2,
        "load_before": 0.5,
    }
    provenance = {"provenance": info | {"date": "2026-11-21T12:00:00+00:00"}}
    reference = {"num_trained": 50, "making": 0, "steps": 1600e6, "in_use": 1500e6, "kept": 0}
    ours = {"num_trained": 50, "making": 9e6, "steps": 152e6, "in_use": 150e6, "kept": 900}
    codes = {"num_trained": 50, "making": 9e6, "steps": 130e6, "in_use": 126e6, "kept": 450}
    of_density = {
        "masked dense AdamW, fp32 masters": reference,
        "SparseAdamW": ours,
        "SparseAdamW, 8-bit states": codes,
    }
    whole = {"dense AdamW, bf16": 608e6, "dense AdamW, fp32 masters": 1520e6}
    times = dict.fromkeys(("forward", "backward", "hooks", "optimizer", "whole"), 0.01)
    times |= {"optimizer / dense AdamW, bf16": 0.36, "optimizer / dense AdamW, fp32 masters": 0.2}
    times |= {"whole / dense AdamW, bf16": 0.875}
    dense = {name: {**reference, "steps": peak} for name, peak in whole.items()}
    of_all = {"SparseAdamW": times, "dense AdamW, bf16": {**times, "backward": 0.015}}
    by_density = dict.fromkeys(("5%", "20%"), of_all)
    report = {
        "model": {
            "num_elements": 1000,
            "num_hidden_layers": 2,
            "hidden_size": 8,
            "largest_tensor": 200,
            "sequence": 64,
        },
        "memory": provenance
        | {
            "processes": 3,
            "by_density": {"100%": dense, "5%": of_density, "20%": of_density},
        },
        "speed": provenance | {"rounds": 9, "by_threads": {"1": by_density, "2": by_density}},
        "large": provenance | {"num_elements": 1000, "density": 0.05, "peaks": of_density},
    }
    for draw in (
        "measured",
        "targets",
        "memory",
        "bytes_per_parameter",
        "large",
        "bought",
        "speed",
    ):
        getattr(generated_optimizer, draw)(report)
    generated_optimizer.published()
    text = capsys.readouterr().out
    assert "| peak in use above the weights, 8-bit states | 5% | ≤ 0.085 | 0.084 | yes |" in text
    assert "| bytes kept a parameter, SparseAdamW | 5% | ≤ 2.850 | 2.900 | no |" in text
    assert "| optimizer phase, one thread | 5% | ≤ 0.435 | 0.360 | yes |" in text
    assert "| whole step, 2 threads | 20% | ≤ 1.000 | 0.875 | yes |" in text
    assert "| 5% | SparseAdamW | 0.00 M | 9 MB | 152 MB | 0.095 | 150 MB | 0.100 |" in text
    assert "| 5% | SparseAdamW | 2 + 14.03 d + 0.40 = 3.10 | 2.90 |" in text
    assert "| SparseAdamW, 8-bit states | 0.0 M | 0.13 GB | 130 MB | 0 MB |" in text
    assert "| FlashOptim AdamW (CUDA) | 7 |" in text
    assert "| SparseAdamW | 10 ms | 10 ms | 10 ms | 10 ms | 10 ms | 0.36 | 0.20 | 0.88 |" in text
    assert "| 5% | 0.25 | 0.10 | 0.80 | 0.36 | 0.88 |" in text
    assert "trimtab 0.1.0, torch 2.13, PEFT 0.21, a processor" in text


def test_a_training_benchmark_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    info: dict[str, Any] = {f"{name}_version": "1.2" for name in ("torch", "transformers", "trl")}
    info |= {"trimtab_version": "0.1.0", "processor": "a processor", "processors": 2}
    info |= {"date": "2026-11-21T12:00:00+00:00", "load_before": 0.5}

    def figures(*peers: str) -> dict[str, float]:
        ratios = {f"speed / {peer}": 1.25 for peer in peers} | dict.fromkeys(
            (f"peak / {peer}" for peer in peers), 0.5
        )
        return {"tokens per second": 1234.4, "peak": 50.2e6} | ratios

    def part(*names: str, load: float) -> dict[str, Any]:
        peers = [name for name in names if "%" not in name]
        contestants = {name: figures(*peers) for name in names}
        facts = {"provenance": {**info, "load_before": load}, "rounds": 5, "steps": 1}
        return {**facts, "contestants": contestants}

    masked = ("whole model", "20%", "5%")
    report = {
        "model": {"num_elements": 1000, "num_hidden_layers": 2, "hidden_size": 8},
        "sequences": 8,
        "prompt": 24,
        "completion": 16,
        "by_algorithm": {
            "sft": part("bare TRL", *masked, load=0.5),
            "ppo": part(*masked, load=2.0),
        },
    }
    for draw in generated_training.__all__:
        getattr(generated_training, draw)(report)
    text = capsys.readouterr().out
    assert "| sft | 1,234 | 1,234 | 1,234 | 1,234 | bare TRL | 1.25 | 1.25 | 1.25 |" in text
    assert "| ppo | – | 1,234 | 1,234 | 1,234 | whole model | 1.25 | 1.25 | 1.25 |" in text
    assert "| sft | 50 MB | 50 MB | 50 MB | 50 MB | bare TRL | 0.50 | 0.50 | 0.50 |" in text
    assert "- sft, ppo: 2026-11-21, trimtab 0.1.0, torch 1.2, transformers 1.2, TRL 1.2, " in text
    assert "5 rounds of 1 step; load before the first: 0.50" in text
    assert "8 sequences of 24 + 16 tokens: 320 tokens." in text


def test_a_demo_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    scores: dict[str, Any] = dict.fromkeys(("greedy_accuracy", "sampled_accuracy"), 0.25)
    scores |= {"greedy_interval": [0.125, 0.375], "sampled_interval": [0.1875, 0.3125]}
    arm = {
        "evaluation": scores,
        "record": {"algorithm": "grpo", "tokens": {"num_loss": 1920}, "seconds": {"train": 300.4}},
    }
    group = {"num_elements": 1000, "num_changed": {"bits": 1}}
    inside = {"num_elements": 8, "num_sub_equal": {"bits": 6}, "num_base_equal": {"bits": 0}}
    total = {"inside": inside, "all": {"cosine": 0.75, "num_sub_moved": 96}}
    generated_demo.demo(
        {
            "before": scores,
            "majority_baseline": {"answer": 9, "accuracy": 0.125},
            "arms": {"grpo": arm, "grpo-mask": arm},
            "comparisons": {"GRPO": {"total": group, "by_kind": {"norm": group}}},
            "identities": {"GRPO mask": {"total": total}},
            "record": {
                "arms": {
                    "GRPO mask": {
                        "optimizer": {
                            "num_selected": 100,
                            "state_bytes": 8_000_000,
                            "index_bytes": 4_000_000,
                        },
                        "same_answers": {"correct": 30, "total": 32},
                    }
                }
            },
        }
    )
    text = capsys.readouterr().out
    assert "| always “9” | 12.5 % |" in text
    assert "| GRPO | 25.0 % [12.5, 37.5] | 25.0 % [18.8, 31.2] | 1,920 | 300 s |" in text
    assert "| GRPO mask | 25.0 % [12.5, 37.5] |" in text
    assert "| `norm` | 99.90 % |" in text
    assert "| GRPO mask | 100 | 96 | 75.00 % | 0 % | 0.7500 | 30 of 32 | 12 MB |" in text
