"""Mends what :mod:`iai_mcp.maintenance.verify` found, says what it did, and takes nothing that is still needed.

What cannot be mended, for it is gone, is noted as accepted, so that the next look finds only what is new.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from uuid import UUID

from iai_mcp.broker.factory import redis_broker
from iai_mcp.common.wording import many
from iai_mcp.config import Settings
from iai_mcp.entries.identity import split_entry_id
from iai_mcp.maintenance.inventory import old_strays
from iai_mcp.maintenance.verify import LaneLook, Report, said_ranges, verify
from iai_mcp.pipeline import recovery
from iai_mcp.pipeline.recovery import Moved
from iai_mcp.storage.exclusions import ExclusionReason, Span
from iai_mcp.storage.layout import Layout
from iai_mcp.storage.tables.known_records import RecordsCache
from iai_mcp.storage.tables.lane_reader import piled_up
from iai_mcp.storage.tables.rows import distinct
from iai_mcp.store import MemoryStore

__all__ = ["move_spill", "repair"]


def repair(layout: Layout, settings: Settings, report: Report) -> Iterator[str]:
    """Mend what ``report`` shows; yields what was done, a sentence each, as it is done.

    Raises:
        StoreError: the store cannot be opened.
    """
    for path in old_strays(layout.root):
        with suppress(FileNotFoundError):
            path.unlink()
            yield f"removed {path}, which a process that died had left"
    store = MemoryStore(layout.root, settings=settings)
    if any(finding.kind == "orphaned" for finding in report.warnings):
        yield from _said(move_spill(store))
    for look in report.lanes:
        if look.error is None:
            yield from _lane(store, look)
    store.tidy()
    after = verify(layout, settings)
    yield from _accept(store, after)


def move_spill(store: MemoryStore) -> Moved:
    """Move on what no living process holds in the spill: to Redis where one is configured, else to the store.

    Raises:
        StoreUnavailable: the store fails; what was not written is still in its file.
        ConfigError: the URL of Redis cannot be used.
    """
    if not store.settings.redis_url:
        return recovery.apply(store)
    broker = redis_broker(store.settings, store.store_id, store.lanes)
    try:
        return recovery.push(store, broker)
    finally:
        broker.close()


def _said(moved: Moved) -> Iterator[str]:
    if moved.files:
        counts = {"applied": moved.applied, "applied before": moved.duplicate, "pushed to Redis": moved.pushed}
        counts |= {"of unknown memories": moved.unknown, "dead letters": moved.dead}
        told = ", ".join(f"{many(number, 'entry')} {name}" for name, number in counts.items() if number)
        yield f"replayed {many(moved.files, 'spill file')}: {told or 'they were empty'}"


def _lane(store: MemoryStore, look: LaneLook) -> Iterator[str]:
    table = store.lane(look.lane)
    if look.misplaced:
        moved = sum(_move(store, look.lane, record_id) for record_id in look.astray)
        rows = f"{many(moved, 'row')} of {many(len(look.astray), 'memory')}"
        yield f"moved {rows} from lane {look.lane} to where they belong"
    for record_id in look.unknown:
        table.delete_record(UUID(record_id))
    if look.strangers:
        memories = many(len(look.unknown), "memory that does not exist", "memories that do not exist")
        yield f"deleted {many(look.strangers, 'row')} of {memories} from lane {look.lane}"
    if look.doubled:
        table.maintain(force=True)
        yield f"removed {many(look.doubled, 'doubled row')} from lane {look.lane}"
    elif piled_up(table.stats()):
        table.maintain(force=True)
        yield f"compacted lane {look.lane}"
    if look.out_of_order:
        keys = [split_entry_id(key) for key in look.out_of_order]
        store.exclusions.add(ExclusionReason.LATE, keys)
        yield f"accepted as out of turn: {many(len(keys), 'entry')} in lane {look.lane}"


def _move(store: MemoryStore, lane: int, record_id: str) -> int:
    """Write the rows of a record to its own lane, then remove them here; how many there were."""
    table = store.lane(lane)
    rows = table.rows([f"record_id = '{record_id}'"])
    entries = distinct(rows.to_pylist())
    for entry in entries:
        del entry["seq"], entry["record_id"]
    store.exclusions.add(ExclusionReason.LATE, [(entry["producer"], entry["producer_seq"]) for entry in entries])
    store.append_provenance_batch([(UUID(record_id), entry) for entry in entries], RecordsCache())
    table.drop_record(record_id)
    return len(rows)


def _accept(store: MemoryStore, report: Report) -> Iterator[str]:
    if any(finding.kind == "unreadable" for finding in report.breaches):
        return  # what is missing may be there
    for ledger in report.ledgers:
        if ledger.lost:
            store.exclusions.add_spans(
                Span(ExclusionReason.LOST, ledger.producer, first, last) for first, last in ledger.lost
            )
            said = f"{many(ledger.missing, 'entry')} of producer {ledger.producer}: {said_ranges(ledger.lost)}"
            yield f"accepted as lost: {said}"
