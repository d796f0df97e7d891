"""Reads the trace across lanes: who recalled what, when and for which cue, what is recalled most, and what never.

Every entry counts once, and nothing of a forgotten memory counts at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc

from iai_mcp.entry import lane_of
from iai_mcp.lance import matches, quoted, sql_time
from iai_mcp.record import MemoryRecord
from iai_mcp.store import MemoryStore

__all__ = ["Recalled", "TrailFilters", "most_recalled", "never_recalled", "trail"]

_ORDER = [("time", "ascending"), ("seq", "ascending"), ("producer_seq", "ascending")]


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
    if filters.record_id is not None:
        lane = store.lane(lane_of(filters.record_id, store.lanes))
        found = lane.entries(filters.sql())
        return found[max(0, len(found) - offset - limit) : len(found) - offset] if len(found) > offset else []
    page = _newest_keys(store, filters, limit, offset)
    entries: dict[str, dict[str, Any]] = {}
    for number in {key[0] for key in page}:
        keys = [entry for lane, entry in page if lane == number]
        entries.update((entry["entry_id"], entry) for entry in store.lane(number).by_keys(keys))
    return [entries[key] for _, key in reversed(page) if key in entries]


def _newest_keys(store: MemoryStore, filters: TrailFilters, limit: int, offset: int) -> list[tuple[int, str]]:
    """``(lane, entry_id)``, newest first: only the narrow columns of all rows are read."""
    columns = ["entry_id", "record_id", "time", "seq", "producer_seq"]
    parts = []
    for number in range(store.lanes):
        rows = store.lane(number).rows(filters.sql(), columns)
        parts.append(rows.append_column("lane", pa.array([number] * len(rows), pa.int32())))
    rows = pa.concat_tables(parts).sort_by(_ORDER)
    gone = {str(record_id) for record_id in store.forgotten.ids()}
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
    order = [("recalls", "descending"), ("last", "descending"), ("record_id", "ascending")]
    page = _counts(store, filters).sort_by(order).slice(offset, limit).to_pylist()
    records = {str(record.id): record for record in store.records([row["record_id"] for row in page])}
    return [
        Recalled(records[row["record_id"]], row["recalls"], row["last"])
        for row in page
        if row["record_id"] in records
    ]


def never_recalled(
    store: MemoryStore, filters: TrailFilters, *, limit: int = 100, offset: int = 0
) -> list[MemoryRecord]:
    """The memories without any entry that fits, newest first."""
    ids = store.record_ids()
    recalled = pc.is_in(ids, value_set=_counts(store, filters)["record_id"].combine_chunks())
    return store.records(ids.filter(pc.invert(recalled)).slice(offset, limit).to_pylist())


def _counts(store: MemoryStore, filters: TrailFilters) -> pa.Table:
    """``record_id``, ``recalls`` and ``last`` for each memory that has entries: only narrow columns are read."""
    parts = [_counts_in_lane(store, number, filters.sql()) for number in range(store.lanes)]
    counts = pa.concat_tables(parts)
    gone = pa.array([str(record_id) for record_id in store.forgotten.ids()], pa.string())
    return counts.filter(pc.invert(pc.is_in(counts["record_id"], value_set=gone)))


def _counts_in_lane(store: MemoryStore, number: int, conditions: list[str]) -> pa.Table:
    rows = store.lane(number).rows(conditions, ["entry_id", "record_id", "time"])
    counted = rows.group_by("record_id").aggregate([("entry_id", "count_distinct"), ("time", "max")])
    return counted.select(["record_id", "entry_id_count_distinct", "time_max"]).rename_columns(
        ["record_id", "recalls", "last"]
    )
