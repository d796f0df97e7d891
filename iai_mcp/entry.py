"""Provenance entries on their way to the store: their keys, their lanes and their wire form. Pure.

A *parcel* is what one ``enqueue`` puts into one lane: one producer, one run of its sequence numbers. It is
the unit that a broker list holds, that a spill file holds (one parcel a line) and that a drain acknowledges.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any
from uuid import UUID

import msgspec

from iai_mcp.errors import MalformedParcel

__all__ = [
    "Outline",
    "Pair",
    "Parcel",
    "decode",
    "encode",
    "entry_id",
    "lane_of",
    "outline",
    "parse_ts",
    "route",
]

Pair = tuple[UUID, dict[str, Any]]
"""A record's id and one provenance entry for it."""

WIRE_VERSION = 2  # 1 had nothing ``shared``


class Parcel(msgspec.Struct, frozen=True):
    """Entries of one producer for one lane, in the producer's order.

    Attributes:
        store: id of the store they belong to.
        lane: lane number, ``0 <= lane < L``.
        producer: key of the queue that handed them out.
        pushed: Unix time in seconds at which ``enqueue`` took them; the linger and ages count from it.
        entries: ``(record_id, producer_seq, own)``, ``producer_seq`` ascending; ``own`` is what this one says
            beside ``shared``.
        shared: what every entry says. The hits of one recall differ in their rank and score only: for ten
            hits Redis, its disk and the spill have a third fewer bytes to hold.
        v: version of this wire form. Fields that a reader does not know it leaves alone; what it must know
            comes with a new version.
        trace: W3C ``traceparent`` of whoever handed them out; left out of the wire form where nobody traces.
    """

    store: str
    lane: int
    producer: str
    pushed: float
    entries: list[tuple[UUID, int, dict[str, Any]]]
    v: int = WIRE_VERSION
    trace: Any = msgspec.UNSET  # whatever stands here, the entries count
    shared: dict[str, Any] = {}

    def handed_out(self) -> Iterator[tuple[UUID, int, dict[str, Any]]]:
        """``(record_id, producer_seq, entry)``, each entry whole."""
        return ((record_id, seq, {**self.shared, **own}) for record_id, seq, own in self.entries)


class Outline(msgspec.Struct, frozen=True):
    """Whose entries a parcel holds, of whatever wire version; what they say is left undecoded."""

    store: str
    producer: str
    entries: list[tuple[UUID, int, msgspec.Raw]]
    pushed: float = 0.0

    @property
    def seqs(self) -> list[int]:
        """The numbers of the entries."""
        return [seq for _, seq, _ in self.entries]


_decoder = msgspec.json.Decoder(Parcel)
_outliner = msgspec.json.Decoder(Outline)
_encoder = msgspec.json.Encoder(enc_hook=repr)  # an entry may hold anything; what JSON lacks is kept as text


def encode(parcel: Parcel) -> bytes:
    """One line of JSON, without the newline."""
    return _encoder.encode(parcel)


def decode(raw: bytes) -> Parcel:
    """The parcel in ``raw``.

    Raises:
        MalformedParcel: not JSON, not a parcel, or a parcel of a later wire version.
    """
    try:
        parcel = _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedParcel(f"not a provenance parcel: {error}") from None
    if parcel.v > WIRE_VERSION:
        raise MalformedParcel(f"written by a later version (wire version {parcel.v}); upgrade this process")
    return parcel


def outline(raw: bytes) -> Outline | None:
    """What can be told of a parcel (a line of a spill, or an item of a lane with its header); None if nothing."""
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _outliner.decode(raw[max(0, raw.find(b"{")) :])
    return None


def entry_id(producer: str, producer_seq: int) -> str:
    """The idempotency key of an entry: it names the producer and orders its stream, and costs no UUID."""
    return f"{producer}-{producer_seq}"


def lane_of(record_id: UUID, lanes: int) -> int:
    """The lane of a record: CRC-32 of its 16 bytes, modulo the number of lanes.

    A checksum and not the bare number, since version-1 and hand-made ids differ in a few bits only.
    """
    return zlib.crc32(record_id.int.to_bytes(16, "big")) % lanes


def route(
    store: str, producer: str, first_seq: int, pairs: Sequence[Pair], lanes: int, pushed: float
) -> list[Parcel]:
    """Number ``pairs`` from ``first_seq`` on and sort them into one parcel per lane that they touch."""
    by_lane: dict[int, list[tuple[UUID, int, dict[str, Any]]]] = {}
    shared = _shared([data for _, data in pairs]) if pairs else {}
    for seq, (record_id, data) in enumerate(pairs, first_seq):
        lane = zlib.crc32(record_id.bytes) % lanes
        own = dict(data)  # the caller may go on using its dict
        for key in shared:
            del own[key]
        item = (record_id, seq, own)
        if lane in by_lane:
            by_lane[lane].append(item)
        else:
            by_lane[lane] = [item]
    return [Parcel(store, lane, producer, pushed, items, shared=shared) for lane, items in by_lane.items()]


def _shared(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The texts that all ``entries`` say; only texts, since 1, 1.0 and True are equal and not the same."""
    shared = {key: value for key, value in entries[0].items() if type(value) is str}
    if len(shared) > 1:
        with suppress(KeyError):  # the hits of one recall share all of their texts, which is soon seen
            texts = itemgetter(*shared)
            said = texts(entries[0])
            if all(texts(entry) == said for entry in entries):
                return shared
    for entry in entries[1:]:
        shared = {key: value for key, value in shared.items() if entry.get(key) == value}
    return shared


def parse_ts(ts: object) -> datetime | None:
    """``ts`` as an aware UTC time where it is ISO 8601 (naive means UTC), else None."""
    if not isinstance(ts, str):
        return None
    try:
        time = datetime.fromisoformat(ts)
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def text_of(entry: Mapping[str, Any], key: str) -> str | None:
    """``entry[key]`` where it is text."""
    value = entry.get(key)
    return value if isinstance(value, str) else None
