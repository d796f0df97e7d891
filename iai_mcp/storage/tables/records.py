"""The table of memories: keyed inserts, filtered listing, vector and full-text search.

Two indexes look at a memory: vectors (one column per embedder, ``meta.vector_column`` is the one searched)
and BM25 over ``index_text``. ``text`` itself is only ever shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa

from iai_mcp.common.files import sync_tree
from iai_mcp.common.times import as_utc
from iai_mcp.errors import EmbeddingMismatch, RecordExists
from iai_mcp.record import MemoryRecord, index_text
from iai_mcp.storage.tables.erasure import Erasure
from iai_mcp.storage.tables.lance import Table, matches, quoted, quoted_list, retry_vanished, sql_time, translated
from iai_mcp.storage.writer_lock import WriterLock
from iai_mcp.telemetry.events import emit

__all__ = ["Filters", "Hit", "MergeReport", "RecordTable", "record_schema"]

_SHOWN = ["id", "text", "session_id", "role", "tags", "created_at", "updated_at", "index_text"]
MAINTAIN_EVERY = 32  # commits
LOOK_UP = 16  # an id that is looked up in the index costs as much as so many that are read over
MAINTAIN_ROWS = 256  # rows that the full-text index does not cover yet: 10k of them cost a query 80 ms


def record_schema(dims: int, vector_column: str = "embedding") -> pa.Schema:
    """The columns of ``records``; the vector is null where a memory waits for its embedding."""
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("text", pa.string(), nullable=False),
            pa.field("index_text", pa.string(), nullable=False),
            pa.field(vector_column, pa.list_(pa.float32(), dims)),
            pa.field("session_id", pa.string()),
            pa.field("role", pa.string()),
            pa.field("tags", pa.list_(pa.string())),
            pa.field("created_at", pa.timestamp("us", "UTC")),
            pa.field("updated_at", pa.timestamp("us", "UTC")),
        ]
    )


@dataclass(frozen=True, slots=True)
class Filters:
    """Which memories count: every given condition must hold; of ``tags`` at least one.

    ``since`` is inclusive, ``until`` exclusive; both compare with ``created_at``, naive times are UTC.
    """

    session: str | None = None
    tags: Sequence[str] = ()
    role: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def sql(self) -> str | None:
        """The filter as an SQL condition; None where everything counts."""
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
    """A record that a search found, without its vector, and the search's own score (higher is better)."""

    record: MemoryRecord
    score: float


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What became of memories of another store: new here, here already, forgotten here before."""

    added: int = 0
    existing: int = 0
    forgotten: int = 0

    def __add__(self, other: MergeReport) -> MergeReport:
        return MergeReport(
            self.added + other.added, self.existing + other.existing, self.forgotten + other.forgotten
        )


class RecordTable:
    """The ``records`` table of one store."""

    def __init__(
        self, table: Table, folder: Path, lock: WriterLock, erasure_note: Path, cleanup_age: float
    ) -> None:
        self._table = table
        self._folder = folder
        self._lock = lock
        self._erasure = Erasure(table, "role", erasure_note, cleanup_age)
        self._unindexed = 0

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
                self._write(list(new.values()), vector_column)
        return list(new)

    def _write(self, records: list[MemoryRecord], vector_column: str) -> None:
        self._merge(_to_arrow(records, vector_column, self._table.schema))

    def _merge(self, rows: pa.Table) -> None:
        started = time.time()
        merge = self._table.merge_insert("id").when_not_matched_insert_all()
        version = merge.execute(rows, on_bad_vectors="null").version
        sync_tree(self._folder, since=started)
        self._maintain_if_due(len(rows), version)

    def adopt(self, rows: pa.Table, vector_column: str, gone: Callable[[], set[UUID]]) -> MergeReport:
        """Add memories of another store as they are (vectors in ``embedding``), where their id is new.

        ``gone``: the ids that were forgotten here, which stay so.
        """
        with translated(), self._lock.hold():
            forgotten = pa.array([str(one) for one in gone()], pa.string())
            kept = rows.filter(pa.compute.invert(pa.compute.is_in(rows["id"], value_set=forgotten)))
            known = pa.array(
                [str(one) for one in self.existing([*map(UUID, kept["id"].to_pylist())])], pa.string()
            )
            new = kept.filter(pa.compute.invert(pa.compute.is_in(kept["id"], value_set=known)))
            if len(new):
                self._merge(_as_stored(new, vector_column, self._table.schema))
        return MergeReport(len(new), len(kept) - len(new), len(rows) - len(kept))

    def _maintain_if_due(self, written: int, version: int) -> None:
        self._unindexed += written
        enough = max(MAINTAIN_ROWS, self._table.count_rows() // 20)
        if self._unindexed >= enough or version % MAINTAIN_EVERY == 0:
            self._maintain()

    def maintain(self, *, force: bool = True) -> None:
        """Compact, re-index and clean up; without ``force`` only where a deletion has left something to do."""
        if force or self._erasure.due():
            with translated(), self._lock.hold():
                self._maintain()

    def _maintain(self) -> None:
        started = time.monotonic()
        self._erasure.run()
        self._unindexed = 0
        seconds = round(time.monotonic() - started, 3)
        emit("compaction", table=self._folder.stem, rows=self._table.count_rows(), doubled=0, seconds=seconds)

    def delete(self, record_id: UUID) -> bool:
        """Remove a record; whether there was one. :meth:`maintain` removes what it said from the disk."""
        with translated(), self._lock.hold():
            found = self._erasure.delete(f"id = {quoted(str(record_id))}")
            sync_tree(self._folder)
        return bool(found)

    # -- vectors

    def add_vector_column(self, name: str, dims: int) -> None:
        """Add an empty vector column, unless it is there."""
        with translated(), self._lock.hold():
            if name not in self._table.schema.names:
                self._table.add_columns(pa.field(name, pa.list_(pa.float32(), dims)))

    def drop_columns(self, names: list[str]) -> None:
        """Remove columns that no embedder uses any more."""
        with translated(), self._lock.hold():
            if present := [name for name in names if name in self._table.schema.names]:
                self._table.drop_columns(present)

    def vector_columns(self) -> list[str]:
        """Every column that holds vectors."""
        return [field.name for field in self._table.schema if pa.types.is_fixed_size_list(field.type)]

    def fill_vectors(self, column: str, ids: list[str], vectors: Sequence[Sequence[float]]) -> None:
        """Set the vectors of records; ids that have gone in the meantime stay gone."""
        with translated(), self._lock.hold():
            kind = self._table.schema.field(column).type
            rows = pa.table({"id": pa.array(ids), column: _vectors(vectors, kind)})
            version = self._table.merge_insert("id").when_matched_update_all().execute(rows).version
            sync_tree(self._folder)
            self._maintain_if_due(len(ids), version)  # rewritten rows have left the indexes

    @retry_vanished
    def without_vector(self, column: str, limit: int | None = None) -> list[tuple[str, str]]:
        """``(id, index_text)`` of records whose vector is missing."""
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
        """Which of ``ids`` are in the table."""
        texts = {str(record_id): record_id for record_id in ids}
        return {texts[text] for text in self.some_ids([*texts]) if text in texts}

    @retry_vanished
    def some_ids(self, wanted: Sequence[str], few: int = 0) -> list[str]:
        """Those of ``wanted`` that are in the table; and all others, where it is cheaper to read them too.

        So it is for whoever comes again for others soon, where the table has but a ``few`` rows.
        """
        if max(few, len(wanted) * LOOK_UP) > self._table.count_rows():
            every: list[str] = self._table.search().select(["id"]).to_arrow()["id"].to_pylist()
            return every
        there: list[str] = []
        for start in range(0, len(wanted), 4096):
            part = wanted[start : start + 4096]
            rows = self._table.search().where(f"id IN ({quoted_list(part)})").select(["id"]).to_arrow()
            there += rows["id"].to_pylist()
        return there

    @retry_vanished
    def get(self, record_id: UUID, vector_column: str) -> MemoryRecord | None:
        """The record with its vector, without provenance."""
        query = self._table.search().where(f"id = {quoted(str(record_id))}")
        rows = query.select([*_SHOWN, vector_column]).limit(1).to_arrow().to_pylist()
        return _from_row(rows[0], vector_column) if rows else None

    @retry_vanished
    def count(self, filters: Filters | None = None) -> int:
        """Number of records that fit."""
        return int(self._table.count_rows(filters.sql() if filters else None))

    @retry_vanished
    def ids(self, filters: Filters) -> pa.ChunkedArray:
        """The ids of the records that fit, newest first; no texts are read."""
        query = self._table.search().select(["id", "created_at"])
        if where := filters.sql():
            query = query.where(where)
        return query.to_arrow().sort_by([("created_at", "descending"), ("id", "ascending")])["id"]

    @retry_vanished
    def by_ids(self, ids: list[str]) -> list[MemoryRecord]:
        """These records in this order, as far as they are there."""
        if not ids:
            return []
        rows = self._table.search().where(f"id IN ({quoted_list(ids)})").select(_SHOWN).to_arrow()
        by_id = {row["id"]: row for row in rows.to_pylist()}
        return [_from_row(by_id[record_id]) for record_id in ids if record_id in by_id]

    def newest(self, filters: Filters, limit: int, offset: int = 0) -> list[MemoryRecord]:
        """The records that fit, newest first."""
        return self.by_ids(self.ids(filters).slice(offset, limit).to_pylist())

    @retry_vanished
    def search_vector(self, vector: Any, column: str, limit: int, filters: Filters) -> list[Hit]:
        """Nearest by cosine; the score is the cosine similarity, from -1 to 1."""
        query = self._table.search(vector, vector_column_name=column).distance_type("cosine")
        return [Hit(_from_row(row), 1.0 - row["_distance"]) for row in _run(query, "_distance", limit, filters)]

    @retry_vanished
    def search_text(self, words: str, limit: int, filters: Filters) -> list[Hit]:
        """Best by BM25 over ``index_text``; the score is BM25's own, above 0."""
        query = self._table.search(words, query_type="fts", fts_columns="index_text")
        return [Hit(_from_row(row), row["_score"]) for row in _run(query, "_score", limit, filters)]

    @retry_vanished
    def stream(self, vector_column: str) -> Iterator[MemoryRecord]:
        """Every record with its vector."""
        query = self._table.search().select([*_SHOWN, vector_column])
        return (_from_row(row, vector_column) for batch in query.to_batches() for row in batch.to_pylist())


