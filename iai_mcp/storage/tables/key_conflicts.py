"""Finds entries that carry the number of an earlier entry and say something else, and keeps both.

A producer uses each number once. Two processes with one producer id, such as copies of a running virtual machine,
break that, and so does a peer that uses another one's numbers. The entry that comes later gets a key of its own,
made of its number and its contents: none vanishes as a repetition, and a true repetition still has its key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from uuid import UUID

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from iai_mcp.common.arrays import repeated
from iai_mcp.entries.identity import KEY_SEPARATOR, entry_id, second_id
from iai_mcp.entries.parcel import Pair
from iai_mcp.storage.exclusions import Key
from iai_mcp.storage.tables.rows import LANE_SCHEMA, codes, from_row

__all__ = ["Apart", "conflicts", "set_apart"]

_COMPARED = [name for name in LANE_SCHEMA.names if name not in ("entry_id", "seq")]
_DIGITS = 16  # of the contents' hash: nobody can find other contents of one's own with the same
_SECOND = f"{KEY_SEPARATOR}[0-9]+{KEY_SEPARATOR}[0-9a-f]{{{_DIGITS}}}$"


@dataclass(frozen=True, slots=True)
class Apart:
    """Rows to merge, each key once.

    Attributes:
        rows: columns of ``LANE_SCHEMA``.
        second: keys of those that carry the number of an earlier entry, and that the table does not have yet.
        producers: the producers of these.
    """

    rows: pa.Table
    second: tuple[str, ...] = ()
    producers: tuple[str, ...] = ()


def set_apart(
    rows: pa.Table, look_up: Callable[[list[str]], pa.Table], forgotten: Callable[[set[Key]], set[Key]]
) -> Apart:
    """Give a key of its own to each row that differs from an earlier one with its key; drop repeated rows.

    Args:
        rows: columns of ``LANE_SCHEMA``, in order.
        look_up: the rows of the table that have one of the given keys.
        forgotten: those of the given producers and numbers that an entry of a forgotten memory had.
    """
    rows = _with_first_keys(rows)
    there = look_up(rows["entry_id"].unique().to_pylist())
    again = codes(rows["entry_id"])
    is_there = np.asarray(pc.is_in(rows["entry_id"], value_set=there["entry_id"].combine_chunks()), bool)
    taken = _taken(rows.filter(pa.array(~is_there)), forgotten)
    suspect = is_there | np.isin(again, again[repeated(again)])
    suspect |= np.asarray(pc.is_in(rows["entry_id"], value_set=pa.array([*taken], pa.string())), bool)
    if not suspect.any():
        return Apart(rows)
    suspect &= ~np.asarray(_identical(rows, there), bool)
    known: dict[str, list[dict[str, Any]]] = {}
    for row in there.to_pylist() if suspect.any() else ():
        known.setdefault(row["entry_id"], []).append(_contents(row))
    keys: list[str] = rows["entry_id"].to_pylist()
    second: dict[str, str] = {}
    for at in np.flatnonzero(suspect).tolist():
        (row,) = rows.slice(at, 1).to_pylist()
        says, earlier = _contents(row), known.setdefault(row["entry_id"], [])
        if not earlier and row["entry_id"] not in taken:
            earlier.append(says)
        elif says not in earlier and _is_produced(row):
            keys[at] = second_id(row["producer"], row["producer_seq"], _digest(says))
            second[keys[at]] = row["producer"]
    rows = _with_keys(rows, keys)
    rows = rows.filter(pa.array(~repeated(codes(rows["entry_id"]))))
    if second:
        for key in look_up([*second])["entry_id"].to_pylist():
            second.pop(key, None)
    return Apart(rows, tuple(second), tuple(sorted({*second.values()})))


def _taken(rows: pa.Table, forgotten: Callable[[set[Key]], set[Key]]) -> set[str]:
    """The plain keys that an entry of a forgotten memory had: an entry that met it has a second key already."""
    numbers = {*zip(rows["producer"].to_pylist(), rows["producer_seq"].to_pylist(), strict=True)}
    return {entry_id(*number) for number in forgotten(numbers)} if numbers else set()


def _with_first_keys(rows: pa.Table) -> pa.Table:
    """The rows with the plain key of their number, where they have a second one.

    Rows of another store may have either: in each store, the entry that came first has the plain key.
    """
    second = np.flatnonzero(np.asarray(pc.match_substring_regex(rows["entry_id"], _SECOND), bool)).tolist()
    if not second:
        return rows
    keys: list[str] = rows["entry_id"].to_pylist()
    for at in second:
        (row,) = rows.slice(at, 1).to_pylist()
        producer, seq = row["producer"], row["producer_seq"]
        says = _contents({**row, "entry_id": entry_id(producer, seq)})
        if keys[at] == second_id(producer, seq, _digest(says)):
            keys[at] = entry_id(producer, seq)
    return _with_keys(rows, keys)


def _with_keys(rows: pa.Table, keys: list[str]) -> pa.Table:
    place = LANE_SCHEMA.get_field_index("entry_id")
    return rows.set_column(place, LANE_SCHEMA.field("entry_id"), pa.array(keys, pa.string()))


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
    return (row for row in rows.to_pylist() if _is_produced(row))


def _is_produced(row: Mapping[str, Any]) -> bool:
    """Whether the key spells the producer and the number."""
    return bool(row["entry_id"] == entry_id(row["producer"], row["producer_seq"]))


def _digest(says: dict[str, Any]) -> str:
    return sha256(msgspec.json.encode(says, order="deterministic")).hexdigest()[:_DIGITS]


def _contents(row: Mapping[str, Any]) -> dict[str, Any]:
    """What an entry says, without the lane's number. Null and NaN are left out: JSON spells both as null."""
    entry = from_row(row)
    return {key: value for key, value in entry.items() if key != "seq" and value is not None and value == value}


def _pair(row: Mapping[str, Any]) -> Pair:
    entry = {key: value for key, value in from_row(row).items() if key not in ("seq", "record_id")}
    return UUID(row["record_id"]), entry
