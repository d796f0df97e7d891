"""``IAI_MCP_REDIS_DURABILITY=fsync``: an entry counts once it is on a disk, Redis's or the spill's."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import fakeredis
import pytest

from iai_mcp.broker.factory import redis_broker
from iai_mcp.broker.protocol import Pushed, Refused
from iai_mcp.broker.redis.broker import RedisBroker
from iai_mcp.broker.redis.client import Deadline, push_client
from iai_mcp.broker.redis.durable import DurableRedisBroker
from iai_mcp.broker.redis.options import RedisOptions
from iai_mcp.broker.redis.waitaof import Pace, on_disk, pace
from iai_mcp.config import Settings
from iai_mcp.core import dispatch
from iai_mcp.entries.parcel import Parcel
from iai_mcp.errors import ConfigError
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.store import MemoryStore
from tests.broker.redis.test_redis import Start, broker_of, lanes_now, record_id, seen, spill_files, start  # noqa: F401
from tests.servers import Server, serving
from tests.support import entry, pairs, wait_until
from workers.runner import runner_for

DURABLE = Settings(redis_durability="fsync", push_budget_ms=2000)
OPTIONS = RedisOptions.of(DURABLE)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "redis", "--appendfsync", "always") as running:
        yield running


@pytest.fixture
def durable(store: MemoryStore) -> MemoryStore:
    """The store for a client that insists on the disk, and that a busy machine does not make spill."""
    return MemoryStore(store.path, settings=DURABLE)


def test_the_setting_decides_which_broker_it_is(server: Server) -> None:
    made = redis_broker(DURABLE, "ab" * 16, 4, server.client())
    assert isinstance(made, DurableRedisBroker)
    assert not isinstance(redis_broker(Settings(), "ab" * 16, 4, server.client()), DurableRedisBroker)
    with pytest.raises(ConfigError, match="IAI_MCP_REDIS_DURABILITY='disk' is not one of memory, fsync"):
        Settings.load({"IAI_MCP_REDIS_DURABILITY": "disk"})


def test_a_push_and_its_confirmation_are_one_round_trip(
    durable: MemoryStore,
    server: Server,
    record_id: UUID,  # noqa: F811
    start: Start,  # noqa: F811
    home: Path,
) -> None:
    queue = start(server.client("producer"), durable)
    before = server.client().info("commandstats").get("cmdstat_waitaof", {"calls": 0})["calls"]
    for turn in range(10):
        queue.enqueue(pairs(record_id, [turn]))
    calls = server.client().info("commandstats")["cmdstat_waitaof"]["calls"] - before
    assert (calls, broker_of(queue).round_trips, lanes_now(queue)) == (10, 10, (10, 0))
    assert not spill_files(home)
    runner_for(durable.store_id, server.client("worker")).drain_all()
    assert seen(durable, record_id) == [str(turn) for turn in range(10)]


def test_flushed_scripts_are_loaded_again_and_confirmed_all_the_same(
    store: MemoryStore,
    server: Server,
    record_id: UUID,  # noqa: F811
    start: Start,  # noqa: F811
    home: Path,
) -> None:
    full = MemoryStore(store.path, settings=replace(DURABLE, lane_ceiling=1))
    queue = start(server.client("producer"), full)
    server.client().script_flush()
    queue.enqueue(pairs(record_id, "ab"))  # above the ceiling, into an empty lane: only the script tells
    assert lanes_now(queue) == (2, 0)
    assert not spill_files(home)


def test_with_everysec_entries_go_through_the_spill_and_it_is_said_once(
    store: MemoryStore,
    tmp_path: Path,
    record_id: UUID,  # noqa: F811
    start: Start,  # noqa: F811
    home: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No recall waits for the next fsync, and a file goes once WAITAOF has confirmed what came from it."""
    hasty = MemoryStore(store.path, settings=Settings(redis_durability="fsync", push_budget_ms=100))
    with serving(tmp_path / "redis", "--appendfsync", "everysec") as server:
        with caplog.at_level(logging.WARNING, logger="iai_mcp"):
            queue = start(server.client("producer"), hasty)
            for turn in range(20):
                queue.enqueue(pairs(record_id, [turn]))
        assert queue.counts.spilled == 20
        assert "appendfsync always" in str(queue.trouble)
        assert [line.levelname for line in caplog.records if "appendfsync always" in line.message] == ["ERROR"]
        wait_until(lambda: sum(lanes_now(queue)) >= 20)
        wait_until(lambda: not spill_files(home))
        runner_for(store.store_id, server.client("worker")).drain_all()
        assert seen(store, record_id) == [str(turn) for turn in range(20)]
        server.client().config_set("appendfsync", "always")
        wait_until(lambda: queue.trouble is None)
        queue.enqueue(pairs(record_id, ["direct"]))
        assert queue.counts.spilled == 20
        queue.stop()


