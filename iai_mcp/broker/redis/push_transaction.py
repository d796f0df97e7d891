"""A push as one transaction, in bytes. Pure.

The script ``push`` defines what a push does. Where a producer knows that its lanes have room there is nothing to
check: the same commands between ``MULTI`` and ``EXEC``, written at once, are as atomic and still one round trip.
They cost the server half of what the script costs, which calls each of them from Lua:
``benchmarks/redis_enqueue.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

from iai_mcp.broker.redis.keys import Count, Keys
from iai_mcp.broker.redis.resp import packed
from iai_mcp.entries.parcel import Parcel

__all__ = ["Transactions"]

MULTI, EXEC = b"*1\r\n$5\r\nMULTI\r\n", b"*1\r\n$4\r\nEXEC\r\n"
TAKEN, QUEUED = b"+OK\r\n", b"+QUEUED\r\n"


class Transactions:
    """Makes the transactions that push to one store's lanes.

    Each parcel is two commands: its entries are counted, which answers how many its lane has ever been pushed, and
    its item is appended, which answers how many are pending there. ``EXEC`` answers with these integers, in order.
    """

    def __init__(self, keys: Keys, lanes: int) -> None:
        self._lanes = [
            (
                b"*4\r\n" + packed(b"HINCRBY", keys.counts.encode(), Count.PUSHED.of(lane).encode()),
                b"*3\r\n" + packed(b"RPUSH", keys.lane(lane, "pending").encode()),
            )
            for lane in range(lanes)
        ]

    def commands(self, parcels: Sequence[Parcel], items: Sequence[bytes]) -> bytes:
        """The push of ``parcels``, encoded as ``items``, as it goes over the wire."""
        parts = [MULTI]
        for parcel, item in zip(parcels, items, strict=True):
            count, append = self._lanes[parcel.lane]
            entries = b"%d" % len(parcel.seqs)
            parts.append(
                b"%b$%d\r\n%b\r\n%b$%d\r\n%b\r\n" % (count, len(entries), entries, append, len(item), item)
            )
        parts.append(EXEC)
        return b"".join(parts)

    @staticmethod
    def head(parcels: int) -> bytes:
        """The replies before the one to ``EXEC`` where the push of so many parcels succeeds."""
        return TAKEN + QUEUED * (2 * parcels)
