"""Entries as rows of a lane's table, and back. Every value that a caller gave survives. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from operator import itemgetter
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from iai_mcp.common.arrays import Ints, repeated
from iai_mcp.common.times import parse_ts
from iai_mcp.entries.admission import check_depth
from iai_mcp.entries.batch import EntryBatch
from iai_mcp.entries.identity import KEY_SEPARATOR

__all__ = [
    "LANE_SCHEMA",
    "TABLE_SCHEMA",
    "codes",
    "distinct",
    "distinct_rows",
    "from_row",
    "renumbered",
    "to_arrow",
]

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

# Ids are random: compressing them takes 40 % of an append and makes a table only a quarter smaller.
_UNCOMPRESSED = {b"lance-encoding:compression": b"none"}
TABLE_SCHEMA = pa.schema(
    [
        field.with_metadata(_UNCOMPRESSED) if field.name in ("entry_id", "record_id", "recall_id") else field
        for field in LANE_SCHEMA
    ]
)

_TEXT = ("ts", "cue", "session_id", "recall_id", "client")
_TYPED = [LANE_SCHEMA.field(name) for name in (*_TEXT, "rank", "score")]
_KEYS = ("entry_id", "producer", "producer_seq")  # given by the queue or the store
_GIVEN = frozenset({*_TEXT, "rank", "score", *_KEYS})
_NO_COLUMN = (pa.ArrowException, TypeError, UnicodeEncodeError, OverflowError)  # values that no column takes
# Microseconds from 1677 to 2262. Arrow also parses years that no ``datetime`` holds; a read of those would fail.
_ARROW_US = (-(2**63) // 1000, 2**63 // 1000)


def distinct(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The entries of ``rows`` in order (``seq``, then ``producer_seq``), the first of each ``entry_id``."""
    ordered = sorted(rows, key=lambda row: (row["seq"], row["producer_seq"]))
    return list({row["entry_id"]: from_row(row) for row in reversed(ordered)}.values())[::-1]


def distinct_rows(rows: pa.Table) -> pa.Table:
    """:func:`distinct` for columns: the same rows in the same order, as a table.

    NumPy orders them, and a list selects them. Arrow would import its query engine and NumPy's masked arrays for
    that, which takes a third of the time of a short command.
    """
    order = np.lexsort((np.asarray(rows["producer_seq"]), np.asarray(rows["seq"])))
    again = repeated(codes(rows["entry_id"])[order])
    return rows.take(pa.array(order[~again].tolist(), pa.int64()))


def codes(texts: pa.ChunkedArray) -> Ints:
    """A number for each text; equal texts have equal numbers."""
    return np.asarray(texts.combine_chunks().dictionary_encode().indices, np.int64)


def renumbered(rows: pa.Table, first: int) -> pa.Table:
    """``rows`` with the ``seq`` numbers ``first``, ``first + 1`` and so on, cast to ``LANE_SCHEMA``."""
    at = LANE_SCHEMA.get_field_index("seq")
    numbers = pa.array(np.arange(first, first + len(rows), dtype=np.int64))
    return rows.set_column(at, LANE_SCHEMA.field("seq"), numbers).cast(LANE_SCHEMA)


