"""Recall: searches memories by a cue, ranks them, and leaves a provenance entry on each hit.

Two searches see the same memories: one by meaning (cosine), one by words (BM25). Their scores are scaled to 0..1
and added with weights. A failure to leave entries never fails a recall: it is logged and counted.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from iai_mcp.common.limits import CUE_MAX
from iai_mcp.common.times import utcnow
from iai_mcp.errors import BadParams
from iai_mcp.record import MemoryRecord
from iai_mcp.store import Filters, Hit, MemoryStore
from iai_mcp.telemetry import observer
from iai_mcp.telemetry.events import log, safe_message

__all__ = ["Recall", "fuse", "recall"]

VECTOR_WEIGHT = 0.4
DEPTH = 100  # hits of each search that are fused


@dataclass(frozen=True, slots=True)
class Recall:
    """The result of a recall.

    Attributes:
        recall_id: identifies this recall in every provenance entry that it left.
        cue: the cue that was searched for; a lone surrogate in it has become ``?``.
        hits: the best first; scores are in 0..1.
        timings_ms: ``embed``, ``search``, ``provenance`` and ``total``, in milliseconds.
    """

    recall_id: str
    cue: str
    hits: list[Hit]
    timings_ms: dict[str, float] = field(default_factory=dict)


def recall(
    store: MemoryStore,
    cue: str,
    session_id: str,
    *,
    cue_embedding: Sequence[float] | None = None,
    limit: int = 10,
    filters: Filters | None = None,
    record_provenance: bool = True,
    client: str = "",
) -> Recall:
    """Find the ``limit`` memories that match ``cue`` best, and leave one provenance entry on each.

    There is no score threshold: fewer than ``limit`` hits mean that the store has no more memories that match
    ``filters``.

    Args:
        session_id: the session of the caller, for the entries.
        cue_embedding: used instead of embedding the cue.
        filters: conditions on the memories.
        record_provenance: leave entries.
        client: the calling program, for the entries.

    Raises:
        BadParams: the cue is empty and there is no embedding for it.
        EmbeddingMismatch: ``cue_embedding`` has the wrong number of dimensions.
    """
    if not cue.strip() and cue_embedding is None:
        raise BadParams("the cue is empty; say what to look for")
    cue = cue.encode("utf-8", "replace").decode()  # a lone surrogate is no text that could be searched for
    with observer.now.recalling() as watched:
        started = time.perf_counter()
        vector = cue_embedding if cue_embedding is not None else _embedded(store, cue)
        embedded = time.perf_counter()
        hits = _search(store, cue, vector, limit, filters or Filters())
        searched = time.perf_counter()
        recall_id = uuid.uuid4().hex
        if record_provenance and hits:
            _leave_trace(store, hits, cue, session_id, recall_id, client)
        ended = time.perf_counter()
        marks = {
            "embed": embedded - started,
            "search": searched - embedded,
            "provenance": ended - searched,
            "total": ended - started,
        }
        watched.stages(marks)
    return Recall(recall_id, cue, hits, {name: round(seconds * 1000, 3) for name, seconds in marks.items()})


def fuse(by_vector: Sequence[Hit], by_text: Sequence[Hit], weight: float = VECTOR_WEIGHT) -> list[Hit]:
    """Merge two lists of hits, the best first: ``weight * vector score + (1 - weight) * text score``.

    Scores are scaled to 0..1 within each list (min-max). A memory that is missing from a list has score 0 there.
    Reciprocal rank fusion would lose how far apart the hits are; ``benchmarks/recall_quality.py`` measures both
    on conversations.
    """
    if not by_text:
        weight = 1.0
    elif not by_vector:
        weight = 0.0
    scores: dict[UUID, float] = {}
    records: dict[UUID, MemoryRecord] = {}
    for hits, share in ((by_vector, weight), (by_text, 1.0 - weight)):
        for hit, scaled in zip(hits, _min_max([hit.score for hit in hits]), strict=True):
            records[hit.record.id] = hit.record
            scores[hit.record.id] = scores.get(hit.record.id, 0.0) + share * scaled
    ranked = sorted(scores, key=lambda key: (-scores[key], str(key)))
    return [Hit(records[key], scores[key]) for key in ranked]


def _min_max(scores: list[float]) -> list[float]:
    if not scores:
        return []
    low, high = min(scores), max(scores)
    return [(score - low) / (high - low) if high > low else 1.0 for score in scores]


def _embedded(store: MemoryStore, cue: str) -> Sequence[float] | None:
    embedder = store.embedder
    if embedder is None:
        return None
    vector: Sequence[float] = embedder.embed_query(cue).tolist()
    return vector


def _search(
    store: MemoryStore, cue: str, vector: Sequence[float] | None, limit: int, filters: Filters
) -> list[Hit]:
    depth = max(DEPTH, limit)
    by_vector = store.search_vector(vector, limit=depth, filters=filters) if vector is not None else []
    by_text = store.search_text(cue, limit=depth, filters=filters) if cue.strip() else []
    hits = fuse(by_vector, by_text)[:limit]
    if len(hits) < limit:  # no threshold: fill up with the newest of the rest
        found = {hit.record.id for hit in hits}
        rest = store.list_records(filters, limit=limit + len(found))
        hits += [Hit(record, 0.0) for record in rest if record.id not in found][: limit - len(hits)]
    return hits


def _leave_trace(
    store: MemoryStore, hits: list[Hit], cue: str, session_id: str, recall_id: str, client: str
) -> None:
    common = {"ts": utcnow().isoformat(), "cue": cue, "session_id": session_id, "recall_id": recall_id}
    if client:
        common["client"] = client
    pairs = [(hit.record.id, {**common, "rank": rank, "score": hit.score}) for rank, hit in enumerate(hits, 1)]
    try:
        _queue(store, pairs)
    except Exception as error:  # noqa: BLE001  the recall itself succeeded; the operator sees the log
        store.provenance_failures += len(pairs)
        log.error("%d provenance entries were not taken: %s", len(pairs), safe_message(error))


def _queue(store: MemoryStore, pairs: list[tuple[UUID, dict[str, Any]]]) -> None:
    """Queue the entries; a cue that is too large for an entry is kept in part."""
    try:
        store.queue_provenance_batch(pairs)
    except BadParams:
        cue = pairs[0][1]["cue"]
        if len(cue) <= CUE_MAX:
            raise
        store.queue_provenance_batch([(key, {**entry, "cue": f"{cue[:CUE_MAX]}…"}) for key, entry in pairs])
