"""Measures what ``enqueue`` costs the caller, and what a store that stands still costs in memory.

Run with ``python benchmarks/enqueue.py``. One table times one call with the five entries of a recall,
while the store stands still: into the embedded broker, with the journal written and with it forced to the
disk, and into the spill of a queue that is full. ``draining`` is the embedded one with the store at work beside
it in the same process. ``queue.Queue.put`` of the same list and a copy of its five dicts show what any queue
has to pay. The other hands over a million entries while the store takes none: how much of them is in
memory, and how much in files.
"""

from __future__ import annotations

import gc
import os
import queue
import random
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import harness

from iai_mcp.entries.parcel import Pair
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.spill.listing import waiting
from iai_mcp.storage.tables.write_right import WriteRight
from iai_mcp.store import AppendReport, MemoryStore, RecordsCache

Way = Callable[[list[Pair]], object]

PAIRS = 5
CALLS = 1_000  # a round
ROOM = 512  # calls that fit into the queue that is to be full
GROWTH_MIB = 32  # a list of a million entries takes about a gigabyte

Journal = Literal["off", "write", "fsync"]


class Gated(MemoryStore):
    """A store whose provenance takes nothing while the gate is shut."""

    gate: threading.Event

    def append_provenance_batch(
        self, pairs: Any, records_cache: RecordsCache | None = None, *, right: WriteRight | None = None
    ) -> AppendReport:
        self.gate.wait()
        return super().append_provenance_batch(pairs, records_cache, right=right)


@dataclass
class Bench:
    """A queue over a gated store, and the memories in it."""

    store: Gated
    queue: ProvenanceWriteQueue
    ids: list[uuid.UUID]
    full: bool = False  # whether it is to be full before the clock starts


def main() -> None:
    quick = harness.options("what enqueue costs, and what waits in memory").quick
    print(f"enqueue: {harness.machine()}; one call with {PAIRS} entries, in µs")
    backlog(200_000 if quick else 1_000_000)
    latencies(3 if quick else 10)


# -- latency


