"""Deliberately broken pipelines: the checker must go red on each, or it proves nothing about the sound one."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fakeredis
import pytest

from iai_mcp.broker.protocol import Pushed
from iai_mcp.broker.redis.broker import RedisBroker
from iai_mcp.broker.redis.options import RedisOptions
from iai_mcp.broker.redis.retained import Ring
from iai_mcp.broker.redis.sender import Sender
from iai_mcp.config import Settings
from iai_mcp.entries.batch import EntryBatch
from iai_mcp.entries.parcel import Parcel
from iai_mcp.errors import LeaseLost
from iai_mcp.pipeline.drain import DrainPolicy, drain
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.spill.writer import Spill
from iai_mcp.storage.tables import lane as lane_module
from iai_mcp.storage.tables import lane_reader
from iai_mcp.storage.tables.lane import LaneTable
from iai_mcp.storage.tables.rows import from_row, to_arrow
from iai_mcp.store import MemoryStore, RecordsCache
from tests.chaos.checker import Verdict, check
from tests.chaos.history import Recorder, read
from tests.support import wait_until
from tests.test_store import _make


class Crash(BaseException):
    """A process that dies: nothing in the pipeline may catch it."""


class Pipeline:
    """Everything in one process over a stand-in for Redis, drained by hand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = fakeredis.FakeServer()
        self.client = fakeredis.FakeStrictRedis(server=self.server)
        self.store = MemoryStore(folder / "store", lanes=1, settings=Settings(spill_dir=folder / "spill"))
        self.record = self.store.insert(_make())
        self.queue = ProvenanceWriteQueue(self.store, connection=self.client)
        self.queue.start()
        self.recorder = Recorder(folder / "history", "p")
        self.broker = RedisBroker(self.client, self.store.store_id, 1, RedisOptions(push_s=1.0))

    @property
    def broker_of_queue(self) -> RedisBroker:
        assert isinstance(self.queue._broker, RedisBroker)
        return self.queue._broker

    def produce(self, calls: int = 3) -> None:
        for _ in range(calls):
            self.recorder.enqueue(self.queue, [self.record])

    def drain(self, **policy: Any) -> None:
        drain(self.store, self.broker, 0, RecordsCache(), DrainPolicy(linger=0, **policy))

    def crash_in_drain(self) -> None:
        with pytest.raises(Crash):
            self.drain()
        self.client.delete(self.broker.keys.lane(0, "lease"))  # it expires

    def verdict(self) -> Verdict:
        found = self.store.get(self.record)
        assert found is not None
        return check(read([self.folder / "history"]), {str(self.record): [e["cue"] for e in found.provenance]})


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    made = Pipeline(tmp_path)
    yield made
    made.queue.stop()


def crash(*_: object, **__: object) -> None:
    raise Crash


Break = Callable[[pytest.MonkeyPatch], None]


