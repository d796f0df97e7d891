"""One opened store: its facts, its lanes and its tables, without embedders, searches and queues.

Every process that uses a store holds its lock in shared mode, so the number of lanes cannot change meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from iai_mcp.config import Settings
from iai_mcp.errors import LanesChanged, StoreError
from iai_mcp.storage.exclusions import Exclusions
from iai_mcp.storage.layout import Layout
from iai_mcp.storage.meta import EmbedderMeta, StoreMeta, open_meta, read_meta, signature
from iai_mcp.storage.scratch import sweep
from iai_mcp.storage.store_lock import StoreLock
from iai_mcp.storage.tables.catalog import Tables, by_lane
from iai_mcp.storage.tables.lane import LaneTable
from iai_mcp.storage.tables.reports import AppendReport, MergeReport
from iai_mcp.storage.tombstones import Tombstones

__all__ = ["OpenedStore"]


class OpenedStore:
    """A store's folder, opened by this process.

    Args:
        path: the folder; made where it is missing.
        settings: of this process.
        lanes: number of lanes of a *new* store; an existing store must have as many. None: any.
        embedder: the embedder of a *new* store.

    Attributes:
        tombstones: the ids of deleted memories.
        exclusions: the entries that have no row, and why.

    Raises:
        StoreTooNew: a later version of this package wrote the store.
        StoreUnavailable: the folder cannot be made, read or written.
        ConfigError: ``lanes`` does not fit.
    """

    def __init__(self, path: Path, settings: Settings, *, lanes: int | None, embedder: EmbedderMeta) -> None:
        self.settings = settings
        self.path = path
        self.layout = Layout(path.absolute())
        open_meta(self.layout, lanes=lanes, embedder=embedder)
        self._store_lock = StoreLock(self.layout.store_lock)
        self._meta_path = str(self.layout.meta)  # looked at on every enqueue: a Path costs thrice the stat
        self._meta_signature = signature(self._meta_path)
        self._meta = self._opened = read_meta(self.layout)
        self.tombstones = Tombstones(self.layout.tombstones)
        self.exclusions = Exclusions(self.layout.exclusions)
        self._tables = Tables(self.layout, settings, self._meta, self.tombstones, self.exclusions)
        self._records = self._tables.records
        self._lanes: dict[int, LaneTable] = {}
        self._mutex = threading.RLock()

    @property
    def meta(self) -> StoreMeta:
        """The store's own facts, as any process last wrote them."""
        now = signature(self._meta_path)
        if now != self._meta_signature:
            self._meta, self._meta_signature = read_meta(self.layout), now
        return self._meta

    @property
    def store_id(self) -> str:
        """The store's identity; it names the owner of spill files and broker keys."""
        return self._meta.store_id

    @property
    def lanes(self) -> int:
        """The number of lanes, as when the store was opened."""
        return self._opened.lanes

    def check_lanes(self) -> None:
        """Check that the lanes are still those that were opened.

        Raises:
            LanesChanged: another process has changed their number since.
        """
        if self.meta.generation != self._opened.generation:
            raise LanesChanged(
                f"the store at {self.path} has {self._meta.lanes} lanes now, and had {self.lanes} when this "
                "process opened it: start it anew"
            )

    def lane(self, number: int) -> LaneTable:
        """The table of one lane, opened on first use."""
        if (known := self._lanes.get(number)) is not None:
            return known
        with self._mutex:
            if number not in self._lanes:
                if not 0 <= number < self.lanes:
                    raise StoreError(f"lane {number} is out of range: this store has {self.lanes} lanes")
                self._lanes[number] = self._tables.lane(self._opened.generation, number, self.check_lanes)
            return self._lanes[number]

    def tidy(self) -> None:
        """Do due maintenance, and erase forgotten memories from the disk once no reader can have them open.

        Direct writes call this, and a running queue or worker does every now and then. Mostly nothing is due.
        """
        self._records.maintain(force=False)
        for number in range(self.lanes):
            if number in self._lanes or self.layout.erasure(self._opened.lane_table(number)).exists():
                self.lane(number).maintain()
        sweep(self.layout)

    # -- a change of the number of lanes

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Have this store alone for the block.

        Raises:
            StoreInUse: another process has it open; on Linux the message names it.
            LanesChanged: another process has changed the lanes since.
        """
        self._store_lock.be_alone()
        try:
            self.check_lanes()
            yield
        finally:
            self._store_lock.share()

    def lanes_of(self, generation: int, lanes: int) -> list[LaneTable]:
        """The lane tables of another generation, made where they are missing."""
        return [self._tables.lane(generation, number) for number in range(lanes)]

    def merge_into(self, rows: pa.Table, lanes: Sequence[LaneTable]) -> int:
        """Add provenance rows to ``lanes``; how many have an id that an entry of another lane has."""
        return sum(
            lanes[number].merge(part, check_records=False).repeats for number, part in by_lane(rows, len(lanes))
        )

    def drop_lanes(self, keep: Container[int]) -> None:
        """Remove the lane tables of every generation but ``keep``."""
        self._tables.drop_lanes(keep)

    # -- rows of another store

    def merge_records(self, rows: pa.Table) -> MergeReport:
        """Add memories as they are, with their vectors, where their id is new and was not forgotten here."""
        return self._records.merge(rows, self.meta.vector_column, self.tombstones.ids)

    def merge_entries(self, rows: pa.Table) -> tuple[AppendReport, list[pa.Table]]:
        """Add provenance rows of another store, each record's in the order given.

        Args:
            rows: columns of ``LANE_SCHEMA``; their ``seq`` is replaced.

        Returns:
            The outcome, and the rows that were left out because their memory is not in this store.

        Raises:
            StoreUnavailable: the store failed; the call may be repeated.
        """
        report, unknown = AppendReport(), []
        for number, part in by_lane(rows, self.lanes):
            done = self.lane(number).merge(part)
            report += done.report
            unknown.append(done.unknown)
        return report, unknown
