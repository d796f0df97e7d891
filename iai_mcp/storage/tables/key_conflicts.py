"""Finds entries that carry the key of an earlier entry and say something else, and keeps them as dead letters.

A producer uses each key once. Two processes with one producer id, such as copies of a running virtual machine,
break that. The entry that came first keeps its row.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc

from iai_mcp.entries.identity import entry_id
from iai_mcp.entries.parcel import Pair
from iai_mcp.storage.dead_letters import DeadLetters
from iai_mcp.storage.tables.rows import LANE_SCHEMA, from_row
from iai_mcp.telemetry.events import emit

__all__ = ["conflicts", "keep_conflicts"]

_COMPARED = [name for name in LANE_SCHEMA.names if name not in ("entry_id", "seq")]
REASON = "KeyConflict: an earlier entry has this key and says something else; two processes had one producer id"


def conflicts(new: pa.Table, there: pa.Table) -> list[Pair]:
    """The rows of ``new`` that differ from every row of ``there`` with their key, as pairs.

    Args:
        new: rows (``LANE_SCHEMA``) whose keys are all in ``there``. A key that a caller chose may say anything.
        there: rows of the table.
    """
    new = new.filter(pc.invert(_identical(new, there)))
    known: dict[str, list[dict[str, Any]]] = {}
    for row in there.filter(pc.is_in(there["entry_id"], new["entry_id"].combine_chunks())).to_pylist():
        known.setdefault(row["entry_id"], []).append(_contents(row))
    return [_pair(row) for row in _produced(new) if _contents(row) not in known.get(row["entry_id"], [])]


def keep_conflicts(letters: DeadLetters, lane: int, found: list[Pair]) -> int:
    """Make dead letters of conflicts, once for each entry; how many entries there are."""
    if found:
        letters.add_conflicts(lane, found, REASON)
        producers = ",".join(sorted({entry["producer"] for _, entry in found}))
        emit("key_conflict", level=logging.ERROR, lane=lane, entries=len(found), producers=producers)
    return len(found)


def _identical(new: pa.Table, there: pa.Table) -> pa.ChunkedArray:
    """Which rows are in ``there`` value for value: nearly all, and they need not become dicts."""
    first = pc.index_in(new["entry_id"], there["entry_id"].combine_chunks())
    same = pc.is_valid(first)
    for name in _COMPARED:
        ours, theirs = new[name], there[name].take(first)
        both_null = pc.and_(pc.is_null(ours), pc.is_null(theirs))
        same = pc.and_(same, pc.or_(both_null, pc.fill_null(pc.equal(ours, theirs), False)))
    return same


def _produced(rows: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows whose key spells their producer and number."""
    for row in rows.to_pylist():
        if row["entry_id"] == entry_id(row["producer"], row["producer_seq"]):
            yield row


def _contents(row: Mapping[str, Any]) -> dict[str, Any]:
    """What an entry says, without the lane's number. Null and NaN are left out: JSON spells both as null."""
    entry = from_row(row)
    return {key: value for key, value in entry.items() if key != "seq" and value is not None and value == value}


def _pair(row: Mapping[str, Any]) -> Pair:
    entry = {key: value for key, value in from_row(row).items() if key not in ("seq", "record_id")}
    return UUID(row["record_id"]), entry
