"""``iai-mcp restore``: makes a store from a backup, whose every file and entry is checked first.

The store keeps its identity, so entries that wait for it in Redis and in the spill still find it. Its fencing
tokens are raised above every token given out before, so no worker of the original can write to it.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from uuid import UUID

import msgspec

from iai_mcp.common.decimals import plain
from iai_mcp.common.files import replace_file, sync_tree
from iai_mcp.common.private import private_folder
from iai_mcp.common.regular_files import NOTE_MAX, read_regular
from iai_mcp.config import Settings, overflow_dir
from iai_mcp.errors import BrokenCopy, IaiMcpError, StoreError, UnfitFile, UsageError
from iai_mcp.maintenance.verify import Report, Source, verify
from iai_mcp.spill.names import SEGMENT_MAX, files_in, name_for_store, parse
from iai_mcp.storage.exclusions import ExclusionReason, Span
from iai_mcp.storage.layout import Layout
from iai_mcp.storage.meta import COUNT_MAX, StoreMeta, read_meta, save_meta
from iai_mcp.storage.tombstones import Tombstones
from iai_mcp.store import MemoryStore
from iai_mcp.transfer import manifest
from iai_mcp.transfer.format import BACKUP_VERSION, BackupManifest
from iai_mcp.transfer.manifest import BACKUP

__all__ = ["TOKEN_STEP", "Restored", "check_backup", "restore"]

TOKEN_STEP = 1_000_000  # leases, and reuses of forgotten ids, that a store may have made after its backup


@dataclass(frozen=True, slots=True)
class Restored:
    """The result of a restore.

    Attributes:
        missing: ranges of entries, by producer, that were on their way when the backup was made.
        forgotten: number of memories whose deletion had begun and was completed.
        spilled: number of spill files that were put back.
        report: the verification of the restored store.
    """

    manifest: BackupManifest
    store_id: str
    missing: dict[str, tuple[tuple[int, int], ...]]
    forgotten: int
    spilled: int
    report: Report


def restore(
    source: Path,
    settings: Settings,
    target: Path,
    *,
    as_copy: bool = False,
    show: Callable[[int, int], object] = lambda done, total: None,
) -> Restored:
    """Restore the backup in ``source`` to ``target``, which must be empty or missing; all of it, or nothing.

    With ``as_copy`` the store gets a new identity and may exist beside the original. ``show`` is called with
    (files done, files in all).

    Raises:
        BrokenCopy: the backup is incomplete or damaged; nothing was written.
        UsageError: ``target`` is not empty, or the original still exists.
        OSError: the folder cannot be written.
    """
    found = check_backup(source)
    target = target.absolute()
    _check_place(found, target, as_copy)
    private_folder(target.parent)
    building = target.parent / f".{target.name}.restoring"
    shutil.rmtree(building, ignore_errors=True)  # left by a restore that was killed
    try:
        _copy(source, found, building, show)
        _check_facts(source, found, _facts_in(building))
        done = _complete(found, building, settings, as_copy)
        sync_tree(building)
        spilled = _put_back(building / "spill", overflow_dir(settings))
        with suppress(FileNotFoundError):
            target.rmdir()
        os.rename(building / "store", target)
        sync_tree(target.parent)
        return replace(done, spilled=spilled)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def check_backup(source: Path) -> BackupManifest:
    """The manifest of the backup in ``source``, as far as it can be right.

    Raises:
        BrokenCopy: it is damaged, or names files that no backup has.
    """
    found = manifest.read(source, BackupManifest, BACKUP, BACKUP_VERSION)
    _check_names(source, found)
    return found


def _check_place(found: BackupManifest, target: Path, as_copy: bool) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(
            f"{target} is not empty: restore to a new or an empty folder, or move that one away first"
        )
    original = Layout(Path(found.source))
    if as_copy or not original.meta.exists():
        return
    existing = None
    with suppress(IaiMcpError, OSError):
        existing = read_meta(original).store_id
    if existing == found.store_id:
        raise UsageError(
            f"the original is still at {original.root}, and two stores of one identity would take each other's "
            "entries: use --as-copy to restore beside it, or move the original away first"
        )


_STORE_FILE = re.compile(
    r"store/((store\.json|tombstones\.log|exclusions\.jsonl|dead-letters\.jsonl)"
    r"|locks/(lane-\d{1,3}\.token|\w{1,100}\.erasure)"
    r"|(records|(g\d{1,13}_)?lane_\d{1,3})\.lance/[^\x00-\x1f]{1,400})"
)


def _check_names(source: Path, found: BackupManifest) -> None:
    """Refuse files that no backup has: a restored store must hold nothing else.

    Raises:
        BrokenCopy: the manifest names one.
    """
    for file in found.files:
        spill = PurePosixPath(file.name).parts
        if len(spill) == 2 and spill[0] == "spill" and parse(spill[1]) is not None:
            continue
        if _STORE_FILE.fullmatch(file.name) is None:
            raise BrokenCopy(f"{source / manifest.NAME} names a file that no backup has: {file.name!r}")


def _check_facts(source: Path, found: BackupManifest, meta: StoreMeta) -> None:
    """Compare what the manifest says of the store with what the store says.

    Raises:
        BrokenCopy: they differ.
    """
    if (meta.store_id, meta.lanes) != (found.store_id, found.lanes):
        raise BrokenCopy(f"{source / manifest.NAME} describes another store than the one in it: take another copy")


def _copy(source: Path, found: BackupManifest, building: Path, show: Callable[[int, int], object]) -> None:
    for done, file in enumerate(found.files, 1):
        try:
            manifest.opened(source, source / file.name).close()
            copied = manifest.copy(source / file.name, building, file.name, file.bytes)
        except (FileNotFoundError, NotADirectoryError):
            raise BrokenCopy(f"{source / file.name} is missing: take another backup") from None
        except UnfitFile as error:
            raise BrokenCopy(f"{error}: take another backup") from None
        manifest.same_file(source, file, copied)
        show(done, len(found.files))


def _facts_in(building: Path) -> StoreMeta:
    try:
        return read_meta(Layout(building / "store"))
    except StoreError as error:
        raise BrokenCopy(f"the backup cannot be used: {error}") from None


def _complete(found: BackupManifest, building: Path, settings: Settings, as_copy: bool) -> Restored:
    layout = Layout(building / "store")
    settings = replace(settings, spill_dir=building / "spill")
    meta = read_meta(layout)
    reuses = min(meta.reuses + TOKEN_STEP, COUNT_MAX)  # above those that the original made later
    meta = msgspec.structs.replace(meta, reuses=reuses)
    if as_copy:
        meta = msgspec.structs.replace(meta, store_id=uuid.uuid4().hex)
    save_meta(layout, meta)
    if as_copy:
        _rename_spill(building / "spill", found.store_id, meta.store_id)
    for path in layout.lane_tokens():
        replace_file(path, str((plain(read_regular(path, NOTE_MAX).strip()) or 0) + TOKEN_STEP).encode())
    store = MemoryStore(layout.root, settings=settings)
    ended = _end_forgetting(store, found.forgetting)
    report = verify(layout, settings, settle=0)
    if report.unreadable(Source.REDIS):
        settings = replace(settings, redis_url="")  # what waits in an unreachable Redis is not lost, only unseen
        report = verify(layout, settings, settle=0)
    if broken := report.unreadable():
        raise BrokenCopy(f"the backup cannot be used: {broken[0].message}")
    unknown = {UUID(record_id) for lane in report.lanes for record_id in lane.unknown_records}
    ended += _end_forgetting(store, unknown & Tombstones(layout.tombstones).ids())
    missing = {producer.producer: producer.lost for producer in report.producers if producer.lost}
    store.exclusions.add_spans(
        Span(ExclusionReason.LOST, producer, first, last)
        for producer, spans in missing.items()
        for first, last in spans
    )
    store.close()
    report = verify(layout, settings, settle=0)
    return Restored(found, meta.store_id, missing, ended, 0, report)


def _end_forgetting(store: MemoryStore, record_ids: Iterable[UUID]) -> int:
    ids = set(record_ids)
    for record_id in ids:
        store.delete(record_id)
    return len(ids)


def _rename_spill(folder: Path, old_id: str, new_id: str) -> None:
    """Give the copied spill files to the new identity: each line names its store."""
    for path, _ in files_in(folder):
        data = read_regular(path, SEGMENT_MAX).replace(
            f'"store":"{old_id}"'.encode(), f'"store":"{new_id}"'.encode()
        )
        replace_file(folder / name_for_store(path.name, old_id, new_id), data)
        path.unlink()


def _put_back(copied: Path, folder: Path) -> int:
    """Copy spill files to the folder from which clients replay them, except those that are still there."""
    put = 0
    for path, _ in files_in(copied):
        if not os.path.lexists(folder / path.name):
            private_folder(folder)
            replace_file(folder / path.name, read_regular(path, SEGMENT_MAX))
            put += 1
    return put
