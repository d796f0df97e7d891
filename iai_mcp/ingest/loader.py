"""Stores passages as memories in batches; each batch is one durable commit.

Memories that exist or were forgotten are left alone, so importing the same file again adds nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from iai_mcp.ingest.readers import BadLine, Passage
    from iai_mcp.record import MemoryRecord
    from iai_mcp.store import MemoryStore

__all__ = ["BATCH", "BATCH_EMBEDDED", "ImportReport", "ingest"]

BATCH = 256
BATCH_EMBEDDED = 64  # embedding takes a second or two: the progress bar should not stand still for longer


@dataclass(slots=True)
class ImportReport:
    """The result of an import, in numbers of memories; ``bad`` lists input that could not be read."""

    added: int = 0
    existing: int = 0
    forgotten: int = 0
    bad: list[BadLine] = field(default_factory=list)

    @property
    def read(self) -> int:
        """Number of memories that were read and processed."""
        return self.added + self.existing + self.forgotten


def ingest(
    store: MemoryStore,
    items: Iterable[Passage | BadLine],
    *,
    strict: bool = False,
    batch: int = BATCH,
    on_bad: Callable[[BadLine], object] | None = None,
    on_batch: Callable[[ImportReport], object] | None = None,
) -> ImportReport:
    """Store the passages of ``items`` as memories; with ``strict``, stop at the first bad line.

    Counts are of durable memories. An exception leaves whole batches in the store; a second run adds the rest.

    Args:
        batch: memories of one commit.
        on_bad: called with each bad line.
        on_batch: called with the report after each full batch.

    Raises:
        EmbedderUnavailable: the embedder fails.
        StoreUnavailable: the store cannot be written.
    """
    from iai_mcp.ingest.readers import BadLine

    report = ImportReport()
    records: list[MemoryRecord] = []
    for item in _dated(items):
        if isinstance(item, BadLine):
            report.bad.append(item)
            if on_bad is not None:
                on_bad(item)
            if strict:
                break
            continue
        records.append(item)
        if len(records) >= batch:
            _store_batch(store, records, report)
            records = []
            if on_batch is not None:
                on_batch(report)
    _store_batch(store, records, report)
    return report


def _dated(items: Iterable[Passage | BadLine]) -> Iterator[MemoryRecord | BadLine]:
    """Passages as records. Those without a time get the present, a microsecond apart, to keep their order."""
    from iai_mcp.common.times import utcnow
    from iai_mcp.ingest.readers import BadLine
    from iai_mcp.record import MemoryRecord

    now = utcnow()
    for number, item in enumerate(items):
        if isinstance(item, BadLine):
            yield item
            continue
        yield MemoryRecord(
            text=item.text,
            id=item.id,
            session_id=item.session_id,
            role=item.role,
            tags=list(item.tags),
            created_at=item.created_at or now + timedelta(microseconds=number),
            updated_at=now,
        )


def _store_batch(store: MemoryStore, records: list[MemoryRecord], report: ImportReport) -> None:
    from iai_mcp.ingest.capture import capture_records

    gone = store.tombstones.ids()
    wanted = [record for record in records if record.id not in gone]
    added = len(capture_records(store, wanted)) if wanted else 0
    report.added += added
    report.existing += len(wanted) - added
    report.forgotten += len(records) - len(wanted)
