"""Batches: the entries of one write as columns, the form in which a lane's table takes them. Pure.

A batch is also a sequence of pairs, each built on access: a drain of thousands of entries builds neither a pair
nor a dict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain, compress
from operator import itemgetter
from typing import Any, overload
from uuid import UUID

import numpy as np
import numpy.typing as npt

from iai_mcp.entries.identity import entry_id
from iai_mcp.entries.parcel import EntryColumns, Pair, Parcel, columns_of, rows_of
from iai_mcp.entries.routing import lane_of_hex

__all__ = ["EntryBatch"]


class EntryBatch(Sequence[Pair]):
    """Numbered entries in order; as a sequence, the pairs that ``MemoryStore.append_provenance_batch`` takes.

    Attributes:
        ids: the record that each entry is for, as 32 hexadecimal digits.
        seqs: the producer's number of each entry.
        own: the contents of each entry, without the ``shared`` part of its group.
        group: the group of each entry (an index into ``producers`` and ``shared``), ascending.
        producers: the producer of each group.
        shared: the contents that all entries of a group have in common.
        reuses: of each group, as of :class:`iai_mcp.entries.parcel.Parcel`; None for entries that are made now.
        given: the idempotency keys; None where all are :func:`iai_mcp.entries.identity.entry_id` of producer and
            number. Callers may give an entry a key of their own.
    """

    __slots__ = ("given", "group", "ids", "own", "producers", "reuses", "seqs", "shared")

    def __init__(
        self,
        ids: Sequence[str],
        seqs: Sequence[int],
        own: EntryColumns,
        group: npt.NDArray[np.int64],
        producers: Sequence[str],
        shared: Sequence[Mapping[str, Any]],
        given: Sequence[str] | None = None,
        reuses: Sequence[int] | None = None,
    ) -> None:
        self.ids = ids
        self.seqs = seqs
        self.own = own
        self.group = group
        self.producers = producers
        self.shared = shared
        self.given = given
        self.reuses = reuses

    @classmethod
    def of(cls, parcels: Iterable[Parcel]) -> EntryBatch:
        """The entries of parcels; an ``entry_id`` that a caller gave stays the entry's key."""
        parcels = [parcel for parcel in parcels if parcel.seqs]
        batch = cls(
            [*chain.from_iterable([parcel.ids for parcel in parcels])],
            [*chain.from_iterable([parcel.seqs for parcel in parcels])],
            _together(parcels),
            np.repeat(np.arange(len(parcels)), [len(parcel.seqs) for parcel in parcels]),
            [parcel.producer for parcel in parcels],
            [parcel.shared for parcel in parcels],
            reuses=[parcel.known_reuses for parcel in parcels],
        )
        if "entry_id" in batch.names:
            keys = zip(batch.keys, batch.entries(), strict=True)
            batch.given = [str(entry.get("entry_id") or key) for key, entry in keys]
        return batch

    @classmethod
    def of_pairs(cls, pairs: Sequence[Pair]) -> EntryBatch:
        """Pairs whose entries carry ``entry_id``, ``producer`` and ``producer_seq``."""
        entries = [entry for _, entry in pairs]
        keys = [entry["entry_id"] for entry in entries]
        usual = [entry_id(entry["producer"], entry["producer_seq"]) for entry in entries]
        return cls(
            [record_id.hex for record_id, _ in pairs],
            [entry["producer_seq"] for entry in entries],
            columns_of(entries),
            np.arange(len(entries)),
            [entry["producer"] for entry in entries],
            [{}] * len(entries),
            None if keys == usual else keys,
        )

    def __len__(self) -> int:
        return len(self.seqs)

    @overload
    def __getitem__(self, at: int) -> Pair: ...

    @overload
    def __getitem__(self, at: slice) -> EntryBatch: ...

    def __getitem__(self, at: int | slice) -> Pair | EntryBatch:
        if isinstance(at, int):
            one = self[at:][:1] if at < 0 else self[at : at + 1]
            if not one:
                raise IndexError(at)
            ours = {"entry_id": one.keys[0], "producer": one.producers[0], "producer_seq": one.seqs[0]}
            return UUID(one.ids[0]), {**one.entries()[0], **ours}
        return self._part(itemgetter(at), self.group[at])

    def _part(self, take: Callable[[Any], list[Any]], group: npt.NDArray[np.int64]) -> EntryBatch:
        """A batch of the values that ``take`` selects from each column; ``group`` is selected already.

        It has only the groups that ``group`` refers to, numbered from 0.
        """
        own = self.own
        first, end = (int(group[0]), int(group[-1]) + 1) if len(group) else (0, 0)
        return EntryBatch(
            take(self.ids),
            take(self.seqs),
            take(own) if isinstance(own, list) else {name: take(column) for name, column in own.items()},
            group - first,
            self.producers[first:end],
            self.shared[first:end],
            None if self.given is None else take(self.given),
            None if self.reuses is None else self.reuses[first:end],
        )

    @property
    def names(self) -> set[str]:
        """Every key that occurs in an entry."""
        own = [self.own] if isinstance(self.own, dict) else self.own
        return set().union(*own, *self.shared)

    @property
    def keys(self) -> Sequence[str]:
        """The idempotency key of each entry."""
        return self.given if self.given is not None else [*map(entry_id, self.givers, self.seqs)]

    @property
    def givers(self) -> list[str]:
        """The producer of each entry."""
        return [self.producers[at] for at in self.group.tolist()]

    def entries(self) -> list[dict[str, Any]]:
        """The contents of each entry."""
        shared = (self.shared[at] for at in self.group.tolist())
        return [{**common, **own} for common, own in zip(shared, rows_of(self.own, len(self)), strict=True)]

    def before(self, reused: Mapping[str, int]) -> list[bool] | None:
        """Which entries were handed out before the last reuse of their record's id; None where none was.

        ``reused``: the number of the last reuse of each id that was reused.
        """
        if self.reuses is None or not reused or reused.keys().isdisjoint(self.ids):
            return None
        known = [self.reuses[at] for at in self.group.tolist()]
        found = [reused.get(one, 0) > told for one, told in zip(self.ids, known, strict=True)]
        return found if any(found) else None

    def pick(self, chosen: Sequence[object]) -> EntryBatch:
        """The entries whose value in ``chosen`` is true."""
        group = self.group[np.fromiter(map(bool, chosen), np.bool_, len(self))]
        return self._part(lambda column: [*compress(column, chosen)], group)

    def once(self) -> EntryBatch:
        """The first entry with each key."""
        if self.given is None and len(set(self.producers)) == 1 and len(set(self.seqs)) == len(self):
            return self
        keys = self.keys
        if len(set(keys)) == len(keys):
            return self
        first = {key: at for at, key in reversed([*enumerate(keys)])}
        return self.pick([first[key] == at for at, key in enumerate(keys)])

    def by_lane(self, lanes: int) -> dict[int, EntryBatch]:
        """The entries by lane; only lanes that have some."""
        numbers = [lane_of_hex(one, lanes) for one in self.ids]
        found = set(numbers)
        if len(found) == 1:
            return {numbers[0]: self}
        return {lane: self.pick([number == lane for number in numbers]) for lane in sorted(found)}


def _together(parcels: Sequence[Parcel]) -> EntryColumns:
    """The ``own`` contents of all ``parcels``, one after the other."""
    owns: list[Any] = [parcel.own for parcel in parcels]
    if {*map(type, owns)} == {dict} and len({*map(len, owns)}) == 1:
        with suppress(KeyError):
            return {name: [*chain.from_iterable([own[name] for own in owns])] for name in owns[0]}
    return [*chain.from_iterable([parcel.rows() for parcel in parcels])]
