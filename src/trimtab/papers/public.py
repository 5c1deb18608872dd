"""Claims about published checkpoints, measured on those given by `--checkpoints`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from trimtab import Comparison, compare
from trimtab.errors import SettingsError, TrimtabError
from trimtab.inputs import read_toml
from trimtab.papers.library import PublicPair

Checkpoints: TypeAlias = Mapping[str, Mapping[str, str]]
"""Id of a pair -> `base` and `tuned`: each a hub id with an optional `@revision`, or a folder."""

NOT_GIVEN = "the checkpoints were not given: name them in --checkpoints MAP.toml"


def read_checkpoints(path: Path, known: Iterable[str]) -> Checkpoints:
    """Read `MAP.toml`: a table per pair, named by its id, with `base` and `tuned`.

    Folders are relative to the file.

    Raises:
        SettingsError: The file cannot be read, or its content is invalid; lists all problems.
    """
    content, ids = read_toml(path, SettingsError), list(known)
    problems = [f"there is no pair {id}, only {', '.join(ids)}" for id in content if id not in ids]
    pairs: dict[str, Mapping[str, str]] = {}
    for id, table in content.items():
        if not isinstance(table, dict) or table.keys() != {"base", "tuned"}:
            problems.append(f"[{id}] does not have exactly the keys base and tuned")
        else:
            pairs[id] = {side: _path_or_id(str(table[side]), path.parent) for side in table}
    if problems:
        raise SettingsError(f"{path}: {'; '.join(problems)}")
    return pairs


def _path_or_id(name: str, folder: Path) -> str:
    local = folder / Path(name).expanduser()
    return str(local) if local.exists() else name


def public_claims(
    pairs: Iterable[PublicPair],
    checkpoints: Checkpoints,
    folder: Path,
    notify: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Each pair as a claim, compared if its checkpoints are given.

    Args:
        pairs: The pairs.
        checkpoints: Their checkpoints.
        folder: Folder in which comparisons are cached.
        notify: Called with progress messages.
    """
    claims = []
    for pair in pairs:
        trials: list[dict[str, Any]] = []
        why: str | None = NOT_GIVEN
        if pair.id in checkpoints:
            notify(f"comparing {pair.id}")
            try:
                compared = _compared(folder / f"{pair.id}.json", **checkpoints[pair.id])
                trials, why = _trials(pair, compared), None
            except TrimtabError as error:
                why = str(error)
        claims.append(
            {
                "id": pair.id,
                "source": None,
                "place": pair.place,
                "claim": f"{pair.base} → {pair.tuned}: so much is unchanged.",
                "expected": dict(pair.sparsity),
                "unit": "%",
                "note": pair.note,
                "why": why,
                "trials": trials,
            }
        )
    return claims


def _compared(path: Path, base: str, tuned: str) -> Comparison:
    """Compare two checkpoints, or read the comparison of an earlier call."""
    if path.exists():
        known = Comparison.load(path)
        if (known.base.id, known.tuned.id) == (base, tuned):
            return known
    comparison = compare(base, tuned)
    comparison.save(path, force=True)
    return comparison


def _trials(pair: PublicPair, comparison: Comparison) -> list[dict[str, Any]]:
    total = comparison.total
    between = f"from {comparison.base.id} to {comparison.tuned.id}"
    trials = []
    for criterion, percent in pair.sparsity.items():
        share = (total.num_elements - total.num_changed[criterion]) / total.num_elements
        digits = len(percent.partition(".")[2])
        trials.append(
            {
                "about": f"sparsity ({criterion}) {between}",
                "measure": "sparsity",
                "settings": {"criterion": criterion},
                "arms": [],
                "unit": "share",
                "bound": {"equals": float(percent) / 100, "digits": 0.5 / 10 ** (digits + 2)},
                "premise": False,
                "missing": [],
                "values": {"": share},
            }
        )
    return trials
