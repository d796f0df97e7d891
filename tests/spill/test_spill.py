"""``iai-mcp spill``: what lies in the spill folder, and moving on what nobody holds."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import fakeredis
import pytest
from typer.testing import CliRunner, Result

from iai_mcp.broker.factory import redis_broker
from iai_mcp.broker.redis.broker import RedisBroker
from iai_mcp.cli.app import app
from iai_mcp.entries.parcel import Parcel
from iai_mcp.entries.routing import lane_of
from iai_mcp.pipeline import recovery
from iai_mcp.spill.handover import HandOverSpill
from iai_mcp.spill.writer import Spill
from iai_mcp.storage.dead_letters import DeadLetters
from iai_mcp.storage.locked_file import is_held
from iai_mcp.store import MemoryStore
from tests.servers import Server, free_port, serving, worker
from tests.support import cues, entry, python, wait_until
from tests.test_store import _make


@pytest.fixture(autouse=True)
def _no_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IAI_MCP_EMBEDDER", "none")


@pytest.fixture
def record_id(store: MemoryStore) -> UUID:
    return store.insert(_make())


@pytest.fixture
def overflow(home: Path) -> Path:
    return home / ".iai-mcp" / ".provenance-overflow"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "redis") as running:
        yield running


def spill(store: MemoryStore, *args: str, code: int = 0, env: dict[str, str] | None = None) -> Result:
    result = CliRunner().invoke(app, ["spill", *args, "--store", str(store.path)], env=env, prog_name="iai-mcp")
    assert result.exit_code == code, (result.output, result.exception)
    return result


def leave(store: MemoryStore, folder: Path, record_id: UUID, what: list[Any], *, max_bytes: int = 2**20) -> None:
    """Entries of a client that is no more, over several files where ``max_bytes`` is small."""
    left = Spill(store.store_id, "ab" * 8, folder, max_bytes=max_bytes)
    for seq, cue in enumerate(what, 1):
        one = (record_id, seq, entry(cue) if isinstance(cue, str) else cue)
        lane = lane_of(record_id, store.lanes)
        left.append([Parcel.of(store.store_id, lane, "ab" * 8, time.time() - 60, [one])], folder)
    left.close()


def seen(store: MemoryStore, record_id: UUID) -> list[str]:
    found = store.get(record_id)
    assert found is not None
    return cues(found.provenance)


HOLD = """
import sys, uuid
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.store import MemoryStore
queue = ProvenanceWriteQueue(MemoryStore(sys.argv[1]))
queue._stopped = True  # everything goes to the spill
queue.enqueue([(uuid.UUID(sys.argv[2]), {"cue": "held"})])
print("there", flush=True)
sys.stdin.readline()
"""


def test_a_parcel_without_entries_stops_nothing(store: MemoryStore, record_id: UUID, overflow: Path) -> None:
    left = Spill(store.store_id, "ab" * 8, overflow)
    left.append([Parcel.of(store.store_id, 999, "ab" * 8, time.time(), [])], overflow)
    left.close()
    leave(store, overflow, record_id, ["a"])
    store.enable_provenance_queue()
    wait_until(lambda: seen(store, record_id) == ["a"] and not [*overflow.glob("*.jsonl")])
    store.disable_provenance_queue()


def test_the_list_says_whose_each_file_is_and_who_holds_it(
    store: MemoryStore, record_id: UUID, overflow: Path
) -> None:
    leave(store, overflow, record_id, ["a", "b"])
    (overflow / "x.failed-1.jsonl").write_text("no entry\n")
    stranger = Spill("ff" * 16, "cd" * 8, overflow)
    stranger.append([Parcel.of("ff" * 16, 0, "cd" * 8, time.time(), [(record_id, 1, entry("x"))])], overflow)
    process = python(HOLD, store.path, record_id)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        document = json.loads(spill(store, "list", "--json").stdout)
        lines = spill(store, "list").stdout.splitlines()
    finally:
        process.kill()
        process.communicate(timeout=20)
    assert document["store_id"] == store.store_id
    ours = [file for file in document["files"] if file["store"] == store.store_id]
    assert sorted((file["entries"], file["held"], file["set_aside"]) for file in ours) == [
        (1, True, False),
        (2, False, False),
    ]
    (orphan,) = [file for file in ours if not file["held"]]
    assert (orphan["producer"], 59 < orphan["age_s"] < 3600) == ("ab" * 8, True)
    assert [file["unreadable"] for file in document["files"] if file["set_aside"]] == [1]
    assert sum("held by a living process" in line and "this store" in line for line in lines) == 1
    assert sum("held by no process" in line and "this store" in line for line in lines) == 1
    assert sum("set aside" in line for line in lines) == 1
    assert sum(f"store {'ff' * 16}" in line for line in lines) == 1


def test_an_empty_spill_is_said_on_stderr(store: MemoryStore) -> None:
    result = spill(store, "list")
    assert (result.stdout, "nothing is spilled" in result.stderr) == ("", True)
    assert spill(store, "replay").stdout == "nothing to replay\n"


def test_a_replay_writes_to_the_store_in_order_and_removes_the_files(
    store: MemoryStore, record_id: UUID, overflow: Path
) -> None:
    leave(store, overflow, record_id, [str(number) for number in range(300)], max_bytes=4096)
    assert len([*overflow.iterdir()]) > 3
    document = json.loads(spill(store, "replay", "--json").stdout)
    assert (document["applied"], document["duplicate"], document["dead"]) == (300, 0, 0)
    assert seen(store, record_id) == [str(number) for number in range(300)]
    assert [*overflow.iterdir()] == []


def test_a_replay_that_comes_twice_adds_nothing(store: MemoryStore, record_id: UUID, overflow: Path) -> None:
    for _ in range(2):
        leave(store, overflow, record_id, ["a", "b"])
        said = spill(store, "replay").stdout
    assert said == "1 file replayed: 2 applied before\n"
    assert seen(store, record_id) == ["a", "b"]


def test_a_replay_buries_what_cannot_be_written_and_goes_on(
    store: MemoryStore, record_id: UUID, overflow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(store, overflow, record_id, ["a", "poison", "b"])
    append = MemoryStore.append_provenance_batch

    def picky(self: MemoryStore, pairs: Any, records_cache: Any = None) -> Any:
        if any(data["cue"] == "poison" for _, data in pairs):
            raise ValueError("it will not go")
        return append(self, pairs, records_cache)

    monkeypatch.setattr(MemoryStore, "append_provenance_batch", picky)
    result = spill(store, "replay", code=1)
    assert "1 entry became dead letters" in result.stderr
    assert seen(store, record_id) == ["a", "b"]
    assert [letter.keys for letter in DeadLetters(store.layout).all()] == [[("ab" * 8, 2)]]


def test_with_redis_a_replay_pushes_and_the_workers_do_the_rest(
    store: MemoryStore, record_id: UUID, overflow: Path, server: Server
) -> None:
    leave(store, overflow, record_id, ["a", "b", "c"])
    env = {"IAI_MCP_REDIS_URL": server.url, "IAI_MCP_PUSH_BUDGET_MS": "2000"}
    assert spill(store, "replay", env=env).stdout == "1 file replayed: 3 pushed to Redis\n"
    assert [*overflow.iterdir()] == []
    assert seen(store, record_id) == []
    with worker(server.url, store.path):
        wait_until(lambda: seen(store, record_id) == ["a", "b", "c"], 30)


def test_a_redis_that_is_away_leaves_the_files_where_they_are(
    store: MemoryStore, record_id: UUID, overflow: Path
) -> None:
    leave(store, overflow, record_id, ["a"])
    env = {"IAI_MCP_REDIS_URL": f"redis://127.0.0.1:{free_port()}/0"}
    result = spill(store, "replay", code=1, env=env)
    assert (result.stdout, "1 file had to stay" in result.stderr) == ("nothing was moved\n", True)
    assert len([*overflow.iterdir()]) == 1


def test_dead_letters_of_a_redis_worker_are_in_the_store_and_can_be_retried(
    store: MemoryStore, record_id: UUID, server: Server
) -> None:
    """Dead letters do not depend on the broker: `iai-mcp dead` shows and retries those of workers too."""
    env = {"IAI_MCP_REDIS_URL": server.url}
    poison = entry("poison", producer="p", producer_seq=1, entry_id="p-1")
    DeadLetters(store.layout).add_entry(lane_of(record_id, store.lanes), (record_id, poison), "it would not go")
    key = f"iai-mcp:{store.store_id}:lane:0:pending"
    server.client().rpush(key, b"no item at all")
    with worker(server.url, store.path):
        wait_until(lambda: DeadLetters(store.layout).count() == 2, 30)

    def dead(*args: str, code: int = 0) -> Any:
        shown = CliRunner().invoke(app, ["dead", *args, "--json", "--store", str(store.path)], env=env)
        assert shown.exit_code == code, shown.output
        return json.loads(shown.stdout)

    letters = dead("list")["letters"]
    assert [letter["raw"] is None for letter in letters] == [True, False]
    assert dead("show", letters[0]["id"])["entry"]["cue"] == "poison"
    assert dead("retry", letters[0]["id"])["applied"] == 1
    assert seen(store, record_id) == ["poison"]
    assert dead("drop", letters[1]["id"]) == {"dropped": 1}
    assert dead("list")["letters"] == []


def test_a_push_that_fails_in_its_middle_lets_go_of_the_files(
    store: MemoryStore, record_id: UUID, overflow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(store, overflow, record_id, ["a", "b"])
    (file,) = overflow.glob("*.jsonl")
    broker = redis_broker(store.settings, store.store_id, store.lanes, fakeredis.FakeStrictRedis())

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(RedisBroker, "push", fail)
        with pytest.raises(MemoryError):
            recovery.push(store, broker)
    assert not is_held(file)
    assert recovery.push(store, broker).pushed == 2


def test_a_hand_over_counts_the_entries_of_all_its_files(
    store: MemoryStore, record_id: UUID, overflow: Path
) -> None:
    spill = HandOverSpill(store.store_id, "cd" * 8, overflow, max_bytes=1)
    for seq, cue in enumerate("abc", 1):
        one = (record_id, seq, entry(cue))
        lane = lane_of(record_id, store.lanes)
        spill.append([Parcel.of(store.store_id, lane, "cd" * 8, time.time(), [one])], overflow)
    assert (len([*overflow.iterdir()]), spill.entries_left()) == (3, 3)
    min(overflow.iterdir()).unlink()
    assert spill.entries_left() == 2
