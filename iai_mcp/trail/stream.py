"""Reads the trace as a stream: all of it in bounded memory, or what becomes visible from now on.

Each lane is read in the order of its own numbers, so a record's entries keep their order; the lanes are merged
by time. Every entry comes once, and nothing of a forgotten memory comes at all.
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

__all__ = ["REMEMBERED", "Follower", "stream"]

WINDOW = 8_192  # rows of a lane that are in memory at a time
REMEMBERED = 1024  # entries of a lane that a follower knows again

_TURN = "turn"  # the latest time so far in the lane: ascending whatever the entries say, and so fit to merge by
_BEFORE_ALL = np.iinfo(np.int64).min


def stream(store: MemoryStore, filters: TrailFilters) -> Iterator[pa.Table]:
    """Every entry that fits as rows of ``LANE_SCHEMA``, a few thousand at a time, as of now.

    Entries of one record come in the record's order (seq), those of several by time. What is in memory is a
    window of each lane, and while a lane is begun 16 bytes for each of its entries that fit.
    """
    heads = []
    for lane in _lanes(store, filters):
        source = _windows(lane, filters.sql())
        if (first := next(source, None)) is not None:
            heads.append((source, first))
    while heads:
        cut = min(rows[_TURN][-1].as_py() for _, rows in heads)
        ready, rest = [], []
        for source, rows in heads:
            count = int(np.searchsorted(np.asarray(rows[_TURN]), cut, side="right"))
            ready.append(rows.slice(0, count))
            left = rows.slice(count) if count < len(rows) else next(source, None)
            if left is not None:
                rest.append((source, left))
        heads = rest
        if len(merged := _known(store, _merged(ready))):
            yield merged


def _lanes(store: MemoryStore, filters: TrailFilters) -> list[LaneTable]:
    if filters.record_id is not None:
        return [store.lane(lane_of(filters.record_id, store.lanes))]
    return [store.lane(number) for number in range(store.lanes)]


def _windows(lane: LaneTable, conditions: list[str]) -> Iterator[pa.Table]:
    """One lane's rows in order, a window at a time, each with its turn."""
    seqs, doubled = _outline(lane, conditions)
    starts = np.unique(seqs[::WINDOW]).tolist()
    ends = [start - 1 for start in starts[1:]] + [int(seqs[-1])] if len(seqs) else []
    seen: set[str] = set()
    latest = _BEFORE_ALL
    for first, last in zip(starts, ends, strict=True):
        rows = lane.rows([*conditions, f"seq >= {first}", f"seq <= {last}"])
        rows = _in_turn(_once(_ordered(rows), doubled, seen), latest)
        if len(rows):
            latest = rows[_TURN][-1].as_py()
            yield rows


@retry_vanished
def _outline(lane: LaneTable, conditions: list[str]) -> tuple[Any, set[int]]:
    """The numbers of a lane's rows that fit, ascending, and the hashes of the keys that (may) come twice."""
    seqs, hashes = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for batch in lane.batches(conditions, ["entry_id", "seq"]):
        seqs.append(np.asarray(batch.column("seq"), np.int64))
        hashes.append(np.fromiter(map(hash, batch.column("entry_id").to_pylist()), np.int64, len(batch)))
    keys = np.concatenate(hashes)
    return np.sort(np.concatenate(seqs)), set(keys[repeated(keys)].tolist())


def _ordered(rows: pa.Table) -> pa.Table:
    return rows.select(LANE_SCHEMA.names).sort_by([("seq", "ascending"), ("producer_seq", "ascending")])


def _once(rows: pa.Table, doubled: set[int], seen: set[str]) -> pa.Table:
    """``rows`` without those whose key is in ``seen``, which learns the keys that may come again."""
    if not doubled:
        return rows
    kept = []
    for key in rows["entry_id"].to_pylist():
        kept.append(key not in seen)
        if hash(key) in doubled:
            seen.add(key)
    return rows.filter(pa.array(kept, pa.bool_()))


