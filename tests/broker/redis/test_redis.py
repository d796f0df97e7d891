"""Many clients, one memory: recalls push onto Redis, RQ workers drain. Over a stand-in and over real processes."""

from __future__ import annotations

import json
import logging
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import fakeredis
import filelock
import pytest
import redis
from rq import Queue, SimpleWorker
from rq.job import Job
from rq.serializers import JSONSerializer

from iai_mcp.broker.redis.broker import RedisBroker
from iai_mcp.config import Settings
from iai_mcp.core import dispatch
from iai_mcp.entries.routing import lane_of
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.store import MemoryStore
from tests.servers import Server, free_port, serving, worker
from tests.support import cues, entry, finished, pairs, python, wait_until
from tests.test_store import _make
from workers import ProvenanceWorker
from workers.runner import runner_for
from workers.worker import is_doorbell


@pytest.fixture
def record_id(store: MemoryStore) -> UUID:
    return store.insert(_make())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "redis") as running:
        yield running


Start = Callable[..., ProvenanceWriteQueue]


@pytest.fixture
def start(store: MemoryStore) -> Iterator[Start]:
    """Starts queues on a connection, and stops them afterwards."""
    made: list[ProvenanceWriteQueue] = []

    def begin(connection: redis.Redis, of: MemoryStore | None = None) -> ProvenanceWriteQueue:
        queue = ProvenanceWriteQueue(of or store, connection=connection)
        queue.start()
        made.append(queue)
        return queue

    yield begin
    for queue in made:
        queue.stop()


def patient(store: MemoryStore, **further: Any) -> MemoryStore:
    """The same store for a client that a busy machine does not make spill."""
    return MemoryStore(store.path, settings=Settings(push_budget_ms=2000, **further))


def seen(store: MemoryStore, record_id: UUID) -> list[str]:
    found = store.get(record_id)
    assert found is not None
    return cues(found.provenance)


def broker_of(queue: ProvenanceWriteQueue) -> RedisBroker:
    broker = queue._broker
    assert isinstance(broker, RedisBroker)
    return broker


def lanes_now(queue: ProvenanceWriteQueue) -> tuple[int, int]:
    """Entries pending and in flight, over all lanes."""
    stats = queue._broker.stats()
    return sum(lane.pending for lane in stats), sum(lane.in_flight for lane in stats)


def spill_files(home: Path) -> list[Path]:
    folder = home / ".iai-mcp" / ".provenance-overflow"
    return sorted(folder.glob("*.jsonl")) if folder.exists() else []


# -- one process: a stand-in for Redis, RQ's own SimpleWorker


def test_the_whole_pipeline_in_one_process(store: MemoryStore, record_id: UUID) -> None:
    connection = fakeredis.FakeStrictRedis()
    store.enable_provenance_queue(connection=connection)
    for cue in "abc":
        dispatch(store, "memory_recall", {"cue": cue, "session_id": "s", "cue_embedding": [1.0] * 384})
    store.disable_provenance_queue()  # all is in Redis now
    assert seen(store, record_id) == []

    doorbells = Queue("provenance", connection=connection, serializer=JSONSerializer)
    SimpleWorker([doorbells], connection=connection, serializer=JSONSerializer).work(burst=True)
    assert seen(store, record_id) == ["a", "b", "c"]


