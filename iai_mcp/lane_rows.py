"""Entries as rows of a lane's table, and back: whatever a caller gave survives. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from operator import itemgetter
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from iai_mcp.account import repeated
from iai_mcp.entry import parse_ts

__all__ = ["LANE_SCHEMA", "distinct", "distinct_rows", "from_row", "to_arrow"]

LANE_SCHEMA = pa.schema(
    [
        pa.field("entry_id", pa.string(), nullable=False),  # idempotency key
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("producer", pa.string(), nullable=False),  # the queue that handed the entry out
        pa.field("producer_seq", pa.int64(), nullable=False),  # its own count, from 1
        pa.field("seq", pa.int64(), nullable=False),  # ascending within the lane, in the order applied
        pa.field("ts", pa.string()),  # as given
        pa.field("time", pa.timestamp("us", "UTC")),  # ts parsed, where it parses
        pa.field("cue", pa.string()),
        pa.field("session_id", pa.string()),
        pa.field("recall_id", pa.string()),
        pa.field("client", pa.string()),
        pa.field("rank", pa.int64()),
        pa.field("score", pa.float64()),
        pa.field("rest", pa.string()),  # further keys, as a JSON object
    ]
)

_TEXT = ("ts", "cue", "session_id", "recall_id", "client")
_GIVEN = frozenset({*_TEXT, "rank", "score", "entry_id", "producer", "producer_seq"})
# Microseconds from 1677 to 2262: Arrow also reads years that no ``datetime`` holds, which would fail every read.
_ARROW_US = (-(2**63) // 1000, 2**63 // 1000)


def distinct(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """``rows`` in a record's order, the first of each ``entry_id``, as the dicts that callers know."""
    ordered = sorted(rows, key=lambda row: (row["seq"], row["producer_seq"]))
    return list({row["entry_id"]: from_row(row) for row in reversed(ordered)}.values())[::-1]


def distinct_rows(rows: pa.Table) -> pa.Table:
    """:func:`distinct` while they are columns still, for more of them than anybody looks at.

    Ordered by NumPy, and taken by a list, since Arrow would import its query engine and NumPy's masked arrays
    for it, a third of what a short command takes.
    """
    order = np.lexsort((np.asarray(rows["producer_seq"]), np.asarray(rows["seq"])))
    codes = np.asarray(rows["entry_id"].combine_chunks().dictionary_encode().indices, np.int64)[order]
    return rows.take(pa.array(order[~repeated(codes)].tolist(), pa.int64()))


def from_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """The entry that a row holds: given keys as they came, ours beside them, nothing for what is null."""
    entry = {key: value for key, value in row.items() if value is not None and key not in ("time", "rest")}
    return {**msgspec.json.decode(row["rest"]), **entry} if row.get("rest") else entry


def to_arrow(alive: list[tuple[str, dict[str, Any]]], first_seq: int) -> pa.Table:
    """Rows for ``(record id, entry)``, numbered from ``first_seq``; columns are built, not rows."""
    record_ids = [record_id for record_id, _ in alive]
    entries = [entry for _, entry in alive]
    try:
        rests = [_rest(entry) for entry in entries] if set().union(*entries) - _GIVEN else None
        return _columns(record_ids, entries, rests, first_seq)
    except (pa.ArrowException, TypeError, UnicodeEncodeError, OverflowError):
        split = [_split(entry) for entry in entries]
        return _columns(record_ids, [typed for typed, _ in split], [rest for _, rest in split], first_seq)


def _columns(
    record_ids: list[str], entries: list[dict[str, Any]], rests: list[str | None] | None, first_seq: int
) -> pa.Table:
    columns = {
        field.name: pa.array(_values(entries, field.name), field.type)
        for field in LANE_SCHEMA
        if field.name in _GIVEN
    }
    columns["record_id"] = pa.array(record_ids, pa.string())
    columns["seq"] = pa.array(np.arange(first_seq, first_seq + len(entries)))
    columns["time"] = _times(columns["ts"])
    columns["rest"] = pa.nulls(len(entries), pa.string()) if rests is None else pa.array(rests, pa.string())
    return pa.table([columns[name] for name in LANE_SCHEMA.names], schema=LANE_SCHEMA)


def _values(entries: list[dict[str, Any]], name: str) -> list[Any]:
    try:
        return list(map(itemgetter(name), entries))  # twice as fast as asking each entry, and nearly always so
    except KeyError:
        return [entry.get(name) for entry in entries]


def _times(texts: pa.Array) -> pa.Array:
    """What :func:`parse_ts` says of each; Arrow reads a column of times with offsets ten times faster."""
    kind = LANE_SCHEMA.field("time").type
    with suppress(pa.ArrowInvalid):
        times = texts.cast(kind)
        span = pa.compute.min_max(times.cast(pa.int64())).as_py()
        if span["min"] is not None and _ARROW_US[0] <= span["min"] and span["max"] <= _ARROW_US[1]:
            return times
    return pa.array([parse_ts(ts) for ts in texts.to_pylist()], kind)


def _rest(entry: dict[str, Any]) -> str | None:
    if entry.keys() <= _GIVEN:
        return None
    return _json({key: value for key, value in entry.items() if key not in _GIVEN})


def _split(entry: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """``entry`` as what fits the typed columns, and the rest as JSON: nothing a caller gave is refused."""
    typed = {key: _plain(value) for key, value in entry.items() if key in _GIVEN and _fits(key, value)}
    rest = {key: value for key, value in entry.items() if key not in typed and value is not None}
    return typed, _json(rest) if rest else None


def _fits(key: str, value: object) -> bool:
    if key in _TEXT:
        return isinstance(value, str)
    if key == "rank":
        return type(value) is int and abs(value) < 2**63
    if key == "score":
        return type(value) in (int, float)
    return True  # the keys, which the store has set itself


def _plain(value: object) -> object:
    """Text without lone surrogates, which no UTF-8 column takes."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _json(value: dict[str, Any]) -> str:
    try:
        return msgspec.json.encode(value, enc_hook=repr).decode()
    except (UnicodeEncodeError, TypeError, ValueError, RecursionError):
        return msgspec.json.encode({str(_plain(str(key))): repr(item) for key, item in value.items()}).decode()
