"""Stock ``rq worker``s alone: no lane with work and no spill of a dead client is ever without somebody to look.

A state machine drives the real queue, the real job and RQ's own maintenance over a stand-in for Redis. A worker
may be killed at any call to Redis. A producer may die at any moment, also between a push and its doorbell.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import fakeredis
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from hypothesis.strategies import integers, sampled_from
from rq import Queue
from rq.job import Job
from rq.registry import ReadyJobRegistry, StartedJobRegistry, clean_registries
from rq.serializers import JSONSerializer
from rq.worker import SimpleWorker

import workers.jobs
import workers.runner
import workers.visit
from iai_mcp.broker.redis.broker import RedisBroker
from iai_mcp.config import Settings
from iai_mcp.entries.routing import lane_of
from iai_mcp.errors import StoreUnavailable
from iai_mcp.pipeline.drain import Outcome
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.record import MemoryRecord
from iai_mcp.spill.listing import listing
from iai_mcp.store import MemoryStore
from tests.support import cues, pairs
from workers.runner import LaneRunner

LANES = 2
_numbers = itertools.count()
_store: MemoryStore
_records: list[UUID]


@pytest.fixture(scope="module", autouse=True)
def one_store(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One store for all examples, with a record in each lane: making one costs more than an example."""
    global _store, _records
    _store = MemoryStore(
        tmp_path_factory.mktemp("stock") / "store", lanes=LANES, settings=Settings(embedder="none")
    )
    made = _store.insert_many([MemoryRecord(text=str(n)) for n in range(20)])
    _records = [next(one for one in made if lane_of(one, LANES) == lane) for lane in range(LANES)]


class Killed(BaseException):
    """The process that runs the job dies here."""


class Clock:
    """The time of the workers: it passes when they sleep, and leases of the dead run out with it."""

    def __init__(self, expire: Callable[[], None]) -> None:
        self.now = 1000.0
        self._expire = expire

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 0.05)
        self._expire()


