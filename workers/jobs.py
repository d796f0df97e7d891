"""The only job: drain one lane of the store that *this worker* is configured for.

The name ``workers.jobs.drain_lane`` lies in Redis. A doorbell carries a store's id and a lane's number, and
nothing else. The worker's own settings name the store's folder, so access to Redis is no access to other folders.
"""

from __future__ import annotations

from rq import get_current_job

from iai_mcp.pipeline.drain import DrainReport
from iai_mcp.telemetry.events import safe_message
from workers.runner import WrongStore, runner_for

__all__ = ["drain_lane"]


def drain_lane(store_id: str, lane: int) -> str:
    """Drain ``lane`` for one turn; a summary for the job's log line.

    Args:
        store_id: the store's identity, 32 hexadecimal digits.
        lane: the lane's number, from 0.

    Raises:
        WrongStore: the worker is configured for another store, or no RQ worker runs this.
        StoreError: the store has no such lane.
    """
    job = get_current_job()
    if job is None:
        raise WrongStore("drain_lane is an RQ job; to drain by hand use `iai-mcp worker --burst`")
    return _summary(runner_for(store_id, job.connection).turn(lane))


def _summary(report: DrainReport) -> str:
    error = f" ({safe_message(report.error)})" if report.error is not None else ""
    return f"{report.outcome}: {report.applied} applied{error}"
