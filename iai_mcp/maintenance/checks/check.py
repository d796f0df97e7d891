"""What a check returns, and what all checks look at."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from iai_mcp.config import Settings, overflow_dir
from iai_mcp.maintenance.pending import PendingInSpill, pending_in_spill
from iai_mcp.storage.layout import Layout

if TYPE_CHECKING:
    from iai_mcp.broker.redis.inspect import RedisStatus
    from iai_mcp.store import MemoryStore

__all__ = ["Check", "State", "Subject", "private_paths"]


class State(StrEnum):
    """The result of a check."""

    PASS = "PASS"
    WARN = "WARN"
    FAIL = "FAIL"
    SKIP = "SKIP"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor's report.

    Attributes:
        name: what was checked.
        message: what was found.
        remedy: what to do about it; empty where nothing is wrong.
    """

    name: str
    state: State
    message: str
    remedy: str = ""


class Subject:
    """The store under examination and what belongs to it; each part is opened once, on first use."""

    def __init__(self, settings: Settings, path: str | None) -> None:
        self.settings = settings
        self.layout = Layout((Path(path).expanduser() if path else settings.store_path).absolute())
        self.exists = self.layout.meta.exists()
        self.spill_folder = overflow_dir(settings)

    @cached_property
    def store(self) -> MemoryStore:
        """The store.

        Raises:
            StoreError: it cannot be opened.
        """
        from iai_mcp.store import MemoryStore

        return MemoryStore(self.layout.root, settings=self.settings)

    @cached_property
    def redis(self) -> RedisStatus:
        """The configured Redis as it is now.

        Raises:
            ConfigError: its URL cannot be used.
        """
        from iai_mcp.broker.redis.client import connect
        from iai_mcp.broker.redis.inspect import inspect_redis

        lanes = self.store.lanes if self.exists else 0
        return inspect_redis(
            connect(self.settings.redis_url), self.settings, self.store.store_id if lanes else "", lanes
        )

    @cached_property
    def spill(self) -> PendingInSpill:
        """The spill files of this store, and those that name no store."""
        return pending_in_spill(self.settings, self.store.store_id if self.exists else None)


def private_paths(name: str, paths: list[Path]) -> Check:
    """Check that other users cannot read ``paths``; the check is called ``name``."""
    opened = [path for path in paths if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077]
    if opened:
        remedy = f"chmod go-rwx {' '.join(str(path) for path in opened[:3])}{' ...' if len(opened) > 3 else ''}"
        return Check(name, State.WARN, f"{opened[0]} is open to other users", remedy)
    return Check(name, State.PASS, f"{paths[0]} is writable, and private")
