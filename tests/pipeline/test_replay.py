"""A replay of the spill beside recalls: it holds nobody up, overtakes nothing, and a flush waits for its steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import fakeredis
import pytest

from iai_mcp.broker.protocol import Pushed, Refused
from iai_mcp.broker.redis.broker import RedisBroker
from iai_mcp.config import Settings
from iai_mcp.entries.parcel import Parcel
from iai_mcp.pipeline.priority_lock import PriorityLock
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.spill.segment import Segment
from iai_mcp.store import MemoryStore
from tests.pipeline.test_queue import overflow
from tests.support import cues, pairs, wait_until
from tests.test_store import _make


class Slow:
    """Stands before a broker's pushes: delays or holds those of a replay, or makes them fail."""

    def __init__(self, broker: RedisBroker) -> None:
        self.open = threading.Event()
        self.open.set()
        self.delay = 0.0
        self.fail: BaseException | None = None
        self.steps = 0
        self._push = broker.push
        broker.push = self  # type: ignore[method-assign]

    def __call__(self, parcels: Sequence[Parcel], *, replay: bool = False, **further: Any) -> Pushed | Refused:
        if replay:
            self.steps += 1
            time.sleep(self.delay)
            assert self.open.wait(20)
            if self.fail is not None:
                error, self.fail = self.fail, None
                raise error
        return self._push(parcels, replay=replay, **further)


