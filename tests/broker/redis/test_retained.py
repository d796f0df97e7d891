"""What Redis forgets its producers push again: once, in order, and before anything new."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

import fakeredis
import pytest
import redis

from iai_mcp.broker.protocol import Pushed
from iai_mcp.broker.redis.broker import RedisBroker
from iai_mcp.broker.redis.keys import Keys
from iai_mcp.broker.redis.retained import Part, Ring
from iai_mcp.broker.redis.sender import Sender
from iai_mcp.config import Settings
from iai_mcp.entries.parcel import Parcel
from iai_mcp.entries.routing import lane_of
from iai_mcp.errors import ConfigError
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.spill.writer import Spill
from iai_mcp.store import MemoryStore
from tests.broker.redis.test_redis import (
    Start,
    broker_of,
    lanes_now,
    patient,
    record_id,  # noqa: F401
    seen,
    spill_files,
    start,  # noqa: F401
)
from tests.chaos.proxy import Proxy
from tests.servers import Server, serving
from tests.support import entry, pairs, wait_until
from workers.runner import runner_for


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "redis") as running:
        yield running


def drain(store: MemoryStore, connection: redis.Redis, queue: ProvenanceWriteQueue) -> None:
    """Drain as a worker does until all that was enqueued is in the store."""
    runner = runner_for(store.store_id, connection)
    wait_until(lambda: runner.drain_all() and queue.flush(0.1), 30)


def wipe(server: Server) -> None:
    server.client().flushall()


def restart_empty(server: Server) -> None:
    """kill -9, and an append-only file of which nothing had reached the disk."""
    server.kill()
    shutil.rmtree(server.folder / "appendonlydir")
    server.start()


def restart_older(server: Server) -> None:
    """kill -9, and an append-only file whose end had not reached the disk."""
    server.kill()
    (log,) = (server.folder / "appendonlydir").glob("*.incr.aof")
    commands = log.read_bytes().split(b"*1\r\n$5\r\nMULTI\r\n")
    log.write_bytes(b"*1\r\n$5\r\nMULTI\r\n".join(commands[: len(commands) // 2]))
    server.start()


LOSSES = [wipe, restart_empty, restart_older]


@pytest.mark.parametrize("lose", LOSSES, ids=lambda how: how.__name__)
@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
def test_what_redis_loses_is_pushed_again_in_front_of_everything_new(
    store: MemoryStore,
    server: Server,
    record_id: UUID,  # noqa: F811
    start: Start,  # noqa: F811
    lose: Callable[[Server], None],
    busy: bool,
) -> None:
    queue = start(server.client("producer"), patient(store))
    for turn in range(20):
        queue.enqueue(pairs(record_id, [turn]))
    lose(server)
    if busy:
        for turn in range(20, 40):
            queue.enqueue(pairs(record_id, [turn]))
    wait_until(lambda: broker_of(queue).trouble is None and sum(lanes_now(queue)) >= 20, 20)
    drain(store, server.client("worker"), queue)
    assert seen(store, record_id) == [str(turn) for turn in range(40 if busy else 20)]
    assert broker_of(queue).retained == 0


def test_a_lane_that_redis_evicts_is_pushed_again(
    store: MemoryStore,
    server: Server,
    record_id: UUID,  # noqa: F811
    start: Start,  # noqa: F811
) -> None:
    """Row 48. Eviction takes a whole key; the next drain finds that more entries were counted than came."""
    queue = start(server.client("producer"), patient(store))
    for cue in "abc":
        queue.enqueue(pairs(record_id, cue))
    lane = Keys("", store.store_id).lane(lane_of(record_id, store.lanes), "pending")
    assert server.client().delete(lane) == 1
    queue.enqueue(pairs(record_id, "d"))
    drain(store, server.client("worker"), queue)
    assert sorted(seen(store, record_id)) == [*"abcd"]


def test_a_push_again_that_is_refused_half_way_goes_on_from_there(
    store: MemoryStore,
    server: Server,
    record_id: UUID,  # noqa: F811
    start: Start,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A Redis at its memory limit takes some of it each time."""
    queue = start(server.client("producer"), patient(store))
    for turn in range(6):
        queue.enqueue(pairs(record_id, [turn]))
    monkeypatch.setattr("iai_mcp.broker.redis.retained.AGAIN_BYTES", 1)
    real, calls = Sender.send_again, count()

    def every_other(sender: Sender, parts: list[Part]) -> list[int]:
        if next(calls) % 2:
            raise redis.exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'")
        return real(sender, parts)

    monkeypatch.setattr(Sender, "send_again", every_other)
    wipe(server)
    wait_until(lambda: broker_of(queue).trouble is None and sum(lanes_now(queue)) >= 6, 30)
    drain(store, server.client("worker"), queue)
    assert seen(store, record_id) == [str(turn) for turn in range(6)]


