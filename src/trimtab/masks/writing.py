"""Write a mask file tensor by tensor, so that the whole mask is never in memory.

Names and shapes are known before and come first in the file; counts and the digest are known last.
So the header is written with room for the largest counts, and once more at the end. Data lie in
the order of the digest, by name: whoever reads the file from first byte to last can check it. The
order of the mask's tensors is that in the metadata.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

from trimtab.masks.mask_file import FORMAT, FORMAT_VERSION
from trimtab.masks.outline import MaskOutline
from trimtab.masks.packed import MaskDigest, PackedTensor, num_packed_bytes
from trimtab.outputs import new_file

__all__ = ["MaskWriter", "mask_writer", "write_mask_file"]

ALIGNMENT = 8
"""The header is filled up with spaces to a multiple of this."""


class MaskWriter:
    """A mask file under way.

    Attributes:
        outline: Of the mask.
        names: Names of its tensors, in the order in which they are to be added.
        num_selected: Name -> selected elements, of the tensors that were added.
    """

    def __init__(self, file: BinaryIO, outline: MaskOutline) -> None:
        self.outline = outline
        self.names = sorted(outline.shapes)
        self.num_selected: dict[str, int] = {}
        self._file = file
        self._digest = MaskDigest()
        largest = {name: outline.num_elements(name) for name in self.names}
        draft = self._header(largest, "0" * 32)
        self._header_bytes = -(-len(draft) // ALIGNMENT) * ALIGNMENT
        self._write_header(draft)

    def add(self, tensor: PackedTensor) -> None:
        """Write the next tensor of `names`."""
        name = self.names[len(self.num_selected)]
        if tensor.shape != self.outline.shapes[name]:
            raise ValueError(f"{name}: {tensor.shape} is not {self.outline.shapes[name]}")
        self._file.write(tensor.bits.data)
        self._digest.update(name, tensor)
        self.num_selected[name] = tensor.num_selected

    def finish(self) -> None:
        """Write the header with what is known by now; all tensors must have been added."""
        header = self._header(self.num_selected, self._digest.hexdigest())
        self._file.seek(0)
        self._write_header(header)

    def _write_header(self, header: bytes) -> None:
        self._file.write(self._header_bytes.to_bytes(8, "little"))
        self._file.write(header.ljust(self._header_bytes))

    def _header(self, num_selected: Mapping[str, int], digest: str) -> bytes:
        shapes, base = self.outline.shapes, self.outline.base
        header: dict[str, Any] = {
            "__metadata__": {
                "format": FORMAT,
                "format_version": str(FORMAT_VERSION),
                "digest": digest,
                "tensors": _compact(
                    {
                        name: {
                            "shape": list(shape),
                            "num_selected": num_selected[name],
                            "base": base[name]._asdict() if name in base else None,
                        }
                        for name, shape in shapes.items()
                    }
                ),
                "provenance": _compact(dict(self.outline.provenance)),
            }
        }
        end = 0
        for name in self.names:
            begin, end = end, end + num_packed_bytes(self.outline.num_elements(name))
            header[name] = {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
        return _compact(header).encode()


@contextmanager
def mask_writer(
    path: str | os.PathLike[str], outline: MaskOutline, *, force: bool
) -> Iterator[MaskWriter]:
    """Write a mask, atomically, in a block that adds every tensor; missing folders are made.

    Raises:
        OutputExistsError: The file exists and `force` is not set, or the path is a folder.
    """
    with new_file(path, force=force) as file:
        writer = MaskWriter(file, outline)
        yield writer
        writer.finish()


def write_mask_file(
    path: str | os.PathLike[str],
    outline: MaskOutline,
    tensor: Callable[[str], PackedTensor],
    *,
    force: bool,
) -> int:
    """Write a mask, atomically, holding one tensor at a time; missing parent folders are made.

    Args:
        path: The file.
        outline: Of the mask.
        tensor: Gives the bits of a tensor by name; called once for each, sorted by name.
        force: Replace an existing file.

    Returns:
        How many elements the mask selects.

    Raises:
        OutputExistsError: The file exists and `force` is not set, or the path is a folder.
    """
    with mask_writer(path, outline, force=force) as writer:
        for name in writer.names:
            writer.add(tensor(name))
    return sum(writer.num_selected.values())


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
