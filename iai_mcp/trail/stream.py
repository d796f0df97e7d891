"""Streams the trail: all entries in bounded memory, or new entries as they become visible.

Each lane is read in the order of its own numbers, so entries of one record keep their order. The lanes are merged
by time. Every entry comes once; entries of forgotten memories do not come.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from iai_mcp.common.arrays import repeated
from iai_mcp.entries.routing import lane_of
from iai_mcp.storage.tables.lance import retry_vanished
from iai_mcp.storage.tables.lane import LaneTable
from iai_mcp.storage.tables.rows import LANE_SCHEMA
from iai_mcp.store import MemoryStore
from iai_mcp.trail.query import TrailFilters

__all__ = ["KNOWN_ENTRIES", "Follower", "stream"]

WINDOW = 8_192  # rows of a lane in memory at a time
KNOWN_ENTRIES = 1024  # latest entries of a lane that a follower remembers

_MERGE_TIME = "merge_time"  # the latest time so far in the lane: it never descends, so lanes can be merged by it
_BEFORE_ALL = np.iinfo(np.int64).min


def stream(store: MemoryStore, filters: TrailFilters) -> Iterator[pa.Table]:
    """Every matching entry as of now, as tables of ``LANE_SCHEMA`` with a few thousand rows each.

    Entries of one record come in the record's order (seq), entries of several records in the order of time.
    Memory holds a window of each lane and, when the first window is read, 16 bytes for each matching entry.
    """
    heads = []
    for lane in _lanes(store, filters):
        source = _windows(lane, filters.sql())
        if (first := next(source, None)) is not None:
            heads.append((source, first))
    while heads:
        cut = min(rows[_MERGE_TIME][-1].as_py() for _, rows in heads)
        ready, rest = [], []
        for source, rows in heads:
            count = int(np.searchsorted(np.asarray(rows[_MERGE_TIME]), cut, side="right"))
            ready.append(rows.slice(0, count))
            left = rows.slice(count) if count < len(rows) else next(source, None)
            if left is not None:
                rest.append((source, left))
        heads = rest
        if len(merged := _without_forgotten(store, _merged(ready))):
            yield merged


def _lanes(store: MemoryStore, filters: TrailFilters) -> list[LaneTable]:
    if filters.record_id is not None:
        return [store.lane(lane_of(filters.record_id, store.lanes))]
    return [store.lane(number) for number in range(store.lanes)]


def _windows(lane: LaneTable, conditions: list[str]) -> Iterator[pa.Table]:
    """One lane's rows in order, a window at a time, each row with its merge time."""
    seqs, repeating = _scan_keys(lane, conditions)
    starts = np.unique(seqs[::WINDOW]).tolist()
    ends = [start - 1 for start in starts[1:]] + [int(seqs[-1])] if len(seqs) else []
    seen: set[str] = set()
    latest = _BEFORE_ALL
    for first, last in zip(starts, ends, strict=True):
        rows = lane.rows([*conditions, f"seq >= {first}", f"seq <= {last}"])
        rows = _with_merge_time(_without_repeats(_ordered(rows), repeating, seen), latest)
        if len(rows):
            latest = rows[_MERGE_TIME][-1].as_py()
            yield rows


@retry_vanished
def _scan_keys(lane: LaneTable, conditions: list[str]) -> tuple[Any, set[int]]:
    """The lane numbers of matching rows, ascending, and the hashes of ids that may occur twice."""
    seqs, hashes = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for batch in lane.batches(conditions, ["entry_id", "seq"]):
        seqs.append(np.asarray(batch.column("seq"), np.int64))
        hashes.append(np.fromiter(map(hash, batch.column("entry_id").to_pylist()), np.int64, len(batch)))
    keys = np.concatenate(hashes)
    return np.sort(np.concatenate(seqs)), set(keys[repeated(keys)].tolist())


def _ordered(rows: pa.Table) -> pa.Table:
    return rows.select(LANE_SCHEMA.names).sort_by([("seq", "ascending"), ("producer_seq", "ascending")])


