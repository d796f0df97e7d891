"""A store's own facts, in ``store.json``.

They are written once when the store is created, under a lock. A re-embedding or another number of lanes
replaces the file whole.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import filelock
import msgspec

from iai_mcp.common.files import replace_file
from iai_mcp.common.private import private_folder
from iai_mcp.common.regular_files import NOTE_MAX, read_regular
from iai_mcp.common.times import parse_ts, utcnow
from iai_mcp.entries.fields import LANES_MAX
from iai_mcp.errors import ConfigError, DamagedStore, StoreError, StoreTooNew, StoreUnavailable, UnfitFile
from iai_mcp.storage.layout import Layout, lane_table
from iai_mcp.storage.sound_folder import check_folder

__all__ = [
    "COUNT_MAX",
    "SCHEMA_VERSION",
    "EmbedderMeta",
    "StoreMeta",
    "change_meta",
    "open_meta",
    "read_meta",
    "save_meta",
    "signature",
]

SCHEMA_VERSION = 1
DEFAULT_LANES = 4
DEFAULT_DIMS = 384
DIMS_MAX = 2**16
COUNT_MAX = 2**40
"""No count of a store is larger: of rows, of lane changes, of reuses of ids."""

# Whoever sent the store may have written these: each fact is checked as if a stranger had typed it.
StoreId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
LaneCount = Annotated[int, msgspec.Meta(ge=1, le=LANES_MAX)]
Count = Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)]
Name = Annotated[str, msgspec.Meta(max_length=500, pattern=r"^[^\x00-\x1f\x7f-\x9f]*\Z")]
_Column = Annotated[str, msgspec.Meta(pattern=r"^embedding(_[0-9]{1,5}_[0-9a-f]{8})?\Z")]


class EmbedderMeta(msgspec.Struct, frozen=True):
    """Which embedder made the vectors: its name, dimensions and the SHA-256 of its weights ('' if unknown)."""

    name: Name
    dims: Annotated[int, msgspec.Meta(ge=1, le=DIMS_MAX)]
    weights: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{0,64}\Z")] = ""


class StoreMeta(msgspec.Struct, frozen=True):
    """What ``store.json`` holds.

    Attributes:
        store_id: the store's identity, 32 hexadecimal digits.
        schema_version: the version of the store's format.
        vector_column: the column of ``records`` that a search reads.
        created_at: ISO 8601, UTC.
        generation: how often the number of lanes was changed; each generation has tables of its own.
        reuses: how often a forgotten id has been used again.
    """

    store_id: StoreId
    schema_version: Annotated[int, msgspec.Meta(ge=1)]
    lanes: LaneCount
    embedder: EmbedderMeta
    vector_column: _Column
    created_at: Annotated[str, msgspec.Meta(max_length=100)]
    generation: Count = 0
    reuses: Count = 0

    def lane_table(self, lane: int) -> str:
        """The name of a lane's table in the current generation."""
        return lane_table(lane, self.generation)


def open_meta(layout: Layout, *, lanes: int | None, embedder: EmbedderMeta) -> StoreMeta:
    """Read the store's facts; create the store with ``lanes`` and ``embedder`` if there is none.

    Raises:
        ConfigError: ``lanes`` is out of range or is not the store's number of lanes.
        StoreTooNew: a later version of this package wrote it.
        StoreError: the folder holds something else.
        StoreUnavailable: the folder cannot be made or read.
    """
    if lanes is not None and not 1 <= lanes <= LANES_MAX:
        raise ConfigError(f"lanes={lanes} is out of range: 1 to {LANES_MAX}")
    try:
        if not layout.meta.exists():
            _create(layout, lanes or DEFAULT_LANES, embedder)
        meta = read_meta(layout)
        check_folder(layout)
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreUnavailable(f"cannot open the store at {layout.root}: {error.strerror or error}") from error
    if lanes is not None and lanes != meta.lanes:
        raise ConfigError(
            f"the store at {layout.root} has {meta.lanes} lanes, not {lanes}; `iai-mcp lanes` changes the number"
        )
    return meta


def read_meta(layout: Layout) -> StoreMeta:
    """Read ``store.json``.

    Raises:
        StoreTooNew: a later version of this package wrote it.
        DamagedStore: the file describes no store.
        StoreUnavailable: there is no such file any more, or it cannot be read.
    """
    raw = _raw(layout)
    try:
        version = msgspec.json.decode(raw)["schema_version"]
        if version > SCHEMA_VERSION:
            raise StoreTooNew(
                f"the store at {layout.root} has schema version {version}, this iai-mcp reads up to "
                f"{SCHEMA_VERSION}; upgrade iai-mcp to open it"
            )
        meta = msgspec.json.decode(raw, type=StoreMeta)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError) as error:
        raise DamagedStore(
            f"{layout.meta} is not the description of a store ({error}); restore it from a backup"
        ) from None
    if parse_ts(meta.created_at) is None:
        raise DamagedStore(f"{layout.meta} gives no time of creation; restore it from a backup")
    return meta


def _raw(layout: Layout) -> bytes:
    try:
        return read_regular(layout.meta, NOTE_MAX)
    except UnfitFile as error:
        raise DamagedStore(f"{error}; restore it from a backup") from None
    except (FileNotFoundError, NotADirectoryError):
        raise StoreUnavailable(f"the store at {layout.root} is gone: put it back, or restore a backup") from None
    except OSError as error:
        raise StoreUnavailable(f"cannot read {layout.meta}: {error.strerror or error}") from error


def save_meta(layout: Layout, meta: StoreMeta) -> None:
    """Replace ``store.json``; an open store sees the change at its next access.

    Raises:
        OSError: the file cannot be written.
    """
    replace_file(layout.meta, msgspec.json.format(msgspec.json.encode(meta), indent=2) + b"\n")


def change_meta(layout: Layout, change: Callable[[StoreMeta], StoreMeta]) -> StoreMeta:
    """Change ``store.json``, one process at a time; the facts as they are now.

    Raises:
        StoreUnavailable: the store is gone.
        OSError: the file cannot be written.
    """
    read_meta(layout)  # filelock would make the folder of a store that is gone
    with filelock.FileLock(layout.schema_lock):
        changed = change(read_meta(layout))
        save_meta(layout, changed)
    return changed


def _create(layout: Layout, lanes: int, embedder: EmbedderMeta) -> None:
    private_folder(layout.root)
    if any(path != layout.locks for path in layout.root.iterdir()):
        with suppress(OSError):
            if layout.meta.exists():
                return  # another process has just created it
        raise StoreError(
            f"{layout.root} is not empty and holds no store.json; choose an empty or a new folder for the store"
        )
    layout.locks.mkdir(exist_ok=True, mode=0o700)
    with filelock.FileLock(layout.schema_lock):
        if not layout.meta.exists():
            now = utcnow().isoformat()
            meta = StoreMeta(uuid.uuid4().hex, SCHEMA_VERSION, lanes, embedder, "embedding", now)
            save_meta(layout, meta)


def signature(path: Path | str) -> tuple[int, int, int]:
    """Inode, size in bytes and time of change in ns of a file; zeros if there is none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return (0, 0, 0)
    return (found.st_ino, found.st_size, found.st_mtime_ns)
