"""Reads one lane's table of provenance rows.

Every read sees the latest commit of any process. A writer without the lane's lock may leave two rows of one
``entry_id``; each method says whether it removes the second one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from iai_mcp.common.arrays import repeated
from iai_mcp.storage.tables.lance import Table, retry_vanished
from iai_mcp.storage.tables.row_checks import LANE_SEQ_MAX, on_calendar
from iai_mcp.storage.tables.rows import codes, distinct

__all__ = ["MAINTAIN_EVERY", "LaneReader", "in_order", "piled_up"]

MAINTAIN_EVERY = 64  # commits; a merge slows by about 0.1 ms per fragment that the index does not cover
PILED_UP = 8 * MAINTAIN_EVERY  # versions or fragments


class LaneReader:
    """The reading half of a lane.

    Args:
        table: the lane's table.
        folder: the folder of its files.
        check_here: called before each access; raises where the store is gone, or another one is in its place.
    """

    def __init__(self, table: Table, folder: Path, check_here: Callable[[], None] = lambda: None) -> None:
        self._opened = table
        self._folder = folder
        self._check_here = check_here

    @property
    def _table(self) -> Table:
        self._check_here()
        return self._opened

    @retry_vanished
    def rows(self, conditions: Iterable[str], columns: list[str] | None = None) -> pa.Table:
        """Raw rows that meet every SQL condition, in no particular order, duplicate rows included.

        Args:
            columns: the columns to read; None for all of ``LANE_SCHEMA``.

        Raises:
            StoreUnavailable: the table cannot be read.
        """
        query = self._table.search()
        if where := " AND ".join(conditions):
            query = query.where(where)
        if columns:
            query = query.select(columns)
        return on_calendar(query.to_arrow())

    def batches(self, conditions: Iterable[str], columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Raw rows like :meth:`rows`, as they are read. The caller repeats a read that fails."""
        query = self._table.search().select(columns)
        if where := " AND ".join(conditions):
            query = query.where(where)
        yield from query.to_batches()

    def entries(self, conditions: Iterable[str]) -> list[dict[str, Any]]:
        """The entries that meet every SQL condition, in order (``seq``, ``producer_seq``), each key once.

        Raises:
            StoreUnavailable: the table cannot be read.
        """
        return distinct(self.rows(conditions).to_pylist())

    def in_order(self, step: int) -> Iterator[pa.Table]:
        """Every row in the order of ``seq``, at most ``step`` rows at a time, each key once."""
        return in_order(self._table, step)

    @property
    @retry_vanished
    def version(self) -> int:
        """The number of the latest commit of any process."""
        return int(self._table.version)

    @retry_vanished
    def count(self, conditions: Iterable[str] = ()) -> int:
        """Number of raw rows that meet every SQL condition, duplicate rows included."""
        return int(self._table.count_rows(" AND ".join(conditions) or None))

    @retry_vanished
    def stats(self) -> dict[str, int]:
        """The number of ``rows``, ``versions`` and ``fragments``, and the ``bytes`` on disk."""
        size = sum(path.stat().st_size for path in self._folder.rglob("*") if path.is_file())
        fragments = self._table.stats()["fragment_stats"]["num_fragments"]
        versions = sum(1 for path in (self._folder / "_versions").iterdir() if path.suffix == ".manifest")
        return {"rows": self.count(), "versions": versions, "fragments": int(fragments), "bytes": size}


def in_order(table: Table, step: int) -> Iterator[pa.Table]:
    """Rows of a lane's table in the order of ``seq``, at most ``step`` at a time, each key once.

    Rows with a ``seq`` that no row can have are left out.
    """
    possible = f"seq >= 1 AND seq <= {LANE_SEQ_MAX}"
    keys = table.search().where(possible).select(["seq", "entry_id"]).to_arrow().sort_by("seq")
    again = pa.array(repeated(codes(keys["entry_id"])))
    duplicates = set(zip(*(keys.filter(again)[name].to_pylist() for name in keys.column_names), strict=True))
    seqs = np.asarray(keys["seq"])
    del keys
    for start in range(0, len(seqs), step):
        first, last = int(seqs[start]), int(seqs[min(start + step, len(seqs)) - 1])
        if start and first == seqs[start - 1]:
            first += 1  # the step before has read every row of this number
        rows = table.search().where(f"seq >= {first} AND seq <= {last}").to_arrow()
        rows = rows.sort_by([("seq", "ascending"), ("producer_seq", "ascending")])
        if duplicates:
            named = zip(rows["seq"].to_pylist(), rows["entry_id"].to_pylist(), strict=True)
            rows = rows.filter(pa.array([key not in duplicates for key in named], pa.bool_()))
        yield rows


def piled_up(stats: Mapping[str, int]) -> bool:
    """Whether a lane has missed its upkeep: reads and merges slow down with versions and fragments."""
    return stats["versions"] > PILED_UP or stats["fragments"] > PILED_UP
