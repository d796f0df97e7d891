"""Passages become memories in batches, each batch one durable commit that is then counted.

What was imported before, or forgotten since, is left alone: importing the same file again adds nothing.
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
BATCH_EMBEDDED = 64  # takes a second or two, which is as long as a progress bar should stand still


@dataclass(slots=True)
class ImportReport:
    """What an import did, in memories; ``bad`` is the input that could not be read."""

    added: int = 0
    existing: int = 0
    forgotten: int = 0
    bad: list[BadLine] = field(default_factory=list)

    @property
    def read(self) -> int:
        """How many memories were read and dealt with."""
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
    """Keep the passages of ``items`` as memories; with ``strict``, up to the first bad line.

    A count is of what is durable: an exception leaves whole batches in the store, and a second run adds
    the rest.
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
            _keep(store, records, report)
            records = []
            if on_batch is not None:
                on_batch(report)
    _keep(store, records, report)
    return report


def _dated(items: Iterable[Passage | BadLine]) -> Iterator[MemoryRecord | BadLine]:
    """Passages as records; those without a time get now, a microsecond apart, which keeps their order."""
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


def _keep(store: MemoryStore, records: list[MemoryRecord], report: ImportReport) -> None:
    from iai_mcp.ingest.capture import capture_records

    gone = store.tombstones.ids()
    wanted = [record for record in records if record.id not in gone]
    added = len(capture_records(store, wanted)) if wanted else 0
    report.added += added
    report.existing += len(wanted) - added
    report.forgotten += len(records) - len(wanted)
