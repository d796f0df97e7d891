"""A visit of a stock worker's job to a store: it ends with no work left, or with a doorbell for what is left.

A stock ``rq worker`` runs each job in a process of its own and never sweeps. So the job itself looks after every
lane of the store, and after the spill of dead clients on its machine. It waits for lanes that another worker
leases: that worker may be dead, and its lease then runs out.
"""

from __future__ import annotations

import time

from iai_mcp.broker.redis.doorbell import JOB_TIMEOUT_S
from iai_mcp.errors import BrokerUnavailable
from iai_mcp.pipeline.drain import DrainReport, Outcome
from iai_mcp.telemetry.events import log, safe_message
from workers.runner import LaneRunner

__all__ = ["Visit"]

LEAST_S = 10.0  # the shortest limit of a visit
LEASES = 1.5  # a visit may last so many leases: a dead worker's runs out meanwhile
PAUSE_S = 0.2  # between looks at lanes that cannot be drained now
ADOPT_S = 3.0  # between looks for the spill of dead clients


class Visit:
    """One visit of one job.

    Args:
        runner: drains the lanes of the store.
    """

    def __init__(self, runner: LaneRunner) -> None:
        self._runner = runner
        lease_s = runner.store.settings.lease_s
        self._end = time.monotonic() + min(JOB_TIMEOUT_S / 3, max(LEAST_S, LEASES * lease_s))
        self._adopted_at = -ADOPT_S

    def run(self, lane: int) -> DrainReport:
        """Drain ``lane`` for a turn, then whatever has work, for a bounded time; the report of the first turn.

        Raises:
            StoreError: the store has no such lane.
            BrokerUnavailable: Redis does not answer, not even for a last doorbell. The standing one is there.
        """
        broker = self._runner.broker
        broker.mend()
        broker.keep_standing()
        report = self._runner.turns(lane)[0]
        self._adopt()
        while (busy := self._busy()) and time.monotonic() < self._end:
            if not self._drain_some(busy):
                time.sleep(PAUSE_S)
            self._adopt()
        if busy:
            broker.ring(busy[0])  # one for all of them: its job looks after every lane
        return report

    def _busy(self) -> list[int]:
        """The lanes that have work; all of them, while Redis does not answer."""
        try:
            self._runner.broker.mend()
            return self._runner.broker.busy_lanes()
        except BrokerUnavailable:
            return [*range(self._runner.store.lanes)]

    def _drain_some(self, lanes: list[int]) -> bool:
        """A turn for each of the lanes; whether one of them could be drained."""
        reports: list[DrainReport] = []
        for lane in lanes:
            if time.monotonic() >= self._end:  # many busy lanes: the next visit goes on
                break
            reports += self._runner.turns(lane)
        return any(report.outcome in (Outcome.EMPTY, Outcome.TIME) for report in reports)

    def _adopt(self) -> None:
        """Push what dead clients left in the spill of this machine and user."""
        if time.monotonic() - self._adopted_at < ADOPT_S:
            return
        self._adopted_at = time.monotonic()
        try:
            self._runner.adopt_orphans()
        except (BrokerUnavailable, OSError) as error:
            log.warning("the spill of dead clients stays for the next job: %s", safe_message(error))
