"""Stray values in a lane's keys are one lane's trouble: named, mended, and nobody's entries suffer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest
import redis

from iai_mcp.broker.redis.keys import QUEUE, Count, Keys
from iai_mcp.config import Settings
from iai_mcp.entries.routing import lane_of
from iai_mcp.errors import LeaseLost
from iai_mcp.maintenance.checks.check import Subject
from iai_mcp.maintenance.checks.redis import redis as redis_check
from iai_mcp.maintenance.status import status
from iai_mcp.metrics.gauges import redis_readings
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.storage.tables.write_right import WriteRight
from iai_mcp.store import MemoryStore
from iai_mcp.transfer.backup import backup
from iai_mcp.transfer.restore import restore
from tests.broker.redis.test_redis import (
    Start,
    broker_of,
    patient,
    seen,
    start,  # noqa: F401
)
from tests.servers import Server, serving
from tests.support import entry, wait_until
from tests.test_store import _make
from workers import ProvenanceWorker
from workers.runner import runner_for

TYPES: dict[str, Callable[[redis.Redis, str], Any]] = {
    "string": lambda client, key: client.set(key, "stray"),
    "list": lambda client, key: client.rpush(key, "stray"),
    "hash": lambda client, key: client.hset(key, "stray", "1"),
    "set": lambda client, key: client.sadd(key, "stray"),
    "zset": lambda client, key: client.zadd(key, {"stray": 1}),
    "stream": lambda client, key: client.xadd(key, {"stray": "1"}),
}
PARTS = {"lease": "string", "state": "hash", "pending": "list"}
STORE_KEYS = {"counts": "hash", "pushed": "hash", "epoch": "string", "place": "list"}
COUNTS = {
    "raised by 200,000": lambda client, key, field: client.hincrby(key, field, 200_000),
    "lowered by 200,000": lambda client, key, field: client.hincrby(key, field, -200_000),
    "negative": lambda client, key, field: client.hset(key, field, "-5"),
    "a text": lambda client, key, field: client.hset(key, field, "many"),
    "empty": lambda client, key, field: client.hset(key, field, ""),
    "with a fraction": lambda client, key, field: client.hset(key, field, "1.5"),
    "huge": lambda client, key, field: client.hset(key, field, str(2**63 - 1)),
    "longer than any number": lambda client, key, field: client.hset(key, field, "9" * 400),
    "gone": lambda client, key, field: client.hdel(key, field),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture
def server(shared: Server) -> Server:
    shared.client().flushall()
    return shared


class Scene:
    """A client that has recalls, and a worker that sweeps; every lane has a memory of its own."""

    def __init__(self, store: MemoryStore, queue: ProvenanceWriteQueue, admin: redis.Redis, worker: Any) -> None:
        self.store = store
        self.queue = queue
        self.admin = admin
        self.worker = worker
        self.keys = Keys("", store.store_id)
        made = {lane_of(one, store.lanes): one for one in store.insert_many([_make() for _ in range(60)])}
        self.memories: list[UUID] = [made[lane] for lane in range(store.lanes)]
        self._cues = count()
        self.cues: list[str] = []

    def recall(self, times: int = 3) -> None:
        """Leave an entry on a memory of every lane, so many times."""
        for _ in range(times):
            cue = str(next(self._cues))
            self.cues.append(cue)
            self.queue.enqueue([(memory, entry(cue)) for memory in self.memories])

    def applied(self) -> list[list[str]]:
        return [seen(self.store, memory) for memory in self.memories]

    def sweep(self) -> bool:
        """One sweep of the worker; whether every entry of every lane is in the store now."""
        self.worker.sweep()
        return all(len(found) >= len(self.cues) for found in self.applied())

    def settle(self, seconds: float = 20, *, in_order: bool = True) -> None:
        """Sweep until all is there: once each and, unless it is not ``in_order``, in the order of the recalls."""
        wait_until(self.sweep, seconds)
        found = self.applied() if in_order else [sorted(one, key=int) for one in self.applied()]
        assert found == [self.cues] * len(self.memories)

    def is_open(self) -> bool:
        """Whether a recall's entries go to Redis, with nothing left in the spill."""
        before = self.queue.counts.spilled
        self.recall(1)
        return self.queue.counts.spilled == before


