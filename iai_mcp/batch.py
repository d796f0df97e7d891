"""Entries of one write as columns, the form in which a lane's table takes them. Pure.

To everybody else a batch is a sequence of pairs, each made when it is asked for: a drain of thousands of entries
builds neither a pair nor a dict for any of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from typing import Any, overload
from uuid import UUID

from iai_mcp.entry import Pair, Parcel, entry_id, lane_of

__all__ = ["EntryBatch"]


class EntryBatch(Sequence[Pair]):
    """Numbered entries in order; as a sequence, the pairs that ``MemoryStore.append_provenance_batch`` takes.

    Attributes:
        record_ids: the record that each entry is for.
        keys: idempotency keys.
        producers: who handed each entry out, and ``seqs`` its number there.
        entries: what each entry says beside ``shared``, which is one mapping for all entries of a parcel. Together
            they are what was handed out; the three columns above count where it says otherwise.
    """

    __slots__ = ("entries", "keys", "producers", "record_ids", "seqs", "shared")

    def __init__(
        self,
        record_ids: Sequence[UUID],
        keys: Sequence[str],
        producers: Sequence[str],
        seqs: Sequence[int],
        entries: Sequence[Mapping[str, Any]],
        shared: Sequence[Mapping[str, Any]],
    ) -> None:
        self.record_ids = record_ids
        self.keys = keys
        self.producers = producers
        self.seqs = seqs
        self.entries = entries
        self.shared = shared

    @classmethod
    def of(cls, parcels: Iterable[Parcel]) -> EntryBatch:
        """The entries of parcels; one whose giver gave it an ``entry_id`` keeps that as its key."""
        parcels = [*parcels]
        items = [item for parcel in parcels for item in parcel.entries]
        if not items:
            return cls((), (), (), (), (), ())
        record_ids, seqs, entries = zip(*items, strict=True)
        producers = [parcel.producer for parcel in parcels for _ in parcel.entries]
        keys = [*map(entry_id, producers, seqs)]
        shared = [parcel.shared for parcel in parcels for _ in parcel.entries]
        if "entry_id" in set().union(*entries, *[parcel.shared for parcel in parcels]):
            for at, (entry, said) in enumerate(zip(entries, shared, strict=True)):
                if given := entry.get("entry_id") or said.get("entry_id"):
                    keys[at] = str(given)
        return cls(record_ids, keys, producers, seqs, entries, shared)

    @classmethod
    def of_pairs(cls, pairs: Sequence[Pair]) -> EntryBatch:
        """Pairs whose entries carry ``entry_id``, ``producer`` and ``producer_seq``."""
        entries = [entry for _, entry in pairs]
        return cls(
            [record_id for record_id, _ in pairs],
            [entry["entry_id"] for entry in entries],
            [entry["producer"] for entry in entries],
            [entry["producer_seq"] for entry in entries],
            entries,
            [{}] * len(entries),
        )

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, at: int) -> Pair: ...

    @overload
    def __getitem__(self, at: slice) -> EntryBatch: ...

    def __getitem__(self, at: int | slice) -> Pair | EntryBatch:
        if isinstance(at, slice):
            return EntryBatch(*[column[at] for column in self._columns])
        ours = {"entry_id": self.keys[at], "producer": self.producers[at], "producer_seq": self.seqs[at]}
        return self.record_ids[at], {**self.shared[at], **self.entries[at], **ours}

    @property
    def _columns(self) -> tuple[Any, ...]:
        return self.record_ids, self.keys, self.producers, self.seqs, self.entries, self.shared

    def pick(self, chosen: Sequence[object]) -> EntryBatch:
        """The entries at whose place ``chosen`` is true."""
        return EntryBatch(*[list(compress(column, chosen)) for column in self._columns])

    def once(self) -> EntryBatch:
        """The first entry of each key."""
        if len(set(self.keys)) == len(self.keys):
            return self
        first = {key: at for at, key in reversed([*enumerate(self.keys)])}
        return self.pick([first[key] == at for at, key in enumerate(self.keys)])

    def whole(self) -> EntryBatch:
        """The same entries with nothing shared."""
        entries = [{**said, **entry} for said, entry in zip(self.shared, self.entries, strict=True)]
        return EntryBatch(self.record_ids, self.keys, self.producers, self.seqs, entries, [{}] * len(entries))

    def by_lane(self, lanes: int) -> dict[int, EntryBatch]:
        """The entries of each lane that they touch."""
        numbers = [lane_of(record_id, lanes) for record_id in self.record_ids]
        found = set(numbers)
        if len(found) == 1:
            return {numbers[0]: self}
        return {lane: self.pick([number == lane for number in numbers]) for lane in sorted(found)}
