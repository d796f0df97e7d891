"""Measures the cost of observers: ``enqueue`` of five entries without one, with metrics, and with traces.

Run with ``python benchmarks/watching.py``. All kinds use the embedded broker and one store, and take turns call by
call. Every trace is sampled and written to a file.
"""

from __future__ import annotations

import timeit

import harness
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
from prometheus_client import CollectorRegistry

from iai_mcp.config import Settings
from iai_mcp.metrics.instruments import ClientMetrics
from iai_mcp.record import MemoryRecord
from iai_mcp.store import MemoryStore
from iai_mcp.telemetry import observer, tracing

ENTRY = {"ts": "2026-11-23T12:00:00+00:00", "cue": "which pier?", "session_id": "trip"}


def main() -> None:
    quick = harness.options("cost of observers").quick
    print(f"watching: {harness.machine()}")
    with harness.scratch() as folder, open(folder / "spans.json", "w") as file:
        exporter = ConsoleSpanExporter(out=file, formatter=lambda span: f"{span.to_json(indent=None)}\n")
        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(exporter))
        store = MemoryStore(folder / "store", settings=Settings(embedder="none", stop_budget=120.0))
        dims = store.meta.embedder.dims
        ids = store.insert_many([MemoryRecord(text=str(n), embedding=[0.0] * dims) for n in range(50)])
        observers: dict[str, observer.Observer | None] = {
            "none": None,
            "metrics": ClientMetrics(CollectorRegistry()),
            "traces": tracing.Tracing(provider.get_tracer("benchmark")),
        }
        turn = 0

        def enqueue(watched_by: observer.Observer | None) -> None:
            nonlocal turn
            turn += 1
            if watched_by is not None:
                observer.watch(watched_by)
            pairs = [(record_id, ENTRY) for record_id in ids[turn % 45 : turn % 45 + 5]]
            took.append(timeit.timeit(lambda: store.queue_provenance_batch(pairs), number=1))
            if watched_by is not None:
                observer.unwatch(watched_by)

        times: dict[str, list[float]] = {}
        store.enable_provenance_queue()
        for _ in range(500 if quick else 4000):
            for name, watched_by in observers.items():
                took: list[float] = []
                enqueue(watched_by)
                times.setdefault(name, []).extend(took)
        store.disable_provenance_queue()
        provider.shutdown()
    rows = [(name, f"{_at(found, 0.5):.1f}", f"{_at(found, 0.99):.1f}") for name, found in times.items()]
    harness.show("enqueue of five entries, in microseconds", ("observer", "p50", "p99"), rows)
    print(f"hooks without an observer: {_hooks() * 1e9:.0f} ns for each enqueue")


def _at(times: list[float], share: float) -> float:
    return sorted(times)[int(share * len(times))] * 1e6


def _hooks() -> float:
    def hooks() -> None:
        with observer.now.enqueuing(5) as watched:
            watched.carrying([])

    return min(timeit.repeat(hooks, number=50_000, repeat=10)) / 50_000


if __name__ == "__main__":
    main()
