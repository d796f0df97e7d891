"""``iai-mcp doctor``: one line for each check, with a remedy, and never a traceback."""

from __future__ import annotations

import json
import os
import time
from collections import namedtuple
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from typer.testing import CliRunner, Result

from iai_mcp.broker.redis import pending
from iai_mcp.cli.app import app
from iai_mcp.entries.parcel import Parcel
from iai_mcp.maintenance import checks
from iai_mcp.maintenance.doctor import Check, State, examine
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.record import MemoryRecord
from iai_mcp.spill.writer import Spill
from iai_mcp.storage.dead_letters import DeadLetters
from iai_mcp.store import MemoryStore
from tests.servers import Server, free_port, serving, worker
from tests.support import entry, pairs, wait_until


@pytest.fixture(autouse=True)
def _settings(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IAI_MCP_EMBEDDER", "none")
    monkeypatch.setenv("IAI_MCP_STORE", str(store.path))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving(tmp_path / "redis") as running:
        monkeypatch.setenv("IAI_MCP_REDIS_URL", running.url)
        yield running


@pytest.fixture
def overflow(home: Path) -> Path:
    return home / ".iai-mcp" / ".provenance-overflow"


def run(*args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["doctor", *args], prog_name="iai-mcp")
    assert result.exit_code == code, (result.output, result.exception)
    return result


def found(name: str) -> Check:
    """The one check of that name."""
    (check,) = [check for check in examine() if check.name == name]
    return check


def said(name: str) -> tuple[State, str]:
    check = found(name)
    assert (check.remedy == "") == (check.state in (State.PASS, State.SKIP)), check
    return check.state, check.message


# -- as people see it


def test_a_sound_installation_passes(store: MemoryStore) -> None:
    store.insert(MemoryRecord(text="Ada prefers tabs"))
    result = run()
    lines = result.stdout.splitlines()
    assert lines[-1].endswith("checks: 0 failed, 0 warnings")
    assert {line.split()[0] for line in lines[:-1]} == {"PASS", "SKIP"}
    (line,) = [line for line in lines if line.split()[1] == "store" and "memory" in line]
    assert line.startswith("PASS")
    assert ": 1 memory, schema 1, 4 lanes" in line
    assert sum("the embedded broker needs none" in line for line in lines) == 3


def test_the_document_says_the_same(store: MemoryStore) -> None:
    DeadLetters(store.layout).add_raw(0, b"x", "?")
    document = json.loads(run("--json").stdout)
    assert document["ok"] is True
    (dead,) = [check for check in document["checks"] if check["name"] == "dead letters"]
    assert (dead["state"], dead["message"], "dead list" in dead["remedy"]) == ("WARN", "1", True)


def test_a_failure_is_exit_code_one(store: MemoryStore) -> None:
    store.layout.meta.write_text("{}")
    result = run(code=1)
    assert next(line.split()[0] for line in result.stdout.splitlines() if line.split()[1] == "store") == "FAIL"
    assert "Traceback" not in result.output


def test_no_store_is_made_by_looking(tmp_path: Path) -> None:
    result = run("--store", str(tmp_path / "none"))
    assert "WARN  store" in result.stdout
    assert not (tmp_path / "none").exists()


def test_a_setting_that_cannot_be_read_fails_and_nothing_more_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IAI_MCP_LEASE", "soon")
    lines = run(code=1).stdout.splitlines()
    assert lines[-2].startswith("FAIL  settings")
    assert "IAI_MCP_LEASE" in lines[-2]


class Panic(BaseException):
    """As LanceDB's Rust raises: no Exception."""


@pytest.mark.parametrize("error", [RuntimeError("with a reason\nand more"), Panic("with a reason")])
def test_a_check_that_breaks_is_a_failure_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def broken(_: object) -> Any:
        raise error

    monkeypatch.setattr(checks.store, "lanes", broken)
    done = [*examine()]
    (lanes,) = [check for check in done if check.name == "lanes"]
    assert lanes.state is State.FAIL
    assert lanes.message == f"{type(error).__name__}: with a reason"
    assert done[-1].name == "dead letters"


# -- the installation


def test_an_old_package_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"lancedb": "0.1.0"}
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: versions.get(name) or real(name))
    state, words = said("package lancedb")
    assert state is State.FAIL
    assert "0.1.0 is older than" in words
    assert said("package redis")[0] is State.PASS


