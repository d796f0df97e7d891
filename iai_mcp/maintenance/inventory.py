"""Reads every place that can hold an entry: tables, logs, spill folder and Redis. Changes nothing.

Places are read in the direction in which entries move, so that one that moves meanwhile is seen at least once.
What cannot be read becomes a finding, never a crash.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from iai_mcp.common.arrays import Ints, repeated
from iai_mcp.common.wording import many
from iai_mcp.config import Settings, overflow_dir
from iai_mcp.entries.fields import key_fault
from iai_mcp.entries.identity import is_second_id
from iai_mcp.entries.wire import Outline
from iai_mcp.errors import IaiMcpError
from iai_mcp.maintenance.ledger import EntryState, LedgerBuilder, ProducerLedger
from iai_mcp.maintenance.letters import letter_troubles
from iai_mcp.maintenance.pending import pending_in_spill
from iai_mcp.spill.listing import outlines
from iai_mcp.spill.names import SET_ASIDE_PATTERN
from iai_mcp.storage.dead_letters import DeadLetters
from iai_mcp.storage.exclusions import ExclusionReason, Exclusions, Key
from iai_mcp.storage.layout import RECORDS, Layout
from iai_mcp.storage.live_producers import SignOfLife, signs_of_life
from iai_mcp.storage.meta import StoreMeta, read_meta
from iai_mcp.storage.producer_log import ProducerLog
from iai_mcp.storage.tables.catalog import scan
from iai_mcp.storage.tables.lance import retry_vanished
from iai_mcp.storage.tables.row_checks import sound
from iai_mcp.storage.tombstones import Tombstones

__all__ = ["Finding", "FindingKind", "Inventory", "LaneRows", "Source", "stale_files", "take_inventory"]

_ACCEPTED_MAX = 10_000_000  # numbers of one run; nobody has accepted as many, but a file may say so
STALE_S = 60.0  # a younger temporary file may still be in use
_KEYS = ("entry_id", "record_id", "producer", "producer_seq", "seq")
_NO_KEYS = pa.table({key: pa.array([], pa.int64() if "seq" in key else pa.string()) for key in _KEYS})
_STATES = {
    ExclusionReason.UNKNOWN: EntryState.UNKNOWN,
    ExclusionReason.FORGOTTEN: EntryState.FORGOTTEN,
    ExclusionReason.DUPLICATE: EntryState.DUPLICATE,
    ExclusionReason.REFUSED: EntryState.REFUSED,
    ExclusionReason.DROPPED: EntryState.DROPPED,
    ExclusionReason.LOST: EntryState.ACCEPTED,
}


class FindingKind(StrEnum):
    """What is wrong. Programs test this, never the message."""

    LOST = "lost"
    DOUBLED = "doubled"
    MISPLACED = "misplaced"
    OUT_OF_ORDER = "out_of_order"
    CONFLICT = "conflict"
    UNPROVEN = "unproven"
    NOT_KEPT = "not_kept"
    UNKNOWN_RECORDS = "unknown_records"
    UNREADABLE = "unreadable"
    UNSOUND_ROWS = "unsound_rows"
    ORPHANED = "orphaned"
    SET_ASIDE = "set_aside"
    PASSED_OVER = "passed_over"
    HALF_FORGOTTEN = "half_forgotten"
    STALE_FILES = "stale_files"


class Source(StrEnum):
    """Where something was found, or could not be read."""

    SPILL = "spill"
    REDIS = "redis"
    DEAD_LETTERS = "dead_letters"
    LANE = "lane"
    RECORDS = "records"
    EXCLUSIONS = "exclusions"
    PRODUCERS = "producers"
    FOLDER = "folder"
    LEDGER = "ledger"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong: a code for programs, a message for people, and what to do about it."""

    kind: FindingKind
    source: Source
    message: str
    remedy: str


@dataclass(slots=True)
class LaneRows:
    """A lane's rows as columns, in the order of their lane numbers.

    Attributes:
        keys: ledger keys.
        seqs: the lane's own numbers.
        records: for each row, the position of its record in ``ids``.
        ids: the distinct record ids, as texts.
        repeats: for each row, whether its ``entry_id`` came before.
        second: for each row, whether it has the number of an earlier entry, and a key of its own.
        unreadable: number of rows that are no entries; they are in none of the columns.
    """

    number: int
    keys: Ints
    seqs: Ints
    records: Ints
    ids: pa.Array
    repeats: Any
    second: Any
    unreadable: int = 0


