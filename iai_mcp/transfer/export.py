"""``iai-mcp export``: memories and provenance as a folder of Parquet files, streamed from a snapshot.

The manifest is written last, so an interrupted export is recognised. Forgotten memories are not in it. Entries
that are in no table (on their way, or dead letters) are counted, and named in its log of left-out entries.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from iai_mcp._version import __version__
from iai_mcp.common.files import sync_tree
from iai_mcp.common.private import new_private
from iai_mcp.common.times import utcnow
from iai_mcp.maintenance.ledger import EntryState, LedgerBuilder
from iai_mcp.maintenance.pending import Pending, pending
from iai_mcp.storage.exclusions import ExclusionReason, Exclusions, Span
from iai_mcp.storage.layout import RECORDS
from iai_mcp.storage.snapshot import Snapshot, snapshot
from iai_mcp.storage.tables.catalog import scan, table_of
from iai_mcp.storage.tables.lane_reader import in_order
from iai_mcp.storage.tables.record_rows import record_schema
from iai_mcp.storage.tables.row_checks import LANE_SEQ_MAX, sound
from iai_mcp.storage.tombstones import Tombstones
from iai_mcp.store import MemoryStore
from iai_mcp.transfer import manifest
from iai_mcp.transfer.format import ENTRY_SCHEMA, EXCLUSIONS, EXPORT_VERSION, ExportManifest
from iai_mcp.transfer.manifest import ENTRY_FILES, EXPORT, RECORD_FILES, ListedFile

__all__ = ["export"]

STEP = 20_000  # rows in memory at a time
FILE_ROWS = 200_000


@dataclass(slots=True)
class _Progress:
    """What has been written so far.

    Attributes:
        unsound: rows that cannot be entries; they are left out.
        half: ids of memories that are forgotten and still there, because a process died half-way.
        ended: sequence numbers by producer, of entries left out because their memory is forgotten.
    """

    files: list[ListedFile] = field(default_factory=list)
    records: int = 0
    with_vector: int = 0
    entries: int = 0
    unsound: int = 0
    half: set[UUID] = field(default_factory=set)
    builder: LedgerBuilder = field(default_factory=LedgerBuilder)
    ended: dict[str, list[int]] = field(default_factory=dict)


def export(
    store: MemoryStore, folder: Path, show: Callable[[int, int], object] = lambda done, total: None
) -> tuple[ExportManifest, Pending]:
    """Write everything that ``store`` holds to ``folder``, which must be empty or missing.

    ``show`` is called with (rows done, rows in all).

    Returns:
        The manifest, and what waited outside of the store's tables.

    Raises:
        UsageError: ``folder`` is not empty.
        StoreUnavailable: the store cannot be read.
        OSError: the folder cannot be written.
    """
    manifest.new_folder(folder, "the export", store.layout.root)
    now = utcnow().isoformat()
    waits = pending(store.layout, store.meta, store.settings)
    done = _Progress()
    with snapshot(store.layout, store.settings.lock_timeout) as taken:
        _write_tables(taken, folder, done, show)
        missing = _write_exclusions(taken, folder, done)
    sync_tree(folder)
    found = ExportManifest(
        format=EXPORT,
        version=EXPORT_VERSION,
        program=__version__,
        store_id=taken.meta.store_id,
        created_at=now,
        files=done.files,
        embedder=taken.meta.embedder,
        lanes=taken.meta.lanes,
        records=done.records,
        with_vector=done.with_vector,
        entries=done.entries,
        not_included=missing,
        unsound=done.unsound,
    )
    manifest.save(folder, found)
    return found, waits


def _write_tables(taken: Snapshot, folder: Path, done: _Progress, show: Callable[[int, int], object]) -> None:
    tables = [name for n in range(taken.meta.lanes) if _exists(taken, name := taken.meta.lane_table(n))]
    total = sum(table_of(taken.layout.root, name).count_rows() for name in [RECORDS, *tables])
    schema = record_schema(taken.meta.embedder.dims)
    for batch in _written(folder, RECORD_FILES, _records(taken, schema, done), schema, done):
        done.records += len(batch)
        done.with_vector += len(batch) - batch["embedding"].null_count
        show(done.records, total)
    for batch in _written(folder, ENTRY_FILES, _entries(taken, tables, done), ENTRY_SCHEMA, done):
        done.entries += len(batch)
        show(done.records + done.entries, total)


def _exists(taken: Snapshot, name: str) -> bool:
    return taken.layout.table(name).exists()  # a lane is made on first use


def _written(
    folder: Path, name: str, tables: Iterable[pa.Table], schema: pa.Schema, done: _Progress
) -> Iterator[pa.Table]:
    """Write ``tables`` to ``name-0000.parquet``, ``name-0001.parquet``, ...; yields each once it is written."""
    writer, path, rows = None, folder, 0
    for table in tables:
        if writer is None:
            path = folder / f"{name}-{sum(file.name.startswith(name) for file in done.files):04d}.parquet"
            new_private(path).close()  # PyArrow keeps the mode of a file that is there
            writer, rows = pq.ParquetWriter(path, schema, compression="zstd"), 0
        writer.write_table(table)
        rows += len(table)
        yield table
        if rows >= FILE_ROWS:
            writer.close()
            writer = None
            done.files.append(manifest.listed(folder, path, rows))
    if writer is not None:
        writer.close()
        done.files.append(manifest.listed(folder, path, rows))


def _records(taken: Snapshot, schema: pa.Schema, done: _Progress) -> Iterator[pa.Table]:
    column = taken.meta.vector_column
    forgotten = _texts(Tombstones(taken.layout.tombstones).ids() - taken.forgetting)
    going = _texts(taken.forgetting)
    for batch in scan(taken.layout.root, RECORDS):
        rows = pa.Table.from_batches([batch])
        if column != "embedding":
            rows = rows.select([name for name in rows.column_names if name != "embedding"])
            rows = rows.rename_columns(["embedding" if name == column else name for name in rows.column_names])
        rows = rows.select(schema.names).cast(schema)
        done.half.update(map(UUID, rows["id"].filter(pc.is_in(rows["id"], value_set=forgotten)).to_pylist()))
        rows = rows.filter(pc.invert(pc.is_in(rows["id"], value_set=going)))
        for start in range(0, len(rows), STEP):
            yield rows.slice(start, STEP)


def _entries(taken: Snapshot, tables: list[str], done: _Progress) -> Iterator[pa.Table]:
    gone = _texts(Tombstones(taken.layout.tombstones).ids() - done.half)
    for name in tables:
        table = table_of(taken.layout.root, name)
        done.unsound += table.count_rows() - table.count_rows(f"seq >= 1 AND seq <= {LANE_SEQ_MAX}")
        for found in in_order(table, STEP):
            rows = found.filter(pa.array(sound(found)))
            done.unsound += len(found) - len(rows)
            ended = pc.is_in(rows["record_id"], value_set=gone)
            for key in rows.filter(ended).select(["producer", "producer_seq"]).to_pylist():
                done.ended.setdefault(key["producer"], []).append(key["producer_seq"])
            kept = rows.filter(pc.invert(ended))
            producers = kept["producer"].combine_chunks().dictionary_encode()
            names = producers.dictionary.to_pylist()
            done.builder.add(EntryState.APPLIED, done.builder.keys(names, producers.indices, kept["producer_seq"]))
            yield kept


def _write_exclusions(taken: Snapshot, folder: Path, done: _Progress) -> int:
    """Log why entries have no row, so that an importing store can account for them.

    Returns:
        The number of entries for which there is no reason: they were on their way, or dead letters.
    """
    log = Exclusions(folder / EXCLUSIONS)
    for why, producer, first, last in (spans := [*Exclusions(taken.layout.exclusions).read()]):
        if why is not ExclusionReason.LATE:
            done.builder.add_span(EntryState.UNKNOWN, producer, first, last)
    for producer, seqs in done.ended.items():
        done.builder.add_seqs(EntryState.FORGOTTEN, producer, seqs)
    ledgers = done.builder.build()
    lost = [Span(ExclusionReason.LOST, one.producer, first, last) for one in ledgers for first, last in one.gaps]
    log.add_spans(spans)
    for producer, seqs in done.ended.items():
        log.add(ExclusionReason.FORGOTTEN, [(producer, seq) for seq in seqs])
    log.add_spans(lost)
    if os.path.lexists(folder / EXCLUSIONS):
        done.files.append(manifest.listed(folder, folder / EXCLUSIONS))
    return sum(ledger.missing for ledger in ledgers)


def _texts(ids: Iterable[UUID]) -> pa.Array:
    return pa.array([str(one) for one in ids], pa.string())
