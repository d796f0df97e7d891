"""One look at everything that can hold an entry: tables, logs, spill folder and Redis, none of which it changes.

Places are read in the direction in which entries move, so that one that moves meanwhile is seen at least
once; what cannot be read is a finding, never a crash.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from iai_mcp.common.arrays import Ints, repeated
from iai_mcp.common.wording import many
from iai_mcp.config import Settings, overflow_dir
from iai_mcp.entries.wire import Outline
from iai_mcp.errors import IaiMcpError
from iai_mcp.maintenance.ledger import Account, Book, Place
from iai_mcp.spill.listing import listing, outlines
from iai_mcp.spill.names import SET_ASIDE_PATTERN
from iai_mcp.storage.dead_letters import DeadLetters
from iai_mcp.storage.exclusions import ExclusionReason, Exclusions
from iai_mcp.storage.layout import RECORDS, Layout
from iai_mcp.storage.live_producers import live_producers
from iai_mcp.storage.meta import StoreMeta, read_meta
from iai_mcp.storage.tables.catalog import scan
from iai_mcp.storage.tables.lance import retry_vanished
from iai_mcp.storage.tombstones import Tombstones

__all__ = ["Finding", "LaneRows", "Sighting", "look", "old_strays"]

STRAY_S = 60.0  # a younger temporary file may be somebody's work
_KEYS = ("entry_id", "record_id", "producer", "producer_seq", "seq")
_ENDED = {
    ExclusionReason.UNKNOWN: Place.UNKNOWN,
    ExclusionReason.FORGOTTEN: Place.FORGOTTEN,
    ExclusionReason.DUPLICATE: Place.DUPLICATE,
    ExclusionReason.REFUSED: Place.REFUSED,
    ExclusionReason.DROPPED: Place.DROPPED,
    ExclusionReason.LOST: Place.ACCEPTED,
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be, and what to do about it."""

    kind: str
    said: str
    mend: str


@dataclass(slots=True)
class LaneRows:
    """A lane's rows in the order of its numbers, as columns."""

    number: int
    keys: Ints
    seqs: Ints
    records: Ints  # codes: places in ids
    ids: pa.Array
    again: Any  # rows whose entry_id came before
    unreadable: int = 0


@dataclass(slots=True)
class Sighting:
    """What one look has seen.

    Attributes:
        alive: producers whose process lives and may hold entries in its memory.
        broken: lanes that cannot be read, and why.
        records: the ids of all memories; None where they cannot be read.
        late: keys that people let be out of turn.
        unreadable: what could not be read.
    """

    layout: Layout
    settings: Settings
    meta: StoreMeta
    book: Book = field(default_factory=Book)
    alive: set[str] = field(default_factory=set)
    lanes: list[LaneRows] = field(default_factory=list)
    broken: dict[int, str] = field(default_factory=dict)
    records: pa.Array | None = None
    late: list[Ints] = field(default_factory=list)
    unreadable: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    accounts: list[Account] = field(default_factory=list)

    def guarded(self, what: str, mend: str, read: Callable[[], None]) -> str | None:
        """Run ``read``; why it failed, or None."""
        try:
            read()
            return None
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001  a panic of LanceDB's Rust is no Exception
            said = _first_line(error)
            self.unreadable.append(Finding("unreadable", f"{what} cannot be read: {said}", mend))
            return said


