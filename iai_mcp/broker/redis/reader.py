"""Reads the lanes of one store in Redis; changes nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import redis

from iai_mcp.broker.protocol import LaneStats
from iai_mcp.broker.redis.items import pushed_at
from iai_mcp.broker.redis.keys import Count, Keys
from iai_mcp.broker.redis.scripts import translated

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
            return self._count(self.control, Count.DRAINED)

    def _count(self, client: redis.Redis, *counts: Count) -> list[int]:
        """A count of every lane; of several counts, one after the other."""
        if not self._lanes:
            return []
        fields = [count.of(lane) for count in counts for lane in range(self._lanes)]
        values: Any = client.hmget(self.keys.counts, fields)
        return [int(value or 0) for value in values]

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

    def busy_lanes(self) -> list[int]:
        """Lanes that have work, leased or not.

        Raises:
            BrokerUnavailable: the server does not answer.
        """
        with translated():
            pipe = self.control.pipeline(transaction=False)
            for number in range(self._lanes):
                pipe.llen(self.keys.lane(number, "pending"))
            return [number for number, length in enumerate(pipe.execute()) if length]

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
                counts = (Count.PUSHED, Count.DRAINED, Count.CLAIMED_ENTRIES)
                pipe.hmget(self.keys.counts, [count.of(n) for count in counts])
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