class Drowsy:
    """A lock that is slow to wake who waits for it, as any is on a busy machine."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        end = time.monotonic() + (timeout if timeout >= 0 else 60)
        while not (taken := self._lock.acquire(blocking=False)) and blocking and time.monotonic() < end:
            time.sleep(0.03)
        return taken

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class Pipeline:
    """A queue on a stand-in for Redis that can be away, with a store that is drained by hand."""

    def __init__(self, store: MemoryStore, **settings: Any) -> None:
        self.store = MemoryStore(store.path, settings=Settings(embedder="none", **settings))
        self.record_id: UUID = self.store.insert(_make())
        self.server = fakeredis.FakeServer()
        connection = fakeredis.FakeStrictRedis(server=self.server)
        self.queue = ProvenanceWriteQueue(self.store, connection=connection)
        self.queue.start()
        broker = self.queue._broker
        assert isinstance(broker, RedisBroker)
        self.broker = broker
        self.slow = Slow(broker)

    def spill(self, count: int) -> list[str]:
        """Recalls while Redis is away."""
        self.server.connected = False
        said = [f"spilled {number}" for number in range(count)]
        for cue in said:
            self.enqueue(cue)
        assert self.queue.counts.spilled >= count
        return said

    def enqueue(self, cue: str) -> float:
        """One recall; the seconds that it took."""
        began = time.perf_counter()
        self.queue.enqueue(pairs(self.record_id, [cue]))
        return time.perf_counter() - began

    def replaying(self) -> None:
        """Redis is back; returns as a step begins."""
        steps = self.slow.steps
        self.server.connected = True
        wait_until(lambda: self.slow.steps > steps)

    def pushed(self) -> list[str]:
        """What the lanes hold, in order."""
        wait_until(lambda: not self.queue._spill.active)
        found: list[str] = []
        for lane in range(self.store.lanes):
            lease = self.broker.lease(lane)
            assert lease is not None
            for item in self.broker.claim(lease, 100_000, 0):
                assert isinstance(item, Parcel)
                found += cues(entry for _, _, entry in item.handed_out())
            self.broker.release(lease)
        return found


@pytest.fixture
def make(store: MemoryStore) -> Iterator[Any]:
    made: list[Pipeline] = []

    def pipeline(**settings: Any) -> Pipeline:
        made.append(Pipeline(store, **settings))
        return made[-1]

    yield pipeline
    for each in made:
        each.slow.open.set()
        each.queue.stop()


def test_a_recall_does_not_wait_for_a_push_of_the_replay(make: Any) -> None:
    pipeline = make(push_budget_ms=10)
    said = pipeline.spill(3)
    pipeline.slow.open.clear()
    pipeline.replaying()
    took = [pipeline.enqueue(f"meanwhile {number}") for number in range(3)]
    assert max(took) < 0.25  # 10 ms on an idle machine
    pipeline.slow.open.set()
    assert pipeline.pushed() == [*said, *(f"meanwhile {number}" for number in range(3))]


def test_a_recall_goes_before_the_next_step_of_a_replay() -> None:
    callers = threading.Lock()
    turns = PriorityLock(callers, 5)
    turns._lock = Drowsy()  # type: ignore[assignment]
    steps, over = 0, threading.Event()

    def background() -> None:
        nonlocal steps
        while not over.is_set():
            with turns.step():
                steps += 1
                time.sleep(0.002)

    thread = threading.Thread(target=background)
    thread.start()
    try:
        for _ in range(5):
            seen = steps
            wait_until(lambda: steps > seen)  # noqa: B023  called before the next round
            with callers:
                before = steps
                assert turns.take() is not None
                assert steps - before <= 1  # the one that may begin before this caller is seen
                turns.leave()
    finally:
        over.set()
        thread.join()


def test_a_recall_that_waited_pushes_within_what_is_left_of_its_budget(make: Any) -> None:
    pipeline = make(push_budget_ms=400)
    pipeline.spill(1)
    pipeline.slow.delay = 0.1
    pipeline.replaying()
    budgets: list[float] = []
    deadline = pipeline.broker._push.deadline
    within = deadline.within

    def watched(seconds: float) -> None:
        budgets.append(seconds)
        within(seconds)

    deadline.within = watched
    took = pipeline.enqueue("meanwhile")
    assert pipeline.queue.counts.spilled == 1  # it was pushed, after the step
    assert 0.2 <= budgets[-1] <= 0.4 - took * 0.9


def test_a_flush_waits_for_the_step_under_way(make: Any) -> None:
    pipeline = make()
    said = pipeline.spill(1)
    pipeline.slow.open.clear()
    pipeline.replaying()
    assert not pipeline.queue.flush(0.1)
    pipeline.slow.open.set()
    assert pipeline.pushed() == said


def test_an_error_in_the_midst_of_a_step_loses_nothing(make: Any) -> None:
    pipeline = make()
    said = pipeline.spill(3)
    pipeline.slow.fail = MemoryError()
    pipeline.replaying()
    assert pipeline.pushed() == said


def test_the_next_spill_file_is_made_ahead_and_nothing_is_left_of_it(
    make: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make()
    wait_until(lambda: list(overflow(home).glob("*.spare")))
    create = Segment.create
    makers: list[str] = []

    def made(path: Path) -> Segment:
        makers.append(threading.current_thread().name)
        return create(path)

    monkeypatch.setattr(Segment, "create", made)
    for _ in range(3):
        said = pipeline.spill(2)
        assert len(list(overflow(home).glob("*.jsonl"))) == 1
        pipeline.replaying()
        assert pipeline.pushed()[-2:] == said
        wait_until(lambda: [path.suffix for path in overflow(home).iterdir()] == [".spare"])
    assert not makers  # a recall has had to make none
    pipeline.queue.stop()
    assert not list(overflow(home).iterdir())


def test_what_a_killed_client_had_made_ahead_is_tidied_away(make: Any, home: Path) -> None:
    overflow(home).mkdir(parents=True)
    left = overflow(home) / f"{'ab' * 4}-{'cd' * 8}.spare"
    left.touch()
    pipeline = make()
    wait_until(lambda: not left.exists() and list(overflow(home).iterdir()))
    (own,) = overflow(home).iterdir()
    own.unlink()  # as somebody's tidying between its making and its locking would
    pipeline.spill(1)
    assert len(list(overflow(home).glob("*.jsonl"))) == 1
