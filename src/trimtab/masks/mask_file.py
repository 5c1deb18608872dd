"""The file of a mask: a safetensors file of packed bits, with what they mean in its metadata.

Each tensor of the mask is a U8 tensor of its name, `[ceil(num_elements / 8)]`; shapes, counts and
provenance are JSON in the metadata. A file is a claim by a stranger: the header is checked against
the file's size, and every shape against the bytes that are there, before anything is allocated.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import closing
from math import prod
from pathlib import Path
from reprlib import repr as short
from typing import Any, NamedTuple, NoReturn

from trimtab.checkpoints.messages import first_few
from trimtab.checkpoints.safetensors_file import read_with_metadata
from trimtab.checkpoints.tensors import DataFile, FilePool, StoredTensor
from trimtab.errors import CheckpointError, MaskError
from trimtab.masks.packed import BaseTensor, PackedTensor, num_packed_bytes
from trimtab.outputs import new_file

__all__ = ["FORMAT", "FORMAT_VERSION", "MaskFile", "read_mask_file", "write_mask_file"]

FORMAT = "trimtab.mask"
FORMAT_VERSION = 1
"""History: 1, the first."""

MAX_DIMENSIONS = 64
"""Most dimensions of an array, in NumPy and in PyTorch."""

ALIGNMENT = 8
"""The header is filled up with spaces to a multiple of this."""


class MaskFile(NamedTuple):
    """What a mask file holds.

    Attributes:
        tensors: Name -> bits, in the mask's order.
        base: Name -> what the tensor was when the mask was made; may lack any.
        provenance: Plain data.
        digest: Of the mask, as written.
    """

    tensors: Mapping[str, PackedTensor]
    base: Mapping[str, BaseTensor]
    provenance: Mapping[str, Any]
    digest: str


class _Damage(Exception):
    """What is wrong with a file, without its name."""


def write_mask_file(path: str | os.PathLike[str], content: MaskFile, *, force: bool) -> None:
    """Write a mask, atomically; missing parent folders are made.

    Raises:
        OutputExistsError: The file exists and `force` is not set, or the path is a folder.
    """
    entries = {}
    header: dict[str, Any] = {
        "__metadata__": {
            "format": FORMAT,
            "format_version": str(FORMAT_VERSION),
            "digest": content.digest,
        }
    }
    end = 0
    for name, tensor in content.tensors.items():
        begin, end = end, end + len(tensor.bits)
        header[name] = {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
        base = content.base.get(name)
        entries[name] = {
            "shape": list(tensor.shape),
            "num_selected": tensor.num_selected,
            "base": None if base is None else base._asdict(),
        }
    header["__metadata__"] |= {
        "tensors": _compact(entries),
        "provenance": _compact(dict(content.provenance)),
    }
    raw = _compact(header).encode()
    raw += b" " * (-len(raw) % ALIGNMENT)
    with new_file(path, force=force) as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for tensor in content.tensors.values():
            file.write(tensor.bits.data)


def read_mask_file(path: str | os.PathLike[str]) -> MaskFile:
    """Read a mask and check everything about it but the digest.

    Raises:
        MaskError: It is no mask file, or a damaged one; the message lists what is wrong.
    """
    with closing(FilePool()) as pool:
        try:
            stored, metadata = read_with_metadata(DataFile(Path(path), pool))
            return _content({tensor.name: tensor for tensor in stored}, metadata)
        except CheckpointError as error:
            raise MaskError(str(error)) from None
        except _Damage as error:
            raise MaskError(f"{os.fspath(path)}: {error}") from None


def _content(stored: Mapping[str, StoredTensor], metadata: Mapping[str, str]) -> MaskFile:
    if metadata.get("format") != FORMAT:
        found = short(metadata["format"]) if "format" in metadata else "none"
        raise _Damage(
            f"not a mask: expected a file from `trimtab mask`, whose metadata has the format "
            f"{FORMAT!r}; found {found}"
        )
    if metadata.get("format_version") != str(FORMAT_VERSION):
        raise _Damage(
            f"a mask of format version {short(metadata.get('format_version'))}; "
            f"this trimtab reads version {FORMAT_VERSION}"
        )
    entries, provenance = (_json_object(metadata, key) for key in ("tensors", "provenance"))
    _refuse(
        [
            *(f"{short(name)} has no bits" for name in entries if name not in stored),
            *(f"{short(name)} has no shape" for name in stored if name not in entries),
        ]
    )
    shapes, base, problems = {}, {}, []
    for name, entry in entries.items():
        try:
            shapes[name] = _shape(entry, stored[name])
            if (of_base := _base(entry)) is not None:
                base[name] = of_base
        except _Damage as error:
            problems.append(f"{short(name)} {error}")
    _refuse(problems)
    tensors = {name: PackedTensor.of(shape, stored[name].read()) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        if tensor.num_selected != (claimed := entries[name]["num_selected"]):
            problems.append(
                f"{short(name)} says it selects {short(claimed)} elements, "
                f"and selects {tensor.num_selected}"
            )
        if not tensor.has_clean_padding:
            problems.append(f"{short(name)} has bits set after its last element")
    _refuse(problems)
    return MaskFile(tensors, base, provenance, metadata.get("digest", ""))


def _shape(entry: Any, stored: StoredTensor) -> tuple[int, ...]:
    """The shape of a tensor, once its bits are known to have the right number."""
    if not isinstance(entry, dict) or not {"shape", "num_selected", "base"} <= entry.keys():
        raise _Damage("lacks one of shape, num_selected, base")
    shape = entry["shape"]
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_DIMENSIONS
        or not all(type(size) is int and 0 <= size < 2**63 for size in shape)
        or prod(max(size, 1) for size in shape) >= 2**63
    ):
        raise _Damage(f"has shape {short(shape)}; expected a list of sizes that fit a tensor")
    expected = (num_packed_bytes(prod(shape)),)
    if stored.dtype.name != "U8" or stored.shape != expected:
        raise _Damage(
            f"has bits of dtype {stored.dtype.name} and shape {short(list(stored.shape))}; "
            f"expected U8 and {short(list(expected))} for a tensor of shape {short(shape)}"
        )
    return tuple(shape)


def _base(entry: Mapping[str, Any]) -> BaseTensor | None:
    base = entry["base"]
    if base is None:
        return None
    are_fields = isinstance(base, dict) and base.keys() == set(BaseTensor._fields)
    if not are_fields or not all(isinstance(value, str) for value in base.values()):
        raise _Damage(f"has base {short(base)}; expected dtype and digest, two strings")
    return BaseTensor(**base)


def _json_object(metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    try:
        value = json.loads(
            metadata[key], object_pairs_hook=_unique_keys, parse_constant=_no_constant
        )
    except KeyError:
        raise _Damage(f"its metadata lacks {key!r}") from None
    except (ValueError, RecursionError) as error:
        raise _Damage(f"its metadata {key!r} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise _Damage(f"its metadata {key!r} is no object")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) < len(pairs):
        raise ValueError("a key appears twice")
    return keys


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _refuse(problems: Iterable[str]) -> None:
    if found := list(problems):
        raise _Damage(f"damaged: {first_few(found, '; ')}")


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
