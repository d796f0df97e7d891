"""The counters and histograms of the pipeline: an observer for workers, and one for processes with a queue.

Only this package imports ``prometheus_client``. It is imported where metrics are wanted: by the HTTP server, by a
worker and by the supervisor of several workers.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram

from iai_mcp.entries.parcel import Parcel
from iai_mcp.errors import BadParams
from iai_mcp.metrics.catalogue import CATALOGUE, EVENTS, Spec
from iai_mcp.telemetry import observer

__all__ = ["ClientMetrics", "WorkerMetrics"]


class WorkerMetrics(observer.Observer):
    """Counters and histograms of a process that drains."""

    in_children = False  # nobody reads a child's counters, and another thread may have held their locks
    roles: tuple[str, ...] = ("both",)

    def __init__(self, registry: CollectorRegistry) -> None:
        wanted = [spec for spec in CATALOGUE if spec.kind != "gauge" and spec.where in self.roles]
        made = self._made = {spec.name: _instrument(spec, registry) for spec in wanted}
        self._batches = made["iai_mcp_drained_batches_total"].inc
        self._drained = _by_label(made["iai_mcp_drained_entries_total"])
        self._batch_entries = made["iai_mcp_batch_entries"].observe
        self._merge = made["iai_mcp_merge_seconds"].observe
        self._sync = made["iai_mcp_sync_seconds"].observe
        self._delay = made["iai_mcp_entry_delay_seconds"].observe
        self._compaction = made["iai_mcp_compaction_seconds"].observe
        self._takeovers = made["iai_mcp_takeovers_total"].inc
        self._events = _by_label(made["iai_mcp_events_total"])

    def batch(self, lane: int) -> observer.Batch:
        return _Batch(self)

    def acknowledged(self, entries: int, delay: float | None) -> None:
        """A batch ended. ``delay``: seconds since its oldest entry was enqueued."""
        self._batches()
        self._batch_entries(entries)
        if delay is not None:
            self._delay(delay)

    def committed(self, merge_s: float, sync_s: float) -> None:
        self._merge(merge_s)
        self._sync(sync_s)

    def drained(self, applied: int, duplicate: int, unknown: int, dead: int) -> None:
        counts = {"applied": applied, "duplicate": duplicate, "unknown": unknown, "dead": dead}
        for outcome, entries in counts.items():
            if entries:
                self._drained[outcome].inc(entries)

    def event(self, name: str, fields: Mapping[str, object]) -> None:
        if name in EVENTS:
            self._events[name].inc()
        if name == "takeover":
            self._takeovers()
        elif name == "compaction" and isinstance(seconds := fields.get("seconds"), float):
            self._compaction(seconds)


class ClientMetrics(WorkerMetrics):
    """Counters and histograms of a process with a write queue."""

    roles = ("both", "client")

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        self._recall = _by_label(self._made["iai_mcp_recall_seconds"])
        self._enqueue_s = self._made["iai_mcp_enqueue_seconds"].observe
        self._enqueue = _by_label(self._made["iai_mcp_enqueue_total"])
        self._enqueued = _by_label(self._made["iai_mcp_enqueue_entries_total"])

    def recalling(self) -> observer.Recalled:
        return _Recalled(self)

    def recalled(self, seconds: Mapping[str, float]) -> None:
        """A recall ended."""
        for stage, took in seconds.items():
            if stage in self._recall:
                self._recall[stage].observe(took)

    def enqueuing(self, entries: int) -> observer.Enqueue:
        return _Enqueue(self, entries)

    def enqueued(self, seconds: float, entries: int, outcome: str) -> None:
        """A call of ``enqueue`` ended."""
        self._enqueue_s(seconds)
        self._enqueue[outcome].inc()
        self._enqueued[outcome].inc(entries)


def _instrument(spec: Spec, registry: CollectorRegistry) -> Any:
    labels = [spec.label] if spec.label else []
    if spec.kind == "histogram":
        made: Any = Histogram(spec.name, spec.help, labels, buckets=spec.buckets, registry=registry)
    else:
        made = Counter(spec.name, spec.help, labels, registry=registry)
    for value in spec.values:
        made.labels(value)  # a rate needs a 0 before the first increment
    made.known = spec.values
    return made


def _by_label(made: Any) -> dict[str, Any]:
    return {value: made.labels(value) for value in made.known}


class _Recalled(observer.Recalled):
    __slots__ = ("_metrics",)

    def __init__(self, metrics: ClientMetrics) -> None:
        self._metrics = metrics

    def stages(self, seconds: Mapping[str, float]) -> None:
        self._metrics.recalled(seconds)


class _Enqueue(observer.Enqueue):
    __slots__ = ("_began", "_entries", "_metrics", "_outcome")

    def __init__(self, metrics: ClientMetrics, entries: int) -> None:
        self._metrics = metrics
        self._entries = entries
        self._outcome = "pushed"
        self._began = time.perf_counter()

    def spilled(self, *, journal: bool) -> None:
        self._outcome = "journaled" if journal else "spilled"

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is None or not issubclass(kind, BadParams):  # a malformed entry has no outcome
            outcome = self._outcome if kind is None else "refused"
            self._metrics.enqueued(time.perf_counter() - self._began, self._entries, outcome)


class _Batch(observer.Batch):
    __slots__ = ("_entries", "_metrics", "_oldest")

    def __init__(self, metrics: WorkerMetrics) -> None:
        self._metrics = metrics
        self._entries = 0
        self._oldest: float | None = None

    def claimed(self, parcels: Sequence[object]) -> None:
        known = [parcel for parcel in parcels if isinstance(parcel, Parcel)]
        self._entries = sum(len(parcel.seqs) for parcel in known)
        self._oldest = min((parcel.pushed for parcel in known), default=None)

    def acknowledged(self) -> None:
        delay = max(0.0, time.time() - self._oldest) if self._oldest is not None else None
        self._metrics.acknowledged(self._entries, delay)
