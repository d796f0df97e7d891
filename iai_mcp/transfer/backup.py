"""``iai-mcp backup``: a consistent copy of a store while clients write, as a folder with a manifest.

Taken from a snapshot, so that no compaction or cleanup can disturb it. What was forgotten is not in it. It can
only lag: an entry is in the tables, or in the copied spill, or it was still on its way and is counted.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from iai_mcp._version import __version__
from iai_mcp.common.files import sync_tree
from iai_mcp.common.times import utcnow
from iai_mcp.config import Settings, overflow_dir
from iai_mcp.maintenance.pending import Elsewhere, elsewhere
from iai_mcp.spill.listing import listing, outlines
from iai_mcp.storage.layout import RECORDS, Layout
from iai_mcp.storage.meta import EmbedderMeta, read_meta
from iai_mcp.storage.snapshot import Snapshot, snapshot
from iai_mcp.storage.tables.catalog import table_of
from iai_mcp.storage.tables.erasure import Erasure
from iai_mcp.transfer import manifest
from iai_mcp.transfer.manifest import Copied, Listed

__all__ = ["VERSION", "BackupManifest", "Spilled", "backup"]

VERSION = 1
_EXCLUSIVE_AGE = 0.001  # s: nobody else reads the snapshot's tables, so that every old version of them may go


class BackupManifest(Copied, frozen=True, kw_only=True):
    """What a backup is of.

    Attributes:
        source: where the store lay.
        records, entries: rows in its tables.
        spilled: entries in the copied spill files; some may be in the tables as well.
        not_included: entries that waited in Redis, where they still are; None where nobody could count them.
        forgetting: memories whose deletion had begun; a restore ends it.
    """

    source: str
    lanes: int
    embedder: EmbedderMeta
    records: int
    entries: int
    spilled: int
    not_included: int | None
    forgetting: list[UUID]


@dataclass(frozen=True, slots=True)
class Spilled:
    """What was copied of the spill."""

    files: list[Listed]
    entries: int


def backup(
    layout: Layout, settings: Settings, folder: Path, show: Callable[[int, int], object]
) -> tuple[BackupManifest, Elsewhere]:
    """Copy the store to ``folder``, which must be empty; what it holds, and what it does not.

    ``show`` is called with (files done, files in all).

    Raises:
        UsageError: ``folder`` is not empty.
        StoreUnavailable: the store cannot be read.
        OSError: the folder cannot be written.
    """
    manifest.new_folder(folder, "the backup", layout.root)
    now = utcnow().isoformat()
    meta = read_meta(layout)
    spilled = _spill(settings, meta.store_id, folder)  # first: what leaves it from now on is in the tables
    waiting = elsewhere(layout, meta, settings)
    with snapshot(layout, settings.lock_timeout) as taken:
        counts = _tidied(taken)
        sources = [path for path in sorted(taken.layout.root.rglob("*")) if path.is_file()]
        files = [*spilled.files]
        for path in sources:
            name = f"store/{path.relative_to(taken.layout.root).as_posix()}"
            files.append(manifest.copy(path, folder, name))
            show(len(files), len(sources) + len(spilled.files))
    found = BackupManifest(
        format=manifest.BACKUP,
        version=VERSION,
        program=__version__,
        store_id=taken.meta.store_id,
        created_at=now,
        files=files,
        source=str(layout.root),
        lanes=taken.meta.lanes,
        embedder=taken.meta.embedder,
        records=counts.pop(RECORDS, 0),
        entries=sum(counts.values()),
        spilled=spilled.entries,
        not_included=waiting.redis,
        forgetting=sorted(taken.forgetting),
    )
    sync_tree(folder)
    manifest.save(folder, found)
    return found, waiting


def _spill(settings: Settings, store_id: str, folder: Path) -> Spilled:
    """Copy this store's spill files, whole lines only; those that a living process holds among them."""
    files, entries = [], 0
    for file in listing(overflow_dir(settings)):
        if file.store != store_id or file.set_aside:
            continue
        with suppress(FileNotFoundError):  # it has just been drained
            data = file.path.read_bytes()
            target = folder / "spill" / file.path.name
            target.parent.mkdir(exist_ok=True, mode=0o700)
            target.write_bytes(data[: data.rfind(b"\n") + 1])
            target.chmod(0o600)
            files.append(manifest.listed(folder, target))
            entries += sum(len(line.seqs) for line in outlines(target) if line is not None)
    return Spilled(files, entries)


def _tidied(taken: Snapshot) -> dict[str, int]:
    """Leave one version of each table, without what was deleted; the rows of each."""
    layout, rows = taken.layout, {}
    tables = [(RECORDS, "role"), *((taken.meta.lane_table(number), "rank") for number in range(taken.meta.lanes))]
    for name, column in tables:
        if layout.table(name).exists():
            table = table_of(layout.root, name)
            Erasure(table, column, layout.erasure(name), _EXCLUSIVE_AGE).run()
            rows[name] = table.count_rows()
    return rows