@dataclass(slots=True)
class Inventory:
    """Everything that one inspection found.

    Attributes:
        live: producers whose process runs and may hold entries in its memory.
        embedded: those of them whose entries wait in that memory alone.
        conflicts: number of dead letters whose number another entry has.
        killed: number of producers that ended without a word.
        broken: lanes that cannot be read, and why.
        records: the ids of all memories; None where they cannot be read.
        accepted_late: keys of entries that an operator let be out of order.
        accepted_shared: keys that an operator let two entries have.
        unreadable: what could not be read.
        unproven: keys of dead letters that prove no producer; they may be another's.
        ledgers: one for each producer.
    """

    layout: Layout
    settings: Settings
    meta: StoreMeta
    builder: LedgerBuilder = field(default_factory=LedgerBuilder)
    live: set[str] = field(default_factory=set)
    embedded: set[str] = field(default_factory=set)
    killed: int = 0
    conflicts: int = 0
    lanes: list[LaneRows] = field(default_factory=list)
    broken: dict[int, str] = field(default_factory=dict)
    records: pa.Array | None = None
    accepted_late: list[Ints] = field(default_factory=list)
    accepted_shared: list[Ints] = field(default_factory=list)
    unreadable: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unproven: list[Key] = field(default_factory=list)
    ledgers: list[ProducerLedger] = field(default_factory=list)

    def guarded(self, source: Source, name: str, remedy: str, read: Callable[[], None]) -> str | None:
        """Run ``read``. If it fails, note a finding and return the reason, else None."""
        try:
            read()
            return None
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001  a panic of LanceDB's Rust is no Exception
            reason = _first_line(error)
            message = f"{name} cannot be read: {reason}"
            self.unreadable.append(Finding(FindingKind.UNREADABLE, source, message, remedy))
            return reason

    def warn(self, kind: FindingKind, source: Source, message: str, remedy: str) -> None:
        """Note something that an operator should know and that breaks no promise."""
        self.warnings.append(Finding(kind, source, message, remedy))


def take_inventory(layout: Layout, settings: Settings) -> Inventory:
    """Inspect everything now.

    Raises:
        StoreError: ``store.json`` cannot be read.
    """
    found = Inventory(layout, settings, read_meta(layout))
    signs: list[SignOfLife] = []
    remedy = f"check the permissions of {layout.locks}"
    found.guarded(Source.PRODUCERS, "the files of running producers", remedy, lambda: _signs(found, signs))
    _read_what_waits(found)
    remedy = f"look at {layout.producers}"
    found.guarded(Source.PRODUCERS, "the log of producers that ended", remedy, lambda: _handed_out(found, signs))
    for number in range(found.meta.lanes):
        folder = layout.table(found.meta.lane_table(number))
        if folder.exists():  # made on first use
            remedy = f"restore {folder} from a backup"
            error = found.guarded(Source.LANE, f"lane {number}", remedy, lambda n=number: _lane(found, n))  # type: ignore[misc]
            if error is not None:
                found.broken[number] = error
    remedy = f"restore {layout.records} from a backup"
    found.guarded(Source.RECORDS, "the table of memories", remedy, lambda: _records(found))
    remedy = f"look at {layout.exclusions}"
    found.guarded(Source.EXCLUSIONS, "the log of left-out entries", remedy, lambda: _exclusions(found))
    remedy = f"check the permissions of {layout.root}"
    found.guarded(Source.FOLDER, "the store's folder", remedy, lambda: _stale(found))
    if found.embedded:
        names = ", ".join(sorted(found.embedded))
        found.notes.append(
            f"running clients may hold entries in memory, which cannot be counted: producers {names}"
        )
    found.builder.fill(EntryState.UNPROVEN, found.unproven)
    found.ledgers = found.builder.build()
    return found


def _signs(found: Inventory, signs: list[SignOfLife]) -> None:
    """Which producers live; ``signs`` gets what each one's file says."""
    signs += signs_of_life(found.layout.locks)
    found.live = {sign.producer for sign in signs if sign.alive}
    found.embedded = {sign.producer for sign in signs if sign.alive and sign.embedded}