def test_one_turn_drains_every_lane_that_has_little_in_it_but_does_not_wait_for_a_stuck_one(
    store: MemoryStore, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = fakeredis.FakeStrictRedis()
    monkeypatch.setattr("workers.runner.SMALL_LANES_WAIT_S", 0.5)
    ids = store.insert_many([_make() for _ in range(12)])
    lanes = {lane_of(one, store.lanes): one for one in ids}
    (own, mine), (stuck, theirs), (_, third), *_ = lanes.items()
    queue = start(connection)
    queue.enqueue([(one, entry("a")) for one in (mine, theirs, third)])
    runner = runner_for(store.store_id, connection)
    lock = store.layout.lane_lock(stuck)
    with filelock.FileLock(lock):  # as a process that is paused in the middle of a merge
        assert runner.turn(own).applied == 1
        wait_until(lambda: seen(store, third) == ["a"])
        assert (seen(store, mine), seen(store, theirs)) == (["a"], [])
    wait_until(lambda: seen(store, theirs) == ["a"])


def test_a_worker_that_redis_leaves_says_so_in_a_line(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise redis.ConnectionError("Connection closed by server.")

    worker = ProvenanceWorker(["provenance"], connection=fakeredis.FakeStrictRedis())
    monkeypatch.setattr(SimpleWorker, "heartbeat", gone)
    with caplog.at_level("ERROR", "rq.worker"):
        worker.work(burst=True)
    (record,) = [one for one in caplog.records if one.name == "rq.worker"]
    assert record.getMessage().endswith("quitting... ConnectionError: Connection closed by server")
    assert record.exc_info is None


def test_our_worker_insists_on_json_and_leaves_nothing_behind(
    store: MemoryStore, record_id: UUID, start: Start
) -> None:
    connection = fakeredis.FakeStrictRedis()
    queue = start(connection)
    queue.enqueue(pairs(record_id, "ab"))
    queue.stop()
    ours = ProvenanceWorker(["provenance"], connection=connection, serializer="pickle")
    assert ours.serializer is JSONSerializer
    ours.work(burst=True)
    assert seen(store, record_id) == ["a", "b"]
    left = [key.decode() for key in connection.scan_iter() if b"rq:job:" in key or b":pending" in key]
    assert len(left) == 1
    assert "-standing-" in left[0]


def test_a_standing_doorbell_takes_no_lease_on_a_lane_without_work(
    store: MemoryStore, record_id: UUID, start: Start
) -> None:
    """A worker that is killed over an empty lane would leave it leased."""
    connection = fakeredis.FakeStrictRedis()
    queue = start(connection)
    queue.enqueue(pairs(record_id, "ab"))
    queue.stop()

    def standing() -> list[bytes]:
        return [key for key in connection.scan_iter() if b"-standing-" in key]

    ProvenanceWorker(["provenance"], connection=connection).work(burst=True)
    before = standing()
    states = {key: connection.hgetall(key) for key in connection.scan_iter("*:state")}
    ProvenanceWorker(["provenance"], connection=connection).work(burst=True)
    assert standing() != before, "its job ran"
    assert {key: connection.hgetall(key) for key in connection.scan_iter("*:state")} == states


def test_one_round_trip_for_each_recall(store: MemoryStore, record_id: UUID, server: Server) -> None:
    store = patient(store)
    other = store.insert_many([_make() for _ in range(9)])
    store.enable_provenance_queue(connection=server.client("producer"))
    queue = store._provenance_queue
    assert queue is not None
    before = broker_of(queue).round_trips
    for turn in range(20):
        store.queue_provenance_batch([(key, entry(turn)) for key in (record_id, *other)])
    assert broker_of(queue).round_trips - before == 20
    assert sum(lanes_now(queue)) == 200
    store.disable_provenance_queue()


def test_a_forged_job_runs_nothing(store: MemoryStore, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    connection = fakeredis.FakeStrictRedis()
    store.enable_provenance_queue(connection=connection)
    doorbells = Queue("provenance", connection=connection, serializer=JSONSerializer)
    target = tmp_path / "owned"
    good = ("workers.jobs.drain_lane", (store.store_id, 0))
    forged = [
        doorbells.enqueue_call("os.mkdir", args=(str(target),)),
        doorbells.enqueue_call(*good, kwargs={"also": 1}),
        doorbells.enqueue_call("workers.jobs.drain_lane", args=(store.store_id, "0; rm")),
        doorbells.enqueue_call("workers.jobs.drain_lane", args=("x",)),
        doorbells.enqueue_call(*good, on_success=_callback("os.abort")),
        doorbells.enqueue_call(*good, on_failure=_callback("os.abort")),
    ]
    connection.hset(forged[0].key, "data", b"\x80\x04cos\nsystem\n.")  # a pickle
    with caplog.at_level(logging.WARNING):
        ProvenanceWorker([doorbells], connection=connection).work(burst=True)
    assert not target.exists()
    assert caplog.text.count("is no doorbell") == len(forged)
    assert not any(Job.exists(job.id, connection=connection) for job in forged)
    store.disable_provenance_queue()


def _callback(name: str) -> Any:
    from rq import Callback

    return Callback(name)


def test_a_doorbell_is_a_store_and_a_lane(store: MemoryStore) -> None:
    doorbells = Queue("q", connection=fakeredis.FakeStrictRedis(), serializer=JSONSerializer)
    assert is_doorbell(doorbells.enqueue_call("workers.jobs.drain_lane", args=(store.store_id, 1)))
    assert not is_doorbell(doorbells.enqueue_call("workers.jobs.drain_lane", args=(store.store_id, True)))


def test_a_worker_refuses_the_doorbell_of_another_store(
    store: MemoryStore, record_id: UUID, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = fakeredis.FakeStrictRedis()
    store.enable_provenance_queue(connection=connection)
    store.queue_provenance_batch(pairs(record_id, "a"))
    store.disable_provenance_queue()
    store.close()  # a worker elsewhere has not opened it
    monkeypatch.setenv("IAI_MCP_STORE", str(MemoryStore(tmp_path / "another").path))
    ProvenanceWorker(["provenance"], connection=connection).work(burst=True)
    assert seen(store, record_id) == []
    monkeypatch.setenv("IAI_MCP_STORE", str(store.path))
    runner_for(store.store_id, connection).drain_all()
    assert seen(store, record_id) == ["a"]


def test_two_namespaces_share_one_redis_unseen(tmp_path: Path) -> None:
    connection = fakeredis.FakeStrictRedis()
    made = {}
    for name in ("red", "blue"):
        made[name] = MemoryStore(tmp_path / name, settings=Settings(namespace=name))
        key = made[name].insert(_make())
        made[name].enable_provenance_queue(connection=connection)
        made[name].queue_provenance_batch(pairs(key, [name]))
        made[name].disable_provenance_queue()
    doorbells = Queue("red:provenance", connection=connection, serializer=JSONSerializer)
    SimpleWorker([doorbells], connection=connection, serializer=JSONSerializer).work(burst=True)
    assert [len(dispatch(made[name], "memory_provenance")["entries"]) for name in ("red", "blue")] == [1, 0]


def test_above_the_ceiling_producers_spill_and_come_back(
    store: MemoryStore, record_id: UUID, home: Path, start: Start
) -> None:
    connection = fakeredis.FakeStrictRedis()
    small = patient(store, lane_ceiling=10)
    queue = start(connection, small)
    for turn in range(30):
        queue.enqueue(pairs(record_id, [turn]))
    assert sum(lanes_now(queue)) == 10
    assert len(spill_files(home)) == 1
    runner = runner_for(store.store_id, connection)
    wait_until(lambda: runner.drain_all() and len(seen(store, record_id)) == 30)
    assert seen(store, record_id) == [str(turn) for turn in range(30)]
    wait_until(lambda: not spill_files(home))


# -- real processes


@pytest.mark.parametrize("kind", ["ours", "rq", "pool", "stock"])
def test_every_kind_of_worker_drains(
    store: MemoryStore, server: Server, record_id: UUID, start: Start, tmp_path: Path, kind: str
) -> None:
    queue = start(server.client("producer"), patient(store))
    with worker(server.url_of("worker"), store.path, kind=kind, log=tmp_path / "worker.log") as process:
        for turn in range(40):
            queue.enqueue(pairs(record_id, [turn]))
        assert queue.flush(60), (tmp_path / "worker.log").read_text()
        assert seen(store, record_id) == [str(turn) for turn in range(40)]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert lanes_now(queue) == (0, 0)


def test_several_producers_and_workers_lose_double_and_reorder_nothing(store: MemoryStore, server: Server) -> None:
    keys = store.insert_many([_make() for _ in range(6)])
    code = """
import sys
from uuid import UUID
from iai_mcp.store import MemoryStore
store = MemoryStore(sys.argv[1])
store.enable_provenance_queue()
for turn in range(200):
    item = {"ts": "t", "cue": f"{sys.argv[2]}-{turn}", "session_id": sys.argv[2]}
    store.queue_provenance_batch([(UUID(key), item) for key in sys.argv[3:]])
store.disable_provenance_queue()
"""
    names = ["a", "b", "c"]
    with worker(server.url_of("worker"), store.path), worker(server.url_of("worker"), store.path):
        crowd = [
            python(code, store.path, name, *keys, IAI_MCP_REDIS_URL=server.url_of("producer")) for name in names
        ]
        for process in crowd:
            finished(process)
        wait_until(lambda: sum(len(seen(store, key)) for key in keys) >= 200 * 3 * 6, 60)
    for key in keys:
        said = seen(store, key)
        for name in names:
            assert [cue for cue in said if cue.startswith(name)] == [f"{name}-{turn}" for turn in range(200)]
        assert len(said) == 600


def test_a_killed_worker_is_replaced_and_nothing_is_doubled(
    store: MemoryStore, server: Server, record_id: UUID, start: Start
) -> None:
    queue = start(server.client("producer"), patient(store))
    stuck = """
import os, signal, sys
from iai_mcp.broker.redis.broker import RedisBroker
RedisBroker.ack = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # after the merge, before the ack
from workers.__main__ import run
from iai_mcp.config import Settings
run(Settings.load(), burst=False)
"""
    env = {"IAI_MCP_STORE": str(store.path), "IAI_MCP_REDIS_URL": server.url_of("worker"), "IAI_MCP_LEASE": "1"}
    victim = python(stuck, **env)
    queue.enqueue(pairs(record_id, "ab"))
    victim.communicate(timeout=60)
    assert victim.returncode == -signal.SIGKILL
    assert lanes_now(queue) == (0, 2)
    queue.enqueue(pairs(record_id, "c"))
    with worker(server.url_of("worker"), store.path):
        assert queue.flush(30)
    assert seen(store, record_id) == ["a", "b", "c"]
    assert store.lane(lane_of(record_id, store.lanes)).count() == 3


def test_a_lost_doorbell_is_rung_again(store: MemoryStore, server: Server, record_id: UUID, start: Start) -> None:
    queue = start(server.client("producer"), patient(store))
    queue.enqueue(pairs(record_id, "a"))
    doorbells = Queue("provenance", connection=server.client(), serializer=JSONSerializer)
    wait_until(lambda: doorbells.count)
    doorbells.empty()
    wait_until(lambda: doorbells.count, 6)
    with worker(server.url_of("worker"), store.path, kind="stock"):
        assert queue.flush(30)


STOPPED_IN_A_SWEEP = """
import os, signal, sys
from workers.__main__ import main
from workers.runner import LaneRunner
turn = LaneRunner.turn
def stop_first(*args):
    os.kill(os.getpid(), signal.SIGTERM)
    return turn(*args)
LaneRunner.turn = stop_first
sys.exit(main())
"""


def test_a_worker_that_is_stopped_in_a_sweep_ends_with_the_lane_drained(
    server: Server, store: MemoryStore, record_id: UUID, start: Start
) -> None:
    queue = start(server.client("producer"), patient(store))
    queue.enqueue(pairs(record_id, "a"))
    queue.stop()
    Queue("provenance", connection=server.client(), serializer=JSONSerializer).empty()  # a sweep must find it
    env = {"IAI_MCP_STORE": str(store.path), "IAI_MCP_REDIS_URL": server.url_of("worker")}
    finished(python(STOPPED_IN_A_SWEEP, **env), timeout=30)
    assert seen(store, record_id) == ["a"]


def test_suspended_workers_wait_and_resume(
    store: MemoryStore, server: Server, record_id: UUID, start: Start
) -> None:
    from rq.suspension import resume, suspend

    queue = start(server.client("producer"), patient(store))
    suspend(server.client())
    with worker(server.url_of("worker"), store.path):
        queue.enqueue(pairs(record_id, "a"))
        assert not queue.flush(4)
        resume(server.client())
        assert queue.flush(30)


# -- while Redis is away


def test_recall_goes_on_while_redis_is_down_and_order_holds(
    store: MemoryStore, server: Server, record_id: UUID, home: Path, start: Start
) -> None:
    queue = start(server.client("producer"), patient(store))
    queue.enqueue(pairs(record_id, ["before"]))
    server.kill()
    for turn in range(20):
        queue.enqueue(pairs(record_id, [turn]))
    assert len(spill_files(home)) == 1
    server.start()
    back = time.monotonic()
    wait_until(lambda: not spill_files(home))
    assert time.monotonic() - back < 3
    queue.enqueue(pairs(record_id, ["after"]))
    with worker(server.url_of("worker"), store.path):
        assert queue.flush(30)
    assert seen(store, record_id) == ["before", *map(str, range(20)), "after"]
    assert queue.counts.refused == 0


def test_a_hung_server_costs_a_recall_its_budget_and_no_more(
    store: MemoryStore, server: Server, record_id: UUID, start: Start
) -> None:
    queue = start(server.client("producer"))
    queue.enqueue(pairs(record_id, ["before"]))
    server.send(signal.SIGSTOP)
    took = []
    try:
        for turn in range(100):
            began = time.perf_counter()
            queue.enqueue(pairs(record_id, [turn]))
            took.append(time.perf_counter() - began)
    finally:
        server.send(signal.SIGCONT)
    took.sort()
    assert took[50] < 0.002
    assert took[-1] < 0.2  # 20 ms on an idle machine: the chaos suite measures it
    with worker(server.url_of("worker"), store.path):
        assert wait_until(lambda: queue.flush(1), 40)
    # The push that hung was executed when the server woke: its entries came twice and count once.
    assert seen(store, record_id) == ["before", *map(str, range(100))]


@pytest.mark.parametrize(
    "setting",
    [("maxmemory", "1", "0"), ("min-replicas-to-write", "1", "0"), None],
    ids=["out of memory", "no replicas", "unauthorised"],
)
def test_a_server_that_refuses_means_spill(
    store: MemoryStore,
    server: Server,
    record_id: UUID,
    home: Path,
    start: Start,
    setting: tuple[str, str, str] | None,
) -> None:
    queue = start(server.client("producer"), patient(store))
    admin = server.client()
    assert admin.ping()
    if setting is None:
        server.lock_out("producer")
        broker_of(queue)._push.client.connection.disconnect()  # type: ignore[union-attr]
    else:
        admin.config_set(setting[0], setting[1])
    queue.enqueue(pairs(record_id, "a"))
    wait_until(lambda: spill_files(home))
    queue.enqueue(pairs(record_id, "b"))
    if setting is None:
        server.lock_out("producer", out=False)
    else:
        admin.config_set(setting[0], setting[2])
    wait_until(lambda: not spill_files(home))
    with worker(server.url_of("worker"), store.path):
        assert queue.flush(30)
    assert seen(store, record_id) == ["a", "b"]


def test_a_drain_frees_memory_at_the_limit(
    store: MemoryStore, server: Server, record_id: UUID, start: Start, tmp_path: Path
) -> None:
    queue = start(server.client("producer"), patient(store))
    for turn in range(50):
        queue.enqueue([(record_id, entry(turn, blob="x" * 20_000))])
    assert sum(lanes_now(queue)) == 50
    server.client().config_set("maxmemory", server.client().info("memory")["used_memory"] - 600_000)
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        server.client().set("a", "b")
    with worker(server.url_of("worker"), store.path, kind="rq", log=tmp_path / "log") as process:
        wait_until(lambda: process.poll() is not None or len(seen(store, record_id)) == 50, 30)
        assert process.poll() is None, (tmp_path / "log").read_text()
        wait_until(lambda: sum(lanes_now(queue)) == 0, 30)  # readable comes before acknowledged


def test_a_read_only_replica_means_spill(
    store: MemoryStore, server: Server, record_id: UUID, home: Path, start: Start
) -> None:
    queue = start(server.client("producer"), patient(store))
    server.client().execute_command("REPLICAOF", "127.0.0.1", "1")
    queue.enqueue(pairs(record_id, "a"))
    assert spill_files(home)
    server.client().execute_command("REPLICAOF", "NO", "ONE")
    wait_until(lambda: not spill_files(home))


def test_flushed_scripts_are_loaded_again(
    store: MemoryStore, server: Server, record_id: UUID, home: Path, start: Start
) -> None:
    queue = start(server.client("producer"), patient(store, lane_ceiling=1))
    server.client().script_flush()
    queue.enqueue(pairs(record_id, "ab"))  # above the ceiling, into an empty lane: only the script tells
    assert not spill_files(home)
    assert sum(lanes_now(queue)) == 2


def test_after_a_wipe_tokens_and_numbers_go_on(
    store: MemoryStore, server: Server, record_id: UUID, start: Start
) -> None:
    queue = start(server.client("producer"), patient(store))
    runner = runner_for(store.store_id, server.client("worker"))
    queue.enqueue(pairs(record_id, "a"))
    runner.drain_all()
    lane = store.lane(lane_of(record_id, store.lanes))
    token = lane.token
    assert token > 0
    server.client().flushall()
    queue.enqueue(pairs(record_id, "b"))
    wait_until(lambda: runner.drain_all() and queue.flush(0.1), 20)
    assert lane.token > token
    found = store.get(record_id)
    assert found is not None
    assert cues(found.provenance) == ["a", "b"]
    assert found.provenance[0]["seq"] < found.provenance[1]["seq"]


def test_a_wrong_password_is_said_once_and_loudly(
    store: MemoryStore, server: Server, record_id: UUID, home: Path, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    server.client().config_set("requirepass", "right")
    url = f"redis://:wr0ng@127.0.0.1:{server.port}/0"
    queue = start(redis.Redis.from_url(url))
    for turn in range(5):
        queue.enqueue(pairs(record_id, [turn]))
    broker = broker_of(queue)
    probed = broker._next_probe
    wait_until(lambda: broker._next_probe > probed)
    said = [line for line in caplog.records if line.levelno >= logging.ERROR]
    assert len(said) == 1
    assert "refuses this client" in said[0].getMessage()
    assert "wr0ng" not in caplog.text
    assert len(spill_files(home)) == 1
    server.client(password="right").config_set("requirepass", "")


def test_the_spill_of_a_dead_client_is_adopted_by_a_worker(
    store: MemoryStore, server: Server, record_id: UUID, home: Path
) -> None:
    code = """
import os, signal, sys
from uuid import UUID
from iai_mcp.store import MemoryStore
store = MemoryStore(sys.argv[1])
store.enable_provenance_queue()
for turn in range(10):
    store.queue_provenance_batch([(UUID(sys.argv[2]), {"ts": "t", "cue": str(turn), "session_id": "s"})])
os.kill(os.getpid(), signal.SIGKILL)
"""
    dead = python(code, store.path, record_id, IAI_MCP_REDIS_URL="redis://127.0.0.1:1/0")
    dead.communicate(timeout=60)
    assert dead.returncode == -signal.SIGKILL
    assert spill_files(home)
    with worker(server.url_of("worker"), store.path):
        wait_until(lambda: len(seen(store, record_id)) == 10, 30)
        wait_until(lambda: not spill_files(home))
    assert seen(store, record_id) == [str(turn) for turn in range(10)]


def test_bad_urls_are_refused_without_repeating_their_secrets(store: MemoryStore) -> None:
    from iai_mcp.broker.redis.client import connect
    from iai_mcp.errors import ConfigError

    with pytest.raises(ConfigError, match="IAI_MCP_REDIS_URL") as refused:
        connect("http://user:hunter2@host")
    assert "hunter2" not in str(refused.value)


def test_an_old_server_and_a_cluster_are_refused(tmp_path: Path, store: MemoryStore) -> None:
    from iai_mcp.errors import ConfigError

    class Old:
        def execute_command(self, *_: Any) -> bytes:
            return b"redis_version:6.2.14\r\n"

    broker = RedisBroker(fakeredis.FakeStrictRedis(), store.store_id, 4)
    with pytest.raises(ConfigError, match=r"6\.2\.14 is too old"):
        broker.check_server(Old())  # type: ignore[arg-type]
    with (
        serving(tmp_path / "cluster", "--cluster-enabled", "yes", "--cluster-port", str(free_port())) as cluster,
        pytest.raises(ConfigError, match="cluster mode"),
    ):
        RedisBroker(cluster.client(), store.store_id, 4).check_server()


def test_items_say_whose_they_are_and_how_old(
    store: MemoryStore, server: Server, record_id: UUID, start: Start
) -> None:
    queue = start(server.client("producer"), patient(store))
    queue.enqueue(pairs(record_id, "abc"))
    key = broker_of(queue).keys.lane(lane_of(record_id, store.lanes), "pending")
    item: Any = server.client().lindex(key, 0)
    said = json.loads(item)
    assert (said["store"], said["producer"], said["seqs"]) == (store.store_id, queue.producer, [1, 2, 3])
    assert abs(said["pushed"] - time.time()) < 60
