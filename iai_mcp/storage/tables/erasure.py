"""Removes deleted rows from a table's files, beyond the deletion of its rows.

Lance keeps a deleted row in its file until enough rows are dead for a rewrite. It keeps the file until no version
of the table names it. A note beside the table's lock lists the files to be rewritten. After a crash, the next
process finishes the work.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import msgspec

from iai_mcp.common.files import replace_file
from iai_mcp.common.regular_files import DOCUMENT_MAX, read_regular
from iai_mcp.storage.tables.lance import Table, upkeep

__all__ = ["Erasure"]

_SHARE = 10  # rewrites take at most one part in this many of the time


_FileNumber = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]


class _Note(msgspec.Struct, frozen=True):
    files: list[_FileNumber]  # Lance's numbers of the files with deleted rows; Lance never reuses a number


class Erasure:
    """The pending rewrites of one table. Every method but :meth:`due` expects the caller to hold the table's lock.

    Args:
        column: a column without an index; setting it to itself rewrites a row.
        note: the file beside the table's lock.
    """

    def __init__(self, table: Table, column: str, note: Path, cleanup_age: float) -> None:
        self._table = table
        self._column = column
        self._note = note
        self._age = cleanup_age
        self._not_before = 0.0

    def delete(self, where: str) -> int:
        """Remove the rows that meet the SQL condition, and note their files; how many there were."""
        rows = self._table.search().where(where).with_row_id(True).select([self._column]).to_arrow()
        if len(rows) == 0:
            return 0
        files = {int(row) >> 32 for row in rows["_rowid"].to_pylist()}
        self._write(files | set(self._read()))  # before the deletion: only the rows tell the files
        self._table.delete(where)
        return len(rows)

    def due(self) -> bool:
        """Whether files can be rewritten (not right after the last time), or old ones removed for good."""
        try:
            at = os.stat(self._note).st_mtime
        except OSError:
            return False
        return time.monotonic() >= self._not_before if self._read() else time.time() - at > self._age

    def run(self) -> None:
        """Rewrite the noted files and tidy up; the note stays while a version may name the old files."""
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
            if row := self._a_row(number):  # a small new file gives Lance something to merge with
                self._table.update(where=f"_rowid = {row[0]}", values_sql=self._unchanged)
        upkeep(self._table, self._age)  # first it indexes the new rows: only indexed files are merged
        upkeep(self._table, self._age)  # then it merges, several times faster than an update
        for number in files:
            if self._a_row(number):  # the file was not merged: update every row
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
            return msgspec.json.decode(read_regular(self._note, DOCUMENT_MAX), type=_Note).files
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return []

    def _write(self, files: set[int]) -> None:
        replace_file(self._note, msgspec.json.encode(_Note(sorted(files))))


def _within(number: int) -> str:
    """The rows of one file, as SQL: a row's id starts with the number of its file."""
    return f"_rowid >= {number << 32} AND _rowid < {(number + 1) << 32}"
