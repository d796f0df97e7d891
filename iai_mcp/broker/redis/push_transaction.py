"""A push as one transaction, in bytes. Pure.

The script ``push`` defines what a push does. Where a producer knows that its lanes have room, the same commands
between ``MULTI`` and ``EXEC``, written at once, are as atomic and still one round trip. They cost the server half
of what the script costs, which calls each of them from Lua: ``benchmarks/redis_enqueue.py``.

The epoch is checked without a script: each push leaves its key watched, so that the next ``EXEC`` is refused where
the key has changed or gone. ``GET`` tells whether it did between ``EXEC`` and ``WATCH``.
"""

from __future__ import annotations

from collections.abc import Sequence

from iai_mcp.broker.redis.keys import Count, Keys
from iai_mcp.broker.redis.resp import packed
from iai_mcp.broker.redis.retained import Part

__all__ = ["Transactions"]

MULTI, EXEC = b"*1\r\n$5\r\nMULTI\r\n", b"*1\r\n$4\r\nEXEC\r\n"
TAKEN, QUEUED = b"+OK\r\n", b"+QUEUED\r\n"


class Transactions:
    """Makes the transactions that push to one store's lanes.

    Each part is two commands: its entries are counted, which answers how many its lane has ever been pushed, and
    its item is appended, which answers how many are pending there. ``EXEC`` answers with these integers, in order,
    or with nothing where the epoch has changed. The name of the epoch follows, after a status.
    """

    def __init__(self, keys: Keys, lanes: int) -> None:
        self._lanes = [
            (
                b"*4\r\n" + packed(b"HINCRBY", keys.pushed.encode(), Count.PUSHED.of(lane).encode()),
                b"*3\r\n" + packed(b"RPUSH", keys.lane(lane, "pending").encode()),
            )
            for lane in range(lanes)
        ]
        epoch = packed(keys.epoch.encode())
        self._end = EXEC + b"*2\r\n$5\r\nWATCH\r\n" + epoch + b"*2\r\n$3\r\nGET\r\n" + epoch

    def commands(self, parts: Sequence[Part]) -> bytes:
        """The push of ``parts`` as it goes over the wire."""
        pieces = [MULTI]
        for lane, entries, item in parts:
            count, append = self._lanes[lane]
            number = b"%d" % entries
            pieces.append(
                b"%b$%d\r\n%b\r\n%b$%d\r\n%b\r\n" % (count, len(number), number, append, len(item), item)
            )
        pieces.append(self._end)
        return b"".join(pieces)

    @staticmethod
    def head(parts: int) -> bytes:
        """The replies before the one to ``EXEC`` where the push of so many parts succeeds."""
        return TAKEN + QUEUED * (2 * parts)
