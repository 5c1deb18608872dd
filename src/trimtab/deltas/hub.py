"""Deltas on the Hugging Face hub: push one with its model card, load the model that one makes."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trimtab.checkpoints.checkpoint import Checkpoint, opened
from trimtab.checkpoints.folder import HUB_ID
from trimtab.checkpoints.stream import Progress
from trimtab.deltas.apply import apply_delta, hub_base, verify_delta
from trimtab.deltas.chain import opened_chain
from trimtab.deltas.file import HUB_NAME, DeltaFile
from trimtab.deltas.manifest import Manifest, TensorEntry
from trimtab.deltas.signature import SUFFIX
from trimtab.errors import DeltaError, WriteError
from trimtab.extras import require
from trimtab.inputs import AnyPath
from trimtab.results.by_tensor import by_kind
from trimtab.words import first_few

TAG = "trimtab-delta"
"""Tag by which the repositories of deltas are found on the hub."""

INSTALL = "pip install 'trimtab[train]'"

REASONS = (
    ("OfflineModeIsEnabled", "HF_HUB_OFFLINE is set"),
    ("LocalTokenNotFoundError", "nobody is logged in: run `hf auth login`"),
    ("HFValidationError", "it is not a hub id"),
    ("ConnectError", "the hub cannot be reached"),
    ("ConnectionError", "the hub cannot be reached"),
)
"""Error class of the hub client, or of its HTTP library -> reason; the first match counts."""

STATUS = {
    401: "the hub does not know the token: run `hf auth login`",
    403: "the token may not write there",
}
"""HTTP status -> reason."""


def push_delta(
    delta: AnyPath,
    repository: str,
    *,
    base: AnyPath | Checkpoint | None = None,
    private: bool = False,
    progress: Progress | None = None,
) -> str:
    """Write a delta and its model card to a repository on the hub, in one commit.

    The repository is created if it does not exist; files of the same names are replaced, and stay
    in its history. The token is that of `hf auth login` or of `HF_TOKEN`. If the signature of the
    delta lies beside it (`run.delta.sig`), it is pushed too.

    Args:
        delta: The delta file.
        repository: `org/name`.
        base: The base as a hub id, `org/base@revision`, if the delta was made against a local copy
            of it. The delta is decoded against it, and what is pushed names its commit.
        private: Make a new repository private.
        progress: Called with bytes done and bytes in all, while `base` is checked.

    Returns:
        `repository@commit`, under which anybody gets these very bytes.

    Raises:
        CheckpointError: `base` cannot be read.
        DeltaError: The delta cannot be read, `base` is not its base, its base is not on the hub, or
            the hub does not take it; it is signed, and `base` would change it; or it is coded over
            a mask.
    """
    signature = Path(f"{delta}{SUFFIX}")
    if base is not None and signature.exists():
        raise DeltaError(
            f"{delta} is signed, and naming another base in it would undo that: make it against "
            "the base on the hub and sign it then, or remove the signature"
        )
    with tempfile.TemporaryDirectory() as folder, DeltaFile(delta) as opened_delta:
        path, manifest = opened_delta.path, opened_delta.manifest
        if manifest.mask is not None:
            raise DeltaError(
                f"{delta} is coded over a mask, which its readers on the hub would not have: make "
                "the delta without --mask"
            )
        if base is not None:
            with opened(base) as (checkpoint,):
                id, commit = _place(checkpoint)
                record = replace(manifest.base, id=id, revision=commit)
                verify_delta(checkpoint, path, progress=progress)
            path = Path(folder, HUB_NAME)
            opened_delta.copy(path, replace(manifest, base=record))
        with DeltaFile(path) as pushed:
            card = _model_card(pushed, repository)
        files: dict[str, Path | bytes] = {HUB_NAME: path, "README.md": card.encode()}
        if signature.exists():
            files[HUB_NAME + SUFFIX] = signature
        return f"{repository}@{_upload(files, repository, private=private)}"


def load_model(
    delta: AnyPath | Sequence[AnyPath],
    *,
    base: AnyPath | Checkpoint | None = None,
    signers: AnyPath | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Any:
    """Load the model that a delta makes, with `AutoModelForCausalLM`.

    The checkpoint is written to the hub's cache, under the SHA-256 of the delta, and is used from
    there the next time. Needs the train extra.

    Args:
        delta: A hub id, `org/name-delta` with an optional `@revision`; a delta file; or those of a
            chain.
        base: The checkpoint that the delta was made against; by default the repository on the hub,
            at the commit, that the delta names.
        signers: Refuse a delta that is not signed by a key in this file: see `verify_signature`.
        threads: Tensors or chunks decoded at the same time; by default one for each core.
        progress: Called with bytes done and bytes in all, while it is decoded.
        options: Passed on to `from_pretrained`: `dtype`, `device_map`, ...

    Returns:
        The model.

    Raises:
        CheckpointError: The base cannot be read.
        DeltaError: The delta cannot be read, its base is another one, or was a local checkpoint.
        MissingExtraError: transformers or torch is not installed.
    """
    require("torch", INSTALL)
    transformers = require("transformers", INSTALL)
    folder = _applied(delta, base, signers, threads, progress)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options)


def _applied(
    delta: AnyPath | Sequence[AnyPath],
    base: AnyPath | Checkpoint | None,
    signers: AnyPath | None,
    threads: int | None,
    progress: Progress | None,
) -> Path:
    """The folder in the cache with the checkpoint that a delta makes."""
    from huggingface_hub import cached_assets_path

    with opened_chain(delta, signers=signers) as chain:
        paths, manifest = [step.path for step in chain], chain[-1].manifest
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    folder = cached_assets_path("trimtab", "models") / digest.hexdigest()
    if not folder.exists():
        try:
            apply_delta(base, paths, folder, threads=threads, progress=progress)
        except OSError:
            if not folder.exists():  # else another process made it at the same time
                raise
    wrong = [
        file.path
        for file in manifest.files
        if not (folder / file.path).is_file()
        or (folder / file.path).stat().st_size != file.num_bytes
    ]
    if wrong:
        raise DeltaError(
            f"{folder}: {first_few(wrong)} was removed or changed: delete the folder, and it is "
            "made again"
        )
    return folder


def _place(checkpoint: Checkpoint) -> tuple[str, str]:
    """Repository and commit of a checkpoint from the hub."""
    match = HUB_ID.fullmatch(checkpoint.id)
    if checkpoint.revision is None or match is None:
        raise DeltaError(
            f"base {checkpoint.id} is a local checkpoint, and whoever gets the delta needs it from "
            "the hub: expected org/name@revision"
        )
    return match["repository"], checkpoint.revision


def _upload(files: Mapping[str, Path | bytes], repository: str, *, private: bool) -> str:
    """Commit files; returns the commit."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    try:
        api.create_repo(repository, private=private or None, exist_ok=True)
        done = api.create_commit(
            repository,
            [CommitOperationAdd(name, content) for name, content in files.items()],
            commit_message="Upload a delta with trimtab",
        )
    except Exception as error:
        raise DeltaError(f"{repository}: not pushed: {_why(error)}") from error
    return str(done.oid)


