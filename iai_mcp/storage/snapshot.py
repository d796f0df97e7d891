"""A store as it is at one moment, in a folder of links that no writer, compaction or cleanup can touch.

Lance never changes a file that it has written, so linking a table's files is as good as copying them and takes
milliseconds. Parts are taken in the direction in which entries and memories move: whatever moves meanwhile is
in the snapshot at least once, and a memory that is being forgotten is known to be.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from iai_mcp.common.private import private_folder
from iai_mcp.common.regular_files import DOCUMENT_MAX, LOG_MAX, NOTE_MAX, odd_kind, read_regular, reading
from iai_mcp.errors import StoreUnavailable, UnfitFile
from iai_mcp.storage.layout import RECORDS, Layout
from iai_mcp.storage.meta import StoreMeta, read_meta
from iai_mcp.storage.scratch import scratch, sweep
from iai_mcp.storage.tombstones import Tombstones
from iai_mcp.storage.writer_lock import WriterLock

__all__ = ["Snapshot", "snapshot"]

_TRIES = 5
_HINT = "latest_version_hint.json"  # the only file of a table that changes; it can be left out


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A store at one moment.

    Attributes:
        forgetting: memories whose deletion began while the snapshot was taken; they may be in it.
    """

    layout: Layout
    meta: StoreMeta
    forgetting: frozenset[UUID]


@contextmanager
def snapshot(layout: Layout, lock_timeout: float) -> Iterator[Snapshot]:
    """A snapshot of the store at ``layout`` for the block; every file in it may be changed or removed.

    Raises:
        StoreUnavailable: the store cannot be read, or its folder not be written.
    """
    sweep(layout)
    with ExitStack() as stack:
        with _readable(layout):
            folder = stack.enter_context(scratch(layout))
            taken = _take(layout, Layout(folder), lock_timeout)
        yield taken


@contextmanager
def _readable(layout: Layout) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        said = error if isinstance(error, UnfitFile) else error.strerror or error
        raise StoreUnavailable(f"the store at {layout.root} cannot be read or linked: {said}") from error


def _take(source: Layout, target: Layout, lock_timeout: float) -> Snapshot:
    private_folder(target.locks)
    meta = read_meta(source)
    before = set(Tombstones(source.tombstones).ids())
    _copy_lines(source.dead_letters, target.dead_letters)
    for number in range(meta.lanes):  # lanes before memories: an entry's memory was there before it
        name = meta.lane_table(number)
        with _still(source, source.lane_lock(number), lock_timeout):
            _link_table(source.table(name), target.table(name))
            _copy_if_there(source.erasure(name), target.erasure(name))
        _copy_if_there(source.lane_token(number), target.lane_token(number))
    with _still(source, source.records_lock, lock_timeout):
        _link_table(source.records, target.records)
        _copy_if_there(source.erasure(RECORDS), target.erasure(RECORDS))
    _copy_lines(source.exclusions, target.exclusions)  # after the lanes: a row goes only once it is noted
    _copy_lines(source.tombstones, target.tombstones)  # last: who is being forgotten is known before they go
    facts = read_regular(source.meta, NOTE_MAX)  # late: a re-embedding names its column once that is filled
    target.meta.write_bytes(facts)
    since = Tombstones(target.tombstones).ids() - before
    return Snapshot(target, read_meta(target), frozenset(since))


@contextmanager
def _still(source: Layout, lock: Path, timeout: float) -> Iterator[None]:
    """Keep writers from the table, and from its indexes, for the block."""
    with WriterLock(lock, timeout).hold(), WriterLock(source.schema_lock, timeout).hold():
        yield


def _link_table(source: Path, target: Path) -> None:
    """Link all files of a table, the versions first: what these name was there before them.

    A table without a version (its creator died) is left out: it has no rows.

    A cleanup by a writer that did not get the lock may take files away meanwhile; then once more.
    """
    for left in range(_TRIES, 0, -1):
        try:
            for folder in ("_versions", ""):
                for path in sorted((source / folder).rglob("*")):
                    _link(path, target / path.relative_to(source))
            if not any((target / "_versions").glob("*.manifest")):
                shutil.rmtree(target, ignore_errors=True)
            return
        except FileNotFoundError:
            shutil.rmtree(target, ignore_errors=True)
            if left == 1:
                raise


def _link(path: Path, target: Path) -> None:
    if (kind := odd_kind(path)) is not None and kind != "a folder":
        raise UnfitFile(errno.EINVAL, f"is {kind} and no file of a table: remove it", str(path))
    if (
        kind is not None
        or target.exists()
        or path.name == _HINT
        or "#" in path.name
        or path.suffix.startswith(".tmp")
    ):
        return
    private_folder(target.parent)
    try:
        os.link(path, target)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links
        with reading(path) as file, open(target, "xb") as out:
            shutil.copyfileobj(file, out)


def _copy_if_there(source: Path, target: Path) -> None:
    with suppress(FileNotFoundError):
        target.write_bytes(read_regular(source, DOCUMENT_MAX))


def _copy_lines(source: Path, target: Path) -> None:
    """Copy an append-only log as it is now, without a line that is just being written."""
    with suppress(FileNotFoundError):
        data = read_regular(source, LOG_MAX)
        target.write_bytes(data[: data.rfind(b"\n") + 1])
