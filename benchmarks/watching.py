"""Measures what it costs a recall to be watched: ``enqueue`` of five entries with metrics, with traces, unwatched.

Run with ``python benchmarks/watching.py``. The embedded broker, one store for all, the kinds taking turns call by
call; traces are sampled whole and written to a file.
"""

from __future__ import annotations

import timeit

import harness
from prometheus_client import CollectorRegistry

from iai_mcp.config import Settings
from iai_mcp.metrics.instruments import Metrics
from iai_mcp.record import MemoryRecord
from iai_mcp.store import MemoryStore
from iai_mcp.telemetry import observer, tracing

ENTRY = {"ts": "2026-11-23T12:00:00+00:00", "cue": "which pier?", "session_id": "trip"}


def main() -> None:
    quick = harness.options("what being watched costs").quick
    print(f"watching: {harness.machine()}")
    with harness.scratch() as folder:
        store = MemoryStore(folder / "store", settings=Settings(embedder="none", stop_budget=120.0))
        dims = store.meta.embedder.dims
        ids = store.insert_many([MemoryRecord(text=str(n), embedding=[0.0] * dims) for n in range(50)])
        watchers = {
            "nobody": None,
            "metrics": Metrics(CollectorRegistry()),
            "traces": tracing.Tracing(tracing._tracer(str(folder / "spans.jsonl"))),
        }
        turn = 0

        def enqueue(watcher: observer.Observer | None) -> None:
            nonlocal turn
            turn += 1
            if watcher is not None:
                observer.watch(watcher)
            pairs = [(record_id, ENTRY) for record_id in ids[turn % 45 : turn % 45 + 5]]
            took.append(timeit.timeit(lambda: store.queue_provenance_batch(pairs), number=1))
            if watcher is not None:
                observer.unwatch(watcher)

        times: dict[str, list[float]] = {}
        store.enable_provenance_queue()
        for _ in range(500 if quick else 4000):
            for name, watcher in watchers.items():
                took: list[float] = []
                enqueue(watcher)
                times.setdefault(name, []).extend(took)
        store.disable_provenance_queue()
    rows = [(name, f"{_at(found, 0.5):.1f}", f"{_at(found, 0.99):.1f}") for name, found in times.items()]
    harness.show("enqueue of five entries, in microseconds", ("watched by", "p50", "p99"), rows)
    print(f"hooks that nobody listens to: {_hooks() * 1e9:.0f} ns for each enqueue")


def _at(times: list[float], share: float) -> float:
    return sorted(times)[int(share * len(times))] * 1e6


def _hooks() -> float:
    def hooks() -> None:
        with observer.now.enqueuing(5) as watched:
            watched.carrying([])

    return min(timeit.repeat(hooks, number=50_000, repeat=10)) / 50_000


if __name__ == "__main__":
    main()
