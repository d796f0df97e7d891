"""The ids of deleted records: an append-only log that every process can follow for the price of a stat.

A drain remembers which records exist so as not to ask LanceDB on every batch; this log is what makes that
memory safe. A line ``-ID`` says that a record was deleted, ``+ID NUMBER`` that its id is in use again. The number
counts such reuses: entries that were handed out before it belong to the deleted record.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path
from uuid import UUID

from iai_mcp.common.files import append_lines
from iai_mcp.common.regular_files import LOG_MAX, lines_of, reading
from iai_mcp.entries.fields import REUSES_MAX

__all__ = ["Tombstones"]

_LINE_MAX = 1000  # bytes; a line of ours has some 60


class Tombstones:
    """The set of deleted ids, kept up to date with what other processes append."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ids: set[UUID] = set()
        self._hex: set[str] = set()
        self._reused: dict[str, int] = {}
        self._read_to = 0
        self._mutex = threading.Lock()

    def ids(self) -> set[UUID]:
        """Every deleted id as of now. Do not change the set; it is the live one."""
        try:
            size = os.lstat(self._path).st_size
        except FileNotFoundError:
            return self._ids
        if size > self._read_to:
            self._catch_up()
        return self._ids

    def hex(self) -> set[str]:
        """The same ids, each as 32 hexadecimal digits."""
        self.ids()
        return self._hex

    def reused(self) -> dict[str, int]:
        """The number of the last reuse of each id that was ever used again; ids as 32 hexadecimal digits."""
        self.ids()
        return self._reused

    def add(self, record_id: UUID) -> None:
        """Note a deletion, durably, *before* the record's rows go."""
        self._append(f"-{record_id}\n")

    def discard(self, record_ids: Iterable[UUID], reuse: int) -> None:
        """Note that these ids are in use again, and the number of that reuse."""
        self._append("".join(f"+{record_id} {reuse}\n" for record_id in record_ids))

    def _append(self, lines: str) -> None:
        append_lines(self._path, lines.encode())
        self._catch_up()

    def _catch_up(self) -> None:
        with self._mutex, reading(self._path, limit=LOG_MAX) as file:
            file.seek(self._read_to)
            for line in lines_of(file, _LINE_MAX):
                if not line.endswith(b"\n"):
                    break  # an append in progress; the next read gets the whole line
                self._read_to = file.tell()
                self._apply(line)

    def _apply(self, line: bytes) -> None:
        try:
            text, *number = line[1:].decode().split()
            record_id, reuse = UUID(text), int(number[0]) if number else 0
        except ValueError:
            return  # a line torn by a power cut
        if not 0 <= reuse <= REUSES_MAX:
            return
        if line[:1] == b"-":
            self._ids.add(record_id)
            self._hex.add(record_id.hex)
        elif line[:1] == b"+":
            self._ids.discard(record_id)
            self._hex.discard(record_id.hex)
            self._reused[record_id.hex] = reuse
