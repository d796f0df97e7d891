"""The state of a store and of its write pipeline as one JSON document: what waits where, and what was applied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import msgspec

from iai_mcp.config import overflow_dir
from iai_mcp.maintenance.pending import PendingInSpill, pending_in_spill
from iai_mcp.storage.dead_letters import DeadLetters
from iai_mcp.storage.upkeep_notes import failing_upkeep
from iai_mcp.store import MemoryStore

if TYPE_CHECKING:
    from iai_mcp.broker.redis.inspect import RedisStatus

__all__ = ["status"]

_NOTHING = {"pending": 0, "in_flight": 0}
_LANE_FIELDS = ("pending", "in_flight", "oldest_s", "holder", "lease_age_s")


def status(store: MemoryStore) -> dict[str, Any]:
    """Describe ``store`` and its pipeline with plain JSON types.

    With Redis, the lanes are read from Redis now. If Redis does not answer, their numbers are None and
    ``redis.error`` says why.
    """
    queue = store.provenance_queue.stats() if store.provenance_queue is not None else None
    seen = _redis(store)
    redis = _redis_document(seen) if seen is not None else None
    now = redis.pop("lanes") if redis is not None else queue["lanes"] if queue else [_NOTHING] * store.lanes
    return {
        "store": _store(store),
        "broker": "redis" if redis is not None else queue["broker"] if queue else "embedded",
        "redis": redis,
        "queue": {key: queue[key] for key in ("running", "producer", "handed_out", "counts")} if queue else None,
        "lanes": [_lane(store, number, now) for number in range(store.lanes)],
        "spilled": _spill(store).document(),
        "upkeep_failing": [msgspec.to_builtins(failure) for failure in failing_upkeep(store.layout)],
        "dead": DeadLetters(store.layout).count(),
        "provenance_failures": store.provenance_failures,
    }


def _store(store: MemoryStore) -> dict[str, Any]:
    meta = store.meta
    return {
        "path": str(store.path),
        "id": meta.store_id,
        "schema_version": meta.schema_version,
        "lanes": meta.lanes,
        "records": store.count(),
        "without_vector": store.count_without_vector(),
        "embedder": {"name": meta.embedder.name, "dims": meta.embedder.dims},
        "vectors_match": store.vectors_match(),
    }


def _lane(store: MemoryStore, number: int, now: Sequence[Mapping[str, Any]] | None) -> dict[str, Any]:
    table = store.lane(number).stats()
    there = now[number] if now else {}
    return {"lane": number, **{name: there.get(name) for name in _LANE_FIELDS}, "applied": table["rows"], **table}


def _spill(store: MemoryStore) -> PendingInSpill:
    try:
        return pending_in_spill(store.settings, store.store_id)
    except OSError:  # the folder cannot be read: the doctor says why
        return PendingInSpill(overflow_dir(store.settings))


def _redis_document(seen: RedisStatus) -> dict[str, Any]:
    warnings = [f"{warning.message}; {warning.remedy}" for warning in seen.warnings]
    return {**asdict(seen), "warnings": warnings}


def _redis(store: MemoryStore) -> RedisStatus | None:
    """Inspect the Redis of the running queue, else the configured one; None in embedded mode."""
    queue = store.provenance_queue
    connection = queue.connection if queue is not None else None
    if connection is None and (queue is not None or not store.settings.redis_url):
        return None
    from iai_mcp.broker.redis.client import connect
    from iai_mcp.broker.redis.inspect import inspect_redis

    return inspect_redis(
        connection or connect(store.settings.redis_url), store.settings, store.store_id, store.lanes
    )
