"""Checks that every entry is accounted for: handed out = applied + left out + dead + waiting + lost.

Changes nothing. A loss or disorder counts as a breach only if two inspections, a moment apart, both find it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from iai_mcp.common.arrays import repeated
from iai_mcp.common.wording import many
from iai_mcp.config import Settings
from iai_mcp.entries.routing import lane_of
from iai_mcp.errors import ConfigError
from iai_mcp.maintenance.inventory import Finding, FindingKind, Inventory, LaneRows, Source, take_inventory
from iai_mcp.maintenance.ledger import EntryState, ProducerLedger, out_of_order
from iai_mcp.storage.layout import Layout

__all__ = [
    "Finding",
    "FindingKind",
    "LaneReport",
    "ProducerReport",
    "Report",
    "Source",
    "format_ranges",
    "layout_of",
    "verify",
]

SETTLE_S = 1.0
_TWICE = "two processes had one producer id, or one used the numbers of the other"
Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class LaneReport:
    """One lane's table, in numbers of rows. Where ``error`` is set the table cannot be read and all are 0.

    Attributes:
        doubled: rows that repeat the key of another.
        misplaced: rows whose record belongs to another lane.
        unknown: rows whose record does not exist.
        unreadable: rows that cannot be an entry.
        out_of_order: keys of entries that are read after a later one of their producer.
        second: keys that two entries of the lane have, which say different things.
        misplaced_records, unknown_records: ids of the records of these rows.
    """

    lane: int
    rows: int = 0
    doubled: int = 0
    misplaced: int = 0
    unknown: int = 0
    unreadable: int = 0
    out_of_order: tuple[str, ...] = ()
    second: tuple[str, ...] = ()
    misplaced_records: tuple[str, ...] = ()
    unknown_records: tuple[str, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ProducerReport:
    """One producer's entries: ``handed_out`` is the sum of ``counts``, ``in_memory`` and what is ``lost``.

    Attributes:
        in_memory: entries that only the producer's running process can hold, or that moved during the inspection.
        lost: numbers that were not found anywhere, as inclusive ranges.
    """

    producer: str
    handed_out: int
    counts: Mapping[str, int]
    in_memory: int
    lost: Ranges

    @property
    def missing(self) -> int:
        """Number of entries that are lost."""
        return _size(self.lost)


@dataclass(frozen=True, slots=True)
class Report:
    """The result of :func:`verify`.

    Attributes:
        breaches: what breaks a promise; empty where the store is sound.
        warnings: what an operator should do something about.
        notes: what limits this report, in sentences.
        shared: keys that entries of different lanes have.
        killed: number of producers that were killed: entries of their last second may be in none of the counts.
    """

    store: str
    store_id: str
    producers: list[ProducerReport]
    lanes: list[LaneReport]
    breaches: list[Finding]
    warnings: list[Finding]
    notes: list[str]
    shared: tuple[str, ...] = ()
    killed: int = 0

    @property
    def clean(self) -> bool:
        """Whether every entry is accounted for; entries that wait are no breach."""
        return not self.breaches

    @property
    def total(self) -> dict[str, int]:
        """Number of entries in each state, over all producers."""
        found = {"handed_out": sum(producer.handed_out for producer in self.producers)}
        for state in EntryState:
            name = state.name.lower()
            found[name] = sum(producer.counts.get(name, 0) for producer in self.producers)
        found["in_memory"] = sum(producer.in_memory for producer in self.producers)
        return {**found, "lost": sum(producer.missing for producer in self.producers)}

    def unreadable(self, *sources: Source) -> list[Finding]:
        """Breaches of the kind ``unreadable``, of these sources (default: of all)."""
        found = [finding for finding in self.breaches if finding.kind is FindingKind.UNREADABLE]
        return [finding for finding in found if not sources or finding.source in sources]

    def document(self) -> dict[str, Any]:
        """The report as plain JSON types."""
        producers = [{**asdict(producer), "lost": [*producer.lost]} for producer in self.producers]
        found = {"clean": self.clean, "store": self.store, "store_id": self.store_id, "total": self.total}
        rest = {
            "breaches": self.breaches,
            "warnings": self.warnings,
            "notes": self.notes,
            "killed": self.killed,
        }
        lanes = [asdict(lane) for lane in self.lanes]
        built: dict[str, Any] = msgspec.to_builtins({**found, "producers": producers, "lanes": lanes, **rest})
        return built


def layout_of(path: str | Path | None, settings: Settings) -> Layout:
    """Find the store at ``path`` (default: as the settings say) without making one.

    Raises:
        ConfigError: there is no store.
    """
    layout = Layout((Path(path).expanduser() if path is not None else settings.store_path).absolute())
    if not layout.meta.exists():
        raise ConfigError(f"there is no store at {layout.root}; --store or IAI_MCP_STORE names one")
    return layout


def verify(layout: Layout, settings: Settings, *, settle: float = SETTLE_S) -> Report:
    """Inspect the store; if something seems broken, inspect it again after ``settle`` seconds.

    Entries move meanwhile, so a single inspection can miss one.

    Raises:
        StoreError: ``store.json`` cannot be read.
    """
    first = take_inventory(layout, settings)
    report = _judged(first, None)
    if report.clean:
        return report
    time.sleep(settle)
    return _judged(take_inventory(layout, settings), first)


def _judged(found: Inventory, before: Inventory | None) -> Report:
    """Judge an inventory; a loss counts only if ``before`` has it as well."""
    by_lane = {lane.number: _lane_report(found, lane) for lane in found.lanes}
    by_lane |= {number: LaneReport(number, error=error) for number, error in found.broken.items()}
    lanes = [by_lane.get(number, LaneReport(number)) for number in range(found.meta.lanes)]
    live = found.live | (before.live if before else set())
    earlier = {one.producer: one.gaps for one in before.ledgers} if before else None
    producers = [_producer_report(ledger, live, earlier) for ledger in found.ledgers]
    shared = _shared_keys(found)
    breaches = [
        *found.unreadable,
        *_lost(producers, _remedy_of_loss(found)),
        *_of_lanes(lanes),
        *_of_shared(shared),
        *_of_conflicts(found.conflicts),
    ]
    root = str(found.layout.root)
    return Report(
        root, found.meta.store_id, producers, lanes, breaches, found.warnings, found.notes, shared, found.killed
    )


def _producer_report(
    ledger: ProducerLedger, live: set[str], earlier: Mapping[str, Ranges] | None
) -> ProducerReport:
    lost = ledger.gaps if ledger.producer not in live else ()
    if earlier is not None:
        lost = _common(lost, earlier.get(ledger.producer, ()))
    counts = {state.name.lower(): number for state, number in ledger.counts.items() if number}
    return ProducerReport(ledger.producer, ledger.handed_out, counts, ledger.missing - _size(lost), lost)


def _remedy_of_loss(found: Inventory) -> str:
    if found.unreadable:
        return "first repair what cannot be read: the entries may be there; then verify again"
    accept = "iai-mcp verify --repair notes that you accept it"
    if not found.settings.redis_url and any(found.layout.lane_tokens()):
        return f"set IAI_MCP_REDIS_URL if this store's Redis may hold them, else {accept}"
    return accept


def _lane_report(found: Inventory, lane: LaneRows) -> LaneReport:
    first = ~lane.second  # the second entry of a number has a key of its own
    doubled = lane.repeats.copy()
    doubled[first] |= repeated(lane.keys[first])
    lanes = [_lane_or_none(text, found.meta.lanes) for text in lane.ids.to_pylist()]
    misplaced = np.array([one is not None and one != lane.number for one in lanes], bool)[lane.records]
    malformed = np.array([one is None for one in lanes], bool)[lane.records]
    unknown = np.zeros(len(lane.keys), bool)
    if found.records is not None:
        known = pc.is_in(lane.ids, value_set=found.records).to_numpy(zero_copy_only=False)
        unknown = ~known[lane.records] & ~malformed
    none = np.zeros(0, np.int64)
    single = ~doubled & first & ~np.isin(lane.keys, np.concatenate([none, *found.accepted_late]))
    second = lane.second & ~doubled & ~np.isin(lane.keys, np.concatenate([none, *found.accepted_shared]))
    late = out_of_order(lane.records[single], lane.seqs[single], lane.keys[single])
    return LaneReport(
        lane.number,
        rows=len(lane.keys) + lane.unreadable,
        doubled=int(doubled.sum()),
        misplaced=int(misplaced.sum()),
        unknown=int(unknown.sum()),
        unreadable=lane.unreadable + int(malformed.sum()),
        out_of_order=tuple(found.builder.name(key) for key in lane.keys[single][late]),
        second=tuple(found.builder.name(key) for key in np.unique(lane.keys[second])),
        misplaced_records=_names(lane, misplaced & ~unknown),
        unknown_records=_names(lane, unknown),
    )


def _shared_keys(found: Inventory) -> tuple[str, ...]:
    """Keys of rows in more than one lane: each lane has an entry of its own. Rows of a wrong lane do not count."""
    if len(found.lanes) < 2:
        return ()
    keys = np.concatenate([np.unique(lane.keys) for lane in found.lanes])
    shared = np.setdiff1d(keys[repeated(keys)], np.concatenate([np.zeros(0, np.int64), *found.accepted_shared]))
    if not len(shared):
        return ()
    at_home = []
    for lane in found.lanes:
        rows = np.flatnonzero(np.isin(lane.keys, shared))
        ids = lane.ids.take(pa.array(lane.records[rows])).to_pylist()
        right = [
            row
            for row, text in zip(rows, ids, strict=True)
            if _lane_or_none(text, found.meta.lanes) == lane.number
        ]
        at_home.append(np.unique(lane.keys[np.array(right, np.int64)]))
    keys = np.concatenate(at_home)
    return tuple(found.builder.name(key) for key in np.unique(keys[repeated(keys)]))


def _of_shared(keys: Sequence[str]) -> Iterable[Finding]:
    if keys:
        which = f"{many(len(keys), 'key')} of entries in two lanes, such as {keys[0]}"
        message = f"{which}: {_TWICE}"
        remedy = "both entries are kept and shown; iai-mcp verify --repair notes that you accept it"
        yield Finding(FindingKind.CONFLICT, Source.LEDGER, message, remedy)


def _of_conflicts(letters: int) -> Iterable[Finding]:
    if letters:
        message = f"{many(letters, 'dead letter')} whose number another entry has: {_TWICE}"
        remedy = "iai-mcp dead list, then dead retry or dead drop"
        yield Finding(FindingKind.CONFLICT, Source.DEAD_LETTERS, message, remedy)


def _lost(producers: Sequence[ProducerReport], remedy: str) -> Iterable[Finding]:
    for one in producers:
        if one.lost:
            message = f"{many(one.missing, 'entry')} of producer {one.producer}: {format_ranges(one.lost)}"
            yield Finding(FindingKind.LOST, Source.LEDGER, message, remedy)


def _of_lanes(lanes: Sequence[LaneReport]) -> Iterable[Finding]:
    for lane in lanes:
        for kind, message, remedy in _of_lane(lane):
            yield Finding(kind, Source.LANE, message, remedy)


def _of_lane(lane: LaneReport) -> Iterable[tuple[FindingKind, str, str]]:
    repair, where = "iai-mcp verify --repair", f"in lane {lane.lane}"
    if lane.doubled:
        message = f"{many(lane.doubled, 'row')} {where}"
        yield FindingKind.DOUBLED, message, f"{repair} removes them; reads leave them out"
    if lane.misplaced:
        message = f"{many(lane.misplaced, 'row')} {where}"
        yield FindingKind.MISPLACED, message, f"{repair} moves them to their lane"
    if lane.out_of_order:
        message = f"{many(len(lane.out_of_order), 'entry')} {where}, such as {lane.out_of_order[0]}"
        yield FindingKind.OUT_OF_ORDER, message, f"{repair} notes that you accept it; please report it"
    if lane.second:
        message = f"{many(len(lane.second), 'number')} of two entries {where}, such as {lane.second[0]}: {_TWICE}"
        yield FindingKind.CONFLICT, message, f"both are kept and shown; {repair} notes that you accept it"
    if lane.unknown:
        gone = many(len(lane.unknown_records), "memory that does not exist", "memories that do not exist")
        message = f"{many(lane.unknown, 'row')} {where} of {gone}"
        yield FindingKind.UNKNOWN_RECORDS, message, f"{repair} deletes them"
    if lane.unreadable:
        message = f"{many(lane.unreadable, 'row that is no entry', 'rows that are no entries')} {where}"
        yield FindingKind.UNSOUND_ROWS, message, f"{repair} makes dead letters of them"


def format_ranges(ranges: Ranges, limit: int = 8) -> str:
    """``1-3, 7``; of more than ``limit`` ranges only the first are shown, and the rest is counted."""
    parts = [f"{first}-{last}" if last > first else str(first) for first, last in ranges[:limit]]
    return ", ".join(parts) + (f" and {len(ranges) - limit} further ranges" if len(ranges) > limit else "")


def _common(first: Ranges, second: Ranges) -> Ranges:
    """The numbers in both, as ranges."""
    found = []
    left, right = list(first), list(second)
    while left and right:
        low, high = max(left[0][0], right[0][0]), min(left[0][1], right[0][1])
        if low <= high:
            found.append((low, high))
        (left if left[0][1] < right[0][1] else right).pop(0)
    return tuple(found)


def _size(ranges: Ranges) -> int:
    return sum(last - first + 1 for first, last in ranges)


def _names(lane: LaneRows, rows: Any) -> tuple[str, ...]:
    codes = np.unique(lane.records[rows])
    return tuple(lane.ids.take(pa.array(codes)).to_pylist())


def _lane_or_none(text: str, lanes: int) -> int | None:
    try:
        return lane_of(UUID(text), lanes)
    except ValueError:
        return None
