"""Doorbells: RQ jobs that say "this lane has work", and nothing else.

The lanes are the truth. A doorbell that is lost, doubled or late changes nothing: a sweep rings again for
every lane that has work and no live lease.

Clients and :class:`workers.ProvenanceWorker` sweep. Where all clients are gone and only RQ's stock workers run,
RQ itself does it: a *standing doorbell* lies among the jobs that RQ's maintenance puts on the queue, at each start
of a worker and then every ``--maintenance-interval`` seconds. Each of its jobs leaves the next one.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from iai_mcp.broker.redis.keys import Keys

if TYPE_CHECKING:
    import redis
    from rq import Queue

__all__ = ["FUNCTION", "Doorbell"]

FUNCTION = "workers.jobs.drain_lane"  # by name only: this package never imports the workers
JOB_TIMEOUT_S = 300
RETRIES = 3  # by RQ itself, where the process that runs the job is killed
STANDING_RETRIES = 100  # the same; each is a worker that was killed before the job left the next one
STANDING = "standing"


class Doorbell:
    """Rings for one store."""

    def __init__(self, connection: redis.Redis, keys: Keys) -> None:
        self._connection = connection
        self._keys = keys

    @staticmethod
    def get_ready() -> None:
        """Import RQ now: in the midst of recalls it would take their turns at the interpreter."""
        import rq.queue  # noqa: F401

    def ring(self, lane: int) -> None:
        """Put a doorbell on the queue: the lane has gone from idle to busy."""
        self._enqueue(lane, secrets.token_hex(4), unique=False)

    def ring_again(self, lane: int) -> bool:
        """Put a doorbell on the queue unless the last such one waits there still; whether it did."""
        from rq.exceptions import DuplicateJobError, NoSuchJobError
        from rq.serializers import JSONSerializer

        from iai_mcp.broker.redis.bounded_job import BoundedJob

        for _ in range(2):
            try:
                self._enqueue(lane, "sweep", unique=True)
            except DuplicateJobError:
                job_id = self._keys.job(lane, "sweep")
                try:
                    job = BoundedJob.fetch(job_id, connection=self._connection, serializer=JSONSerializer)
                except NoSuchJobError:
                    continue
                if job.get_position() is not None:
                    return False
                job.delete()  # its worker died, or the queue was emptied
            else:
                return True
        return False

    def _enqueue(self, lane: int, ring: str, *, unique: bool) -> None:
        from rq import Retry

        self._queue().enqueue_call(
            FUNCTION,
            args=(self._keys.store_id, lane),
            job_id=self._keys.job(lane, ring),
            timeout=JOB_TIMEOUT_S,
            result_ttl=0,
            failure_ttl=0,
            description=f"provenance lane {lane}",
            retry=Retry(max=RETRIES),
            unique=unique,
        )

    def keep_standing(self) -> bool:
        """Leave a standing doorbell unless there is one; whether one was left."""
        from rq import Retry
        from rq.job import JobStatus
        from rq.registry import ReadyJobRegistry

        queue = self._queue()
        ready = ReadyJobRegistry(queue=queue)
        head = self._keys.job(0, STANDING)
        if any(job_id.startswith(head) for job_id in ready.get_job_ids(cleanup=False)):
            return False
        job = queue.create_job(
            FUNCTION,
            args=(self._keys.store_id, 0),
            job_id=self._keys.job(0, f"{STANDING}-{secrets.token_hex(4)}"),
            timeout=JOB_TIMEOUT_S,
            result_ttl=0,
            failure_ttl=0,
            description="provenance, standing doorbell",
            retry=Retry(max=STANDING_RETRIES),
            status=JobStatus.READY_TO_ENQUEUE,
        )
        with self._connection.pipeline() as pipe:
            job.save(pipeline=pipe)
            job.set_status(JobStatus.READY_TO_ENQUEUE, pipeline=pipe)
            ready.add(job, pipeline=pipe)
            pipe.execute()
        return True

    def _queue(self) -> Queue:
        from rq import Queue
        from rq.serializers import JSONSerializer

        return Queue(self._keys.queue, connection=self._connection, serializer=JSONSerializer)
