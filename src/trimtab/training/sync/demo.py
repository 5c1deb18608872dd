"""See it happen: a real model is trained, a real vLLM follows it, and each version is proven.

OUT/base/        the model, SmolLM2-135M, from a package of PyPI
OUT/grpo.toml    the run: GRPO on sums of two digits, sampled by the server
OUT/grpo/        what `trimtab train` makes of it
OUT/place/       the versions
OUT/versions.json  the table, line by line
OUT/train.log, OUT/server.log
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trimtab.elements.dtypes import DTYPES
from trimtab.errors import SyncError
from trimtab.outputs import write_text
from trimtab.processes import start_trimtab
from trimtab.results.records import made_now
from trimtab.sync.chain import CHAIN, at_place, read_chain
from trimtab.sync.engines.client import EngineClient
from trimtab.sync.engines.control import EngineControl, vllm_server
from trimtab.sync.engines.drive import EngineDriver
from trimtab.sync.engines.prove import prove
from trimtab.sync.follower import acknowledgements
from trimtab.sync.published import Followed, Published, Served, SyncLog
from trimtab.training.addition import end_token, is_correct, split_questions
from trimtab.training.demo import run_files
from trimtab.training.smollm2 import export_base
from trimtab.words import one_line

CONTEXT = 128
"""Tokens of a prompt and its completion; the questions have some thirty."""

SYNC_TABLES = """
[publish]
to = "place"

