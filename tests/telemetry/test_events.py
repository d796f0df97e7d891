"""The log: one event for each thing that happens beside the results, with counts, and never a cue."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import fakeredis
import pytest

from iai_mcp.broker.redis.broker import RedisBroker
from iai_mcp.broker.redis.options import RedisOptions
from iai_mcp.config import Settings
from iai_mcp.entries.routing import lane_of
from iai_mcp.errors import ConfigError
from iai_mcp.pipeline.drain import DrainPolicy, drain
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.store import MemoryStore, RecordsCache
from iai_mcp.telemetry.events import configure, emit, log, safe_message
from tests.pipeline.test_queue import Gate
from tests.servers import Server, serving, worker
from tests.support import ROOT, pairs, wait_until
from tests.test_store import _make

SECRET = "zanzibar-quetzalcoatl"


@pytest.fixture(autouse=True)
def _log() -> Iterator[None]:
    before = log.handlers[:], log.level, log.propagate
    yield
    log.handlers[:], log.level, log.propagate = before


@pytest.fixture
def record_id(store: MemoryStore) -> UUID:
    return store.insert(_make())


@pytest.fixture
def events(caplog: pytest.LogCaptureFixture) -> Any:
    """The events so far, by name, each with its fields."""
    caplog.set_level(logging.DEBUG, "iai_mcp")

    def of(name: str) -> list[dict[str, Any]]:
        return [record.fields for record in caplog.records if getattr(record, "event", "") == name]  # type: ignore[attr-defined]

    return of


# -- how it looks


def test_a_line_of_json_for_each_event(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", as_json=True)
    emit("spill_started", folder=Path("/somewhere"), entries=3)
    emit("compaction", level=logging.DEBUG, rows=1)  # below the level
    log.warning("a plain %s", "warning")
    try:
        raise ValueError(SECRET)
    except ValueError:
        log.exception("it failed")
    first, second, third = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert first.pop("ts").endswith("+00:00")
    assert first == {"level": "info", "event": "spill_started", "folder": "/somewhere", "entries": 3}
    assert (second["level"], second["event"], second["message"]) == ("warning", "log", "a plain warning")
    assert third["error"].endswith("ValueError")
    assert SECRET not in third["error"]


def test_text_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    configure("warning")
    emit("breaker_open", level=logging.WARNING, reason="TimeoutError")
    assert capsys.readouterr().err == "WARNING iai_mcp: breaker_open reason=TimeoutError\n"


def test_at_the_level_debug_an_error_is_told_whole(capsys: pytest.CaptureFixture[str]) -> None:
    for level, shown in (("warning", False), ("debug", True)):
        configure(level)
        try:
            raise ValueError(SECRET)
        except ValueError:
            log.exception("it failed")
        said = capsys.readouterr().err
        assert (SECRET in said, "test_events.py" in said) == (shown, True)


def test_the_words_of_an_error_that_may_quote_an_entry_are_left_out() -> None:
    assert safe_message(ValueError(SECRET)) == "ValueError"
    assert safe_message(OSError(28, "No space left on device")) == "OSError: No space left on device"


def test_the_setting_reaches_the_commands(store: MemoryStore) -> None:
    env = {**os.environ, "IAI_MCP_LOG_FORMAT": "json", "IAI_MCP_EMBEDDER": "openai"}  # not what made the store
    command = [sys.executable, "-m", "iai_mcp", "recall", "tabs", "--store", str(store.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, env=env, check=True)
    (told,) = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert (told["level"], told["event"]) == ("warning", "log")
    assert "this store's vectors were made by" in told["message"]


def test_the_setting_knows_two_forms() -> None:
    assert Settings.load({}).log_format == "text"
    assert Settings.load({"IAI_MCP_LOG_FORMAT": "JSON"}).log_format == "json"
    with pytest.raises(ConfigError, match="IAI_MCP_LOG_FORMAT"):
        Settings.load({"IAI_MCP_LOG_FORMAT": "xml"})


# -- what is told


def test_a_spill_and_its_end_with_counts(
    store: MemoryStore, record_id: UUID, events: Any, caplog: pytest.LogCaptureFixture
) -> None:
    queue = ProvenanceWriteQueue(store, max_queue_size=1)
    for number in range(4):  # not started: one fits
        queue.enqueue(pairs(record_id, [f"{SECRET} {number}"] * 2))
    assert [fields["entries"] for fields in events("spill_started")] == [2]
    queue.start()
    assert queue.flush(30)
    wait_until(lambda: events("spill_drained"), 10)
    queue.stop()
    assert events("spill_drained") == [{"files": 1, "entries": 6}]
    assert SECRET not in caplog.text


def test_a_journal_is_no_news(store: MemoryStore, record_id: UUID, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "iai_mcp")
    journalled = MemoryStore(store.path, settings=Settings(journal="write"))
    journalled.enable_provenance_queue()
    journalled.queue_provenance_batch(pairs(record_id, "ab"))
    journalled.disable_provenance_queue()
    assert "spill" not in caplog.text


def test_what_a_dead_client_left_is_told_when_it_is_moved_on(
    store: MemoryStore, record_id: UUID, events: Any
) -> None:
    left = ProvenanceWriteQueue(store)
    left._stopped = True
    left.enqueue(pairs(record_id, "abc"))
    left._spill.close()
    store.enable_provenance_queue()
    wait_until(lambda: events("spill_drained"), 20)
    store.disable_provenance_queue()
    assert events("spill_adopted") == [{"files": 1}]
    assert events("spill_drained") == [{"files": 1, "entries": 3}]


def test_a_compaction_tells_what_it_did(store: MemoryStore, record_id: UUID, events: Any) -> None:
    store.append_provenance_batch(pairs(record_id, "ab"))
    lane = lane_of(record_id, store.lanes)
    store.lane(lane).maintain(force=True)
    (told,) = events("compaction")
    assert (told["table"], told["rows"], told["doubled"], told["seconds"] >= 0) == (f"lane_{lane}", 2, 0, True)


def test_a_drain_that_takes_over_says_so_and_one_that_goes_on_does_not(
    store: MemoryStore, record_id: UUID, events: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = fakeredis.FakeStrictRedis()
    queue = ProvenanceWriteQueue(store, connection=connection)
    queue.start()
    queue.enqueue(pairs(record_id, "abc"))
    queue.enqueue(pairs(record_id, "de"))
    queue.stop()
    lane = lane_of(record_id, store.lanes)

    def broker(name: str) -> RedisBroker:
        monkeypatch.setattr("iai_mcp.broker.redis.lanes._holder", lambda: name)
        return RedisBroker(connection, store.store_id, store.lanes, RedisOptions(push_s=1.0))

    first = broker("one:1")
    lease = first.lease(lane)
    assert lease is not None
    first.claim(lease, 100, 0.0)
    first.release(lease)  # as a drain does whose store failed
    again = first.lease(lane)
    assert again is not None
    assert again.inherited == 0  # its own
    connection.delete(first.keys.lane(lane, "lease"))  # it died, and its lease expired

    report = drain(store, broker("two:2"), lane, RecordsCache(), DrainPolicy(linger=0))
    assert (report.applied, report.taken_over) == (5, 5)
    assert events("takeover") == [{"lane": lane, "items": 2, "entries": 5}]


def test_a_breaker_and_a_dead_letter_are_told_by_a_real_worker(
    store: MemoryStore, record_id: UUID, tmp_path: Path, events: Any
) -> None:
    with serving(tmp_path / "redis") as server:
        _with_redis(store, record_id, tmp_path / "worker.log", server, events)


def _with_redis(store: MemoryStore, record_id: UUID, said: Path, server: Server, events: Any) -> None:
    patient = MemoryStore(store.path, settings=Settings(push_budget_ms=2000))
    queue = ProvenanceWriteQueue(patient, connection=server.client())
    queue.start()
    server.client().rpush(f"iai-mcp:{store.store_id}:lane:0:pending", b"{" + SECRET.encode())
    with worker(server.url, store.path, log=said, env={"IAI_MCP_LOG_FORMAT": "json"}):
        queue.enqueue(pairs(record_id, [SECRET]))
        wait_until(lambda: b'"dead_letter"' in said.read_bytes() and b'"drained"' in said.read_bytes(), 30)
    server.kill()
    queue.enqueue(pairs(record_id, [SECRET]))
    server.start()
    wait_until(lambda: events("breaker_closed"), 20)
    queue.stop()
    assert events("breaker_open")
    lines = [json.loads(line) for line in said.read_text().splitlines()]
    assert {"ts", "level", "event"} <= set.intersection(*map(set, lines))
    (letter,) = [line for line in lines if line["event"] == "dead_letter"]
    assert (letter["level"], letter["lane"]) == ("error", 0)
    assert SECRET not in said.read_text()


# -- what is not


FAILING = """
import sys, uuid
from iai_mcp.telemetry import events
from iai_mcp.config import Settings
from iai_mcp.core import dispatch
from iai_mcp.store import MemoryStore
from iai_mcp.pipeline.background import LaneDrainer
import iai_mcp.storage.tables.lane
settings = Settings.load()
events.configure(settings.log_level, as_json=settings.log_format == "json")
store = MemoryStore(sys.argv[1])
cue, record_id = sys.argv[2], uuid.UUID(sys.argv[3])
whole = iai_mcp.storage.tables.lane.to_arrow
def to_arrow(batch, first):
    if any("poison" in str(entry["cue"]) for _, entry in batch):
        raise ValueError(f"Could not convert {[*batch]}")
    return whole(batch, first)
