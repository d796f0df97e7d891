"""Entries of one write as columns, the form in which a lane's table takes them. Pure.

To everybody else a batch is a sequence of pairs, each made when it is asked for: a drain of thousands of entries
builds neither a pair nor a dict for any of them.
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

from iai_mcp.entries.parcel import Pair, Parcel, Said, columns_of, entry_id, lane_of_hex, rows_of

__all__ = ["EntryBatch"]


class EntryBatch(Sequence[Pair]):
    """Numbered entries in order; as a sequence, the pairs that ``MemoryStore.append_provenance_batch`` takes.

    Attributes:
        ids: the record that each entry is for, as 32 hexadecimal digits.
        seqs: its number at whoever handed it out.
        own: what each entry says beside what its group shares, as in a parcel.
        group: which of the groups each belongs to, ascending.
        producers: of each group, who handed its entries out, and ``shared`` what all of them say.
        given: the idempotency keys; None where they are what :func:`iai_mcp.entries.parcel.entry_id` makes of
            producer and number, which is so unless somebody gave an entry a key of their own.
    """

    __slots__ = ("given", "group", "ids", "own", "producers", "seqs", "shared")

    def __init__(
        self,
        ids: Sequence[str],
        seqs: Sequence[int],
        own: Said,
        group: npt.NDArray[np.int64],
        producers: Sequence[str],
        shared: Sequence[Mapping[str, Any]],
        given: Sequence[str] | None = None,
    ) -> None:
        self.ids = ids
        self.seqs = seqs
        self.own = own
        self.group = group
        self.producers = producers
        self.shared = shared
        self.given = given

    @classmethod
    def of(cls, parcels: Iterable[Parcel]) -> EntryBatch:
        """The entries of parcels; one whose giver gave it an ``entry_id`` keeps that as its key."""
        parcels = [parcel for parcel in parcels if parcel.seqs]
        batch = cls(
            [*chain.from_iterable([parcel.ids for parcel in parcels])],
            [*chain.from_iterable([parcel.seqs for parcel in parcels])],
            _together(parcels),
            np.repeat(np.arange(len(parcels)), [len(parcel.seqs) for parcel in parcels]),
            [parcel.producer for parcel in parcels],
            [parcel.shared for parcel in parcels],
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
        """What ``take`` takes of each column; ``group`` is what is left of that one."""
        own = self.own
        return EntryBatch(
            take(self.ids),
            take(self.seqs),
            take(own) if isinstance(own, list) else {name: take(column) for name, column in own.items()},
            *self._groups(group),
            None if self.given is None else take(self.given),
        )

    def _groups(self, group: npt.NDArray[np.int64]) -> tuple[Any, Sequence[str], Sequence[Mapping[str, Any]]]:
        """Of the groups only those that ``group`` needs, numbered from 0."""
        if not len(group):
            return group, (), ()
        first, end = int(group[0]), int(group[-1]) + 1
        return group - first, self.producers[first:end], self.shared[first:end]

    @property
    def names(self) -> set[str]:
        """The keys that any entry has."""
        own = [self.own] if isinstance(self.own, dict) else self.own
        return set().union(*own, *self.shared)

    @property
    def keys(self) -> Sequence[str]:
        """Idempotency keys."""
        return self.given if self.given is not None else [*map(entry_id, self.givers, self.seqs)]

    @property
    def givers(self) -> list[str]:
        """Who handed each entry out."""
        return [self.producers[at] for at in self.group.tolist()]

    def entries(self) -> list[dict[str, Any]]:
        """What each entry says."""
        said = (self.shared[at] for at in self.group.tolist())
        return [{**shared, **own} for shared, own in zip(said, rows_of(self.own, len(self)), strict=True)]

    def pick(self, chosen: Sequence[object]) -> EntryBatch:
        """The entries at whose place ``chosen`` is true."""
        group = self.group[np.fromiter(map(bool, chosen), np.bool_, len(self))]
        return self._part(lambda column: [*compress(column, chosen)], group)

    def once(self) -> EntryBatch:
        """The first entry of each key."""
        if self.given is None and len(set(self.producers)) == 1 and len(set(self.seqs)) == len(self):
            return self
        keys = self.keys
        if len(set(keys)) == len(keys):
            return self
        first = {key: at for at, key in reversed([*enumerate(keys)])}
        return self.pick([first[key] == at for at, key in enumerate(keys)])

    def by_lane(self, lanes: int) -> dict[int, EntryBatch]:
        """The entries of each lane that they touch."""
        numbers = [lane_of_hex(one, lanes) for one in self.ids]
        found = set(numbers)
        if len(found) == 1:
            return {numbers[0]: self}
        return {lane: self.pick([number == lane for number in numbers]) for lane in sorted(found)}


def _together(parcels: Sequence[Parcel]) -> Said:
    """What the entries of all ``parcels`` say for themselves."""
    owns: list[Any] = [parcel.own for parcel in parcels]
    if {*map(type, owns)} == {dict} and len({*map(len, owns)}) == 1:
        with suppress(KeyError):
            return {name: [*chain.from_iterable([own[name] for own in owns])] for name in owns[0]}
    return [*chain.from_iterable([parcel.rows() for parcel in parcels])]
