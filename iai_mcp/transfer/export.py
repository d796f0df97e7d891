"""``iai-mcp export``: memories and provenance as a folder of Parquet files, streamed from a snapshot.

The manifest is written last, so that an export that was broken off is recognised. Forgotten memories are not in
it; entries that are on their way, or dead letters, are counted and named in its log of left-out entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from iai_mcp._version import __version__
from iai_mcp.common.files import sync_tree
from iai_mcp.common.times import utcnow
from iai_mcp.maintenance.ledger import Book, Place
from iai_mcp.maintenance.pending import Elsewhere, elsewhere
from iai_mcp.storage.exclusions import ExclusionReason, Exclusions, Span
from iai_mcp.storage.layout import RECORDS
from iai_mcp.storage.meta import EmbedderMeta
from iai_mcp.storage.snapshot import Snapshot, snapshot
from iai_mcp.storage.tables.catalog import scan, table_of
from iai_mcp.storage.tables.lane_reader import in_order
from iai_mcp.storage.tables.record_rows import record_schema
from iai_mcp.storage.tables.rows import LANE_SCHEMA
from iai_mcp.storage.tombstones import Tombstones
from iai_mcp.store import MemoryStore
from iai_mcp.transfer import manifest
from iai_mcp.transfer.manifest import Copied, Listed

__all__ = ["ENTRY_SCHEMA", "LEFT_OUT", "VERSION", "ExportManifest", "export"]

VERSION = 1
LEFT_OUT = "exclusions.jsonl"
ENTRY_SCHEMA = LANE_SCHEMA
STEP = 20_000  # rows in memory at a time
FILE_ROWS = 200_000


class ExportManifest(Copied, frozen=True, kw_only=True):
    """What an export holds.

    Attributes:
        embedder: what made the vectors.
        with_vector: how many of the ``records`` have one.
        not_included: entries that were elsewhere when their numbers were known: on their way, or dead letters.
    """

    embedder: EmbedderMeta
    lanes: int
    records: int
    with_vector: int
    entries: int
    not_included: int


@dataclass(slots=True)
class _Seen:
    """What has been written so far."""

    files: list[Listed] = field(default_factory=list)
    records: int = 0
    with_vector: int = 0
    entries: int = 0
    half: set[UUID] = field(default_factory=set)  # forgotten and there: somebody did not get to the end
    book: Book = field(default_factory=Book)
    ended: dict[str, list[int]] = field(default_factory=dict)  # entries of memories that are being forgotten


def export(
    store: MemoryStore, folder: Path, show: Callable[[int, int], object] = lambda done, total: None
) -> tuple[ExportManifest, Elsewhere]:
    """Write everything that ``store`` holds to ``folder``, which must be empty; and what was elsewhere.

    ``show`` is called with (rows done, rows in all).

    Raises:
        UsageError: ``folder`` is not empty.
        StoreUnavailable: the store cannot be read.
        OSError: the folder cannot be written.
    """
    manifest.new_folder(folder, "the export", store.layout.root)
    now = utcnow().isoformat()
    waiting = elsewhere(store.layout, store.meta, store.settings)
    seen = _Seen()
    with snapshot(store.layout, store.settings.lock_timeout) as taken:
        tables = [name for n in range(taken.meta.lanes) if _there(taken, name := taken.meta.lane_table(n))]
        total = sum(table_of(taken.layout.root, name).count_rows() for name in [RECORDS, *tables])
        schema = record_schema(taken.meta.embedder.dims)
        for batch in _written(folder, "records", _records(taken, schema, seen), schema, seen):
            seen.records += len(batch)
            seen.with_vector += len(batch) - batch["embedding"].null_count
            show(seen.records, total)
        for batch in _written(folder, "provenance", _entries(taken, tables, seen), ENTRY_SCHEMA, seen):
            seen.entries += len(batch)
            show(seen.records + seen.entries, total)
        missing = _account(taken, folder, seen)
    sync_tree(folder)
    found = ExportManifest(
        format=manifest.EXPORT,
        version=VERSION,
        program=__version__,
        store_id=taken.meta.store_id,
        created_at=now,
        files=seen.files,
        embedder=taken.meta.embedder,
        lanes=taken.meta.lanes,
        records=seen.records,
        with_vector=seen.with_vector,
        entries=seen.entries,
        not_included=missing,
    )
    manifest.save(folder, found)
    return found, waiting


def _there(taken: Snapshot, name: str) -> bool:
    return taken.layout.table(name).exists()  # a lane is made on first use


def _written(
    folder: Path, name: str, tables: Iterable[pa.Table], schema: pa.Schema, seen: _Seen
) -> Iterator[pa.Table]:
    """Write ``tables`` to ``name-0000.parquet`` and so on; yields each once it is written."""
    writer, path, rows = None, folder, 0
    for table in tables:
        if writer is None:
            path = folder / f"{name}-{sum(file.name.startswith(name) for file in seen.files):04d}.parquet"
            writer, rows = pq.ParquetWriter(path, schema, compression="zstd"), 0
        writer.write_table(table)
        rows += len(table)
        yield table
        if rows >= FILE_ROWS:
            writer.close()
            writer = None
            seen.files.append(manifest.listed(folder, path, rows))
    if writer is not None:
        writer.close()
        seen.files.append(manifest.listed(folder, path, rows))


def _records(taken: Snapshot, schema: pa.Schema, seen: _Seen) -> Iterator[pa.Table]:
    column = taken.meta.vector_column
    forgotten = _texts(Tombstones(taken.layout.tombstones).ids() - taken.forgetting)
    going = _texts(taken.forgetting)
    for batch in scan(taken.layout.root, RECORDS):
        rows = pa.Table.from_batches([batch])
        if column != "embedding":
            rows = rows.select([name for name in rows.column_names if name != "embedding"])
            rows = rows.rename_columns(["embedding" if name == column else name for name in rows.column_names])
        rows = rows.select(schema.names).cast(schema)
        seen.half.update(map(UUID, rows["id"].filter(pc.is_in(rows["id"], value_set=forgotten)).to_pylist()))
        rows = rows.filter(pc.invert(pc.is_in(rows["id"], value_set=going)))
        for start in range(0, len(rows), STEP):
            yield rows.slice(start, STEP)


def _entries(taken: Snapshot, tables: list[str], seen: _Seen) -> Iterator[pa.Table]:
    gone = _texts(Tombstones(taken.layout.tombstones).ids() - seen.half)
    for name in tables:
        for rows in in_order(table_of(taken.layout.root, name), STEP):
            ended = pc.is_in(rows["record_id"], value_set=gone)
            for key in rows.filter(ended).select(["producer", "producer_seq"]).to_pylist():
                seen.ended.setdefault(key["producer"], []).append(key["producer_seq"])
            kept = rows.filter(pc.invert(ended))
            producers = kept["producer"].combine_chunks().dictionary_encode()
            names = producers.dictionary.to_pylist()
            seen.book.add(Place.APPLIED, seen.book.keys(names, producers.indices, kept["producer_seq"]))
            yield kept


def _account(taken: Snapshot, folder: Path, seen: _Seen) -> int:
    """Keep why numbers have no row, so that the account adds up where this is read; how many are elsewhere."""
    log = Exclusions(folder / LEFT_OUT)
    for why, producer, first, last in (spans := [*Exclusions(taken.layout.exclusions).read()]):
        if why is not ExclusionReason.LATE:
            seen.book.add_seqs(Place.UNKNOWN, producer, range(first, last + 1))
    for producer, seqs in seen.ended.items():
        seen.book.add_seqs(Place.FORGOTTEN, producer, seqs)
    accounts = seen.book.accounts()
    lost = [Span(ExclusionReason.LOST, one.producer, first, last) for one in accounts for first, last in one.gaps]
    log.add_spans(spans)
    for producer, seqs in seen.ended.items():
        log.add(ExclusionReason.FORGOTTEN, [(producer, seq) for seq in seqs])
    log.add_spans(lost)
    if (folder / LEFT_OUT).exists():
        seen.files.append(manifest.listed(folder, folder / LEFT_OUT))
    return sum(account.missing for account in accounts)


def _texts(ids: Iterable[UUID]) -> pa.Array:
    return pa.array([str(one) for one in ids], pa.string())
