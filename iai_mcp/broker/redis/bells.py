"""Rings one producer's doorbells: for lanes that its pushes found empty, and for idle lanes in a sweep."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from redis.exceptions import RedisError

from iai_mcp.broker.redis.client import Deadline
from iai_mcp.broker.redis.doorbell import Doorbell
from iai_mcp.broker.redis.reader import LaneReader
from iai_mcp.telemetry.events import emit

__all__ = ["Bells"]

SWEEP_S = 2.5  # between looks for lanes that have work and no lease


class Bells:
    """The doorbells of one producer.

    Attributes:
        due: lanes that had been empty before the last push.

    Args:
        lanes: the store's, to look at.
        deadline: of the client that ``lanes`` and ``doorbell`` use.
    """

    def __init__(self, lanes: LaneReader, doorbell: Doorbell, deadline: Deadline) -> None:
        self.due: set[int] = set()
        self._not_rung: set[int] = set()  # lanes that were due and leased
        self._lanes = lanes
        self._doorbell = doorbell
        self._deadline = deadline
        self._next_sweep = 0.0

    def get_ready(self) -> None:
        """Do now what would take time in the midst of recalls."""
        self._doorbell.get_ready()

    def keep_standing(self, seconds: float) -> None:
        """Leave a doorbell for the case that this process dies right after a push."""
        self._within(seconds, self._doorbell.keep_standing)

    def last(self, seconds: float) -> None:
        """Ring what is due before this client ends, for at most ``seconds``.

        Leased lanes are rung for too: this client will not sweep again, and their worker may die.
        """
        self._within(seconds, lambda: self._ring_due(leased=True))

    def _within(self, seconds: float, ring: Callable[[], object]) -> None:
        """Call ``ring``; a failure is no error: the sweep rings again."""
        self._deadline.within(seconds)
        try:
            ring()
        except (RedisError, OSError) as error:
            emit("doorbell_failed", level=logging.WARNING, reason=type(error).__name__)
        finally:
            self._deadline.at = None

    def ring(self) -> None:
        """Ring what is due, and sweep when that is due.

        Raises:
            RedisError: the server does not answer.
        """
        self._ring_due()
        now = time.monotonic()
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_S
            for lane in self._lanes.idle_lanes():
                self._doorbell.ring_again(lane)
            self._doorbell.keep_standing()

    def sweep_soon(self) -> None:
        """Sweep with the next :meth:`ring`: doorbells may have been lost."""
        self._next_sweep = 0.0

    def _ring_due(self, *, leased: bool = False) -> None:
        """Ring for lanes that had been empty.

        Args:
            leased: for leased lanes too. Otherwise their drain looks again before it ends, and if it dies before
                that, the sweep of this client finds the lane.
        """
        due: list[int] = []
        while self.due:
            due.append(self.due.pop())
        if leased:
            due, self._not_rung = [*self._not_rung.union(due)], set()
        for lane, held in zip(due, self._lanes.leased(due), strict=True):
            if leased or not held:
                self._doorbell.ring(lane)
            else:
                self._not_rung.add(lane)
