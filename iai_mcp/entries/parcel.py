"""Parcels: provenance entries on their way to the store, as columns. Pure.

A *parcel* holds what one ``enqueue`` puts into one lane: a run of one producer's sequence numbers. A broker
list, a spill file (one parcel a line) and a drain's acknowledgement all count in parcels.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any
from uuid import UUID

import msgspec

__all__ = [
    "WIRE_VERSION",
    "EntryColumns",
    "Pair",
    "Parcel",
    "columns_of",
    "common_keys",
    "common_texts",
    "halves",
    "rows_of",
    "select_columns",
]

Pair = tuple[UUID, dict[str, Any]]
"""A record's id and one provenance entry for it."""

EntryColumns = dict[str, list[Any]] | list[dict[str, Any]]
"""The contents of entries: a column for each key, or a dict for each entry where their keys differ."""

WIRE_VERSION = 1


class Parcel(msgspec.Struct, frozen=True):
    """Entries of one producer for one lane, in the producer's order.

    Attributes:
        store: id of the store they belong to.
        lane: lane number, ``0 <= lane < L``.
        producer: key of the queue that numbered them.
        pushed: Unix time in seconds of the ``enqueue``; the linger and ages count from it.
        ids: the record of each entry, as 32 hexadecimal digits.
        seqs: the producer's number of each entry, ascending.
        own: the contents of each entry, without the ``shared`` part.
        shared: the contents that all entries have in common. The hits of one recall differ in rank and score
            only: with ten hits this saves two fifths of the bytes in Redis, on its disk and in the spill.
        v: wire version. A reader ignores fields that it does not know; a change that it must know raises ``v``.
        reuses: how often the store had used a forgotten id again, as far as the producer knew; absent on the wire
            for 0. Entries from before the last reuse of their record's id belong to a forgotten record.
        trace: W3C ``traceparent`` of the caller; absent on the wire while tracing is off.
    """

    store: str
    lane: int
    producer: str
    pushed: float
    ids: list[str]
    seqs: list[int]
    own: EntryColumns
    v: int = WIRE_VERSION
    trace: Any = msgspec.UNSET  # of any type: a bad value must not cost the entries
    shared: dict[str, Any] = {}
    reuses: int | msgspec.UnsetType = msgspec.UNSET

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
        ids, seqs, contents = [], [], []
        for record_id, seq, entry in entries:
            ids.append(record_id.hex)
            seqs.append(seq)
            contents.append(entry)
        own = columns_of(contents)
        return cls(store, lane, producer, pushed, ids, seqs, own, shared=shared or {}, trace=trace)

    @property
    def known_reuses(self) -> int:
        """``reuses``, 0 where it is absent."""
        return 0 if self.reuses is msgspec.UNSET else self.reuses

    def rows(self) -> list[dict[str, Any]]:
        """The contents of each entry, without the ``shared`` part."""
        return rows_of(self.own, len(self.seqs))

    def handed_out(self) -> Iterator[tuple[UUID, int, dict[str, Any]]]:
        """``(record_id, producer_seq, entry)``, each entry whole."""
        for record_id, seq, own in zip(self.ids, self.seqs, self.rows(), strict=True):
            yield UUID(record_id), seq, {**self.shared, **own}


def columns_of(entries: Sequence[Mapping[str, Any]]) -> EntryColumns:
    """The contents of ``entries``, copied: callers may go on using their dicts."""
    return select_columns(entries, (), common_keys(entries))


def select_columns(
    entries: Sequence[Mapping[str, Any]], excluded: Collection[str], names: list[str] | None
) -> EntryColumns:
    """The contents of ``entries`` without the ``excluded`` keys, copied.

    Args:
        names: the other keys, from :func:`common_keys`; None where they may differ from entry to entry.
    """
    if names is not None:
        try:
            return {name: [entry[name] for entry in entries] for name in names}
        except KeyError:
            pass
    return [{key: value for key, value in entry.items() if key not in excluded} for entry in entries]


def rows_of(columns: EntryColumns, count: int) -> list[dict[str, Any]]:
    """``columns`` of ``count`` entries as a dict for each entry."""
    if isinstance(columns, list):
        return columns
    if not columns:
        return [{} for _ in range(count)]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def common_keys(entries: Sequence[Mapping[str, Any]], excluded: Collection[str] = ()) -> list[str] | None:
    """The keys of the first entry without the ``excluded`` ones; None where entries differ in length."""
    count = len(entries[0]) if entries else 0
    for entry in entries:
        if len(entry) != count:
            return None
    return [name for name in entries[0] if name not in excluded] if count else None


def common_texts(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The texts that all ``entries`` (at least one) have in common.

    Only texts count: 1, 1.0 and True are equal, but not the same.
    """
    shared = {key: value for key, value in entries[0].items() if type(value) is str}
    if len(shared) > 1:
        texts = itemgetter(*shared)
        first = texts(entries[0])
        try:
            for entry in entries:
                if texts(entry) != first:
                    break
            else:  # the quick way: the hits of one recall share all their texts
                return shared
        except KeyError:
            pass
    for entry in entries[1:]:
        shared = {key: value for key, value in shared.items() if entry.get(key) == value}
    return shared


def halves(parcel: Parcel) -> tuple[Parcel, Parcel]:
    """The first and the second half of a parcel of several entries."""
    middle = len(parcel.seqs) // 2
    return _part(parcel, slice(middle)), _part(parcel, slice(middle, None))


def _part(parcel: Parcel, at: slice) -> Parcel:
    own = parcel.own
    return msgspec.structs.replace(
        parcel,
        ids=parcel.ids[at],
        seqs=parcel.seqs[at],
        own=own[at] if isinstance(own, list) else {name: column[at] for name, column in own.items()},
    )
