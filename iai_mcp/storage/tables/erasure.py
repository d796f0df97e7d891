"""Makes what was deleted vanish from a table's files, and not from its rows alone.

Lance keeps a deleted row in its file until so many are dead that a rewrite pays, and the file until no
version of the table names it. A note beside the table's lock says which files are to be written anew, so
that the next writer finishes an erasure that a crash or a reader of an old version has delayed.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from iai_mcp.common.files import replace_file
from iai_mcp.storage.tables.lance import Table, upkeep

__all__ = ["Erasure"]

_SHARE = 10  # rewrites take at most one part in so many of the time


class _Note(msgspec.Struct, frozen=True):
    files: list[int]  # Lance's numbers of those that hold deleted rows; none is ever used again


class Erasure:
    """The rewrites that one table is due. All but :meth:`due` wants the table's lock held.

    Args:
        column: one that no index covers; setting it to itself is what writes a row anew.
        note: the file beside the table's lock.
    """

    def __init__(self, table: Table, column: str, note: Path, cleanup_age: float) -> None:
        self._table = table
        self._column = column
        self._note = note
        self._age = cleanup_age
        self._not_before = 0.0

    def delete(self, where: str) -> int:
        """Remove the rows that fit, and note in which files they lie; how many there were."""
        rows = self._table.search().where(where).with_row_id(True).select([self._column]).to_arrow()
        if len(rows) == 0:
            return 0
        files = {int(row) >> 32 for row in rows["_rowid"].to_pylist()}
        self._write(files | set(self._read()))  # before the rows go: they are what leads to the files
        self._table.delete(where)
        return len(rows)

    def due(self) -> bool:
        """Whether files can be written anew (not right after the last time), or old ones removed for good."""
        try:
            at = os.stat(self._note).st_mtime
        except OSError:
            return False
        return time.monotonic() >= self._not_before if self._read() else time.time() - at > self._age

    def run(self) -> None:
        """Write the noted files anew and tidy up; the note stays while a version may name the old ones."""
        started = time.monotonic()
        if files := self._read():
            self._rewrite(files)
            self._write(set())
            self._not_before = time.monotonic() + _SHARE * (time.monotonic() - started)
        upkeep(self._table, self._age)
        with suppress(FileNotFoundError):
            if time.time() - os.stat(self._note).st_mtime >= self._age:
                self._note.unlink()

    def _rewrite(self, files: list[int]) -> None:
        for number in files:
            if row := self._a_row(number):  # a small new file beside it gives Lance something to merge it with:
                self._table.update(where=f"_rowid = {row[0]}", values_sql=self._unchanged)
        upkeep(self._table, self._age)  # once the new rows are indexed, as only files that are get merged...
        upkeep(self._table, self._age)  # ...which is several times faster than
        for number in files:
            if self._a_row(number):  # what a file of a million rows takes
                self._table.update(where=_within(number), values_sql=self._unchanged)
                upkeep(self._table, self._age)

    def _a_row(self, number: int) -> list[int]:
        query = self._table.search().where(_within(number)).with_row_id(True).select([self._column])
        found: list[int] = query.limit(1).to_arrow()["_rowid"].to_pylist()
        return found

    @property
    def _unchanged(self) -> dict[str, str]:
        return {self._column: self._column}

    def _read(self) -> list[int]:
        try:
            return msgspec.json.decode(self._note.read_bytes(), type=_Note).files
        except (OSError, msgspec.DecodeError):
            return []

    def _write(self, files: set[int]) -> None:
        replace_file(self._note, msgspec.json.encode(_Note(sorted(files))))


def _within(number: int) -> str:
    """The rows of one file, as SQL: a row's id starts with the number of its file."""
    return f"_rowid >= {number << 32} AND _rowid < {(number + 1) << 32}"