def _handed_out(found: Inventory, signs: list[SignOfLife]) -> None:
    """How many entries each producer has handed out, from its file or, once it ended, from the log."""
    ended = [*ProducerLog(found.layout.producers).read()]
    dead = [sign for sign in signs if not sign.alive]
    found.killed = len(dead) + sum(one.killed for one in ended)
    if found.killed:
        who = many(found.killed, "producer was", "producers were")
        found.notes.append(f"{who} killed: entries of the second before that may be missing from this count")
    if not any(finding.source is Source.REDIS for finding in found.unreadable):  # else they may all be there
        known = [(one.producer, one.handed_out) for one in signs]
        for producer, handed_out in known + [(one.producer, one.handed_out) for one in ended]:
            found.builder.expect(producer, handed_out)


def _read_what_waits(found: Inventory) -> None:
    spill, layout = overflow_dir(found.settings), found.layout
    remedy = f"check the permissions of {spill}"
    found.guarded(Source.SPILL, "the spill folder", remedy, lambda: _spilled(found))
    if found.settings.redis_url:
        remedy = "start Redis, or correct IAI_MCP_REDIS_URL, and verify again"
        found.guarded(Source.REDIS, "what waits in Redis", remedy, lambda: _in_redis(found))
    found.guarded(Source.DEAD_LETTERS, "the dead letters", f"look at {layout.dead_letters}", lambda: _dead(found))


def _spilled(found: Inventory) -> None:
    spill = pending_in_spill(found.settings, found.meta.store_id)
    for file in spill.files:
        state = EntryState.SET_ASIDE if file.set_aside else EntryState.SPILLED
        _add(found, state, outlines(file.path), hearsay=file.set_aside)
    if orphaned := spill.orphaned:
        entries = many(sum(file.entries for file in orphaned), "entry")
        message = f"{many(len(orphaned), 'spill file')} with {entries}, held by no living process"
        found.warn(FindingKind.ORPHANED, Source.SPILL, message, "iai-mcp spill replay")
    for odd in spill.odd:
        message = f"{odd.path} is {odd.kind}, and no spill file"
        found.warn(FindingKind.PASSED_OVER, Source.SPILL, message, "see what made it, then remove it")
    if aside := spill.set_aside:
        message = f"{many(len(aside), 'spill file')} with lines that are no entries, set aside"
        remedy = f"look at {spill.folder}/{SET_ASIDE_PATTERN}, then remove them"
        found.warn(FindingKind.SET_ASIDE, Source.SPILL, message, remedy)


def _add(found: Inventory, state: EntryState, parcels: Iterable[Outline | None], *, hearsay: bool = False) -> None:
    by_producer: dict[str, list[int]] = {}
    for parcel in parcels:
        if parcel is not None and parcel.store == found.meta.store_id and not key_fault(parcel.producer, 1):
            by_producer.setdefault(parcel.producer, []).extend(parcel.seqs)
    for producer, seqs in by_producer.items():
        found.builder.add_seqs(state, producer, seqs, hearsay=hearsay)


def _in_redis(found: Inventory) -> None:
    from iai_mcp.broker.redis.pending import waiting_in

    malformed = 0
    for lane in waiting_in(found.settings, found.meta.store_id, found.meta.lanes):
        _add(found, EntryState.PENDING, lane.pending)
        _add(found, EntryState.IN_FLIGHT, lane.in_flight)
        malformed += lane.pending.count(None) + lane.in_flight.count(None)
    if malformed:
        items = f"{many(malformed, 'item')} in Redis that cannot be read as entries"
        found.notes.append(f"{items}: a worker will make dead letters of them")


def _dead(found: Inventory) -> None:
    kept = DeadLetters(found.layout)
    letters = kept.all()
    by_producer: dict[tuple[str, bool], list[int]] = {}
    for letter in letters:
        if letter.unproven:  # its numbers may be another's
            found.unproven += letter.keys
            continue
        for producer, seq in letter.keys:
            by_producer.setdefault((producer, letter.raw is not None), []).append(seq)
    for (producer, raw), seqs in by_producer.items():  # anybody may have written bytes that were refused
        found.builder.add_seqs(EntryState.DEAD, producer, seqs, hearsay=raw)
    found.conflicts = sum(letter.conflict for letter in letters)
    for kind, message, remedy in letter_troubles(kept, letters):
        found.warn(FindingKind(kind), Source.DEAD_LETTERS, message, remedy)
    if unnamed := sum(not letter.keys for letter in letters):
        found.notes.append(f"{unnamed} dead letters name no producer; lost entries may be among them")


