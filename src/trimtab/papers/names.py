"""Words that the files of papers may use, for the type checker and for messages."""

from typing import Literal

__all__ = ["BaseName", "MaskName"]

BaseName = Literal["smollm2", "tiny"]
"""Which base a scale starts from."""

MaskName = Literal["own", "random", "matched", "complement", "low-magnitude"]
"""What is trained of what another run changed: that, or something else of its size."""
