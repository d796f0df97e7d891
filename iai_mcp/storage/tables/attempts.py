"""Attempts at a table's upkeep: a failure is told and noted, the next attempt waits longer, and writes go on.

Without upkeep a table gains a data file and a version with each commit, and merges become slower. Nothing else
grows: attempts come at a falling rate, and so do the files that a failed one may leave.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from iai_mcp.errors import LeaseLost
from iai_mcp.storage.upkeep_notes import note_failure, note_success
from iai_mcp.telemetry.events import emit, safe_message

__all__ = ["PAUSE_S", "Attempts"]

PAUSE_S = (5.0, 600.0)  # after the first failure, and at most; it doubles in between
Result = TypeVar("Result")


class Attempts:
    """The attempts of this process at one table.

    Args:
        table: the table's name.
        note: where failures are noted.
    """

    def __init__(self, table: str, note: Path) -> None:
        self._table = table
        self._note = note
        self._failed = 0  # in a row
        self._not_before = 0.0

    @property
    def failed(self) -> bool:
        """Whether the last attempt failed."""
        return self._failed > 0

    @property
    def ready(self) -> bool:
        """Whether it is time for an attempt: always, unless the last one failed."""
        return not self._failed or time.monotonic() >= self._not_before

    def run(self, work: Callable[[], Result], *, force: bool) -> Result | None:
        """Do the work; None where it failed.

        Raises:
            Exception: the work's own, with ``force``: people have asked for it.
        """
        try:
            result = work()
        except LeaseLost:
            raise
        except Exception as error:
            self._fail(error)
            if force:
                raise
            return None
        if self._failed or self._note.exists():
            self._failed = 0
            note_success(self._note)
        return result

    def _fail(self, error: Exception) -> None:
        first, longest = PAUSE_S
        pause = min(longest, first * 2 ** min(self._failed, 20))
        self._failed += 1
        self._not_before = time.monotonic() + pause
        failure = note_failure(self._note, self._table, safe_message(error))
        found = {"table": self._table, "since": failure.since, "attempts": failure.attempts, "retry_s": pause}
        emit("upkeep_failed", level=logging.WARNING, **found, error=failure.reason)
