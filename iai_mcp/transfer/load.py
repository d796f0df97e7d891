"""``iai-mcp import`` of an export: adds memories and provenance as they were, in durable batches.

Everything is checked before the first write. Existing memories and entries are left alone, so an interrupted
import can be run again. Memories that this store has forgotten stay forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from iai_mcp.config import Settings
from iai_mcp.embedders import registry
from iai_mcp.errors import BrokenCopy, ConfigError, EmbeddingMismatch
from iai_mcp.maintenance.reembed import reembed
from iai_mcp.storage.dead_letters import DeadLetters, Raw
from iai_mcp.storage.exclusions import ExclusionReason, Exclusions, Span, ranges, uncovered
from iai_mcp.storage.layout import Layout
from iai_mcp.storage.meta import COUNT_MAX, EmbedderMeta, read_meta
from iai_mcp.storage.tables.record_rows import record_schema
from iai_mcp.storage.tables.reports import AppendReport, MergeReport
from iai_mcp.storage.tables.row_checks import as_text, sound
from iai_mcp.store import MemoryStore
from iai_mcp.transfer import manifest
from iai_mcp.transfer.format import ENTRY_SCHEMA, EXCLUSIONS, EXPORT_VERSION, ExportManifest
from iai_mcp.transfer.manifest import ENTRY_FILES, EXPORT, RECORD_FILES, ListedFile

__all__ = ["Loaded", "load"]

STEP = 4096  # rows of one commit
UNSOUND = "UnsoundRow: a row of an export that cannot be an entry"
_LIMITS = {"thrift_string_size_limit": 2**24, "thrift_container_size_limit": 2**20}  # of a file's own description
_GROUPS_MAX = 2**16
_BATCH_BYTES = 2**30  # of one commit's rows


@dataclass(frozen=True, slots=True)
class Loaded:
    """The result of an import.

    Attributes:
        manifest: of the export.
        records: numbers of memories that were added, existed or are forgotten.
        entries: the same for provenance; ``unknown`` counts entries whose memory this store does not have.
        embedded: number of new vectors (``--reembed``).
        dead: rows of the export that cannot be entries; they are dead letters now.
    """

    manifest: ExportManifest
    records: MergeReport
    entries: AppendReport
    embedded: int = 0
    dead: int = 0


def load(
    folder: Path,
    settings: Settings,
    *,
    anew: bool = False,
    show: Callable[[int, int], object] = lambda done, total: None,
) -> Loaded:
    """Add the export in ``folder`` to the store of ``settings``; with ``anew``, make all its vectors anew.

    ``show`` is called with (rows done, rows in all).

    Raises:
        BrokenCopy: the export is incomplete or damaged; nothing was written.
        EmbeddingMismatch: another embedder made its vectors; nothing was written.
        ConfigError: ``anew`` is set and no embedder is configured; nothing was written.
        StoreUnavailable: the store cannot be written; the same call goes on.
    """
    found = manifest.read(folder, ExportManifest, EXPORT, EXPORT_VERSION)
    manifest.check(folder, found.files)
    _check_schemas(folder, found)
    _check_embedder(found, settings, anew)
    _check_contents(folder, found.files)
    with closing(MemoryStore(settings.store_path, settings=settings)) as store:
        return _load(folder, found, store, anew, show)


def _load(
    folder: Path, found: ExportManifest, store: MemoryStore, anew: bool, show: Callable[[int, int], object]
) -> Loaded:
    total, done, records, entries = found.records + found.entries, 0, MergeReport(), AppendReport()
    for rows in _batches(folder, found.files, RECORD_FILES):
        records += store.merge_records(_without_vectors(rows, store) if anew else rows)
        show(done := done + len(rows), total)
    unknown: dict[str, list[int]] = {}
    dead = 0
    for whole in _batches(folder, found.files, ENTRY_FILES):
        rows = whole.filter(pa.array(kept := sound(whole)))
        unsound = whole.filter(pa.array(~kept)).to_batches(max_chunksize=1)
        DeadLetters(store.layout).add_raws(0, [Raw(as_text(row), UNSOUND) for row in unsound])
        dead += len(unsound)
        report, left = store.merge_entries(rows)
        entries += report
        for table in left:
            for key in table.select(["producer", "producer_seq"]).to_pylist():
                unknown.setdefault(key["producer"], []).append(key["producer_seq"])
        show(done := done + len(whole), total)
    _note_exclusions(store, folder, found, unknown)
    store.tidy()
    embedded = reembed(store).embedded if anew and store.count_without_vector() else 0
    return Loaded(found, records, entries, embedded, dead)


def _check_schemas(folder: Path, found: ExportManifest) -> None:
    for name, schema in ((RECORD_FILES, record_schema(found.embedder.dims)), (ENTRY_FILES, ENTRY_SCHEMA)):
        rows = 0
        for file in _of(found.files, name):
            try:
                with pq.ParquetFile(folder / file.name, **_LIMITS) as parquet:
                    meta, there = parquet.metadata, parquet.schema_arrow
            except (pa.ArrowException, OSError) as error:
                raise BrokenCopy(f"{folder / file.name} is not a Parquet file ({str(error)[:100]})") from None
            if [(f.name, f.type) for f in there] != [(f.name, f.type) for f in schema]:
                raise BrokenCopy(
                    f"{folder / file.name} has other columns than an export of version {EXPORT_VERSION}"
                )
            if not 0 <= meta.num_rows <= COUNT_MAX or meta.num_row_groups > _GROUPS_MAX:
                raise BrokenCopy(f"{folder / file.name} has an impossible number of rows: take another copy")
            rows += meta.num_rows
        wanted = found.records if name == RECORD_FILES else found.entries
        if rows != wanted:
            raise BrokenCopy(f"{folder} holds {rows} rows of {name}, its manifest says {wanted}")


def _check_contents(folder: Path, files: list[ListedFile]) -> None:
    """Read every row before the first is written: pages may be damaged though the manifest has their hash."""
    for name in (RECORD_FILES, ENTRY_FILES):
        for file in _of(files, name):
            try:
                for rows in _batches(folder, [file], name):
                    rows.validate(full=True)
                    if rows.nbytes > _BATCH_BYTES:
                        raise BrokenCopy(f"{folder / file.name} has rows of more than {_BATCH_BYTES:,} bytes")
            except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
                reason = " ".join(str(error).split())[:100]
                raise BrokenCopy(f"{folder / file.name} cannot be read ({reason}): take another copy") from None


def _check_embedder(found: ExportManifest, settings: Settings, anew: bool) -> None:
    """Refuse vectors of another embedder than the store's: they cannot be compared."""
    configured = registry.describe(settings)
    if anew and configured is None:
        raise ConfigError("--reembed needs an embedder: set IAI_MCP_EMBEDDER, for instance to builtin")
    layout = Layout(settings.store_path.absolute())
    if anew or not found.with_vector:
        return
    theirs = found.embedder
    if layout.meta.exists():
        ours = read_meta(layout).embedder
    else:
        ours = (
            EmbedderMeta(configured.name, configured.dims, configured.weights)
            if configured
            else EmbedderMeta("none", theirs.dims)
        )
    same_weights = not ours.weights or not theirs.weights or ours.weights == theirs.weights
    if (ours.name, ours.dims) == (theirs.name, theirs.dims) and same_weights:
        return
    raise EmbeddingMismatch(
        f"{theirs.name} ({theirs.dims} dimensions) made the vectors of this export, and {ours.name} ({ours.dims}) "
        "those of the store: use --reembed to make them anew, or IAI_MCP_EMBEDDER to choose the embedder of a new "
        "store"
    )