class StockWorkers(RuleBasedStateMachine):
    """Producers that come and go, and stock workers that are killed; faults stop at the end of each example."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.server = fakeredis.FakeServer()
        self.client = fakeredis.FakeStrictRedis(server=self.server)
        setattr(
            self.client, "__rq_redis_server_version", (7, 2, 0)
        )  # with its intermediate queue, as on a real server
        self.namespace = f"stock-{next(_numbers)}"
        _store.settings = Settings(namespace=self.namespace, spill_dir=self.folder, embedder="none", linger_ms=0)
        _store._register()
        self.rq = Queue(f"{self.namespace}:provenance", connection=self.client, serializer=JSONSerializer)
        self.producer: ProvenanceWriteQueue | None = None
        self.sent: dict[tuple[int, str], list[str]] = {}  # by lane and producer
        self.taken: list[Job] = []  # by workers that have not begun to run them
        self.dead_leases: dict[int, float] = {}  # lane -> when the lease of its dead holder runs out
        self.clock = Clock(self.expire)
        self.lives_on: tuple[RedisBroker, Any] | None = None  # a living worker that drains a lane, and its lease
        self.producer_comes()

    # -- producers

    @precondition(lambda self: self.producer is None)
    @rule()
    def producer_comes(self) -> None:
        self.producer = ProvenanceWriteQueue(_store, connection=self.client)
        self.broker.open()
        self.broker._bells.sweep_soon()
        self.producer_looks_around()

    @property
    def broker(self) -> RedisBroker:
        assert self.producer is not None
        broker = self.producer._broker
        assert isinstance(broker, RedisBroker)
        return broker

    @precondition(lambda self: self.producer is not None)
    @rule(lane=integers(0, LANES - 1))
    def push(self, lane: int) -> None:
        """A recall: pushed, not rung for yet."""
        self._send(lane)

    @precondition(lambda self: self.producer is not None)
    @rule(lane=integers(0, LANES - 1))
    def spill(self, lane: int) -> None:
        """A recall whose push fails, and whose producer dies before it has connected again."""
        self.broker._hang_up()
        self._send(lane)
        self.producer_dies()

    def _send(self, lane: int) -> None:
        assert self.producer is not None
        sent = self.sent.setdefault((lane, self.producer.producer), [])
        sent.append(f"{self.producer.producer}-{len(sent)}")
        self.producer.enqueue(pairs(_records[lane], sent[-1:]))

    @precondition(lambda self: self.producer is not None)
    @rule()
    def producer_looks_around(self) -> None:
        """What its background thread does: rings, and sweeps."""
        self.broker._wake.set()
        self.broker.run_once(0.0)

    @precondition(lambda self: self.producer is not None)
    @rule()
    def producer_dies(self) -> None:
        assert self.producer is not None
        self.producer._spill.close()
        self.producer = None

    # -- workers

    @precondition(lambda self: len(self.taken) < 2)
    @rule(begun=sampled_from([True, False]))
    def a_worker_takes_a_job(self, begun: bool) -> None:
        """``begun``: its work-horse has told RQ that it runs the job."""
        found = Queue.dequeue_any([self.rq], None, connection=self.client, serializer=JSONSerializer)
        if found is not None:
            job = found[0]
            worker = self.worker()
            worker.prepare_execution(job)
            if begun:
                worker.prepare_job_execution(job, remove_from_intermediate_queue=True)
            self.taken.append(job)

    def worker(self) -> SimpleWorker:
        return SimpleWorker([self.rq], connection=self.client, serializer=JSONSerializer)

    @precondition(lambda self: self.taken)
    @rule(whole=sampled_from([True, False]))
    def a_worker_is_killed_with_its_job(self, whole: bool) -> None:
        """``whole``: with its supervising parent; else RQ's parent notices and retries."""
        self._abandon(self.taken.pop(0), whole)

    def _abandon(self, job: Job, whole: bool) -> None:
        if not whole:
            job = Job.fetch(job.id, connection=self.client, serializer=JSONSerializer)
            self.worker().handle_job_failure(job, self.rq, exc_string="killed")
            self._forget(job)

    def registered(self) -> list[bytes]:
        """The entries of jobs that RQ holds for running."""
        found: Any = self.client.zrange(StartedJobRegistry(queue=self.rq).key, 0, -1)
        return cast("list[bytes]", found)

    def _forget(self, job: Job) -> None:
        registry = StartedJobRegistry(queue=self.rq)
        for entry in self.registered():
            if StartedJobRegistry.parse_job_id(entry.decode()) == job.id:
                self.client.zrem(registry.key, entry)
        self.client.lrem(self.rq.intermediate_queue_key, 0, job.id)

    @precondition(lambda self: self.taken)
    @rule(die_after=integers(0, 25), whole=sampled_from([True, False]), store_fails=integers(0, 3))
    def a_worker_runs_a_job(self, die_after: int, whole: bool, store_fails: int) -> None:
        """Runs it to its end, or dies at one of its calls to the broker."""
        job = self.taken.pop(0)
        fatal = die_after if die_after < 15 else None
        with self._patched(fatal, store_fails):
            try:
                self._run(job)
            except Killed:
                self._abandon(job, whole)
                return
        self._forget(job)
        self.client.delete(job.key)  # as RQ does: its result has no time to live

    def _run(self, job: Job) -> None:
        """The job, in a process that has run nothing before."""
        workers.runner._runners.clear()
        workers.jobs.drain_lane(*job.args)

    @contextmanager
    def _patched(self, fatal: int | None = None, store_fails: int = 0) -> Iterator[None]:
        left = [fatal]

        def step(lane: int | None = None) -> None:
            if left[0] is not None:
                left[0] -= 1
                if left[0] < 0:
                    self._note_leases()
                    raise Killed

        with pytest.MonkeyPatch.context() as patched:
            for name in ("lease", "claim", "ack", "release", "ring", "keep_standing", "push", "busy_lanes"):
                patched.setattr(RedisBroker, name, _stepping(getattr(RedisBroker, name), step))
            patched.setattr(_store, "append_provenance_batch", self._failing(store_fails))
            # Small lanes on this thread: a thread of a killed process would go on here.
            patched.setattr(LaneRunner, "_start_small_lanes", lambda *_: None)
            for module in (workers.runner, workers.visit, workers.jobs):
                patched.setattr(module, "time", self.clock)
            patched.setattr("iai_mcp.pipeline.drain.time", self.clock)
            patched.setattr(workers.jobs, "get_current_job", lambda: Job("x", connection=self.client))
            yield

    def _failing(self, times: int) -> Callable[..., Any]:
        append, left = type(_store).append_provenance_batch, [times]

        def attempt(*args: Any, **further: Any) -> Any:
            if left[0]:
                left[0] -= 1
                raise StoreUnavailable("away")
            return append(_store, *args, **further)

        return attempt

    def _note_leases(self) -> None:
        """What the dead one leased runs out in a while."""
        for lane in range(LANES):
            living = self.lives_on is not None and self.lives_on[1].lane == lane
            if self.client.exists(self.key(lane, "lease")) and not living:
                self.dead_leases.setdefault(lane, self.clock.now + _store.settings.lease_s)

    def key(self, lane: int, part: str) -> str:
        return f"{self.namespace}:iai-mcp:{_store.store_id}:lane:{lane}:{part}"

    def expire(self) -> None:
        for lane, at in [*self.dead_leases.items()]:
            if self.clock.now >= at:
                self.client.delete(self.key(lane, "lease"))
                del self.dead_leases[lane]

    @precondition(lambda self: self.lives_on is None)
    @rule(lane=integers(0, LANES - 1))
    def a_worker_holds_a_lane(self, lane: int) -> None:
        """A long turn of another worker; it ends with a drain that dies, or gives the lane back."""
        runner = LaneRunner(_store, self.client)
        lease = runner.broker.lease(lane, _store.lane(lane).token)
        if lease is not None:
            self.lives_on = (runner.broker, lease)

    @precondition(lambda self: self.lives_on is not None)
    @rule()
    def that_worker_dies(self) -> None:
        assert self.lives_on is not None
        lane = self.lives_on[1].lane
        self.lives_on = None
        self.dead_leases[lane] = self.clock.now + _store.settings.lease_s

    @rule()
    def maintenance(self) -> None:
        """RQ's own: at each start of a worker, and every so often."""
        self._age_registry()
        clean_registries(self.rq)
        for _ in range(2):  # a job must be seen twice, a minute apart
            self.rq.intermediate_queue.cleanup(self.worker(), self.rq)
            for job_id in self.rq.intermediate_queue.get_job_ids():
                self.client.set(self.rq.intermediate_queue.get_first_seen_key(job_id), 1)

    def _age_registry(self) -> None:
        """The executions of killed workers are out of date by now; those of living ones are renewed."""
        registry = StartedJobRegistry(queue=self.rq)
        living = {job.id for job in self.taken}
        for entry in self.registered():
            alive = StartedJobRegistry.parse_job_id(entry.decode()) in living
            self.client.zadd(registry.key, {entry: 4e9 if alive else 1})

    # -- what must hold

    @invariant()
    def somebody_will_look(self) -> None:
        if not hasattr(self, "client") or not self.work():
            return
        registered = [StartedJobRegistry.parse_job_id(entry.decode()) for entry in self.registered()]
        lost = Job.fetch_many(
            [*registered, *self.rq.intermediate_queue.get_job_ids()],
            connection=self.client,
            serializer=JSONSerializer,
        )
        assert (
            self.producer is not None  # sweeps
            or self.rq.count  # a doorbell
            or self.taken  # a job that has not run
            or ReadyJobRegistry(queue=self.rq).get_job_ids(cleanup=False)  # the standing doorbell
            or any(job is not None and job.retries_left for job in lost)  # RQ retries it
        ), "work is left, and nobody will ever look"

    def work(self) -> bool:
        lanes = any(self.client.llen(self.key(lane, "pending")) for lane in range(LANES))
        return lanes or any(file.entries and not file.held for file in listing(self.folder))

    def teardown(self) -> None:
        if not hasattr(self, "client"):
            return
        try:
            self._settle()
            for (lane, producer), sent in self.sent.items():
                record = _store.get(_records[lane])
                assert record is not None
                assert [cue for cue in cues(record.provenance) if cue.startswith(producer)] == sent
        finally:
            shutil.rmtree(self.folder)

    def _settle(self) -> None:
        """Faults stop, every producer is gone: stock workers and RQ's maintenance alone empty everything."""
        if self.producer is not None:
            self.producer_dies()
        if self.lives_on is not None:
            self.that_worker_dies()
        self._note_leases()
        for _ in range(8):
            while self.taken or self.rq.count:
                self.a_worker_takes_a_job(begun=True)
                if self.taken:
                    self.a_worker_runs_a_job(die_after=25, whole=True, store_fails=0)
            if not self.work():
                return
            self.clock.sleep(1.0)
            self.maintenance()
        raise AssertionError("work is left for ever")


