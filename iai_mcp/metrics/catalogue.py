"""The catalogue of metrics: name, kind, label and meaning. Pure. A test compares ``docs/operations.md`` with it.

Labels have few values: a lane, an outcome, a stage, the name of an event. Cues, sessions and ids are never labels.
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
    "dead_letters_full",
    "doorbell_failed",
    "forget_incomplete",
    "http_full",
    "key_conflict",
    "lane_mended",
    "lease_lost",
    "lock_timeout",
    "mending_refused",
    "pushed_again",
    "queue_error",
    "spill_adopted",
    "spill_drained",
    "spill_failed",
    "spill_left",
    "spill_passed_over",
    "spill_set_aside",
    "spill_started",
    "store_not_ready",
    "store_unavailable",
    "takeover",
    "upkeep_failed",
    "write_failed",
)
"""The events that are counted. Other events are not, so that the label stays bounded."""

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
        name: the name in a scrape, without the suffixes ``_bucket``, ``_sum`` and ``_count`` of a histogram.
        where: the processes that export it: ``client`` (with a write queue), ``worker``, or ``both``.
        values: the label's known values; a counter starts with each of them at 0.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    where: Literal["client", "worker", "both"]
    help: str
    label: str = ""
    values: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


CATALOGUE = (
    # counters and histograms of the process
    Spec("iai_mcp_recall_seconds", "histogram", "client", "Recalls, by stage.", "stage", STAGES, _RECALL),
    Spec("iai_mcp_enqueue_seconds", "histogram", "client", "Time that a recall spends in enqueue.", buckets=_FAST),
    Spec("iai_mcp_enqueue_total", "counter", "client", "Calls of enqueue, by outcome.", "outcome", OUTCOMES),
    Spec("iai_mcp_enqueue_entries_total", "counter", "client", "Entries of these calls.", "outcome", OUTCOMES),
    Spec("iai_mcp_drained_batches_total", "counter", "both", "Batches that were acknowledged."),
    Spec("iai_mcp_drained_entries_total", "counter", "both", "Entries that left the lanes.", "outcome", DRAINED),
    Spec("iai_mcp_batch_entries", "histogram", "both", "Entries in a batch.", buckets=_ENTRIES),
    Spec("iai_mcp_merge_seconds", "histogram", "both", "LanceDB's merge or append of a batch.", buckets=_DISK),
    Spec("iai_mcp_sync_seconds", "histogram", "both", "Time to make a batch durable.", buckets=_DISK),
    Spec(
        "iai_mcp_entry_delay_seconds",
        "histogram",
        "both",
        "From enqueue to acknowledged, of the oldest entry in each batch.",
        buckets=_DELAY,
    ),
    Spec("iai_mcp_compaction_seconds", "histogram", "both", "Compactions of a table.", buckets=_LONG),
    Spec("iai_mcp_takeovers_total", "counter", "both", "Lanes taken over with entries in flight."),
    Spec("iai_mcp_events_total", "counter", "both", "Log events, by name.", "event", EVENTS),
    # gauges, read at a scrape
    Spec(
        "iai_mcp_breaker_open", "gauge", "client", "1 while pushes to Redis are refused and entries are spilled."
    ),
    Spec("iai_mcp_lane_pending_entries", "gauge", "both", "Entries that wait in the lane.", "lane"),
    Spec("iai_mcp_lane_in_flight_entries", "gauge", "both", "Entries claimed and not acknowledged.", "lane"),
    Spec(
        "iai_mcp_lane_oldest_seconds",
        "gauge",
        "both",
        "Age of the oldest waiting entry; 0 without one.",
        "lane",
    ),
    Spec(
        "iai_mcp_lane_trouble",
        "gauge",
        "both",
        "Findings about the lane's keys in Redis: stray values, and keys that were set aside.",
        "lane",
    ),
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
    Spec("iai_mcp_redis_memory_limit_bytes", "gauge", "both", "Redis's maxmemory; 0 without a limit."),
    Spec(
        "iai_mcp_source_up",
        "gauge",
        "both",
        "Whether a source was read in time. If not, its gauges are missing.",
        "source",
    ),
    Spec("iai_mcp_journal", "gauge", "client", "1 if IAI_MCP_JOURNAL writes every entry to the spill first."),
    Spec("iai_mcp_build_info", "gauge", "both", "Always 1. The version is a label.", "version"),
)


def series(spec: Spec) -> Iterator[str]:
    """The names of ``spec`` in a scrape."""
    yield from (
        (f"{spec.name}{end}" for end in ("_bucket", "_sum", "_count"))
        if spec.kind == "histogram"
        else (spec.name,)
    )
