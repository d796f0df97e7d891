"""What a worker process keeps open between jobs: its store, its broker, what it has learned about lanes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from iai_mcp.broker.factory import redis_broker
from iai_mcp.config import Settings
from iai_mcp.pipeline.drain import DrainPolicy, DrainReport, Outcome, drain
from iai_mcp.pipeline.recovery import Moved, push
from iai_mcp.storage.layout import Layout
from iai_mcp.store import MemoryStore, RecordsCache, open_store
from iai_mcp.telemetry.events import emit, quiet_words
from workers.jobs import TURN_S, WrongStore

if TYPE_CHECKING:
    import redis

__all__ = ["LaneRunner", "runner_for"]

PLACE_PAUSE_S = 1.0
LEASED_PAUSE_S = 0.1
BESIDE_S = 2.0  # how long a turn waits for lanes that are drained beside its own
SMALL = 100  # items in a lane that is drained beside another


class LaneRunner:
    """One store's lanes, ready to be drained."""

    def __init__(self, store: MemoryStore, connection: redis.Redis) -> None:
        settings = store.settings
        self.store = store
        self.connection = connection
        self.broker = redis_broker(settings, store.store_id, store.lanes, connection)
        self.broker.check_server()
        self._open_lanes()
        self._policy = DrainPolicy(settings.worker_batch, settings.coalesce_ms / 1000)
        self._caches = [RecordsCache() for _ in range(store.lanes)]
        self._not_before = [0.0] * store.lanes
        self._threads = ThreadPoolExecutor(store.lanes, "iai-mcp-lane")
        self._beside: dict[int, Future[DrainReport]] = {}

    def _open_lanes(self) -> None:
        """Open every lane's table now, and not while somebody waits for what is to be written to it."""
        with suppress(OSError):  # said once there is something to drain
            for lane in range(self.store.lanes):
                self.store.lane(lane)

    def drain(self, lane: int, *, deadline: float | None = None) -> DrainReport:
        """Drain one lane, unless its place has just failed."""
        self.store.lane(lane)  # refuses a number that is out of range
        if time.monotonic() < self._not_before[lane]:
            return DrainReport(lane, Outcome.STORE_UNAVAILABLE)
        report = drain(self.store, self.broker, lane, self._caches[lane], self._policy, deadline=deadline)
        if report.outcome is Outcome.STORE_UNAVAILABLE:
            self._not_before[lane] = time.monotonic() + PLACE_PAUSE_S
            error = quiet_words(report.error) if report.error else ""
            emit("store_unavailable", level=logging.WARNING, lane=lane, error=error)
        return report

    def drain_small(self, but: int, deadline: float) -> None:
        """Begin to drain every other lane that has little in it, on threads of their own.

        A recall touches several lanes at once. Small merges mostly wait, so that one after the other they would
        keep the last lane waiting for nothing; large ones are for as many workers as there are processors.
        """
        with suppress(RedisError):  # the drain of the lane itself will say so
            small = [lane for lane in self.broker.idle_lanes(SMALL) if lane != but and lane not in self._beside]
            self._beside.update(
                (lane, self._threads.submit(self.drain, lane, deadline=deadline)) for lane in small
            )

    def drained_beside(self) -> list[DrainReport]:
        """What has come of the lanes that are drained on threads.

        Waits for them, but not for long: a lane whose lock a paused process holds must not stop the others.
        """
        wait(self._beside.values(), timeout=BESIDE_S)
        done = [lane for lane, report in self._beside.items() if report.done()]
        return [self._beside.pop(lane).result() for lane in done]

    def sweep(self) -> Iterator[int]:
        """Lanes that have work and no live lease: their doorbell was lost, or their worker died."""
        yield from self.broker.idle_lanes()

    def adopt_orphans(self) -> Moved:
        """Push what dead clients of this store and user left in the spill."""
        return push(self.store, self.broker)

    def drain_all(self, stopping: Callable[[], bool] = lambda: False) -> bool:
        """Drain until every lane is empty; False where the store fails, or where ``stopping()`` came first.

        A lane that somebody else leases is waited for: either they drain it, or the lease runs out.
        """
        self.adopt_orphans()
        while not stopping():
            if lanes := list(self.sweep()):
                reports = [self.drain(n, deadline=time.monotonic() + TURN_S) for n in lanes if not stopping()]
                if not any(report.outcome in (Outcome.EMPTY, Outcome.TIME) for report in reports):
                    return False
            elif not any(lane.pending or lane.in_flight for lane in self.broker.stats()):
                return True
            else:
                time.sleep(LEASED_PAUSE_S)
        return False


_runners: dict[str, LaneRunner] = {}


def runner_for(store_id: str, connection: redis.Redis) -> LaneRunner:
    """The runner for a store: one that this process has open, else the configured one.

    Raises:
        WrongStore: the configured store is another.
    """
    known = _runners.get(store_id)
    if known is not None and known.connection is connection:
        return known
    store = open_store(store_id) or configured_store()
    if store.store_id != store_id:
        raise WrongStore(
            f"this worker serves the store {store.store_id} at {store.path}, not {store_id}; give each "
            "store an IAI_MCP_NAMESPACE of its own"
        )
    _runners[store_id] = LaneRunner(store, connection)
    return _runners[store_id]


def configured_store() -> MemoryStore:
    """The store that this worker's own environment names; it must exist.

    Raises:
        WrongStore: there is no store at that place.
    """
    settings = Settings.load()
    if not Layout(settings.store_path).meta.exists():
        raise WrongStore(f"there is no store at {settings.store_path}; set IAI_MCP_STORE to an existing one")
    return MemoryStore(settings=settings)
