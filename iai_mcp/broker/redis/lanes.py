"""One store's lanes in Redis, as a drain sees them: lease, claim, acknowledge, give back; and as a look sees them.

A lane is a list. What is claimed stays at its head until it is acknowledged, and a count beside the list says how
far the claim goes: whoever leases the lane next begins with the same items. To move them to a list of their own
a script would have to touch them, and Lua 5.1 keeps all strings in one hash table by a few of their bytes, where
items of one shape collide: that took 6.6 us of the server for each entry, and this takes 0.3.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from functools import cache
from typing import Any

import redis

from iai_mcp.broker.protocol import Claimed, LaneStats, Lease, MalformedItem
from iai_mcp.broker.redis.doorbell import Doorbell
from iai_mcp.broker.redis.items import entries_in, from_items, pushed_at
from iai_mcp.broker.redis.keys import Keys
from iai_mcp.broker.redis.resp import fetch
from iai_mcp.broker.redis.scripts import Script, translated
from iai_mcp.errors import LeaseLost

__all__ = ["RedisLanes"]

MAX_CLAIM_BYTES = 16 * 2**20
LOOK = (16, 512)  # items read at a time: at first, and at most
LOOK_BYTES = 2 * 2**20  # hardly more than so many bytes of them


@cache
def _holder() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


class RedisLanes:
    """The lanes of one store.

    Args:
        control: a client of our own.
        keys: their names.
        lanes: how many there are.
        lease_s: how long a lease lives without a sign of life from its holder.
    """

    def __init__(self, control: redis.Redis, keys: Keys, lanes: int, lease_s: float) -> None:
        self.control = control
        self.keys = keys
        self._lanes = lanes
        self._lease_s = lease_s
        self._scripts = {name: Script(name) for name in ("push", "lease", "claim", "ack", "release")}
        self._looks = [LOOK[0]] * lanes  # how many items of each lane it is worth reading at once
        self._claims: list[list[int]] = [[] for _ in range(lanes)]  # the entries in each item that we have claimed
        self._doorbell = Doorbell(control, keys)

    # -- the drain

    def lease(self, lane: int, floor: int = 0) -> Lease | None:
        holder = f"{_holder()}:{secrets.token_hex(4)}"
        keys = [self.keys.lane(lane, "lease"), self.keys.lane(lane, "state"), self.keys.counts]
        token, *left = self._run("lease", keys, [holder, self._lease_ms, floor, lane])
        if token == -1:
            return None
        before, items = left
        ours = before.decode().rpartition(":")[0] == _holder()
        return Lease(lane, int(token), f"{token}:{holder}", inherited=0 if ours else int(items))

    def claim(self, lease: Lease, max_entries: int, linger: float) -> list[Claimed]:
        with translated():
            head = self._head_of(lease.lane, max_entries)
            if (wait := head.wait(max_entries, linger)) > 0:
                time.sleep(wait)
                head = self._head_of(lease.lane, max_entries)
        keys = [self.keys.lane(lease.lane, "lease"), self.keys.counts]
        args = [lease.holder, self._lease_ms, lease.lane, len(head.claimed), sum(head.counts)]
        if self._run("claim", keys, args) == -1:
            raise LeaseLost(f"lane {lease.lane}: the lease with token {lease.token} has passed on")
        self._claims[lease.lane] = head.counts
        return head.claimed

    def _head_of(self, lane: int, max_entries: int) -> _Head:
        """What a claim would take: what is in flight, else as much as it may.

        Only a lease's holder takes anything off a lane, and the claim that follows is refused to anybody else.
        """
        pending, step = self.keys.lane(lane, "pending").encode(), self._looks[lane]
        counted = b"HGET", self.keys.counts.encode(), b"%d:claimed" % lane
        claimed, items = fetch(self.control, counted, _range(pending, 0, step))
        head = _Head(in_flight=int(claimed or 0))
        at = 0
        while head.take(items, max_entries) and len(items) == step:
            at += step
            step = head.next_step(max_entries)
            (items,) = fetch(self.control, _range(pending, at, step))
        self._looks[lane] = max(LOOK[0], min(LOOK[1], len(head.claimed), head.per_look()))
        return head

    def ack(self, lease: Lease, count: int) -> None:
        lane, claims = lease.lane, self._claims[lease.lane]
        keys = [self.keys.lane(lane, "lease"), self.keys.lane(lane, "pending"), self.keys.counts]
        if self._run("ack", keys, [lease.holder, self._lease_ms, lane, count, sum(claims[:count])]) == -1:
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
        """Ask for another turn at a lane."""
        with translated():
            self._doorbell.ring(lane)

    def idle_lanes(self, most: int | None = None) -> list[int]:
        """Lanes that have work, ``most`` items where that is given, and no live lease.

        Raises:
            RedisError: the server does not answer.
        """
        pipe = self.control.pipeline(transaction=False)
        for number in range(self._lanes):
            pipe.llen(self.keys.lane(number, "pending"))
            pipe.exists(self.keys.lane(number, "lease"))
        found = pipe.execute()
        lengths, leased = found[::2], found[1::2]
        return [n for n in range(self._lanes) if 0 < lengths[n] <= (most or lengths[n]) and not leased[n]]

    # -- looking in

    def drained(self) -> list[int]:
        """How many entries of each lane were ever acknowledged."""
        with translated():
            return self._count(self.control, "drained")

    def _count(self, client: redis.Redis, *counts: str) -> list[int]:
        """A count of every lane, entries ``pushed`` or ``drained``; of several, one after the other."""
        if not self._lanes:
            return []
        fields = [f"{lane}:{count}" for count in counts for lane in range(self._lanes)]
        values: Any = client.hmget(self.keys.counts, fields)
        return [int(value or 0) for value in values]

    def stats(self) -> list[LaneStats]:
        with translated():
            pipe = self.control.pipeline(transaction=False)
            for n in range(self._lanes):
                pipe.hmget(self.keys.counts, f"{n}:pushed", f"{n}:drained", f"{n}:claimed_entries")
                pipe.lindex(self.keys.lane(n, "pending"), 0)
                pipe.get(self.keys.lane(n, "lease"))
                pipe.pttl(self.keys.lane(n, "lease"))
            found = pipe.execute()
        return [self._lane_stats(n, *found[4 * n : 4 * n + 4]) for n in range(self._lanes)]

    def _lane_stats(
        self, lane: int, counts: list[bytes | None], head: bytes | None, lease: bytes | None, ttl: int
    ) -> LaneStats:
        pushed, drained, claimed = (int(count or 0) for count in counts)
        in_flight = claimed if head else 0
        return LaneStats(
            lane,
            max(0, pushed - drained - in_flight),
            in_flight,
            max(0.0, time.time() - pushed_at(head)) if head else None,
            lease.decode().split(":", 1)[1] if lease else None,
            max(0.0, self._lease_s - ttl / 1000) if lease else None,
        )


def _range(key: bytes, first: int, count: int) -> tuple[bytes, ...]:
    return b"LRANGE", key, b"%d" % first, b"%d" % (first + count - 1)


class _Head:
    """The items at the head of a lane that a claim takes: ``in_flight`` of them where that is not 0."""

    def __init__(self, in_flight: int) -> None:
        self.claimed: list[Claimed] = []
        self.counts: list[int] = []  # entries in each
        self._in_flight = in_flight
        self._entries = self._bytes = 0

    def take(self, items: list[bytes], max_entries: int) -> bool:
        """Take of ``items`` what belongs to the claim; whether there may be more."""
        for item, found in zip(items, from_items(items), strict=True):
            if self._in_flight and len(self.claimed) == self._in_flight:
                return False
            count = entries_in(found)
            entries, size = self._entries + count, self._bytes + len(item)
            if self.claimed and not self._in_flight and (entries > max_entries or size > MAX_CLAIM_BYTES):
                return False
            self.claimed.append(found)
            self.counts.append(count)
            self._entries, self._bytes = entries, size
        return True

    def per_look(self, most_bytes: int = LOOK_BYTES) -> int:
        """How many items of the size of these are so many bytes."""
        return most_bytes * len(self.claimed) // max(1, self._bytes)

    def next_step(self, max_entries: int) -> int:
        """How many more to read: hardly more than a claim may have, in bytes and in entries."""
        items = len(self.claimed)
        fitting = self.per_look(min(LOOK_BYTES, max(0, MAX_CLAIM_BYTES - self._bytes)))
        if not self._in_flight:
            entries_left = max(0, max_entries - self._entries)
            fitting = min(fitting, 1 + entries_left * items // max(1, self._entries))
        return max(1, min(LOOK[1], fitting))

    def wait(self, max_entries: int, linger: float) -> float:
        """For how many seconds the oldest item should wait for company."""
        if not self.claimed or self._in_flight or self._entries >= max_entries:
            return 0.0
        oldest = self.claimed[0]
        pushed = 0.0 if isinstance(oldest, MalformedItem) else oldest.pushed
        return min(linger, pushed + linger - time.time())
