"""A forgotten id that is used again starts clean: no entry of the old memory comes back, from anywhere."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import redis
from typer.testing import CliRunner

from iai_mcp.broker.factory import redis_broker
from iai_mcp.broker.redis.keys import Keys
from iai_mcp.cli.app import app
from iai_mcp.cli.dead_letters import retry_letters
from iai_mcp.config import Settings
from iai_mcp.entries.routing import lane_of
from iai_mcp.maintenance.verify import verify
from iai_mcp.pipeline.drain import DrainPolicy, drain
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.storage.dead_letters import DeadLetters
from iai_mcp.storage.exclusions import ExclusionReason
from iai_mcp.storage.tables.lane import LaneTable
from iai_mcp.store import MemoryStore, RecordsCache
from tests.servers import Server, serving
from tests.support import cues, entry, pairs, wait_until
from tests.test_store import _make


@pytest.fixture(autouse=True)
def _no_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IAI_MCP_EMBEDDER", "none")


@pytest.fixture
def store(tmp_path: Path) -> MemoryStore:
    return MemoryStore(tmp_path / "store", settings=patient())


@pytest.fixture
def record_id(store: MemoryStore) -> UUID:
    return store.insert(_make())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "redis") as running:
        yield running


def patient() -> Settings:
    return Settings(push_budget_ms=2000, cleanup_age=0)


def seen(store: MemoryStore, record_id: UUID) -> list[str]:
    found = store.get(record_id)
    assert found is not None
    return cues(found.provenance)


def renew(store: MemoryStore, record_id: UUID) -> None:
    """Forget the memory, and capture another one under its id."""
    assert store.delete(record_id)
    store.insert(_make(id=record_id))


def drained(store: MemoryStore, server: Server) -> None:
    """Drain Redis into the store, as a worker does."""
    broker = redis_broker(store.settings, store.store_id, store.lanes, server.client())
    for lane in range(store.lanes):
        drain(store, broker, lane, RecordsCache(), DrainPolicy(linger=0))
    broker.close()


def forgotten(store: MemoryStore) -> set[tuple[str, int]]:
    spans = [span for span in store.exclusions.read() if span.why is ExclusionReason.FORGOTTEN]
    return {(span.producer, seq) for span in spans for seq in range(span.first, span.last + 1)}


def test_what_an_embedded_queue_held(store: MemoryStore, record_id: UUID) -> None:
    queue = ProvenanceWriteQueue(store, coalesce_ms=60_000)
    queue.start()
    queue.enqueue(pairs(record_id, ["old"]))
    renew(store, record_id)
    queue.enqueue(pairs(record_id, ["new"]))
    queue.stop()
    assert seen(store, record_id) == ["new"]
    assert forgotten(store) == {(queue.producer, 1)}
    assert verify(store.layout, store.settings, settle=0).clean


def test_what_waited_in_redis_and_is_pushed_once_more(store: MemoryStore, record_id: UUID, server: Server) -> None:
    """A producer that retains what it pushed may push it again after a broker forgot it."""
    queue = ProvenanceWriteQueue(store, connection=server.client())
    queue.start()
    queue.enqueue(pairs(record_id, ["old"]))
    key = Keys("", store.store_id).lane(lane_of(record_id, store.lanes), "pending")
    (item,) = server.client().lrange(key, 0, -1)
    renew(store, record_id)
    queue.enqueue(pairs(record_id, ["new"]))
    queue.stop()
    drained(store, server)
    assert seen(store, record_id) == ["new"]
    server.client().rpush(key, item)
    drained(store, server)
    assert seen(store, record_id) == ["new"]
    assert (queue.producer, 1) in forgotten(store)


def test_what_was_spilled_by_a_process_that_lives_on(store: MemoryStore, record_id: UUID, home: Path) -> None:
    away = redis.Redis(port=1)
    queue = ProvenanceWriteQueue(MemoryStore(store.path, settings=patient()), connection=away)
    queue.start()
    queue.enqueue(pairs(record_id, ["old"]))
    renew(store, record_id)
    queue.enqueue(pairs(record_id, ["new"]))
    assert seen(store, record_id) == []
    queue.stop()
    store.enable_provenance_queue()  # adopts the spill
    wait_until(lambda: seen(store, record_id), 20)
    store.disable_provenance_queue()
    assert seen(store, record_id) == ["new"]
    assert (queue.producer, 1) in forgotten(store)


def test_a_dead_letter_of_the_old_memory(store: MemoryStore, record_id: UUID) -> None:
    letters = DeadLetters(store.layout)
    numbered = {**entry("old"), "producer": "ab" * 8, "producer_seq": 1, "entry_id": f"{'ab' * 8}-1"}
    letters.add_entry(0, (record_id, numbered), "it failed")
    before = letters.all()
    renew(store, record_id)
    assert letters.count() == 0
    retry_letters(store, before)  # people had read them before
    assert seen(store, record_id) == []


def test_a_crash_while_forgetting_and_then_the_id_again(
    store: MemoryStore, record_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(BaseException):
        pass

    def crash(*_: object) -> None:
        raise Crash

    letters = DeadLetters(store.layout)
    store.append_provenance_batch(pairs(record_id, ["old"]))
    letters.add_entry(0, (record_id, {**entry("old"), "producer": "p", "producer_seq": 1}), "it failed")
    with monkeypatch.context() as broken:
        broken.setattr(LaneTable, "delete_record", crash)
        with pytest.raises(Crash):
            store.delete(record_id)
    again = MemoryStore(store.path, settings=store.settings)
    again.insert(_make(id=record_id))
    again.append_provenance_batch(pairs(record_id, ["new"]))
    assert seen(again, record_id) == ["new"]
    assert letters.count() == 0
    assert verify(store.layout, store.settings, settle=0).clean


def run(*args: object) -> Any:
    result = CliRunner().invoke(app, [*map(str, args)], prog_name="iai-mcp", catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def test_an_export_from_before(store: MemoryStore, record_id: UUID, tmp_path: Path) -> None:
    other = store.insert(_make())
    store.append_provenance_batch([*pairs(record_id, ["old"]), *pairs(other, ["stays"])])
    run("export", tmp_path / "export", "--store", store.path)
    renew(store, record_id)
    store.append_provenance_batch(pairs(record_id, ["new"]))
    run("import", tmp_path / "export", "--store", store.path)
    assert seen(store, record_id) == ["new"]
    assert seen(store, other) == ["stays"]
    run("export", tmp_path / "later", "--store", store.path)
    run("import", tmp_path / "later", "--store", store.path)
    assert seen(store, record_id) == ["new"]


def test_a_restored_backup_and_what_waited_in_redis(
    store: MemoryStore, record_id: UUID, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backup was made after the memory was forgotten; the original went further, and is lost."""
    monkeypatch.setenv("IAI_MCP_REDIS_URL", server.url)
    ours = [record_id, store.insert(_make())]
    queue = ProvenanceWriteQueue(store, connection=server.client())
    queue.start()
    queue.enqueue([(one, entry("old")) for one in ours])
    store.delete(record_id)
    run("backup", tmp_path / "backup", "--store", store.path)
    for _ in range(3):  # after the backup: ids are used again more often than it knows
        renew(store, ours[1])
    queue.enqueue([(ours[1], entry("of the original's last memory"))])
    queue.stop()
    store.close()
    os.rename(store.path, tmp_path / "lost")
    run("restore", tmp_path / "backup", "--store", store.path)
    copy = MemoryStore(store.path, settings=patient())
    copy.insert(_make(id=record_id))
    renew(copy, ours[1])
    drained(copy, server)
    assert [seen(copy, one) for one in ours] == [[], []]


