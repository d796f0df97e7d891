"""The table of memories: keyed inserts, filtered listing, vector and full-text search.

Two searches find a memory: by vector (one column per embedder, a search reads ``meta.vector_column``) and by
BM25 over ``index_text``. No search reads ``text``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import pyarrow as pa

from iai_mcp.common.files import sync_tree
from iai_mcp.config import Settings
from iai_mcp.errors import RecordExists
from iai_mcp.record import MemoryRecord
from iai_mcp.storage.layout import RECORDS, Layout
from iai_mcp.storage.tables.attempts import Attempts
from iai_mcp.storage.tables.erasure import Erasure
from iai_mcp.storage.tables.lance import Table, matches, quoted, quoted_list, retry_vanished, sql_time, translated
from iai_mcp.storage.tables.record_rows import SHOWN, from_row, merged_rows, to_rows, vector_array
from iai_mcp.storage.tables.reports import MergeReport
from iai_mcp.storage.writer_lock import WriterLock
from iai_mcp.telemetry.events import emit

__all__ = ["Filters", "Hit", "RecordTable"]

MAINTAIN_EVERY = 32  # commits
MAINTAIN_ROWS = 256  # rows that the full-text index does not cover yet; 10k of them cost a query 80 ms
LOOK_UP = 16  # looking up one id in the index costs as much as reading this many ids of the table


@dataclass(frozen=True, slots=True)
class Filters:
    """Selects memories: every given condition must hold.

    Attributes:
        session: the memory's session.
        tags: at least one of them must be among the memory's tags.
        role: the memory's role.
        since: earliest ``created_at``, inclusive; a naive time is UTC.
        until: latest ``created_at``, exclusive; a naive time is UTC.
    """

    session: str | None = None
    tags: Sequence[str] = ()
    role: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def sql(self) -> str | None:
        """The filter as an SQL condition; None if it selects every memory."""
        parts = matches(session_id=self.session, role=self.role)
        if self.tags:
            parts.append(f"array_has_any(tags, [{quoted_list(list(self.tags))}])")
        if self.since is not None:
            parts.append(f"created_at >= {sql_time(self.since)}")
        if self.until is not None:
            parts.append(f"created_at < {sql_time(self.until)}")
        return " AND ".join(parts) or None


@dataclass(frozen=True, slots=True)
class Hit:
    """A memory that a search found.

    Attributes:
        record: without vector and provenance.
        score: the search's own, higher is better.
    """

    record: MemoryRecord
    score: float


class RecordTable:
    """The ``records`` table of one store."""

    def __init__(
        self, table: Table, layout: Layout, settings: Settings, check_here: Callable[[], None] = lambda: None
    ) -> None:
        self._opened = table
        self._check_here = check_here
        self._folder = layout.records
        self._lock = WriterLock(layout.records_lock, settings.lock_timeout)
        self._erasure = Erasure(table, "role", layout.erasure(RECORDS), settings.cleanup_age)
        self._attempts = Attempts(RECORDS, layout.upkeep_note(RECORDS))
        self._unindexed = 0

    @property
    def _table(self) -> Table:
        """The table, while the store is where it was opened: another one in its place is not touched."""
        self._check_here()
        return self._opened

    # -- writing

    def insert(self, records: Sequence[MemoryRecord], vector_column: str, *, skip_existing: bool) -> list[UUID]:
        """Add ``records`` in one durable commit; the ids that were new.

        Raises:
            RecordExists: an id is taken (and ``skip_existing`` is false); nothing was written.
            EmbeddingMismatch: a vector has the wrong number of dimensions; nothing was written.
        """
        with translated(), self._lock.hold():
            taken = self.existing([record.id for record in records])
            if taken and not skip_existing:
                raise RecordExists(f"a record with id {min(taken)} exists already; delete it first")
            new = {record.id: record for record in records if record.id not in taken}
            if not skip_existing and len(new) < len(records):
                raise RecordExists("the same id comes twice in one insert")
            if new:
                self._merge_new(to_rows(new.values(), vector_column, self._table.schema))
        return list(new)

    def _merge_new(self, rows: pa.Table) -> None:
        started = time.time()
        merge = self._table.merge_insert("id").when_not_matched_insert_all()
        version = merge.execute(rows, on_bad_vectors="null").version
        sync_tree(self._folder, since=started)
        self._maintain_if_due(len(rows), version)

    def merge(self, rows: pa.Table, vector_column: str, deleted: Callable[[], set[UUID]]) -> MergeReport:
        """Add the memories of another store whose id is new here.

        Args:
            rows: columns of :func:`record_schema`, with the vectors in ``embedding``.
            deleted: the ids that were forgotten in this store; they stay forgotten.

        Raises:
            StoreUnavailable: the store failed; the call may be repeated.
        """
        with translated(), self._lock.hold():
            forgotten = pa.array([str(one) for one in deleted()], pa.string())
            kept = rows.filter(pa.compute.invert(pa.compute.is_in(rows["id"], value_set=forgotten)))
            known = pa.array(
                [str(one) for one in self.existing([*map(UUID, kept["id"].to_pylist())])], pa.string()
            )
            new = kept.filter(pa.compute.invert(pa.compute.is_in(kept["id"], value_set=known)))
            if len(new):
                self._merge_new(merged_rows(new, vector_column, self._table.schema))
        return MergeReport(len(new), len(kept) - len(new), len(rows) - len(kept))

    def _maintain_if_due(self, written: int, version: int) -> None:
        self._unindexed += written
        enough = max(MAINTAIN_ROWS, self._table.count_rows() // 20)
        if (self._unindexed >= enough or version % MAINTAIN_EVERY == 0) and self._attempts.ready:
            self._attempts.run(self._maintain, force=False)  # the rows are written, whatever becomes of this

    def maintain(self, *, force: bool = True) -> None:
        """Compact, re-index and clean up; without ``force`` only if a deletion or a failure has left work.

        Raises:
            StoreUnavailable: with ``force``, the storage is unavailable.
        """
        if force or ((self._erasure.due() or self._attempts.failed) and self._attempts.ready):
            self._attempts.run(self._maintain_locked, force=force)

    def _maintain_locked(self) -> None:
        with translated(), self._lock.hold():
            self._maintain()

    def _maintain(self) -> None:
        started = time.monotonic()
        self._erasure.run()
        self._unindexed = 0
        seconds = round(time.monotonic() - started, 3)
        emit("compaction", table=self._folder.stem, rows=self._table.count_rows(), doubled=0, seconds=seconds)

    def delete(self, record_id: UUID) -> bool:
        """Remove a record; whether there was one. :meth:`maintain` removes its text from the disk."""
        with translated(), self._lock.hold():
            found = self._erasure.delete(f"id = {quoted(str(record_id))}")
            sync_tree(self._folder)
        return bool(found)

    # -- vectors

    def add_vector_column(self, name: str, dims: int) -> None:
        """Add a column of ``dims`` float32, all null, unless the table has it already."""
        with translated(), self._lock.hold():
            if name not in self._table.schema.names:
                self._table.add_columns(pa.field(name, pa.list_(pa.float32(), dims)))

    def drop_columns(self, names: list[str]) -> None:
        """Remove the given columns, as far as the table has them."""
        with translated(), self._lock.hold():
            if present := [name for name in names if name in self._table.schema.names]:
                self._table.drop_columns(present)

    def vector_columns(self) -> list[str]:
        """The names of the columns that hold vectors."""
        return [field.name for field in self._table.schema if pa.types.is_fixed_size_list(field.type)]

    def fill_vectors(self, column: str, ids: list[str], vectors: Sequence[Sequence[float]]) -> None:
        """Set the vectors of existing records. An id that was deleted meanwhile is skipped.

        Raises:
            EmbeddingMismatch: a vector has the wrong number of dimensions.
        """
        with translated(), self._lock.hold():
            kind = self._table.schema.field(column).type
            rows = pa.table({"id": pa.array(ids), column: vector_array(vectors, kind)})
            version = self._table.merge_insert("id").when_matched_update_all().execute(rows).version
            sync_tree(self._folder)
            self._maintain_if_due(len(ids), version)  # the indexes do not cover rewritten rows

    @retry_vanished
    def without_vector(self, column: str, limit: int | None = None) -> list[tuple[str, str]]:
        """``(id, index_text)`` of at most ``limit`` records whose vector is missing."""
        query = self._table.search().where(f"{column} IS NULL").select(["id", "index_text"])
        rows = (query.limit(limit) if limit else query).to_arrow()
        return list(zip(rows["id"].to_pylist(), rows["index_text"].to_pylist(), strict=True))

    @retry_vanished
    def count_without_vector(self, column: str) -> int:
        """Number of records whose vector is missing."""
        return int(self._table.count_rows(f"{column} IS NULL"))

    # -- reading

    @retry_vanished
    def existing(self, ids: list[UUID]) -> set[UUID]:
        """The ids that are in the table."""
        texts = {str(record_id): record_id for record_id in ids}
        return {texts[text] for text in self.some_ids([*texts]) if text in texts}

    @retry_vanished
    def some_ids(self, wanted: Sequence[str], few: int = 0) -> list[str]:
        """The ids of ``wanted`` that are in the table. If reading all ids is cheaper, every id of the table.

        Args:
            wanted: ids as text.
            few: read all ids if the table has fewer rows than this; for a caller that soon asks for others.
        """
        if max(few, len(wanted) * LOOK_UP) > self._table.count_rows():
            all_ids: list[str] = self._table.search().select(["id"]).to_arrow()["id"].to_pylist()
            return all_ids
        there: list[str] = []
        for start in range(0, len(wanted), 4096):
            part = wanted[start : start + 4096]
            rows = self._table.search().where(f"id IN ({quoted_list(part)})").select(["id"]).to_arrow()
            there += rows["id"].to_pylist()
        return there

    @retry_vanished
    def get(self, record_id: UUID, vector_column: str) -> MemoryRecord | None:
        """The record with its vector, without provenance; None if there is none."""
        query = self._table.search().where(f"id = {quoted(str(record_id))}")
        rows = query.select([*SHOWN, vector_column]).limit(1).to_arrow().to_pylist()
        return from_row(rows[0], vector_column) if rows else None

    @retry_vanished
    def count(self, filters: Filters | None = None) -> int:
        """Number of records that ``filters`` selects."""
        return int(self._table.count_rows(filters.sql() if filters else None))

    @retry_vanished
    def ids(self, filters: Filters) -> pa.ChunkedArray:
        """The ids of the selected records as a column of texts, newest first."""
        query = self._table.search().select(["id", "created_at"])
        if where := filters.sql():
            query = query.where(where)
        return query.to_arrow().sort_by([("created_at", "descending"), ("id", "ascending")])["id"]

    @retry_vanished
    def by_ids(self, ids: list[str]) -> list[MemoryRecord]:
        """The records with these ids, in the order of ``ids``. An id without a record is skipped."""
        if not ids:
            return []
        rows = self._table.search().where(f"id IN ({quoted_list(ids)})").select(SHOWN).to_arrow()
        by_id = {row["id"]: row for row in rows.to_pylist()}
        return [from_row(by_id[record_id]) for record_id in ids if record_id in by_id]

    def newest(self, filters: Filters, limit: int, offset: int = 0) -> list[MemoryRecord]:
        """The selected records, newest first, without vectors: at most ``limit``, after the first ``offset``."""
        return self.by_ids(self.ids(filters).slice(offset, limit).to_pylist())

    @retry_vanished
    def search_vector(self, vector: Any, column: str, limit: int, filters: Filters) -> list[Hit]:
        """The selected records nearest to ``vector``; the score is the cosine similarity, from -1 to 1."""
        query = self._table.search(vector, vector_column_name=column).distance_type("cosine")
        return [Hit(from_row(row), 1.0 - row["_distance"]) for row in _run(query, "_distance", limit, filters)]

    @retry_vanished
    def search_text(self, words: str, limit: int, filters: Filters) -> list[Hit]:
        """The selected records that match ``words`` best; the score is that of BM25, above 0."""
        query = self._table.search(words, query_type="fts", fts_columns="index_text")
        return [Hit(from_row(row), row["_score"]) for row in _run(query, "_score", limit, filters)]

    @retry_vanished
    def stream(self, vector_column: str) -> Iterator[MemoryRecord]:
        """Every record with its vector."""
        query = self._table.search().select([*SHOWN, vector_column])
        return (from_row(row, vector_column) for batch in query.to_batches() for row in batch.to_pylist())


def _run(query: Any, score: str, limit: int, filters: Filters) -> list[dict[str, Any]]:
    if where := filters.sql():
        query = query.where(where, prefilter=True)
    rows: list[dict[str, Any]] = query.limit(limit).select([*SHOWN, score]).to_arrow().to_pylist()
    return rows
