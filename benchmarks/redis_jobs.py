"""What the other two pipelines of ``pipelines.py`` run in their workers: one RQ job, and one Celery batch.

Both write through ``append_provenance_batch`` of a store that the worker process keeps open.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from functools import cache
from typing import Any

from celery import Celery
from celery_batches import Batches

from iai_mcp.config import Settings
from iai_mcp.store import MemoryStore, RecordsCache

RECALLS = 800  # of five entries: about as many entries as our worker writes at once
LINGER_S = 0.5  # ten times ours: with as little as ours its batches stay tiny, and it is far slower still

app = Celery("pipelines", broker=Settings.load().redis_url)
app.conf.update(
    task_ignore_result=True,
    worker_prefetch_multiplier=RECALLS,
    worker_concurrency=1,
    broker_connection_retry_on_startup=True,
)


@cache
def _store() -> tuple[MemoryStore, RecordsCache]:
    return MemoryStore(), RecordsCache()


def write(pairs: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Append entries whose record ids are text."""
    store, cache = _store()
    store.append_provenance_batch([(uuid.UUID(record_id), entry) for record_id, entry in pairs], cache)


@app.task(base=Batches, flush_every=RECALLS, flush_interval=LINGER_S, name="write_recalls")  # type: ignore[untyped-decorator]
def write_recalls(requests: Sequence[Any]) -> None:
    """Append the entries of many recalls at once."""
    write([pair for request in requests for pair in request.args[0]])
