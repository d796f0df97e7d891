"""Log events: named, with counts, through the ``iai_mcp`` logger.

An event carries numbers and paths. It never carries an entry's cue or a memory's text. The formatters replace
unsafe characters (:mod:`iai_mcp.common.printable`), so a value from outside forges no line and moves no cursor.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from iai_mcp.common.printable import escaped, flat, plain
from iai_mcp.errors import IaiMcpError

__all__ = ["configure", "emit", "listeners", "log", "safe_message"]

log = logging.getLogger("iai_mcp")

listeners: tuple[Callable[[str, Mapping[str, object]], None], ...] = ()
"""Called with every event at any log level. :mod:`iai_mcp.telemetry.observer` sets them."""


def emit(event: str, *, level: int = logging.INFO, **fields: object) -> None:
    """Log ``event`` with ``fields``. The log record has both as attributes, ``event`` and ``fields``."""
    for listener in listeners:
        listener(event, fields)
    if log.isEnabledFor(level):
        text = " ".join(f"{key}={value}" for key, value in fields.items())
        log.log(level, "%s %s", event, text, extra={"event": event, "fields": fields})


def safe_message(error: BaseException) -> str:
    """The text of an error for the log: its type, and its message if that cannot quote an entry.

    Messages of our own errors and of the operating system are safe. Those of other libraries may quote an entry.
    """
    kind = type(error).__name__
    message = error if isinstance(error, IaiMcpError) else getattr(error, "strerror", None)
    return f"{kind}: {message}" if message else kind


def configure(level: str, *, as_json: bool = False, also: tuple[str, ...] = ()) -> None:
    """Send this package's log from ``level`` on to stderr. For programs, not for libraries.

    Args:
        level: debug, info, warning or error.
        as_json: write one JSON object a line, ``{"ts", "level", "event", ...}``.
        also: names of further loggers that get the same handler; they keep their level.
    """
    handler = logging.StreamHandler(sys.stderr)
    with_messages = level == "debug"
    handler.setFormatter(_Json(with_messages) if as_json else _Text(with_messages))
    for logger in (log, *map(logging.getLogger, also)):
        logger.handlers[:] = [handler]
        logger.propagate = False
    log.setLevel(level.upper())


class _Text(logging.Formatter):
    """A record as a line for people. An error shows its traceback and type; its message at level debug only."""

    def __init__(self, with_messages: bool) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")
        self._with_messages = with_messages

    def formatMessage(self, record: logging.LogRecord) -> str:
        return flat(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        if self._with_messages:
            return plain(super().formatException(ei))
        frames = plain("".join(traceback.format_tb(ei[2])).rstrip())
        said = flat(safe_message(ei[1]))
        return f"{frames}\n{said}" if frames else said


class _Json(_Text):
    """A record as one line of JSON. A record that :func:`emit` did not make is the event ``log``."""

    def format(self, record: logging.LogRecord) -> str:
        import msgspec

        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"ts": at, "level": record.levelname.lower()}
        event = getattr(record, "event", None)
        if event is not None:
            line |= {"event": event, **getattr(record, "fields", {})}
        else:
            line |= {"event": "log", "logger": record.name, "message": record.getMessage()}
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = self.formatException(record.exc_info)
        try:
            text = msgspec.json.encode(line, enc_hook=str).decode()
        except UnicodeEncodeError:  # a lone surrogate, of a file's name
            text = json.dumps(line, default=str)
        return escaped(text)