def _lane(found: Inventory, number: int) -> None:
    rows, unsound = _rows_of(found.layout.root, found.meta.lane_table(number))
    rows = rows.take(pc.sort_indices(rows["seq"]))
    records = rows["record_id"].combine_chunks().dictionary_encode()
    producers = rows["producer"].combine_chunks().dictionary_encode()
    keys = found.builder.keys(producers.dictionary.to_pylist(), producers.indices, rows["producer_seq"])
    found.builder.add(EntryState.APPLIED, keys)
    for row in unsound.to_pylist():  # its number may be sound all the same
        if key_fault(row["producer"], row["producer_seq"]) is None:
            found.builder.add_seqs(EntryState.APPLIED, row["producer"], [row["producer_seq"]], hearsay=True)
    codes = np.asarray(records.indices, np.int64)
    seqs = np.asarray(rows["seq"], np.int64)
    repeats, second = _chosen_ids(rows)
    found.lanes.append(LaneRows(number, keys, seqs, codes, records.dictionary, repeats, second, len(unsound)))


@retry_vanished
def _rows_of(root: Path, name: str) -> tuple[pa.Table, pa.Table]:
    """The keys of a lane's rows, and those of rows that are no entries.

    Every column is read, because each is a file range of its own that may be broken.
    """
    batches, bad = [_NO_KEYS], [_NO_KEYS]
    for batch in scan(root, name):
        rows = pa.Table.from_batches([batch])
        kept, keys = sound(rows), rows.select([*_KEYS])
        batches.append(keys.filter(pa.array(kept)).cast(_NO_KEYS.schema))
        bad.append(keys.filter(pa.array(~kept)).cast(_NO_KEYS.schema))
    return pa.concat_tables(batches), pa.concat_tables(bad)


def _chosen_ids(rows: pa.Table) -> tuple[Any, Any]:
    """Mark rows that repeat an ``entry_id`` chosen by a caller, and those with the number of an earlier entry.

    Other ids only spell the row's key.
    """
    own = pc.binary_join_element_wise(rows["producer"], rows["producer_seq"].cast(pa.string()), "-")
    chosen = np.asarray(pc.not_equal(rows["entry_id"], own))
    found, second = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
    if chosen.any():
        kept = rows.filter(pa.array(chosen)).select(["entry_id", "producer", "producer_seq"])
        found[chosen] = repeated(
            np.asarray(kept["entry_id"].combine_chunks().dictionary_encode().indices, np.int64)
        )
        second[chosen] = [is_second_id(*key) for key in zip(*(c.to_pylist() for c in kept.columns), strict=True)]
    return found, second


def _records(found: Inventory) -> None:
    ids = [batch.column("id") for batch in scan(found.layout.root, RECORDS, skip_vectors=True)]
    found.records = pa.concat_arrays(ids) if ids else pa.array([], pa.string())
    forgotten = pa.array([str(record_id) for record_id in Tombstones(found.layout.tombstones).ids()], pa.string())
    for half in forgotten.filter(pc.is_in(forgotten, value_set=found.records)).to_pylist():
        message = f"a process died while it forgot memory {half}, or inserted it again"
        remedy = f"iai-mcp forget {half}, or capture it again"
        found.warn(FindingKind.HALF_FORGOTTEN, Source.RECORDS, message, remedy)


def _exclusions(found: Inventory) -> None:
    for why, producer, first, last in Exclusions(found.layout.exclusions).read():
        if why not in (ExclusionReason.LATE, ExclusionReason.SHARED):
            found.builder.add_span(_STATES[why], producer, first, last)
            continue
        seqs = np.arange(max(1, first), min(last, first + _ACCEPTED_MAX) + 1)
        keys = found.builder.keys([producer], np.zeros(len(seqs), np.int64), seqs)
        (found.accepted_late if why is ExclusionReason.LATE else found.accepted_shared).append(keys)


def _stale(found: Inventory) -> None:
    if files := stale_files(found.layout.root):
        message = f"{len(files)} temporary files were left by processes that died, such as {files[0]}"
        found.warn(FindingKind.STALE_FILES, Source.FOLDER, message, "iai-mcp verify --repair")


def stale_files(root: Path) -> list[Path]:
    """Temporary files below ``root`` that are too old to be in use."""
    found, old = [], time.time() - STALE_S
    for folder, _, names in os.walk(root):  # os.walk skips what vanishes meanwhile
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