def _batches(folder: Path, files: list[ListedFile], name: str) -> Iterator[pa.Table]:
    for file in _of(files, name):
        with pq.ParquetFile(folder / file.name, **_LIMITS) as parquet:
            for batch in parquet.iter_batches(batch_size=STEP):
                yield pa.Table.from_batches([batch])


def _of(files: list[ListedFile], name: str) -> list[ListedFile]:
    return sorted((file for file in files if file.name.startswith(f"{name}-")), key=lambda file: file.name)


def _without_vectors(rows: pa.Table, store: MemoryStore) -> pa.Table:
    at = rows.column_names.index("embedding")
    kind = pa.list_(pa.float32(), store.meta.embedder.dims)
    return rows.set_column(at, pa.field("embedding", kind), pa.nulls(len(rows), kind))


def _note_exclusions(
    store: MemoryStore, folder: Path, found: ExportManifest, unknown: dict[str, list[int]]
) -> None:
    """Note why entries of the imported producers have no row, except what this store has noted before."""
    spans = [
        Span(ExclusionReason.UNKNOWN, producer, first, last)
        for producer, seqs in unknown.items()
        for first, last in ranges(seqs)
    ]
    if found.store_id != store.store_id:  # a store knows more of its own entries than its export does
        spans += Exclusions(folder / EXCLUSIONS).read()
    store.exclusions.add_spans(uncovered(spans, store.exclusions.read()))
