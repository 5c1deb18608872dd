"""Find the weights of a checkpoint, in a folder or on the Hugging Face hub.

From the hub, a first call fetches the small files and a single-file checkpoint; the index among
them names the shards that a second call fetches. So a repository with weights in several formats
costs one download, and a cache that another tool filled is used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from trimtab import inputs
from trimtab.errors import CheckpointError, CheckpointNotFoundError
from trimtab.words import first_few

SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of weights in one file, preferred first."""

INDEX_FILES = tuple(f"{name}.index.json" for name in SINGLE_FILES)
"""Names of the index of weights in several files (shards)."""

FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
"""Files of a model other than its weights."""

OTHER_WEIGHTS = (
    "model*.safetensors",
    "model*.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model*.bin.index.json",
    "consolidated*.safetensors",
    "consolidated*.pth",
    "tf_model*.h5",
    "flax_model*.msgpack",
    "*.gguf",
)
"""Names of weights in any format."""

ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
"""Files of a LoRA adapter."""

SHARD = re.compile(r"-\d{5}-of-\d{5}(?=\.)")
"""Added to the name of a file for each of its shards."""

GGUF_CURE = (
    "GGUF weights are quantised for inference: load them with transformers (gguf_file=...) and "
    "save_pretrained the model to compare it"
)


@dataclass(frozen=True)
class WeightFiles:
    """The files that hold the weights of a checkpoint.

    Attributes:
        folder: The folder that contains them, possibly in subfolders.
        paths: The files by name; names of shards are numbered.
        shard_of: Tensor -> path of its shard within the folder, from the index; empty without an
            index.
        notes: Other weights in the folder, and why they are not read.
    """

    folder: Path
    paths: tuple[Path, ...]
    shard_of: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def listed(self, path: Path) -> set[str]:
        """Tensors that the index assigns to a file."""
        return {name for name, at in self.shard_of.items() if path == self.folder / at}


def find_weights(folder: Path, config: Mapping[str, Any] | None = None) -> WeightFiles:
    """Find the weights as transformers does: safetensors first, a single file before shards.

    Shards that an index names may be missing: this shows when they are opened.

    Args:
        folder: The folder.
        config: Its `config.json`, whose `transformers_weights` may name another file or index.

    Raises:
        CheckpointError: There are none, or the index cannot be used.
    """
    if (named := weights_named(folder, config or {})) is not None:
        why = "which transformers_weights in config.json names"
        if not named.endswith(".json"):
            return WeightFiles(folder, (folder / named,), notes=_notes(folder, named, (), why))
        return _sharded(folder, named, why)
    for single, index in zip(SINGLE_FILES, INDEX_FILES, strict=True):
        if os.path.lexists(folder / single):
            return WeightFiles(folder, (folder / single,), notes=_notes(folder, single, ()))
        if os.path.lexists(folder / index):
            return _sharded(folder, index)
    raise CheckpointError(_what_it_is_instead(folder))