def test_what_a_dead_client_left_stays_in_order_over_a_second_outage(
    store: MemoryStore,
    server: Server,
    record_id: UUID,  # noqa: F811
    start: Start,  # noqa: F811
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client adopts the files, pushes a part of them, and stops while Redis is down, which loses that part."""
    overflow = home / ".iai-mcp" / ".provenance-overflow"
    dead = "00" * 8  # its files come first by name
    left = Spill(store.store_id, dead, overflow, max_bytes=1)  # a file for each
    for seq, cue in enumerate("abcd", 1):
        one = Parcel.of(store.store_id, lane_of(record_id, store.lanes), dead, 1.0, [(record_id, seq, entry(cue))])
        left.append([one], overflow)
    left.close()
    real = RedisBroker.push

    def once(broker: RedisBroker, parcels: list[Parcel], **options: Any) -> Any:
        done = real(broker, parcels, **options)
        if isinstance(done, Pushed):
            server.kill()
        return done

    with monkeypatch.context() as patch:
        patch.setattr(RedisBroker, "push", once)
        queue = start(server.client("producer"), patient(store))
        wait_until(lambda: broker_of(queue).trouble is not None, 20)
        queue.stop()
    shutil.rmtree(server.folder / "appendonlydir")
    server.start()
    queue = start(server.client("producer"), patient(store))
    drain(store, server.client("worker"), queue)
    wait_until(lambda: len(seen(store, record_id)) == 4, 20)
    assert seen(store, record_id) == [*"abcd"]


def test_without_retention_it_is_lost(
    store: MemoryStore,
    server: Server,
    record_id: UUID,  # noqa: F811
    start: Start,  # noqa: F811
) -> None:
    queue = start(server.client("producer"), patient(store, retain_mb=0.0))
    queue.enqueue(pairs(record_id, "ab"))
    wipe(server)
    queue.enqueue(pairs(record_id, "c"))
    drain(store, server.client("worker"), queue)
    assert seen(store, record_id) == ["c"]


def test_a_wiped_server_is_noticed_though_others_have_pushed_as_much_since(
    store: MemoryStore,
    server: Server,
    record_id: UUID,  # noqa: F811
    start: Start,  # noqa: F811
) -> None:
    quiet, loud = (start(server.client("producer"), patient(store)) for _ in range(2))
    quiet.enqueue(pairs(record_id, "ab"))
    wipe(server)
    for turn in range(10):
        loud.enqueue(pairs(record_id, [turn]))
    drain(store, server.client("worker"), loud)
    drain(store, server.client("worker"), quiet)
    trail = seen(store, record_id)
    assert sorted(trail) == sorted(["a", "b", *map(str, range(10))])
    assert [cue for cue in trail if cue in "ab"] == ["a", "b"]


def test_what_is_in_the_store_is_not_pushed_again(
    store: MemoryStore,
    server: Server,
    record_id: UUID,  # noqa: F811
    start: Start,  # noqa: F811
) -> None:
    queue = start(server.client("producer"), patient(store))
    queue.enqueue(pairs(record_id, "abc"))
    drain(store, server.client("worker"), queue)
    wipe(server)
    queue.enqueue(pairs(record_id, "d"))
    wait_until(lambda: sum(lanes_now(queue)) == 1)
    drain(store, server.client("worker"), queue)
    assert seen(store, record_id) == [*"abcd"]


def test_a_failover_to_a_replica_that_lags(
    store: MemoryStore,
    tmp_path: Path,
    record_id: UUID,  # noqa: F811
    start: Start,  # noqa: F811
) -> None:
    with serving(tmp_path / "one", acl=False) as first, serving(tmp_path / "two", acl=False) as second:
        link, front = Proxy(first.port), Proxy(first.port)
        try:
            second.client().execute_command("REPLICAOF", "127.0.0.1", link.port)
            wait_until(lambda: second.client().info("replication")["master_link_status"] == "up", 20)
            queue = start(redis.Redis(port=front.port), patient(store))
            for turn in range(10):
                queue.enqueue(pairs(record_id, [turn]))
            wait_until(lambda: first.client().wait(1, 1000) == 1)
            link.set("down")
            for turn in range(10, 20):
                queue.enqueue(pairs(record_id, [turn]))
            first.kill()
            second.client().execute_command("REPLICAOF", "NO", "ONE")
            front.target(second.port)
            for turn in range(20, 30):
                queue.enqueue(pairs(record_id, [turn]))
            drain(store, second.client(), queue)
            assert seen(store, record_id) == [str(turn) for turn in range(30)]
        finally:
            link.close()
            front.close()


def test_a_full_ring_means_spill_and_the_spill_follows_in_order(
    store: MemoryStore,
    server: Server,
    record_id: UUID,  # noqa: F811
    start: Start,  # noqa: F811
    home: Path,
) -> None:
    queue = start(server.client("producer"), patient(store, retain_mb=0.02))
    for turn in range(200):
        queue.enqueue(pairs(record_id, [turn]))
    assert 0 < (broker_of(queue).retained or 0) < 200
    assert spill_files(home)
    assert broker_of(queue).trouble is None
    drain(store, server.client("worker"), queue)
    assert seen(store, record_id) == [str(turn) for turn in range(200)]
    wait_until(lambda: not spill_files(home))


def test_the_stand_in_for_redis_forgets_as_redis_does(
    store: MemoryStore,
    record_id: UUID,  # noqa: F811
    start: Start,  # noqa: F811
) -> None:
    connection = fakeredis.FakeStrictRedis()
    queue = start(connection)
    queue.enqueue(pairs(record_id, "ab"))
    connection.flushall()
    queue.enqueue(pairs(record_id, "c"))
    drain(store, connection, queue)
    assert seen(store, record_id) == [*"abc"]


@pytest.mark.parametrize("durability", ["memory", "fsync"])
def test_wiped_again_and_again_while_threads_push(
    store: MemoryStore,
    server: Server,
    start: Start,  # noqa: F811
    durability: str,
) -> None:
    """Two threads, a worker's drains between them, and a wipe whenever it hurts."""
    server.client().config_set("appendfsync", "always" if durability == "fsync" else "everysec")
    queue = start(server.client("producer"), patient(store, redis_durability=durability))
    from tests.test_store import _make

    ids = store.insert_many([_make() for _ in range(4)])
    over = threading.Event()

    def recall(name: str) -> None:
        for turn in range(150):
            queue.enqueue([(one, entry(f"{name}{turn:03}")) for one in ids])

    threads = [threading.Thread(target=recall, args=(name,)) for name in "ab"]

    def wipes() -> None:
        while not over.wait(0.05):
            wipe(server)

    wiper = threading.Thread(target=wipes)
    for thread in (*threads, wiper):
        thread.start()
    for thread in threads:
        thread.join(60)
    over.set()
    wiper.join(10)
    drain(store, server.client("worker"), queue)
    for one in ids:
        trail = seen(store, one)
        for name in "ab":
            assert [cue for cue in trail if cue[0] == name] == [f"{name}{turn:03}" for turn in range(150)]


def test_a_connection_that_fails_while_the_new_epoch_is_met_forgets_nothing(
    store: MemoryStore,
    server: Server,
    record_id: UUID,  # noqa: F811
    start: Start,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue, other = (start(server.client("producer"), patient(store)) for _ in range(2))
    queue.enqueue(pairs(record_id, "abc"))
    sound, failing = Sender.look, [queue._background._thread]

    def look(self: Sender) -> list[int]:
        if threading.current_thread() in failing:
            raise redis.TimeoutError("cut off")
        return sound(self)

    monkeypatch.setattr(Sender, "look", look)
    wipe(server)
    wait_until(lambda: "cut off" in (queue.trouble or ""))
    for turn in range(5):  # so that the counts go past what this one had pushed
        other.enqueue(pairs(record_id, [turn]))
    drain(store, server.client("worker"), other)
    failing.clear()
    drain(store, server.client("worker"), queue)
    assert sorted(seen(store, record_id)) == sorted([*"abc", *map(str, range(5))])


@pytest.mark.parametrize("lose", LOSSES, ids=lambda how: how.__name__)
def test_a_client_that_stops_before_it_has_noticed_pushes_again(
    store: MemoryStore,
    server: Server,
    record_id: UUID,  # noqa: F811
    start: Start,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    lose: Callable[[Server], None],
) -> None:
    monkeypatch.setattr("iai_mcp.broker.redis.broker.SETTLE_S", 60.0)
    queue = start(server.client("producer"), patient(store))
    for turn in range(20):
        queue.enqueue(pairs(record_id, [turn]))
    lose(server)
    queue.stop()
    runner_for(store.store_id, server.client("worker")).drain_all()
    assert seen(store, record_id) == [str(turn) for turn in range(20)]


def test_a_client_that_stops_while_redis_is_away_spills_what_redis_may_have_lost(
    store: MemoryStore,
    server: Server,
    record_id: UUID,  # noqa: F811
    start: Start,  # noqa: F811
    home: Path,
) -> None:
    queue = start(server.client("producer"), patient(store, stop_budget=0.5))
    for turn in range(5):
        queue.enqueue(pairs(record_id, [turn]))
    server.kill()
    queue.enqueue(pairs(record_id, [5]))
    queue.stop()
    assert spill_files(home)
    shutil.rmtree(server.folder / "appendonlydir")
    server.start()
    heir = start(server.client("producer"), patient(store))
    wait_until(lambda: not spill_files(home), 20)
    drain(store, server.client("worker"), heir)
    assert seen(store, record_id) == [str(turn) for turn in range(6)]


# -- the ring


def part(lane: int, entries: int = 1, text: bytes = b"item") -> Part:
    return lane, entries, text


def test_a_ring_holds_each_item_until_its_lane_has_drained_it() -> None:
    ring = Ring(2, 10_000)
    ring.begin(b"one")
    assert ring.keep(b"one", [part(0, 2), part(1)], [2, 1])
    assert ring.keep(b"one", [part(0, 3)], [5])
    mark = ring.mark()
    assert ring.entries == 6
    ring.settle(b"one", [4, 1])
    assert (ring.entries, ring.settled(mark)) == (3, False)
    ring.settle(b"two", [9, 9])  # of data that this ring has not pushed to
    assert (ring.entries, ring.settled(mark)) == (3, False)
    ring.settle(b"one", [5, 1])
    assert (ring.entries, ring.settled(mark)) == (0, True)


def test_a_ring_drops_nothing_while_its_items_are_pushed_again() -> None:
    ring = Ring(1, 10_000)
    ring.begin(b"one")
    ring.keep(b"one", [part(0), part(0)], [7, 8])
    assert ring.lost() == [[part(0), part(0)]]
    ring.settle(b"one", [8])
    ring.settle(b"", [8])  # the epoch was deleted
    assert ring.entries == 2
    assert not ring.keep(b"one", [part(0)], [9])
    ring.pushed_again(b"two", [[1, 2]])
    ring.settle(b"two", [1])
    assert (ring.entries, ring.mark(), ring.settled((1,)), ring.settled((2,))) == (1, (2,), True, False)


def test_a_ring_is_full_by_its_memory() -> None:
    ring = Ring(1, 1000)
    ring.begin(b"one")
    while not ring.full:
        ring.keep(b"one", [part(0, 1, b"x" * 100)], [ring.entries + 1])
    assert 1 < ring.entries <= 10
    ring.settle(b"one", [ring.entries])
    assert not ring.full


def test_the_setting_says_how_much_or_off() -> None:
    assert Settings().retain_bytes == 8 * 2**20
    assert Settings.load({"IAI_MCP_RETAIN": "0.5"}).retain_bytes == 2**19
    assert Settings.load({"IAI_MCP_RETAIN": "off"}).retain_bytes == 0
    with pytest.raises(ConfigError, match="IAI_MCP_RETAIN='much' is not a number"):
        Settings.load({"IAI_MCP_RETAIN": "much"})
