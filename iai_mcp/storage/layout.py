"""The files of a store: the one module that spells their names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["RECORDS", "Layout", "lane_table"]

RECORDS = "records"
"""The name of the table of memories."""


def lane_table(lane: int, generation: int) -> str:
    """The name of a lane's table; a store gets a new generation whenever its number of lanes changes."""
    return f"g{generation}_lane_{lane}" if generation else f"lane_{lane}"


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one store.

    Attributes:
        root: the store's folder, absolute.
    """

    root: Path

    # -- beside the tables

    @property
    def meta(self) -> Path:
        """The store's own facts; a folder without this file is no store."""
        return self.root / "store.json"

    @property
    def tombstones(self) -> Path:
        """The log of deleted record ids."""
        return self.root / "tombstones.log"

    @property
    def exclusions(self) -> Path:
        """The log of entries that ended without a row."""
        return self.root / "exclusions.jsonl"

    @property
    def producers(self) -> Path:
        """The log of producers that ended before their entries were known to be in the store."""
        return self.root / "producers.jsonl"

    @property
    def dead_letters(self) -> Path:
        """The entries that could not be applied."""
        return self.root / "dead-letters.jsonl"

    @property
    def dead_letters_overflown(self) -> Path:
        """How many items were not kept as dead letters."""
        return self.root / "dead-letters-overflown.json"

    @property
    def scratch(self) -> Path:
        """Temporary folders, one for each process that needs one."""
        return self.root / "scratch"

    # -- tables

    def table(self, name: str) -> Path:
        """The folder of a table."""
        return self.root / f"{name}.lance"

    @property
    def records(self) -> Path:
        """The folder of the table of memories."""
        return self.table(RECORDS)

    def lane_tables(self) -> Iterator[Path]:
        """The folders of all lane tables, of every generation."""
        return self.root.glob("*lane_*.lance")

    # -- locks and notes

    @property
    def locks(self) -> Path:
        """The folder of locks and notes."""
        return self.root / "locks"

    @property
    def store_lock(self) -> Path:
        """Shared by every open store; exclusive while the number of lanes changes."""
        return self.locks / "store.lock"

    @property
    def schema_lock(self) -> Path:
        """Held while the store or an index of its tables is created."""
        return self.locks / "schema.lock"

    @property
    def place(self) -> Path:
        """What tells this folder from a copy of it."""
        return self.locks / "place.json"

    @property
    def records_lock(self) -> Path:
        """Held by the writer of the table of memories."""
        return self.locks / "records.lock"

    @property
    def dead_letters_lock(self) -> Path:
        """Held by the writer of the dead letters."""
        return self.locks / "dead-letters.lock"

    def lane_lock(self, lane: int) -> Path:
        """Held by the writer of a lane."""
        return self.locks / f"lane-{lane}.lock"

    def lane_token(self, lane: int) -> Path:
        """The highest fencing token that a lane has seen."""
        return self.locks / f"lane-{lane}.token"

    def lane_tokens(self) -> Iterator[Path]:
        """The token files of all lanes that were drained under a lease."""
        return self.locks.glob("lane-*.token")

    def erasure(self, table: str) -> Path:
        """The note of a table's files that still hold deleted rows."""
        return self.locks / f"{table}.erasure"

    def erasures(self) -> Iterator[Path]:
        """The notes of all tables that have one."""
        return self.locks.glob("*.erasure")

    def upkeep_note(self, table: str) -> Path:
        """The note of a table's upkeep that fails."""
        return self.locks / f"{table}.upkeep"

    def upkeep_notes(self) -> Iterator[Path]:
        """The notes of all tables whose upkeep fails."""
        return self.locks.glob("*.upkeep")

    @property
    def reshard_plan(self) -> Path:
        """The progress of an unfinished change of the number of lanes."""
        return self.locks / "reshard.plan"