def _without_repeats(rows: pa.Table, repeating: set[int], seen: set[str]) -> pa.Table:
    """``rows`` without those whose id is in ``seen``; adds to ``seen`` the ids that may come again."""
    if not repeating:
        return rows
    kept = []
    for key in rows["entry_id"].to_pylist():
        kept.append(key not in seen)
        if hash(key) in repeating:
            seen.add(key)
    return rows.filter(pa.array(kept, pa.bool_()))


def _with_merge_time(rows: pa.Table, latest: int) -> pa.Table:
    times = np.asarray(rows["time"].cast(pa.int64()).fill_null(_BEFORE_ALL), np.int64)
    turns = np.maximum(np.maximum.accumulate(times), latest) if len(times) else times
    return rows.append_column(_MERGE_TIME, pa.array(turns, pa.int64()))


def _merged(parts: Sequence[pa.Table]) -> pa.Table:
    """Rows of several lanes by merge time; rows of one moment as :func:`iai_mcp.trail.query.trail` orders them."""
    rows = pa.concat_tables(parts)
    keys = [(_MERGE_TIME, "ascending"), ("seq", "ascending"), ("producer_seq", "ascending")]
    return rows.take(pc.sort_indices(rows, sort_keys=keys)).drop_columns([_MERGE_TIME])


def _without_forgotten(store: MemoryStore, rows: pa.Table) -> pa.Table:
    gone = pa.array([str(record_id) for record_id in store.tombstones.ids()], pa.string())
    return rows.filter(pc.invert(pc.is_in(rows["record_id"], value_set=gone))) if len(gone) else rows


@dataclass(slots=True)
class _Tail:
    """The state of one lane at a follower's last poll.

    Lane numbers alone do not tell what is new: after the last rows of a lane are forgotten, the next writer uses
    their numbers again. So the follower remembers the latest ids and reads every row from ``floor`` on.
    """

    lane: LaneTable
    floor: int = 0
    version: int = -1
    seqs: dict[str, int] = field(default_factory=dict)

    def begin(self, conditions: list[str]) -> None:
        numbers = np.asarray(self.lane.rows(conditions, ["seq"])["seq"], np.int64)
        if len(numbers) > KNOWN_ENTRIES:
            self.floor = int(np.partition(numbers, -KNOWN_ENTRIES)[-KNOWN_ENTRIES])

    def poll(self, conditions: list[str]) -> pa.Table | None:
        """The rows that are new since the last poll; None where the table has not changed."""
        version = self.lane.version  # read before the rows: a commit in between is read again, not missed
        if version == self.version:
            return None
        rows = _ordered(self.lane.rows([*conditions, f"seq >= {self.floor}"]))
        keys = rows["entry_id"].to_pylist()
        first = {key: row for row, key in reversed([*enumerate(keys)])}
        new = rows.take(pa.array(sorted(row for key, row in first.items() if key not in self.seqs), pa.int64()))
        numbers = rows["seq"].to_pylist()
        if len(numbers) > KNOWN_ENTRIES:
            self.floor = max(self.floor, numbers[-KNOWN_ENTRIES])
        self.seqs = {key: seq for key, seq in zip(keys, numbers, strict=True) if seq >= self.floor}
        self.version = version
        return new


class Follower:
    """Returns entries that match ``filters`` as they become readable, from any process.

    Args:
        newest: number of existing entries that the first poll returns, at most :data:`KNOWN_ENTRIES`.
    """

    def __init__(self, store: MemoryStore, filters: TrailFilters, *, newest: int = 0) -> None:
        self._store = store
        self._conditions = filters.sql()
        self._tails = [_Tail(lane) for lane in _lanes(store, filters)]
        for tail in self._tails:
            tail.begin(self._conditions)
        there = self._new()
        self._backlog = there.slice(max(0, len(there) - newest))

    def poll(self) -> pa.Table:
        """The entries since the last poll, as rows of ``LANE_SCHEMA``; cheap where nothing was written."""
        backlog, self._backlog = self._backlog, LANE_SCHEMA.empty_table()
        return pa.concat_tables([backlog, self._new()])

    def _new(self) -> pa.Table:
        parts = [rows for tail in self._tails if (rows := tail.poll(self._conditions)) is not None]
        if not any(map(len, parts)):
            return LANE_SCHEMA.empty_table()
        return _without_forgotten(self._store, _merged([_with_merge_time(rows, _BEFORE_ALL) for rows in parts]))
