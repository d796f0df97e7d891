"""The only job: drain one lane of the store that *this worker* is configured for.

The name ``workers.jobs.drain_lane`` lies in Redis. A doorbell carries a store's id and a lane's number, and
nothing else. The worker's own settings name the store's folder, so access to Redis is no access to other folders.
"""

from __future__ import annotations

import time
from contextvars import ContextVar

from rq import get_current_job
from rq.job import Job

from iai_mcp.broker.redis.client import control_client
from iai_mcp.broker.redis.doorbell import STANDING, Doorbell
from iai_mcp.broker.redis.keys import Keys
from iai_mcp.config import Settings
from iai_mcp.errors import StoreUnavailable
from iai_mcp.pipeline.drain import DrainReport
from iai_mcp.telemetry.events import safe_message
from workers.runner import STORE_PAUSE_S, LaneRunner, WrongStore, runner_for
from workers.visit import Visit

__all__ = ["SWEEPS", "drain_lane"]

SWEEPS: ContextVar[bool] = ContextVar("SWEEPS", default=False)
"""Whether the worker that runs the job sweeps by itself; a stock worker does not."""


def drain_lane(store_id: str, lane: int) -> str:
    """Drain ``lane`` for one turn; a summary for the job's log line.

    On a stock worker, which does not sweep, the job pays a :class:`workers.visit.Visit` to the store.

    Args:
        store_id: the store's identity, 32 hexadecimal digits.
        lane: the lane's number, from 0.

    Raises:
        WrongStore: the worker is configured for another store, or no RQ worker runs this.
        StoreError: the store has no such lane.
        StoreUnavailable: the store cannot be opened; a new doorbell is on the queue.
        BrokerUnavailable: Redis does not answer.
    """
    job = get_current_job()
    if job is None:
        raise WrongStore("drain_lane is an RQ job; to drain by hand use `iai-mcp worker --burst`")
    job.retries_left = None  # an error is not retried: RQ's retries are for a process that is killed
    runner = _runner(job, store_id, lane)
    if not SWEEPS.get():
        return _summary(Visit(runner).run(lane))
    if STANDING in job.id:  # it names no lane that has work, and this worker sweeps
        runner.broker.keep_standing()
        return STANDING
    return _summary(runner.turn(lane))


def _runner(job: Job, store_id: str, lane: int) -> LaneRunner:
    try:
        return runner_for(store_id, job.connection)
    except StoreUnavailable:
        time.sleep(STORE_PAUSE_S)
        Doorbell(control_client(job.connection), Keys(Settings.load().namespace, store_id)).ring(lane)
        raise


def _summary(report: DrainReport) -> str:
    error = f" ({safe_message(report.error)})" if report.error is not None else ""
    return f"{report.outcome}: {report.applied} applied{error}"
