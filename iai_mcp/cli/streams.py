"""Guards stdout and stderr of the command line: no unsafe character reaches a terminal or a reader of text.

:func:`guard` stands behind every print, log line and traceback, so that a new command cannot forget it. Consoles
of Rich write their own escapes and check the texts themselves: :func:`trusted` gives them the stream behind the
guard. Bytes for programs (JSON, CSV) stay as they are in a pipe, and are escaped on a terminal.
"""

from __future__ import annotations

import codecs
import io
import sys
from typing import IO, Any

from iai_mcp.common.printable import coloured_only, escaped

__all__ = ["guard", "trusted"]


class _Guarded(io.TextIOWrapper):
    """A text stream that writes no unsafe character; plain colours pass."""

    def __init__(self, below: io.TextIOWrapper) -> None:
        below.flush()
        self.below = below
        super().__init__(below.buffer, below.encoding, "backslashreplace", line_buffering=below.line_buffering)
        self._bytes: Any = _Escaping(below.buffer) if below.isatty() else below.buffer

    def write(self, text: str) -> int:
        super().write(coloured_only(text))
        return len(text)

    @property
    def buffer(self) -> Any:
        return self._bytes


class _Escaping(io.BufferedIOBase):
    """Bytes on their way to a terminal: UTF-8 text with escapes in place of unsafe characters."""

    def __init__(self, out: Any) -> None:
        self._out = out
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")

    def write(self, data: Any) -> int:
        self._out.write(escaped(self._decoder.decode(bytes(data))).encode())
        return len(data)

    def flush(self) -> None:
        self._out.flush()

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        number: int = self._out.fileno()
        return number


def guard() -> None:
    """Put the guard in front of stdout and stderr of this process."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and not isinstance(stream, _Guarded):
            setattr(sys, name, _Guarded(stream))


def trusted(stream: IO[str]) -> IO[str]:
    """The stream behind the guard, for a writer that checks every text itself."""
    return stream.below if isinstance(stream, _Guarded) else stream
