"""Repairs what :mod:`iai_mcp.maintenance.verify` found, and removes nothing that is still needed.

A loss cannot be repaired. It is noted as accepted, so that the next report shows only new ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from uuid import UUID

from iai_mcp.broker.factory import redis_broker
from iai_mcp.common.wording import many
from iai_mcp.config import Settings
from iai_mcp.entries.identity import split_entry_id
from iai_mcp.maintenance.inventory import FindingKind, stale_files
from iai_mcp.maintenance.verify import LaneReport, Report, format_ranges, verify
from iai_mcp.pipeline import recovery
from iai_mcp.pipeline.recovery import Moved
from iai_mcp.storage.exclusions import ExclusionReason, Span
from iai_mcp.storage.layout import Layout
from iai_mcp.storage.place import store_place
from iai_mcp.storage.tables.known_records import RecordsCache
from iai_mcp.storage.tables.lane_reader import piled_up
from iai_mcp.storage.tables.rows import distinct
from iai_mcp.store import MemoryStore

__all__ = ["move_spill", "repair"]


def repair(layout: Layout, settings: Settings, report: Report) -> Iterator[str]:
    """Repair what ``report`` shows; yields a sentence for each action, once it is done.

    Raises:
        StoreError: the store cannot be opened.
    """
    for path in stale_files(layout.root):
        with suppress(FileNotFoundError):
            path.unlink()
            yield f"removed {path}, which a process that died had left"
    store = MemoryStore(layout.root, settings=settings)
    if any(finding.kind is FindingKind.ORPHANED for finding in report.warnings):
        yield from _describe(move_spill(store))
    for lane in report.lanes:
        if lane.error is None:
            yield from _repair_lane(store, lane)
    if report.shared:
        store.exclusions.add(ExclusionReason.SHARED, map(split_entry_id, report.shared))
        yield f"accepted: {many(len(report.shared), 'key')} that entries of two lanes have"
    store.tidy()
    yield from _accept_losses(store, verify(layout, settings))


def move_spill(store: MemoryStore) -> Moved:
    """Move spill files that no living process holds: to Redis where one is configured, else into the store.

    Raises:
        StoreUnavailable: the store cannot be written; what was not written is still in its file.
        ConfigError: the URL of Redis cannot be used, or it holds the entries of another folder.
    """
    if not store.settings.redis_url:
        return recovery.apply(store)
    broker = redis_broker(store.settings, store.store_id, store.lanes, place=store_place(store.layout))
    try:
        broker.open()
        if broker.refusal is not None:
            raise broker.refusal
        return recovery.push(store, broker)
    finally:
        broker.close()


def _describe(moved: Moved) -> Iterator[str]:
    if moved.files:
        counts = {"applied": moved.applied, "applied before": moved.duplicate, "pushed to Redis": moved.pushed}
        counts |= {"of unknown memories": moved.unknown, "dead letters": moved.dead}
        parts = ", ".join(f"{many(number, 'entry')} {name}" for name, number in counts.items() if number)
        yield f"replayed {many(moved.files, 'spill file')}: {parts or 'they were empty'}"


def _repair_lane(store: MemoryStore, lane: LaneReport) -> Iterator[str]:
    table = store.lane(lane.lane)
    if lane.unreadable and (aside := table.set_aside_unsound()):
        rows = many(aside, "row that is no entry", "rows that are no entries")
        yield f"made dead letters of {rows} in lane {lane.lane}"
    if lane.misplaced:
        moved = sum(_move(store, lane.lane, record_id) for record_id in lane.misplaced_records)
        rows = f"{many(moved, 'row')} of {many(len(lane.misplaced_records), 'memory')}"
        yield f"moved {rows} from lane {lane.lane} to the right lane"
    for record_id in lane.unknown_records:
        table.delete_record(UUID(record_id))
    if lane.unknown:
        memories = many(len(lane.unknown_records), "memory that does not exist", "memories that do not exist")
        yield f"deleted {many(lane.unknown, 'row')} of {memories} from lane {lane.lane}"
    if lane.doubled:
        table.maintain(force=True)
        yield f"removed {many(lane.doubled, 'doubled row')} from lane {lane.lane}"
    elif piled_up(table.stats()):
        table.maintain(force=True)
        yield f"compacted lane {lane.lane}"
    if lane.second:
        store.exclusions.add(ExclusionReason.SHARED, map(split_entry_id, lane.second))
        yield f"accepted: {many(len(lane.second), 'number')} that two entries of lane {lane.lane} have"
    if lane.out_of_order:
        keys = [split_entry_id(key) for key in lane.out_of_order]
        store.exclusions.add(ExclusionReason.LATE, keys)
        yield f"accepted as out of order: {many(len(keys), 'entry')} in lane {lane.lane}"


def _move(store: MemoryStore, lane: int, record_id: str) -> int:
    """Write the rows of a record to its own lane, then remove them here; returns their number."""
    table = store.lane(lane)
    rows = table.rows([f"record_id = '{record_id}'"])
    entries = distinct(rows.to_pylist())
    for entry in entries:
        del entry["seq"], entry["record_id"]
    store.exclusions.add(ExclusionReason.LATE, [(entry["producer"], entry["producer_seq"]) for entry in entries])
    store.append_provenance_batch([(UUID(record_id), entry) for entry in entries], RecordsCache())
    table.drop_record(record_id)
    return len(rows)


def _accept_losses(store: MemoryStore, report: Report) -> Iterator[str]:
    if report.unreadable():
        return  # the missing entries may be there
    for one in report.producers:
        if one.lost:
            spans = (Span(ExclusionReason.LOST, one.producer, first, last) for first, last in one.lost)
            store.exclusions.add_spans(spans)
            entries = f"{many(one.missing, 'entry')} of producer {one.producer}"
            yield f"accepted as lost: {entries}: {format_ranges(one.lost)}"