def _in_turn(rows: pa.Table, latest: int) -> pa.Table:
    times = np.asarray(rows["time"].cast(pa.int64()).fill_null(_BEFORE_ALL), np.int64)
    turns = np.maximum(np.maximum.accumulate(times), latest) if len(times) else times
    return rows.append_column(_TURN, pa.array(turns, pa.int64()))


def _merged(parts: Sequence[pa.Table]) -> pa.Table:
    """Rows of several lanes by their turns, those of one moment as :func:`iai_mcp.trail.query.trail` has them."""
    rows = pa.concat_tables(parts)
    keys = [(_TURN, "ascending"), ("seq", "ascending"), ("producer_seq", "ascending")]
    return rows.take(pc.sort_indices(rows, sort_keys=keys)).drop_columns([_TURN])


def _known(store: MemoryStore, rows: pa.Table) -> pa.Table:
    gone = pa.array([str(record_id) for record_id in store.tombstones.ids()], pa.string())
    return rows.filter(pc.invert(pc.is_in(rows["record_id"], value_set=gone))) if len(gone) else rows


@dataclass(slots=True)
class _Tail:
    """One lane as a follower has seen it last.

    Numbers alone do not tell what is new: when the last rows of a lane are forgotten, the next writer gives
    their numbers again. So the last keys are remembered, and every row from ``floor`` on is looked at.
    """

    lane: LaneTable
    floor: int = 0
    version: int = -1
    seqs: dict[str, int] = field(default_factory=dict)

    def begin(self, conditions: list[str]) -> None:
        numbers = np.asarray(self.lane.rows(conditions, ["seq"])["seq"], np.int64)
        if len(numbers) > REMEMBERED:
            self.floor = int(np.partition(numbers, -REMEMBERED)[-REMEMBERED])

    def look(self, conditions: list[str]) -> pa.Table | None:
        """The rows that were not there at the last look; None where the table has not changed."""
        version = self.lane.version  # before the rows: what is committed in between is seen again, not missed
        if version == self.version:
            return None
        rows = _ordered(self.lane.rows([*conditions, f"seq >= {self.floor}"]))
        keys = rows["entry_id"].to_pylist()
        first = {key: row for row, key in reversed([*enumerate(keys)])}
        new = rows.take(pa.array(sorted(row for key, row in first.items() if key not in self.seqs), pa.int64()))
        numbers = rows["seq"].to_pylist()
        if len(numbers) > REMEMBERED:
            self.floor = max(self.floor, numbers[-REMEMBERED])
        self.seqs = {key: seq for key, seq in zip(keys, numbers, strict=True) if seq >= self.floor}
        self.version = version
        return new


class Follower:
    """Entries that fit ``filters``, as they become readable, whichever process writes them.

    Args:
        newest: how many of those that are there already the first look returns, at most :data:`REMEMBERED`.
    """

    def __init__(self, store: MemoryStore, filters: TrailFilters, *, newest: int = 0) -> None:
        self._store = store
        self._conditions = filters.sql()
        self._tails = [_Tail(lane) for lane in _lanes(store, filters)]
        for tail in self._tails:
            tail.begin(self._conditions)
        there = self._new()
        self._backlog = there.slice(max(0, len(there) - newest))

    def look(self) -> pa.Table:
        """What is new since the last look as rows of ``LANE_SCHEMA``; costs little where nothing was written."""
        backlog, self._backlog = self._backlog, LANE_SCHEMA.empty_table()
        return pa.concat_tables([backlog, self._new()])

    def _new(self) -> pa.Table:
        parts = [rows for tail in self._tails if (rows := tail.look(self._conditions)) is not None]
        if not any(map(len, parts)):
            return LANE_SCHEMA.empty_table()
        return _known(self._store, _merged([_in_turn(rows, _BEFORE_ALL) for rows in parts]))
