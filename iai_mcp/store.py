"""The store: memories and who recalled them, for any number of processes.

What a method wrote is durable and readable by every process when it returns. Provenance is rows in lane
tables, keyed and written by one writer at a time, so that an entry is never there twice.
"""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import msgspec
import pyarrow as pa

from iai_mcp.config import Settings, overflow_dir
from iai_mcp.embedders import registry
from iai_mcp.embedders.base import Embedder
from iai_mcp.entries.batch import EntryBatch
from iai_mcp.entries.parcel import Pair
from iai_mcp.entries.routing import lane_of
from iai_mcp.errors import EmbeddingMismatch, LanesChanged, StoreError
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.record import MemoryRecord, as_uuid
from iai_mcp.spill import erase
from iai_mcp.storage.dead_letters import DeadLetters
from iai_mcp.storage.direct_writes import DirectWrites, is_numbered
from iai_mcp.storage.exclusions import Exclusions
from iai_mcp.storage.layout import Layout
from iai_mcp.storage.meta import (
    DEFAULT_DIMS,
    EmbedderMeta,
    StoreMeta,
    open_meta,
    read_meta,
    save_meta,
    signature,
)
from iai_mcp.storage.scratch import sweep
from iai_mcp.storage.store_lock import StoreLock
from iai_mcp.storage.tables.catalog import Tables, by_lane
from iai_mcp.storage.tables.known_records import RecordsCache
from iai_mcp.storage.tables.lane import LaneTable
from iai_mcp.storage.tables.records import Filters, Hit
from iai_mcp.storage.tables.reports import AppendReport, MergeReport
from iai_mcp.storage.tables.write_right import WriteRight
from iai_mcp.storage.tombstones import Tombstones
from iai_mcp.telemetry import tracing
from iai_mcp.telemetry.events import log

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
        path: the folder; default ``$IAI_MCP_STORE``, else ``~/.iai-mcp/store``. Made where it is missing.
        lanes: number of lanes of a *new* store (default 4); an existing store must have as many.
        settings: default: read from the environment now.

    Raises:
        StoreTooNew: a later version of this package wrote the store.
        StoreUnavailable: the folder cannot be made, read or written.
        ConfigError: ``lanes`` does not fit.
    """

    def __init__(
        self, path: str | Path | None = None, *, lanes: int | None = None, settings: Settings | None = None
    ) -> None:
        self.settings = settings or Settings.load()
        tracing.start(self.settings)
        self.path = Path(path).expanduser() if path is not None else self.settings.store_path
        self.layout = Layout(self.path.absolute())
        open_meta(self.layout, lanes=lanes, embedder=_configured_embedder(self.settings))
        self._store_lock = StoreLock(self.layout.store_lock)  # from now on nobody changes the number of lanes
        self._meta_path = str(self.layout.meta)  # looked at on every enqueue: a Path costs thrice the stat
        self._meta_signature = signature(self._meta_path)
        self._meta = self._opened = read_meta(self.layout)
        self.tombstones = Tombstones(self.layout.tombstones)
        self.exclusions = Exclusions(self.layout.exclusions)
        self._tables = Tables(self.layout, self.settings, self._meta, self.tombstones, self.exclusions)
        self._records = self._tables.records
        self._lanes: dict[int, LaneTable] = {}
        self._mutex = threading.RLock()
        self._embedder: Embedder | None = None
        self._embedder_loaded = False
        self._direct = DirectWrites(self.exclusions)
        self._provenance_queue: ProvenanceWriteQueue | None = None
        self.provenance_failures = 0  # entries that recalls in this process could not hand over
        self._register()

    # -- what the store is

    @property
    def meta(self) -> StoreMeta:
        """The store's own facts, as any process last wrote them."""
        now = signature(self._meta_path)
        if now != self._meta_signature:
            self._meta, self._meta_signature = read_meta(self.layout), now
        return self._meta

    @property
    def store_id(self) -> str:
        """The store's identity; it names the owner of spill files and broker keys."""
        return self._meta.store_id

    @property
    def lanes(self) -> int:
        """The number of lanes, as when the store was opened."""
        return self._opened.lanes

    def check_lanes(self) -> None:
        """Make sure that the lanes are those that were opened.

        Raises:
            LanesChanged: somebody has changed their number since.
        """
        if self.meta.generation != self._opened.generation:
            raise LanesChanged(
                f"the store at {self.path} has {self._meta.lanes} lanes now, and had {self.lanes} when this "
                "process opened it: start it anew"
            )

    def lane(self, number: int) -> LaneTable:
        """The table of one lane, opened on first use."""
        if (known := self._lanes.get(number)) is not None:
            return known
        with self._mutex:
            if number not in self._lanes:
                if not 0 <= number < self.lanes:
                    raise StoreError(f"lane {number} is out of range: this store has {self.lanes} lanes")
                self._lanes[number] = self._tables.lane(self._opened.generation, number, self.check_lanes)
            return self._lanes[number]

    def close(self) -> None:
        """Drain the queue and give the store up; this object is of no more use."""
        self.disable_provenance_queue()
        self._unregister()
        self._store_lock.close()

    def _register(self) -> None:
        self._unregister()  # the latest one comes last
        _open_stores[self.store_id, id(self)] = self

    def _unregister(self) -> None:
        _open_stores.pop((self.store_id, id(self)), None)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only one that has this store open, for the block.

        Raises:
            StoreInUse: somebody else has it open; the message says who, where the system tells.
            LanesChanged: somebody else was alone in between.
        """
        self._store_lock.be_alone()
        try:
            self.check_lanes()
            yield
        finally:
            self._store_lock.share()

    def lanes_of(self, generation: int, lanes: int) -> list[LaneTable]:
        """The lane tables of another generation, made where they are missing."""
        return [self._tables.lane(generation, number) for number in range(lanes)]

    def merge_into(self, rows: pa.Table, lanes: Sequence[LaneTable]) -> int:
        """Add provenance rows to ``lanes``; how many have an id that an entry of another lane has."""
        return sum(
            lanes[number].merge(part, check_records=False).repeats for number, part in by_lane(rows, len(lanes))
        )

    def drop_lanes(self, keep: Container[int]) -> None:
        """Remove the lane tables of every generation but ``keep``."""
        self._tables.drop_lanes(keep)

    # -- embeddings

    @property
    def embedder(self) -> Embedder | None:
        """The configured embedder where it made this store's vectors (loaded on first use), else None."""
        with self._mutex:
            if not self._embedder_loaded:
                self._embedder = registry.load_or_none(self.settings) if self.vectors_match(warn=True) else None
                self._embedder_loaded = True
            return self._embedder

    def vectors_match(self, *, warn: bool = False) -> bool:
        """Whether the configured embedder is the one that made this store's vectors."""
        wanted, found = _configured_embedder(self.settings).name, self.meta.embedder.name
        if wanted in (found, "none"):
            return wanted == found and wanted != "none"
        if warn:
            log.warning(
                "this store's vectors were made by %s, the configured embedder is %s: searching by full text "
                "only; `iai-mcp reembed` makes them anew",
                found,
                wanted,
            )
        return False

    def begin_reembed(self, target: EmbedderMeta) -> str:
        """Make room for ``target``'s vectors; the name of the column to fill with :meth:`fill_vectors`."""
        if target == self.meta.embedder:
            return self.meta.vector_column
        told = f"{target.name}\n{target.dims}\n{target.weights}"
        column = f"embedding_{target.dims}_{hashlib.sha256(told.encode()).hexdigest()[:8]}"
        self._records.add_vector_column(column, target.dims)
        return column

    def finish_reembed(self, target: EmbedderMeta, column: str) -> None:
        """Search ``column`` from now on, and drop the columns of other embedders."""
        save_meta(self.layout, msgspec.structs.replace(self.meta, embedder=target, vector_column=column))
        self._records.drop_columns([name for name in self._records.vector_columns() if name != column])
        with self._mutex:
            self._embedder_loaded = False

    def without_vector(self, column: str, limit: int | None = None) -> list[tuple[str, str]]:
        """``(id, index_text)`` of records that have no vector in ``column``."""
        return self._records.without_vector(column, limit)

    def count_without_vector(self, column: str | None = None) -> int:
        """Number of memories that wait for their vector in ``column`` (default: the one that is searched)."""
        return self._records.count_without_vector(column or self.meta.vector_column)

    def fill_vectors(self, column: str, ids: list[str], vectors: Sequence[Sequence[float]]) -> None:
        """Set vectors of existing records, durably."""
        self._records.fill_vectors(column, ids, vectors)

    # -- memories

    def insert(self, record: MemoryRecord) -> UUID:
        """Add a memory; its id.

        Raises:
            RecordExists: the id is taken. The text may be there any number of times.
            EmbeddingMismatch: the vector has the wrong number of dimensions.
        """
        return self.insert_many([record])[0]

    def insert_many(self, records: Sequence[MemoryRecord], *, skip_existing: bool = False) -> list[UUID]:
        """Add memories in one commit; the ids that were added.

        With ``skip_existing`` an id that is taken is left as it is; otherwise it raises RecordExists and
        nothing is written.
        """
        if not records:
            return []
        added = self._records.insert(records, self.meta.vector_column, skip_existing=skip_existing)
        self.tombstones.discard(added)
        return added

    def get(self, record_id: UUID | str) -> MemoryRecord | None:
        """The memory with its vector and its provenance in order; None where there is none."""
        key = as_uuid(record_id)
        record = self._records.get(key, self.meta.vector_column)
        if record is not None:
            record.provenance = self.lane(lane_of(key, self.lanes)).entries([f"record_id = '{key}'"])
        return record

    def delete(self, record_id: UUID | str) -> bool:
        """Forget a memory and its provenance for good; whether there was one.

        An entry that is still on its way finds no record and is left out. Called again after a crash, it
        finishes what was begun.
        """
        key = as_uuid(record_id)
        found = bool(self._records.existing([key]))
        if not found and key not in self.tombstones.ids():
            return False
        if key not in self.tombstones.ids():
            self.tombstones.add(key)
        self._records.delete(key)
        self.lane(lane_of(key, self.lanes)).delete_record(key)
        DeadLetters(self.layout).forget(key)
        erase.forget(overflow_dir(self.settings), self.store_id, key, self.exclusions)
        if self._provenance_queue is None:  # whose thread does it else: it takes seconds where lanes are long
            self.tidy()
        return found

    def tidy(self) -> None:
        """Maintain what is due, and take what was forgotten off the disk, once no reader can have it open.

        Direct writes do this, and a running queue or worker every now and then; mostly there is nothing to do.
        """
        self._records.maintain(force=False)
        for number in range(self.lanes):
            if number in self._lanes or self.layout.erasure(self._opened.lane_table(number)).exists():
                self.lane(number).maintain()
        sweep(self.layout)

    def count(self, filters: Filters | None = None) -> int:
        """Number of memories (that fit)."""
        return self._records.count(filters)

    def list_records(
        self, filters: Filters | None = None, *, limit: int = 50, offset: int = 0
    ) -> list[MemoryRecord]:
        """Memories that fit, newest first, without vectors and provenance."""
        return self._records.newest(filters or Filters(), limit, offset)

    def record_ids(self) -> Any:
        """The id of every memory, newest first, as an Arrow column of texts."""
        return self._records.ids(Filters())

    def records(self, ids: list[str]) -> list[MemoryRecord]:
        """These memories in this order, as far as they are there, without vectors and provenance."""
        return self._records.by_ids(ids)

    def stream(self) -> Iterator[MemoryRecord]:
        """Every memory with its vector, in no particular order, as it is read."""
        return self._records.stream(self.meta.vector_column)

    def existing(self, record_ids: Iterable[UUID]) -> set[UUID]:
        """Which of these ids have a memory."""
        return self._records.existing([*record_ids])

    def search_vector(
        self, vector: Sequence[float], *, limit: int = 10, filters: Filters | None = None
    ) -> list[Hit]:
        """Memories nearest to ``vector`` by cosine, best first.

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
        """Memories that hold ``words``, best first by BM25."""
        return self._records.search_text(words, limit, filters or Filters())

    # -- what another store had

    def merge_records(self, rows: pa.Table) -> MergeReport:
        """Add memories as they are, with their vectors, where their id is new and was not forgotten here."""
        return self._records.merge(rows, self.meta.vector_column, self.tombstones.ids)

    def merge_entries(self, rows: pa.Table) -> tuple[AppendReport, list[pa.Table]]:
        """Add provenance rows of another store, each record's in the order given.

        Args:
            rows: columns of ``LANE_SCHEMA``; their ``seq`` is replaced.

        Returns:
            The outcome, and the rows that were left out because their memory is not in this store.

        Raises:
            StoreUnavailable: the store failed; the call may be repeated.
        """
        report, unknown = AppendReport(), []
        for number, part in by_lane(rows, self.lanes):
            done = self.lane(number).merge(part)
            report += done.report
            unknown.append(done.unknown)
        return report, unknown

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
            BadParams: a pair is not a UUID and a mapping; nothing was written.
            StoreUnavailable: the storage is unavailable; the same call may be repeated.
            LeaseLost: ``right`` has passed on.
        """
        if isinstance(pairs, EntryBatch):
            return self._append(pairs, records_cache, right)
        given = [*pairs]
        if all(is_numbered(record_id, entry) for record_id, entry in given):
            return self._append(EntryBatch.of_pairs(cast("list[Pair]", given)), records_cache, right)
        return self._direct.write(
            given, lambda pairs: self._append(EntryBatch.of_pairs(pairs), records_cache, right)
        )

    def _append(
        self, batch: EntryBatch, records_cache: RecordsCache | None, right: WriteRight | None
    ) -> AppendReport:
        cache = records_cache if isinstance(records_cache, RecordsCache) else RecordsCache()
        kept = cache is records_cache
        lane = cache.lane_of(batch.ids)
        report = AppendReport()
        for number, part in ({lane: batch} if lane is not None else batch.by_lane(self.lanes)).items():
            token = right.token if right is not None and right.lane == number else None
            report += self.lane(number).append(part, cache, token, self.lanes if kept else 0)
        if not kept:
            with suppress(OSError):  # the entries are written all the same
                self.tidy()
        return report

    @property
    def provenance_queue(self) -> ProvenanceWriteQueue | None:
        """The queue that writes provenance in the background; None while it is not enabled."""
        return self._provenance_queue

    def queue_provenance_batch(self, pairs: Sequence[tuple[UUID, Mapping[str, Any]]]) -> None:
        """Hand entries to the queue, or write them on this thread where none is enabled."""
        queue = self._provenance_queue
        if queue is not None:
            queue.enqueue(pairs)
        else:
            self.append_provenance_batch(pairs)

    def enable_provenance_queue(self, *, coalesce_ms: float = 50, connection: redis.Redis | None = None) -> None:
        """Write provenance in the background from now on; does nothing where that is so already.

        With ``connection`` (or ``IAI_MCP_REDIS_URL``) entries go through Redis to ``rq`` workers.
        """
        with self._mutex:
            if self._provenance_queue is None:
                queue = ProvenanceWriteQueue(self, coalesce_ms=coalesce_ms, connection=connection)
                queue.start()
                self._provenance_queue = queue
                self._register()

    def disable_provenance_queue(self) -> None:
        """Drain the queue and write on the caller's thread again; does nothing where that is so already."""
        with self._mutex:
            queue, self._provenance_queue = self._provenance_queue, None
        if queue is not None:
            queue.stop()


def _configured_embedder(settings: Settings) -> EmbedderMeta:
    found = registry.describe(settings)
    return EmbedderMeta(found.name, found.dims, found.weights) if found else EmbedderMeta("none", DEFAULT_DIMS)
