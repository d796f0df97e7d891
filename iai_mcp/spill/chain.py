"""A chain: the segments of one producer in order, read from the head.

A segment is removed only when its entries are safe elsewhere. A crash repeats lines and loses none, and the
entry's key makes the repetition harmless.
"""

from __future__ import annotations

import logging
import threading
import time

from iai_mcp.entries.parcel import Parcel
from iai_mcp.spill.proof import NONE, Proof
from iai_mcp.spill.segment import Segment
from iai_mcp.telemetry.events import emit

__all__ = ["Chain"]

COUNT_S = 0.2  # of a client that stops, to say how much it leaves


class Chain:
    """Locked segments in order; :meth:`commit` removes those that have been read."""

    def __init__(
        self, store_id: str, segments: list[Segment], *, level: int = logging.INFO, proof: Proof = NONE
    ) -> None:
        self._store_id = store_id
        self._proof = proof
        self._segments = segments
        self._level = level
        self._files = self._entries = self._last_entries = 0  # that have left since the chain was last empty
        self._total = 0
        self._uncommitted = 0  # entries read from the segment at the head
        self._mutex = threading.RLock()
        self._last: Segment | None = None

    @property
    def unread(self) -> bool:
        """Whether a line is unread, or read and not settled."""
        if not self._segments:  # each recall asks, and this is the usual answer
            return False
        with self._mutex:
            return any(not segment.exhausted for segment in self._segments)

    @property
    def empty(self) -> bool:
        """Whether no file is left."""
        return not self._segments

    def read(self, limit: int) -> list[Parcel]:
        """Up to ``limit`` parcels from the head segment: a step, which :meth:`settle` or :meth:`rewind` ends.

        A segment that has been read must be committed before the next one is read: files are removed one by
        one, however long the chain is.
        """
        with self._mutex:
            if not self._segments:
                return []
            self._last = self._segments[0]
            parcels = self._last.read(self._store_id, limit, self._proof.signer)
            self._last_entries = sum(len(parcel.seqs) for parcel in parcels)
            self._entries += self._last_entries
            self._total += self._last_entries
            self._uncommitted += self._last_entries
            return parcels

    def settle(self) -> None:
        """Keep the last :meth:`read`: its parcels have been taken, and later entries may follow them."""
        with self._mutex:
            if self._last is not None:
                self._last.settle()

    def rewind(self) -> None:
        """Undo the last :meth:`read`."""
        with self._mutex:
            if self._last is not None:
                self._last.rewind()
                self._entries -= self._last_entries
                self._total -= self._last_entries
                self._uncommitted -= self._last_entries
                self._last_entries = 0

    def start_over(self) -> None:
        """Undo every :meth:`read` that was not committed: the entries may be lost where they went."""
        with self._mutex:
            self._last = None
            self._entries -= self._uncommitted
            self._total -= self._uncommitted
            self._uncommitted = self._last_entries = 0
            for segment in self._segments:
                segment.start_over()

    @property
    def moved(self) -> int:
        """Number of entries read so far."""
        return self._total

    @property
    def length(self) -> int:
        """Number of files."""
        return len(self._segments)

    def entries_left(self, seconds: float = COUNT_S) -> int:
        """Number of entries that are not read and settled; at least that many where counting takes longer."""
        until = time.monotonic() + seconds
        with self._mutex:
            return sum(segment.entries_left(until) for segment in self._segments if not segment.exhausted)

    def commit(self) -> None:
        """Remove the segments that have been read whole: their entries are safe elsewhere."""
        done: list[Segment] = []
        with self._mutex:
            while self._segments and self._segments[0].exhausted:
                done.append(self._segments.pop(0))
                self._uncommitted = 0
            self._files += len(done)
            files, entries = self._files, self._entries
            if drained := bool(done) and not self._segments:
                self._files = self._entries = self._last_entries = 0
        for segment in done:  # outside the lock: a slow disk must not hold up a recall
            segment.finish(self._proof.refuse)
        if drained:
            emit("spill_drained", level=self._level, files=files, entries=entries)

    def close(self) -> None:
        """Close every segment; the files stay, and another client may adopt them."""
        with self._mutex:
            for segment in self._segments:
                segment.close()
            self._segments.clear()
