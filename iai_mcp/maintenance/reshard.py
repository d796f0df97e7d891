"""``iai-mcp lanes N``: another number of lanes for a store at rest, in tables beside the old ones.

The store has the old number until one file, ``store.json``, is replaced, and the new one from then on; whatever
happens before or after that, running the command again goes on. Nobody else has the store open meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass

import msgspec

from iai_mcp.common.files import replace_file
from iai_mcp.common.wording import many
from iai_mcp.config import Settings, overflow_dir
from iai_mcp.errors import BrokerUnavailable, ConfigError, StoreError, StoreInUse
from iai_mcp.maintenance.pending import elsewhere
from iai_mcp.storage.layout import RECORDS
from iai_mcp.storage.meta import MAX_LANES, StoreMeta, save_meta
from iai_mcp.storage.tables.lane import LaneTable
from iai_mcp.store import MemoryStore

__all__ = ["Relaned", "reshard"]

STEP = 4096  # rows of one commit


class _Plan(msgspec.Struct):
    """How far it is. The tables that were read must not have changed since."""

    generation: int
    lanes: int
    versions: list[int]
    done: list[int]
    rows: int = 0  # of the lanes that are done, each key once
    repeated: int = 0  # among them: a caller gave the same id to entries of two lanes, which are in one lane now


@dataclass(frozen=True, slots=True)
class Relaned:
    """What was done; ``rows`` were moved, where ``before`` differs from ``now``."""

    before: int
    now: int
    rows: int = 0
    repeated: int = 0


def reshard(
    settings: Settings,
    lanes: int,
    *,
    redis_gone: bool = False,
    show: Callable[[int, int], object] = lambda done, total: None,
) -> Relaned:
    """Give the store of ``settings``, which must be there, ``lanes`` lanes.

    Args:
        redis_gone: the Redis that this store was drained from is gone for good.
        show: called with (rows done, rows in all).

    Raises:
        ConfigError: ``lanes`` is out of range.
        StoreInUse: somebody has the store open, or entries wait in Redis or in the spill; nothing was changed.
        BrokerUnavailable: what waits in Redis cannot be seen.
        StoreUnavailable: the place fails; the same call goes on.
    """
    if not 1 <= lanes <= MAX_LANES:
        raise ConfigError(f"{lanes} lanes are out of range: 1 to {MAX_LANES}")
    with closing(MemoryStore(settings.store_path, settings=settings)) as store, store.alone():
        meta = store.meta
        if meta.lanes == lanes:
            _clean(store, meta)
            return Relaned(lanes, lanes)
        _check_rest(store, settings, redis_gone)
        plan = _plan(store, meta, lanes)
        _copy(store, meta, plan, show)
        _raise_tokens(store, max(meta.lanes, lanes))
        new = msgspec.structs.replace(meta, lanes=lanes, generation=plan.generation)
        save_meta(store.layout, new)  # until here the old number, from here the new one
        _clean(store, new)
        return Relaned(meta.lanes, lanes, plan.rows, plan.repeated)


def _check_rest(store: MemoryStore, settings: Settings, redis_gone: bool) -> None:
    """Nothing may wait anywhere under the old number."""
    if not settings.redis_url and not redis_gone and any(store.lane(n).token for n in range(store.lanes)):
        raise StoreInUse(
            "this store has been drained from Redis: set IAI_MCP_REDIS_URL, so that its lanes can be seen to be "
            "empty, or give --redis-gone where that Redis does not exist any more"
        )
    there = elsewhere(store.layout, store.meta, settings)
    if there.redis is None:
        raise BrokerUnavailable(f"what waits in Redis cannot be seen: {there.trouble}")
    if there.redis:
        said = many(there.redis, "entry waits", "entries wait")
        raise StoreInUse(f"{said} in Redis: `iai-mcp worker --burst` drains the lanes, then try again")
    if there.spilled:
        said = f"{many(there.spilled, 'entry waits', 'entries wait')} in the spill ({overflow_dir(settings)})"
        raise StoreInUse(f"{said}: `iai-mcp spill replay` empties it, then try again")


def _plan(store: MemoryStore, meta: StoreMeta, lanes: int) -> _Plan:
    """Where an earlier run stood, if nothing was written since; else a new start."""
    versions = [store.lane(number).version for number in range(meta.lanes)]
    fresh = _Plan(meta.generation + 1, lanes, versions, [])
    with suppress(FileNotFoundError, msgspec.DecodeError):
        left = msgspec.json.decode(store.layout.reshard_plan.read_bytes(), type=_Plan)
        if (left.generation, left.lanes, left.versions) == (fresh.generation, lanes, versions):
            return left
    store.drop_lanes(keep=(meta.generation,))
    _save(store, fresh)
    return fresh


def _save(store: MemoryStore, plan: _Plan) -> None:
    replace_file(store.layout.reshard_plan, msgspec.json.encode(plan))


def _copy(store: MemoryStore, meta: StoreMeta, plan: _Plan, show: Callable[[int, int], object]) -> None:
    targets = store.lanes_of(plan.generation, plan.lanes)
    total = sum(store.lane(number).count() for number in range(meta.lanes))
    for number in range(meta.lanes):
        if number not in plan.done:
            rows, repeated = _copy_lane(store, store.lane(number), targets, lambda n: show(plan.rows + n, total))
            plan.rows += rows
            plan.repeated += repeated
            plan.done.append(number)
            _save(store, plan)
    there = sum(table.count() for table in targets)
    if there != plan.rows - plan.repeated:
        store.layout.reshard_plan.unlink()
        raise StoreError(
            f"the new lanes hold {there} rows, not {plan.rows - plan.repeated}: the store is as it was; please "
            "report it"
        )
    for table in targets:
        table.maintain(force=True)


def _copy_lane(
    store: MemoryStore, source: LaneTable, targets: list[LaneTable], show: Callable[[int], object]
) -> tuple[int, int]:
    done = repeated = 0
    for rows in source.in_order(STEP):
        repeated += store.merge_into(rows, targets)
        done += len(rows)
        show(done)
    return done, repeated


def _raise_tokens(store: MemoryStore, lanes: int) -> None:
    """No lane's tokens may start below those that another lane has given out under its number."""
    highest = max(store.lane(number).token for number in range(store.lanes))
    for number in range(lanes if highest else 0):
        replace_file(store.layout.lane_token(number), str(highest).encode())


def _clean(store: MemoryStore, meta: StoreMeta) -> None:
    """Remove what belongs to other generations."""
    store.drop_lanes(keep=(meta.generation,))
    kept = {store.layout.erasure(name) for name in (RECORDS, *map(meta.lane_table, range(meta.lanes)))}
    for path in {*store.layout.erasures()} - kept:
        path.unlink(missing_ok=True)
    store.layout.reshard_plan.unlink(missing_ok=True)