def look(layout: Layout, settings: Settings) -> Sighting:
    """Look at everything now.

    Raises:
        StoreError: ``store.json`` cannot be read.
    """
    seen = Sighting(layout, settings, read_meta(layout))
    seen.alive = live_producers(layout.locks)
    spill = overflow_dir(settings)
    seen.guarded("the spill folder", f"look after the permissions of {spill}", lambda: _spilled(seen, spill))
    if settings.redis_url:
        mend = "start Redis, or mend IAI_MCP_REDIS_URL, and verify again"
        seen.guarded("what waits in Redis", mend, lambda: _in_redis(seen))
    seen.guarded("the dead letters", f"look at {layout.dead_letters}", lambda: _dead(seen))
    for number in range(seen.meta.lanes):
        folder = layout.table(seen.meta.lane_table(number))
        if folder.exists():  # made on first use
            mend = f"restore {folder} from a backup"
            error = seen.guarded(f"lane {number}", mend, lambda n=number: _lane(seen, n))  # type: ignore[misc]
            if error is not None:
                seen.broken[number] = error
    mend = f"restore {layout.records} from a backup"
    seen.guarded("the table of memories", mend, lambda: _records(seen))
    seen.guarded("the log of left-out entries", f"look at {layout.exclusions}", lambda: _exclusions(seen))
    seen.guarded("the store's folder", f"look after the permissions of {layout.root}", lambda: _strays(seen))
    if seen.alive:
        names = ", ".join(sorted(seen.alive))
        seen.notes.append(f"what living processes hold in memory cannot be seen from here: producers {names}")
    seen.accounts = seen.book.accounts()
    return seen


def _spilled(seen: Sighting, folder: Path) -> None:
    mine = seen.meta.store_id
    orphaned, aside = [], []
    for file in listing(folder):
        if file.store not in (mine, None):
            continue
        place = Place.SET_ASIDE if file.set_aside else Place.SPILLED
        _add(seen, place, outlines(file.path))
        if file.set_aside:
            aside.append(file)
        elif not file.held:
            orphaned.append(file)
    if orphaned:
        entries = many(sum(file.entries for file in orphaned), "entry")
        said = f"{many(len(orphaned), 'spill file')} with {entries}, held by no living process"
        seen.warnings.append(Finding("orphaned", said, "iai-mcp spill replay"))
    if aside:
        said = f"{many(len(aside), 'spill file')} with lines that are no entries, set aside"
        seen.warnings.append(Finding("set_aside", said, f"look at {folder}/{SET_ASIDE_PATTERN}, then remove them"))


def _add(seen: Sighting, place: Place, outlines: Iterable[Outline | None]) -> None:
    by_producer: dict[str, list[int]] = {}
    for outline in outlines:
        if outline is not None and outline.store == seen.meta.store_id:
            by_producer.setdefault(outline.producer, []).extend(outline.seqs)
    for producer, seqs in by_producer.items():
        seen.book.add_seqs(place, producer, seqs)


def _in_redis(seen: Sighting) -> None:
    from iai_mcp.broker.redis.pending import waiting_in

    poison = 0
    for lane in waiting_in(seen.settings, seen.meta.store_id, seen.meta.lanes):
        _add(seen, Place.PENDING, lane.pending)
        _add(seen, Place.IN_FLIGHT, lane.in_flight)
        poison += lane.pending.count(None) + lane.in_flight.count(None)
    if poison:
        said = f"{many(poison, 'item')} in Redis that cannot be read as entries"
        seen.notes.append(f"{said}: a worker will make dead letters of them")


def _dead(seen: Sighting) -> None:
    letters = DeadLetters(seen.layout).all()
    by_producer: dict[str, list[int]] = {}
    for letter in letters:
        for producer, seq in letter.keys:
            by_producer.setdefault(producer, []).append(seq)
    for producer, seqs in by_producer.items():
        seen.book.add_seqs(Place.DEAD, producer, seqs)
    if raw := sum(not letter.keys for letter in letters):
        seen.notes.append(f"{raw} dead letters do not say whose they are; what is lost may be among them")


def _lane(seen: Sighting, number: int) -> None:
    rows, unreadable = _rows_of(seen.layout.root, seen.meta.lane_table(number))
    rows = rows.take(pc.sort_indices(rows["seq"]))
    records = rows["record_id"].combine_chunks().dictionary_encode()
    producers = rows["producer"].combine_chunks().dictionary_encode()
    keys = seen.book.keys(producers.dictionary.to_pylist(), producers.indices, rows["producer_seq"])
    seen.book.add(Place.APPLIED, keys)
    codes = np.asarray(records.indices, np.int64)
    seqs = np.asarray(rows["seq"], np.int64)
    again = _again(rows)
    seen.lanes.append(LaneRows(number, keys, seqs, codes, records.dictionary, again, unreadable))


