"""Reads the lanes of one store in Redis; changes nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence

import redis

from iai_mcp.broker.protocol import LaneStats
from iai_mcp.broker.redis.items import pushed_at
from iai_mcp.broker.redis.keys import Count, Keys
from iai_mcp.broker.redis.scripts import translated
from iai_mcp.broker.redis.stray import answers, count_of, holder_of

__all__ = ["LaneReader"]


class LaneReader:
    """The lanes of one store, to look at.

    Args:
        control: a client of our own.
        keys: the names of the store's keys.
        lanes: the number of lanes.
        lease_s: how long a lease lives without a sign of life from its holder.
    """

    def __init__(self, control: redis.Redis, keys: Keys, lanes: int, lease_s: float) -> None:
        self.control = control
        self.keys = keys
        self._lanes = lanes
        self._lease_s = lease_s

    def drained(self) -> list[int]:
        """How many entries of each lane were ever acknowledged.

        Raises:
            BrokerUnavailable: the server does not answer.
        """
        with translated():
            return self._count(Count.DRAINED)

    def _count(self, count: Count) -> list[int]:
        """A count of every lane; 0 for a stray value."""
        if not self._lanes:
            return []
        pipe = self.control.pipeline(transaction=False)
        pipe.hmget(self.keys.hash_of(count), [count.of(lane) for lane in range(self._lanes)])
        (values,) = answers(pipe)
        return [count_of(value) for value in values or [None] * self._lanes]

    def idle_lanes(self, most: int | None = None) -> list[int]:
        """Lanes that have work, ``most`` items where that is given, and no live lease.

        Raises:
            RedisError: the server does not answer.
        """
        pipe = self.control.pipeline(transaction=False)
        for number in range(self._lanes):
            pipe.llen(self.keys.lane(number, "pending"))
            pipe.exists(self.keys.lane(number, "lease"))
        found = answers(pipe)
        lengths, leased = [length or 0 for length in found[::2]], found[1::2]
        return [n for n in range(self._lanes) if 0 < lengths[n] <= (most or lengths[n]) and not leased[n]]

    def busy_lanes(self) -> list[int]:
        """Lanes that have work, leased or not.

        Raises:
            BrokerUnavailable: the server does not answer.
        """
        with translated():
            pipe = self.control.pipeline(transaction=False)
            for number in range(self._lanes):
                pipe.llen(self.keys.lane(number, "pending"))
            return [number for number, length in enumerate(answers(pipe)) if length]

    def leased(self, lanes: Sequence[int]) -> list[bool]:
        """Whether each of ``lanes`` has a live lease.

        Raises:
            RedisError: the server does not answer.
        """
        pipe = self.control.pipeline(transaction=False)
        for lane in lanes:
            pipe.exists(self.keys.lane(lane, "lease"))
        return [bool(found) for found in pipe.execute()] if lanes else []

    def stats(self) -> list[LaneStats]:
        """The state of every lane.

        Raises:
            BrokerUnavailable: the server does not answer.
        """
        with translated():
            pipe = self.control.pipeline(transaction=False)
            for n in range(self._lanes):
                pipe.hget(self.keys.pushed, Count.PUSHED.of(n))
                pipe.hmget(self.keys.counts, [Count.DRAINED.of(n), Count.CLAIMED_ENTRIES.of(n)])
                pipe.lindex(self.keys.lane(n, "pending"), 0)
                pipe.get(self.keys.lane(n, "lease"))
                pipe.pttl(self.keys.lane(n, "lease"))
            found = answers(pipe)
        return [self._lane_stats(n, *found[5 * n : 5 * n + 5]) for n in range(self._lanes)]

    def _lane_stats(
        self,
        lane: int,
        pushed: bytes | None,
        counts: list[bytes | None] | None,
        head: bytes | None,
        lease: bytes | None,
        ttl: int,
    ) -> LaneStats:
        drained, claimed = map(count_of, counts or (None, None))
        waiting = max(0, count_of(pushed) - drained) if head else 0  # an empty list says more than any count
        in_flight = min(claimed, waiting)
        return LaneStats(
            lane,
            waiting - in_flight,
            in_flight,
            max(0.0, time.time() - pushed_at(head)) if head else None,
            holder_of(lease),
            max(0.0, self._lease_s - ttl / 1000) if lease else None,
        )