def _run(query: Any, score: str, limit: int, filters: Filters) -> list[dict[str, Any]]:
    if where := filters.sql():
        query = query.where(where, prefilter=True)
    rows: list[dict[str, Any]] = query.limit(limit).select([*_SHOWN, score]).to_arrow().to_pylist()
    return rows


def _to_arrow(records: Iterable[MemoryRecord], vector_column: str, schema: pa.Schema) -> pa.Table:
    records = list(records)
    columns = {
        "id": pa.array([str(record.id) for record in records], pa.string()),
        "text": pa.array([record.text for record in records], pa.string()),
        "index_text": pa.array([r.index_text or index_text(r.text, role=r.role) for r in records], pa.string()),
        "session_id": pa.array([record.session_id for record in records], pa.string()),
        "role": pa.array([record.role for record in records], pa.string()),
        "tags": pa.array([list(record.tags) for record in records], pa.list_(pa.string())),
        "created_at": pa.array([as_utc(record.created_at) for record in records], pa.timestamp("us", "UTC")),
        "updated_at": pa.array([as_utc(record.updated_at) for record in records], pa.timestamp("us", "UTC")),
        vector_column: _vectors([r.embedding for r in records], schema.field(vector_column).type),
    }
    empty = {name: pa.nulls(len(records), schema.field(name).type) for name in schema.names if name not in columns}
    columns.update(empty)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _as_stored(rows: pa.Table, vector_column: str, schema: pa.Schema) -> pa.Table:
    columns = {name: rows[name] for name in rows.column_names if name in schema.names and name != "embedding"}
    columns[vector_column] = rows["embedding"]
    empty = {name: pa.nulls(len(rows), schema.field(name).type) for name in schema.names if name not in columns}
    columns.update(empty)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _vectors(vectors: Sequence[Sequence[float]], kind: pa.DataType) -> pa.Array:
    dims = kind.list_size
    for vector in vectors:
        if len(vector) not in (0, dims):
            raise EmbeddingMismatch(f"an embedding has {len(vector)} dimensions, this store has {dims}")
    return pa.array([list(vector) if len(vector) else None for vector in vectors], kind)


def _from_row(row: dict[str, Any], vector_column: str | None = None) -> MemoryRecord:
    return MemoryRecord(
        id=UUID(row["id"]),
        text=row["text"],
        embedding=(row[vector_column] or []) if vector_column else [],
        session_id=row["session_id"] or "",
        role=row["role"] or "",
        tags=row["tags"] or [],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        index_text=row["index_text"],
    )