def _why(error: Exception) -> str:
    """Why the hub's client failed; it raises many classes, some of its HTTP library."""
    classes = {base.__name__ for base in type(error).__mro__}
    reason = next((text for name, text in REASONS if name in classes), None)
    status = getattr(getattr(error, "response", None), "status_code", None)
    why = reason or STATUS.get(status or 0) or str(error).partition("\n")[0]
    return why or type(error).__name__


def push_folder(
    folder: Path, repository: str, *, token: str | None = None, revision: str | None = None
) -> None:
    """Commit all files of a folder to an existing repository on the hub.

    Args:
        folder: The folder.
        repository: `org/name`.
        token: Token of the hub; None for that of `hf auth login` or of `HF_TOKEN`.
        revision: Branch to commit to; None for `main`.

    Raises:
        WriteError: The hub does not take it.
    """
    from huggingface_hub import HfApi

    try:
        HfApi(token=token).upload_folder(
            repo_id=repository,
            folder_path=folder,
            revision=revision,
            commit_message="End of training",
        )
    except Exception as error:
        raise WriteError(
            f"{repository}: not pushed: {_why(error)}. The files are in {folder}: `hf upload "
            f"{repository} {folder}` pushes them"
        ) from error


def _model_card(delta: DeltaFile, repository: str) -> str:
    """README.md of the repository of a delta.

    Raises:
        DeltaError: The delta was made against a local checkpoint.
    """
    from huggingface_hub import ModelCardData

    manifest = delta.manifest
    base, _, commit = hub_base(delta).partition("@")
    data = ModelCardData(
        base_model=base,
        base_model_relation="finetune",
        library_name="trimtab",
        tags=[TAG],
    )
    share = _share(delta.num_bytes, manifest.num_bytes)
    return f"""\
---
{data.to_yaml()}
---

# {repository.rpartition("/")[2]}

A fine-tune of [{base}](https://huggingface.co/{base}/tree/{commit}), stored as a lossless delta by
trimtab: {delta.num_bytes:,} bytes, {share} of the
{manifest.num_bytes:,} bytes of the checkpoint. Applied to commit `{commit}` of the base, it gives
every file of the fine-tuned checkpoint back, byte for byte, or refuses.

```bash
pip install 'trimtab[train]'
trimtab delta apply {repository} -o model    # the folder, as it was saved
python -c "import trimtab; print(trimtab.load_model('{repository}'))"
```

{_size_table(manifest)}
"""


def _size_table(manifest: Manifest) -> str:
    """Bytes by kind of tensor, in Markdown."""
    rows = ["| | elements | changed | bytes | of dense |", "| --- | --: | --: | --: | --: |"]
    kinds = by_kind(manifest.tensors, lambda entries: entries)
    for kind, entries in {**kinds, "all tensors": manifest.tensors}.items():
        rows.append(_size_row(kind, entries))
    files = sum(file.num_stored for file in manifest.files)
    rows.append(f"| headers and other files | | | {files:,} | |")
    return "\n".join(rows)


def _size_row(name: str, entries: Sequence[TensorEntry]) -> str:
    elements, changed, stored, dense = (
        sum(getattr(entry, figure) for entry in entries)
        for figure in ("num_elements", "num_changed", "num_stored", "num_bytes")
    )
    name = name.replace("|", "\\|")
    return (
        f"| {name} | {elements:,} | {_share(changed, elements)} | {stored:,} "
        f"| {_share(stored, dense)} |"
    )


def _share(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.2f} %"
