"""A queue that stops in or after an outage: it replays its own spill within its budget, and says what stays."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fakeredis
import filelock
import pytest
from rq import Queue
from rq.serializers import JSONSerializer

from iai_mcp.config import Settings
from iai_mcp.entries.parcel import Parcel
from iai_mcp.entries.routing import lane_of
from iai_mcp.errors import StoreUnavailable
from iai_mcp.pipeline import recovery
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.spill.adoption import adopt
from iai_mcp.spill.chain import Chain
from iai_mcp.spill.writer import Spill
from iai_mcp.storage.locked_file import is_held
from iai_mcp.store import MemoryStore
from tests.chaos.proxy import Proxy
from tests.pipeline.test_queue import spill_files
from tests.pipeline.test_replay import Pipeline
from tests.servers import Server, serving
from tests.support import cues, entry, finished, pairs, python, wait_until
from tests.test_store import _make


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "redis") as running:
        yield running


def stopped(queue: ProvenanceWriteQueue) -> float:
    """Stop the queue; the seconds that it took."""
    began = time.monotonic()
    queue.stop()
    return time.monotonic() - began


def left(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """What the log says about entries that stay."""
    return [one.__dict__["fields"] for one in caplog.records if getattr(one, "event", None) == "spill_left"]


def test_what_was_spilled_just_before_a_stop_is_replayed_by_it(
    store: MemoryStore, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = Pipeline(store)
    said = pipeline.spill(100)
    pipeline.server.connected = True  # the link was away for a moment
    pipeline.queue.stop()
    assert spill_files(home) == []
    assert pipeline.pushed() == said
    assert left(caplog) == []


def test_the_stop_rings_for_what_it_replays(store: MemoryStore) -> None:
    pipeline = Pipeline(store)
    doorbells = Queue("provenance", connection=fakeredis.FakeStrictRedis(server=pipeline.server))
    pipeline.spill(1)
    pipeline.server.connected = True
    assert doorbells.count == 0
    pipeline.queue.stop()
    assert doorbells.count == 1


def test_the_stop_rings_for_a_lane_whose_worker_may_die(store: MemoryStore) -> None:
    pipeline = Pipeline(store)
    doorbells = Queue("provenance", connection=pipeline.broker.control, serializer=JSONSerializer)
    pipeline.broker.lease(lane_of(pipeline.record_id, store.lanes))
    pipeline.enqueue("while a worker holds the lane")
    pipeline.queue.stop()
    assert doorbells.count == 1


def test_the_log_says_what_stays_and_who_takes_it(
    store: MemoryStore, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = Pipeline(store)
    said = pipeline.spill(3)
    assert stopped(pipeline.queue) < 2.5  # far from the whole budget: nothing moves
    (found,) = left(caplog)
    assert found["entries"] == 3
    assert found["folder"] == str(home / ".iai-mcp" / ".provenance-overflow")
    assert "iai-mcp spill replay" in found["taken_by"]
    pipeline.server.connected = True
    pipeline.queue.start()
    assert pipeline.pushed() == said
    pipeline.queue.stop()


def test_a_full_lane_stays_in_the_spill_within_the_budget(
    store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = Pipeline(store, lane_ceiling=10, stop_budget=1.0)
    for turn in range(30):
        pipeline.enqueue(str(turn))
    assert stopped(pipeline.queue) < 2
    assert [found["entries"] for found in left(caplog)] == [20]


def test_a_journal_is_replayed_whole(store: MemoryStore, home: Path) -> None:
    pipeline = Pipeline(store, journal="write")
    said = [str(turn) for turn in range(300)]
    for cue in said:
        pipeline.enqueue(cue)
    pipeline.queue.stop()
    assert spill_files(home) == []
    assert pipeline.pushed() == said


def test_a_server_that_hangs_does_not_hold_up_a_stop(
    store: MemoryStore, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore(store.path, settings=Settings(stop_budget=1.0))
    queue = ProvenanceWriteQueue(store, connection=server.client("producer"))
    queue.start()
    record_id = store.insert(_make())
    server.send(signal.SIGSTOP)
    try:
        queue.enqueue(pairs(record_id, "abc"))
        assert stopped(queue) < 2
    finally:
        server.send(signal.SIGCONT)
    assert [found["entries"] for found in left(caplog)] == [3]


def test_a_doorbell_that_hangs_does_not_hold_up_a_stop(store: MemoryStore, server: Server) -> None:
    store = MemoryStore(store.path, settings=Settings(stop_budget=0.5, push_budget_ms=2000))
    queue = ProvenanceWriteQueue(store, connection=server.client("producer"))
    record_id = store.insert(_make())
    queue._broker.open()  # type: ignore[union-attr]
    queue._running = True  # without the thread, which would ring at once
    queue.enqueue(pairs(record_id, "a"))
    server.send(signal.SIGSTOP)
    try:
        assert stopped(queue) < 1.5
    finally:
        server.send(signal.SIGCONT)


def test_an_embedded_queue_drains_its_spill_before_it_stops(store: MemoryStore, home: Path) -> None:
    queue = ProvenanceWriteQueue(store, max_queue_size=2)
    record_id = store.insert(_make())
    queue.start()
    with filelock.FileLock(store.layout.lane_lock(lane_of(record_id, store.lanes))):
        for turn in range(20):
            queue.enqueue(pairs(record_id, [turn]))
    assert queue.counts.spilled > 0
    queue.stop()
    record = store.get(record_id)
    assert record is not None
    assert cues(record.provenance) == [str(turn) for turn in range(20)]
    assert spill_files(home) == []


def test_an_embedded_queue_says_what_stays(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: object, **__: object) -> None:
        raise StoreUnavailable("the disk is away")

    store = MemoryStore(store.path, settings=Settings(stop_budget=0.5))
    monkeypatch.setattr(store, "append_provenance_batch", away)
    queue = ProvenanceWriteQueue(store)
    queue.start()
    queue.enqueue(pairs(store.insert(_make()), "abc"))
    assert stopped(queue) < 2
    assert [found["entries"] for found in left(caplog)] == [3]


SHORT_LIVED = """
import sys
from uuid import UUID
from iai_mcp.store import MemoryStore
store = MemoryStore(sys.argv[1])
store.enable_provenance_queue()
print("ready", flush=True)
sys.stdin.readline()  # the link is down now
for turn in range(50):
    store.queue_provenance_batch([(UUID(sys.argv[2]), {"ts": "t", "cue": str(turn), "session_id": "s"})])
