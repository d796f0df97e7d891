"""Several threads on one queue: they share pushes, and none waits for more than two of them."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from iai_mcp.broker.factory import redis_broker
from iai_mcp.broker.protocol import Pushed, Refused
from iai_mcp.config import Settings
from iai_mcp.errors import SpillUnavailable
from iai_mcp.pipeline.drain import DrainPolicy, Outcome, drain
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.store import MemoryStore, RecordsCache
from tests.chaos.proxy import SLOW_S, Proxy
from tests.pipeline.test_queue import record_id, seen, spill_files  # noqa: F401
from tests.servers import serving
from tests.support import entry, pairs, wait_until
from tests.test_store import _make

THREADS = 32


class SlowRedis:
    """A remote broker whose every push is one round trip of ``delay`` seconds, and holds at a gate."""

    name = "redis"
    in_process = False
    trouble = None
    room = 0

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        self.pushed: list[list[int]] = []
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.outcome: Callable[[], Any] = Pushed

    def push(self, parcels: Any, *, replay: bool = False, waited: float = 0.0) -> Any:
        self.entered.set()
        time.sleep(self.delay)
        assert self.open.wait(20)
        outcome = self.outcome()
        if isinstance(outcome, Pushed):
            self.pushed.append([seq for parcel in parcels for seq in parcel.seqs])
        return outcome

    def mark(self) -> tuple[int, ...]:
        return ()


@pytest.fixture
def slow(store: MemoryStore) -> tuple[ProvenanceWriteQueue, SlowRedis]:
    """A queue that was never started: only its callers push."""
    queue, broker = ProvenanceWriteQueue(store), SlowRedis()
    queue._broker = broker  # type: ignore[assignment]
    return queue, broker


def in_threads(number: int, work: Callable[[int], None]) -> list[threading.Thread]:
    crowd = [threading.Thread(target=work, args=(at,), daemon=True) for at in range(number)]
    for thread in crowd:
        thread.start()
    return crowd


def test_no_thread_waits_for_more_than_two_pushes(slow: Any, record_id: UUID) -> None:  # noqa: F811
    queue, broker = slow
    broker.delay = 0.05
    took: list[float] = []

    def work(at: int) -> None:
        for turn in range(5):
            began = time.monotonic()
            queue.enqueue(pairs(record_id, [f"{at}-{turn}"]))
            took.append(time.monotonic() - began)

    for thread in in_threads(THREADS, work):
        thread.join(60)
    assert len(took) == THREADS * 5
    assert [seq for push in broker.pushed for seq in push] == [*range(1, THREADS * 5 + 1)]  # numbers as pushes
    assert sorted(took)[len(took) * 9 // 10] < 0.25  # one after the other, the last of 32 waits for 1.6 s
    assert len(broker.pushed) < THREADS


def test_a_thread_keeps_its_order_and_embedded_calls_are_batches(store: MemoryStore) -> None:
    keys = [store.insert(_make()) for _ in range(3)]
    store.enable_provenance_queue(coalesce_ms=1)

    def work(at: int) -> None:
        for turn in range(30):
            store.queue_provenance_batch([(key, entry(f"{at}-{turn}")) for key in keys])

    for thread in in_threads(8, work):
        thread.join(60)
    store.disable_provenance_queue()
    for key in keys:
        found = seen(store, key)
        for at in range(8):
            assert [cue for cue in found if cue.startswith(f"{at}-")] == [f"{at}-{turn}" for turn in range(30)]


def waiting(queue: Any, calls: int) -> None:
    wait_until(lambda: len(queue._groups._waiting) == calls)


@pytest.mark.parametrize("outcome", [lambda: Refused("full"), lambda: 1 / 0])
def test_a_group_that_is_refused_is_spilled_in_order(
    slow: Any,
    record_id: UUID,  # noqa: F811
    home: Path,
    outcome: Any,
) -> None:
    queue, broker = slow
    broker.open.clear()
    errors: list[BaseException] = []

    def work(at: int) -> None:
        try:
            queue.enqueue(pairs(record_id, [at]))
        except ZeroDivisionError as error:
            errors.append(error)

    crowd = in_threads(1, work)
    assert broker.entered.wait(5)
    crowd += in_threads(4, work)
    waiting(queue, 4)
    broker.outcome = outcome
    broker.open.set()
    for thread in crowd:
        thread.join(20)
    assert broker.pushed == []
    (file,) = spill_files(home)
    lines = file.read_bytes().splitlines()
    assert [f'"seqs":[{seq}]'.encode() in line for seq, line in enumerate(lines, 1)] == [True] * 5
    assert (queue.counts.enqueued, queue.counts.spilled) == (5, 5)
    assert len(errors) <= 2  # of those that pushed


def test_only_the_calls_that_were_not_taken_are_told(slow: Any, record_id: UUID, home: Path) -> None:  # noqa: F811
    queue, broker = slow
    home.joinpath(".iai-mcp").write_text("in the way")
    broker.open.clear()
    told: dict[int, str] = {}

    def work(at: int) -> None:
        try:
            queue.enqueue(pairs(record_id, [at]))
        except SpillUnavailable as error:
            told[at] = str(error)

    first = in_threads(1, work)
    assert broker.entered.wait(5)
    rest = [threading.Thread(target=work, args=(at,), daemon=True) for at in (1, 2, 3)]
    for thread in rest:
        thread.start()
    waiting(queue, 3)
    outcomes = iter([Pushed(), Refused("full")])
    broker.outcome = lambda: next(outcomes)
    broker.open.set()
    for thread in (*first, *rest):
        thread.join(20)
    assert sorted(told) == [1, 2, 3]
    assert all("cannot spill" in said for said in told.values())
    assert (broker.pushed, queue.counts.refused) == ([[1]], 3)


def test_an_interrupt_waits_for_its_turn(slow: Any, record_id: UUID) -> None:  # noqa: F811
    queue, broker = slow
    broker.open.clear()
    crowd = in_threads(1, lambda _: queue.enqueue(pairs(record_id, ["other"])))
    assert broker.entered.wait(5)

    def interrupt() -> None:
        waiting(queue, 1)
        signal.pthread_kill(main, signal.SIGINT)  # as a terminal's, it ends the main thread's wait
        wait_until(lambda: interrupted)
        broker.open.set()

    main, interrupted = threading.get_ident(), []

    def note(*_: object) -> None:
        interrupted.append(True)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    crowd += in_threads(1, lambda _: interrupt())
    try:
        with pytest.raises(KeyboardInterrupt):
            queue.enqueue(pairs(record_id, ["mine"]))
    finally:
        signal.signal(signal.SIGINT, before)
    assert broker.pushed == [[1], [2]]
    queue.enqueue(pairs(record_id, ["next"]))
    assert broker.pushed[-1] == [3]
    for thread in crowd:
        thread.join(10)


def test_threads_share_the_round_trips_to_a_slow_redis(tmp_path: Path) -> None:
    with serving(tmp_path / "redis", acl=False) as server:
        proxy = Proxy(server.port)
        url = f"redis://127.0.0.1:{proxy.port}/0"
        settings = Settings(redis_url=url, push_budget_ms=1000)
        store = MemoryStore(tmp_path / "store", settings=settings)
        keys = [store.insert(_make()) for _ in range(4)]
        store.enable_provenance_queue()
        queue = store.provenance_queue
        assert queue is not None
        wait_until(lambda: queue.trouble is None)
        proxy.set("slow")
        took: list[float] = []

        def work(at: int) -> None:
            for turn in range(3):
                began = time.monotonic()
                queue.enqueue([(key, entry(f"{at}-{turn}", rank=turn, score=0.5)) for key in keys])
                took.append(time.monotonic() - began)

        for thread in in_threads(THREADS, work):
            thread.join(60)
        proxy.set("pass")
        assert queue.counts.spilled == 0
        connection = server.client()
        for lane in range(store.lanes):
            broker = redis_broker(store.settings, store.store_id, store.lanes, connection)
            report = drain(store, broker, lane, RecordsCache(), DrainPolicy(linger=0))
            assert report.outcome is Outcome.EMPTY
        assert queue.flush(5)
        store.disable_provenance_queue()
        proxy.close()
    for key in keys:
        found = seen(store, key)
        assert len(found) == THREADS * 3
        for at in range(THREADS):
            assert [cue for cue in found if cue.startswith(f"{at}-")] == [f"{at}-{turn}" for turn in range(3)]
    assert sorted(took)[len(took) // 2] < 5 * SLOW_S  # one after the other the middle one waits for 32 of them
