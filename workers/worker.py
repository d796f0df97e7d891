"""The recommended RQ worker: one process, one open store, doorbells only.

It always uses the JSON serializer. It runs the one known function and refuses jobs that carry callbacks, webhooks
or repeats. While it is idle, it sweeps lanes whose doorbell was lost.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from redis.exceptions import OutOfMemoryError, RedisError
from rq.exceptions import StopRequested
from rq.serializers import JSONSerializer
from rq.suspension import is_suspended
from rq.worker import SimpleWorker
from rq.worker.base import WorkerStatus

from iai_mcp.broker.redis.bounded_job import BoundedJob
from iai_mcp.broker.redis.client import failure
from iai_mcp.broker.redis.doorbell import FUNCTION, JOB_TIMEOUT_S
from iai_mcp.errors import IaiMcpError
from workers.jobs import SWEEPS
from workers.queue_keys import is_stray, mend_queue
from workers.runner import LaneRunner, configured_store, runner_for

if TYPE_CHECKING:
    from rq.job import Job
    from rq.queue import Queue

__all__ = ["ProvenanceWorker"]

SWEEP_S = 2  # between two sweeps of an idle worker, and the longest blocking pop
FULL_PAUSE_S = 0.5  # between two drains while Redis is full


class ProvenanceWorker(SimpleWorker):
    """Drains lanes on doorbells and, between them, lanes whose doorbell was lost."""

    max_connection_wait_time = 5.0  # RQ's 60 s would delay entries after Redis is back

    def __init__(self, queues: Any, *args: Any, **options: Any) -> None:
        options["serializer"] = JSONSerializer
        options["job_class"] = BoundedJob
        if not isinstance(queues, list | tuple):
            queues = [queues]
        names = [queue if isinstance(queue, str) else queue.name for queue in queues]
        options.setdefault("connection", next((q.connection for q in queues if not isinstance(q, str)), None))
        super().__init__(names, *args, **options)
        self.log.addFilter(_without_traceback)
        self._runner: LaneRunner | None = None
        self._last_sweep = 0.0

    def _set_ip_address(self, connection: Any) -> None:
        try:
            super()._set_ip_address(connection)
        except ValueError:  # redis-py cannot read CLIENT INFO where the path of the Unix socket has a blank
            self.ip_address = "unknown"

    @property
    def told_to_stop(self) -> bool:
        """Whether a signal has asked the worker to stop."""
        return self._shutdown_requested_date is not None

    # -- what runs

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Run a doorbell; drop any other job with a warning in the log."""
        if not is_doorbell(job):
            self._drop(job, queue, "is no doorbell")
            return
        job.timeout, job.result_ttl, job.failure_ttl = JOB_TIMEOUT_S, 0, 0  # never the sender's
        sweeps = SWEEPS.set(True)
        try:
            super().execute_job(job, queue)
        except OutOfMemoryError:
            self._relieve()
        except (OSError, StopRequested):
            raise
        except Exception as error:  # RQ trips over keys and fields that it never writes
            if isinstance(error, RedisError) and not is_stray(error):
                raise
            self._mend_queues()
            self._drop(job, queue, f"cannot be run: {type(error).__name__}")
        finally:
            SWEEPS.reset(sweeps)

    def _drop(self, job: Job, queue: Queue, why: str) -> None:
        self.log.warning("Worker %s: job %s %s; it was dropped", self.name, ascii(job.id).strip("'")[:80], why)
        self.connection.delete(job.key)
        self.connection.lrem(queue.intermediate_queue_key, 0, job.id)

    # -- the sweep

    @property
    def dequeue_timeout(self) -> int:
        """Seconds that one blocking pop waits; RQ's 405 s would delay the sweep for a lost doorbell."""
        return SWEEP_S

    def heartbeat(self, *args: Any, **options: Any) -> None:
        """Sweep when idle: RQ calls this between jobs and between pops."""
        super().heartbeat(*args, **options)
        if self.get_state() == WorkerStatus.IDLE and time.monotonic() - self._last_sweep >= SWEEP_S:
            self._last_sweep = time.monotonic()
            self.sweep()
            self._heed_stop()

    # -- a full Redis: it refuses RQ's bookkeeping, but never the drain that makes room
    # -- and keys of RQ that hold what RQ never writes there

    def bootstrap(self, *args: Any, **options: Any) -> None:
        """Start up as RQ does, on a queue that it can work with; if Redis is full, drain first."""
        self._mend_queues()
        try:
            super().bootstrap(*args, **options)
        except OutOfMemoryError:
            self._relieve()
            super().bootstrap(*args, **options)

    def dequeue_job_and_maintain_ttl(self, *args: Any, **options: Any) -> tuple[Job, Queue] | None:
        """The next doorbell; while Redis is full, drain without doorbells."""
        while True:
            try:
                return super().dequeue_job_and_maintain_ttl(*args, **options)
            except OutOfMemoryError:
                self._relieve()
                self._heed_stop()
                time.sleep(FULL_PAUSE_S)
            except (RedisError, ValueError) as error:
                if not is_stray(error):
                    raise
                self._mend_queues()
                self._heed_stop()

    def _mend_queues(self) -> None:
        for name in self.queue_names():
            mend_queue(self.connection, name)

    def _heed_stop(self) -> None:
        """Stop if a signal came during a sweep: RQ checks for that between jobs only, and none may come."""
        if self._stop_requested:
            raise StopRequested

    def _relieve(self) -> None:
        self.log.warning("Worker %s: Redis is at its memory limit; draining without doorbells", self.name)
        self.sweep()

    def sweep(self) -> None:
        """Drain every lane of the configured store that has work and no live lease."""
        try:
            if is_suspended(self.connection):
                return
            self._mend_queues()
            runner = self._lane_runner()
            for lane in runner.ready_lanes():
                if self._stop_requested:
                    return
                self._state = WorkerStatus.BUSY  # a SIGTERM now waits for the current batch
                try:
                    runner.turn(lane)
                finally:
                    self._state = WorkerStatus.IDLE
            runner.adopt_orphans()
            runner.store.tidy()
        except (IaiMcpError, RedisError, OSError) as error:
            self.log.warning("Worker %s: the sweep will try again: %s", self.name, error)

    def _lane_runner(self) -> LaneRunner:
        if self._runner is None:
            self._runner = runner_for(configured_store().store_id, self.connection)
        return self._runner


def _without_traceback(record: logging.LogRecord) -> bool:
    """Pass every record, without the traceback of a lost Redis: the supervisor restarts the worker."""
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    if isinstance(error, RedisError):
        record.msg, record.args = f"{record.getMessage()} {failure(error)}", ()
        record.exc_info = record.exc_text = None
    return True


def is_doorbell(job: Job) -> bool:
    """Whether ``job`` calls the known function with a store's id and a lane, and carries nothing else.

    RQ would follow callbacks, webhooks and repeats, which name other code or addresses.
    """
    try:
        known = job.func_name == FUNCTION and job.instance is None and not job.kwargs
        store_id, lane = job.args
    except Exception:  # noqa: BLE001  undecodable bytes raise errors of any kind
        return False
    extras = (
        job._success_callback_name,
        job._failure_callback_name,
        job._stopped_callback_name,
        job.webhooks,
        job.repeats_left,
        job._dependency_ids,
    )
    return bool(known and not any(extras) and isinstance(store_id, str) and type(lane) is int)