@retry_vanished
def _rows_of(root: Path, name: str) -> tuple[pa.Table, int]:
    """The keys of a lane's rows, and how many rows are no entries; each column is read, for each may be broken."""
    batches, bad = [], 0
    for batch in scan(root, name):
        bad += _bad_rests(batch.column("rest"))
        batches.append(batch.select([*_KEYS]))
    if not batches:
        return pa.table({key: pa.array([], pa.int64() if "seq" in key else pa.string()) for key in _KEYS}), 0
    rows = pa.Table.from_batches(batches)
    sound = pc.and_(pc.greater(rows["producer_seq"], 0), pc.less(rows["producer_seq"], 1 << 40))
    for key in _KEYS:
        sound = pc.and_(sound, pc.is_valid(rows[key]))
    kept = rows.filter(sound)
    return kept, bad + len(rows) - len(kept)


def _bad_rests(column: pa.Array) -> int:
    bad = 0
    for text in column.drop_null().to_pylist() if column.null_count < len(column) else ():
        try:
            bad += not isinstance(msgspec.json.decode(text), dict)
        except msgspec.DecodeError:
            bad += 1
    return bad


def _again(rows: pa.Table) -> Any:
    """Which rows repeat an ``entry_id`` that a caller chose; the others' ids say no more than their keys."""
    own = pc.binary_join_element_wise(rows["producer"], rows["producer_seq"].cast(pa.string()), "-")
    chosen = np.asarray(pc.not_equal(rows["entry_id"], own))
    found = np.zeros(len(rows), bool)
    if chosen.any():
        ids = rows["entry_id"].combine_chunks().filter(pa.array(chosen)).dictionary_encode()
        found[chosen] = repeated(np.asarray(ids.indices, np.int64))
    return found


def _records(seen: Sighting) -> None:
    ids = [batch.column("id") for batch in scan(seen.layout.root, RECORDS, skip_vectors=True)]
    seen.records = pa.concat_arrays(ids) if ids else pa.array([], pa.string())
    forgotten = pa.array([str(record_id) for record_id in Tombstones(seen.layout.tombstones).ids()], pa.string())
    for half in forgotten.filter(pc.is_in(forgotten, value_set=seen.records)).to_pylist():
        said = f"memory {half} was forgotten, or inserted again, by a process that did not get to the end"
        seen.warnings.append(Finding("half_forgotten", said, f"iai-mcp forget {half}, or capture it again"))


def _exclusions(seen: Sighting) -> None:
    for why, producer, first, last in Exclusions(seen.layout.exclusions).read():
        seqs = np.arange(max(1, first), last + 1)
        keys = seen.book.keys([producer], np.zeros(len(seqs), np.int64), seqs)
        if why is ExclusionReason.LATE:
            seen.late.append(keys)
        else:
            seen.book.add(_ENDED[why], keys)


def _strays(seen: Sighting) -> None:
    if found := old_strays(seen.layout.root):
        said = f"{len(found)} temporary files were left by processes that died, such as {found[0]}"
        seen.warnings.append(Finding("stray", said, "iai-mcp verify --repair"))


def old_strays(root: Path) -> list[Path]:
    """Files below ``root`` under a temporary name, that nobody can be writing any more."""
    found, old = [], time.time() - STRAY_S
    for folder, _, names in os.walk(root):  # which does not mind what vanishes meanwhile
        for name in names:
            path = Path(folder, name)
            if path.suffix.startswith(".tmp") or "#" in name:  # ours, and LanceDB's
                with suppress(FileNotFoundError):
                    if path.stat().st_mtime < old:
                        found.append(path)
    return found


def _first_line(error: BaseException) -> str:
    words = str(error).splitlines()[0] if str(error) else ""
    return words[:200] if isinstance(error, IaiMcpError) else f"{type(error).__name__}: {words[:200]}"
