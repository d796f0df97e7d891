"""The one job there is: drain a lane of the store that *this worker* is configured for.

A doorbell brings a store's id and a lane's number, nothing else. Where the store lies is the worker's own
setting, so that whoever can write to Redis cannot point a worker at another folder.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from iai_mcp.errors import UsageError
from iai_mcp.pipeline.drain import DrainReport, Outcome
from iai_mcp.telemetry.events import emit, quiet_words

if TYPE_CHECKING:
    from workers.runner import LaneRunner

__all__ = ["WrongStore", "drain_lane"]

TURN_S = 1.0  # how long one doorbell may keep a worker from the other lanes


class WrongStore(UsageError):
    """A doorbell of a store that this worker does not serve."""


def drain_lane(store_id: str, lane: int) -> str:
    """Drain ``lane`` for a turn; what came of it, for the job's log line.

    Raises:
        WrongStore: the worker is configured for another store.
    """
    from rq import get_current_job

    from workers.runner import runner_for

    job = get_current_job()
    if job is None:
        raise WrongStore("drain_lane is an RQ job; to drain by hand use `iai-mcp worker --burst`")
    return _said(turn(runner_for(store_id, job.connection), lane))


def turn(runner: LaneRunner, lane: int) -> DrainReport:
    """One turn at a lane, and beside it at those with little in them; rings again for what is not empty then."""
    deadline = time.monotonic() + TURN_S
    with no_garbage_rounds():
        runner.drain_small(lane, deadline)
        reports = [runner.drain(lane, deadline=deadline), *runner.drained_beside()]
    for report in reports:
        if report.outcome is Outcome.TIME:
            runner.broker.ring(report.lane)
        if report.batches or report.dead:
            found = {"applied": report.applied, "unknown": report.unknown, "dead": report.dead}
            emit("drained", lane=report.lane, **found)
    return reports[0]


@contextmanager
def no_garbage_rounds() -> Iterator[None]:
    """Keep the garbage collector out of the block: a batch is some ten thousand dicts and no cycles.

    Its rounds would walk everything that is imported, time and again, and double the CPU that a batch takes.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _said(report: DrainReport) -> str:
    trouble = f" ({quiet_words(report.error)})" if report.error is not None else ""
    return f"{report.outcome}: {report.applied} applied{trouble}"