print("spilled", flush=True)
sys.stdin.readline()  # and up again: the process ends, and its exit hook stops the queue
"""


def test_the_exit_hook_replays_too(store: MemoryStore, server: Server, home: Path) -> None:
    proxy = Proxy(server.port)
    record_id = store.insert(_make())
    url = server.url_of("producer").replace(str(server.port), str(proxy.port))
    client = python(SHORT_LIVED, store.path, record_id, IAI_MCP_REDIS_URL=url)
    assert client.stdin is not None
    assert client.stdout is not None
    try:
        for mode, said in (("down", "ready"), ("pass", "spilled")):
            assert client.stdout.readline().strip() == said
            proxy.set(mode)
            client.stdin.write("\n")
            client.stdin.flush()
        finished(client)
    finally:
        proxy.close()
    assert spill_files(home) == []
    lane = f"iai-mcp:{store.store_id}:lane:{lane_of(record_id, store.lanes)}:pending"
    assert server.client().llen(lane) == 50


def test_a_thread_that_adopts_while_its_queue_stops_gives_the_files_up(
    store: MemoryStore, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_id = store.insert(_make())
    overflow = home / ".iai-mcp" / ".provenance-overflow"
    left = Spill(store.store_id, "ab" * 8, overflow)
    one = (record_id, 1, entry("a"))
    left.append([Parcel.of(store.store_id, lane_of(record_id, store.lanes), "ab" * 8, 1.0, [one])], overflow)
    adopting, go_on = threading.Event(), threading.Event()

    def slow(folder: Path, store_id: str, *proof: Any) -> list[Chain]:
        found = [*adopt(folder, store_id, *proof)]
        if found:
            adopting.set()
            assert go_on.wait(20)
        return found

    late = MemoryStore(store.path, settings=Settings(stop_budget=0))
    monkeypatch.setattr("iai_mcp.pipeline.background.adopt", slow)
    late.enable_provenance_queue()
    left.close()
    (file,) = overflow.glob("*-1000000.jsonl")
    assert adopting.wait(20)
    late.disable_provenance_queue()
    assert is_held(file)
    go_on.set()
    wait_until(lambda: not is_held(file), 20)
    assert recovery.apply(store).applied == 1
