"""Notes of upkeep that fails, one for each table: every process can tell since when and why."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import msgspec

from iai_mcp.common.files import replace_file
from iai_mcp.common.regular_files import NOTE_MAX, read_regular
from iai_mcp.common.times import utcnow
from iai_mcp.storage.layout import Layout

__all__ = ["UpkeepFailure", "failing_upkeep", "note_failure", "note_success"]


class UpkeepFailure(msgspec.Struct, frozen=True):
    """Upkeep of one table that has failed ever since.

    Attributes:
        table: the table's name.
        since: when it failed first, ISO 8601, UTC.
        attempts: failed attempts since then.
        reason: the last error's own words.
    """

    table: str
    since: str
    attempts: Annotated[int, msgspec.Meta(ge=0)]
    reason: str


def note_failure(path: Path, table: str, reason: str) -> UpkeepFailure:
    """Note another failed attempt. A disk that does not take the note is no error."""
    before = _read(path)
    since, attempts = (before.since, before.attempts) if before else (utcnow().isoformat(), 0)
    failure = UpkeepFailure(table, since, attempts + 1, reason[:500])
    with suppress(OSError):
        replace_file(path, msgspec.json.encode(failure), sync=False)
    return failure


def note_success(path: Path) -> None:
    """Remove the note."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


def failing_upkeep(layout: Layout) -> list[UpkeepFailure]:
    """The tables whose upkeep fails, by name."""
    return [found for path in sorted(layout.upkeep_notes()) if (found := _read(path)) is not None]


def _read(path: Path) -> UpkeepFailure | None:
    with suppress(OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return msgspec.json.decode(read_regular(path, NOTE_MAX), type=UpkeepFailure)
    return None
