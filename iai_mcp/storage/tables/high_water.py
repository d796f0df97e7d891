"""High-water marks of producers: which entries are certain to be new to a lane's table. Pure.

An entry's key is its producer and that producer's own count. Where every entry of a batch is above the highest
number of its producer in the table, no row can have its key, and the batch may be appended: LanceDB need not
look for what is there already, which is most of what a small merge costs. Anything else is merged, so a mark that
is too high costs time and one that is too low would double a row: marks only ever come from the table, or from
what was written to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from iai_mcp.entries.batch import EntryBatch

__all__ = ["HighWater", "Spans", "spans_of"]

Spans = dict[str, tuple[int, int]]
"""By producer, the lowest and the highest number of its entries in a batch."""

MOST_ASKED = 4  # producers in a batch; asking about more would cost what a merge does
MOST_KNOWN = 100_000


class HighWater:
    """The marks of one table.

    Args:
        ask: the highest number of a producer's rows in the table; 0 where it has none.
    """

    def __init__(self, ask: Callable[[str], int]) -> None:
        self._ask = ask
        self._marks: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self._marks)

    def below(self, spans: Spans) -> bool:
        """Whether all of these numbers are above the mark of their producer; asks about some that are unknown."""
        unknown = [producer for producer in spans if producer not in self._marks]
        if unknown and len(self._marks) > MOST_KNOWN:
            self._marks.clear()
        for producer in unknown[:MOST_ASKED]:
            self._marks[producer] = self._ask(producer)
        return all(
            producer in self._marks and lowest > self._marks[producer] for producer, (lowest, _) in spans.items()
        )

    def seen(self, numbers: Iterable[tuple[str, int]]) -> None:
        """Raise the marks to written rows: ``(producer, number)``."""
        marks = self._marks
        for producer, number in numbers:
            if number > marks.get(producer, number):
                marks[producer] = number

    def forget(self) -> None:
        """Drop every mark."""
        self._marks.clear()


def spans_of(batch: EntryBatch) -> Spans | None:
    """The lowest and the highest number of each producer; None where the keys are others, and say nothing."""
    seqs = np.asarray(batch.seqs)
    if batch.given is not None or seqs.dtype != np.int64:
        return None
    places = {producer: place for place, producer in enumerate(dict.fromkeys(batch.producers))}
    if len(places) == 1:
        return {producer: (int(seqs.min()), int(seqs.max())) for producer in places}
    of_group = np.fromiter(map(places.__getitem__, batch.producers), np.int64, len(batch.producers))
    whose = of_group[batch.group]
    lows, highs = np.full(len(places), seqs.max()), np.full(len(places), seqs.min())
    np.minimum.at(lows, whose, seqs)
    np.maximum.at(highs, whose, seqs)
    found = zip(places, np.bincount(whose, minlength=len(places)), lows.tolist(), highs.tolist(), strict=True)
    return {producer: (low, high) for producer, count, low, high in found if count}