def _stepping(method: Callable[..., Any], step: Callable[[], None]) -> Callable[..., Any]:
    def call(*args: Any, **further: Any) -> Any:
        step()
        return method(*args, **further)

    return call


CALM = settings(
    deadline=None,
    max_examples=60,
    stateful_step_count=25,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],  # each example takes half a second: shrinking would take minutes
)


def test_stock_workers_alone_empty_lanes_and_spill() -> None:
    run_state_machine_as_test(StockWorkers, settings=CALM)


class AsItWas(StockWorkers):
    """The job of before: one turn, and no look at what is left."""

    def _run(self, job: Job) -> None:
        workers.runner._runners.clear()
        runner = workers.runner.runner_for(job.args[0], self.client)
        report = runner.turns(job.args[1])[0]
        if report.outcome is Outcome.TIME:
            runner.broker.ring(report.lane)


class NoStanding(StockWorkers):
    """Without standing doorbells."""


@pytest.mark.parametrize("broken", [AsItWas, NoStanding])
def test_the_model_sees_what_is_missing(broken: type[StockWorkers], monkeypatch: pytest.MonkeyPatch) -> None:
    if broken is NoStanding:
        monkeypatch.setattr("iai_mcp.broker.redis.doorbell.Doorbell.keep_standing", lambda _: False)
    with pytest.raises(AssertionError, match="work is left"):
        run_state_machine_as_test(broken, settings=settings(CALM, max_examples=300, report_multiple_bugs=False))
