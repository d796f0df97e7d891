"""A spill that hands its entries over: each file is locked during an append only, and any process may adopt it.

It is for a producer that cannot write to the store itself. Another process of the store removes a file once its
entries are in the store.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from iai_mcp.entries.parcel import Parcel
from iai_mcp.errors import SpillUnavailable
from iai_mcp.spill.chain import COUNT_S
from iai_mcp.spill.listing import outlines
from iai_mcp.spill.names import SEGMENT_MAX
from iai_mcp.spill.segment import Segment
from iai_mcp.spill.writer import Spill, Tail

__all__ = ["HandOverSpill"]


class HandOverSpill(Spill):
    """A spill that other processes empty. Arguments as of :class:`Spill`."""

    _made: tuple[Path, ...] = ()

    def append(self, parcels: Sequence[Parcel], folder: Path) -> None:
        """Add one line for each parcel, to a new file where another process has taken the last one.

        Raises:
            SpillUnavailable: the disk is full or the folder not writable; nothing was added.
        """
        data = self._lines(parcels)
        with self._mutex:
            try:
                if len(data) > SEGMENT_MAX - self._max_bytes:
                    raise OSError(errno.EFBIG, f"{len(data):,} bytes are more than a spill file takes")
                segment = self._last_free() or self._next_segment(folder)
                try:
                    segment.append(data, fsync=self._fsync)
                finally:
                    segment.unlock()
            except OSError as error:
                raise SpillUnavailable(f"cannot spill to {folder}: {error.strerror or error}") from error

    def _last_free(self) -> Segment | None:
        """The last file, locked, if there is room in it and no other process has taken it."""
        if self._segments:
            segment = self._segments[0]
            if segment.size < self._max_bytes and segment.lock():
                return segment
            segment.close()
            self._segments.clear()
        return None

    def _next_segment(self, folder: Path) -> Segment:
        segment = self._new_segment(folder)
        self._segments.append(segment)
        self._made = (*self._waiting(), segment.path)
        return segment

    def _waiting(self) -> tuple[Path, ...]:
        """The files that are still there."""
        self._made = tuple(path for path in self._made if path.exists())
        return self._made

    @property
    def active(self) -> bool:
        """Whether entries wait here."""
        with self._mutex:
            return bool(self._waiting())

    def tail(self) -> Tail:
        """The present end: the name of the last file; None where there is no file."""
        with self._mutex:
            waiting = self._waiting()
            return (waiting[-1].name, 0) if waiting else None

    def passed(self, tail: Tail) -> bool:
        """Whether every file up to ``tail`` is gone: its entries are in the store."""
        with self._mutex:
            return tail is None or all(path.name > tail[0] for path in self._waiting())

    def entries_left(self, seconds: float = COUNT_S) -> int:
        """Number of entries in the files that are still there; at least that many where counting takes longer."""
        until = time.monotonic() + seconds
        with self._mutex:
            paths, left = self._waiting(), 0
        for path in paths:
            with suppress(OSError):  # another process has just applied it
                for found in outlines(path):
                    left += len(found.seqs) if found else 0
                    if time.monotonic() >= until:
                        return left
        return left

    def reopen(self) -> None:
        """Nothing: no file was locked."""
