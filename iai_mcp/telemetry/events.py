"""What happens beside the results: named events with counts, through the ``iai_mcp`` logger.

An event carries numbers and names of places, never an entry's cue or a memory's text.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from iai_mcp.errors import IaiMcpError

__all__ = ["configure", "emit", "listeners", "log", "quiet_words"]

log = logging.getLogger("iai_mcp")

listeners: tuple[Callable[[str, Mapping[str, object]], None], ...] = ()
"""Who is told of every event, whatever the log level; :mod:`iai_mcp.telemetry.observer` sets them."""


def emit(event: str, *, level: int = logging.INFO, **fields: object) -> None:
    """Log ``event`` with ``fields``; handlers find them on the record as ``event`` and ``fields``."""
    for listener in listeners:
        listener(event, fields)
    if log.isEnabledFor(level):
        said = " ".join(f"{key}={value}" for key, value in fields.items())
        log.log(level, "%s %s", event, said, extra={"event": event, "fields": fields})


def quiet_words(error: BaseException) -> str:
    """What an error may say in a log: our own words; of any other only its kind, for it may quote an entry."""
    kind = type(error).__name__
    words = error if isinstance(error, IaiMcpError) else getattr(error, "strerror", None)
    return f"{kind}: {words}" if words else kind


def configure(level: str, *, as_json: bool = False, also: tuple[str, ...] = ()) -> None:
    """Send this package's log to stderr from ``level`` on (for the command line, not for libraries).

    Args:
        level: debug, info, warning or error.
        as_json: one JSON object a line, ``{"ts", "level", "event", ...}``, for programs that read logs.
        also: further loggers by name that are to look alike; their level is their own affair.
    """
    handler = logging.StreamHandler(sys.stderr)
    whole = level == "debug"
    handler.setFormatter(_Json(whole) if as_json else _Text(whole))
    for logger in (log, *map(logging.getLogger, also)):
        logger.handlers[:] = [handler]
        logger.propagate = False
    log.setLevel(level.upper())


class _Text(logging.Formatter):
    """A record as a line for people; of an error its place and kind, its words only at the level debug."""

    def __init__(self, whole: bool) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")
        self._whole = whole

    def formatException(self, ei: Any) -> str:
        if self._whole:
            return super().formatException(ei)
        frames = "".join(traceback.format_tb(ei[2])).rstrip()
        return f"{frames}\n{quiet_words(ei[1])}" if frames else quiet_words(ei[1])


class _Json(_Text):
    """A record as one line of JSON; what was logged without :func:`emit` is the event ``log``."""

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
        return msgspec.json.encode(line, enc_hook=str).decode()
