"""One lane's table of provenance rows: one row per entry, keyed, numbered, durable, kept small.

Every write happens under the lane's lock, checks the writer's fencing token right before the commit, and is
on the disk when it returns. What is certain to be new is appended, anything else merged on its key. Every read
sees the latest commit of any process and one row per ``entry_id``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa

from iai_mcp.common.arrays import repeated
from iai_mcp.common.files import replace_file, sync_tree
from iai_mcp.entries.batch import EntryBatch
from iai_mcp.entries.identity import entry_id, entry_id_bounds
from iai_mcp.errors import LeaseLost
from iai_mcp.storage.exclusions import ExclusionReason, Exclusions
from iai_mcp.storage.tables.erasure import Erasure
from iai_mcp.storage.tables.high_water import HighWater, Spans, spans_of
from iai_mcp.storage.tables.known_records import RecordsCache
from iai_mcp.storage.tables.lance import Table, quoted, quoted_list, retry_vanished, translated
from iai_mcp.storage.tables.rows import LANE_SCHEMA, distinct, from_row, to_arrow
from iai_mcp.storage.tombstones import Tombstones
from iai_mcp.storage.writer_lock import WriterLock
from iai_mcp.telemetry import observer
from iai_mcp.telemetry.events import emit

__all__ = [
    "INDEXED",
    "LANE_SCHEMA",
    "AppendReport",
    "LaneTable",
    "Merged",
    "distinct",
    "from_row",
    "in_order",
    "piled_up",
    "to_arrow",
]

INDEXED = ("entry_id", "record_id")
MAINTAIN_EVERY = 64  # commits; a merge slows by about 0.1 ms per fragment that the index does not cover
PILED_UP = 8 * MAINTAIN_EVERY

_ACCOUNTED = ("entry_id", "producer", "producer_seq")


@dataclass(frozen=True, slots=True)
class AppendReport:
    """What became of the entries of one write.

    Attributes:
        applied: rows that are new in the lane tables.
        duplicate: entries whose key was there already.
        unknown: entries left out since their record does not exist or was deleted.
    """

    applied: int = 0
    duplicate: int = 0
    unknown: int = 0

    def __add__(self, other: AppendReport) -> AppendReport:
        return AppendReport(
            self.applied + other.applied, self.duplicate + other.duplicate, self.unknown + other.unknown
        )


@dataclass(frozen=True, slots=True)
class Merged:
    """What became of rows that were merged as they are.

    Attributes:
        strangers: the rows that were left out since their memory is not there.
        repeats: how many had an id that their caller had given to another entry before.
    """

    report: AppendReport
    strangers: pa.Table
    repeats: int


class LaneTable:
    """The table of one lane and this process's right to write it."""

    def __init__(
        self,
        table: Table,
        folder: Path,
        lock: WriterLock,
        token_file: Path,
        erasure_note: Path,
        tombstones: Tombstones,
        exclusions: Exclusions,
        some_ids: Callable[[Sequence[str], int], list[str]],
        cleanup_age: float,
        check_current: Callable[[], None] = lambda: None,
    ) -> None:
        self._table = table
        self._folder = folder
        self._lock = lock
        self._token_file = token_file
        self._tombstones = tombstones
        self._exclusions = exclusions
        self._some_ids = some_ids
        self._check_current = check_current  # raises where this is no lane of the store any more
        self._erasure = Erasure(table, "rank", erasure_note, cleanup_age)
        self._seen_version = -1
        self._rows = 0  # in the table when it was last seen, and ours since
        self._next_seq = 1
        self._marks = HighWater(self._highest_of)
        self._due = False
        self._distinct = -1  # rows in the table when it was last seen free of doubles, and ours since

    # -- writing

    def append(
        self, batch: EntryBatch, cache: RecordsCache, token: int | None = None, lanes: int = 0
    ) -> AppendReport:
        """Write a batch in order; on return it is durable and readable by any process.

        ``token``: the fencing token of the writer's lease; None without one. ``lanes``: as of
        :meth:`RecordsCache.learn`.

        Raises:
            LeaseLost: a later fencing token than ``token`` has been seen here.
            StoreUnavailable: the place fails; nothing was acknowledged, the same call may be repeated.
        """
        with translated(), self._lock.hold() as alone:
            self._check_current()
            alive, strangers = batch, None
            if nobody := self._nobody(batch.ids, cache, lanes):
                alive = batch.pick([one not in nobody for one in batch.ids])
                strangers = batch.pick([one in nobody for one in batch.ids])
            fresh = alive.once()
            self._check_fence(token)
            applied = self._apply(fresh, token, alone=alone) if fresh else 0
            if applied < len(alive):
                self._note_duplicates(zip(alive.keys, alive.givers, alive.seqs, strict=True))
            if strangers:
                self._exclusions.add(ExclusionReason.UNKNOWN, zip(strangers.givers, strangers.seqs, strict=True))
        return AppendReport(applied, len(alive) - applied, len(batch) - len(alive))

    def _nobody(self, ids: Sequence[str], cache: RecordsCache, lanes: int) -> set[str]:
        """The ids of which there is no record."""
        if strangers := cache.unknown(ids):
            cache.learn(strangers, self._some_ids, lanes)
            strangers = cache.unknown(strangers)
        gone = self._tombstones.hex()
        return strangers if gone.isdisjoint(ids) else strangers.union(gone.intersection(ids))

    def adopt(self, rows: pa.Table, *, check: bool = True) -> Merged:
        """Merge rows of another lane as they are, in their order, under numbers (``seq``) of this one.

        With ``check`` those whose memory does not exist are left out, and it is the caller's to note that.

        Raises:
            StoreUnavailable: the place fails; the same call may be repeated.
        """
        with translated(), self._lock.hold():
            self._check_current()
            known = self._known(rows["record_id"]) if check else pa.array([True] * len(rows), pa.bool_())
            kept = rows.filter(known)
            kept = kept.filter(pa.array(~repeated(_codes(kept["entry_id"]))))
            applied = self._write(lambda first: _numbered(kept, first), len(kept)) if len(kept) else 0
            self._marks.forget()
            strangers = rows.filter(pa.compute.invert(known))
            duplicate, repeats = len(rows) - len(strangers) - applied, 0
            if duplicate:
                repeats = self._note_duplicates(_tuples(rows.filter(known).select(list(_ACCOUNTED))))
        return Merged(AppendReport(applied, duplicate, len(strangers)), strangers, repeats)

    def _known(self, record_ids: pa.ChunkedArray) -> pa.Array:
        """Which of these ids have a memory that was not forgotten."""
        there = {*self._some_ids(record_ids.unique().to_pylist(), 0)}.difference(map(str, self._tombstones.ids()))
        return pa.compute.is_in(record_ids, value_set=pa.array([*there], pa.string()))

    def _apply(self, batch: EntryBatch, token: int | None, *, alone: bool) -> int:
        spans = spans_of(batch)
        applied = self._write(
            lambda first: to_arrow(batch, first),
            len(batch),
            spans if alone else None,
            lambda: self._check_fence(token),
        )
        if spans:
            self._marks.seen((producer, highest) for producer, (_, highest) in spans.items())
        else:
            self._marks.forget()
        return applied

    def _write(
        self,
        make: Callable[[int], pa.Table],
        count: int,
        spans: Spans | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> int:
        """Write rows, made from a first ``seq`` on; how many were new.

        ``spans``: by their numbers they may be appended, where the marks say so. ``check`` is called right before
        the commit.
        """
        started = time.time()
        version = self._table.version
        if version != self._seen_version:
            self._catch_up()
        rows = make(self._next_seq)
        append = spans is not None and self._marks.below(spans) and self._table.version == version
        check()
        begun = time.perf_counter()
        if append:
            written, new = self._table.add(rows).version, count
        else:
            result = self._table.merge_insert("entry_id").when_not_matched_insert_all().execute(rows)
            written, new = result.version, int(result.num_inserted_rows)
        merged = time.perf_counter()
        sync_tree(self._folder, since=started)
        observer.now.committed(merged - begun, time.perf_counter() - merged)
        self._next_seq += count
        self._distinct += new
        self._rows += new
        self._due = self._due or version // MAINTAIN_EVERY != written // MAINTAIN_EVERY
        self._seen_version = written
        if written > version + 1:  # somebody came in between, who does not heed the lock
            self._seen_version, self._due = -1, True
            self._marks.forget()
        return new

    def _catch_up(self) -> None:
        """Look what others have written: what it is numbered, and whose it is."""
        columns = ["seq", "producer", "producer_seq"] if self._marks else ["seq"]
        rows = self._table.search().where(f"seq >= {self._next_seq}").select(columns).to_arrow()
        if len(rows):
            self._next_seq = int(pa.compute.max(rows["seq"]).as_py()) + 1
        there = self._table.count_rows()
        if self._marks and there == self._rows + len(rows):
            self._marks.seen(_highest(rows))
        else:  # rows have gone, or come under numbers that we had passed
            self._marks.forget()
        self._rows = there

    def _highest_of(self, producer: str) -> int:
        """The highest number of a producer's rows; its keys are one range of the index."""
        first, end = map(quoted, entry_id_bounds(producer))
        query = self._table.search().where(f"entry_id >= {first} AND entry_id < {end}").select(["producer_seq"])
        found = query.to_arrow()["producer_seq"]
        return int(pa.compute.max(found).as_py()) if len(found) else 0

    def _note_duplicates(self, entries: Iterable[tuple[str, str, int]]) -> int:
        """Account for entries whose caller gave them an id that an earlier entry has: they never get a row."""
        missing: set[Any] = set()
        given = [(key, producer, seq) for key, producer, seq in entries if key != entry_id(producer, seq)]
        if given:
            keys = [key for key, _, _ in given]
            rows = self.rows([f"entry_id IN ({quoted_list(keys)})"], ["producer", "producer_seq"])
            missing = {(producer, seq) for _, producer, seq in given}.difference(_tuples(rows))
            self._exclusions.add(ExclusionReason.DUPLICATE, missing)
        return len(missing)

    def drop_record(self, record_id: str) -> None:
        """Remove a record's rows that are in another lane now."""
        with translated(), self._lock.hold():
            self._table.delete(f"record_id = {quoted(record_id)}")
            sync_tree(self._folder)

    def delete_record(self, record_id: UUID) -> None:
        """Remove every row of a record; :meth:`maintain` removes what they said from the disk."""
        with translated(), self._lock.hold():
            where = f"record_id = {quoted(str(record_id))}"
            rows = self.rows([where], ["producer", "producer_seq"])
            self._exclusions.add(ExclusionReason.FORGOTTEN, _tuples(rows))
            self._erasure.delete(where)
            sync_tree(self._folder)

    def in_order(self, step: int) -> Iterator[pa.Table]:
        """Every row as it is, ``step`` at a time, in the order of ``seq``; each key once."""
        return in_order(self._table, step)

    # -- fencing

    @property
    def token(self) -> int:
        """The highest fencing token seen here: the high-water mark that outlives a wiped broker."""
        try:
            return int(self._token_file.read_text())
        except (FileNotFoundError, ValueError):  # ValueError: emptied by a power cut
            return 0

    def raise_fence(self, token: int) -> None:
        """Refuse from now on every writer whose token is lower than ``token``.

        Raises:
            LeaseLost: a higher token was here already.
        """
        with translated(), self._lock.hold():
            self._check_fence(token)
            if token > self.token:
                # Two fsyncs would cost as much as the merge. What a power cut takes from here is in the broker,
                # and no stale writer outlives one.
                replace_file(self._token_file, str(token).encode(), sync=False)

    def _check_fence(self, token: int | None) -> None:
        if token is not None and token < self.token:
            raise LeaseLost(f"{self._folder.name}: token {token} is stale, {self.token} has been seen")

    # -- upkeep

    def maintain(self, *, force: bool = False) -> bool:
        """Compact, re-index and clean up after enough commits, after a deletion, or by ``force``; True if done."""
        if not (self._due or force or self._erasure.due()):
            return False
        started = time.monotonic()
        with translated(), self._lock.hold():
            self._due = False
            doubled = self._drop_doubled()
            self._erasure.run()
        seconds = round(time.monotonic() - started, 3)
        emit("compaction", table=self._folder.stem, rows=self.count(), doubled=doubled, seconds=seconds)
        return True

    def _drop_doubled(self) -> int:
        """Remove rows that a writer without the lock left beside another of the same key.

        Reads the whole lane, so only where somebody else has added or removed rows since the last time.
        """
        if self._table.count_rows() == self._distinct:
            return 0
        columns = ["seq", *_ACCOUNTED]
        rows = self._table.search().with_row_id(True).select(columns).to_arrow().sort_by("seq")
        doubled = rows.filter(pa.array(repeated(_codes(rows["entry_id"]))))
        self._distinct = len(rows) - len(doubled)
        # A second entry under an id that its caller chose has a key of its own, which is gone with its row.
        self._note_duplicates(_tuples(doubled.select(list(_ACCOUNTED))))
        for start in range(0, len(doubled), 10_000):
            ids = ", ".join(map(str, doubled["_rowid"][start : start + 10_000].to_pylist()))
            self._table.delete(f"_rowid IN ({ids})")
        return len(doubled)

    # -- reading

    @retry_vanished
    def rows(self, conditions: Iterable[str], columns: list[str] | None = None) -> pa.Table:
        """Raw rows that fit every SQL condition; doubled rows are not yet removed."""
        query = self._table.search()
        if where := " AND ".join(conditions):
            query = query.where(where)
        if columns:
            query = query.select(columns)
        result: pa.Table = query.to_arrow()
        return result

    def batches(self, conditions: Iterable[str], columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Raw rows like :meth:`rows`, as they are read; whoever consumes them repeats a read that fails."""
        query = self._table.search().select(columns)
        if where := " AND ".join(conditions):
            query = query.where(where)
        yield from query.to_batches()

    @property
    @retry_vanished
    def version(self) -> int:
        """Changes with every commit of any process."""
        return int(self._table.version)

    def entries(self, conditions: Iterable[str]) -> list[dict[str, Any]]:
        """The entries that fit, in order (seq, then producer_seq), each key once."""
        return distinct(self.rows(conditions).to_pylist())

    @retry_vanished
    def count(self, conditions: Iterable[str] = ()) -> int:
        """Number of raw rows (that fit every SQL condition)."""
        return int(self._table.count_rows(" AND ".join(conditions) or None))

    @retry_vanished
    def stats(self) -> dict[str, int]:
        """Rows, versions, fragments and bytes on disk of this lane's table."""
        size = sum(path.stat().st_size for path in self._folder.rglob("*") if path.is_file())
        fragments = self._table.stats()["fragment_stats"]["num_fragments"]
        versions = sum(1 for path in (self._folder / "_versions").iterdir() if path.suffix == ".manifest")
        return {"rows": self.count(), "versions": versions, "fragments": int(fragments), "bytes": size}


def in_order(table: Table, step: int) -> Iterator[pa.Table]:
    """Rows of a lane's table in the order of ``seq``, ``step`` at a time, each key once."""
    keys = table.search().select(["seq", "entry_id"]).to_arrow().sort_by("seq")
    again = pa.array(repeated(_codes(keys["entry_id"])))
    doubled = set(zip(*(keys.filter(again)[name].to_pylist() for name in keys.column_names), strict=True))
    seqs = np.asarray(keys["seq"])
    del keys
    for start in range(0, len(seqs), step):
        first, last = int(seqs[start]), int(seqs[min(start + step, len(seqs)) - 1])
        if start and first == seqs[start - 1]:
            first += 1  # rows under one number have all come
        rows = table.search().where(f"seq >= {first} AND seq <= {last}").to_arrow()
        rows = rows.sort_by([("seq", "ascending"), ("producer_seq", "ascending")])
        if doubled:
            named = zip(rows["seq"].to_pylist(), rows["entry_id"].to_pylist(), strict=True)
            rows = rows.filter(pa.array([key not in doubled for key in named], pa.bool_()))
        yield rows


def _tuples(rows: pa.Table) -> Iterator[tuple[Any, ...]]:
    """The rows, in the order of their columns' names in the table."""
    return zip(*(column.to_pylist() for column in rows.columns), strict=True)


def _highest(rows: pa.Table) -> Iterator[tuple[str, int]]:
    """The highest number of each producer."""
    coded = rows["producer"].combine_chunks().dictionary_encode()
    highest = np.zeros(len(coded.dictionary), np.int64)
    np.maximum.at(highest, np.asarray(coded.indices, np.int64), np.asarray(rows["producer_seq"]))
    return zip(coded.dictionary.to_pylist(), highest.tolist(), strict=True)


def _codes(texts: pa.ChunkedArray) -> Any:
    return np.asarray(texts.combine_chunks().dictionary_encode().indices, np.int64)


def _numbered(rows: pa.Table, first: int) -> pa.Table:
    at = LANE_SCHEMA.get_field_index("seq")
    numbers = pa.array(np.arange(first, first + len(rows), dtype=np.int64))
    return rows.set_column(at, LANE_SCHEMA.field("seq"), numbers).cast(LANE_SCHEMA)


def piled_up(stats: Mapping[str, int]) -> bool:
    """Whether a lane has missed its upkeep: reads and merges slow down with versions and fragments."""
    return stats["versions"] > PILED_UP or stats["fragments"] > PILED_UP
