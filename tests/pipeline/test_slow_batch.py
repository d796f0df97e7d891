"""A batch that takes longer to write than several leases: one worker writes it, once."""

from __future__ import annotations

import threading
import time
from typing import Any

import fakeredis
import pytest

from iai_mcp.broker.redis.broker import RedisBroker
from iai_mcp.broker.redis.options import RedisOptions
from iai_mcp.config import Settings
from iai_mcp.entries.routing import lane_of
from iai_mcp.pipeline.drain import Outcome
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.store import MemoryStore
from tests.support import cues, pairs, wait_until
from tests.test_store import _make
from workers.runner import LaneRunner

LEASE_S = 0.3


class SlowStore(MemoryStore):
    """Each write takes five leases."""

    writes = 0

    def append_provenance_batch(self, *args: Any, **further: Any) -> Any:
        self.writes += 1
        time.sleep(5 * LEASE_S)
        return super().append_provenance_batch(*args, **further)


def test_a_batch_slower_than_three_leases_is_written_once(store: MemoryStore) -> None:
    slow = SlowStore(store.path, settings=Settings(lease_s=LEASE_S, embedder="none"))
    connection = fakeredis.FakeStrictRedis()
    record_id = store.insert(_make())
    lane = lane_of(record_id, store.lanes)
    queue = ProvenanceWriteQueue(slow, connection=connection)
    queue.start()
    queue.enqueue(pairs(record_id, "abc"))
    queue.stop()
    runners = [LaneRunner(slow, connection) for _ in range(2)]
    outcomes: list[Outcome] = []

    def work(runner: LaneRunner) -> None:
        while runner.broker.busy_lanes():
            outcomes.append(runner.drain(lane).outcome)
            time.sleep(0.02)

    crowd = [threading.Thread(target=work, args=(runner,)) for runner in runners]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join(60)
    assert slow.writes == 1
    assert Outcome.LOST not in outcomes
    record = store.get(record_id)
    assert record is not None
    assert cues(record.provenance) == ["a", "b", "c"]


def test_a_lease_is_kept_no_longer_than_its_block() -> None:
    broker = RedisBroker(fakeredis.FakeStrictRedis(), "0" * 32, 1, RedisOptions(lease_s=LEASE_S))
    broker.open()
    lease = broker.lease(0)
    assert lease is not None
    with broker.keep(lease):
        time.sleep(3 * LEASE_S)
        assert broker.lease(0) is None
    assert wait_until(lambda: broker.lease(0), 3 * LEASE_S + 1)


def test_a_write_that_hangs_loses_the_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iai_mcp.broker.redis.lease_keeper.KEEP_S", 2 * LEASE_S)
    broker = RedisBroker(fakeredis.FakeStrictRedis(), "0" * 32, 1, RedisOptions(lease_s=LEASE_S))
    broker.open()
    lease = broker.lease(0)
    assert lease is not None
    with broker.keep(lease):
        assert wait_until(lambda: broker.lease(0), 20 * LEASE_S)
