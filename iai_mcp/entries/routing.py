"""Routing: the lane of each record, and the entries of one ``enqueue`` sorted into parcels by lane. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast
from uuid import UUID

import msgspec

from iai_mcp.entries.parcel import Pair, Parcel, common_keys, common_texts, select_columns
from iai_mcp.errors import BadParams

__all__ = ["as_list", "lane_of", "lane_of_hex", "route"]


def lane_of(record_id: UUID, lanes: int) -> int:
    """The lane of a record: CRC-32 of its 16 bytes, modulo the number of lanes.

    The bare number would not do: version-1 and hand-made ids differ in a few bits only.
    """
    return zlib.crc32(record_id.bytes) % lanes


def lane_of_hex(digits: str, lanes: int) -> int:
    """:func:`lane_of` for a record id as 32 hexadecimal digits."""
    return zlib.crc32(bytes.fromhex(digits)) % lanes


def route(
    store: str, producer: str, first_seq: int, pairs: Sequence[Pair], lanes: int, pushed: float, reuses: int = 0
) -> list[Parcel]:
    """Number ``pairs`` from ``first_seq`` on and sort them into one parcel for each lane that they touch.

    ``pushed``: Unix time in seconds. ``reuses``: as of :class:`Parcel`.
    """
    entries = [entry for _, entry in pairs]
    shared = common_texts(entries) if entries else {}
    by_lane: dict[int, tuple[list[str], list[int], list[Mapping[str, Any]]]] = {}
    for seq, (record_id, entry) in enumerate(pairs, first_seq):
        raw = record_id.bytes
        lane = zlib.crc32(raw) % lanes
        if lane in by_lane:
            ids, seqs, contents = by_lane[lane]
            ids.append(raw.hex())
            seqs.append(seq)
            contents.append(entry)
        else:
            by_lane[lane] = [raw.hex()], [seq], [entry]
    names = common_keys(entries, shared)
    told: int | msgspec.UnsetType = reuses or msgspec.UNSET
    return [
        Parcel(
            store,
            lane,
            producer,
            pushed,
            ids,
            seqs,
            select_columns(contents, shared, names),
            shared=shared,
            reuses=told,
        )
        for lane, (ids, seqs, contents) in by_lane.items()
    ]


def as_list(pairs: Iterable[object]) -> list[Pair]:
    """The pairs that ``enqueue`` was given, as a list.

    Raises:
        BadParams: they cannot be iterated over.
    """
    try:
        return cast("list[Pair]", [*pairs])
    except TypeError:
        if isinstance(pairs, Iterable):
            raise
        raise BadParams(f"enqueue takes pairs of a UUID and a mapping, not {type(pairs).__name__}") from None
