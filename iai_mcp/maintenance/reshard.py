"""``iai-mcp lanes N``: copies a store at rest into another number of lanes, in tables beside the old ones.

Replacing ``store.json`` switches from the old number to the new one. After an interruption at any point, the
same command goes on. No other process has the store open meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass

import msgspec

from iai_mcp.common.files import replace_file
from iai_mcp.common.regular_files import DOCUMENT_MAX, read_regular
from iai_mcp.common.wording import many
from iai_mcp.config import Settings
from iai_mcp.entries.fields import LANES_MAX
from iai_mcp.errors import BrokerUnavailable, ConfigError, StoreError, StoreInUse
from iai_mcp.maintenance.pending import pending
from iai_mcp.spill.names import SET_ASIDE_PATTERN
from iai_mcp.storage.layout import RECORDS
from iai_mcp.storage.meta import StoreMeta, save_meta
from iai_mcp.storage.tables.catalog import merge_into
from iai_mcp.storage.tables.lane import LaneTable
from iai_mcp.store import MemoryStore

__all__ = ["Resharded", "reshard"]

STEP = 4096  # rows of one commit


class _Plan(msgspec.Struct):
    """Progress so far. It is void once a table that was read has changed."""

    generation: int
    lanes: int
    versions: list[int]
    done: list[int]
    rows: int = 0  # of the lanes that are done, each key once
    repeated: int = 0  # of these: rows whose id, chosen by a caller, another old lane has too


@dataclass(frozen=True, slots=True)
class Resharded:
    """The result of :func:`reshard`.

    Attributes:
        before, now: numbers of lanes; where they are equal, nothing was moved.
        rows: rows that were moved.
        repeated: rows left out because a caller gave their id to entries of two lanes that are one now.
    """

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
) -> Resharded:
    """Change the number of lanes of the existing store of ``settings``.

    Args:
        redis_gone: assume that the Redis that this store was drained from does not exist any more.
        show: called with (rows done, rows in all).

    Raises:
        ConfigError: ``lanes`` is out of range.
        StoreInUse: another process has the store open, or entries wait in Redis or in the spill; nothing was
            changed.
        BrokerUnavailable: what waits in Redis cannot be counted; nothing was changed.
        StoreUnavailable: the store cannot be read or written; the same call goes on.
    """
    if not 1 <= lanes <= LANES_MAX:
        raise ConfigError(f"{lanes} lanes are out of range: 1 to {LANES_MAX}")
    with closing(MemoryStore(settings.store_path, settings=settings)) as store, store.alone():
        meta = store.meta
        if meta.lanes == lanes:
            _clean(store, meta)
            return Resharded(lanes, lanes)
        _check_rest(store, settings, redis_gone)
        plan = _plan(store, meta, lanes)
        _copy(store, meta, plan, show)
        _raise_tokens(store, max(meta.lanes, lanes))
        new = msgspec.structs.replace(meta, lanes=lanes, generation=plan.generation)
        save_meta(store.layout, new)  # until here the old number, from here the new one
        _clean(store, new)
        return Resharded(meta.lanes, lanes, plan.rows, plan.repeated)


def _check_rest(store: MemoryStore, settings: Settings, redis_gone: bool) -> None:
    """Raise StoreInUse if an entry waits that is routed by the old number of lanes."""
    if not settings.redis_url and not redis_gone and any(store.lane(n).token for n in range(store.lanes)):
        raise StoreInUse(
            "this store was drained from Redis: set IAI_MCP_REDIS_URL, so that its lanes can be checked, or give "
            "--redis-gone if that Redis does not exist any more"
        )
    found = pending(store.layout, store.meta, settings)
    if found.redis is None:
        raise BrokerUnavailable(f"what waits in Redis cannot be counted: {found.redis_error}")
    if number := found.redis.entries:
        waits = many(number, "entry waits", "entries wait")
        raise StoreInUse(f"{waits} in Redis: `iai-mcp worker --burst` drains the lanes, then try again")
    if number := sum(file.entries for file in found.spill.waiting):
        waits = f"{many(number, 'entry waits', 'entries wait')} in the spill ({found.spill.folder})"
        raise StoreInUse(f"{waits}: `iai-mcp spill replay` empties it, then try again")
    if number := found.spill.entries:
        held = f"{many(number, 'entry is', 'entries are')} in spill files that were set aside"
        raise StoreInUse(f"{held}: look at {found.spill.folder}/{SET_ASIDE_PATTERN}, remove them, then try again")


def _plan(store: MemoryStore, meta: StoreMeta, lanes: int) -> _Plan:
    """The plan of an earlier run if nothing was written since, else a new one."""
    versions = [store.lane(number).version for number in range(meta.lanes)]
    fresh = _Plan(meta.generation + 1, lanes, versions, [])
    with suppress(FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        left = msgspec.json.decode(read_regular(store.layout.reshard_plan, DOCUMENT_MAX), type=_Plan)
        if (left.generation, left.lanes, left.versions) == (fresh.generation, lanes, versions):
            return left
    store.tables.drop_lanes(keep=(meta.generation,))
    _save(store, fresh)
    return fresh


def _save(store: MemoryStore, plan: _Plan) -> None:
    replace_file(store.layout.reshard_plan, msgspec.json.encode(plan))


def _copy(store: MemoryStore, meta: StoreMeta, plan: _Plan, show: Callable[[int, int], object]) -> None:
    targets = store.tables.lanes_of(plan.generation, plan.lanes)
    total = sum(store.lane(number).count() for number in range(meta.lanes))
    for number in range(meta.lanes):
        if number not in plan.done:
            rows, repeated = _copy_lane(store.lane(number), targets, lambda n: show(plan.rows + n, total))
            plan.rows += rows
            plan.repeated += repeated
            plan.done.append(number)
            _save(store, plan)
    there = sum(table.count() for table in targets)
    if there != plan.rows - plan.repeated:
        store.layout.reshard_plan.unlink()
        raise StoreError(
            f"the new lanes hold {there} rows, not {plan.rows - plan.repeated}: the store was left unchanged; "
            "please report it"
        )
    for table in targets:
        table.maintain(force=True)


def _copy_lane(source: LaneTable, targets: list[LaneTable], show: Callable[[int], object]) -> tuple[int, int]:
    done = repeated = 0
    for rows in source.in_order(STEP):
        repeated += merge_into(rows, targets)
        done += len(rows)
        show(done)
    return done, repeated


def _raise_tokens(store: MemoryStore, lanes: int) -> None:
    """Let every lane start above all fencing tokens given out so far: entries may change their lane."""
    highest = max(store.lane(number).token for number in range(store.lanes))
    for number in range(lanes if highest else 0):
        replace_file(store.layout.lane_token(number), str(highest).encode())


def _clean(store: MemoryStore, meta: StoreMeta) -> None:
    """Remove the files of other generations."""
    store.tables.drop_lanes(keep=(meta.generation,))
    kept = {store.layout.erasure(name) for name in (RECORDS, *map(meta.lane_table, range(meta.lanes)))}
    for path in {*store.layout.erasures()} - kept:
        path.unlink(missing_ok=True)
    store.layout.reshard_plan.unlink(missing_ok=True)
