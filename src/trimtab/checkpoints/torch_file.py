"""Read where the tensors of a `pytorch_model.bin` lie, without loading or executing anything.

A file of torch.save is an uncompressed zip: a pickle that describes the tensors, and one record of
raw bytes for each storage. torch's restricted unpickler reads the description under fake tensors,
which know their file offset but hold no data; from then on the file is read like any other.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from typing import Any

from trimtab.checkpoints.messages import first_few
from trimtab.checkpoints.tensors import DataFile, StoredTensor
from trimtab.elements.dtypes import DTYPES
from trimtab.errors import CheckpointError
from trimtab.extras import require

__all__ = ["read_torch_file"]

DTYPES_BY_TORCH_NAME = {dtype.storage.name: dtype for dtype in DTYPES.values()}
"""torch, NumPy and ml_dtypes call the dtypes alike."""

LOCAL_HEADER_BYTES = 30
"""Of a zip record, before its name and extra field."""

CURE = "load it where it was made and save it as safetensors"


def read_torch_file(file: DataFile) -> list[StoredTensor]:
    """List the tensors of a torch.save file by offset. Tied ones share their offset.

    Raises:
        MissingExtraError: torch is not installed.
        CheckpointError: The file is not a state dict of plain tensors, or is damaged.
    """
    torch = require("torch", "pip install torch")
    records = _records(file)
    state = _load_fake(file, torch)
    if not isinstance(state, dict):
        raise CheckpointError(
            f"{file.path}: expected a state dict, found a {type(state).__name__}; {CURE}"
        )
    tensors, problems = [], []
    for name, value in state.items():
        try:
            tensors.append(_locate(file, name, value, records, torch))
        except _TensorError as error:
            problems.append(f"{name!r} {error}")
    if problems:
        raise CheckpointError(f"{file.path}: {first_few(problems, '; ')}; {CURE}")
    return sorted(tensors, key=lambda tensor: tensor.offset)


class _TensorError(Exception):
    """Why an entry of a state dict cannot be read, without its name."""


def _records(file: DataFile) -> dict[int, int]:
    """Offset in the file -> size, of every record of the zip."""
    try:
        with zipfile.ZipFile(file.path) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise CheckpointError(f"{file.path}: its records are compressed; {CURE}")
            order = next((e for e in entries if e.filename.endswith("/byteorder")), None)
            if order is not None and archive.read(order) != b"little":
                raise CheckpointError(f"{file.path}: saved on a big-endian machine; {CURE}")
            for entry in entries:
                if entry.filename.endswith("/data.pkl"):
                    _refuse_allocation(file, archive.read(entry))
    except CheckpointError:
        raise
    except zipfile.BadZipFile:
        raise CheckpointError(
            f"{file.path}: not a zip file of torch.save: truncated, or saved by a PyTorch before "
            f"1.6; {CURE}"
        ) from None
    except Exception as error:  # zipfile raises many classes on a damaged file
        raise CheckpointError(f"{file.path}: cannot be read ({error}); {CURE}") from error
    records = {}
    for entry in entries:
        local = file.read(entry.header_offset, LOCAL_HEADER_BYTES)
        name_bytes = int.from_bytes(local[26:28], "little")
        extra_bytes = int.from_bytes(local[28:30], "little")
        start = entry.header_offset + LOCAL_HEADER_BYTES + name_bytes + extra_bytes
        records[start] = entry.file_size
    return records


def _refuse_allocation(file: DataFile, description: bytes) -> None:
    """Refuse the one call that torch's restricted unpickler allows and that takes memory at will.

    `bytearray(n)` is n zero bytes, whatever the size of the file; no tensor needs it.
    """
    for operation, argument, _ in pickletools.genops(description):
        if operation.name == "GLOBAL" and str(argument).endswith(" bytearray"):
            raise CheckpointError(f"{file.path}: not a plain state dict (bytearray); {CURE}")


def _load_fake(file: DataFile, torch: Any) -> Any:
    fake_mode = require("torch._subclasses.fake_tensor", "pip install torch").FakeTensorMode
    try:
        with fake_mode():
            return torch.load(file.path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a hostile pickle can raise anything
        # torch's own message advises to load the file unsafely, so only the culprit is quoted.
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {culprit[1]}" if culprit else type(error).__name__
        raise CheckpointError(
            f"{file.path}: not a plain state dict ({reason}); trimtab executes no pickle: {CURE}"
        ) from error


def _locate(
    file: DataFile, name: Any, value: Any, records: dict[int, int], torch: Any
) -> StoredTensor:
    if not isinstance(name, str) or not name.isprintable():
        raise _TensorError("is not a tensor name")
    if not isinstance(value, torch.Tensor):
        raise _TensorError(f"is a {type(value).__name__}, not a tensor")
    if value.layout != torch.strided or value.is_quantized:
        raise _TensorError("is sparse or quantised by torch")
    if not value.is_contiguous() or value.is_conj() or value.is_neg():
        raise _TensorError(f"is a view with strides {tuple(value.stride())}, not contiguous")
    dtype = DTYPES_BY_TORCH_NAME.get(str(value.dtype).removeprefix("torch."))
    if dtype is None:
        raise _TensorError(f"has dtype {value.dtype}, which trimtab does not read")
    storage_start = value.untyped_storage()._checkpoint_offset
    start = value.storage_offset() * dtype.num_bytes
    tensor = StoredTensor(name, dtype, tuple(value.shape), file, (storage_start or 0) + start)
    if start + tensor.num_bytes > records.get(storage_start, -1) or (
        tensor.offset + tensor.num_bytes > file.size
    ):
        raise _TensorError("needs more bytes than its record in the file has")
    return tensor
