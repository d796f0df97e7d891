"""The write queue with the embedded broker: off the caller's hands, in order, exactly once, never dropped."""

from __future__ import annotations

import atexit
import errno
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from iai_mcp.config import Settings
from iai_mcp.core import dispatch
from iai_mcp.errors import BadParams, ConfigError, QueueStopped, SpillUnavailable
from iai_mcp.pipeline.priority_lock import PriorityLock
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.storage.dead_letters import DeadLetters
from iai_mcp.store import MemoryStore
from iai_mcp.trail.query import TrailFilters, trail
from tests.support import cues, entry, finished, pairs, python, wait_until
from tests.test_store import _make

Write = Callable[..., Any]


class Gate:
    """Stands before the store's writes: counts them, delays them, holds them or makes them fail."""

    def __init__(self, store: MemoryStore) -> None:
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.delay = 0.0
        self.fail: Callable[[list[tuple[UUID, dict[str, Any]]]], BaseException | None] = lambda _: None
        self.batches: list[list[str]] = []
        self.threads: set[str] = set()
        self.caches: list[object] = []
        self._write: Write = store.append_provenance_batch
        store.append_provenance_batch = self  # type: ignore[assignment]

    def __call__(self, pairs: Any, records_cache: Any = None) -> Any:
        self.entered.set()
        self.threads.add(threading.current_thread().name)
        self.caches.append(records_cache)
        time.sleep(self.delay)
        assert self.open.wait(20)
        if (error := self.fail(list(pairs))) is not None:
            raise error
        self.batches.append(cues(item for _, item in pairs))
        return self._write(pairs, records_cache=records_cache)


@pytest.fixture
def gate(store: MemoryStore) -> Iterator[Gate]:
    made = Gate(store)
    yield made
    made.open.set()


@pytest.fixture
def record_id(store: MemoryStore) -> UUID:
    return store.insert(_make())


@pytest.fixture
def make_queue(store: MemoryStore) -> Iterator[Callable[..., ProvenanceWriteQueue]]:
    made: list[ProvenanceWriteQueue] = []

    def make(**options: Any) -> ProvenanceWriteQueue:
        queue = ProvenanceWriteQueue(store, **options)
        queue.start()
        made.append(queue)
        return queue

    yield make
    for queue in made:
        queue.stop()


def seen(store: MemoryStore, record_id: UUID) -> list[str]:
    found = store.get(record_id)
    assert found is not None
    return cues(found.provenance)


def overflow(home: Path) -> Path:
    return home / ".iai-mcp" / ".provenance-overflow"


def spill_files(home: Path) -> list[Path]:
    folder = overflow(home)
    return sorted(folder.glob("*.jsonl")) if folder.exists() else []


# -- the tutorial


def test_a_recall_leaves_its_trace_in_the_background(store: MemoryStore) -> None:
    store.insert(record := _make(text="the ferry leaves from pier nine"))
    store.enable_provenance_queue()

    answer = dispatch(
        store,
        "memory_recall",
        {"cue": "which pier?", "session_id": "trip", "cue_embedding": list(record.embedding)},
    )
    assert answer["hits"][0]["record_id"] == str(record.id)

    store.disable_provenance_queue()  # drains first
    (trace,) = dispatch(store, "memory_provenance", {"record_id": str(record.id)})["entries"]
    assert (trace["cue"], trace["session_id"], trace["rank"]) == ("which pier?", "trip", 1)
    assert trace["recall_id"] == answer["recall_id"]


# -- what the issue promises, one by one


def test_enqueue_does_not_wait_for_a_slow_write(gate: Gate, make_queue: Any, record_id: UUID) -> None:
    gate.delay = 0.2
    queue = make_queue(coalesce_ms=0)
    queue.enqueue(pairs(record_id, ["first"]))
    assert gate.entered.wait(5)
    took = []
    for turn in range(50):
        started = time.perf_counter()
        queue.enqueue(pairs(record_id, [turn]))
        took.append(time.perf_counter() - started)
    assert statistics.median(took) < 0.002
    assert sum(took) < 0.2
    assert queue.flush(10)


def test_flush_is_a_barrier(store: MemoryStore, make_queue: Any, record_id: UUID) -> None:
    queue = make_queue(coalesce_ms=10_000)  # a flush does not linger
    for turn in range(10):
        queue.enqueue(pairs(record_id, [turn]))
    assert queue.flush()
    assert seen(MemoryStore(store.path), record_id) == [str(turn) for turn in range(10)]


