"""Reads the trace across lanes: who recalled what, when and for which cue, what is recalled most, and what never.

Every entry counts once, and nothing of a forgotten memory counts at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc

from iai_mcp.entries.routing import lane_of
from iai_mcp.record import MemoryRecord
from iai_mcp.storage.tables.lance import matches, quoted, quoted_list, sql_time
from iai_mcp.storage.tables.lane import LaneTable
from iai_mcp.storage.tables.rows import LANE_SCHEMA, distinct_rows, from_row
from iai_mcp.store import MemoryStore

__all__ = [
    "Recalled",
    "TrailFilters",
    "each_recalled",
    "each_unasked",
    "most_recalled",
    "never_recalled",
    "trail",
    "trail_rows",
]

_ORDER = [("time", "ascending"), ("seq", "ascending"), ("producer_seq", "ascending")]
_TEXTS = 1000
_MANY = 1000  # entries of one memory: from there on only the columns that choose a page are read of all of them


@dataclass(frozen=True, slots=True)
class TrailFilters:
    """Which entries count; every given condition must hold.

    ``cue`` is looked for within the cue, whatever the case. ``since`` is inclusive, ``until`` exclusive.
    """

    record_id: UUID | None = None
    session: str | None = None
    recall_id: str | None = None
    cue: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def sql(self) -> list[str]:
        """The conditions as SQL."""
        record = str(self.record_id) if self.record_id else None
        parts = matches(record_id=record, session_id=self.session, recall_id=self.recall_id)
        if self.cue is not None:
            parts.append(f"strpos(lower(cue), {quoted(self.cue.lower())}) > 0")
        if self.since is not None:
            parts.append(f"time >= {sql_time(self.since)}")
        if self.until is not None:
            parts.append(f"time < {sql_time(self.until)}")
        return parts


@dataclass(frozen=True, slots=True)
class Recalled:
    """A memory, how many entries it has, and when the latest of them was made."""

    record: MemoryRecord
    recalls: int
    last: datetime | None


def trail(store: MemoryStore, filters: TrailFilters, *, limit: int = 100, offset: int = 0) -> list[dict[str, Any]]:
    """The newest ``limit`` entries that fit (after skipping ``offset``), oldest of them first.

    The entries of one record come in the record's own order (seq), those of several by time.
    """
    return [from_row(row) for row in trail_rows(store, filters, limit=limit, offset=offset).to_pylist()]


def trail_rows(store: MemoryStore, filters: TrailFilters, *, limit: int = 100, offset: int = 0) -> pa.Table:
    """What :func:`trail` returns, as rows of ``LANE_SCHEMA``."""
    if filters.record_id is not None:
        return _page_of_record(store.lane(lane_of(filters.record_id, store.lanes)), filters.sql(), limit, offset)
    page = _newest_keys(store, filters, limit, offset)
    places: dict[tuple[int, str], int] = {}
    parts = [LANE_SCHEMA.empty_table()]
    for number in {key[0] for key in page}:
        keys = [entry for lane, entry in page if lane == number]
        rows = distinct_rows(store.lane(number).rows([f"entry_id IN ({quoted_list(keys)})"]))
        first = sum(map(len, parts))
        places.update(((number, key), at) for at, key in enumerate(rows["entry_id"].to_pylist(), first))
        parts.append(rows.select(LANE_SCHEMA.names).cast(LANE_SCHEMA))
    return pa.concat_tables(parts).take(
        pa.array([places[key] for key in reversed(page) if key in places], pa.int64())
    )


def _page_of_record(lane: LaneTable, conditions: list[str], limit: int, offset: int) -> pa.Table:
    if lane.count(conditions) <= _MANY:
        return _newest(distinct_rows(lane.rows(conditions)), limit, offset)
    page = _newest(distinct_rows(lane.rows(conditions, ["entry_id", "seq", "producer_seq"])), limit, offset)
    if len(page) == 0:
        return LANE_SCHEMA.empty_table()
    seqs = page["seq"].to_pylist()
    rows = distinct_rows(lane.rows([*conditions, f"seq >= {seqs[0]}", f"seq <= {seqs[-1]}"]))
    return rows.filter(pc.is_in(rows["entry_id"], value_set=page["entry_id"].combine_chunks()))


def _newest(rows: pa.Table, limit: int, offset: int) -> pa.Table:
    end = max(0, len(rows) - offset)
    return rows.slice(max(0, end - limit), min(end, limit))


def _newest_keys(store: MemoryStore, filters: TrailFilters, limit: int, offset: int) -> list[tuple[int, str]]:
    """``(lane, entry_id)``, newest first: only the narrow columns of all rows are read."""
    columns = ["entry_id", "record_id", "time", "seq", "producer_seq"]
    parts = []
    for number in range(store.lanes):
        rows = store.lane(number).rows(filters.sql(), columns)
        parts.append(rows.append_column("lane", pa.array([number] * len(rows), pa.int32())))
    rows = pa.concat_tables(parts).sort_by(_ORDER)
    gone = {str(record_id) for record_id in store.tombstones.ids()}
    page: dict[tuple[int, str], None] = {}
    for start in range(len(rows), 0, -4096):
        part = rows.slice(max(0, start - 4096), min(start, 4096)).to_pylist()
        for row in reversed(part):
            if row["record_id"] not in gone:
                page[row["lane"], row["entry_id"]] = None
        if len(page) >= limit + offset:
            break
    return list(page)[offset : offset + limit]


def most_recalled(
    store: MemoryStore, filters: TrailFilters, *, limit: int = 100, offset: int = 0
) -> list[Recalled]:
    """The memories with the most entries that fit, most first; of equals the one recalled last."""
    return _recalled(store, _ranked(store, filters).slice(offset, limit))


def never_recalled(
    store: MemoryStore, filters: TrailFilters, *, limit: int = 100, offset: int = 0
) -> list[MemoryRecord]:
    """The memories without any entry that fits, newest first."""
    return store.records(_unasked(store, filters).slice(offset, limit).to_pylist())


def each_recalled(store: MemoryStore, filters: TrailFilters) -> Iterator[Recalled]:
    """Every memory of :func:`most_recalled`, whose texts are read a thousand at a time."""
    ranked = _ranked(store, filters)
    for start in range(0, len(ranked), _TEXTS):
        yield from _recalled(store, ranked.slice(start, _TEXTS))


def each_unasked(store: MemoryStore, filters: TrailFilters) -> Iterator[MemoryRecord]:
    """Every memory of :func:`never_recalled`, whose texts are read a thousand at a time."""
    ids = _unasked(store, filters)
    for start in range(0, len(ids), _TEXTS):
        yield from store.records(ids.slice(start, _TEXTS).to_pylist())


def _ranked(store: MemoryStore, filters: TrailFilters) -> pa.Table:
    order = [("recalls", "descending"), ("last", "descending"), ("record_id", "ascending")]
    return _counts(store, filters).sort_by(order)


def _recalled(store: MemoryStore, counts: pa.Table) -> list[Recalled]:
    page = counts.to_pylist()
    records = {str(record.id): record for record in store.records([row["record_id"] for row in page])}
    found = ((records.get(row["record_id"]), row) for row in page)
    return [Recalled(record, row["recalls"], row["last"]) for record, row in found if record is not None]


def _unasked(store: MemoryStore, filters: TrailFilters) -> pa.ChunkedArray:
    ids = store.record_ids()
    recalled = pc.is_in(ids, value_set=_counts(store, filters)["record_id"].combine_chunks())
    return ids.filter(pc.invert(recalled))


def _counts(store: MemoryStore, filters: TrailFilters) -> pa.Table:
    """``record_id``, ``recalls`` and ``last`` for each memory that has entries: only narrow columns are read."""
    parts = [_counts_in_lane(store, number, filters.sql()) for number in range(store.lanes)]
    counts = pa.concat_tables(parts)
    gone = pa.array([str(record_id) for record_id in store.tombstones.ids()], pa.string())
    return counts.filter(pc.invert(pc.is_in(counts["record_id"], value_set=gone)))


def _counts_in_lane(store: MemoryStore, number: int, conditions: list[str]) -> pa.Table:
    rows = store.lane(number).rows(conditions, ["entry_id", "record_id", "time"])
    counted = rows.group_by("record_id").aggregate([("entry_id", "count_distinct"), ("time", "max")])
    return counted.select(["record_id", "entry_id_count_distinct", "time_max"]).rename_columns(
        ["record_id", "recalls", "last"]
    )
