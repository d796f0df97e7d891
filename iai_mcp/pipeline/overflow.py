"""The spill of one queue: takes what the broker does not take, and accounts for what the disk refuses."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from iai_mcp.common import forks
from iai_mcp.config import overflow_dir
from iai_mcp.entries.parcel import Parcel
from iai_mcp.errors import SpillUnavailable
from iai_mcp.pipeline.counts import QueueCounts
from iai_mcp.pipeline.ports import ProvenanceStore
from iai_mcp.spill.handover import HandOverSpill
from iai_mcp.spill.writer import Spill
from iai_mcp.storage.exclusions import ExclusionReason, Key
from iai_mcp.storage.tables.process import usable
from iai_mcp.telemetry.events import emit, safe_message

__all__ = ["Overflow"]

JOURNAL_IDLE_S = 1.0  # a journal file with nothing to replay is removed after this


class Overflow:
    """What one producer spills.

    Attributes:
        spill: the files.
        journal: whether every entry goes through the spill.
        hands_over: whether another process writes the entries to the store, since this one cannot: it was forked.

    Args:
        store: the store of the entries.
        producer: the producer's key; it names the files.
        counts: the queue's.
        remote: whether the broker is on a server.
    """

    def __init__(self, store: ProvenanceStore, producer: str, counts: QueueCounts, *, remote: bool) -> None:
        settings = store.settings
        self.hands_over = forks.bare() or (not remote and not usable())
        self.journal = settings.journal != "off" or self.hands_over
        fsync = settings.journal == "fsync" or (remote and settings.redis_durability == "fsync")
        level = logging.DEBUG if self.journal else logging.INFO
        kind = HandOverSpill if self.hands_over else Spill
        self.spill = kind(store.store_id, producer, overflow_dir(settings), fsync=fsync, level=level)
        self._store = store
        self._counts = counts
        self._ahead = self.journal or remote
        self._refused: list[Key] = []
        self._last_append = 0.0

    def append(self, parcels: Sequence[Parcel]) -> None:
        """Add parcels to the end of the spill.

        Raises:
            SpillUnavailable: the disk does not take them; they are counted as refused.
        """
        self._write(parcels, self.spill.append)
        self._last_append = time.monotonic()

    def give_back(self, parcels: Sequence[Parcel]) -> None:
        """Put parcels before everything in the spill; those that the disk does not take are counted as refused."""
        with suppress(SpillUnavailable):
            self._write(parcels, self.spill.prepend)

    def _write(self, parcels: Sequence[Parcel], write: Callable[..., None]) -> None:
        folder = overflow_dir(self._store.settings)  # looked up anew: HOME may have changed
        entries = sum(len(parcel.seqs) for parcel in parcels)
        try:
            write(parcels, folder)
        except SpillUnavailable as error:
            self._counts.refused += entries
            self._refused += [(parcel.producer, seq) for parcel in parcels for seq in parcel.seqs]
            found = {"entries": entries, "folder": str(folder), "error": safe_message(error)}
            emit("spill_failed", level=logging.ERROR, **found)
            raise
        self._counts.spilled += entries

    def prepare(self) -> None:
        """Have a file ready where entries may have to be spilled at any time."""
        if self._ahead:
            with suppress(OSError):  # an append will say so
                self.spill.prepare(overflow_dir(self._store.settings))

    def may_commit(self) -> bool:
        """Whether the files may go once they are replayed: a busy journal keeps its last one open."""
        idle = time.monotonic() - self._last_append > JOURNAL_IDLE_S
        return not self.journal or self.spill.length > 1 or idle

    def note_refused(self) -> None:
        """Tell the store which entries were never taken, once its disk takes that."""
        if self._refused:
            noted = len(self._refused)
            with suppress(OSError):
                self._store.exclusions.add(ExclusionReason.REFUSED, self._refused[:noted])
                del self._refused[:noted]
