"""The tables of one store. Opens them; creates and indexes missing ones. The only module that imports LanceDB."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Container, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import FTS, BTree

from iai_mcp.common.files import sync_path, sync_tree
from iai_mcp.config import Settings
from iai_mcp.entries.routing import lane_of
from iai_mcp.errors import StoreUnavailable
from iai_mcp.storage.exclusions import Exclusions
from iai_mcp.storage.facts import StoreFacts
from iai_mcp.storage.layout import RECORDS, Layout, lane_table
from iai_mcp.storage.scratch import scratch
from iai_mcp.storage.sound_folder import check_table
from iai_mcp.storage.tables.lance import Table, translated
from iai_mcp.storage.tables.lane import INDEXED, LaneContext, LaneTable
from iai_mcp.storage.tables.process import claim
from iai_mcp.storage.tables.record_rows import record_schema
from iai_mcp.storage.tables.records import RecordTable
from iai_mcp.storage.tables.rows import TABLE_SCHEMA
from iai_mcp.storage.tombstones import Tombstones
from iai_mcp.storage.writer_lock import WriterLock

__all__ = ["Tables", "by_lane", "merge_into", "scan", "table_of"]

_LANE = re.compile(r"(g(?P<generation>\d+)_)?lane_\d+")


class Tables:
    """The tables of a store, for one process. Every handle sees the latest commit of any process.

    Attributes:
        records: the table of memories.

    Raises:
        StoreUnavailable: the tables cannot be opened or created.
    """

    def __init__(
        self, layout: Layout, settings: Settings, facts: StoreFacts, tombstones: Tombstones, exclusions: Exclusions
    ) -> None:
        self._layout = layout
        self._check_here = facts.check_here
        meta = facts.opened
        self._db = _connect(layout.root, read_consistency_interval=timedelta(0))
        self._schema_lock = WriterLock(layout.schema_lock, settings.lock_timeout)
        schema = record_schema(meta.embedder.dims, meta.vector_column)
        with translated():
            table = self._open(RECORDS, schema, ["id"], text="index_text")
            self.records = RecordTable(table, layout, settings, facts.check_here)
        self._context = LaneContext(
            layout, settings, tombstones, exclusions, self.records.some_ids, facts.check_here
        )

    def lane(self, generation: int, number: int, check: Callable[[], None] = lambda: None) -> LaneTable:
        """Open one lane; ``check`` is called before each write, and raises to refuse it."""
        name = lane_table(number, generation)
        with translated():
            return LaneTable(self._open(name, TABLE_SCHEMA, INDEXED), number, generation, self._context, check)

    def lanes_of(self, generation: int, lanes: int) -> list[LaneTable]:
        """Open the lanes of any generation; missing tables are created."""
        return [self.lane(generation, number) for number in range(lanes)]

    def drop_lanes(self, keep: Container[int]) -> None:
        """Remove the lane tables of every generation but ``keep``."""
        for path in self._layout.lane_tables():
            if (found := _LANE.fullmatch(path.stem)) and int(found["generation"] or 0) not in keep:
                with translated():
                    self._db.drop_table(path.stem)

    def _open(self, name: str, schema: Any, keys: Sequence[str], text: str | None = None) -> Table:
        """Open the table, or create it if it is missing. Adds an index that a full disk has prevented."""
        self._check_here()
        check_table(self._layout.table(name))
        try:
            table = self._db.open_table(name)
        except ValueError:  # LanceDB's error for a missing table
            self._create(name, schema, keys, text)
            table = self._opened(name)
        if _indexed(table) >= {*keys, *([text] if text else [])}:
            return table
        with self._schema_lock.hold():  # or without it: a second build does no harm
            _index(table, keys, text)
        return table

    def _opened(self, name: str) -> Table:
        try:
            return self._db.open_table(name)
        except ValueError as error:
            place = self._layout.table(name)
            raise StoreUnavailable(
                f"{place} is in the place of a table, but is none: restore a backup, or move it away"
            ) from error

    def _create(self, name: str, schema: Any, keys: Sequence[str], text: str | None) -> None:
        """Create the complete table in a scratch folder, then rename it, unless another process was faster.

        LanceDB itself checks for the table, and commits later: a process that was paused in between would empty
        the table that another process has created and filled meanwhile.
        """
        place = self._layout.table(name)
        with scratch(self._layout) as folder:
            _index(_connect(folder).create_table(name, schema=schema), keys, text)
            (folder / place.name).chmod(0o700)  # LanceDB has no mode of its own
            sync_tree(folder)
            try:
                os.rename(folder / place.name, place)  # fails if there is a folder with anything in it
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            sync_path(self._layout.root)


def _connect(folder: Path, **options: Any) -> Any:
    claim()
    return lancedb.connect(folder, **options)


def table_of(root: Path, name: str) -> Table:
    """Open a table as it is: nothing is created or repaired."""
    check_table(Layout(root).table(name))
    return _connect(root).open_table(name)


def scan(root: Path, name: str, *, skip_vectors: bool = False) -> Iterator[Any]:
    """Every row of a table as Arrow batches. The table is read as it is: nothing is created or repaired."""
    table = table_of(root, name)
    kept = [field.name for field in table.schema if not (skip_vectors and pa.types.is_fixed_size_list(field.type))]
    yield from table.search().select(kept).to_batches()


def by_lane(rows: pa.Table, lanes: int) -> Iterator[tuple[int, pa.Table]]:
    """Groups provenance rows by the lane of their record, each group in the order of ``rows``."""
    ids = rows["record_id"].combine_chunks().dictionary_encode()
    homes = np.array([lane_of(UUID(text), lanes) for text in ids.dictionary.to_pylist()], np.int64)
    found = homes[np.asarray(ids.indices, np.int64)]
    for number in np.unique(found).tolist():
        yield number, rows.filter(pa.array(found == number))


def merge_into(rows: pa.Table, lanes: Sequence[LaneTable]) -> int:
    """Add provenance rows to the lanes of their records; how many repeat the id of an earlier entry.

    Raises:
        StoreUnavailable: the storage is unavailable; the call may be repeated.
    """
    parts = by_lane(rows, len(lanes))
    return sum(lanes[number].merge(part, check_records=False).repeats for number, part in parts)


def _index(table: Table, keys: Sequence[str], text: str | None) -> None:
    """Add missing indexes: a B-tree for each of ``keys``, a full-text index for ``text``."""
    there = _indexed(table)
    for key in keys:
        if key not in there:
            table.create_index(key, config=BTree())
    if text and text not in there:
        table.create_index(text, config=FTS(with_position=False))


def _indexed(table: Table) -> set[str]:
    return {column for index in table.list_indices() for column in index.columns}
