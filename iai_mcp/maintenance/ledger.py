"""The accounting of entries as columns of numbers: each key once, at its most advanced place. Pure.

A key is a producer's code and its sequence number in one integer, so that millions of them are sorted,
compared and counted without a Python object for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iai_mcp.common.arrays import Ints, firsts
from iai_mcp.entries.identity import entry_id

__all__ = ["Account", "Book", "Place", "out_of_order"]

_SEQ_BITS = 40


class Place(IntEnum):
    """Where an entry is, the most advanced first: one that is at several places counts at the first of them."""

    APPLIED = 0
    UNKNOWN = 1
    FORGOTTEN = 2
    DUPLICATE = 3
    DROPPED = 4
    REFUSED = 5
    DEAD = 6
    IN_FLIGHT = 7
    PENDING = 8
    SPILLED = 9
    SET_ASIDE = 10
    ACCEPTED = 11  # lost, and people know


@dataclass(frozen=True, slots=True)
class Account:
    """One producer's entries: what it handed out, where that is, and what is nowhere.

    Attributes:
        handed_out: the highest number seen anywhere.
        counts: entries at each place.
        gaps: numbers that are nowhere, as inclusive ranges.
    """

    producer: str
    handed_out: int
    counts: dict[Place, int]
    gaps: tuple[tuple[int, int], ...]

    @property
    def missing(self) -> int:
        """How many entries are nowhere."""
        return sum(last - first + 1 for first, last in self.gaps)


class Book:
    """Collects keys place by place, then says how the account stands."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._keys: list[Ints] = []
        self._places: list[NDArray[np.int8]] = []

    def keys(self, producers: Sequence[str], index: Any, seqs: Any) -> Ints:
        """Keys of entries whose producers are ``producers[index]``."""
        codes = np.array([self._codes.setdefault(name, len(self._codes)) for name in producers], np.int64)
        base = codes[np.asarray(index, np.int64)] if len(codes) else np.zeros(0, np.int64)
        return np.asarray((base << _SEQ_BITS) | np.asarray(seqs, np.int64), np.int64)

    def add(self, place: Place, keys: Ints) -> None:
        """Note that entries are at ``place``."""
        self._keys.append(keys)
        self._places.append(np.full(len(keys), place, np.int8))

    def add_seqs(self, place: Place, producer: str, seqs: Iterable[int]) -> None:
        """Note entries of one producer."""
        numbers = np.fromiter((seq for seq in seqs if 0 < seq < 1 << _SEQ_BITS), np.int64)
        self.add(place, self.keys([producer], np.zeros(len(numbers), np.int64), numbers))

    def name(self, key: int) -> str:
        """The key as text."""
        return entry_id([*self._codes][int(key) >> _SEQ_BITS], int(key) & ((1 << _SEQ_BITS) - 1))

    def accounts(self) -> list[Account]:
        """How each producer stands."""
        keys = np.concatenate(self._keys) if self._keys else np.zeros(0, np.int64)
        places = np.concatenate(self._places) if self._places else np.zeros(0, np.int8)
        order = np.lexsort((places, keys))
        keys, places = keys[order], places[order]
        first = firsts(keys)
        keys, places = keys[first], places[first]
        codes, seqs = keys >> _SEQ_BITS, keys & ((1 << _SEQ_BITS) - 1)
        counts = np.bincount(codes * len(Place) + places, minlength=len(self._codes) * len(Place))
        highest = np.zeros(len(self._codes), np.int64)
        np.maximum.at(highest, codes, seqs)
        gaps = _gaps(codes, seqs)
        by_code = counts.reshape(-1, len(Place))
        return [
            Account(
                name,
                int(highest[code]),
                {place: int(by_code[code, place]) for place in Place},
                tuple(gaps.get(code, ())),
            )
            for name, code in self._codes.items()
            if highest[code]
        ]


def _gaps(codes: Ints, seqs: Ints) -> dict[int, list[tuple[int, int]]]:
    """For each producer the numbers below its highest that are not there; both columns are sorted."""
    below = np.where(codes[1:] == codes[:-1], seqs[:-1], 0)
    before = np.concatenate((np.zeros(min(1, len(seqs)), np.int64), below))
    found: dict[int, list[tuple[int, int]]] = {}
    for at in np.flatnonzero(seqs - before > 1):
        found.setdefault(int(codes[at]), []).append((int(before[at]) + 1, int(seqs[at]) - 1))
    return found


def out_of_order(records: Ints, seqs: Ints, keys: Ints) -> NDArray[np.bool_]:
    """Which rows are read after a later entry of the same producer for the same record.

    Args:
        records: a code for the record of each row.
        seqs: the lane's own numbers, in whose order (then the producer's) rows are read.
        keys: the entries' keys.
    """
    producers, numbers = keys >> _SEQ_BITS, keys & ((1 << _SEQ_BITS) - 1)
    order = np.lexsort((numbers, seqs, producers, records))
    records, producers, numbers = records[order], producers[order], numbers[order]
    new = np.concatenate(
        (np.zeros(min(1, len(order)), bool), (records[1:] != records[:-1]) | (producers[1:] != producers[:-1]))
    )
    raised = (np.cumsum(new) << _SEQ_BITS) | numbers  # groups above each other: one running maximum serves all
    late = np.zeros(len(order), bool)
    late[order] = raised < np.maximum.accumulate(raised) if len(order) else False
    return late
