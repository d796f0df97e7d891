"""A store's own facts (``store.json``) and the files that lie beside its tables.

Written once when the store is created, under a lock, and replaced whole when ``reembed`` changes them.
"""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import filelock
import msgspec

from iai_mcp.common.files import replace_file
from iai_mcp.common.times import utcnow
from iai_mcp.errors import ConfigError, StoreError, StoreTooNew, StoreUnavailable

__all__ = ["SCHEMA_VERSION", "EmbedderMeta", "Layout", "StoreMeta", "lane_table", "open_meta", "save_meta"]

SCHEMA_VERSION = 2
FIRST_VERSION = 1  # of a store whose number of lanes was never changed; earlier programs read it
DEFAULT_LANES = 4
MAX_LANES = 256
DEFAULT_DIMS = 384


class EmbedderMeta(msgspec.Struct, frozen=True):
    """Which embedder made the vectors: its name, dimensions and the SHA-256 of its weights ('' if unknown)."""

    name: str
    dims: int
    weights: str = ""


class StoreMeta(msgspec.Struct, frozen=True):
    """What ``store.json`` holds.

    Attributes:
        vector_column: the column of ``records`` that is searched.
        generation: how often the number of lanes was changed; each generation has tables of its own.
    """

    store_id: str
    schema_version: int
    lanes: int
    embedder: EmbedderMeta
    vector_column: str
    created_at: str
    generation: int = 0

    def lane_table(self, lane: int) -> str:
        """The name of a lane's table."""
        return lane_table(lane, self.generation)


def lane_table(lane: int, generation: int) -> str:
    """The name of a lane's table in any generation."""
    return f"g{generation}_lane_{lane}" if generation else f"lane_{lane}"


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything of one store lies."""

    root: Path

    @property
    def meta(self) -> Path:
        return self.root / "store.json"

    @property
    def locks(self) -> Path:
        return self.root / "locks"

    @property
    def guard(self) -> Path:
        return self.locks / "store.lock"

    @property
    def records_lock(self) -> Path:
        return self.root / "locks" / "records.lock"

    @property
    def records_erasure(self) -> Path:
        return self.root / "locks" / "records.erasure"

    @property
    def store_lock(self) -> Path:
        return self.root / "locks" / "open.lock"

    @property
    def scratch(self) -> Path:
        return self.root / "scratch"

    @property
    def lanes_plan(self) -> Path:
        return self.root / "locks" / "lanes.plan"

    def lane_erasure(self, lane: int, generation: int = 0) -> Path:
        return self.root / "locks" / f"lane-{lane}{f'-g{generation}' if generation else ''}.erasure"

    @property
    def tombstones(self) -> Path:
        return self.root / "tombstones.log"

    @property
    def exclusions(self) -> Path:
        return self.root / "exclusions.jsonl"

    @property
    def dead(self) -> Path:
        return self.root / "dead-letters.jsonl"

    def lane_lock(self, lane: int) -> Path:
        return self.root / "locks" / f"lane-{lane}.lock"

    def lane_token(self, lane: int) -> Path:
        return self.root / "locks" / f"lane-{lane}.token"


def open_meta(layout: Layout, *, lanes: int | None, embedder: EmbedderMeta) -> StoreMeta:
    """Read the store's facts; create the store with ``lanes`` and ``embedder`` where there is none.

    Raises:
        ConfigError: ``lanes`` is out of range or is not the store's number of lanes.
        StoreTooNew: a later version of this package wrote it.
        StoreError: the folder holds something else.
        StoreUnavailable: the folder cannot be made or read.
    """
    if lanes is not None and not 1 <= lanes <= MAX_LANES:
        raise ConfigError(f"lanes={lanes} is out of range: 1 to {MAX_LANES}")
    try:
        if not layout.meta.exists():
            _create(layout, lanes or DEFAULT_LANES, embedder)
        meta = read_meta(layout)
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
    """Decode ``store.json``, refusing what this version cannot read."""
    raw = layout.meta.read_bytes()
    try:
        version = msgspec.json.decode(raw)["schema_version"]
        if version > SCHEMA_VERSION:
            raise StoreTooNew(
                f"the store at {layout.root} has schema version {version}, this iai-mcp reads up to "
                f"{SCHEMA_VERSION}; upgrade iai-mcp to open it"
            )
        return msgspec.json.decode(raw, type=StoreMeta)
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise StoreError(
            f"{layout.meta} is not the description of a store ({error}); restore it from a backup"
        ) from None


def save_meta(layout: Layout, meta: StoreMeta) -> None:
    """Replace ``store.json``; processes that have the store open notice on their next look."""
    replace_file(layout.meta, msgspec.json.format(msgspec.json.encode(meta), indent=2) + b"\n")


def _create(layout: Layout, lanes: int, embedder: EmbedderMeta) -> None:
    layout.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    strangers = {path.name for path in layout.root.iterdir()} - {"locks"}
    if strangers:
        with suppress(OSError):
            if layout.meta.exists():
                return  # another process was faster
        raise StoreError(
            f"{layout.root} is not empty and holds no store.json; choose an empty or a new folder for the store"
        )
    layout.guard.parent.mkdir(exist_ok=True, mode=0o700)
    with filelock.FileLock(layout.guard):
        if not layout.meta.exists():
            now = utcnow().isoformat()
            meta = StoreMeta(uuid.uuid4().hex, FIRST_VERSION, lanes, embedder, "embedding", now)
            save_meta(layout, meta)


def signature(path: Path | str) -> tuple[int, int, int]:
    """Changes whenever the file does; zeros where there is none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return (0, 0, 0)
    return (found.st_ino, found.st_size, found.st_mtime_ns)
