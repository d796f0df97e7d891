"""A property: pushes, outages, crashes, replays and compactions in any order keep L, D, O and P."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import fakeredis
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.strategies import integers, sampled_from

from iai_mcp.broker.protocol import Claimed, Lease
from iai_mcp.broker.redis.broker import RedisBroker
from iai_mcp.broker.redis.options import RedisOptions
from iai_mcp.config import Settings
from iai_mcp.entries.batch import EntryBatch
from iai_mcp.entries.parcel import Parcel
from iai_mcp.errors import LeaseLost
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.record import MemoryRecord
from iai_mcp.storage.tables.write_right import WriteRight
from iai_mcp.store import MemoryStore, RecordsCache
from tests.chaos.checker import check
from tests.chaos.history import Recorder, read

_numbers = itertools.count()
_store: MemoryStore


@pytest.fixture(scope="module", autouse=True)
def one_store(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One store for all examples (each has records of its own): making one costs more than an example."""
    global _store
    _store = MemoryStore(tmp_path_factory.mktemp("machine") / "store", lanes=1, settings=Settings(embedder="none"))


class Worker:
    """A drain taken apart into its steps, so that it can be stopped between any two of them."""

    def __init__(self, broker: RedisBroker) -> None:
        self.broker = broker
        self.cache = RecordsCache()
        self.lease: Lease | None = None
        self.held: list[Claimed] = []
        self.written = False

    def crash(self) -> None:
        self.lease, self.held, self.written, self.cache = None, [], False, RecordsCache()


class Machine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.server = fakeredis.FakeServer()
        self.client = fakeredis.FakeStrictRedis(server=self.server)
        namespace = f"example-{next(_numbers)}"
        self.records: list[UUID] = _store.insert_many([MemoryRecord(text=f"{namespace}-{n}") for n in range(2)])
        options = RedisOptions(namespace=namespace, push_s=1.0, ceiling=6)
        _store.settings = Settings(namespace=namespace, spill_dir=self.folder / "spill", lane_ceiling=6)
        self.queue = ProvenanceWriteQueue(_store, connection=self.client)
        self.broker = cast("Any", self.queue._broker)
        self.broker.open()
        self.recorder = Recorder(self.folder / "history", namespace)
        self.workers = [Worker(RedisBroker(self.client, _store.store_id, 1, options)) for _ in range(2)]

    # -- producers and the line to Redis

    @rule(count=integers(1, 3), both=sampled_from([False, True]))
    def recall(self, count: int, both: bool) -> None:
        for _ in range(count):
            self.recorder.enqueue(self.queue, self.records if both else self.records[:1])

    @rule()
    def redis_goes(self) -> None:
        self.server.connected = False

    @rule()
    def redis_comes_back(self) -> None:
        self.server.connected = True
        if self.broker._push is None:
            self.broker.try_connect()

    @rule()
    def replay(self) -> None:
        self.broker._full_until = 0.0
        self.queue._background.replay()

    @rule()
    def client_restarts(self) -> None:
        self.queue._stopped = True
        self.queue._spill.close()
        self.queue._spill.reopen()
        self.queue._stopped = False

    # -- workers, a step at a time

    @precondition(lambda self: self.server.connected)
    @rule(who=integers(0, 1))
    def lease(self, who: int) -> None:
        worker = self.workers[who]
        lane = _store.lane(0)
        worker.crash()
        worker.lease = worker.broker.lease(0, lane.token)
        if worker.lease is not None:
            lane.raise_fence(worker.lease.token or 0)

    @precondition(lambda self: self.server.connected)
    @rule(who=integers(0, 1), most=integers(1, 4))
    def claim(self, who: int, most: int) -> None:
        worker = self.workers[who]
        if worker.lease is not None and not worker.held:
            try:
                worker.held = worker.broker.claim(worker.lease, most, 0)
                worker.written = False
            except LeaseLost:
                worker.crash()

    @rule(who=integers(0, 1))
    def write(self, who: int) -> None:
        worker = self.workers[who]
        if worker.held:
            batch = EntryBatch.of(item for item in worker.held if isinstance(item, Parcel))
            try:
                assert worker.lease is not None
                right = WriteRight(0, worker.lease.token or 0)
                _store.append_provenance_batch(batch, records_cache=worker.cache, right=right)
                worker.written = True
            except LeaseLost:
                worker.crash()

    @precondition(lambda self: self.server.connected)
    @rule(who=integers(0, 1))
    def ack(self, who: int) -> None:
        worker = self.workers[who]
        if worker.lease is not None and worker.written:
            try:
                worker.broker.ack(worker.lease, len(worker.held))
                worker.held, worker.written = [], False
            except LeaseLost:
                worker.crash()

    @rule(who=integers(0, 1))
    def worker_dies(self, who: int) -> None:
        self.workers[who].crash()

    @precondition(lambda self: self.server.connected)
    @rule()
    def lease_expires(self) -> None:
        self.client.delete(self.workers[0].broker.keys.lane(0, "lease"))

    @rule()
    def compaction(self) -> None:
        _store.lane(0).maintain(force=True)

    # -- what must hold

    @invariant()
    def nothing_is_wrong_so_far(self) -> None:
        if hasattr(self, "recorder"):
            verdict = check(self.history(), self.visible(), may_lose=[self.recorder._producer])
            assert verdict.clean, verdict

    def teardown(self) -> None:
        if not hasattr(self, "recorder"):
            return
        self.redis_comes_back()
        self.lease_expires()
        worker = self.workers[0]
        for _ in range(200):
            self.broker._full_until = 0.0  # the clock goes on
            self.queue._background.replay()
            self.lease(0)
            while worker.lease is not None:
                self.claim(0, 4)
                if not worker.held:
                    worker.broker.release(worker.lease)
                    break
                self.write(0)
                self.ack(0)
            if not self.queue._spill.active:
                break
        assert not self.queue._spill.active
        self.queue._spill.close()
        verdict = check(self.history(), self.visible())
        shutil.rmtree(self.folder)
        assert verdict.clean, verdict

    def history(self) -> Any:
        return read([self.folder / "history"])

    def visible(self) -> dict[str, list[str]]:
        found = {str(record): _store.get(record) for record in self.records}
        return {
            key: [entry["cue"] for entry in memory.provenance] if memory else [] for key, memory in found.items()
        }


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=12,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[
        Phase.explicit,
        Phase.reuse,
        Phase.generate,
    ],  # shrinking over real files takes minutes; the seed repeats
)
