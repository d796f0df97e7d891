"""``iai-mcp backup``: a consistent copy of a store while clients write, as a folder with a manifest.

The copy is taken from a snapshot, so no compaction or cleanup can disturb it, and forgotten memories are not in
it. It can only lag: every entry is in the tables, in the copied spill, or was on its way and is counted.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from iai_mcp._version import __version__
from iai_mcp.common.files import sync_tree
from iai_mcp.common.private import new_private, private_folder
from iai_mcp.common.regular_files import read_regular
from iai_mcp.common.times import utcnow
from iai_mcp.config import Settings, overflow_dir
from iai_mcp.maintenance.pending import Pending, pending
from iai_mcp.spill.listing import listing, outlines
from iai_mcp.spill.names import SEGMENT_MAX
from iai_mcp.storage.layout import RECORDS, Layout
from iai_mcp.storage.meta import read_meta
from iai_mcp.storage.snapshot import Snapshot, snapshot
from iai_mcp.storage.tables.catalog import table_of
from iai_mcp.storage.tables.erasure import Erasure
from iai_mcp.transfer import manifest
from iai_mcp.transfer.format import BACKUP_VERSION, BackupManifest
from iai_mcp.transfer.manifest import BACKUP, ListedFile

__all__ = ["backup"]

_EXCLUSIVE_AGE = 0.001  # s: only we read the snapshot's tables, so every old version of them may go


@dataclass(frozen=True, slots=True)
class _CopiedSpill:
    """The copied spill files, and the number of entries in them."""

    files: list[ListedFile]
    entries: int


def backup(
    layout: Layout, settings: Settings, folder: Path, show: Callable[[int, int], object]
) -> tuple[BackupManifest, Pending]:
    """Copy the store to ``folder``, which must be empty or missing.

    ``show`` is called with (files done, files in all).

    Returns:
        The manifest, and what waited outside of the store's tables.

    Raises:
        UsageError: ``folder`` is not empty.
        StoreUnavailable: the store cannot be read.
        OSError: the folder cannot be written.
    """
    manifest.new_folder(folder, "the backup", layout.root)
    now = utcnow().isoformat()
    meta = read_meta(layout)
    spilled = _copy_spill(settings, meta.store_id, folder)  # first: what leaves it later is in the tables
    waits = pending(layout, meta, settings)
    with snapshot(layout, settings.lock_timeout) as taken:
        counts = _tidied(taken)
        sources = [path for path in sorted(taken.layout.root.rglob("*")) if not path.is_dir()]
        files = [*spilled.files]
        for path in sources:
            name = f"store/{path.relative_to(taken.layout.root).as_posix()}"
            files.append(manifest.copy(path, folder, name))
            show(len(files), len(sources) + len(spilled.files))
    found = BackupManifest(
        format=BACKUP,
        version=BACKUP_VERSION,
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
        not_included=waits.redis.entries if waits.redis is not None else None,
        forgetting=sorted(taken.forgetting),
    )
    sync_tree(folder)
    manifest.save(folder, found)
    return found, waits


def _copy_spill(settings: Settings, store_id: str, folder: Path) -> _CopiedSpill:
    """Copy this store's spill files, whole lines only, including those that a living process holds."""
    files, entries = [], 0
    for file in listing(overflow_dir(settings)):
        if file.store != store_id or file.set_aside:
            continue
        with suppress(FileNotFoundError):  # it was drained meanwhile
            data = read_regular(file.path, SEGMENT_MAX)
            target = folder / "spill" / file.path.name
            private_folder(target.parent)
            with new_private(target) as out:
                out.write(data[: data.rfind(b"\n") + 1])
            files.append(manifest.listed(folder, target))
            entries += sum(len(line.seqs) for line in outlines(target) if line is not None)
    return _CopiedSpill(files, entries)


def _tidied(taken: Snapshot) -> dict[str, int]:
    """Leave one version of each table, without deleted rows; returns the number of rows by table."""
    layout, rows = taken.layout, {}
    tables = [(RECORDS, "role"), *((taken.meta.lane_table(number), "rank") for number in range(taken.meta.lanes))]
    for name, column in tables:
        if layout.table(name).exists():
            table = table_of(layout.root, name)
            Erasure(table, column, layout.erasure(name), _EXCLUSIVE_AGE).run()
            rows[name] = table.count_rows()
    return rows