iai_mcp.storage.tables.lane.to_arrow = to_arrow
store.enable_provenance_queue()
run_once = LaneDrainer.run_once
def fail_once(self, timeout):
    LaneDrainer.run_once = run_once
    raise RuntimeError(f"while draining {cue}")
LaneDrainer.run_once = fail_once
for number in range(30):
    said = f"{cue} poison" if number == 7 else cue
    dispatch(store, "memory_recall", {"cue": said, "cue_embedding": [0.1] * 384})
store.disable_provenance_queue()
def refuse(pairs): raise ValueError(f"not these: {pairs}")
store.queue_provenance_batch = refuse
dispatch(store, "memory_recall", {"cue": cue, "cue_embedding": [0.1] * 384})
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_cue_is_in_the_log_of_a_run_full_of_failures(store: MemoryStore, record_id: UUID, form: str) -> None:
    command = [sys.executable, "-c", FAILING, str(store.path), SECRET, str(record_id)]
    env = {**os.environ, "IAI_MCP_LOG_FORMAT": form}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr
    for told in ("queue_error", "write_failed", "dead_letter", "were not taken"):
        assert told in done.stderr
    assert SECRET not in done.stderr
    if form == "json":
        assert all(json.loads(line)["level"] in ("warning", "error") for line in done.stderr.splitlines())


def test_a_place_that_fails_is_told_without_what_it_was_given(
    store: MemoryStore, record_id: UUID, events: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(store)
    failures = iter([OSError(28, "No space left on device", f"/somewhere/{SECRET}")])
    gate.fail = lambda batch: next(failures, None)
    queue = ProvenanceWriteQueue(store)
    queue.start()
    queue.enqueue(pairs(record_id, [SECRET]))
    assert queue.flush(30)
    queue.stop()
    assert [told["error"] for told in events("store_unavailable")] == ["OSError: No space left on device"]
    assert SECRET not in caplog.text
