"""A ledger of every entry, as columns of numbers: each key counts once, in its most advanced state. Pure.

A key is a producer's code and its sequence number in one integer. So millions of keys are sorted, compared and
counted without a Python object for each.
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

__all__ = ["EntryState", "LedgerBuilder", "ProducerLedger", "out_of_order"]

_SEQ_BITS = 40


class EntryState(IntEnum):
    """What became of an entry, the most advanced state first.

    An entry that is found in several states counts in the first of them.
    """

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
    ACCEPTED = 11  # lost, and an operator accepted the loss
    UNPROVEN = 12  # perhaps a dead letter: one without a valid proof says that it is this entry


@dataclass(frozen=True, slots=True)
class ProducerLedger:
    """One producer's entries.

    Attributes:
        handed_out: the highest sequence number that was found, or that it said.
        counts: number of entries in each state.
        gaps: numbers that were not found anywhere, as inclusive ranges.
    """

    producer: str
    handed_out: int
    counts: dict[EntryState, int]
    gaps: tuple[tuple[int, int], ...]

    @property
    def missing(self) -> int:
        """Number of entries that were not found."""
        return sum(last - first + 1 for first, last in self.gaps)


class LedgerBuilder:
    """Collects keys state by state, then builds the ledger of each producer."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._keys: list[Ints] = []
        self._states: list[NDArray[np.int8]] = []
        self._expected: dict[str, int] = {}

    def keys(self, producers: Sequence[str], index: Any, seqs: Any) -> Ints:
        """Make the keys of entries.

        Args:
            producers: distinct names.
            index: for each entry, the position of its producer in ``producers``.
            seqs: for each entry, its sequence number, from 1.
        """
        codes = np.array([self._codes.setdefault(name, len(self._codes)) for name in producers], np.int64)
        base = codes[np.asarray(index, np.int64)] if len(codes) else np.zeros(0, np.int64)
        return np.asarray((base << _SEQ_BITS) | np.asarray(seqs, np.int64), np.int64)

    def add(self, state: EntryState, keys: Ints) -> None:
        """Add entries in ``state``."""
        self._keys.append(keys)
        self._states.append(np.full(len(keys), state, np.int8))

    def add_seqs(self, state: EntryState, producer: str, seqs: Iterable[int]) -> None:
        """Add entries of one producer; numbers out of range are ignored."""
        numbers = np.fromiter((seq for seq in seqs if 0 < seq < 1 << _SEQ_BITS), np.int64)
        self.add(state, self.keys([producer], np.zeros(len(numbers), np.int64), numbers))

    def fill(self, state: EntryState, keys: Iterable[tuple[str, int]]) -> None:
        """Add ``keys`` where a known producer has handed out as many entries; others say nothing sure."""
        highest = dict(self._expected)
        names = [*self._codes]
        for some in self._keys:
            codes, seqs = some >> _SEQ_BITS, some & ((1 << _SEQ_BITS) - 1)
            tops = np.zeros(len(names), np.int64)
            np.maximum.at(tops, codes, seqs)
            for code in np.flatnonzero(tops):
                highest[names[code]] = max(highest.get(names[code], 0), int(tops[code]))
        by_producer: dict[str, list[int]] = {}
        for producer, seq in keys:
            if 0 < seq <= highest.get(producer, 0):
                by_producer.setdefault(producer, []).append(seq)
        for producer, known in by_producer.items():
            self.add_seqs(state, producer, known)

    def expect(self, producer: str, handed_out: int) -> None:
        """Note that a producer has handed out as many entries, wherever they are."""
        if 0 < handed_out < 1 << _SEQ_BITS:
            self._codes.setdefault(producer, len(self._codes))
            self._expected[producer] = max(handed_out, self._expected.get(producer, 0))

    def name(self, key: int) -> str:
        """A key as text: the producer, a hyphen, the sequence number."""
        return entry_id([*self._codes][int(key) >> _SEQ_BITS], int(key) & ((1 << _SEQ_BITS) - 1))

    def build(self) -> list[ProducerLedger]:
        """The ledger of each producer that handed out an entry."""
        keys = np.concatenate(self._keys) if self._keys else np.zeros(0, np.int64)
        states = np.concatenate(self._states) if self._states else np.zeros(0, np.int8)
        order = np.lexsort((states, keys))
        keys, states = keys[order], states[order]
        first = firsts(keys)
        keys, states = keys[first], states[first]
        codes, seqs = keys >> _SEQ_BITS, keys & ((1 << _SEQ_BITS) - 1)
        counts = np.bincount(codes * len(EntryState) + states, minlength=len(self._codes) * len(EntryState))
        highest = np.zeros(len(self._codes), np.int64)
        np.maximum.at(highest, codes, seqs)
        gaps = _gaps(codes, seqs)
        for producer, handed_out in self._expected.items():
            code = self._codes[producer]
            if highest[code] < handed_out:
                gaps.setdefault(code, []).append((int(highest[code]) + 1, handed_out))
                highest[code] = handed_out
        by_code = counts.reshape(-1, len(EntryState))
        return [
            ProducerLedger(
                name,
                int(highest[code]),
                {state: int(by_code[code, state]) for state in EntryState},
                tuple(gaps.get(code, ())),
            )
            for name, code in self._codes.items()
            if highest[code]
        ]


def _gaps(codes: Ints, seqs: Ints) -> dict[int, list[tuple[int, int]]]:
    """For each producer, the missing numbers below its highest. Both columns are sorted."""
    below = np.where(codes[1:] == codes[:-1], seqs[:-1], 0)
    before = np.concatenate((np.zeros(min(1, len(seqs)), np.int64), below))
    found: dict[int, list[tuple[int, int]]] = {}
    for at in np.flatnonzero(seqs - before > 1):
        found.setdefault(int(codes[at]), []).append((int(before[at]) + 1, int(seqs[at]) - 1))
    return found


def out_of_order(records: Ints, seqs: Ints, keys: Ints) -> NDArray[np.bool_]:
    """Mark rows that are read after a later entry of the same producer for the same record.

    Args:
        records: a code for the record of each row.
        seqs: the lane's own number of each row; rows are read in this order, then in the producer's.
        keys: the key of each row.

    Returns:
        One boolean for each row, in the order given.
    """
    producers, numbers = keys >> _SEQ_BITS, keys & ((1 << _SEQ_BITS) - 1)
    order = np.lexsort((numbers, seqs, producers, records))
    records, producers, numbers = records[order], producers[order], numbers[order]
    new = np.concatenate(
        (np.zeros(min(1, len(order)), bool), (records[1:] != records[:-1]) | (producers[1:] != producers[:-1]))
    )
    raised = (np.cumsum(new) << _SEQ_BITS) | numbers  # groups above each other: one running maximum does
    late = np.zeros(len(order), bool)
    late[order] = raised < np.maximum.accumulate(raised) if len(order) else False
    return late
