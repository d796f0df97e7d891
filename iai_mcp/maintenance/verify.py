"""Does the account add up? handed out = applied + left out + dead + waiting; what is missing has a name.

Nothing is changed here. Something is only called broken once two looks, a moment apart, agree.
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
from iai_mcp.maintenance.inventory import Finding, LaneRows, Sighting, look
from iai_mcp.maintenance.ledger import Account, Place, out_of_order
from iai_mcp.storage.layout import Layout

__all__ = ["Finding", "LaneLook", "Ledger", "Report", "layout_of", "said_ranges", "verify"]

SETTLE_S = 1.0
Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class LaneLook:
    """One lane's table. ``error`` says why it could not be read; the counts are then of no use.

    Attributes:
        doubled: rows that repeat the key of another.
        misplaced: rows whose record belongs to another lane; ``astray`` are these records.
        out_of_order: keys of entries that are read after a later one of their producer.
        strangers: rows whose record does not exist; ``unknown`` are these records.
        unreadable: rows that cannot be an entry.
    """

    lane: int
    rows: int = 0
    doubled: int = 0
    misplaced: int = 0
    strangers: int = 0
    unreadable: int = 0
    out_of_order: tuple[str, ...] = ()
    astray: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Ledger:
    """One producer's account: ``handed_out`` is the sum of ``counts``, ``in_memory`` and what is ``lost``.

    Attributes:
        in_memory: entries that only the producer's living process can still hold, or that moved as we looked.
        lost: numbers that are nowhere, as inclusive ranges.
    """

    producer: str
    handed_out: int
    counts: Mapping[str, int]
    in_memory: int
    lost: Ranges

    @property
    def missing(self) -> int:
        """How many entries are lost."""
        return _size(self.lost)


@dataclass(frozen=True, slots=True)
class Report:
    """What there was to see; ``clean`` where nothing is broken."""

    store: str
    store_id: str
    ledgers: list[Ledger]
    lanes: list[LaneLook]
    breaches: list[Finding]
    warnings: list[Finding]
    notes: list[str]

    @property
    def clean(self) -> bool:
        """Whether the account adds up; entries that wait are no breach."""
        return not self.breaches

    @property
    def total(self) -> dict[str, int]:
        """The identity over all producers."""
        found = {"handed_out": sum(ledger.handed_out for ledger in self.ledgers)}
        for place in Place:
            name = place.name.lower()
            found[name] = sum(ledger.counts.get(name, 0) for ledger in self.ledgers)
        found["in_memory"] = sum(ledger.in_memory for ledger in self.ledgers)
        return {**found, "lost": sum(ledger.missing for ledger in self.ledgers)}

    def document(self) -> dict[str, Any]:
        """As plain JSON types."""
        producers = [{**asdict(ledger), "lost": [*ledger.lost]} for ledger in self.ledgers]
        found = {"clean": self.clean, "store": self.store, "store_id": self.store_id, "total": self.total}
        rest = {"breaches": self.breaches, "warnings": self.warnings, "notes": self.notes}
        lanes = [asdict(lane) for lane in self.lanes]
        built: dict[str, Any] = msgspec.to_builtins({**found, "producers": producers, "lanes": lanes, **rest})
        return built


def layout_of(path: str | Path | None, settings: Settings) -> Layout:
    """Where the store lies, which must be there: looking makes none.

    Raises:
        ConfigError: there is no store.
    """
    layout = Layout((Path(path).expanduser() if path is not None else settings.store_path).absolute())
    if not layout.meta.exists():
        raise ConfigError(f"there is no store at {layout.root}; --store or IAI_MCP_STORE names one")
    return layout


def verify(layout: Layout, settings: Settings, *, settle: float = SETTLE_S) -> Report:
    """Look; where something seems broken look again after ``settle`` seconds, for entries move meanwhile.

    Raises:
        StoreError: ``store.json`` cannot be read.
    """
    first = look(layout, settings)
    report = _judged(first, None)
    if report.clean:
        return report
    time.sleep(settle)
    return _judged(look(layout, settings), first)


def _judged(seen: Sighting, before: Sighting | None) -> Report:
    """What a look means, and what of it an earlier one has seen as well."""
    by_lane = {lane.number: _lane_look(seen, lane) for lane in seen.lanes}
    by_lane |= {number: LaneLook(number, error=error) for number, error in seen.broken.items()}
    looks = [by_lane.get(number, LaneLook(number)) for number in range(seen.meta.lanes)]
    alive = seen.alive | (before.alive if before else set())
    earlier = {one.producer: one.gaps for one in before.accounts} if before else None
    ledgers = [_ledger(account, alive, earlier) for account in seen.accounts]
    found = [*seen.unreadable, *_lost(ledgers, _mend_of_loss(seen)), *_of_lanes(looks)]
    return Report(str(seen.layout.root), seen.meta.store_id, ledgers, looks, found, seen.warnings, seen.notes)


def _ledger(account: Account, alive: set[str], earlier: Mapping[str, Ranges] | None) -> Ledger:
    lost = account.gaps if account.producer not in alive else ()
    if earlier is not None:
        lost = _common(lost, earlier.get(account.producer, ()))
    counts = {place.name.lower(): number for place, number in account.counts.items() if number}
    return Ledger(account.producer, account.handed_out, counts, account.missing - _size(lost), lost)


def _mend_of_loss(seen: Sighting) -> str:
    if seen.unreadable:
        return "mend first what cannot be read: they may be there; then verify again"
    accept = "iai-mcp verify --repair notes that you accept it"
    if not seen.settings.redis_url and any(seen.layout.lane_tokens()):
        return f"set IAI_MCP_REDIS_URL where this store's Redis may hold them, else {accept}"
    return accept


def _lane_look(seen: Sighting, lane: LaneRows) -> LaneLook:
    doubled = repeated(lane.keys) | lane.again
    homes = [_lane_or_none(text, seen.meta.lanes) for text in lane.ids.to_pylist()]
    astray = np.array([home is not None and home != lane.number for home in homes], bool)[lane.records]
    nobody = np.array([home is None for home in homes], bool)[lane.records]
    strange = np.zeros(len(lane.keys), bool)
    if seen.records is not None:
        known = pc.is_in(lane.ids, value_set=seen.records).to_numpy(zero_copy_only=False)
        strange = ~known[lane.records] & ~nobody
    excused = np.isin(lane.keys, np.concatenate(seen.late)) if seen.late else np.zeros(len(lane.keys), bool)
    single = ~doubled & ~excused
    late = out_of_order(lane.records[single], lane.seqs[single], lane.keys[single])
    return LaneLook(
        lane.number,
        rows=len(lane.keys) + lane.unreadable,
        doubled=int(doubled.sum()),
        misplaced=int(astray.sum()),
        strangers=int(strange.sum()),
        unreadable=lane.unreadable + int(nobody.sum()),
        out_of_order=tuple(seen.book.name(key) for key in lane.keys[single][late]),
        astray=_names(lane, astray & ~strange),
        unknown=_names(lane, strange),
    )


def _lost(ledgers: Sequence[Ledger], mend: str) -> Iterable[Finding]:
    for ledger in ledgers:
        if ledger.lost:
            said = f"{many(ledger.missing, 'entry')} of producer {ledger.producer}: {said_ranges(ledger.lost)}"
            yield Finding("lost", said, mend)


def _of_lanes(looks: Sequence[LaneLook]) -> Iterable[Finding]:
    repair = "iai-mcp verify --repair"
    for lane in looks:
        where = f"in lane {lane.lane}"
        if lane.doubled:
            yield Finding(
                "doubled", f"{many(lane.doubled, 'row')} {where}", f"{repair} removes them; no read shows them"
            )
        if lane.misplaced:
            yield Finding(
                "misplaced", f"{many(lane.misplaced, 'row')} {where}", f"{repair} moves them to their lane"
            )
        if lane.out_of_order:
            said = f"{many(len(lane.out_of_order), 'entry')} {where}, such as {lane.out_of_order[0]}"
            yield Finding("disordered", said, f"{repair} notes that you accept it; please report it")
        if lane.strangers:
            gone = many(len(lane.unknown), "memory that does not exist", "memories that do not exist")
            said = f"{many(lane.strangers, 'row')} {where} of {gone}"
            yield Finding("strangers", said, f"{repair} deletes them")
        if lane.unreadable:
            said = f"{many(lane.unreadable, 'row that is no entry', 'rows that are no entries')} {where}"
            yield Finding("unreadable", said, f"restore the table of lane {lane.lane} from a backup")


def said_ranges(ranges: Ranges, most: int = 8) -> str:
    """``1-3, 7``, cut where there are many."""
    parts = [f"{first}-{last}" if last > first else str(first) for first, last in ranges[:most]]
    return ", ".join(parts) + (f" and {len(ranges) - most} further ranges" if len(ranges) > most else "")


def _common(first: Ranges, second: Ranges) -> Ranges:
    """The numbers that lie in both."""
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
