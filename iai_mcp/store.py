"""The store: memories and who recalled them, for any number of processes.

When a method returns, its writes are durable and every process can read them. Provenance is rows in lane tables.
Each row has a key, and one writer at a time writes a lane, so no entry is stored twice.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pyarrow as pa

from iai_mcp.common import forks
from iai_mcp.config import Settings
from iai_mcp.embedders.base import Embedder
from iai_mcp.entries.batch import EntryBatch
from iai_mcp.entries.routing import lane_of
from iai_mcp.errors import EmbeddingMismatch
from iai_mcp.pipeline.forgetting import Forgetting
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.record import MemoryRecord, as_uuid
from iai_mcp.storage.direct_writes import DirectWrites
from iai_mcp.storage.exclusions import Exclusions
from iai_mcp.storage.facts import StoreFacts
from iai_mcp.storage.layout import Layout
from iai_mcp.storage.meta import StoreMeta, open_meta
from iai_mcp.storage.scratch import sweep
from iai_mcp.storage.store_lock import StoreLock
from iai_mcp.storage.tables.catalog import Tables
from iai_mcp.storage.tables.known_records import RecordsCache
from iai_mcp.storage.tables.lane import LaneTable
from iai_mcp.storage.tables.lanes import Lanes
from iai_mcp.storage.tables.process import refuse, usable
from iai_mcp.storage.tables.records import Filters, Hit
from iai_mcp.storage.tables.reports import AppendReport, MergeReport
from iai_mcp.storage.tables.write_right import WriteRight
from iai_mcp.storage.tombstones import Tombstones
from iai_mcp.storage.vectors import StoreVectors, configured_embedder
from iai_mcp.telemetry import tracing

if TYPE_CHECKING:
    import redis

__all__ = ["AppendReport", "Filters", "Hit", "MemoryStore", "RecordsCache", "as_uuid", "open_store"]

_open_stores: weakref.WeakValueDictionary[tuple[str, int], MemoryStore] = weakref.WeakValueDictionary()


def open_store(store_id: str) -> MemoryStore | None:
    """The store of this id that this process has open; of several the one that last got a queue or was opened.

    A worker in the same process drains into it.
    """
    return next((store for (known, _), store in reversed([*_open_stores.items()]) if known == store_id), None)


class MemoryStore:
    """Memories and who recalled them, in one local folder that any number of processes may share.

    Args:
        path: the folder, created if it is missing; default ``$IAI_MCP_STORE``, else ``~/.iai-mcp/store``.
        lanes: number of lanes, 1 to 256, of a *new* store (default 4); an existing store must have as many.
        settings: default: the environment's, read now.

    Attributes:
        settings: the settings that the store was opened with.
        path: the folder as given.
        layout: the paths of the store's files.
        tables, vectors: the store's tables and vectors, for maintenance.
        provenance_failures: number of entries that recalls in this process could not hand over.

    Raises:
        StoreTooNew: a later version of this package wrote the store.
        ForkedProcess: this process was forked from one that had opened a store; inherited stores raise it too.
        StoreError: the folder holds something else.
        StoreUnavailable: the folder cannot be created, read or written, or its number of lanes is being changed.
        ConfigError: ``lanes`` is out of range, or is not the store's number of lanes.
    """

    def __init__(
        self, path: str | Path | None = None, *, lanes: int | None = None, settings: Settings | None = None
    ) -> None:
        self.settings = settings or Settings.load()
        tracing.start(self.settings)
        self.path = Path(path).expanduser() if path is not None else self.settings.store_path
        self.layout = Layout(self.path.absolute())
        open_meta(self.layout, lanes=lanes, embedder=configured_embedder(self.settings))
        self._store_lock = StoreLock(self.layout.store_lock)  # the number of lanes stays from now on
        self._facts = StoreFacts(self.layout)
        self.tombstones = Tombstones(self.layout.tombstones)
        self.exclusions = Exclusions(self.layout.exclusions, self._facts.check_here)
        self.tables = Tables(self.layout, self.settings, self._facts, self.tombstones, self.exclusions)
        self._records = self.tables.records
        self.vectors = StoreVectors(self.settings, self.layout, self._facts, self._records)
        self._lanes = Lanes(self.tables, self.layout, self._facts)
        self._forgetting = Forgetting(
            self.layout, self.settings, self._facts, self.tombstones, self._records, self._lanes.lane
        )
        self._mutex = threading.RLock()
        self._direct = DirectWrites(self.exclusions)
        self._provenance_queue: ProvenanceWriteQueue | None = None
        self.provenance_failures = 0
        self._register()
        forks.in_children(self._in_child)

    def _in_child(self) -> None:
        """In a forked child only the queue goes on: its parent's tables and locks may be in any state there."""
        self._mutex = threading.RLock()
        refuse(self, "tables", "_records", "vectors", "_lanes", "_direct", "_forgetting")

    # -- what the store is

    @property
    def meta(self) -> StoreMeta:
        """The store's own facts; follows changes of other processes."""
        return self._facts.now

    @property
    def store_id(self) -> str:
        """The store's identity, 32 hexadecimal digits; spill files and broker keys carry it."""
        return self._facts.store_id

    @property
    def lanes(self) -> int:
        """The number of lanes when the store was opened."""
        return self._facts.opened.lanes

    @property
    def reuses(self) -> int:
        """How often a forgotten id has been used again, as of the last access to the store's facts."""
        return self._facts.reuses

    def check_lanes(self) -> None:
        """Check that the number of lanes has not changed since the store was opened.

        Raises:
            LanesChanged: it has.
        """
        self._facts.check_lanes()

    def lane(self, number: int) -> LaneTable:
        """The table of one lane, from 0, opened on first use.

        Raises:
            StoreError: ``number`` is out of range.
        """
        return self._lanes.lane(number)

    def close(self) -> None:
        """Drain the queue and release the store. The object cannot be used afterwards."""
        self.disable_provenance_queue()
        _open_stores.pop((self.store_id, id(self)), None)
        self._store_lock.close()

    def _register(self) -> None:
        _open_stores.pop((self.store_id, id(self)), None)  # the latest one comes last
        _open_stores[self.store_id, id(self)] = self

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep every other process from opening the store, for the block.

        Raises:
            StoreInUse: the store is open in another process, or a second time in this one.
            LanesChanged: another process has changed the number of lanes.
        """
        self._store_lock.be_alone()
        try:
            self.check_lanes()
            yield
        finally:
            self._store_lock.share()

    # -- embeddings

    @property
    def embedder(self) -> Embedder | None:
        """The configured embedder, loaded on first use; None if another one made this store's vectors."""
        return self.vectors.embedder

    def vectors_match(self, *, warn: bool = False) -> bool:
        """Whether the configured embedder made this store's vectors; ``warn`` logs a mismatch."""
        return self.vectors.match(warn=warn)

    def count_without_vector(self, column: str | None = None) -> int:
        """Number of memories without a vector in ``column`` (default: the column that a search reads)."""
        return self._records.count_without_vector(column or self.meta.vector_column)

    # -- memories

    def insert(self, record: MemoryRecord) -> UUID:
        """Add a memory; its id. Several memories may have the same text.

        Raises:
            RecordExists: the id is taken.
            EmbeddingMismatch: the vector has the wrong number of dimensions.
            StoreUnavailable: the storage is unavailable.
        """
        return self.insert_many([record])[0]

    def insert_many(self, records: Sequence[MemoryRecord], *, skip_existing: bool = False) -> list[UUID]:
        """Add memories in one commit; the ids that were added.

        Args:
            skip_existing: skip a memory whose id is taken, instead of raising RecordExists.

        Raises:
            RecordExists, EmbeddingMismatch, StoreUnavailable: as of :meth:`insert`; nothing was written.
        """
        if not records:
            return []
        self._forgetting.finish([record.id for record in records])
        added = self._records.insert(records, self.meta.vector_column, skip_existing=skip_existing)
        self._forgetting.reuse(added)
        return added

    def get(self, record_id: UUID | str) -> MemoryRecord | None:
        """The memory with its vector and its provenance in order; None if there is none.

        Raises:
            BadParams: ``record_id`` is no UUID.
        """
        key = as_uuid(record_id)
        record = self._records.get(key, self.meta.vector_column)
        if record is not None:
            record.provenance = self.lane(lane_of(key, self.lanes)).entries([f"record_id = '{key}'"])
        return record

    def delete(self, record_id: UUID | str) -> bool:
        """Forget a memory and its provenance for good; whether there was one.

        An entry that is still queued finds no record and is left out. After a crash, the same call finishes.

        Raises:
            BadParams: ``record_id`` is no UUID.
            StoreUnavailable: the storage is unavailable; the call may be repeated.
        """
        key = as_uuid(record_id)
        found = self._forgetting.forget(key)
        if self._provenance_queue is None:  # a queue tidies on its own thread: long lanes take seconds
            self.tidy()
        return found

    def tidy(self) -> None:
        """Run due maintenance, and remove forgotten text from the disk once no reader can have it open.

        Direct writes, running queues and workers call this; mostly nothing is due. A forked process does nothing.
        """
        if usable():
            self._records.maintain(force=False)
            self._lanes.maintain()
            sweep(self.layout)

    def count(self, filters: Filters | None = None) -> int:
        """Number of memories that ``filters`` selects."""
        return self._records.count(filters)

    def list_records(
        self, filters: Filters | None = None, *, limit: int = 50, offset: int = 0
    ) -> list[MemoryRecord]:
        """The selected memories, newest first, without vectors and provenance.

        Args:
            limit: maximum number of results.
            offset: number of results to skip.
        """
        return self._records.newest(filters or Filters(), limit, offset)

    def record_ids(self) -> Any:
        """The id of every memory as an Arrow column of texts, newest first."""
        return self._records.ids(Filters())

    def records(self, ids: list[str]) -> list[MemoryRecord]:
        """The memories with these ids, in this order, without vectors and provenance; unknown ids are skipped."""
        return self._records.by_ids(ids)

    def stream(self) -> Iterator[MemoryRecord]:
        """Every memory with its vector, in no particular order, as it is read."""
        return self._records.stream(self.meta.vector_column)

    def existing(self, record_ids: Iterable[UUID]) -> set[UUID]:
        """The ids that have a memory."""
        return self._records.existing([*record_ids])

    def search_vector(
        self, vector: Sequence[float], *, limit: int = 10, filters: Filters | None = None
    ) -> list[Hit]:
        """The selected memories nearest to ``vector``, best first; scores are cosines, from -1 to 1.

        Raises:
            EmbeddingMismatch: ``vector`` has the wrong number of dimensions.
        """
        meta = self.meta
        if len(vector) != meta.embedder.dims:
            raise EmbeddingMismatch(
                f"the vector has {len(vector)} dimensions, this store has {meta.embedder.dims}"
            )
        return self._records.search_vector(vector, meta.vector_column, limit, filters or Filters())

    def search_text(self, words: str, *, limit: int = 10, filters: Filters | None = None) -> list[Hit]:
        """The selected memories that match ``words``, best first; scores are those of BM25, above 0."""
        return self._records.search_text(words, limit, filters or Filters())

    # -- merging another store

    def merge_records(self, rows: pa.Table) -> MergeReport:
        """Add the memories (``record_schema``) of another store, unless their id is here or was forgotten here."""
        return self._records.merge(rows, self.meta.vector_column, self.tombstones.ids)

    def merge_entries(self, rows: pa.Table) -> tuple[AppendReport, list[pa.Table]]:
        """Add provenance rows (``LANE_SCHEMA``) of another store; the outcome, and the rows without a memory here.

        Each record's rows keep their order, and get new ``seq`` numbers.

        Raises:
            StoreUnavailable: the storage is unavailable; the call may be repeated.
        """
        return self._lanes.merge(rows)

    # -- provenance

    def append_provenance_batch(
        self,
        pairs: Iterable[tuple[UUID, Mapping[str, Any]]],
        records_cache: RecordsCache | None = None,
        *,
        right: WriteRight | None = None,
    ) -> AppendReport:
        """Write provenance entries now, in order, one commit for each lane touched.

        Args:
            pairs: ``(record_id, entry)``. An entry with an ``entry_id`` that is in the store already adds
                nothing; without one it is new. ``{ts, cue, session_id}`` suffices, further keys survive.
            records_cache: known ids that a drain keeps from batch to batch. With it the caller maintains the
                lanes; without it, due maintenance is done now.
            right: the lease under which one lane is drained. Entries of other lanes are written without it.

        Raises:
            BadParams: a pair is not a UUID and a mapping, or its entry cannot be JSON, is larger than
                ``IAI_MCP_MAX_ENTRY_BYTES`` or nests too deep; nothing was written.
            StoreUnavailable: the storage is unavailable; the same call may be repeated.
            LeaseLost: ``right`` has passed on.
        """
        if isinstance(pairs, EntryBatch):
            return self._append(pairs, records_cache, right)
        return self._direct.write(
            pairs,
            lambda plain: self._append(EntryBatch.of_pairs(plain), records_cache, right),
            self.settings.max_entry_bytes,
        )

    def _append(
        self, batch: EntryBatch, records_cache: RecordsCache | None, right: WriteRight | None
    ) -> AppendReport:
        kept = records_cache if isinstance(records_cache, RecordsCache) else None
        report = self._lanes.append(batch, kept, right)
        if kept is None:
            with suppress(OSError):  # the entries are written all the same
                self.tidy()
        return report

    @property
    def provenance_queue(self) -> ProvenanceWriteQueue | None:
        """The queue that writes provenance in the background; None while it is not enabled."""
        return self._provenance_queue

    def queue_provenance_batch(self, pairs: Sequence[tuple[UUID, Mapping[str, Any]]]) -> None:
        """Hand entries to the queue; if none is enabled, write them on this thread."""
        queue = self._provenance_queue
        if queue is not None:
            queue.enqueue(pairs)
        else:
            self.append_provenance_batch(pairs)

    def enable_provenance_queue(self, *, coalesce_ms: float = 50, connection: redis.Redis | None = None) -> None:
        """Write provenance in the background from now on. Harmless when repeated.

        With ``connection`` (or ``IAI_MCP_REDIS_URL``) entries go through Redis to ``rq`` workers.
        """
        with self._mutex:
            if self._provenance_queue is None:
                queue = ProvenanceWriteQueue(self, coalesce_ms=coalesce_ms, connection=connection)
                queue.start()
                self._provenance_queue = queue
                self._register()

    def disable_provenance_queue(self) -> None:
        """Drain the queue, and write on the caller's thread from now on. Harmless when repeated."""
        with self._mutex:
            queue, self._provenance_queue = self._provenance_queue, None
        if queue is not None:
            queue.stop()
