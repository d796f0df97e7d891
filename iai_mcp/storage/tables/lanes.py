"""The lanes of one store together: opens each on first use, and routes entries and rows by their record."""

from __future__ import annotations

import threading

import pyarrow as pa

from iai_mcp.entries.batch import EntryBatch
from iai_mcp.errors import StoreError
from iai_mcp.storage.facts import StoreFacts
from iai_mcp.storage.layout import Layout
from iai_mcp.storage.tables.catalog import Tables, by_lane
from iai_mcp.storage.tables.known_records import RecordsCache
from iai_mcp.storage.tables.lane import LaneTable
from iai_mcp.storage.tables.reports import AppendReport
from iai_mcp.storage.tables.write_right import WriteRight

__all__ = ["Lanes"]


class Lanes:
    """The lanes of one generation.

    Args:
        facts: of the store; they tell the number of lanes, the generation, and whether both are still right.
    """

    def __init__(self, tables: Tables, layout: Layout, facts: StoreFacts) -> None:
        self._tables = tables
        self._layout = layout
        self._meta = facts.opened
        self._check_current = facts.check_lanes
        self._open: dict[int, LaneTable] = {}
        self._mutex = threading.Lock()

    def lane(self, number: int) -> LaneTable:
        """The table of one lane, opened on first use.

        Raises:
            StoreError: ``number`` is out of range.
            StoreUnavailable: the table cannot be opened.
        """
        if (known := self._open.get(number)) is not None:
            return known
        with self._mutex:
            if number not in self._open:
                if not 0 <= number < self._meta.lanes:
                    raise StoreError(f"lane {number} is out of range: this store has {self._meta.lanes} lanes")
                self._open[number] = self._tables.lane(self._meta.generation, number, self._check_current)
            return self._open[number]

    def append(self, batch: EntryBatch, kept: RecordsCache | None, right: WriteRight | None) -> AppendReport:
        """Write a batch, one commit for each lane that it touches.

        Args:
            kept: the caller's cache, which also learns the ids of further records of the lanes touched.
            right: the lease of one lane. Entries of other lanes are written without a token.

        Raises:
            LeaseLost: a lane has seen a later token.
            StoreUnavailable: the storage is unavailable; the same call may be repeated.
        """
        self._check_current()
        cache = RecordsCache() if kept is None else kept
        lane = cache.lane_of(batch.ids)
        report = AppendReport()
        for number, part in ({lane: batch} if lane is not None else batch.by_lane(self._meta.lanes)).items():
            token = right.token if right is not None and right.lane == number else None
            report += self.lane(number).append(part, cache, token, 0 if kept is None else self._meta.lanes)
        return report

    def merge(self, rows: pa.Table) -> tuple[AppendReport, list[pa.Table]]:
        """Add rows of another store in the order given; the outcome, and the rows without a record here.

        Raises:
            StoreUnavailable: the storage is unavailable; the same call may be repeated.
        """
        report, unknown = AppendReport(), []
        for number, part in by_lane(rows, self._meta.lanes):
            done = self.lane(number).merge(part)
            report += done.report
            unknown.append(done.unknown)
        return report, unknown

    def maintain(self) -> None:
        """Maintain the open lanes, and those that still hold deleted text, as far as it is due."""
        for number in range(self._meta.lanes):
            if number in self._open or self._layout.erasure(self._meta.lane_table(number)).exists():
                self.lane(number).maintain()
