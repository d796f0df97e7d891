"""One lane's table of provenance rows: one row per entry, keyed, numbered, durable, kept small.

Every write holds the lane's lock, checks the writer's fencing token right before the commit, and is on the disk
when it returns. Entries that are certainly new are appended; all others are merged on their key.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pyarrow as pa

from iai_mcp.common.arrays import repeated
from iai_mcp.common.decimals import plain
from iai_mcp.common.files import replace_file, sync_tree
from iai_mcp.common.regular_files import NOTE_MAX, read_regular
from iai_mcp.config import Settings
from iai_mcp.entries.batch import EntryBatch
from iai_mcp.entries.identity import dashed, entry_id
from iai_mcp.errors import LeaseLost
from iai_mcp.storage.dead_letters import DeadLetters, Raw
from iai_mcp.storage.exclusions import ExclusionReason, Exclusions, Key
from iai_mcp.storage.layout import Layout, lane_table
from iai_mcp.storage.tables.attempts import Attempts
from iai_mcp.storage.tables.erasure import Erasure
from iai_mcp.storage.tables.high_water import Spans, spans_of
from iai_mcp.storage.tables.key_conflicts import Apart, conflicts, set_apart
from iai_mcp.storage.tables.known_records import RecordsCache
from iai_mcp.storage.tables.lance import Table, quoted, quoted_list, translated
from iai_mcp.storage.tables.lane_numbering import LaneNumbering
from iai_mcp.storage.tables.lane_reader import MAINTAIN_EVERY, LaneReader
from iai_mcp.storage.tables.reports import AppendReport, Merged
from iai_mcp.storage.tables.row_checks import as_text, sound
from iai_mcp.storage.tables.rows import LANE_SCHEMA, codes, renumbered, to_arrow
from iai_mcp.storage.tombstones import Tombstones
from iai_mcp.storage.writer_lock import WriterLock
from iai_mcp.telemetry import observer
from iai_mcp.telemetry.events import emit

__all__ = ["INDEXED", "LaneContext", "LaneTable"]

INDEXED = ("entry_id", "record_id")

UNSOUND = "UnsoundRow: a row of the lane's table that cannot be an entry"
STRAY = "KeyConflict: another row with this key says something else; a writer without the lane's lock left one"
_GONE = (ExclusionReason.FORGOTTEN, ExclusionReason.UNKNOWN)
_KEY = ["entry_id", "producer", "producer_seq"]


@dataclass(frozen=True, slots=True)
class LaneContext:
    """The parts of a store that each of its lanes uses.

    Attributes:
        some_ids: which of the given record ids exist; see :meth:`RecordTable.some_ids`.
        check_here: raises where the store is not where it was opened.
    """

    layout: Layout
    settings: Settings
    tombstones: Tombstones
    exclusions: Exclusions
    some_ids: Callable[[Sequence[str], int], list[str]]
    check_here: Callable[[], None]


class LaneTable(LaneReader):
    """One lane: its table, its lock and its fencing token.

    Args:
        number: the lane's number, from 0.
        generation: how often the store's number of lanes was changed before.
        check_current: called before each write; raises if the store has other lanes by now.
    """

    def __init__(
        self,
        table: Table,
        number: int,
        generation: int,
        context: LaneContext,
        check_current: Callable[[], None] = lambda: None,
    ) -> None:
        layout, name = context.layout, lane_table(number, generation)
        super().__init__(table, layout.table(name), context.check_here)
        self._lock = WriterLock(layout.lane_lock(number), context.settings.lock_timeout)
        self._token_file = layout.lane_token(number)
        self._tombstones = context.tombstones
        self._exclusions = context.exclusions
        self._some_ids = context.some_ids
        self._number = number
        self._dead_letters = DeadLetters(layout)
        self._check_current = check_current
        self._erasure = Erasure(table, "rank", layout.erasure(name), context.settings.cleanup_age)
        self._attempts = Attempts(name, layout.upkeep_note(name))
        self._numbering = LaneNumbering(table)
        self._due = False
        self._distinct = -1  # rows in the table when it was last free of duplicate rows, and ours since

    # -- writing

    def append(
        self, batch: EntryBatch, cache: RecordsCache, token: int | None = None, lanes: int = 0
    ) -> AppendReport:
        """Write a batch in order; on return it is durable, and any process can read it.

        ``token``: the fencing token of the writer's lease; None without one. ``lanes``: as of
        :meth:`RecordsCache.learn`.

        Raises:
            LeaseLost: this lane has seen a later fencing token than ``token``.
            StoreUnavailable: the storage is unavailable; nothing was acknowledged, and the call may be repeated.
        """
        with translated(), self._lock.hold() as locked:
            self._check_current()
            known, unknown = self._without_old(batch), None
            if missing := self._missing(known.ids, cache, lanes):
                unknown = known.pick([one in missing for one in known.ids])
                known = known.pick([one not in missing for one in known.ids])
            self._check_fence(token)
            applied, second = self._apply(known, token, locked=locked) if known else (0, 0)
            if applied < len(known):
                self._note_duplicates(zip(known.keys, known.givers, known.seqs, strict=True))
            if unknown:
                self._exclusions.add(ExclusionReason.UNKNOWN, zip(unknown.givers, unknown.seqs, strict=True))
        return AppendReport(applied, len(known) - applied, len(batch) - len(known), second)

    def _without_old(self, batch: EntryBatch) -> EntryBatch:
        """The entries of memories that are here; those of forgotten ones whose id was used again are noted."""
        if (old := batch.before(self._tombstones.reused())) is None:
            return batch
        forgotten = batch.pick(old)
        self._exclusions.add(ExclusionReason.FORGOTTEN, zip(forgotten.givers, forgotten.seqs, strict=True))
        return batch.pick([not one for one in old])

    def _missing(self, ids: Sequence[str], cache: RecordsCache, lanes: int) -> set[str]:
        """The ids that have no record, or a deleted one."""
        if unseen := cache.unknown(ids):
            cache.learn(unseen, self._some_ids, lanes)
            unseen = cache.unknown(unseen)
        deleted = self._tombstones.hex()
        return unseen if deleted.isdisjoint(ids) else unseen.union(deleted.intersection(ids))

    def merge(self, rows: pa.Table, *, check_records: bool = True) -> Merged:
        """Add rows of another lane, or of another store, in the order given. They get this lane's ``seq``.

        Args:
            rows: columns of ``LANE_SCHEMA``.
            check_records: leave out the rows whose record does not exist. The caller notes those.

        Raises:
            StoreUnavailable: the store failed; the call may be repeated.
        """
        with translated(), self._lock.hold():
            self._check_current()
            known = pa.array([True] * len(rows), pa.bool_())
            if check_records:
                known = pa.compute.and_(self._has_record(rows["record_id"]), self._not_forgotten(rows))
            kept = rows.filter(known)
            applied, second = (
                self._write(lambda first: renumbered(kept, first), len(kept)) if len(kept) else (0, 0)
            )
            self._numbering.learn(None)
            unknown = rows.filter(pa.compute.invert(known))
            duplicate = len(rows) - len(unknown) - applied
            repeats = self._note_duplicates(_tuples(kept.select(_KEY))) if duplicate else 0
        return Merged(AppendReport(applied, duplicate, len(unknown), second), unknown, repeats)

    def _has_record(self, record_ids: pa.ChunkedArray) -> pa.Array:
        there = {*self._some_ids(record_ids.unique().to_pylist(), 0)}.difference(map(str, self._tombstones.ids()))
        return pa.compute.is_in(record_ids, value_set=pa.array([*there], pa.string()))

    def _not_forgotten(self, rows: pa.Table) -> pa.Array:
        """Which rows belong to no forgotten memory whose id is used again; those are among the exclusions."""
        reused = pa.array([*map(dashed, self._tombstones.reused())], pa.string())
        suspects = pa.compute.is_in(rows["record_id"], value_set=reused)
        if not pa.compute.any(suspects).as_py():
            return pa.compute.invert(suspects)
        keys = rows.filter(suspects)
        left_out = self._exclusions.covering({*_tuples(keys.select(["producer", "producer_seq"]))}, *_GONE)
        found = [key in left_out for key in _tuples(rows.select(["producer", "producer_seq"]))]
        return pa.compute.invert(pa.compute.and_(suspects, pa.array(found, pa.bool_())))

    def _apply(self, batch: EntryBatch, token: int | None, *, locked: bool) -> tuple[int, int]:
        spans = spans_of(batch) if batch.once() is batch else None
        written = self._write(
            lambda first: to_arrow(batch, first),
            len(batch),
            spans if locked else None,
            lambda: self._check_fence(token),
        )
        self._numbering.learn(spans)
        return written

    def _write(
        self,
        make: Callable[[int], pa.Table],
        count: int,
        spans: Spans | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> tuple[int, int]:
        """Write ``count`` rows durably; how many were new, and how many of these have the number of another entry.

        Args:
            make: makes the rows, numbered from a first ``seq`` on.
            spans: the rows' numbers by producer; rows that are certainly new are appended. None: always merge.
            check: called right before the commit.
        """
        started = time.time()
        version = self._numbering.catch_up()
        rows = make(self._numbering.next_seq)
        append = spans is not None and self._numbering.all_new(spans, version)
        apart = Apart(rows) if append else set_apart(rows, self._with_keys, self._forgotten)
        check()
        begun = time.perf_counter()
        if append:
            written, new = self._table.add(rows).version, count
        else:
            result = self._table.merge_insert("entry_id").when_not_matched_insert_all().execute(apart.rows)
            written, new = result.version, int(result.num_inserted_rows)
        merged = time.perf_counter()
        sync_tree(self._folder, since=started)
        observer.now.committed(merged - begun, time.perf_counter() - merged)
        self._distinct += new
        undisturbed = self._numbering.committed(count, new, version, written)
        self._due = self._due or not undisturbed or version // MAINTAIN_EVERY != written // MAINTAIN_EVERY
        if second := len(apart.second):
            found = {"lane": self._number, "entries": second, "producers": ",".join(apart.producers)}
            emit("key_conflict", level=logging.ERROR, **found)
        return new, second

    def _forgotten(self, keys: set[Key]) -> set[Key]:
        return self._exclusions.covering(keys, ExclusionReason.FORGOTTEN)

    def _with_keys(self, keys: list[str]) -> pa.Table:
        return self.rows([f"entry_id IN ({quoted_list(keys)})"])

    def _note_duplicates(self, entries: Iterable[tuple[str, str, int]]) -> int:
        """Note entries whose caller has given their id to an earlier entry: they never get a row. How many."""
        missing: set[Any] = set()
        given = [(key, producer, seq) for key, producer, seq in entries if key != entry_id(producer, seq)]
        if given:
            keys = [key for key, _, _ in given]
            rows = self.rows([f"entry_id IN ({quoted_list(keys)})"], ["producer", "producer_seq"])
            missing = {(producer, seq) for _, producer, seq in given}.difference(_tuples(rows))
            self._exclusions.add(ExclusionReason.DUPLICATE, missing)
        return len(missing)

    # -- deleting

    def set_aside_unsound(self) -> int:
        """Make dead letters of the rows that cannot be entries, and remove them; how many there were.

        Raises:
            StoreUnavailable: the store failed; the call may be repeated.
        """
        with translated(), self._lock.hold():
            rows = self._table.search().with_row_id(True).select(LANE_SCHEMA.names).to_arrow()
            bad = rows.filter(pa.array(~sound(rows)))
            raws = [Raw(as_text(row), UNSOUND) for row in bad.to_batches(max_chunksize=1)]
            self._dead_letters.add_raws(self._number, raws)
            for start in range(0, len(bad), 10_000):
                ids = ", ".join(map(str, bad["_rowid"][start : start + 10_000].to_pylist()))
                self._table.delete(f"_rowid IN ({ids})")
            sync_tree(self._folder)
            self._numbering.learn(None)
        return len(bad)

    def drop_record(self, record_id: str) -> None:
        """Remove a record's rows from this lane. The caller has copied them to another lane."""
        with translated(), self._lock.hold():
            self._table.delete(f"record_id = {quoted(record_id)}")
            sync_tree(self._folder)

    def delete_record(self, record_id: UUID) -> None:
        """Remove every row of a record; :meth:`maintain` removes their text from the disk.

        Raises:
            StoreUnavailable: the store failed; the call may be repeated.
        """
        with translated(), self._lock.hold():
            where = f"record_id = {quoted(str(record_id))}"
            rows = self.rows([where], ["producer", "producer_seq"])
            self._exclusions.add(ExclusionReason.FORGOTTEN, _tuples(rows))
            self._erasure.delete(where)
            sync_tree(self._folder)

    # -- fencing

    @property
    def token(self) -> int:
        """The highest fencing token that this lane has seen; 0 if none. It outlives a wiped broker."""
        try:
            return plain(read_regular(self._token_file, NOTE_MAX).strip()) or 0  # None: emptied by a power cut
        except FileNotFoundError:
            return 0

    def raise_fence(self, token: int) -> None:
        """Refuse from now on every writer with a lower token.

        Raises:
            LeaseLost: this lane has seen a higher token.
        """
        self._check_here()
        with translated(), self._lock.hold():
            self._check_fence(token)
            if token > self.token:
                # Two fsyncs would cost as much as the merge. A power cut may lose the file; the broker still has
                # the token, and no stale writer outlives a power cut.
                replace_file(self._token_file, str(token).encode(), sync=False)

    def _check_fence(self, token: int | None) -> None:
        if token is None:
            return
        if plain(str(token)) is None:
            raise LeaseLost(f"{self._folder.name}: token {token} is no lease's: it is out of range")
        if token < self.token:
            raise LeaseLost(f"{self._folder.name}: token {token} is stale, {self.token} has been seen")

    # -- upkeep

    def maintain(self, *, force: bool = False) -> bool:
        """Compact, re-index and clean up if it is due: after enough commits or a deletion. True if done.

        A failure is noted and told, and tried again later.

        Raises:
            StoreUnavailable: with ``force``, the storage is unavailable.
        """
        if not force and not ((self._due or self._erasure.due()) and self._attempts.ready):
            return False
        return self._attempts.run(self._maintain, force=force) or False

    def _maintain(self) -> bool:
        started = time.monotonic()
        with translated(), self._lock.hold():
            doubled = self._drop_duplicate_rows()
            self._erasure.run()
            self._due = False
        seconds = round(time.monotonic() - started, 3)
        emit("compaction", table=self._folder.stem, rows=self.count(), doubled=doubled, seconds=seconds)
        return True

    def _drop_duplicate_rows(self) -> int:
        """Remove rows that a writer without the lock has left beside another of the same key; how many.

        It reads the whole lane, so only if another writer has added or removed rows since the last time.
        """
        if self._table.count_rows() == self._distinct:
            return 0
        rows = self._table.search().with_row_id(True).select(["seq", *_KEY]).to_arrow().sort_by("seq")
        duplicates = rows.filter(pa.array(repeated(codes(rows["entry_id"]))))
        self._distinct = len(rows) - len(duplicates)
        # A second entry under an id that its caller chose has a key of its own, which is gone with its row.
        self._note_duplicates(_tuples(duplicates.select(_KEY)))
        for start in range(0, len(duplicates), 10_000):
            step = duplicates.slice(start, 10_000)
            ids = ", ".join(map(str, step["_rowid"].to_pylist()))
            self._keep_stray_conflicts(step, f"_rowid IN ({ids})")
            self._table.delete(f"_rowid IN ({ids})")
        return len(duplicates)

    def _keep_stray_conflicts(self, duplicates: pa.Table, where: str) -> None:
        """Keep those rows of ``where``, all of which are to go, that differ from the rows that stay."""
        keys = quoted_list(duplicates["entry_id"].to_pylist())
        kept = self.rows([f"entry_id IN ({keys})", f"NOT ({where})"])
        if differ := conflicts(self.rows([where]), kept):
            self._dead_letters.add_conflicts(self._number, differ, STRAY)
            emit("key_conflict", level=logging.ERROR, lane=self._number, entries=len(differ))


def _tuples(rows: pa.Table) -> Iterator[tuple[Any, ...]]:
    """The rows as tuples, in the order of the columns."""
    return zip(*(column.to_pylist() for column in rows.columns), strict=True)
