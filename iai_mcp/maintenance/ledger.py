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
from iai_mcp.entries.fields import SEQ_BITS, SEQ_MAX
from iai_mcp.entries.identity import entry_id

__all__ = ["EntryState", "LedgerBuilder", "ProducerLedger", "out_of_order"]

_EXPANDED = 1_000_000  # a longer run of numbers is kept as its two ends


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
        handed_out: the highest sequence number that was found, or that it said; and those that only hearsay names.
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
        self._hearsay: list[NDArray[np.bool_]] = []
        self._spans: dict[str, list[tuple[EntryState, int, int]]] = {}
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
        return np.asarray((base << SEQ_BITS) | np.asarray(seqs, np.int64), np.int64)

    def add(self, state: EntryState, keys: Ints, *, hearsay: bool = False) -> None:
        """Add entries in ``state``.

        With ``hearsay`` anybody may have written their numbers: that one was handed out says nothing of those
        below it.
        """
        self._keys.append(keys)
        self._states.append(np.full(len(keys), state, np.int8))
        self._hearsay.append(np.full(len(keys), hearsay))

    def add_seqs(self, state: EntryState, producer: str, seqs: Iterable[int], *, hearsay: bool = False) -> None:
        """Add entries of one producer, as of :meth:`add`; numbers out of range are ignored."""
        numbers = np.fromiter((seq for seq in seqs if 0 < seq <= SEQ_MAX), np.int64)
        self.add(state, self.keys([producer], np.zeros(len(numbers), np.int64), numbers), hearsay=hearsay)

    def add_span(self, state: EntryState, producer: str, first: int, last: int) -> None:
        """Add a run of one producer's entries, both ends included; numbers out of range are ignored."""
        first, last = max(1, first), min(SEQ_MAX, last)
        if last - first < _EXPANDED:
            self.add_seqs(state, producer, range(first, last + 1))
        else:  # its end is added, so that the producer is known to have handed out as many
            self.add_seqs(state, producer, [last])
            self._spans.setdefault(producer, []).append((state, first, last - 1))

    def fill(self, state: EntryState, keys: Iterable[tuple[str, int]]) -> None:
        """Add ``keys`` where a known producer has handed out as many entries; others say nothing sure."""
        highest = dict(self._expected)
        names = [*self._codes]
        for every, hearsay in zip(self._keys, self._hearsay, strict=True):
            some = every[~hearsay]
            codes, seqs = some >> SEQ_BITS, some & SEQ_MAX
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
        if 0 < handed_out <= SEQ_MAX:
            self._codes.setdefault(producer, len(self._codes))
            self._expected[producer] = max(handed_out, self._expected.get(producer, 0))

    def name(self, key: int) -> str:
        """A key as text: the producer, a hyphen, the sequence number."""
        return entry_id([*self._codes][int(key) >> SEQ_BITS], int(key) & SEQ_MAX)

    def build(self) -> list[ProducerLedger]:
        """The ledger of each producer that handed out an entry."""
        codes, seqs, states, hearsay = self._columns()
        highest = np.zeros(len(self._codes), np.int64)
        np.maximum.at(highest, codes[~hearsay], seqs[~hearsay])
        for producer, handed_out in self._expected.items():
            highest[self._codes[producer]] = max(highest[self._codes[producer]], handed_out)
        below = seqs <= highest[codes]
        gaps = _gaps(codes[below], seqs[below], highest)
        counts = np.bincount(codes * len(EntryState) + states, minlength=len(self._codes) * len(EntryState))
        by_code = counts.reshape(-1, len(EntryState))
        for producer, spans in self._spans.items():
            code = self._codes[producer]
            for state, first, last in spans:
                before = _length(gaps.get(code, []))
                gaps[code] = _without(gaps.get(code, []), first, last)
                by_code[code, state] += before - _length(gaps[code])
        further = np.bincount(codes[~below], minlength=len(self._codes))
        return [
            ProducerLedger(
                name,
                int(highest[code] + further[code]),
                {state: int(by_code[code, state]) for state in EntryState},
                tuple(gaps.get(code, ())),
            )
            for name, code in self._codes.items()
            if highest[code] + further[code]
        ]

    def _columns(self) -> tuple[Ints, Ints, NDArray[np.int8], NDArray[np.bool_]]:
        """Of each key once: code, number, most advanced state, and whether only hearsay names it."""
        keys = np.concatenate([np.zeros(0, np.int64), *self._keys])
        states = np.concatenate([np.zeros(0, np.int8), *self._states])
        hearsay = np.concatenate([np.zeros(0, bool), *self._hearsay])
        order = np.lexsort((states, keys))
        keys, states, hearsay = keys[order], states[order], hearsay[order]
        first = firsts(keys)
        alone = np.logical_and.reduceat(hearsay, np.flatnonzero(first)) if len(keys) else hearsay
        keys = keys[first]
        return keys >> SEQ_BITS, keys & SEQ_MAX, states[first], alone


def _length(ranges: Iterable[tuple[int, int]]) -> int:
    return sum(last - first + 1 for first, last in ranges)


def _without(ranges: Iterable[tuple[int, int]], first: int, last: int) -> list[tuple[int, int]]:
    """The parts of ``ranges`` outside of ``first`` to ``last``."""
    found = []
    for low, high in ranges:
        found += [(low, min(high, first - 1))] if low < first else []
        found += [(max(low, last + 1), high)] if high > last else []
    return found


def _gaps(codes: Ints, seqs: Ints, highest: Ints) -> dict[int, list[tuple[int, int]]]:
    """For each producer, the missing numbers up to its highest. Both columns are sorted."""
    below = np.where(codes[1:] == codes[:-1], seqs[:-1], 0)
    before = np.concatenate((np.zeros(min(1, len(seqs)), np.int64), below))
    found: dict[int, list[tuple[int, int]]] = {}
    for at in np.flatnonzero(seqs - before > 1):
        found.setdefault(int(codes[at]), []).append((int(before[at]) + 1, int(seqs[at]) - 1))
    last = np.zeros(len(highest), np.int64)
    np.maximum.at(last, codes, seqs)
    for code in np.flatnonzero(last < highest).tolist():
        found.setdefault(code, []).append((int(last[code]) + 1, int(highest[code])))
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
    producers, numbers = keys >> SEQ_BITS, keys & SEQ_MAX
    order = np.lexsort((numbers, seqs, producers, records))
    records, producers, numbers = records[order], producers[order], numbers[order]
    new = np.concatenate(
        (np.zeros(min(1, len(order)), bool), (records[1:] != records[:-1]) | (producers[1:] != producers[:-1]))
    )
    raised = (np.cumsum(new) << SEQ_BITS) | numbers  # groups above each other: one running maximum does
    late = np.zeros(len(order), bool)
    late[order] = raised < np.maximum.accumulate(raised) if len(order) else False
    return late
