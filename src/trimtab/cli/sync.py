"""`trimtab sync`: publish a run version by version, and follow it."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

import trimtab
from trimtab.cli import options
from trimtab.cli.terminal import say
from trimtab.outputs import write_text
from trimtab.words import plural

place_argument = click.argument("place", metavar="PLACE")

base_option = click.option(
    "--base", help="The checkpoint that the run began with: a folder, a file, or a hub id."
)


@click.group(
    "sync",
    cls=options.Group,
    short_help="Publish a run as it trains, and follow it.",
    epilog="Example: trimtab sync follow /shared/run --base base/ --output served/",
)
def sync() -> None:
    """Publish the versions of a run at a place, and follow it there.

    A PLACE is a folder, or the URL of an object store (`s3://bucket/run`).
    """


@sync.command(
    "publish",
    cls=options.Command,
    short_help="Publish a checkpoint as the next version.",
    epilog="Example: trimtab sync publish run/checkpoint-10 --to /shared/run --base base/",
)
@click.argument("checkpoint")
@click.option("--to", "place", metavar="PLACE", required=True, help="Where to publish it.")
@base_option
@click.option("--step", type=click.IntRange(min=0), help="Step of the trainer, to be recorded.")
@click.option(
    "--anchor-every",
    type=click.IntRange(min=0),
    default=16,
    help="Publish each so many versions against the base, too; 0 for never.",
)
@click.option(
    "--signing-key", type=options.PATH, help="Key of OpenSSH to sign with, by ssh-keygen."
)
@click.option(
    "--mask", type=options.PATH, help="Mask of the elements that are trained: code only these."
)
@click.option("--keep", type=click.IntRange(min=1), default=8, help="Newest versions to keep.")
@click.option(
    "--wire",
    type=click.Choice(["trimtab", "slime"]),
    default="trimtab",
    help="Layout: trimtab's own, or slime's, which SGLang, ModelExpress and CoreWeave read.",
)
@click.option(
    "--checksum",
    type=click.Choice(["adler32", "xxh3-128", "blake3"]),
    default="adler32",
    help="Checksum of each tensor in slime's layout.",
)
@options.threads_option
def publish(checkpoint: str, step: int | None, threads: int | None, **settings: Any) -> None:
    """Publish a CHECKPOINT as the next version of the run at a place.

    The first one there also begins the run. Without --base its first version is published whole.
    """
    with trimtab.Publisher(threads=threads, **settings) as publisher:
        before = publisher.publish(checkpoint, step=step)
        publisher.wait()
        if not publisher.published:
            say(f"version {before} has these weights: nothing was published", err=True)
        for each in publisher.published:
            say(
                f"published version {each.version}: {each.num_changed:,} of "
                f"{each.num_elements:,} elements changed, {each.num_bytes:,} bytes",
                err=True,
            )


@sync.command(
    "follow",
    cls=options.Command,
    short_help="Keep a folder at the newest version.",
    epilog="Example: trimtab sync follow /shared/run --base base/ --output served/",
)
@place_argument
@base_option
@click.option(
    "-o", "--output", type=options.PATH, required=True, help="Folder to make, or to go on with."
)
@click.option("--once", is_flag=True, help="End at the newest version, instead of waiting.")
@click.option(
    "--poll", type=click.FloatRange(min=0.01), default=1.0, help="Seconds between two looks."
)
@click.option(
    "--signers",
    type=options.PATH,
    help="Public keys, or allowed_signers of OpenSSH: refuse what none of them signed.",
)
@click.option("--name", help="Name of this follower.  [default: that of host and process]")
@options.threads_option
def follow(
    place: str,
    base: str | None,
    output: Path,
    once: bool,
    poll: float,
    signers: Path | None,
    name: str | None,
    threads: int | None,
) -> None:
    """Write each version of the run at PLACE to a folder, until Ctrl-C.

    OUTPUT/current is a link to the newest checkpoint, which is always whole. PLACE may be a folder
    in slime's layout, too, whoever writes it.
    """
    from trimtab.sync.chain import CHAIN
    from trimtab.sync.slime_follower import SlimeFollower, is_slime

    follower: trimtab.Follower | SlimeFollower
    with ExitStack() as stack:
        if is_slime(place) and not Path(place, CHAIN).exists():
            if signers is not None or name is not None:
                raise click.UsageError(
                    f"{place} is in slime's layout, which has no signatures and no names of "
                    "followers: leave out --signers and --name"
                )
            follower = SlimeFollower(place, output, base)
        else:
            holder = trimtab.FolderHolder(output, base, threads=threads)
            follower = trimtab.Follower(place, holder, name=name, signers=signers)
            stack.enter_context(follower)
        updates = follower.updates(poll=poll, warn=lambda error: say(f"{error}", err=True))
        for update in [follower.update()] if once else updates:
            if update is not None:
                say(_line_of(update))
        if once and follower.version is None:
            say("nothing is published yet", err=True)


@sync.command(
    "status",
    cls=options.Command,
    short_help="Show the versions at a place, and its followers.",
    epilog="Example: trimtab sync status /shared/run",
)
@place_argument
@options.json_option
def status(place: str, as_json: bool) -> None:
    """Show which versions are at PLACE, and which of them followers have."""
    from trimtab.results.schema import to_plain
    from trimtab.sync.chain import at_place, read_chain
    from trimtab.sync.follower import acknowledgements
    from trimtab.sync.slime_follower import newest_in

    there = at_place(place)
    chain = read_chain(there)
    followers = acknowledgements(there)
    if as_json:
        say(json.dumps({"chain": to_plain(chain), "followers": to_plain(followers)}, indent=1))
        return
    if chain is None and (number := newest_in(place)) is not None:
        say(f"version {number}, in slime's layout, in which followers do not say what they have")
        return
    if chain is None:
        say(f"{place}: nothing is published yet", err=True)
        return
    newest = chain.newest
    step = "" if newest.step is None else f", of step {newest.step}"
    say(f"version {newest.number}{step}, of a run of {chain.base.id}")
    for link in chain.links:
        start = "nothing" if link.base is None else f"version {link.base}"
        say(f"  {start} to version {link.version}: {link.num_bytes:,} bytes")
    for each in followers:
        behind = newest.number - each.version
        state = "another run" if each.run != chain.run else f"version {each.version}"
        late = f", {plural(behind, 'version')} behind" if behind and each.run == chain.run else ""
        say(f"{each.name} has {state}{late}")


engine_option = click.option(
    "--engine", metavar="URL", required=True, help="The vLLM server: http://127.0.0.1:8000."
)

folder_option = click.option(
    "--folder", "place", metavar="PLACE", required=True, help="Where the run is published."
)


@sync.command(
    "drive",
    cls=options.Command,
    short_help="Keep a vLLM server at the newest version.",
    epilog="Example: trimtab sync drive --engine http://127.0.0.1:8000 --folder /shared/run",
)
@engine_option
@folder_option
@base_option
@click.option("--name", help="Name of the follower.  [default: that of host and process]")
@click.option(
    "--pause",
    "mode",
    type=click.Choice(["wait", "abort", "keep"]),
    default="wait",
    help="What a pause does with requests in progress: wait for their end, abort them, or keep "
    "them, to go on with other weights.",
)
@click.option("--once", is_flag=True, help="End at the newest version, instead of waiting.")
@click.option(
    "--poll", type=click.FloatRange(min=0.01), default=1.0, help="Seconds between two looks."
)
def drive(engine: str, place: str, once: bool, poll: float, **settings: Any) -> None:
    """Bring a vLLM server to each version of a run, until Ctrl-C.

    The server was started with VLLM_SERVER_DEV_MODE=1 and --weight-transfer-config
    '{"backend": "trimtab"}', and reads PLACE itself. It is paused only while its weights change.
    """
    driver = trimtab.EngineDriver(engine, place, **settings)
    updates = driver.updates(poll=poll, warn=lambda error: say(f"{error}", err=True))
    for update in [driver.update()] if once else updates:
        if update is not None:
            seconds = ", ".join(f"{stage} {time:.2f} s" for stage, time in update.seconds.items())
            say(f"version {update.version}: {seconds}")


@sync.command(
    "prove",
    cls=options.Command,
    short_help="Compare what a vLLM server serves with a version.",
    epilog="Example: trimtab sync prove --engine http://127.0.0.1:8000 --folder /shared/run",
)
@engine_option
@folder_option
@click.option(
    "--version",
    type=click.IntRange(min=0),
    help="The version.  [default: the one that the engine says it has]",
)
@base_option
@click.option("--lr", type=float, help="With --base: say how many elements such a step can move.")
@options.json_option
def prove(engine: str, place: str, as_json: bool, **settings: Any) -> int:
    """Compare what a vLLM server really serves with a version of the run, bit for bit.

    Also says whether the version differs from the one before, and if hardly, why.

    Exit code 3 if they differ, or some of it cannot be seen.
    """
    from trimtab.results.schema import to_plain
    from trimtab.sync.engines.prove import lines_of

    proof = trimtab.prove(engine, place, **settings)
    if as_json:
        say(json.dumps(to_plain(proof), indent=1))
    else:
        for line in lines_of(proof):
            say(line)
    return 0 if proof.is_proven else 3


@sync.command(
    "demo",
    cls=options.Command,
    short_help="See it happen: a real vLLM follows a real run.",
    epilog="Example: trimtab sync demo --steps 20",
)
@click.option("--steps", type=click.IntRange(min=1), default=10, help="Optimizer steps.")
@click.option(
    "--seed", type=options.SEED, default=0, help="Seed of the questions and the sampling."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("sync-demo"),
    help="Folder for everything.",
)
@click.option(
    "--engine-python",
    type=options.PATH,
    default=Path(".engine-venv/bin/python"),
    help="Python of the environment with vLLM; `make engine` makes it.",
)
def demo(steps: int, seed: int, out: Path, engine_python: Path) -> None:
    """See it happen: train a real model, and let a real vLLM follow it.

    SmolLM2-135M learns one-digit addition by GRPO. A vLLM server in a process and an environment of
    its own samples the answers, and gets each version of the weights through a folder. For each of
    them a line says what was sent, what it took, whether the server has the trainer's bits, and how
    many held-out sums it answers right.
    """
    from trimtab.report.html import check_installed, render
    from trimtab.report.sync import sync_document
    from trimtab.training.sync.demo import LINE, line_of, sync_demo

    check_installed()
    say(LINE)
    log = None
    for shown, measured in sync_demo(out, engine_python, steps=steps, seed=seed):
        say(line_of(shown))
        log = measured
    if log is not None:
        log.save(out / "sync.json", force=True)
        write_text(out / "report.html", render(sync_document(log)), force=True)
        say(f"\nOpen {out / 'report.html'}; the numbers are in {out / 'sync.json'}.")


def _line_of(update: Any) -> str:
    step = "" if update.step is None else f" (step {update.step})"
    seconds = ", ".join(f"{stage} {time:.2f} s" for stage, time in update.seconds.items())
    links = plural(len(update.links), "link")
    return f"version {update.version}{step}: {update.num_bytes:,} bytes in {links}; {seconds}"
