"""Numbers a lane's rows in the order of their writes, and knows which entries are certainly new to the table.

It follows the commits of other writers: it reads their rows before each write of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from iai_mcp.entries.identity import entry_id_bounds
from iai_mcp.storage.tables.high_water import HighWater, Spans
from iai_mcp.storage.tables.lance import Table, quoted
from iai_mcp.storage.tables.row_checks import LANE_SEQ_MAX

__all__ = ["LaneNumbering"]


class LaneNumbering:
    """The next ``seq`` of one lane and the high-water marks of its producers. The writer holds the lane's lock.

    Attributes:
        next_seq: the number of the next row, from 1.
        seen_version: the last commit that was taken into account; -1 if the table must be read again.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self._rows = 0  # in the table as of the last commit that was seen
        self._marks = HighWater(self._highest_of)
        self.next_seq = 1
        self.seen_version = -1

    def catch_up(self) -> int:
        """Read the rows that other writers have committed; the table's version before that."""
        version = int(self._table.version)
        if version != self.seen_version:
            self._read_new_rows()
        return version

    def all_new(self, spans: Spans, version: int) -> bool:
        """Whether no row of the table, which must still be at ``version``, has a number of these spans."""
        return self._marks.below(spans) and self._table.version == version

    def committed(self, count: int, new: int, before: int, after: int) -> bool:
        """Note a commit of this writer; whether it directly followed version ``before``.

        Args:
            count: numbers that it has used.
            new: rows that it has added.
            after: the version that it made.
        """
        self.next_seq += count
        self._rows += new
        if after == before + 1:
            self.seen_version = after
            return True
        self.seen_version = -1  # a writer without the lock has committed in between
        self._marks.forget()
        return False

    def learn(self, spans: Spans | None) -> None:
        """Raise the marks to numbers that were just written; None: to numbers that are not known."""
        if spans:
            self._marks.seen((producer, highest) for producer, (_, highest) in spans.items())
        else:
            self._marks.forget()

    def _read_new_rows(self) -> None:
        columns = ["seq", "producer", "producer_seq"] if self._marks else ["seq"]
        rows = (
            self._table.search()
            .where(f"seq >= {self.next_seq} AND seq < {LANE_SEQ_MAX}")
            .select(columns)
            .to_arrow()
        )
        if len(rows):
            self.next_seq = int(pa.compute.max(rows["seq"]).as_py()) + 1
        there = self._table.count_rows()
        if self._marks and there == self._rows + len(rows):
            self._marks.seen(_highest(rows))
        else:  # rows were deleted, or were added under numbers below ours
            self._marks.forget()
        self._rows = there

    def _highest_of(self, producer: str) -> int:
        """The highest number of a producer's rows; 0 if it has none. Its keys are one range of the index."""
        first, end = map(quoted, entry_id_bounds(producer))
        query = self._table.search().where(f"entry_id >= {first} AND entry_id < {end}").select(["producer_seq"])
        found = query.to_arrow()["producer_seq"]
        return int(pa.compute.max(found).as_py()) if len(found) else 0


def _highest(rows: pa.Table) -> Iterator[tuple[str, int]]:
    """The highest number of each producer."""
    coded = rows["producer"].combine_chunks().dictionary_encode()
    highest = np.zeros(len(coded.dictionary), np.int64)
    np.maximum.at(highest, np.asarray(coded.indices, np.int64), np.asarray(rows["producer_seq"]))
    return zip(coded.dictionary.to_pylist(), highest.tolist(), strict=True)
