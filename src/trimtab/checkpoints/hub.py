"""Bring the weights of a Hugging Face hub repository into the local cache, and nothing else.

A first call fetches the small files and a single-file checkpoint; the index among them names the
shards that a second call fetches. So a repository that keeps its weights in several formats costs
one of them, and a cache filled by any other tool is used as it is.
"""

from __future__ import annotations

import re
from pathlib import Path

from trimtab.checkpoints.folder import (
    FILES,
    INDEX_FILES,
    SINGLE_FILES,
    find_weights,
    read_config,
    weights_named,
)
from trimtab.errors import CheckpointError, CheckpointNotFoundError

HUB_ID = re.compile(r"(?P<repository>\w[\w.-]*(?:/[\w.-]+)?)(?:@(?P<revision>\S+))?")

PREFERRED, FALLBACK = SINGLE_FILES

REASONS = (
    ("GatedRepoError", "it is gated: accept its terms on the hub and run `hf auth login`"),
    ("RepositoryNotFoundError", "the hub has no such repository, or it is private"),
    ("RevisionNotFoundError", "the repository has no such revision"),
    ("LocalEntryNotFoundError", "the hub cannot be reached and the local cache does not hold it"),
    ("HFValidationError", "it is not a hub id"),
)
"""Error class of huggingface_hub -> what to say; the first that fits counts."""

MADE_BY = {
    "trimtab example": ("base", "tuned", "sub", "other", "run"),
    "trimtab demo": ("demo",),
}
"""Command -> first parts of the paths of checkpoints that it makes, and that the pages name."""


def cure(ref: str) -> str:
    """What helps whoever asks for a checkpoint that is not there; it follows what was found."""
    first = ref.removeprefix("./").partition("/")[0]
    made = [command for command, names in MADE_BY.items() if first in names]
    return f". `{made[0]}` makes it, in the folder where it is called" if made else ""


def fetch(repository: str, revision: str | None) -> tuple[Path, str]:
    """Download the weights of a repository unless they are cached.

    Args:
        repository: `org/name`.
        revision: Branch, tag or commit; None for the default branch.

    Returns:
        The cached folder and the commit that the revision stood for.

    Raises:
        CheckpointNotFoundError: No such repository or revision, no access, or no network and
            not in the cache.
        CheckpointError: The repository holds no weights that can be read.
    """
    small = ["config.json", "adapter_config.json", *INDEX_FILES]
    folder = _download(repository, revision, [*small, PREFERRED])
    commit = folder.name
    config = read_config(folder)
    named = weights_named(folder, config)
    if named is not None:
        _download(repository, commit, [named])
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if named is None and names.isdisjoint({*INDEX_FILES, PREFERRED, "adapter_config.json"}):
        _download(repository, commit, [FALLBACK])
        if not (folder / FALLBACK).exists():
            looked_for = ", ".join((*SINGLE_FILES, *INDEX_FILES))
            raise CheckpointError(f"{repository}: the repository holds none of {looked_for}")
    paths = find_weights(folder, config).paths
    missing = [path.relative_to(folder).as_posix() for path in paths if not path.exists()]
    if missing:
        _download(repository, commit, missing)
    return folder, commit


def fetch_the_rest(id: str, commit: str) -> None:
    """Bring tokenizer and settings of a model beside its weights in the cache.

    Args:
        id: A hub id whose weights were fetched.
        commit: What its revision stood for.

    Raises:
        CheckpointNotFoundError: They are not in the cache, and the hub cannot be reached.
    """
    match = HUB_ID.fullmatch(id)
    assert match is not None, "its weights came from the hub"
    _download(match["repository"], commit, list(FILES))


def _download(repository: str, revision: str | None, names: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=names))
    except Exception as error:
        # The hub client raises a dozen classes, some of its HTTP library, and which ones
        # depends on its version; whatever it was, the checkpoint is not here.
        classes = {base.__name__ for base in type(error).__mro__}
        reason = next((text for name, text in REASONS if name in classes), None)
        at = f"{repository}@{revision}" if revision else repository
        raise CheckpointNotFoundError(
            f"{at}: no such local path, and not taken from the hub: "
            f"{reason or str(error).partition(chr(10))[0] or type(error).__name__}{cure(at)}"
        ) from (error if reason is None else None)  # what is known needs no 70 lines of traceback
