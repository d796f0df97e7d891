"""Provenance entries on their way to the store: their keys, their lanes and their wire form. Pure.

A *parcel* is what one ``enqueue`` puts into one lane: one producer, one run of its sequence numbers. It is
the unit that a broker list holds, that a spill file holds (one parcel a line) and that a drain acknowledges.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from operator import itemgetter
from typing import Any
from uuid import UUID

import msgspec

from iai_mcp.errors import MalformedParcel

__all__ = [
    "Outline",
    "Pair",
    "Parcel",
    "Said",
    "are_ids",
    "columns_of",
    "dashed",
    "decode",
    "decode_all",
    "encode",
    "entry_id",
    "lane_of",
    "lane_of_hex",
    "outline",
    "route",
    "rows_of",
]

Pair = tuple[UUID, dict[str, Any]]
"""A record's id and one provenance entry for it."""

WIRE_VERSION = 3  # 1 and 2 had entries one by one, 1 nothing ``shared``

Said = dict[str, list[Any]] | list[dict[str, Any]]
"""What entries say: a column for each key, or, where they do not all have the same keys, one dict for each."""


class Parcel(msgspec.Struct, frozen=True):
    """Entries of one producer for one lane, in the producer's order, as columns.

    Attributes:
        store: id of the store they belong to.
        lane: lane number, ``0 <= lane < L``.
        producer: key of the queue that handed them out.
        pushed: Unix time in seconds at which ``enqueue`` took them; the linger and ages count from it.
        ids: the record of each entry, as 32 hexadecimal digits.
        seqs: the producer's number of each, ascending.
        own: what each says beside ``shared``.
        shared: what every entry says. The hits of one recall differ in their rank and score only: for ten
            hits Redis, its disk and the spill have two fifths fewer bytes to hold.
        v: version of this wire form. Fields that a reader does not know it leaves alone; what it must know
            comes with a new version.
        trace: W3C ``traceparent`` of whoever handed them out; left out of the wire form where nobody traces.
    """

    store: str
    lane: int
    producer: str
    pushed: float
    ids: list[str]
    seqs: list[int]
    own: Said
    v: int = WIRE_VERSION
    trace: Any = msgspec.UNSET  # whatever stands here, the entries count
    shared: dict[str, Any] = {}

    @classmethod
    def of(
        cls,
        store: str,
        lane: int,
        producer: str,
        pushed: float,
        entries: Iterable[tuple[UUID, int, dict[str, Any]]],
        shared: dict[str, Any] | None = None,
        trace: Any = msgspec.UNSET,
    ) -> Parcel:
        """A parcel of ``(record_id, producer_seq, entry)``."""
        ids, seqs, said = [], [], []
        for record_id, seq, entry in entries:
            ids.append(record_id.hex)
            seqs.append(seq)
            said.append(entry)
        return cls(store, lane, producer, pushed, ids, seqs, columns_of(said), shared=shared or {}, trace=trace)

    def rows(self) -> list[dict[str, Any]]:
        """What each entry says beside ``shared``."""
        return rows_of(self.own, len(self.seqs))

    def handed_out(self) -> Iterator[tuple[UUID, int, dict[str, Any]]]:
        """``(record_id, producer_seq, entry)``, each entry whole."""
        for record_id, seq, own in zip(self.ids, self.seqs, self.rows(), strict=True):
            yield UUID(record_id), seq, {**self.shared, **own}


class _Early(msgspec.Struct, frozen=True):
    """A parcel of the wire versions 1 and 2."""

    store: str
    lane: int
    producer: str
    pushed: float
    entries: list[tuple[UUID, int, dict[str, Any]]]
    v: int = 1
    trace: Any = msgspec.UNSET
    shared: dict[str, Any] = {}


class _Version(msgspec.Struct, frozen=True):
    """Of a parcel of whatever wire version, just that."""

    v: int = 0


class Outline(msgspec.Struct, frozen=True):
    """Whose entries a parcel holds, of whatever wire version; what they say is left undecoded."""

    store: str
    producer: str
    ids: list[str]
    seqs: list[int]
    pushed: float = 0.0


class _EarlyOutline(msgspec.Struct, frozen=True):
    store: str
    producer: str
    entries: list[tuple[UUID, int, msgspec.Raw]]
    pushed: float = 0.0


_NO_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_decoder = msgspec.json.Decoder(Parcel)
_early_decoder = msgspec.json.Decoder(_Early)
_version_decoder = msgspec.json.Decoder(_Version)
_outliner = msgspec.json.Decoder(Outline)
_early_outliner = msgspec.json.Decoder(_EarlyOutline)
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
    except _NO_JSON as error:
        _refuse_later(raw)
        with suppress(*_NO_JSON):
            early = _early_decoder.decode(raw)
            return Parcel.of(
                early.store, early.lane, early.producer, early.pushed, early.entries, early.shared, early.trace
            )
        raise MalformedParcel(f"not a provenance parcel: {error}") from None
    if parcel.v > WIRE_VERSION:
        _refuse_later(raw)
    if not _fit([parcel]):
        raise MalformedParcel("not a provenance parcel: its columns differ in length, or an id is no UUID")
    return parcel


def _refuse_later(raw: bytes) -> None:
    with suppress(*_NO_JSON):
        if (version := _version_decoder.decode(raw).v) > WIRE_VERSION:
            raise MalformedParcel(f"written by a later version (wire version {version}); upgrade this process")


