"""One store's lanes in Redis, as a drain needs them: lease, claim, acknowledge, release.

A lane is a list. Claimed items stay at its head until they are acknowledged, and a count beside the list tells
how many they are, so that the next lease begins with the same items. To move them to a list of their own a
script would have to touch them. Lua 5.1 keeps all strings in one hash table by a few of their bytes, where items
of one shape collide: that took 6.6 us of the server for each entry, and this takes 0.3.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache, partial
from typing import Any

import redis

from iai_mcp.broker.protocol import Claimed, Lease, MalformedItem
from iai_mcp.broker.redis.client import fetch
from iai_mcp.broker.redis.doorbell import Doorbell
from iai_mcp.broker.redis.items import Admittance, entries_in
from iai_mcp.broker.redis.keys import Count, Keys
from iai_mcp.broker.redis.lease_keeper import LeaseKeeper
from iai_mcp.broker.redis.mending import Mender
from iai_mcp.broker.redis.reader import LaneReader
from iai_mcp.broker.redis.scripts import Script, translated
from iai_mcp.broker.redis.stray import count_of
from iai_mcp.errors import LeaseLost
from iai_mcp.telemetry.events import emit

__all__ = ["RedisLanes"]

MAX_CLAIM_BYTES = 16 * 2**20
MAX_CLAIM_ENTRIES = 100_000  # of items in flight, whoever has claimed them
LOOK = (16, 512)  # items read at a time: at first, and at most
LOOK_BYTES = 2 * 2**20  # about the most bytes to read at a time
LEAP = 2**31  # the most leases in a row that write nothing; a token further ahead is no lease's


@cache
def _holder() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


class RedisLanes(LaneReader):
    """The lanes of one store, to drain.

    Args:
        control, keys, lanes, lease_s: as of :class:`LaneReader`.
        admittance: reads what the lanes hold.
    """

    def __init__(
        self, control: redis.Redis, keys: Keys, lanes: int, lease_s: float, admittance: Admittance
    ) -> None:
        super().__init__(control, keys, lanes, lease_s)
        self._admittance = admittance
        self._scripts = {
            name: Script(name) for name in ("meet", "look", "push", "lease", "renew", "claim", "ack", "release")
        }
        self._looks = [LOOK[0]] * lanes  # for each lane, how many items to read at once
        self._claims: list[list[int]] = [[] for _ in range(lanes)]  # number of entries in each claimed item
        self._doorbell = Doorbell(control, keys)
        self._keeper = LeaseKeeper(self._renew, lease_s / 3)
        self._mender = Mender(control, keys, lanes, lease_s)

    def mend(self) -> None:
        """Put right what strangers have written into the store's keys; :mod:`iai_mcp.broker.redis.mending`.

        Raises:
            BrokerUnavailable: the server does not answer.
        """
        with translated():
            self._mender.mend()

    # -- the drain

    def lease(self, lane: int, floor: int = 0) -> Lease | None:
        holder = f"{_holder()}:{secrets.token_hex(4)}"
        keys = [self.keys.lane(lane, "lease"), self.keys.lane(lane, "state"), self.keys.counts]
        token, *left = self._run("lease", keys, [holder, self._lease_ms, floor, Count.CLAIMED.of(lane), LEAP])
        if token == -1:
            return None
        before, items, stray = left
        if stray:
            emit("lane_mended", level=logging.WARNING, lane=lane, key="token", token=int(token))
        ours = before.decode(errors="replace").rpartition(":")[0] == _holder()
        return Lease(lane, int(token), f"{token}:{holder}", inherited=0 if ours else int(items))

    def keep(self, lease: Lease) -> AbstractContextManager[None]:
        """Renew the lease while the block runs."""
        return self._keeper.keep(lease)

    def _renew(self, lease: Lease) -> bool:
        keys = [self.keys.lane(lease.lane, "lease")]
        return bool(self._run("renew", keys, [lease.holder, self._lease_ms]) == 1)

    def claim(self, lease: Lease, max_entries: int, linger: float) -> list[Claimed]:
        with translated():
            head = self._head_of(lease.lane, max_entries)
            if (wait := head.wait(max_entries, linger)) > 0:
                time.sleep(wait)
                head = self._head_of(lease.lane, max_entries)
        keys = [self.keys.lane(lease.lane, "lease"), self.keys.counts]
        args = [lease.holder, self._lease_ms, len(head.claimed), sum(head.counts)]
        fields = [Count.CLAIMED.of(lease.lane), Count.CLAIMED_ENTRIES.of(lease.lane)]
        if self._run("claim", keys, [*args, *fields]) == -1:
            raise LeaseLost(f"lane {lease.lane}: the lease with token {lease.token} has passed on")
        self._claims[lease.lane] = head.counts
        return head.claimed

    def _head_of(self, lane: int, max_entries: int) -> _Head:
        """The items that a claim takes: those in flight, else as many as it may.

        Only the holder of the lease removes items, and the claim that follows is refused to anybody else.
        """
        pending, step = self.keys.lane(lane, "pending").encode(), self._looks[lane]
        counted = b"HGET", self.keys.counts.encode(), Count.CLAIMED.of(lane).encode()
        claimed, items = fetch(self.control, counted, _range(pending, 0, step))
        head = _Head(partial(self._admittance.read, lane), in_flight=count_of(claimed))
        at = 0
        while head.take(items, max_entries) and len(items) == step:
            at += step
            step = head.next_step(max_entries)
            (items,) = fetch(self.control, _range(pending, at, step))
        self._looks[lane] = max(LOOK[0], min(LOOK[1], len(head.claimed), head.per_look()))
        return head

    def ack(self, lease: Lease, count: int) -> None:
        lane, claims = lease.lane, self._claims[lease.lane]
        pending = self.keys.lane(lane, "pending")
        keys = [self.keys.lane(lane, "lease"), pending, self.keys.counts, self.keys.epoch, self.keys.pushed]
        args = [lease.holder, self._lease_ms, count, sum(claims[:count])]
        if self._run("ack", keys, [*args, *[one.of(lane) for one in Count]]) == -1:
            raise LeaseLost(f"lane {lane}: the lease with token {lease.token} has passed on")
        del claims[:count]

    def release(self, lease: Lease, *, if_empty: bool = False) -> bool:
        keys = [self.keys.lane(lease.lane, "lease"), self.keys.lane(lease.lane, "pending")]
        return bool(self._run("release", keys, [lease.holder, int(if_empty)]))

    @property
    def _lease_ms(self) -> int:
        return int(self._lease_s * 1000)

    def _run(self, script: str, keys: list[str], args: list[Any]) -> Any:
        with translated():
            return self._scripts[script](self.control, keys, args)

    # -- doorbells

    def ring(self, lane: int) -> None:
        """Ask a worker for another turn at a lane.

        Raises:
            BrokerUnavailable: the server does not answer.
        """
        with translated():
            self._doorbell.ring(lane)

    def keep_standing(self) -> None:
        """Make sure that a standing doorbell is there: RQ's own maintenance rings it.

        Raises:
            BrokerUnavailable: the server does not answer.
        """
        with translated():
            self._doorbell.keep_standing()


def _range(key: bytes, first: int, count: int) -> tuple[bytes, ...]:
    return b"LRANGE", key, b"%d" % first, b"%d" % (first + count - 1)


class _Head:
    """The items at the head of a lane that a claim takes; ``in_flight`` of them where that is not 0.

    ``read`` takes items and returns what is in them.
    """

    def __init__(self, read: Callable[[Sequence[bytes]], list[Claimed]], in_flight: int) -> None:
        self._read = read
        self.claimed: list[Claimed] = []
        self.counts: list[int] = []  # entries in each
        self._in_flight = in_flight
        self._entries = self._bytes = 0

    def take(self, items: list[bytes], max_entries: int) -> bool:
        """Take those of ``items`` that belong to the claim; whether there may be more."""
        for item, found in zip(items, self._read(items), strict=True):
            if self._in_flight and len(self.claimed) == self._in_flight:
                return False
            count = entries_in(found)
            entries, size = self._entries + count, self._bytes + len(item)
            too_many = entries > max_entries and not self._in_flight
            if self.claimed and (too_many or size > MAX_CLAIM_BYTES or entries > MAX_CLAIM_ENTRIES):
                return False
            self.claimed.append(found)
            self.counts.append(count)
            self._entries, self._bytes = entries, size
        return True

    def per_look(self, most_bytes: int = LOOK_BYTES) -> int:
        """How many items of the present average size are ``most_bytes``."""
        return most_bytes * len(self.claimed) // max(1, self._bytes)

    def next_step(self, max_entries: int) -> int:
        """How many more items to read: about as many as the claim may still take, in bytes and in entries."""
        items = len(self.claimed)
        fitting = self.per_look(min(LOOK_BYTES, max(0, MAX_CLAIM_BYTES - self._bytes)))
        if not self._in_flight:
            entries_left = max(0, max_entries - self._entries)
            fitting = min(fitting, 1 + entries_left * items // max(1, self._entries))
        return max(1, min(LOOK[1], fitting))

    def wait(self, max_entries: int, linger: float) -> float:
        """Seconds that the oldest item should still wait for company."""
        if not self.claimed or self._in_flight or self._entries >= max_entries:
            return 0.0
        oldest = self.claimed[0]
        pushed = 0.0 if isinstance(oldest, MalformedItem) else oldest.pushed
        return min(linger, pushed + linger - time.time())
