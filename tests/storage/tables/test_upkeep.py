"""Upkeep that fails for hours: writes go on, the log says so less and less often, and doctor tells since when."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from typer.testing import CliRunner

from iai_mcp.cli.app import app
from iai_mcp.common import times
from iai_mcp.config import Settings
from iai_mcp.maintenance.doctor import examine
from iai_mcp.maintenance.status import status
from iai_mcp.storage.tables import attempts, erasure, lance
from iai_mcp.storage.tables.lane_reader import MAINTAIN_EVERY
from iai_mcp.store import MemoryStore
from tests.support import cues, entry, pairs
from tests.test_store import _make

ERRORS: dict[str, Callable[[], Exception]] = {
    "disk full": lambda: OSError(28, "No space left on device"),
    "of LanceDB": lambda: RuntimeError("lance error: a column of another length, optimize.rs:1"),
}


class Clock:
    """The clock by which attempts are made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = time.monotonic()
        monkeypatch.setattr(attempts, "time", self)

    def monotonic(self) -> float:
        return self.now


class Broken:
    """Upkeep that fails while ``error`` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception] | None) -> None:
        self.error = error
        self.attempts = 0
        real = lance.upkeep

        def upkeep(*args: Any) -> None:
            if self.error is not None:
                self.attempts += 1
                raise self.error()
            real(*args)

        monkeypatch.setattr(erasure, "upkeep", upkeep)


@pytest.fixture
def store(tmp_path: Path) -> MemoryStore:
    return MemoryStore(tmp_path / "store", lanes=1, settings=Settings(embedder="none", cleanup_age=0))


@pytest.fixture
def record_id(store: MemoryStore) -> UUID:
    return store.insert(_make())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def warnings(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [one.fields for one in caplog.records if getattr(one, "event", "") == "upkeep_failed"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS.keys())
def test_writes_go_on_and_the_warning_comes_less_and_less_often(
    store: MemoryStore,
    record_id: UUID,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    clock: Clock,
    error: Callable[[], Exception],
) -> None:
    broken = Broken(monkeypatch, error)
    written = 0

    def a_minute() -> None:
        nonlocal written
        for _ in range(8):
            written += 1
            report = store.append_provenance_batch(pairs(record_id, [written]))
            assert report.applied == 1
            clock.now += 60 / 8

    with caplog.at_level(logging.WARNING, "iai_mcp"):
        for _ in range(MAINTAIN_EVERY // 8):
            a_minute()
        for _ in range(60):  # for an hour
            a_minute()
    found = warnings(caplog)
    assert [one["retry_s"] for one in found] == [5 * 2**n for n in range(7)] + [600] * (len(found) - 7)
    assert 10 <= len(found) == broken.attempts <= 14  # of 480 batches
    assert [one["attempts"] for one in found] == [*range(1, len(found) + 1)]
    assert {one["since"] for one in found} == {found[0]["since"]}

    broken.error = None
    clock.now += 600
    a_minute()
    assert store.lane(0).stats()["fragments"] <= 9
    assert status(store)["upkeep_failing"] == []
    entries = store.get(record_id)
    assert entries is not None
    assert cues(entries.provenance) == [str(number) for number in range(1, written + 1)]


def test_a_queue_drains_on(
    store: MemoryStore, record_id: UUID, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a deletion to be finished, upkeep is due at every batch."""
    secret = store.insert(_make())
    store.append_provenance_batch(pairs(secret, "ab"))
    Broken(monkeypatch, ERRORS["of LanceDB"])
    with caplog.at_level(logging.WARNING, "iai_mcp"):
        store.enable_provenance_queue(coalesce_ms=0)
        store.delete(secret)
        for number in range(30):
            store.queue_provenance_batch([(record_id, entry(number))])
            queue = store.provenance_queue
            assert queue is not None
            assert queue.flush(20)
        store.disable_provenance_queue()
    entries = store.get(record_id)
    assert entries is not None
    assert len(entries.provenance) == 30
    assert 1 <= len(warnings(caplog)) <= 6  # two tables
    assert {getattr(one, "event", "") for one in caplog.records} == {"upkeep_failed"}


def test_a_memory_is_stored_whose_table_cannot_be_compacted(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    broken = Broken(monkeypatch, ERRORS["disk full"])
    ids = [store.insert(_make()) for _ in range(MAINTAIN_EVERY + 4)]
    assert broken.attempts == 1
    assert store.existing(ids) == set(ids)
    broken.error = None
    clock.now += 60
    store.tidy()
    assert status(store)["upkeep_failing"] == []


def test_doctor_and_status_say_since_when_and_why(
    store: MemoryStore, record_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IAI_MCP_EMBEDDER", "none")
    Broken(monkeypatch, ERRORS["disk full"])
    for number in range(MAINTAIN_EVERY + 4):
        store.append_provenance_batch(pairs(record_id, [number]))
    (failure,) = status(MemoryStore(store.path, settings=store.settings))["upkeep_failing"]
    assert (failure["table"], failure["attempts"]) == ("lane_0", 1)
    assert "No space left on device" in failure["reason"]

    def check() -> Any:
        (found,) = [one for one in examine(str(store.path)) if one.name == "upkeep"]
        return found

    assert check().state == "WARN"
    assert failure["since"] in check().message
    real = times.utcnow
    monkeypatch.setattr("iai_mcp.maintenance.checks.store.utcnow", lambda: real() + timedelta(hours=2))
    assert check().state == "FAIL"
    told = CliRunner().invoke(app, ["status", "--store", str(store.path)], prog_name="iai-mcp")
    assert "lane_0 fails since" in told.stderr


def test_people_who_ask_for_upkeep_are_told_that_it_fails(
    store: MemoryStore, record_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append_provenance_batch(pairs(record_id, "a"))
    Broken(monkeypatch, ERRORS["disk full"])
    with pytest.raises(OSError, match="No space left"):
        store.lane(0).maintain(force=True)