def decode_all(raws: Sequence[bytes]) -> list[Parcel | MalformedParcel]:
    """What :func:`decode` makes of each, or why it makes nothing of it; many at once take half as long."""
    with suppress(*_NO_JSON):
        parcels = [*map(_decoder.decode, raws)]
        if all(parcel.v <= WIRE_VERSION for parcel in parcels) and _fit(parcels):
            return [*parcels]
    return [*map(_tried, raws)]


def _tried(raw: bytes) -> Parcel | MalformedParcel:
    try:
        return decode(raw)
    except MalformedParcel as error:
        return error


def _fit(parcels: Sequence[Parcel]) -> bool:
    """Whether in each of these all columns are of one length, and the ids are ids."""
    ids, owns = [parcel.ids for parcel in parcels], [parcel.own for parcel in parcels]
    columns = [[*own.values()] if isinstance(own, dict) else [own] for own in owns]
    counts = [len(parcel.seqs) for parcel in parcels]
    lengths = [*map(len, chain.from_iterable(columns))]
    return (
        [*map(len, ids)] == counts
        and lengths == [count for count, some in zip(counts, columns, strict=True) for _ in some]
        and are_ids([*chain.from_iterable(ids)])
    )


def outline(raw: bytes) -> Outline | None:
    """What can be told of a parcel (a line of a spill, or an item of a lane); None if nothing."""
    raw = raw[max(0, raw.find(b"{")) :]
    with suppress(*_NO_JSON):
        return _outliner.decode(raw)
    with suppress(*_NO_JSON):
        early = _early_outliner.decode(raw)
        ids, seqs = [one.hex for one, _, _ in early.entries], [seq for _, seq, _ in early.entries]
        return Outline(early.store, early.producer, ids, seqs, early.pushed)
    return None


def entry_id(producer: str, producer_seq: int) -> str:
    """The idempotency key of an entry: it names the producer and orders its stream, and costs no UUID."""
    return f"{producer}-{producer_seq}"


def are_ids(texts: Sequence[str]) -> bool:
    """Whether each of these texts is a record id as a parcel has it: 32 hexadecimal digits in lower case."""
    digits = "".join(texts)
    try:
        return bytes.fromhex(digits).hex() == digits and {*map(len, texts)} <= {32}
    except ValueError:
        return False


def dashed(digits: str) -> str:
    """A record id's 32 hexadecimal digits as the text that everybody knows."""
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def lane_of(record_id: UUID, lanes: int) -> int:
    """The lane of a record: CRC-32 of its 16 bytes, modulo the number of lanes.

    A checksum and not the bare number, since version-1 and hand-made ids differ in a few bits only.
    """
    return zlib.crc32(record_id.bytes) % lanes


def lane_of_hex(digits: str, lanes: int) -> int:
    """:func:`lane_of` of a record id as 32 hexadecimal digits."""
    return zlib.crc32(bytes.fromhex(digits)) % lanes


def route(
    store: str, producer: str, first_seq: int, pairs: Sequence[Pair], lanes: int, pushed: float
) -> list[Parcel]:
    """Number ``pairs`` from ``first_seq`` on and sort them into one parcel per lane that they touch."""
    entries = [entry for _, entry in pairs]
    shared = _shared(entries) if entries else {}
    by_lane: dict[int, tuple[list[str], list[int], list[Mapping[str, Any]]]] = {}
    for seq, (record_id, entry) in enumerate(pairs, first_seq):
        raw = record_id.bytes
        lane = zlib.crc32(raw) % lanes
        if lane in by_lane:
            ids, seqs, said = by_lane[lane]
            ids.append(raw.hex())
            seqs.append(seq)
            said.append(entry)
        else:
            by_lane[lane] = [raw.hex()], [seq], [entry]
    names = _names(entries, shared)
    return [
        Parcel(store, lane, producer, pushed, ids, seqs, _own(said, shared, names), shared=shared)
        for lane, (ids, seqs, said) in by_lane.items()
    ]


def _shared(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The texts that all ``entries`` say; only texts, since 1, 1.0 and True are equal and not the same."""
    shared = {key: value for key, value in entries[0].items() if type(value) is str}
    if len(shared) > 1:
        texts = itemgetter(*shared)
        said = texts(entries[0])
        try:
            for entry in entries:
                if texts(entry) != said:
                    break
            else:  # the hits of one recall share all of their texts, which is soon seen
                return shared
        except KeyError:
            pass
    for entry in entries[1:]:
        shared = {key: value for key, value in shared.items() if entry.get(key) == value}
    return shared


def columns_of(entries: Sequence[Mapping[str, Any]]) -> Said:
    """What ``entries`` say; copied, since whoever gave them may go on using them."""
    return _own(entries, (), _names(entries, ()))


def _names(entries: Sequence[Mapping[str, Any]], but: Collection[str]) -> list[str] | None:
    """The keys of all ``entries`` but for some; None where they may have different ones."""
    count = len(entries[0]) if entries else 0
    for entry in entries:
        if len(entry) != count:
            return None
    return [name for name in entries[0] if name not in but] if count else None


def _own(entries: Sequence[Mapping[str, Any]], but: Collection[str], names: list[str] | None) -> Said:
    if names is not None:
        try:
            return {name: [entry[name] for entry in entries] for name in names}
        except KeyError:
            pass
    return [{key: value for key, value in entry.items() if key not in but} for entry in entries]


def rows_of(said: Said, count: int) -> list[dict[str, Any]]:
    """What ``count`` entries say, a dict for each."""
    if isinstance(said, list):
        return said
    if not said:
        return [{} for _ in range(count)]
    return [dict(zip(said, row, strict=True)) for row in zip(*said.values(), strict=True)]