def test_an_id_that_was_never_forgotten_keeps_its_entries(store: MemoryStore, record_id: UUID) -> None:
    """What others forget and capture again leaves the entries on their way of this memory alone."""
    other = store.insert(_make())
    queue = ProvenanceWriteQueue(store, coalesce_ms=60_000)
    queue.start()
    queue.enqueue([(record_id, entry("a")), (other, entry("old"))])
    renew(store, other)
    queue.enqueue([(record_id, entry("b")), (other, entry("new"))])
    queue.stop()
    assert seen(store, record_id) == ["a", "b"]
    assert seen(store, other) == ["new"]


@pytest.mark.parametrize("remote", [False, True], ids=["embedded", "redis"])
def test_forgetting_and_capturing_in_a_loop(store: MemoryStore, remote: bool, tmp_path: Path) -> None:
    """Two producers, a drain and somebody who forgets: a memory never has an entry from before its capture."""
    ids = [uuid4() for _ in range(4)]
    made = dict.fromkeys(ids, 0)
    for one in ids:
        store.insert(_make(id=one))
    if remote:
        with serving(tmp_path / "redis") as server:
            _race(store, ids, made, server)
    else:
        _race(store, ids, made, None)


def _race(store: MemoryStore, ids: list[UUID], made: dict[UUID, int], server: Server | None) -> None:
    clients = [MemoryStore(store.path, settings=patient()) for _ in range(2)]
    queues = [
        ProvenanceWriteQueue(client, coalesce_ms=1, connection=server.client() if server else None)
        for client in clients
    ]
    stop = threading.Event()
    failures: list[BaseException] = []

    def hammer(work: Any) -> None:
        try:
            while not stop.is_set():
                work()
        except BaseException as error:  # noqa: BLE001  told at the end
            failures.append(error)

    def recall(queue: ProvenanceWriteQueue) -> None:
        queue.enqueue([(one, entry(json.dumps(made[one]))) for one in ids])
        stop.wait(0.002)

    works: list[Any] = [lambda queue=queue: recall(queue) for queue in queues]
    if server is not None:
        works.append(lambda: drained(clients[0], server))
    threads = [threading.Thread(target=hammer, args=(work,)) for work in works]
    for queue in queues:
        queue.start()
    for thread in threads:
        thread.start()
    for turn in range(24):
        one = ids[turn % len(ids)]
        store.delete(one)
        store.insert(_make(id=one))
        made[one] += 1  # from here on entries say the new number
    stop.set()
    for thread in threads:
        thread.join(60)
    for queue in queues:
        queue.stop()
    if server is not None:
        drained(store, server)
    store.enable_provenance_queue()  # what a busy machine has spilled
    store.disable_provenance_queue()
    assert failures == []
    for one in ids:
        # An entry that was handed out between the capture and our note of it says the number before.
        assert {int(cue) for cue in seen(store, one)} <= {made[one] - 1, made[one]}
