"""What a producer has pushed and Redis may still forget, kept in memory until it is in the store.

A power cut, a failover to a replica that lags, or a FLUSHALL takes entries that only Redis held. Their producer
pushes them again. The lanes' counts tell what has been drained, so that the ring holds no more than that lag.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

from iai_mcp.broker.protocol import Mark

__all__ = ["Part", "Ring", "chunk"]

AGAIN_BYTES = 2**18  # about the most bytes to push again at a time
OVERHEAD = 150  # bytes that Python takes for an item beside its text

Part = tuple[int, int, bytes]
"""What a push puts into one lane: the lane, a number of entries, and the parcel with them in its wire form.

A plain tuple: a push makes several, and the garbage collector need not look at those that are retained.
"""


class Ring:
    """Pushed items by lane, in the order of their pushes. Thread-safe.

    Args:
        lanes: the number of lanes.
        most_bytes: memory ceiling; one push may pass it.
    """

    def __init__(self, lanes: int, most_bytes: int) -> None:
        self._most = most_bytes
        self._items: list[deque[tuple[int, int, bytes]]] = [deque() for _ in range(lanes)]  # end, entries, item
        self._settled = [0] * lanes  # items that have gone
        self._bytes = 0
        self._epoch = b""
        self._mutex = threading.Lock()

    @property
    def full(self) -> bool:
        """Whether the ceiling is reached."""
        return self._bytes >= self._most

    @property
    def empty(self) -> bool:
        """Whether everything is known to be in the store."""
        return not any(self._items)

    @property
    def entries(self) -> int:
        """Number of entries that are not known to be in the store."""
        with self._mutex:
            return sum(entries for items in self._items for _, entries, _ in items)

    def keep(self, epoch: bytes, parts: Sequence[Part], ends: Sequence[int]) -> bool:
        """Add parts that were pushed in ``epoch``; False, and nothing is added, where that is over.

        Args:
            ends: how many entries each part's lane had ever been pushed after it.
        """
        with self._mutex:
            if epoch != self._epoch:
                return False
            size, lanes = 0, self._items
            for (lane, entries, item), end in zip(parts, ends, strict=True):
                lanes[lane].append((end, entries, item))
                size += len(item) + OVERHEAD
            self._bytes += size
            return True

    def settle(self, epoch: bytes, drained: Sequence[int]) -> None:
        """Drop what is in the store: each lane's first ``drained`` entries of ``epoch``.

        Counts of another epoch than the present one say nothing.
        """
        with self._mutex:
            if not epoch or epoch != self._epoch:
                return
            for lane, (items, done) in enumerate(zip(self._items, drained, strict=True)):
                while items and items[0][0] <= done:
                    self._bytes -= len(items.popleft()[2]) + OVERHEAD
                    self._settled[lane] += 1

    def mark(self) -> Mark:
        """The present end of every lane."""
        with self._mutex:
            return tuple(gone + len(items) for gone, items in zip(self._settled, self._items, strict=True))

    def settled(self, mark: Mark) -> bool:
        """Whether everything up to ``mark`` is in the store."""
        with self._mutex:
            return all(gone >= end for gone, end in zip(self._settled, mark, strict=True))

    def begin(self, epoch: bytes) -> None:
        """Go by the counts of ``epoch`` from now on."""
        with self._mutex:
            self._epoch = epoch

    def lost(self) -> list[list[Part]]:
        """Drop nothing until :meth:`pushed_again`; every lane's items, oldest first."""
        with self._mutex:
            self._epoch = b""
            return [
                [(lane, entries, item) for _, entries, item in items] for lane, items in enumerate(self._items)
            ]

    def pushed_again(self, epoch: bytes, ends: Sequence[Sequence[int]]) -> None:
        """Go by the counts of ``epoch``, in which the items of :meth:`lost` have these ends."""
        with self._mutex:
            self._epoch = epoch
            for lane, (items, anew) in enumerate(zip(self._items, ends, strict=True)):
                both = zip(items, anew, strict=True)
                self._items[lane] = deque((end, entries, item) for (_, entries, item), end in both)


def chunk(parts: Sequence[Part]) -> list[Part]:
    """The first of ``parts``, about as many as are pushed again at a time."""
    size, first = 0, []
    for part in parts:
        first.append(part)
        size += len(part[2])
        if size >= AGAIN_BYTES:
            break
    return first
