"""Escape characters in text for a terminal that would control it or reorder words.

Names come from untrusted files: an escape sequence in one could clear the screen, retitle the
window or forge a line; a bidi override shows a name backwards. The escapes are those of JSON, so
escaped JSON is the same JSON.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TextIO

_CATEGORIES = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Control and format characters (bidi among them), lone surrogates, separators of lines."""

_OWN_STYLES = re.compile(r"(\x1b\[(?:0|1|2|33|1;33)m)")
"""Bold, dim and yellow, as the tables use them, and back to normal."""

_BARS = re.compile(r"(\r|\x1b\[(?:[\d;]*[mAK]|\?25[hl]))")
"""Sequences of rich's progress bars: carriage return, colours, cursor up, erase, show cursor."""


def escaped(text: str, *, keep: str = "") -> str:
    r"""Replace unprintable characters of a text by `\u001b` and the like.

    Args:
        text: Any text.
        keep: Characters that stay, such as the newline.
    """
    if text.isprintable():
        return text
    return "".join(
        _escape(character)
        if character not in keep and unicodedata.category(character) in _CATEGORIES
        else character
        for character in text
    )


def _escape(character: str) -> str:
    """The JSON escape; characters beyond the first 65,536 become a pair of surrogates."""
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(
        f"\\u{int.from_bytes(units[index : index + 2]):04x}" for index in range(0, len(units), 2)
    )


class GuardedStream:
    """Wraps stdout or stderr, through which everything is printed.

    Lines, tabs and the styles of our own tables pass unchanged, as does what a progress bar of
    another library writes first. Characters that the encoding of the stream lacks are escaped too.
    """

    def __init__(self, stream: TextIO, *, draws_bars: bool = False) -> None:
        """Guard a stream.

        Args:
            stream: The stream to write to.
            draws_bars: Whether progress bars are drawn on it, whose texts are escaped already.
        """
        self._stream = stream
        self._allowed = _BARS if draws_bars else _OWN_STYLES
        if not draws_bars:
            # rich looks here for the stream beneath a replacement.
            self.rich_proxied_file = GuardedStream(stream, draws_bars=True)

    def write(self, text: str) -> int:
        """Write escaped text."""
        start = re.match(r"\r?(?:\x1b\[A)*", text)  # written first by tqdm
        done = start[0] if start is not None else ""
        parts = self._allowed.split(text[len(done) :])
        safe = [
            part if index % 2 else "\n".join(escaped(line, keep="\t") for line in part.split("\n"))
            for index, part in enumerate(parts)
        ]
        self._stream.write(self._encodable(done + "".join(safe)))
        return len(text)

    def _encodable(self, text: str) -> str:
        encoding = self._stream.encoding or "utf-8"
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            return "".join(
                character if _can_encode(character, encoding) else _escape(character)
                for character in text
            )
        return text

    def writelines(self, lines: list[str]) -> None:
        """Write escaped lines."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the wrapped stream."""
        self._stream.flush()

    def isatty(self) -> bool:
        """Whether the wrapped stream is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """File descriptor of the wrapped stream."""
        return self._stream.fileno()

    def writable(self) -> bool:
        """Always True."""
        return True

    @property
    def encoding(self) -> str:
        """Encoding of the wrapped stream."""
        return self._stream.encoding

    @property
    def errors(self) -> str | None:
        """Error handling of the wrapped stream; nothing that it cannot encode reaches it."""
        return self._stream.errors

    @property
    def closed(self) -> bool:
        """Whether the stream under it is closed."""
        return self._stream.closed


def _can_encode(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