[rollouts]
engine = "{url}"
"""


@dataclass(frozen=True)
class Shown:
    """A version that the server serves.

    Attributes:
        published: The version: what changed, and its bytes. None for version 0.
        served: Whether it is proven, and how many questions were answered right.
        followed: How the server came to it; None for version 0.
    """

    published: Published | None
    served: Served
    followed: Followed | None

    def __repr__(self) -> str:
        return one_line(self, repr(self.served))


LINE = "version  step  changed       bytes  of dense   apply  proof    right"
"""Heading of the lines of `line_of`."""


def line_of(shown: Shown) -> str:
    """A version as a line of a table."""
    served, published, followed = shown.served, shown.published, shown.followed
    proof = "equal" if served.is_proven else "DIFFERS"
    right = f"{served.num_right:>3}/{served.num_asked}"
    if published is None:
        return (
            f"{served.version:>7}  {'':>4}  {'':>7}  {'':>10}  {'':>8}  {'':>6}  {proof:<7} {right}"
        )
    changed = f"{100 * published.num_changed / published.num_elements:.3f} %"
    share = f"{100 * published.num_bytes / published.num_dense_bytes:.3f} %"
    apply = "" if followed is None else f"{followed.seconds.get('apply', 0.0):.2f} s"
    return (
        f"{served.version:>7}  {published.step or 0:>4}  {changed:>7}  {published.num_bytes:>10,}  "
        f"{share:>8}  {apply:>6}  {proof:<7} {right}"
    )


def sync_demo(
    out: str | os.PathLike[str], python: str | os.PathLike[str], *, steps: int = 10, seed: int = 0
) -> Iterator[tuple[Shown, SyncLog | None]]:
    """Train a model, let a vLLM follow it, and yield each version that it serves.

    Args:
        out: Folder for everything; one that was interrupted is continued.
        python: The Python of an environment with vLLM and trimtab (`make engine`).
        steps: Optimizer steps.
        seed: As in `trimtab demo`.

    Yields:
        The version, and what was measured so far; None before the first was published.

    Raises:
        SyncError: The server does not start, training fails, or what is served is not what was
            published.
    """
    if not Path(python).exists():
        raise SyncError(
            f"{os.fspath(python)}: no such Python: `make engine` makes an environment with vLLM "
            "and trimtab, or give that of another"
        )
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    base, place = folder / "base", folder / "place"
    if not (base / "config.json").exists():
        export_base(base)
    questions = _Questions(base, seed)
    rows: list[Shown] = []
    flags = (
        *("--max-model-len", str(CONTEXT), "--max-num-seqs", "32"),
        *("--weight-transfer-config", '{"backend": "trimtab"}'),
    )
    with vllm_server(python, base, *flags, log=folder / "server.log") as url:
        client, driver = EngineClient(url), EngineDriver(url, place, base=base)
        first = Served(0, True, questions.ask(client), len(questions.questions))
        rows.append(Shown(None, first, None))
        yield rows[-1], None
        text = run_files(steps, seed)["grpo"] + SYNC_TABLES.format(url=url)
        write_text(folder / "grpo.toml", text, force=True)
        with _training(folder) as process:
            seen = 0
            while True:
                is_over = process.poll() is not None
                if is_over and not process.returncode:
                    driver.update()  # of the last version nothing was sampled any more
                there = (place / CHAIN).exists()
                version = driver.server.status()["version"] if there else None
                if version is not None and version > seen:
                    seen = version
                    rows.append(_shown(driver.server, place, questions, client))
                    yield rows[-1], _log(place, rows)
                elif is_over:
                    break
                else:
                    time.sleep(0.2)
        if process.returncode:
            raise SyncError(
                f"training failed with code {process.returncode}: see {folder / 'train.log'}"
            )
    if wrong := [str(each.served.version) for each in rows if not each.served.is_proven]:
        raise SyncError(f"the server did not serve version {', '.join(wrong)} bit for bit")


class _Questions:
    """The held-out questions, as tokens."""

    def __init__(self, base: Path, seed: int) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.questions = split_questions(seed).heldout
        self.prompts = [self.tokenizer(each.prompt)["input_ids"] for each in self.questions]
        self.end = end_token(self.tokenizer)

    def ask(self, client: EngineClient) -> int:
        """How many of them the server answers right, greedily."""
        made = client.complete(
            self.prompts,
            [1] * len(self.prompts),
            max_tokens=3,
            end_tokens=[self.end],
            temperature=0.0,
        )
        texts = [self.tokenizer.decode([*each[0].token_ids]) for each in made]
        pairs = zip(texts, self.questions, strict=True)
        return sum(is_correct(text, question.answer) for text, question in pairs)


def _shown(
    server: EngineControl, place: Path, questions: _Questions, client: EngineClient
) -> Shown:
    """Prove the version that the server serves, and ask it."""
    there = at_place(place)
    said = acknowledgements(there)
    proof = prove(server, there)
    served = Served(proof.version, proof.is_proven, questions.ask(client), len(questions.questions))
    chain = read_chain(there)
    assert chain is not None
    target = chain.at(proof.version)
    links = [link for link in chain.links if link.version == proof.version]
    published = Published(
        version=proof.version,
        step=proof.step,
        num_changed=0 if target is None else target.num_changed,
        num_elements=chain.base.num_elements,
        num_bytes=min((link.num_bytes for link in links), default=0),
        num_dense_bytes=sum(
            num * DTYPES[dtype].num_bytes for dtype, num in chain.base.dtypes.items()
        ),
        seconds={},
    )
    mine = [each for each in said if each.version == proof.version]
    followed = [Followed(e.name, e.version, e.num_bytes, e.seconds) for e in mine]
    return Shown(published, served, followed[0] if followed else None)


def _log(place: Path, rows: list[Shown]) -> SyncLog:
    chain = read_chain(at_place(place))
    assert chain is not None
    return SyncLog(
        base=chain.base,
        place=str(place),
        versions=tuple(each.published for each in rows if each.published is not None),
        followed=tuple(each.followed for each in rows if each.followed is not None),
        provenance=made_now(),
        served=tuple(each.served for each in rows),
    )


@contextmanager
def _training(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`trimtab train`, which ends with this process."""
    with (folder / "train.log").open("ab") as log:
        process = start_trimtab(["train", str(folder / "grpo.toml")], log)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