def weights_named(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The file of weights, or index of them, that a config names; None if it names none.

    Raises:
        CheckpointError: transformers would not accept it, or it is outside the folder.
    """
    named = config.get("transformers_weights")
    if named is None:
        return None
    ends = (".safetensors", ".safetensors.index.json")
    if not isinstance(named, str) or not named.endswith(ends) or is_foreign(named):
        raise CheckpointError(
            f"{folder / 'config.json'}: transformers_weights is {named!r}, expected the name of a "
            f"file in its folder that ends in {' or '.join(ends)}"
        )
    return named


def adapter_in(folder: Path) -> list[str]:
    """Names of the files of a LoRA adapter in a folder."""
    return [name for name in ADAPTER if (folder / name).exists()]


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a folder, or an empty dict if there is none.

    The quantisation settings that ModelOpt writes to a file of its own are added where transformers
    has them.

    Raises:
        CheckpointError: A file exists but is not a JSON object.
    """
    path, modelopt = folder / "config.json", folder / "hf_quant_config.json"
    # A broken link is refused rather than treated as absent.
    config = read_json(path) if os.path.lexists(path) else {}
    if "quantization_config" not in config and os.path.lexists(modelopt):
        quantization = read_json(modelopt).get("quantization")
        if isinstance(quantization, dict):
            config["quantization_config"] = {"quant_method": "modelopt", **quantization}
    return config


def check_files(folder: Path) -> None:
    """Check the other files of a model's folder, which other libraries will read.

    A pipe among them would hang whatever opens it.

    Raises:
        CheckpointError: One is not a regular file, or too long.
    """
    for pattern in FILES:
        for path in folder.glob(pattern):
            with inputs.open_regular(path, CheckpointError) as file:
                size = os.fstat(file.fileno()).st_size
            if size > inputs.MAX_RESULT_BYTES:
                raise CheckpointError(f"{path}: has {size} bytes, too long for what it should be")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: The file cannot be read, or is not a JSON object in UTF-8.
    """
    data = inputs.read_json(path, CheckpointError)
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found a {type(data).__name__}")
    return data


def _sharded(folder: Path, index: str, why: str | None = None) -> WeightFiles:
    shard_of = _read_index(folder / index)
    shards = sorted(set(shard_of.values()))
    paths = tuple(folder / shard for shard in shards)
    return WeightFiles(folder, paths, shard_of, _notes(folder, index, shards, why))


def is_foreign(name: str) -> bool:
    """Whether a name in a file leads outside the folder of that file."""
    return (
        not {"", ".", ".."}.isdisjoint(name.split("/"))
        or not name.isprintable()
        or not set("\\:").isdisjoint(name)
    )


def _read_index(path: Path) -> dict[str, str]:
    """Tensor -> path of its shard, from the folder of the index."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: has no weight_map from tensors to shards")
    shard_of = {name: str(shard) for name, shard in weight_map.items()}
    # A shard is in the folder of its index or below; nothing else, such as ../x, is followed.
    foreign = sorted(repr(shard) for shard in set(shard_of.values()) if is_foreign(shard))
    if foreign:
        raise CheckpointError(f"{path}: names shards outside its folder: {first_few(foreign)}")
    return shard_of


def _notes(
    folder: Path, taken: str, shards: Sequence[str], why: str | None = None
) -> tuple[str, ...]:
    """Notes for a folder that contains more than one set of weights."""
    why = why or "which comes first as in transformers"
    when = _written(folder / taken)
    others = []
    for entry in sorted(folder.iterdir()):
        name = entry.name
        if name == taken or name in shards or not _is_one(name, OTHER_WEIGHTS):
            continue
        index = f"{SHARD.sub('', name)}.index.json"
        if index in INDEX_FILES and index != taken and (folder / index).exists():
            continue  # its index is listed
        is_newer = _written(entry) > when
        others.append(f"{name} (newer)" if is_newer else name)
    notes = []
    if others:
        notes.append(
            f"{taken} is read, {why}; {first_few(others)} in the same folder "
            "may be other weights and " + ("are not read" if len(others) > 1 else "is not read")
        )
    if adapter := adapter_in(folder):
        notes.append(
            f"{taken} is read alone; the LoRA adapter next to it ({first_few(adapter)}) is not "
            "added, as transformers would: move it away if it is merged already, else merge it"
        )
    return tuple(notes)