def from_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of a row: the caller's keys as they came, the store's keys beside them, no key for a null."""
    entry = {key: value for key, value in row.items() if value is not None and key not in ("time", "rest")}
    return {**_rest_of(row["rest"]), **entry} if row.get("rest") else entry


def _rest_of(text: str) -> dict[str, Any]:
    """The further keys; none where a hand has changed the text: `iai-mcp verify` names the row."""
    with suppress(msgspec.DecodeError, RecursionError):
        found = msgspec.json.decode(text)
        if isinstance(found, dict):
            return found
    return {}


def to_arrow(batch: EntryBatch, first_seq: int) -> pa.Table:
    """The rows of a batch in its order, with ``seq`` numbers from ``first_seq`` on."""
    with suppress(*_NO_COLUMN):
        if (values := _columns(batch)) is not None:
            return _table(batch, batch.given, values, None, first_seq)
    entries = batch.entries()
    try:
        rests = None if batch.names <= _GIVEN else [_rest(entry) for entry in entries]
        return _table(batch, batch.given, _values(entries), rests, first_seq)
    except _NO_COLUMN:
        split = [_split(entry) for entry in entries]
        keys = [str(_plain(key)) for key in batch.keys]
        rests = [rest for _, rest in split]
        return _table(batch, keys, _values([typed for typed, _ in split]), rests, first_seq)


def _columns(batch: EntryBatch) -> dict[str, pa.Array] | None:
    """The typed columns of a batch whose entries all have the same keys; None for any other batch."""
    own, shared_names = batch.own, set().union(*batch.shared)
    if not isinstance(own, dict) or not shared_names.isdisjoint(own):
        return None
    if not (own.keys() | shared_names) <= _GIVEN:
        return None
    group, shared = pa.array(batch.group), _by_name(batch.shared, shared_names)
    found = {}
    for field in _TYPED:
        if field.name in own:
            found[field.name] = pa.array(own[field.name], field.type)
        elif field.name in shared_names:
            found[field.name] = pa.array(shared[field.name], field.type).take(group)
    return found


def _by_name(entries: Sequence[Mapping[str, Any]], names: set[str]) -> dict[str, Sequence[Any]]:
    """The values of each name. Entries mostly have the same keys; one look at each entry is then enough."""
    if len(names) > 1:
        with suppress(KeyError):
            return dict(zip(names, zip(*map(itemgetter(*names), entries), strict=True), strict=True))
    return {name: [entry.get(name) for entry in entries] for name in names}


def _values(entries: Sequence[Mapping[str, Any]]) -> dict[str, pa.Array]:
    """The typed columns of entries with any keys."""
    values = _by_name(entries, set().union(*entries))
    return {field.name: pa.array(values[field.name], field.type) for field in _TYPED if field.name in values}


def _table(
    batch: EntryBatch,
    keys: Sequence[str] | None,
    values: Mapping[str, pa.Array],
    rests: list[str | None] | None,
    first_seq: int,
) -> pa.Table:
    count = len(batch)
    none = {field.name: pa.nulls(count, field.type) for field in _TYPED if field.name not in values}
    given = {**values, **none}
    producers = pa.array(batch.producers, pa.string()).take(pa.array(batch.group))
    seqs = pa.array(batch.seqs, pa.int64())
    columns = {
        **given,
        "entry_id": _keys(producers, seqs) if keys is None else pa.array(keys, pa.string()),
        "record_id": _dashed(batch.ids),
        "producer": producers,
        "producer_seq": seqs,
        "seq": pa.array(np.arange(first_seq, first_seq + count)),
        "time": _times(given["ts"]),
        "rest": pa.nulls(count, pa.string()) if rests is None else pa.array(rests, pa.string()),
    }
    return pa.table([columns[name] for name in LANE_SCHEMA.names], schema=LANE_SCHEMA)


def _keys(producers: pa.Array, seqs: pa.Array) -> pa.Array:
    """:func:`iai_mcp.entries.identity.entry_id` of each."""
    return pa.compute.binary_join_element_wise(producers, seqs.cast(pa.string()), KEY_SEPARATOR)


def _dashed(ids: Sequence[str]) -> pa.Array:
    """:func:`iai_mcp.entries.identity.dashed` of each."""
    digits = np.frombuffer("".join(ids).encode("ascii"), np.uint8).reshape(len(ids), 32)
    texts = np.full((len(ids), 36), ord("-"), np.uint8)
    for start, end, dashes in ((0, 8, 0), (8, 12, 1), (12, 16, 2), (16, 20, 3), (20, 32, 4)):
        texts[:, start + dashes : end + dashes] = digits[:, start:end]
    offsets = np.arange(0, 36 * len(ids) + 1, 36, dtype=np.int32)
    return pa.StringArray.from_buffers(len(ids), pa.py_buffer(offsets), pa.py_buffer(texts))


def _times(texts: pa.Array) -> pa.Array:
    """:func:`parse_ts` of each; Arrow reads a column of times with offsets ten times faster."""
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
    """The values of ``entry`` that fit the typed columns, and the rest as JSON. No value is refused."""
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
    """Text with ``?`` for lone surrogates, which no UTF-8 column takes."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _json(value: dict[str, Any]) -> str:
    check_depth(value)  # what a reader cannot decode would hide the record's whole trail
    try:
        return msgspec.json.encode(value, enc_hook=repr).decode()
    except Exception:  # noqa: BLE001  a value's own repr may raise anything
        return _json_of_reprs(value)


def _json_of_reprs(value: dict[str, Any]) -> str:
    try:
        return msgspec.json.encode({str(_plain(str(key))): repr(item) for key, item in value.items()}).decode()
    except Exception as error:  # noqa: BLE001  an OSError among them would be taken for a failing disk
        raise ValueError(f"an entry cannot be written: {type(error).__name__}") from None