def latencies(rounds: int) -> None:
    """Time the calls, the ways in turns, and print the table."""
    with harness.scratch() as folder, _benches(folder) as benches:
        ways: dict[str, Way] = {
            "queue.put of the list": queue.Queue[object]().put,
            "copy of the dicts": lambda pairs: [dict(entry) for _, entry in pairs],
            **{name: bench.queue.enqueue for name, bench in benches.items()},
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        recalls = list(_recalls(benches["embedded"].ids, CALLS))
        for _ in range(rounds):
            for name, way in ways.items():
                times[name] += _round(way, recalls, benches.get(name), stalled=name != "draining")
        spilled = {name: bench.queue.counts.spilled for name, bench in benches.items()}
        assert spilled["embedded"] == 0, spilled
    rows = [_latency(name, taken) for name, taken in times.items()]
    harness.show(f"{rounds} x {CALLS:,} calls", ("way", "p50", "p99", "max", "target (p50)"), rows)


def _round(way: Way, recalls: list[list[Pair]], bench: Bench | None, *, stalled: bool) -> list[float]:
    """One call for each of ``recalls``; afterwards the queue is drained."""
    if bench is not None and stalled:
        bench.store.gate.clear()
        if bench.full:
            for pairs in recalls[:ROOM]:
                bench.queue.enqueue(pairs)
    taken = [_one(way, pairs) for pairs in recalls]
    if bench is not None:
        bench.store.gate.set()
        assert bench.queue.flush(120)
    return taken


def _one(way: Way, pairs: list[Pair]) -> float:
    return harness.timed(lambda: way(pairs))


def _latency(name: str, taken: Sequence[float]) -> list[object]:
    micro = [f"{harness.percentile(taken, percent) * 1e6:.1f}" for percent in (50, 99, 100)]
    target = harness.at_most(round(harness.median(taken) * 1e6, 1), 20) if name == "embedded" else "-"
    return [name, *micro, target]


@contextmanager
def _benches(folder: Path) -> Iterator[dict[str, Bench]]:
    benches = {
        "embedded": _bench(folder / "off", "off"),
        "draining": _bench(folder / "draining", "off"),
        "journal written": _bench(folder / "write", "write"),
        "journal fsynced": _bench(folder / "fsync", "fsync"),
        "full, spilling": _bench(folder / "full", "off", max_queue_size=ROOM),
    }
    try:
        yield benches
    finally:
        for bench in benches.values():
            bench.queue.stop()


def _bench(folder: Path, journal: Journal, *, max_queue_size: int = 4096) -> Bench:
    store = Gated(settings=harness.settings(folder, journal=journal))
    store.gate = threading.Event()
    store.gate.set()
    ids = store.insert_many(harness.records(1_000))
    queue = ProvenanceWriteQueue(store, max_queue_size=max_queue_size)
    queue.start()
    return Bench(store, queue, ids, full=max_queue_size == ROOM)


def _recalls(ids: Sequence[uuid.UUID], count: int) -> Iterator[list[Pair]]:
    """What recalls hand over, five entries each."""
    rng = random.Random(5)
    for number in range(count):
        found = rng.sample(ids, PAIRS)
        said = harness.entry(rng, 0, number)  # by all the hits of one recall
        yield [
            (record_id, {**said, "rank": rank, "score": rng.random()}) for rank, record_id in enumerate(found, 1)
        ]


# -- memory


def backlog(entries: int) -> None:
    """Hand over ``entries`` while the store takes none, and print what is where."""
    with harness.scratch() as folder:
        bench = _bench(folder, "off")
        bench.queue.enqueue(next(_recalls(bench.ids, 1)))
        assert bench.queue.flush(60)  # the drain has loaded what it needs
        bench.store.gate.clear()
        rows, full = _fill(bench, folder / "spill", entries)
        growth = rows[-1].resident - full
        heads = ("entries waiting", "in memory", "MiB over the start", "files", "MiB in files")
        harness.show("Behind a store that stands still", heads, [row.cells() for row in rows])
        print(f"\ngrowth after the queue was full: {growth:.1f} MiB, target {harness.at_most(growth, GROWTH_MIB)}")
        bench.store.gate.set()
        bench.queue.stop()
        waits = waiting(bench.store.settings, bench.store.store_id).entries
        counts = bench.queue.counts
        print(f"then stopped: {counts.applied:,} applied in its budget, {waits:,} in files, {counts.refused} lost")
        assert counts.applied + waits >= counts.enqueued, "entries are missing"


@dataclass
class Fill:
    """Where the entries are at one moment."""

    waiting: int
    in_memory: int
    resident: float  # MiB over the start
    files: int
    on_disk: float  # MiB

    def cells(self) -> list[object]:
        amounts = [f"{self.waiting:,}", f"{self.in_memory:,}", f"{self.resident:.1f}"]
        return [*amounts, self.files, f"{self.on_disk:.1f}"]


def _fill(bench: Bench, spill: Path, entries: int) -> tuple[list[Fill], float]:
    """Looks at ten moments and at the one when the queue is full; what was resident at that one."""
    start = _resident()
    rows: list[Fill] = []
    full: float | None = None
    step = entries // PAIRS // 10
    for number, pairs in enumerate(_recalls(bench.ids, entries // PAIRS), 1):
        bench.queue.enqueue(pairs)
        spills = full is None and bench.queue.counts.spilled > 0
        if spills or number % step == 0:
            rows.append(_look(bench, spill, number * PAIRS, start))
        if spills:
            full = rows[-1].resident
    return rows, full or 0.0


def _look(bench: Bench, spill: Path, waiting: int, start: float) -> Fill:
    gc.collect()
    in_memory = sum(lane["pending"] + lane["in_flight"] for lane in bench.queue.stats()["lanes"])
    sizes = [path.stat().st_size for path in spill.iterdir()] if spill.exists() else []
    return Fill(waiting, in_memory, _resident() - start, len(sizes), sum(sizes) / 2**20)


def _resident() -> float:
    """MiB of this process that are in memory (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
