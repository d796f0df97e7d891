"""Every metric that there is: its name, kind, labels and meaning. Pure; ``docs/operations.md`` is held against it.

Labels are few and bounded: a lane, an outcome, a stage, the name of an event. Never a cue, a session or an id.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

__all__ = ["CATALOGUE", "EVENTS", "OUTCOMES", "STAGES", "Spec", "series"]

OUTCOMES = ("pushed", "spilled", "journaled", "refused")
DRAINED = ("applied", "duplicate", "unknown", "dead")
STAGES = ("embed", "search", "provenance", "total")
EVENTS = (
    "breaker_closed",
    "breaker_open",
    "call_failed",
    "compaction",
    "dead_letter",
    "doorbell_failed",
    "forget_incomplete",
    "lease_lost",
    "lock_timeout",
    "queue_error",
    "spill_adopted",
    "spill_drained",
    "spill_failed",
    "spill_set_aside",
    "spill_started",
    "store_not_ready",
    "store_unavailable",
    "takeover",
    "write_failed",
)
"""The events that are counted; one that is not listed here is not, so that labels stay bounded."""

_FAST = (1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 0.1, 1.0)
_DISK = (5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 5.0)
_RECALL = (1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_DELAY = (1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
_ENTRIES = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0)
_LONG = (1e-2, 5e-2, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0)


@dataclass(frozen=True, slots=True)
class Spec:
    """One metric. Times are in seconds, sizes in bytes, as the names say.

    Attributes:
        name: as in a scrape, without the ``_bucket``, ``_sum`` and ``_count`` of a histogram.
        where: who exports it: ``client`` (a process with a write queue), ``worker``, or ``both``.
        values: of the one label, where they are known beforehand; they are there from the start, at 0.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    where: Literal["client", "worker", "both"]
    help: str
    label: str = ""
    values: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


CATALOGUE = (
    # what the process does
    Spec("iai_mcp_recall_seconds", "histogram", "client", "Recalls, by stage.", "stage", STAGES, _RECALL),
    Spec("iai_mcp_enqueue_seconds", "histogram", "client", "What a recall waits for its trace.", buckets=_FAST),
    Spec("iai_mcp_enqueue_total", "counter", "client", "Calls of enqueue, by outcome.", "outcome", OUTCOMES),
    Spec("iai_mcp_enqueue_entries_total", "counter", "client", "Entries of these calls.", "outcome", OUTCOMES),
    Spec("iai_mcp_drained_batches_total", "counter", "both", "Batches that were acknowledged."),
    Spec("iai_mcp_drained_entries_total", "counter", "both", "Entries that left the lanes.", "outcome", DRAINED),
    Spec("iai_mcp_batch_entries", "histogram", "both", "Entries in a batch.", buckets=_ENTRIES),
    Spec("iai_mcp_merge_seconds", "histogram", "both", "LanceDB's merge or append of a batch.", buckets=_DISK),
    Spec("iai_mcp_sync_seconds", "histogram", "both", "Making that durable.", buckets=_DISK),
    Spec(
        "iai_mcp_entry_delay_seconds",
        "histogram",
        "both",
        "From enqueue to acknowledged, of the oldest entry in each batch.",
        buckets=_DELAY,
    ),
    Spec("iai_mcp_compaction_seconds", "histogram", "both", "Compactions of a table.", buckets=_LONG),
    Spec("iai_mcp_takeovers_total", "counter", "both", "Lanes taken over with entries in flight."),
    Spec("iai_mcp_events_total", "counter", "both", "What else was logged, by event.", "event", EVENTS),
    # what there is now
    Spec(
        "iai_mcp_breaker_open", "gauge", "client", "1 while pushes to Redis are refused and entries are spilled."
    ),
    Spec("iai_mcp_lane_pending_entries", "gauge", "both", "Entries that wait in the lane.", "lane"),
    Spec("iai_mcp_lane_in_flight_entries", "gauge", "both", "Entries claimed and not acknowledged.", "lane"),
    Spec("iai_mcp_lane_oldest_seconds", "gauge", "both", "Age of the lane's oldest entry; 0: none waits.", "lane"),
    Spec("iai_mcp_lane_rows", "gauge", "both", "Rows in the lane's table.", "lane"),
    Spec("iai_mcp_lane_versions", "gauge", "both", "Versions of the lane's table on the disk.", "lane"),
    Spec("iai_mcp_lane_bytes", "gauge", "both", "Size of the lane's table on the disk.", "lane"),
    Spec("iai_mcp_records", "gauge", "both", "Memories in the store."),
    Spec("iai_mcp_dead_letters", "gauge", "both", "Dead letters in the store."),
    Spec("iai_mcp_spill_files", "gauge", "both", "Files of this store in this machine's spill folder."),
    Spec("iai_mcp_spill_bytes", "gauge", "both", "Size of these files."),
    Spec("iai_mcp_spill_set_aside_files", "gauge", "both", "Spill files with lines that could not be read."),
    Spec("iai_mcp_workers", "gauge", "both", "Workers of the queue that are alive, on any machine."),
    Spec("iai_mcp_redis_aof_enabled", "gauge", "both", "Whether Redis keeps an append-only file."),
    Spec("iai_mcp_redis_memory_bytes", "gauge", "both", "Memory that Redis uses."),
    Spec("iai_mcp_redis_memory_limit_bytes", "gauge", "both", "Redis's maxmemory; 0: none."),
    Spec(
        "iai_mcp_source_up",
        "gauge",
        "both",
        "Whether the source was read in time; its gauges are missing otherwise.",
        "source",
    ),
    Spec("iai_mcp_journal", "gauge", "client", "1 where IAI_MCP_JOURNAL puts every entry into the spill first."),
    Spec("iai_mcp_build_info", "gauge", "both", "Always 1; the version is a label.", "version"),
)


def series(spec: Spec) -> Iterator[str]:
    """The names under which ``spec`` stands in a scrape."""
    yield from (
        (f"{spec.name}{end}" for end in ("_bucket", "_sum", "_count"))
        if spec.kind == "histogram"
        else (spec.name,)
    )
