"""What a producer handed out stays known beside the store, though Redis forgets it and the producer is gone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from iai_mcp.config import Settings
from iai_mcp.maintenance.verify import Report, verify
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.store import MemoryStore
from tests.servers import Server, serving
from tests.support import pairs, python, wait_until
from tests.test_store import _make
from workers.runner import runner_for

PRODUCER = """
import sys, time
from uuid import UUID
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.store import MemoryStore
queue = ProvenanceWriteQueue(MemoryStore())
queue.start()
queue.enqueue([(UUID(sys.argv[1]), {"ts": "t", "cue": str(n), "session_id": "s"}) for n in range(5)])
print("handed out", flush=True)
time.sleep(600)
"""


@pytest.fixture
def record_id(store: MemoryStore) -> UUID:
    return store.insert(_make())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "redis") as running:
        yield running


def patient(store: MemoryStore, server: Server) -> MemoryStore:
    return MemoryStore(store.path, settings=Settings(push_budget_ms=2000, redis_url=server.url))


def recall(store: MemoryStore, record_id: UUID, entries: int) -> str:
    """A client that ends at once; its producer."""
    queue = ProvenanceWriteQueue(store)
    queue.start()
    queue.enqueue(pairs(record_id, range(entries)))
    queue.stop()
    return queue.producer


def inspected(store: MemoryStore, server: Server) -> Report:
    return verify(store.layout, replace(store.settings, redis_url=server.url), settle=0.0)


def test_what_short_lived_clients_handed_out_is_missed_when_redis_forgets_it(
    store: MemoryStore, server: Server, record_id: UUID
) -> None:
    producers = {recall(patient(store, server), record_id, 10) for _ in range(3)}
    assert inspected(store, server).total["pending"] == 30
    server.client().flushall()
    report = inspected(store, server)
    assert (report.total["handed_out"], report.total["lost"], report.clean) == (30, 30, False)
    assert {one.producer: one.lost for one in report.producers} == dict.fromkeys(producers, ((1, 10),))


def test_a_producer_whose_entries_are_in_the_store_leaves_nothing_behind(
    store: MemoryStore, server: Server, record_id: UUID
) -> None:
    client = patient(store, server)
    queue = ProvenanceWriteQueue(client)
    queue.start()
    queue.enqueue(pairs(record_id, "abc"))
    runner = runner_for(store.store_id, server.client("worker"))
    wait_until(lambda: runner.drain_all() and queue.flush(0.1), 20)
    queue.stop()
    assert not store.layout.producers.exists()
    assert not [*store.layout.locks.glob("producer-*")]
    assert inspected(store, server).clean


def test_a_killed_producer_is_missed_too_and_the_report_says_what_it_cannot_know(
    store: MemoryStore, server: Server, record_id: UUID
) -> None:
    process = python(PRODUCER, record_id, IAI_MCP_REDIS_URL=server.url, IAI_MCP_STORE=str(store.path))
    assert process.stdout is not None
    assert process.stdout.readline() == "handed out\n"
    wait_until(lambda: inspected(store, server).total["handed_out"] == 5)
    (note,) = store.layout.locks.glob("producer-*")
    wait_until(lambda: b'"handed_out":5' in note.read_bytes())
    process.kill()
    process.communicate()
    server.client().flushall()
    report = inspected(store, server)
    assert (report.total["lost"], report.killed, report.clean) == (5, 1, False)
    recall(patient(store, server), record_id, 1)  # the next producer logs the dead one, and removes its file
    report = inspected(store, server)
    assert (report.total["lost"], report.total["pending"], report.killed) == (5, 1, 1)
    assert not [*store.layout.locks.glob("producer-*")]


def test_a_living_producer_has_lost_nothing(store: MemoryStore, server: Server, record_id: UUID) -> None:
    queue = ProvenanceWriteQueue(patient(store, server))
    queue.start()
    queue.enqueue(pairs(record_id, "abc"))
    server.client().flushall()  # it will push them again
    assert inspected(store, server).clean
    queue.stop()
