"""Entries as rows of a lane's table, and back: whatever a caller gave survives. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from operator import itemgetter
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from iai_mcp.account import repeated
from iai_mcp.batch import EntryBatch
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
_TYPED = [LANE_SCHEMA.field(name) for name in (*_TEXT, "rank", "score")]
_KEYS = ("entry_id", "producer", "producer_seq")  # the store's own
_GIVEN = frozenset({*_TEXT, "rank", "score", *_KEYS})
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


def to_arrow(batch: EntryBatch, record_ids: Sequence[str | None], first_seq: int) -> pa.Table:
    """Rows for a batch with these record ids, numbered from ``first_seq``; columns are built, not rows."""
    own, shared = set().union(*batch.entries), set().union(*batch.shared)
    if not own.isdisjoint(shared) or not (own <= _GIVEN and shared <= _GIVEN):
        batch = batch.whole()
        own, shared = own | shared, set()
    try:
        rests = None if own <= _GIVEN else [_rest(entry) for entry in batch.entries]
        return _columns(batch, record_ids, own, shared, rests, first_seq)
    except (pa.ArrowException, TypeError, UnicodeEncodeError, OverflowError):
        batch = batch.whole()
        split = [_split(entry) for entry in batch.entries]
        keys, entries = [str(_plain(key)) for key in batch.keys], [typed for typed, _ in split]
        plain = EntryBatch(batch.record_ids, keys, batch.producers, batch.seqs, entries, batch.shared)
        return _columns(plain, record_ids, own | shared, set(), [rest for _, rest in split], first_seq)


def _columns(
    batch: EntryBatch,
    record_ids: Sequence[str | None],
    own: set[str],
    shared: set[str],
    rests: list[str | None] | None,
    first_seq: int,
) -> pa.Table:
    count = len(batch)
    values = {**_values(batch.shared, shared), **_values(batch.entries, own)}
    given = {
        field.name: pa.array(values[field.name], field.type)
        if field.name in values
        else pa.nulls(count, field.type)
        for field in _TYPED
    }
    columns = {
        **given,
        "entry_id": pa.array(batch.keys, pa.string()),
        "record_id": pa.array(record_ids, pa.string()),
        "producer": pa.array(batch.producers, pa.string()),
        "producer_seq": pa.array(batch.seqs, pa.int64()),
        "seq": pa.array(np.arange(first_seq, first_seq + count)),
        "time": _times(given["ts"]),
        "rest": pa.nulls(count, pa.string()) if rests is None else pa.array(rests, pa.string()),
    }
    return pa.table([columns[name] for name in LANE_SCHEMA.names], schema=LANE_SCHEMA)


def _values(entries: Sequence[Mapping[str, Any]], said: set[str]) -> dict[str, Sequence[Any]]:
    """The typed values among what they say; entries mostly say the same, and are then looked into once each."""
    names = [field.name for field in _TYPED if field.name in said]
    if len(names) > 1:
        with suppress(KeyError):
            return dict(zip(names, zip(*map(itemgetter(*names), entries), strict=True), strict=True))
    return {name: [entry.get(name) for entry in entries] for name in names}


def _times(texts: pa.Array) -> pa.Array:
    """What :func:`parse_ts` says of each; Arrow reads a column of times with offsets ten times faster."""
    kind = LANE_SCHEMA.field("time").type
    with suppress(pa.ArrowInvalid):
        times = texts.cast(kind)
        span = pa.compute.min_max(times.cast(pa.int64())).as_py()
        if span["min"] is not None and _ARROW_US[0] <= span["min"] and span["max"] <= _ARROW_US[1]:
            return times
    return pa.array([parse_ts(ts) for ts in texts.to_pylist()], kind)


def _rest(entry: Mapping[str, Any]) -> str | None:
    if entry.keys() <= _GIVEN:
        return None
    return _json({key: value for key, value in entry.items() if key not in _GIVEN})


def _split(entry: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """``entry`` as what fits the typed columns, and the rest as JSON: nothing a caller gave is refused."""
    typed = {key: _plain(value) for key, value in entry.items() if _fits(key, value)}
    rest = {key: value for key, value in entry.items() if key not in (*typed, *_KEYS) and value is not None}
    return typed, _json(rest) if rest else None


def _fits(key: str, value: object) -> bool:
    if key in _TEXT:
        return isinstance(value, str)
    if key == "rank":
        return type(value) is int and abs(value) < 2**63
    return key == "score" and type(value) in (int, float)


def _plain(value: object) -> object:
    """Text without lone surrogates, which no UTF-8 column takes."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _json(value: dict[str, Any]) -> str:
    try:
        return msgspec.json.encode(value, enc_hook=repr).decode()
    except (UnicodeEncodeError, TypeError, ValueError, RecursionError):
        return msgspec.json.encode({str(_plain(str(key))): repr(item) for key, item in value.items()}).decode()
