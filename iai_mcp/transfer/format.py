"""What export and import, and backup and restore, agree on: versions, manifests and columns."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import msgspec

from iai_mcp.storage.meta import Count, EmbedderMeta, LaneCount
from iai_mcp.storage.tables.rows import LANE_SCHEMA
from iai_mcp.transfer.manifest import CopyManifest

__all__ = [
    "BACKUP_VERSION",
    "ENTRY_SCHEMA",
    "EXCLUSIONS",
    "EXPORT_VERSION",
    "BackupManifest",
    "ExportManifest",
]

BACKUP_VERSION = 1
EXPORT_VERSION = 1
EXCLUSIONS = "exclusions.jsonl"  # of an export: why entries have no row, in the format of the store's own log
ENTRY_SCHEMA = LANE_SCHEMA  # of an export's provenance files


class ExportManifest(CopyManifest, frozen=True, kw_only=True):
    """The manifest of an export.

    Attributes:
        embedder: what made the vectors.
        lanes: of the exported store; an import may have another number.
        records, entries: number of memories and of provenance entries.
        with_vector: how many of the ``records`` have a vector.
        not_included: entries that were in no table when the export was made: on their way, or dead letters.
        unsound: rows that were left out, since they cannot be entries.
    """

    embedder: EmbedderMeta
    lanes: LaneCount
    records: Count
    with_vector: Count
    entries: Count
    not_included: Count
    unsound: Count = 0


class BackupManifest(CopyManifest, frozen=True, kw_only=True):
    """The manifest of a backup.

    Attributes:
        source: the path of the store.
        records, entries: rows in its tables.
        spilled: entries in the copied spill files; some may be in the tables as well.
        not_included: entries that waited in Redis and still do; None where Redis could not be read.
        forgetting: memories whose deletion had begun; a restore completes it.
    """

    source: Annotated[str, msgspec.Meta(max_length=4096, pattern=r"^[^\x00]*\Z")]
    lanes: LaneCount
    embedder: EmbedderMeta
    records: Count
    entries: Count
    spilled: Count
    not_included: Count | None
    forgetting: list[UUID]