def test_what_was_replayed_and_not_confirmed_is_replayed_again_ahead_of_what_follows(
    store: MemoryStore,
    tmp_path: Path,
    record_id: UUID,  # noqa: F811
    start: Start,  # noqa: F811
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hasty = MemoryStore(store.path, settings=Settings(redis_durability="fsync", push_budget_ms=100))
    with serving(tmp_path / "redis", "--appendfsync", "everysec") as server:
        there = [False]
        monkeypatch.setattr("iai_mcp.broker.redis.durable.on_disk", lambda client: there[0] and on_disk(client))
        queue = start(server.client("producer"), hasty)
        queue.enqueue(pairs(record_id, "ab"))
        wait_until(lambda: sum(lanes_now(queue)) == 2)
        assert spill_files(home)  # read, and kept
        server.kill()
        (incr,) = (server.folder / "appendonlydir").glob("*.incr.aof")
        incr.write_bytes(b"")  # the power went: nothing of it was synced
        there[0] = True
        queue.enqueue(pairs(record_id, "c"))
        Server.start(server)
        wait_until(lambda: not spill_files(home), 15)
        runner_for(store.store_id, server.client("worker")).drain_all()
        assert seen(store, record_id) == ["a", "b", "c"]
        queue.stop()


def test_a_look_does_not_wait_and_sees_the_disk_of_its_own_connection(tmp_path: Path) -> None:
    with serving(tmp_path / "redis", "--appendfsync", "everysec") as server:
        client = push_client(server.client(), Deadline())
        assert pace(client, "counts", 0.2) is Pace.LATE
        client.incr("written")
        assert not on_disk(client)
        wait_until(lambda: on_disk(client))
        server.client().config_set("appendfsync", "always")
        assert pace(client, "counts", 2.0) is Pace.QUICK
        client.close()


# -- servers that cannot do it


@pytest.mark.parametrize(
    ("fake", "said"),
    [
        (True, "needs WAITAOF: Redis 7.2 or newer"),
        (False, "needs a Redis with appendonly yes"),
    ],
)
def test_a_server_that_cannot_confirm_is_said_and_nothing_is_lost(
    store: MemoryStore,
    tmp_path: Path,
    record_id: UUID,  # noqa: F811
    home: Path,
    caplog: pytest.LogCaptureFixture,
    fake: bool,
    said: str,
) -> None:
    durable = MemoryStore(store.path, settings=DURABLE)
    server = Server(tmp_path / "redis", "--appendonly", "no")
    connection = fakeredis.FakeStrictRedis() if fake else server.start().client("producer")
    try:
        with caplog.at_level(logging.ERROR, logger="iai_mcp"):
            queue = ProvenanceWriteQueue(durable, connection=connection)
            queue.start()
            queue.enqueue(pairs(record_id, "a"))
            queue.stop()
    finally:
        server.kill()
    (line,) = caplog.messages
    assert said in line
    assert line.startswith("IAI_MCP_REDIS_DURABILITY=fsync")
    assert len(spill_files(home)) == 1


def test_a_server_before_7_2_is_refused_by_version(store: MemoryStore) -> None:
    class Old:
        def execute_command(self, *_: Any) -> bytes:
            return b"redis_version:7.0.15\r\n"

    RedisBroker(fakeredis.FakeStrictRedis(), store.store_id, 4).check_server(Old())  # type: ignore[arg-type]
    broker = redis_broker(DURABLE, store.store_id, 4, fakeredis.FakeStrictRedis())
    with pytest.raises(ConfigError, match=r"Redis 7\.0\.15 has no WAITAOF: .* needs 7\.2 or newer"):
        broker.check_server(Old())  # type: ignore[arg-type]


def test_the_embedded_broker_does_not_mind(store: MemoryStore, record_id: UUID) -> None:  # noqa: F811
    durable = MemoryStore(store.path, settings=DURABLE)
    durable.enable_provenance_queue()
    dispatch(durable, "memory_recall", {"cue": "x", "session_id": "s", "cue_embedding": [1.0] * 384})
    durable.disable_provenance_queue()
    assert seen(store, record_id) == ["x"]


def test_a_wipe_before_the_confirmation_means_that_the_files_are_replayed_anew(server: Server) -> None:
    broker = DurableRedisBroker(server.client("producer"), "ab" * 16, 4, OPTIONS)
    broker.open()
    parcel = Parcel.of("ab" * 16, 0, "p", time.time(), [(uuid4(), 1, entry("a"))])
    assert isinstance(broker.push([parcel], replay=True), Pushed)
    server.client().flushall()
    assert not broker.is_durable(broker.mark())
    assert isinstance(broker.push([parcel]), Refused)  # nothing goes past what is replayed anew
    assert broker.needs_replay()
    assert broker.try_connect()
    assert isinstance(broker.push([parcel], replay=True), Pushed)
    assert broker.is_durable(broker.mark())
