"""One store id twice on one Redis: the second folder is refused, with what to do, and loses nothing."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
from typer.testing import CliRunner, Result

from iai_mcp.broker.factory import redis_broker
from iai_mcp.broker.redis.keys import Keys
from iai_mcp.broker.redis.place import claim_place
from iai_mcp.cli.app import app
from iai_mcp.common.place import Place
from iai_mcp.config import Settings
from iai_mcp.errors import WrongPlace
from iai_mcp.pipeline.drain import DrainPolicy, drain
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.server.calls import Calls
from iai_mcp.storage.place import store_place
from iai_mcp.store import MemoryStore, RecordsCache
from tests.servers import Server, serving, worker
from tests.support import cues, pairs
from tests.test_store import _make
from workers.runner import LaneRunner


@pytest.fixture(autouse=True)
def _no_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IAI_MCP_EMBEDDER", "none")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "redis") as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> MemoryStore:
    return MemoryStore(tmp_path / "store", settings=Settings(push_budget_ms=2000))


@pytest.fixture
def record_id(store: MemoryStore) -> UUID:
    return store.insert(_make())


def opened(path: Path) -> MemoryStore:
    return MemoryStore(path, settings=Settings(push_budget_ms=2000))


def copied(store: MemoryStore, to: Path) -> MemoryStore:
    shutil.copytree(store.path, to, copy_function=shutil.copy2)
    return opened(to)


def trouble(store: MemoryStore, server: Server, user: str = "producer") -> str | None:
    """What a producer of this store is told when it starts."""
    queue = ProvenanceWriteQueue(store, connection=server.client(user))
    queue.start()
    try:
        return queue.trouble
    finally:
        queue.stop()


def seen(store: MemoryStore, record_id: UUID) -> list[str]:
    found = store.get(record_id)
    assert found is not None
    return cues(found.provenance)


def run(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [*map(str, args)], prog_name="iai-mcp")
    assert result.exit_code == code, result.output
    return result


# -- what goes on working


def test_the_same_folder_comes_again_and_again(store: MemoryStore, server: Server) -> None:
    for _ in range(3):
        assert trouble(opened(store.path), server) is None


def test_a_folder_that_is_moved_or_mounted_elsewhere(store: MemoryStore, server: Server, tmp_path: Path) -> None:
    assert trouble(store, server) is None
    link = tmp_path / "link"  # as a bind mount, or the volume of another container
    link.symlink_to(store.path)
    assert trouble(opened(link), server) is None
    os.rename(store.path, tmp_path / "moved")
    assert trouble(opened(tmp_path / "moved"), server) is None


def test_another_host_with_the_same_volume(
    store: MemoryStore, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert trouble(store, server) is None
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    assert trouble(opened(store.path), server) is None


def test_a_copy_whose_original_is_gone_from_this_host(store: MemoryStore, server: Server, tmp_path: Path) -> None:
    """Moved from one file system to another."""
    assert trouble(store, server) is None
    copy = copied(store, tmp_path / "copy")
    shutil.rmtree(store.path)
    assert trouble(copy, server) is None


def test_a_redis_that_was_wiped_belongs_to_the_next_who_comes(
    store: MemoryStore, server: Server, tmp_path: Path
) -> None:
    assert trouble(store, server) is None
    copy = copied(store, tmp_path / "copy")
    server.client().flushall()
    assert trouble(copy, server) is None
    assert "another folder" in str(trouble(store, server))


def test_a_redis_that_is_full_refuses_nobody(store: MemoryStore, server: Server) -> None:
    server.client().config_set("maxmemory", 1)
    queue = ProvenanceWriteQueue(store, connection=server.client())
    queue.start()
    assert "another folder" not in str(queue.trouble)
    queue.stop()


# -- the second folder


def test_a_copy_beside_the_original_spills_and_says_why(
    store: MemoryStore, record_id: UUID, server: Server, tmp_path: Path
) -> None:
    assert trouble(store, server) is None
    copy = copied(store, tmp_path / "copy")
    queue = ProvenanceWriteQueue(copy, connection=server.client())
    queue.start()
    queue.enqueue(pairs(record_id, ["of the copy"]))
    assert queue.trouble is not None
    for words in (str(store.path), socket.gethostname(), "--new-id", "--take"):
        assert words in queue.trouble
    queue.stop()
    keys = Keys("", store.store_id)
    assert [server.client().llen(keys.lane(lane, "pending")) for lane in range(4)] == [0] * 4
    assert trouble(store, server) is None  # the original is not disturbed


def test_a_worker_of_the_copy_does_not_start(
    store: MemoryStore, server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert trouble(store, server) is None
    copy = copied(store, tmp_path / "copy")
    with pytest.raises(WrongPlace):
        LaneRunner(copy, server.client("worker"))
    log = tmp_path / "worker.log"
    with worker(server.url, copy.path, log=log) as process:
        assert process.wait(60) == 2
    assert "iai-mcp place --take" in log.read_text()
    env = {"IAI_MCP_REDIS_URL": server.url}
    refused = CliRunner().invoke(app, ["worker", "--store", str(copy.path)], env=env, prog_name="iai-mcp")
    assert refused.exit_code == 2
    assert "iai-mcp place --take" in refused.stderr


def test_a_command_that_recalls_in_the_copy_ends_with_2(
    store: MemoryStore, record_id: UUID, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IAI_MCP_EMBEDDER", "builtin")
    monkeypatch.setenv("IAI_MCP_REDIS_URL", server.url)
    monkeypatch.setenv("IAI_MCP_PUSH_BUDGET_MS", "2000")
    made = tmp_path / "made"
    run("capture", "the harbour opens at six", "--store", made)
    run("recall", "harbour", "--store", made)
    shutil.copytree(made, tmp_path / "copy")
    refused = run("recall", "harbour", "--store", tmp_path / "copy", code=2)
    assert str(made) in refused.stderr
    assert "iai-mcp place --new-id" in refused.stderr
    found = run("doctor", "--store", tmp_path / "copy", code=1)
    assert "redis place" in found.stdout
    run("place", "--new-id", "--store", tmp_path / "copy")
    run("recall", "harbour", "--store", tmp_path / "copy")
    run("recall", "harbour", "--store", made)


def test_a_server_of_the_copy_answers_every_call_with_what_to_do(
    store: MemoryStore, server: Server, tmp_path: Path
) -> None:
    assert trouble(store, server) is None
    copy = copied(store, tmp_path / "copy")
    calls = Calls(Settings(redis_url=server.url_of("producer"), embedder="none"), copy.path)
    for _ in range(2):
        with pytest.raises(WrongPlace, match="--new-id"):
            calls.store()
    assert calls.opened is None


def test_people_confirm_a_move_to_another_host(
    store: MemoryStore, record_id: UUID, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IAI_MCP_REDIS_URL", server.url)
    queue = ProvenanceWriteQueue(store, connection=server.client())
    queue.start()
    queue.enqueue(pairs(record_id, ["before the move"]))
    queue.stop()
    copy = copied(store, tmp_path / "copy")
    shutil.rmtree(store.path)
    with monkeypatch.context() as elsewhere:  # from here on nobody can see the original's folder
        elsewhere.setattr(socket, "gethostname", lambda: "another")
        assert "another folder" in str(trouble(copy, server))
        told = run("place", "--store", copy.path)
        assert "another folder" in told.output
        run("place", "--take", "--store", copy.path)
        assert trouble(copy, server) is None
        broker = redis_broker(copy.settings, copy.store_id, copy.lanes, server.client())
        for lane in range(copy.lanes):
            drain(copy, broker, lane, RecordsCache(), DrainPolicy(linger=0))
        assert seen(copy, record_id) == ["before the move"]


def test_a_restored_backup_beside_the_original(
    store: MemoryStore, record_id: UUID, server: Server, tmp_path: Path
) -> None:
    """The original is not where the backup says, but it is in use."""
    assert trouble(store, server) is None
    run("backup", tmp_path / "backup", "--store", store.path)
    os.rename(store.path, tmp_path / "moved")
    original = opened(tmp_path / "moved")
    run("restore", tmp_path / "backup", "--store", tmp_path / "restored")
    assert trouble(original, server) is None
    assert "another folder" in str(trouble(opened(tmp_path / "restored"), server))


# -- the note itself


def test_two_that_come_at_once_do_not_both_get_it(store: MemoryStore, server: Server) -> None:
    """One of them is delayed between its look and its claim."""
    client, keys = server.client(), Keys("", store.store_id)
    mine = Place("a" * 32, "host a", "/a", "note")
    theirs = Place("b" * 32, "host b", "/b", "note")

    class Slow:
        def __getattr__(self, name: str) -> Any:
            return getattr(client, name)

        def execute_command(self, *args: Any) -> Any:
            if client.llen(keys.place) == 0:
                claim_place(client, keys, theirs)
            return client.execute_command(*args)

    with pytest.raises(WrongPlace):
        claim_place(Slow(), keys, mine)  # type: ignore[arg-type]
    claim_place(client, keys, theirs)


@pytest.mark.parametrize("content", [b"", b"{}", b"no json"])
def test_a_note_that_a_power_cut_has_emptied_is_made_anew(store: MemoryStore, content: bytes) -> None:
    before = store_place(store.layout)
    store.layout.place.write_bytes(content)
    after = store_place(store.layout)
    assert before is not None
    assert after is not None
    assert before.id != after.id
    assert store_place(store.layout) == after


def test_a_folder_that_cannot_be_written_has_no_place(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "replace", refuse)
    assert store_place(store.layout) is None


def test_a_note_of_a_later_version_is_understood(store: MemoryStore, server: Server) -> None:
    place = store_place(store.layout)
    assert place is not None
    later = {**msgspec.to_builtins(place), "further": 1}
    server.client().rpush(Keys("", store.store_id).place, msgspec.json.encode(later))
    assert trouble(store, server) is None
