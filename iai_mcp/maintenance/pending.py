"""What of a store's trace is not in its tables now: counted, so that no copy leaves anything out silently."""

from __future__ import annotations

from dataclasses import dataclass

from iai_mcp.common.wording import many
from iai_mcp.config import Settings, overflow_dir
from iai_mcp.errors import BrokerUnavailable
from iai_mcp.spill.listing import listing
from iai_mcp.storage.dead_letters import DeadLetters
from iai_mcp.storage.layout import Layout
from iai_mcp.storage.live_producers import live_producers
from iai_mcp.storage.meta import StoreMeta

__all__ = ["Elsewhere", "elsewhere"]


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Entries by the place where they wait.

    Attributes:
        spilled: in this user's spill folder.
        redis: in Redis, pending or in flight; None where that cannot be counted, and ``trouble`` says why.
        dead: dead letters.
        living: producers whose process lives and may hold entries in its memory, which nobody else can count.
    """

    spilled: int = 0
    redis: int | None = 0
    dead: int = 0
    living: tuple[str, ...] = ()
    trouble: str = ""

    def told(self) -> list[str]:
        """A sentence for each place that is not empty."""
        found = []
        if self.spilled:
            found.append(f"{many(self.spilled, 'entry waits', 'entries wait')} in the spill")
        if self.redis:
            found.append(f"{many(self.redis, 'entry waits', 'entries wait')} in Redis")
        if self.redis is None:
            found.append(f"what waits in Redis cannot be counted: {self.trouble}")
        if self.dead:
            found.append(many(self.dead, "dead letter"))
        if self.living:
            found.append(f"{many(len(self.living), 'living client')} may hold entries in memory")
        return found


def elsewhere(layout: Layout, meta: StoreMeta, settings: Settings) -> Elsewhere:
    """Look, and change nothing.

    Raises:
        ConfigError: the URL of Redis cannot be used.
    """
    files = [file for file in listing(overflow_dir(settings)) if file.store == meta.store_id]
    redis, trouble = _in_redis(meta, settings)
    return Elsewhere(
        spilled=sum(file.entries for file in files),
        redis=redis,
        dead=DeadLetters(layout).count(),
        living=tuple(sorted(live_producers(layout.locks))),
        trouble=trouble,
    )


def _in_redis(meta: StoreMeta, settings: Settings) -> tuple[int | None, str]:
    if not settings.redis_url:
        return 0, ""
    from iai_mcp.broker.redis.pending import waiting_in

    try:
        lanes = [*waiting_in(settings, meta.store_id, meta.lanes)]
    except BrokerUnavailable as error:
        return None, str(error)
    items = [item for lane in lanes for item in (*lane.pending, *lane.in_flight)]
    return sum(len(item.seqs) if item is not None else 1 for item in items), ""
