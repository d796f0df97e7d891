"""Turns records into memories: index text, embedding, and one durable insert."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from iai_mcp.record import MemoryRecord, index_text
from iai_mcp.store import Filters, MemoryStore

__all__ = ["capture_records"]


def capture_records(store: MemoryStore, records: Sequence[MemoryRecord]) -> list[UUID]:
    """Index, embed and insert the records whose id is new, in the given order and in one commit.

    The index text of a record includes the turn before it in its session: a reply often makes no sense
    without the question.

    Returns:
        The ids that were inserted.

    Raises:
        EmbedderUnavailable: the embedder fails; nothing was written.
        EmbeddingMismatch: a given vector has the wrong number of dimensions; nothing was written.
        StoreUnavailable: the store cannot be written.
    """
    taken = store.existing([record.id for record in records])
    new = list({record.id: record for record in records if record.id not in taken}.values())
    previous: dict[str, str] = {}
    for record in new:
        session = record.session_id
        if session and session not in previous:
            latest = store.list_records(Filters(session=session, until=record.created_at), limit=1)
            previous[session] = latest[0].text if latest else ""
        if not record.index_text:
            before = previous.get(session, "")
            record.index_text = index_text(record.text, role=record.role, previous=before)
        if session:
            previous[session] = record.text
    waiting = [record for record in new if not len(record.embedding)]
    if waiting and (embedder := store.embedder) is not None:
        vectors = embedder.embed_documents([record.index_text for record in waiting])
        for record, vector in zip(waiting, vectors, strict=True):
            record.embedding = vector
    return store.insert_many(new, skip_existing=True)