def test_a_store_of_a_later_version_fails(store: MemoryStore) -> None:
    meta = json.loads(store.layout.meta.read_text())
    store.layout.meta.write_text(json.dumps({**meta, "schema_version": 99}))
    assert "schema version 99" in next(check.message for check in examine() if check.state is State.FAIL)


def test_a_folder_that_others_can_read_is_a_warning(store: MemoryStore, overflow: Path) -> None:
    assert said("store folder")[0] is State.PASS
    store.path.chmod(0o755)
    state, words = said("store folder")
    assert (state, "open to other users" in words) == (State.WARN, True)

    assert said("spill folder") == (State.PASS, f"{overflow} will be made when it is needed")
    a_spill(store, overflow)
    assert said("spill folder")[0] is State.PASS
    (file,) = overflow.iterdir()
    file.chmod(0o644)
    assert said("spill folder") == (State.WARN, f"{file} is open to other users")


def test_another_embedder_than_the_vectors_is_a_warning(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert said("embedder")[0] is State.PASS
    monkeypatch.setenv("IAI_MCP_EMBEDDER", "builtin")
    state, words = said("embedder")  # the store was made before with the built-in one
    assert (state, "384 dimensions" in words) == (State.PASS, True)
    store.layout.meta.write_text(store.layout.meta.read_text().replace("builtin:all-MiniLM", "other:all-MiniLM"))
    state, words = said("embedder")
    assert (state, "the vectors are by other:all-MiniLM" in words) == (State.WARN, True)
    monkeypatch.setenv("IAI_MCP_EMBEDDER", "openai")  # without a key
    assert said("embedder")[0] is State.FAIL


def test_memories_without_a_vector_are_a_warning(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.insert(MemoryRecord(text="no vector"))
    monkeypatch.setenv("IAI_MCP_EMBEDDER", "builtin")
    assert said("embedder") == (State.WARN, "1 memory without a vector")


@pytest.mark.parametrize(
    ("free", "state"), [(2 * 2**30, State.PASS), (2**29, State.WARN), (50 * 2**20, State.FAIL)]
)
def test_room_on_the_disk(monkeypatch: pytest.MonkeyPatch, free: int, state: State) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(free))
    assert said("store disk")[0] is said("spill disk")[0] is state


def test_versions_that_pile_up_are_a_warning_and_the_repair_compacts(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_id = store.insert(MemoryRecord(text="x"))
    for number in range(6):
        store.append_provenance_batch(pairs(record_id, [number]))
    (lane,) = [number for number in range(4) if (store.path / f"lane_{number}.lance").exists()]
    assert said(f"lane {lane}")[0] is State.PASS
    monkeypatch.setattr("iai_mcp.storage.tables.lane_reader.PILED_UP", 4)
    assert said(f"lane {lane}")[0] is State.WARN
    monkeypatch.setenv("IAI_MCP_CLEANUP_AGE", "0")
    result = CliRunner().invoke(app, ["verify", "--repair"])
    assert (result.exit_code, f"compacted lane {lane}" in result.stderr) == (0, True)
    assert said(f"lane {lane}")[0] is State.PASS


# -- what waits


def a_spill(store: MemoryStore, overflow: Path, *, open_: bool = False) -> Spill:
    spill = Spill(store.store_id, "ab" * 8, overflow)
    parcel = Parcel.of(store.store_id, 0, "ab" * 8, time.time() - 90, [(uuid4(), 1, entry("x"))])
    spill.append([parcel], overflow)
    if not open_:
        spill.close()
    return spill


def test_a_spill_is_a_warning_and_so_is_an_entry_that_waits_long(store: MemoryStore, overflow: Path) -> None:
    assert (said("spill"), said("waiting")) == ((State.PASS, "empty"), (State.PASS, "nothing waits"))
    held = a_spill(store, overflow, open_=True)
    assert said("spill") == (State.WARN, "1 entry in 1 file of living processes")
    held.close()
    assert said("spill") == (State.WARN, "1 entry in 1 file, 1 of them held by no living process")
    assert found("spill").remedy == "iai-mcp spill replay"
    state, words = said("waiting")
    assert state is State.WARN
    assert words.startswith("the oldest entry has waited 9")
    (overflow / "x.failed-1.jsonl").write_text("broken\n")
    assert [check.message for check in examine() if check.name == "spill"][1] == "1 file set aside"


def test_a_journal_is_no_warning(store: MemoryStore, overflow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IAI_MCP_JOURNAL", "write")
    held = a_spill(store, overflow, open_=True)
    assert found("spill").state is State.PASS
    held.close()


def test_what_was_forgotten_long_ago_must_be_gone(store: MemoryStore) -> None:
    record_id = store.insert(MemoryRecord(text="x"))
    store.append_provenance_batch(pairs(record_id, "a"))
    store.delete(record_id)
    assert said("forgotten")[0] is State.PASS  # just now: a reader may have the old version open
    for note in store.layout.locks.glob("*.erasure"):
        os.utime(note, (1, 1))
    assert said("forgotten")[0] is State.WARN


# -- Redis


def test_a_redis_as_it_should_be(store: MemoryStore, server: Server) -> None:
    with worker(server.url, store.path):
        wait_until(lambda: found("workers").state is State.PASS, 30)
        found_now = {check.name: check for check in examine()}
    assert {check.state for check in found_now.values()} == {State.PASS}
    assert found_now["workers"].message == "1 alive on the queue 'provenance'"
    assert found_now["redis appendonly"].message == "yes"
    assert found_now["clock"].message.startswith("Redis's clock is 0.0 s")


def test_several_users_of_redis_without_a_signing_key_are_a_warning(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert said("signing") == (State.PASS, "no key is set; Redis has one user")
    server.client().acl_setuser("ada", enabled=True, passwords="+secret", commands=["+@all"], keys=["*"])
    state, message = said("signing")
    assert state is State.WARN
    assert "forge" in message
    monkeypatch.setenv("IAI_MCP_SIGNING_KEY", f"{'k' * 32},{'l' * 32}")
    assert said("signing") == (State.PASS, "entries are signed; 2 keys accepted")
    monkeypatch.delenv("IAI_MCP_SIGNING_KEY")
    monkeypatch.setenv("IAI_MCP_REDIS_URL", server.url.replace("redis://", "redis://ada:secret@"))
    server.client().acl_setuser("ada", enabled=True, commands=["-acl"])
    assert said("signing")[0] is State.WARN


def test_without_a_worker_nothing_is_drained(server: Server) -> None:
    assert said("workers")[0] is State.FAIL
    assert found("workers").remedy == "iai-mcp worker"


def test_each_setting_of_redis_that_loses_entries_has_its_line(server: Server) -> None:
    client = server.client()
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.config_set("appendfsync", "no")
    assert said("redis eviction") == (State.FAIL, "allkeys-lru")
    assert said("redis appendfsync") == (State.WARN, "no")
    client.config_set("appendonly", "no")
    assert said("redis appendonly") == (State.WARN, "no")
    used = client.info("memory")["used_memory"]
    client.config_set("maxmemory", int(used * 1.05))
    assert said("redis memory")[0] is State.WARN
    client.config_set("maxmemory", 1)
    assert said("redis memory")[0] is State.FAIL


def test_a_client_that_insists_on_the_disk_wants_a_server_that_syncs_every_write(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IAI_MCP_REDIS_DURABILITY", "fsync")
    assert said("redis appendfsync") == (State.WARN, "everysec")
    assert found("redis appendfsync").remedy == "CONFIG SET appendfsync always"
    server.client().config_set("appendfsync", "always")
    assert said("redis appendfsync") == (State.PASS, "always")
    server.client().config_set("appendonly", "no")
    assert said("redis durability")[0] is State.FAIL


def test_a_redis_that_does_not_answer_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IAI_MCP_REDIS_URL", f"redis://:geheim@127.0.0.1:{free_port()}/0")
    result = run(code=1)
    assert "FAIL  redis" in result.stdout
    assert "geheim" not in result.output
    assert [said(name)[0] for name in ("clock", "workers")] == [State.SKIP, State.SKIP]


def test_a_clock_that_is_off_is_a_warning(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time

    class Ahead:
        time = staticmethod(lambda: real() + 30)

    monkeypatch.setattr(pending, "time", Ahead)
    state, words = said("clock")
    assert (state, words) == (State.WARN, "Redis's clock is 30.0 s behind ours")


def test_an_entry_that_nobody_drains_is_a_warning(
    store: MemoryStore, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks.disk, "WAITING_S", 0.0)
    monkeypatch.setenv("IAI_MCP_PUSH_BUDGET_MS", "2000")
    assert said("waiting") == (State.PASS, "nothing waits")
    record_id: UUID = store.insert(MemoryRecord(text="x"))
    queue = ProvenanceWriteQueue(MemoryStore(), connection=server.client())
    queue.start()
    queue.enqueue(pairs(record_id, "a"))
    queue.stop()
    wait_until(lambda: found("waiting").state is State.WARN)