@pytest.fixture
def scene(
    store: MemoryStore,
    server: Server,
    start: Start,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> Scene:
    monkeypatch.setenv("IAI_MCP_STORE", str(store.path))
    queue = start(server.client("producer"), patient(store))
    worker = ProvenanceWorker(["provenance"], connection=server.client("worker"))
    made = Scene(store, queue, server.client(), worker)
    made.recall()
    made.settle()
    return made


def mended(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """What the log says was mended."""
    events = [one.__dict__ for one in caplog.records]
    return [one["fields"] for one in events if one.get("event") == "lane_mended"]


def named(scene: Scene, url: str) -> tuple[list[str], list[str], dict[str, float]]:
    """What status says, what the doctor says, and the metric of each lane."""
    settings = Settings(store=scene.store.path, redis_url=url)
    told = status(MemoryStore(scene.store.path, settings=settings))["redis"]["troubles"]
    (checks,) = [[one for one in redis_check(Subject(settings, None)) if one.name == "redis lanes"]]
    readings = {label: value for name, label, value in redis_readings(settings) if name == "iai_mcp_lane_trouble"}
    return (
        [f"{one['message']} -> {one['remedy']}" for one in told],
        [f"{one.state} {one.message} -> {one.remedy}" for one in checks],
        readings,
    )


STRAYS = [(part, kind) for part, right in {**PARTS, **STORE_KEYS}.items() for kind in TYPES if kind != right]


@pytest.mark.parametrize(("part", "kind"), STRAYS, ids=lambda one: str(one))
@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
def test_a_key_of_another_type_is_mended_within_a_sweep_and_costs_nobody_an_entry(
    scene: Scene, part: str, kind: str, busy: bool
) -> None:
    key = scene.keys.lane(1, part) if part in PARTS else getattr(scene.keys, part)
    if busy:
        scene.recall()
    scene.admin.delete(key)
    TYPES[kind](scene.admin, key)
    scene.recall()
    scene.settle()
    wait_until(lambda: broker_of(scene.queue).trouble is None)
    wait_until(scene.is_open)
    scene.settle()


@pytest.mark.parametrize("how", COUNTS)
@pytest.mark.parametrize("name", Count)
@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
def test_an_absurd_count_is_mended_from_what_the_lane_holds(
    scene: Scene, name: Count, how: str, busy: bool
) -> None:
    if busy:
        scene.recall()
    COUNTS[how](scene.admin, scene.keys.hash_of(name), name.of(1))
    scene.recall()
    scene.settle()
    wait_until(lambda: broker_of(scene.queue).trouble is None)
    wait_until(scene.is_open)
    scene.settle()
    scene.worker.sweep()
    (stats,) = [lane for lane in broker_of(scene.queue).stats() if lane.lane == 1]
    assert (stats.pending, stats.in_flight) == (0, 0)


TOKENS = {
    "nearly the largest of 64 bits": "9223372036854774784",
    "the first that doubles round": str(2**53),
    "further ahead than leases can be": str(2**31 * 3),
    "more digits than any number": "9" * 400,
    "negative": "-5",
    "a text": "many",
    "empty": "",
    "an exponent": "1e9",
}


@pytest.mark.parametrize("value", TOKENS.values(), ids=TOKENS)
def test_a_stolen_token_never_reaches_the_store_and_the_fence_stays_sharp(
    scene: Scene, value: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, state = scene.store, scene.keys.lane(1, "state")
    zombie = WriteRight(1, store.lane(1).token)
    scene.admin.hset(state, "token", value)
    tokens = [store.lane(1).token]
    for _ in range(3):
        scene.recall()
        scene.settle()
        tokens.append(store.lane(1).token)
    assert sorted(set(tokens)) == tokens
    assert tokens[-1] < 1000
    assert scene.admin.hget(state, "token") == b"%d" % tokens[-1]
    (found,) = mended(caplog)
    assert (found["lane"], found["key"]) == (1, "token")
    assert tokens[0] < found["token"] <= tokens[1]
    with pytest.raises(LeaseLost):
        store.append_provenance_batch([(scene.memories[1], entry("late"))], right=zombie)
    with pytest.raises(LeaseLost):
        store.lane(1).raise_fence(2**63)
    assert scene.applied() == [scene.cues] * len(scene.memories)


def test_a_copy_whose_tokens_were_stolen_is_restored_and_drains(scene: Scene, tmp_path: Path) -> None:
    scene.store.layout.lane_token(1).write_text("9223372036854774785")
    settings = replace(scene.store.settings, spill_dir=tmp_path / "spill")
    backup(scene.store.layout, settings, tmp_path / "backup", lambda done, total: None)
    restore(tmp_path / "backup", settings, tmp_path / "copy", as_copy=True)
    copy = MemoryStore(tmp_path / "copy", settings=scene.store.settings)
    assert copy.lane(1).token < 10**9
    queue = ProvenanceWriteQueue(copy, connection=scene.queue.connection)
    queue.start()
    try:
        queue.enqueue([(scene.memories[1], entry("new"))])
        runner = runner_for(copy.store_id, scene.admin)
        wait_until(lambda: runner.drain_all() and queue.flush(0.1), 30)
    finally:
        queue.stop()
    assert seen(copy, scene.memories[1]) == [*scene.cues, "new"]


def test_a_lane_in_trouble_is_named_by_status_doctor_log_and_metric_with_what_to_do(
    scene: Scene, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    url, pending = server.url_of("ops"), scene.keys.lane(1, "pending")
    assert named(scene, url) == ([], [], dict.fromkeys("0123", 0))
    scene.admin.set(pending, "stray")
    scene.admin.hincrby(scene.keys.pushed, Count.PUSHED.of(2), 200_000)
    scene.admin.rpush(scene.keys.lane(3, "lease"), "stray")
    scene.admin.delete(f"rq:queue:{QUEUE}")
    scene.admin.set(f"rq:queue:{QUEUE}", "stray")
    told, doctor, readings = named(scene, url)
    sweep = "a worker mends it at its next sweep: iai-mcp worker"
    assert told == [
        f"the key rq:queue:{QUEUE} is a string, where a list belongs -> {sweep}",
        f"the key {pending} is a string, where a list belongs -> {sweep}",
        f"the key {scene.keys.lane(3, 'lease')} is a list, where a string belongs -> {sweep}",
        f"lane 2: 200000 entries are counted where none wait -> {sweep}",
        f"lane 3: its lease in {scene.keys.lane(3, 'lease')} never ends -> {sweep}",
    ]
    assert doctor == [f"FAIL {one}" for one in told]
    assert readings == {"0": 1, "1": 2, "2": 2, "3": 3}

    scene.worker.sweep()
    (name,) = cast("list[bytes]", scene.admin.lrange(scene.keys.aside, 0, -1))
    key = name.decode()
    assert mended(caplog) == [
        {"lane": 1, "key": "pending", "aside": key},
        {"lane": 2, "key": "counts"},
        {"lane": 3, "key": "lease"},
    ]
    assert scene.admin.get(key) == b"stray"
    told, doctor, readings = named(scene, url)
    remedy = f"look at it, then remove it: redis-cli DEL {key}"
    assert told == [f"the key {key} was set aside: it stood in the place of a key of lane 1 -> {remedy}"]
    assert doctor == [f"WARN {told[0]}"]
    assert readings == {"0": 0, "1": 1, "2": 0, "3": 0}
    scene.admin.delete(key)
    assert named(scene, url) == ([], [], dict.fromkeys("0123", 0))
    scene.recall()
    scene.settle()


def test_a_client_that_connects_and_pushes_has_one_connection_for_pushes_and_one_beside_it(
    scene: Scene, server: Server
) -> None:
    admin = server.client()
    before = len(admin.client_list())
    queue = ProvenanceWriteQueue(patient(scene.store), connection=server.client("producer"))
    queue.start()
    try:
        queue.enqueue([(scene.memories[1], entry("new"))])
        wait_until(lambda: broker_of(queue).trouble is None)
        assert len(admin.client_list()) == before + 2
    finally:
        queue.stop()


def test_items_that_nobody_counted_hide_no_loss(scene: Scene) -> None:
    """Entries are taken out of a lane, and as many strays take their place before anybody looks."""
    pending = scene.keys.lane(1, "pending")
    scene.recall(4)
    scene.admin.ltrim(pending, 2, -1)
    scene.admin.rpush(pending, *(["stray"] * 500))
    scene.recall(1)
    scene.worker._lane_runner().drain(1)
    scene.settle(in_order=False)
