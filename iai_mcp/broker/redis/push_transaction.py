"""A push as one transaction: the bytes that go out, and what comes back. Pure.

The script ``push`` says what a push is, and is asked whenever anything is out of the ordinary. Where a producer
knows that its lanes have room there is nothing to check, and the same commands between ``MULTI`` and ``EXEC``,
written at once, are as atomic and still one round trip. They cost the server half of what a script does, which
calls each of them from Lua: ``benchmarks/redis_enqueue.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

from iai_mcp.broker.redis.keys import Keys
from iai_mcp.entries.parcel import Parcel

__all__ = ["Answer", "Transactions", "answers", "packed"]

Answer = list[int] | None
"""What a command was answered with: an array of integers, or None for anything else."""

MULTI, EXEC = b"*1\r\n$5\r\nMULTI\r\n", b"*1\r\n$4\r\nEXEC\r\n"
TAKEN, QUEUED = b"+OK\r\n", b"+QUEUED\r\n"


def packed(*args: bytes) -> bytes:
    """Arguments of a command as they go over the wire, without the line that counts them."""
    return b"".join([b"$%d\r\n%b\r\n" % (len(arg), arg) for arg in args])


class Transactions:
    """Makes the transactions that push to one store's lanes.

    Each parcel is two commands: its entries are counted, which answers how many its lane has ever been pushed, and
    its item is appended, which answers how many are pending there. ``EXEC`` answers with these integers, in order.
    """

    def __init__(self, keys: Keys, lanes: int) -> None:
        self._lanes = [
            (
                b"*4\r\n" + packed(b"HINCRBY", keys.counts.encode(), b"%d:pushed" % lane),
                b"*3\r\n" + packed(b"RPUSH", keys.lane(lane, "pending").encode()),
            )
            for lane in range(lanes)
        ]

    def commands(self, parcels: Sequence[Parcel], items: Sequence[bytes]) -> bytes:
        """The push of parcels, whose items these are, as it goes over the wire."""
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
        """What precedes the answer to ``EXEC`` where the push of so many parcels goes well."""
        return TAKEN + QUEUED * (2 * parcels)


def answers(data: bytes, head: bytes) -> list[Answer]:
    """What comes after ``head`` in the replies ``data``, as far as it is whole.

    Where ``data`` begins in another way, with errors, as many replies are skipped as ``head`` has.

    Raises:
        ValueError: these are no replies of Redis.
    """
    if data.startswith(head):
        return _whole(data[len(head) :])
    return _whole(data)[head.count(b"\n") :]


def _whole(data: bytes) -> list[Answer]:
    """The replies in ``data``, each of them a line or an array of lines."""
    found: list[Answer] = []
    lines = data.split(b"\r\n")
    del lines[-1]  # it has not ended
    while lines:
        count = max(0, int(lines[0][1:])) if lines[0][:1] == b"*" else 0
        if len(lines) <= count:
            break
        integers = [int(line[1:]) for line in lines[1 : count + 1] if line[:1] == b":"]
        found.append(integers if len(integers) == count > 0 else None)
        del lines[: count + 1]
    return found