def _written(path: Path) -> int:
    """Modification time of a file; 0 for a broken link, which is reported when it is opened."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _is_one(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _what_it_is_instead(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    if not names:
        return f"{folder}: the folder is empty"
    if "adapter_config.json" in names:
        return (
            f"{folder}: a LoRA adapter, not a whole checkpoint: merge it into its base first "
            "(PEFT's merge_and_unload, then save_pretrained)"
        )
    if cure := _distributed(folder, names):
        return f"{folder}: {cure}"
    gguf = [name for name in names if name.endswith(".gguf")]
    if gguf:
        return f"{folder}: {first_few(gguf)}: {GGUF_CURE}"
    looked_for = ", ".join((*SINGLE_FILES, *INDEX_FILES))
    return f"{folder}: not a checkpoint: looked for {looked_for}; found {first_few(names)}"


def _distributed(folder: Path, names: Sequence[str]) -> str | None:
    """How to convert a checkpoint that several processes saved in parts; None for others."""
    inside = [
        name
        for name in names
        if (folder / name / ".metadata").exists()  # where accelerate puts it, in a checkpoint
    ]
    if ".metadata" in names or any(name.endswith(".distcp") for name in names):
        where = folder
    elif inside:
        where = folder / inside[0]
    elif "zero_to_fp32.py" in names:
        return (
            "a checkpoint of DeepSpeed ZeRO: run the script that lies in it, "
            "`python zero_to_fp32.py . OUTPUT --safe_serialization`, and give OUTPUT with the "
            "config.json of the model"
        )
    else:
        return None
    return (
        "a distributed checkpoint (DCP, as FSDP saves it): run `accelerate merge-weights "
        f"{where} OUTPUT`, and give OUTPUT with the config.json of the model"
    )


HUB_ID = re.compile(r"(?P<repository>\w[\w.-]*(?:/[\w.-]+)?)(?:@(?P<revision>\S+))?")

PREFERRED, FALLBACK = SINGLE_FILES

REASONS = (
    ("GatedRepoError", "it is gated: accept its terms on the hub and run `hf auth login`"),
    ("RepositoryNotFoundError", "the hub has no such repository, or it is private"),
    ("RevisionNotFoundError", "the repository has no such revision"),
    ("LocalEntryNotFoundError", "the hub cannot be reached and the local cache does not hold it"),
    ("EntryNotFoundError", "the repository holds no {}"),
    ("HFValidationError", "it is not a hub id"),
)
"""Error class of huggingface_hub -> reason; the first match counts."""

MADE_BY = {
    "trimtab example": ("base", "tuned", "sub", "other", "run"),
    "trimtab demo": ("demo",),
}
"""Command -> first parts of the paths of the checkpoints that it makes."""


def missing_hint(ref: str) -> str:
    """How to create a checkpoint that does not exist, if a trimtab command does; for messages."""
    first = ref.removeprefix("./").partition("/")[0]
    made = [command for command, names in MADE_BY.items() if first in names]
    return f". `{made[0]}` makes it, in the folder where it is called" if made else ""


def fetch_from_hub(repository: str, revision: str | None) -> tuple[Path, str]:
    """Download the weights of a repository unless they are cached.

    Args:
        repository: `org/name`.
        revision: Branch, tag or commit; None for the default branch.

    Returns:
        The cached folder and the commit of the revision.

    Raises:
        CheckpointNotFoundError: The repository or revision does not exist or is not accessible, or
            there is no network and it is not cached.
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
    """Download the tokenizer and settings of a model to the cached folder of its weights.

    Args:
        id: A hub id whose weights were fetched.
        commit: The commit of its revision.

    Raises:
        CheckpointNotFoundError: They are not in the cache, and the hub cannot be reached.
    """
    match = HUB_ID.fullmatch(id)
    assert match is not None, "its weights came from the hub"
    _download(match["repository"], commit, list(FILES))


def fetch_file(repository: str, revision: str | None, name: str) -> Path:
    """Download one file of a repository unless it is cached.

    Args:
        repository: `org/name`.
        revision: Branch, tag or commit; None for the default branch.
        name: The file.

    Returns:
        The cached file.

    Raises:
        CheckpointNotFoundError: The repository, revision or file does not exist or is not
            accessible, or there is no network and it is not cached.
    """
    from huggingface_hub import hf_hub_download

    with _explained(repository, revision, name):
        return Path(hf_hub_download(repository, name, revision=revision))


def _download(repository: str, revision: str | None, names: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    with _explained(repository, revision, first_few(names)):
        return Path(snapshot_download(repository, revision=revision, allow_patterns=names))


@contextmanager
def _explained(repository: str, revision: str | None, wanted: str) -> Iterator[None]:
    """Say in one sentence why something was not downloaded."""
    try:
        yield
    except Exception as error:
        # The hub client raises a dozen classes, some of its HTTP library, depending on its version.
        classes = {base.__name__ for base in type(error).__mro__}
        reason = next((text for name, text in REASONS if name in classes), None)
        at = f"{repository}@{revision}" if revision else repository
        why = (reason or "").format(wanted) or str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointNotFoundError(
            f"{at}: no such local path, and not taken from the hub: {why}{missing_hint(at)}"
        ) from (error if reason is None else None)  # a known reason needs no 70 lines of traceback