def test_flush_says_when_the_time_was_not_enough(gate: Gate, make_queue: Any, record_id: UUID) -> None:
    gate.open.clear()
    queue = make_queue()
    assert queue.flush(0)
    queue.enqueue(pairs(record_id, "a"))
    assert not queue.flush(0.05)
    gate.open.set()
    assert queue.flush(5)


def test_start_registers_one_exit_handler_that_drains(
    store: MemoryStore, record_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers: list[Callable[[], None]] = []
    monkeypatch.setattr(atexit, "register", lambda handler, *_, **__: handlers.append(handler))
    queue = ProvenanceWriteQueue(store, coalesce_ms=5_000)
    queue.start()
    queue.start()
    assert len(handlers) == 1
    queue.enqueue(pairs(record_id, "a"))
    handlers[0]()
    assert seen(store, record_id) == ["a"]
    handlers[0]()


def test_an_exiting_process_drains(store: MemoryStore, record_id: UUID) -> None:
    code = """
import sys
from uuid import UUID
from iai_mcp.store import MemoryStore
store = MemoryStore(sys.argv[1])
store.enable_provenance_queue(coalesce_ms=5000)
store.queue_provenance_batch([(UUID(sys.argv[2]), {"ts": "t", "cue": "last words", "session_id": "s"})])
"""
    finished(python(code, store.path, record_id))
    assert seen(store, record_id) == ["last words"]


def test_a_recall_does_not_wait_for_a_slow_write(store: MemoryStore, gate: Gate, record_id: UUID) -> None:
    store.enable_provenance_queue(coalesce_ms=0)
    gate.open.clear()
    answer = dispatch(store, "memory_recall", {"cue": "x", "session_id": "s", "cue_embedding": [1.0] * 384})
    assert gate.entered.wait(5)
    assert len(answer["hits"]) == 1
    assert gate.batches == []
    gate.open.set()
    store.disable_provenance_queue()
    assert gate.batches == [["x"]]


def test_entries_come_back_in_the_order_of_the_recalls(
    store: MemoryStore, gate: Gate, make_queue: Any, record_id: UUID
) -> None:
    queue = make_queue(coalesce_ms=1, max_batch_pairs=7)
    others = [store.insert(_make()) for _ in range(3)]
    for turn in range(300):
        queue.enqueue([(key, entry(turn)) for key in (record_id, *others)])
    assert queue.flush(20)
    for key in (record_id, *others):
        assert seen(store, key) == [str(turn) for turn in range(300)]
    assert 1 < max(map(len, gate.batches)) <= 7


def test_without_a_queue_the_caller_writes(store: MemoryStore, gate: Gate, record_id: UUID) -> None:
    dispatch(store, "memory_recall", {"cue": "now", "session_id": "s", "cue_embedding": [1.0] * 384})
    assert gate.threads == {threading.current_thread().name}
    assert seen(store, record_id) == ["now"]


def test_what_does_not_fit_goes_to_disk_and_comes_back_in_order(
    store: MemoryStore, gate: Gate, make_queue: Any, record_id: UUID, home: Path
) -> None:
    gate.open.clear()
    queue = make_queue(max_queue_size=4, coalesce_ms=0)
    assert not overflow(home).exists()
    for turn in range(40):
        queue.enqueue(pairs(record_id, [f"{turn}a", f"{turn}b"]))
    (file,) = spill_files(home)
    assert file.stat().st_mode & 0o777 == 0o600
    assert store.store_id in file.read_text()
    gate.open.set()
    queue.enqueue(pairs(record_id, ["one more"]))  # must not overtake
    wait_until(lambda: not spill_files(home))
    assert queue.flush(5)
    assert seen(store, record_id) == [f"{turn}{half}" for turn in range(40) for half in "ab"] + ["one more"]


def test_home_is_looked_up_at_the_moment_of_the_spill(
    gate: Gate, make_queue: Any, record_id: UUID, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate.open.clear()
    queue = make_queue(max_queue_size=1)
    moved = tmp_path / "moved"
    moved.mkdir()
    monkeypatch.setenv("HOME", str(moved))
    for turn in range(3):
        queue.enqueue(pairs(record_id, [turn]))
    assert len(spill_files(moved)) == 1
    gate.open.set()
    assert queue.flush(5)
    wait_until(lambda: not spill_files(moved))


def test_a_setting_moves_the_spill(tmp_path: Path, record_id: UUID, store: MemoryStore, home: Path) -> None:
    moved = MemoryStore(store.path, settings=Settings(spill_dir=tmp_path / "spill"))
    queue = ProvenanceWriteQueue(moved)
    queue.start()
    queue.stop()
    queue.enqueue(pairs(record_id, "a"))
    assert len(list((tmp_path / "spill").glob("*.jsonl"))) == 1
    assert not overflow(home).exists()


def test_a_malformed_file_is_set_aside_once_and_blocks_nothing(
    store: MemoryStore, make_queue: Any, record_id: UUID, home: Path
) -> None:
    folder = overflow(home)
    folder.mkdir(parents=True)
    (folder / "bad.jsonl").write_bytes(b'{"half": \n\xff\xfe garbage\n')
    (folder / "empty.jsonl").write_bytes(b"")
    queue = make_queue()
    queue.enqueue(pairs(record_id, "a"))
    wait_until(lambda: not (folder / "bad.jsonl").exists())
    wait_until(lambda: not (folder / "empty.jsonl").exists())
    (aside,) = folder.glob("bad.failed-*.jsonl")
    assert aside.read_bytes() == b'{"half": \n\xff\xfe garbage\n'
    assert queue.flush(5)
    wait_until(lambda: time.monotonic() - queue._background._last_scan < 0.1)  # another look changes nothing
    assert [path.name for path in folder.glob("bad*")] == [aside.name]
    assert seen(store, record_id) == ["a"]


def test_the_good_lines_of_a_half_bad_file_are_applied(
    store: MemoryStore, make_queue: Any, record_id: UUID, home: Path
) -> None:
    leave_spill(store, record_id, ["a", "b", "c"])
    (file,) = spill_files(home)
    first, second, third = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"nonsense\n" + first + second[:20] + b"\n" + third + third[:30])
    make_queue()
    wait_until(lambda: seen(store, record_id) == ["a", "c"])
    wait_until(lambda: not file.exists())
    (aside,) = overflow(home).glob("*.failed-*.jsonl")
    assert aside.read_bytes() == b"nonsense\n" + second[:20] + b"\n" + third[:30]


def leave_spill(store: MemoryStore, record_id: UUID, what: list[str]) -> None:
    """What a client of this store leaves behind when it enqueues after its queue was stopped."""
    queue = ProvenanceWriteQueue(store)
    queue.start()
    queue.stop()
    for cue in what:
        queue.enqueue(pairs(record_id, [cue]))
    queue._spill.close()  # as if its process had died


def test_the_spill_of_another_store_is_left_alone(
    store: MemoryStore, record_id: UUID, home: Path, tmp_path: Path
) -> None:
    leave_spill(store, record_id, ["a"])
    (file,) = spill_files(home)
    stranger = MemoryStore(tmp_path / "stranger")
    queue = ProvenanceWriteQueue(stranger)
    queue.start()
    before = queue._background._last_scan
    wait_until(lambda: queue._background._last_scan > before)
    wait_until(lambda mark=queue._background._last_scan: queue._background._last_scan > mark)  # type: ignore[misc]
    queue.stop()
    assert spill_files(home) == [file]


def test_batches_are_bounded_and_go_through_the_instance(
    store: MemoryStore, make_queue: Any, record_id: UUID
) -> None:
    queue = make_queue(max_batch_pairs=10, coalesce_ms=1)
    gate = Gate(store)  # wrapped after the queue was made
    queue.enqueue(pairs(record_id, range(95)))
    assert queue.flush(5)
    assert [len(batch) for batch in gate.batches] == [10] * 9 + [5]
    assert all(cache is not None for cache in gate.caches)
    assert threading.current_thread().name not in gate.threads


def test_a_failing_batch_is_retried_in_place(
    store: MemoryStore, gate: Gate, make_queue: Any, record_id: UUID
) -> None:
    failures = [RuntimeError("the database has hiccups")] * 3
    gate.fail = lambda _: failures.pop() if failures else None
    queue = make_queue(coalesce_ms=0)
    for cue in "abc":
        queue.enqueue(pairs(record_id, cue))
    assert queue.flush(10)
    assert seen(store, record_id) == ["a", "b", "c"]
    assert DeadLetters(store.layout).count() == 0


def test_only_the_poison_entry_is_buried(store: MemoryStore, gate: Gate, make_queue: Any, record_id: UUID) -> None:
    gate.fail = lambda batch: ValueError("indigestible") if any(e["cue"] == "13" for _, e in batch) else None
    queue = make_queue(coalesce_ms=20)
    for turn in range(30):
        queue.enqueue(pairs(record_id, [turn]))
    assert queue.flush(20)
    assert seen(store, record_id) == [str(turn) for turn in range(30) if turn != 13]
    (letter,) = DeadLetters(store.layout).all()
    assert letter.record_id == str(record_id)
    assert letter.entry is not None
    assert letter.entry["cue"] == "13"
    assert "indigestible" in letter.reason
    assert queue.counts.dead == 1


def test_trouble_with_the_place_is_retried_for_ever(
    store: MemoryStore, gate: Gate, make_queue: Any, record_id: UUID
) -> None:
    calls: list[int] = []

    def full(batch: list[Any]) -> OSError | None:
        calls.append(len(batch))
        return OSError(errno.ENOSPC, "No space left on device") if len(calls) < 6 else None

    gate.fail = full
    queue = make_queue(coalesce_ms=0)
    queue.enqueue(pairs(record_id, "ab"))
    queue.enqueue(pairs(record_id, "c"))
    assert queue.flush(20)
    assert seen(store, record_id) == ["a", "b", "c"]
    assert DeadLetters(store.layout).count() == 0


def test_two_processes_on_one_store_lose_double_and_reorder_nothing(store: MemoryStore) -> None:
    keys = [store.insert(_make()) for _ in range(3)]
    code = """
import sys
from uuid import UUID
from iai_mcp.store import MemoryStore
store = MemoryStore(sys.argv[1])
store.enable_provenance_queue(coalesce_ms=1)
sys.stdin.readline()
for turn in range(150):
    item = {"ts": "t", "cue": f"{sys.argv[2]}-{turn}", "session_id": sys.argv[2]}
    store.queue_provenance_batch([(UUID(key), item) for key in sys.argv[3:]])
store.disable_provenance_queue()
"""
    crowd = [python(code, store.path, name, *keys) for name in ("left", "right")]
    for process in crowd:
        finished(process)
    for key in keys:
        said = seen(store, key)
        for name in ("left", "right"):
            assert [cue for cue in said if cue.startswith(name)] == [f"{name}-{turn}" for turn in range(150)]
        assert len(said) == 300


@pytest.mark.parametrize("journal", ["write", "fsync"])
def test_with_a_journal_a_killed_process_loses_nothing(store: MemoryStore, record_id: UUID, journal: str) -> None:
    code = """
import os, signal, sys, time
from uuid import UUID
from iai_mcp.store import MemoryStore
store = MemoryStore(sys.argv[1])
store.append_provenance_batch = lambda *_, **__: time.sleep(60)
store.enable_provenance_queue()
for turn in range(100):
    store.queue_provenance_batch([(UUID(sys.argv[2]), {"ts": "t", "cue": str(turn), "session_id": "s"})])
os.kill(os.getpid(), signal.SIGKILL)
"""
    process = python(code, store.path, record_id, IAI_MCP_JOURNAL=journal)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    store.enable_provenance_queue()
    wait_until(lambda: len(seen(store, record_id)) >= 100)
    assert seen(store, record_id) == [str(turn) for turn in range(100)]


def test_a_journal_costs_no_order_and_leaves_no_files(home: Path, tmp_path: Path) -> None:
    store = MemoryStore(tmp_path / "journalled", settings=Settings(journal="write"))
    record_id = store.insert(_make())
    store.enable_provenance_queue(coalesce_ms=1)
    for turn in range(100):
        store.queue_provenance_batch(pairs(record_id, [turn]))
    queue = store._provenance_queue
    assert queue is not None
    assert queue.flush(5)
    assert seen(store, record_id) == [str(turn) for turn in range(100)]
    wait_until(lambda: not spill_files(home))
    store.disable_provenance_queue()


# -- life and limits


def test_enable_and_disable_may_be_called_twice(store: MemoryStore, record_id: UUID) -> None:
    assert store._provenance_queue is None
    store.enable_provenance_queue(coalesce_ms=5_000)
    queue = store._provenance_queue
    store.enable_provenance_queue()
    assert store._provenance_queue is queue
    store.queue_provenance_batch(pairs(record_id, "a"))
    store.disable_provenance_queue()
    assert seen(store, record_id) == ["a"]
    store.disable_provenance_queue()
    assert store._provenance_queue is None


def test_a_queue_starts_again_after_it_was_stopped(store: MemoryStore, make_queue: Any, record_id: UUID) -> None:
    queue = make_queue()
    queue.enqueue(pairs(record_id, "a"))
    queue.stop()
    queue.stop()
    queue.enqueue(pairs(record_id, "b"))  # nobody is there to take it: it waits on the disk
    assert seen(store, record_id) == ["a"]
    queue.start()
    queue.enqueue(pairs(record_id, "c"))
    assert queue.flush(5)
    assert seen(store, record_id) == ["a", "b", "c"]


def test_stop_spills_what_the_budget_does_not_cover(tmp_path: Path, home: Path) -> None:
    hasty = MemoryStore(tmp_path / "hasty", settings=Settings(stop_budget=0.3))
    record_id = hasty.insert(_make())
    gate = Gate(hasty)
    gate.fail = lambda _: OSError(errno.EIO, "the disk is ill")
    queue = ProvenanceWriteQueue(hasty, max_queue_size=3, coalesce_ms=0)
    queue.start()
    for turn in range(9):
        queue.enqueue(pairs(record_id, [turn]))
    queue.stop()
    assert spill_files(home)
    heir = MemoryStore(hasty.path)
    heir.enable_provenance_queue()
    wait_until(lambda: len(seen(heir, record_id)) == 9)
    wait_until(lambda: not spill_files(home))
    assert seen(heir, record_id) == [str(turn) for turn in range(9)]
    heir.disable_provenance_queue()


def test_a_full_spill_disk_is_said_and_counted(
    gate: Gate, make_queue: Any, record_id: UUID, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home.joinpath(".iai-mcp").write_text("in the way")
    gate.open.clear()
    queue = make_queue(max_queue_size=1)
    queue.enqueue(pairs(record_id, "a"))
    with pytest.raises(SpillUnavailable, match="cannot spill"):
        queue.enqueue(pairs(record_id, "bc"))
    assert queue.counts.refused == 2
    assert "spill_failed" in caplog.text
    gate.open.set()
    queue.stop()
    with pytest.raises(QueueStopped):
        queue.enqueue(pairs(record_id, "d"))


def test_a_refused_trace_does_not_fail_the_recall(
    store: MemoryStore, record_id: UUID, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store, "queue_provenance_batch", lambda _: 1 / 0)
    answer = dispatch(store, "memory_recall", {"cue": "x", "session_id": "s", "cue_embedding": [1.0] * 384})
    assert len(answer["hits"]) == 1
    assert dispatch(store, "memory_status")["provenance_failures"] == 1
    assert "1 provenance entries were not taken" in caplog.text


@pytest.mark.parametrize("bad", [[("x", {})], [(uuid4(), 3)], [uuid4()], [(uuid4(), {}, 1)]])
def test_enqueue_refuses_what_is_no_pair(make_queue: Any, bad: Any) -> None:
    queue = make_queue()
    with pytest.raises(BadParams):
        queue.enqueue(bad)
    queue.enqueue([])
    assert queue.counts.enqueued == 0


@pytest.mark.parametrize("option", [{"coalesce_ms": -1}, {"max_queue_size": 0}, {"max_batch_pairs": 0}])
def test_senseless_settings_are_refused(store: MemoryStore, option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(option))):
        ProvenanceWriteQueue(store, **option)


def test_the_counts_add_up(store: MemoryStore, gate: Gate, make_queue: Any, record_id: UUID) -> None:
    gate.fail = lambda batch: ValueError("no") if any(e["cue"] == "bad" for _, e in batch) else None
    queue = make_queue(coalesce_ms=5)
    queue.enqueue([*pairs(record_id, "abc"), (uuid4(), entry("stranger"))])
    queue.enqueue(pairs(record_id, ["bad", "d"]))
    assert queue.flush(10)
    counts = queue.counts
    wait_until(lambda: counts.applied + counts.unknown + counts.dead == counts.enqueued)
    assert (counts.enqueued, counts.applied, counts.unknown, counts.dead) == (6, 4, 1, 1)
    assert len(trail(store, TrailFilters())) == 4


def test_an_interrupt_in_the_wait_for_a_replay_step_blocks_no_later_step(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
            if blocking:
                raise KeyboardInterrupt
            return False

        def release(self) -> None: ...

    callers = threading.Lock()
    lock = PriorityLock(callers, 1.0)
    with monkeypatch.context() as patch:
        patch.setattr(lock, "_lock", Interrupted())
        with pytest.raises(KeyboardInterrupt):
            lock.take()
    done = threading.Event()

    def step() -> None:
        with callers, lock.step():  # as a stop does
            done.set()

    threading.Thread(target=step, daemon=True).start()
    assert done.wait(5)