def test_ack_before_commit_loses(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def claim_and_ack(self: RedisBroker, lease: Any, *args: Any) -> Any:
        claimed = sound(self, lease, *args)
        self.ack(lease, len(claimed))
        return claimed

    sound = RedisBroker.claim
    for broken in (False, True):
        pipeline.produce()
        with monkeypatch.context() as patch:
            patch.setattr(MemoryStore, "append_provenance_batch", crash)
            if broken:
                patch.setattr(RedisBroker, "claim", claim_and_ack)
            pipeline.crash_in_drain()
        pipeline.drain()
        assert pipeline.verdict().clean is not broken
    assert len(pipeline.verdict().lost) == 3


def test_no_dedupe_doubles(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def append_blindly(self: LaneTable, batch: Any, *_: Any, **__: Any) -> int:
        self._table.add(to_arrow(batch, 1))
        return len(batch)

    for broken in (False, True):
        pipeline.produce()
        with monkeypatch.context() as patch:
            if broken:
                patch.setattr(LaneTable, "_apply", append_blindly)
                patch.setattr(lane_reader, "distinct", lambda rows: [from_row(r) for r in rows])
            with monkeypatch.context() as death:
                death.setattr(RedisBroker, "ack", crash)
                pipeline.crash_in_drain()
            pipeline.drain()
            assert pipeline.verdict().clean is not broken
            assert bool(pipeline.verdict().doubled) is broken


def test_an_overtaken_spill_reorders(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    for broken in (False, True):
        with monkeypatch.context() as patch:
            if broken:
                patch.setattr(Spill, "active", False)
            pipeline.server.connected = False
            pipeline.produce()
            wait_until(lambda: pipeline.queue._spill.unread)
            turns = pipeline.queue._priority_lock
            with turns.step():  # Redis is back, and the replay has not had its turn
                pipeline.server.connected = True
                wait_until(pipeline.broker_of_queue.try_connect)
                lock, turns._lock = turns._lock, _NoLock()  # type: ignore[assignment]
                pipeline.produce()
                turns._lock = lock
            wait_until(lambda: not pipeline.queue._spill.unread)
        pipeline.drain()
        assert bool(pipeline.verdict().reordered) is broken


class _NoLock:
    def acquire(self, **_: object) -> bool:
        return True

    def release(self) -> None: ...


def test_a_stale_token_that_is_accepted_loses(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """A paused worker wakes, writes nothing new, and acknowledges what its successor has in flight."""

    def trust(self: RedisBroker, lease: Any, count: int) -> None:
        self.client_of_test.lpop(self.keys.lane(0, "pending"), count)  # type: ignore[attr-defined]

    monkeypatch.setattr(RedisBroker, "client_of_test", pipeline.client, raising=False)
    for broken in (False, True):
        pipeline.produce()
        sleeper = pipeline.broker.lease(0)
        assert sleeper is not None
        held = pipeline.broker.claim(sleeper, 100, 0)
        pipeline.store.append_provenance_batch(EntryBatch.of(item for item in held if isinstance(item, Parcel)))
        pipeline.client.delete(pipeline.broker.keys.lane(0, "lease"))  # its lease passes on
        pipeline.drain()  # the successor finishes the batch
        pipeline.produce()
        successor = pipeline.broker.lease(0)
        assert successor is not None
        pipeline.broker.claim(successor, 100, 0)
        with monkeypatch.context() as patch:
            if broken:
                patch.setattr(RedisBroker, "ack", trust)
                pipeline.broker.ack(sleeper, len(held))
            else:
                with pytest.raises(LeaseLost):
                    pipeline.broker.ack(sleeper, len(held))
        pipeline.broker.release(successor)  # the successor dies before it writes
        pipeline.drain()
        assert bool(pipeline.verdict().lost) is broken


def test_a_commit_that_is_not_synced_loses_in_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is what it was at the last sync; everything since is gone with the power."""
    for broken in (False, True):
        pipeline = Pipeline(tmp_path / str(broken))
        store, disk = pipeline.store, tmp_path / f"disk-{broken}"
        shutil.copytree(store.path, disk)

        def sync(
            folder: Path, *, disk: Path = disk, store: MemoryStore = store, broken: bool = broken, **_: object
        ) -> None:
            if not broken:
                shutil.rmtree(disk)
                shutil.copytree(store.path, disk)

        monkeypatch.setattr(lane_module, "sync_tree", sync)
        pipeline.produce()
        pipeline.drain()
        assert pipeline.verdict().clean  # nothing shows while the power is on
        shutil.rmtree(store.path)
        shutil.copytree(disk, store.path)
        pipeline.store = MemoryStore(store.path)
        assert bool(pipeline.verdict().lost) is broken
        pipeline.queue.stop()


@pytest.mark.parametrize("variant", ["nothing retained", "epoch not asked for"])
def test_a_redis_that_forgets_goes_unnoticed(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    def send_anyway(self: Sender, *args: Any) -> Any:
        self.client.set(self._keys.epoch, self.epoch)
        return sound(self, *args)

    sound = Sender.send
    for broken in (False, True):
        with monkeypatch.context() as patch:
            if broken and variant == "nothing retained":
                patch.setattr(pipeline.broker_of_queue, "_ring", None)
            elif broken:
                patch.setattr(Sender, "send", send_anyway)
            pipeline.produce()
            pipeline.client.flushall()
            pipeline.produce()
            wait_until(lambda: not pipeline.queue._spill.unread)
            pipeline.drain()
            assert pipeline.verdict().clean is not broken


def test_a_wiped_lane_that_is_refilled_behind_new_entries_reorders(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def push_first(self: RedisBroker, sender: Sender, ring: Ring, until: float) -> None:
        pipeline.broker.open()
        wait_until(lambda: pipeline.queue._spill.unread)  # this thread may notice first that Redis was wiped
        ready.set()
        wait_until(lambda: not pipeline.queue._spill.unread)
        sound(self, sender, ring, until)

    sound, ready = RedisBroker._push_again, threading.Event()
    for broken in (False, True):
        with monkeypatch.context() as patch:
            if broken:
                patch.setattr(RedisBroker, "_push_again", push_first)
            pipeline.produce()
            pipeline.client.flushall()
            pipeline.produce()
            if broken:  # the spill goes past what is retained
                assert ready.wait(5)
                parcels = pipeline.queue._spill.read(100)
                assert pipeline.broker.push(parcels, replay=True) == Pushed()
                pipeline.queue._spill.settle()
            wait_until(lambda: not pipeline.queue._spill.unread)
            wait_until(lambda: pipeline.broker_of_queue.trouble is None)
        pipeline.drain()
        assert bool(pipeline.verdict().reordered) is broken
