"""What waits where: the entries of a store that are not in its tables now. Reads only, and changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iai_mcp.config import Settings, overflow_dir
from iai_mcp.errors import BrokerUnavailable
from iai_mcp.spill.listing import SpillFile, listing
from iai_mcp.spill.names import OddFile, odd_files
from iai_mcp.storage.dead_letters import DeadLetters
from iai_mcp.storage.layout import Layout
from iai_mcp.storage.live_producers import signs_of_life
from iai_mcp.storage.meta import StoreMeta

__all__ = ["Pending", "PendingInRedis", "PendingInSpill", "pending", "pending_in_redis", "pending_in_spill"]


@dataclass(frozen=True, slots=True)
class PendingInSpill:
    """The spill files of one store, and the files of which no line names a store.

    Attributes:
        folder: this user's spill folder; it may not exist.
        files: in the order of their names.
        odd: what has the name of a spill file and is none, of any store.
    """

    folder: Path
    files: tuple[SpillFile, ...] = ()
    odd: tuple[OddFile, ...] = ()

    @property
    def waiting(self) -> list[SpillFile]:
        """Files that a client or a replay will move on."""
        return [file for file in self.files if not file.set_aside]

    @property
    def orphaned(self) -> list[SpillFile]:
        """Waiting files that no living process holds."""
        return [file for file in self.waiting if not file.held]

    @property
    def set_aside(self) -> list[SpillFile]:
        """Files that a replay could not read; people decide about them."""
        return [file for file in self.files if file.set_aside]

    @property
    def entries(self) -> int:
        """Entries in all files, including those set aside."""
        return sum(file.entries for file in self.files)

    @property
    def oldest(self) -> float | None:
        """Unix time at which the oldest waiting entry was handed out."""
        return min((file.oldest for file in self.waiting if file.oldest is not None), default=None)

    def document(self) -> dict[str, Any]:
        """The counts as plain JSON types."""
        waiting = [file for file in self.waiting if file.store is not None]
        return {
            "folder": str(self.folder),
            "files": len(waiting),
            "lines": sum(file.lines for file in waiting),
            "entries": sum(file.entries for file in waiting),
            "set_aside": len(self.set_aside),
            "passed_over": [{"file": odd.path.name, "kind": odd.kind} for odd in self.odd],
        }


@dataclass(frozen=True, slots=True)
class PendingInRedis:
    """Entries in the Redis lanes of one store. An item that is no entry counts as one."""

    pending: int = 0
    in_flight: int = 0

    @property
    def entries(self) -> int:
        """Entries that no worker has acknowledged."""
        return self.pending + self.in_flight


@dataclass(frozen=True, slots=True)
class Pending:
    """What waits where.

    Attributes:
        redis: None where Redis cannot be read; ``redis_error`` then says why.
        dead: dead letters.
        live_producers: producers whose process runs. It may hold entries in memory, which cannot be counted.
    """

    spill: PendingInSpill
    redis: PendingInRedis | None
    redis_error: str | None
    dead: int
    live_producers: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """The counts as plain JSON types."""
        return {
            "spilled": self.spill.entries,
            "redis": self.redis.entries if self.redis is not None else None,
            "dead": self.dead,
            "live_producers": [*self.live_producers],
        }


def pending(layout: Layout, meta: StoreMeta, settings: Settings) -> Pending:
    """Count what waits for the store at ``layout``.

    Places are read in the direction in which entries move, so that one that moves meanwhile is counted at
    least once.

    Raises:
        ConfigError: the URL of Redis cannot be used.
        OSError: the spill folder cannot be read.
    """
    signs = signs_of_life(layout.locks)
    live = tuple(sorted(sign.producer for sign in signs if sign.alive and sign.embedded))
    spill = pending_in_spill(settings, meta.store_id)
    redis, error = None, None
    try:
        redis = pending_in_redis(settings, meta)
    except BrokerUnavailable as failure:
        error = str(failure)
    return Pending(spill, redis, error, DeadLetters(layout).count(), live)


def pending_in_spill(settings: Settings, store_id: str | None) -> PendingInSpill:
    """The spill files of a store. With None, only the files that name no store.

    Raises:
        OSError: the folder cannot be read.
    """
    folder = overflow_dir(settings)
    files = tuple(file for file in listing(folder) if file.store in (store_id, None))
    return PendingInSpill(folder, files, tuple(odd_files(folder)))


def pending_in_redis(settings: Settings, meta: StoreMeta) -> PendingInRedis:
    """Count what waits in Redis; nothing where no Redis is configured.

    Raises:
        BrokerUnavailable: Redis does not answer, or does not let this user read.
        ConfigError: the URL of Redis cannot be used.
    """
    if not settings.redis_url:
        return PendingInRedis()
    from iai_mcp.broker.redis.pending import waiting_in

    found = PendingInRedis()
    for lane in waiting_in(settings, meta.store_id, meta.lanes):
        counts = [sum(len(item.seqs) if item else 1 for item in items) for items in (lane.pending, lane.in_flight)]
        found = PendingInRedis(found.pending + counts[0], found.in_flight + counts[1])
    return found
