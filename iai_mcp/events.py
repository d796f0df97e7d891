"""What happens beside the results: named events with counts, through the ``iai_mcp`` logger.

An event carries numbers and names of places, never an entry's cue or a memory's text.
"""

from __future__ import annotations

import logging
import sys

__all__ = ["configure", "emit", "log"]

log = logging.getLogger("iai_mcp")


def emit(event: str, *, level: int = logging.INFO, **fields: object) -> None:
    """Log ``event`` with ``fields``; handlers find them on the record as ``event`` and ``fields``."""
    if log.isEnabledFor(level):
        said = " ".join(f"{key}={value}" for key, value in fields.items())
        log.log(level, "%s %s", event, said, extra={"event": event, "fields": fields})


def configure(level: str) -> None:
    """Send this package's log to stderr from ``level`` on (for the command line, not for libraries)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(level.upper())
    log.propagate = False
