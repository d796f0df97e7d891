"""The outcomes of writes to the tables of a store."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

__all__ = ["AppendReport", "MergeReport", "Merged"]


@dataclass(frozen=True, slots=True)
class AppendReport:
    """The outcome of one write, in entries.

    Attributes:
        applied: rows that are new in the lane tables.
        duplicate: entries whose key was there already.
        unknown: entries left out because their record does not exist or was deleted.
        conflict: those of ``applied`` whose number another entry has, which says something else.
    """

    applied: int = 0
    duplicate: int = 0
    unknown: int = 0
    conflict: int = 0

    def __add__(self, other: AppendReport) -> AppendReport:
        return AppendReport(
            self.applied + other.applied,
            self.duplicate + other.duplicate,
            self.unknown + other.unknown,
            self.conflict + other.conflict,
        )


@dataclass(frozen=True, slots=True)
class Merged:
    """The outcome of a merge of existing rows.

    Attributes:
        report: the same as of an append.
        unknown: the rows left out because their record does not exist or was deleted.
        repeats: rows whose caller had given their ``entry_id`` to an earlier entry.
    """

    report: AppendReport
    unknown: pa.Table
    repeats: int


@dataclass(frozen=True, slots=True)
class MergeReport:
    """The outcome of a merge of memories of another store, in memories.

    Attributes:
        added: new in this store.
        existing: left as they are: their id is in this store already.
        forgotten: left out: they were forgotten in this store.
    """

    added: int = 0
    existing: int = 0
    forgotten: int = 0

    def __add__(self, other: MergeReport) -> MergeReport:
        return MergeReport(
            self.added + other.added, self.existing + other.existing, self.forgotten + other.forgotten
        )
