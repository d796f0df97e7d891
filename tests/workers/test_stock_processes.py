"""Real stock ``rq worker`` processes alone: producers are gone, and lanes and spill drain to empty."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from rq import Queue
from rq.serializers import JSONSerializer

from iai_mcp.broker.redis.broker import RedisBroker
from iai_mcp.entries.routing import lane_of
from iai_mcp.store import MemoryStore
from tests.servers import Server, serving, worker
from tests.support import cues, finished, python, wait_until
from tests.test_store import _make

PATIENCE = 90  # a stock worker imports everything anew for each job


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "redis") as running:
        yield running


@pytest.fixture
def record_id(store: MemoryStore) -> UUID:
    return store.insert(_make())


def seen(store: MemoryStore, record_id: UUID) -> list[str]:
    record = store.get(record_id)
    assert record is not None
    return cues(record.provenance)


@contextmanager
def stock(server: Server, store: MemoryStore, log: Path, **env: str) -> Iterator[Any]:
    with worker(server.url_of("worker"), store.path, kind="stock", log=log, env=env) as process:
        yield process


PRODUCER = """
import os, signal, sys
from uuid import UUID
from iai_mcp.store import MemoryStore
store = MemoryStore(sys.argv[1])
store.enable_provenance_queue()
def say(cue):
    store.queue_provenance_batch([(UUID(sys.argv[2]), {"ts": "t", "cue": cue, "session_id": "s"})])
say("in Redis")
if sys.argv[3] == "spill":
    store.provenance_queue._broker._hang_up()  # the link goes
    store.provenance_queue._broker._next_probe = 1e9
    for number in range(40):
        say(f"spilled {number}")
os.kill(os.getpid(), signal.SIGKILL)
"""


def dead_producer(server: Server, store: MemoryStore, record_id: UUID, how: str) -> None:
    client = python(PRODUCER, store.path, record_id, how, IAI_MCP_REDIS_URL=server.url_of("producer"))
    client.communicate(timeout=60)
    assert client.returncode == -signal.SIGKILL


def empty_rq(server: Server) -> None:
    """Every doorbell on the queue is gone, as with a worker that was killed before it ran one."""
    Queue("provenance", connection=server.client(), serializer=JSONSerializer).empty()


def test_two_stock_workers_empty_the_lanes_and_the_spill_of_a_dead_producer(
    store: MemoryStore, server: Server, record_id: UUID, tmp_path: Path, home: Path
) -> None:
    dead_producer(server, store, record_id, "spill")
    empty_rq(server)
    spill = home / ".iai-mcp" / ".provenance-overflow"
    assert list(spill.glob("*.jsonl"))
    with stock(server, store, tmp_path / "a.log"), stock(server, store, tmp_path / "b.log"):
        said = ["in Redis", *[f"spilled {number}" for number in range(40)]]
        wait_until(lambda: seen(store, record_id) == said, PATIENCE)
        wait_until(lambda: not list(spill.glob("*.jsonl")), PATIENCE)


def test_an_idle_stock_worker_finds_what_a_producer_leaves_later(
    store: MemoryStore, server: Server, record_id: UUID, tmp_path: Path, home: Path
) -> None:
    finished(python(FIRST_CONTACT, store.path, IAI_MCP_REDIS_URL=server.url_of("producer")))
    with stock(server, store, tmp_path / "a.log"):
        wait_until(lambda: "Job OK" in (tmp_path / "a.log").read_text(), PATIENCE)  # idle from now on
        dead_producer(server, store, record_id, "spill")
        empty_rq(server)
        wait_until(lambda: len(seen(store, record_id)) == 41, PATIENCE)


FIRST_CONTACT = """
import sys
from iai_mcp.store import MemoryStore
store = MemoryStore(sys.argv[1])
store.enable_provenance_queue()
store.disable_provenance_queue()
"""


def test_a_lane_whose_worker_was_killed_is_drained_by_the_next_job(
    store: MemoryStore, server: Server, record_id: UUID, tmp_path: Path
) -> None:
    """The doorbell comes while the dead worker's lease lives: the job waits for it to run out."""
    dead_producer(server, store, record_id, "push")
    broker = RedisBroker(server.client(), store.store_id, store.lanes)
    broker._lease_s = 8.0
    assert broker.lease(lane_of(record_id, store.lanes)) is not None  # and its holder is never seen again
    with stock(server, store, tmp_path / "a.log"):
        wait_until(lambda: seen(store, record_id) == ["in Redis"], PATIENCE)


def test_a_killed_work_horse_is_followed_by_another(
    store: MemoryStore, server: Server, record_id: UUID, tmp_path: Path
) -> None:
    dead_producer(server, store, record_id, "push")
    empty_rq(server)
    with stock(server, store, tmp_path / "a.log") as process:
        horses = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        horse = wait_until(lambda: horses.read_text().split(), PATIENCE)[0]
        os.kill(int(horse), signal.SIGKILL)
        wait_until(lambda: seen(store, record_id) == ["in Redis"], PATIENCE)
