"""Drains the lanes of one store. A worker process keeps the runner, with its store and broker, between jobs."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from iai_mcp.broker.factory import redis_broker
from iai_mcp.broker.redis.place import claim_place
from iai_mcp.common import forks
from iai_mcp.config import Settings
from iai_mcp.errors import UsageError
from iai_mcp.pipeline.drain import DrainPolicy, DrainReport, Outcome, drain
from iai_mcp.pipeline.recovery import Moved, push
from iai_mcp.storage.layout import Layout
from iai_mcp.storage.place import store_place
from iai_mcp.store import MemoryStore, RecordsCache, open_store
from iai_mcp.telemetry.events import emit, safe_message

if TYPE_CHECKING:
    import redis

__all__ = ["LaneRunner", "WrongStore", "configured_store", "runner_for"]

TURN_S = 1.0  # the longest time that one doorbell keeps a worker from the other lanes
STORE_PAUSE_S = 1.0  # after the store was unavailable
LEASED_PAUSE_S = 0.1  # between looks at lanes that another worker drains
SMALL_LANES_WAIT_S = 2.0  # the longest time that a turn waits for the small lanes that it has started
SMALL_LANE = 100  # the largest number of items in one of those


class WrongStore(UsageError):
    """This worker does not serve the store."""


class LaneRunner:
    """Drains the lanes of one store.

    Args:
        store: the open store.
        connection: to the Redis that holds the store's lanes.

    Raises:
        ConfigError: the server is too old, or refuses the scripts.
        WrongPlace: the lanes belong to another folder with the same store id.
        redis.exceptions.RedisError: the server does not answer.
    """

    def __init__(self, store: MemoryStore, connection: redis.Redis) -> None:
        settings = store.settings
        self.store = store
        self.connection = connection
        place = store_place(store.layout)
        self.broker = redis_broker(settings, store.store_id, store.lanes, connection, place)
        self.broker.check_server()
        self.broker.mend()
        claim_place(self.broker.control, self.broker.keys, place)
        self._open_lanes()
        self._policy = DrainPolicy(settings.max_batch, settings.linger_ms / 1000)
        self._caches = [RecordsCache() for _ in range(store.lanes)]
        self._not_before = [0.0] * store.lanes
        self._threads = ThreadPoolExecutor(store.lanes, "iai-mcp-lane")
        self._small: dict[int, Future[DrainReport]] = {}

    def _open_lanes(self) -> None:
        """Open every lane's table ahead of the first drain: opening takes a while."""
        with suppress(OSError):  # the first drain reports it
            for lane in range(self.store.lanes):
                self.store.lane(lane)

    def turn(self, lane: int) -> DrainReport:
        """As :meth:`turns`, and ring for each lane that has more to drain at the end; the report of ``lane``.

        Raises:
            StoreError: the store has no such lane.
            BrokerUnavailable: Redis does not answer.
        """
        reports = self.turns(lane)
        for report in reports:
            if report.outcome is Outcome.TIME:
                self.broker.ring(report.lane)
        return reports[0]

    def turns(self, lane: int) -> list[DrainReport]:
        """Drain one lane for at most ``TURN_S``, and small lanes beside it; the report of ``lane`` comes first.

        Raises:
            StoreError: the store has no such lane.
        """
        deadline = time.monotonic() + TURN_S
        with _without_garbage_collection():
            self._start_small_lanes(lane, deadline)
            reports = [self.drain(lane, deadline=deadline), *self._finished_small_lanes()]
        for report in reports:
            if report.batches or report.dead:
                found = {"applied": report.applied, "unknown": report.unknown, "dead": report.dead}
                emit("drained", lane=report.lane, **found)
        return reports

    def drain(self, lane: int, *, deadline: float | None = None) -> DrainReport:
        """Drain one lane, unless the store has just been unavailable.

        Args:
            deadline: when to stop, in seconds of ``time.monotonic()``; None: once the lane is empty.

        Raises:
            StoreError: the store has no such lane.
        """
        try:
            self.store.lane(lane)  # refuses a number that is out of range
        except OSError as away:
            report = DrainReport(lane, Outcome.STORE_UNAVAILABLE, error=away)
        else:
            if time.monotonic() < self._not_before[lane]:
                return DrainReport(lane, Outcome.STORE_UNAVAILABLE)
            report = drain(self.store, self.broker, lane, self._caches[lane], self._policy, deadline=deadline)
        if report.outcome is Outcome.STORE_UNAVAILABLE:
            self._not_before[lane] = time.monotonic() + STORE_PAUSE_S
            error = safe_message(report.error) if report.error else ""
            emit("store_unavailable", level=logging.WARNING, lane=lane, error=error)
        return report

    def _start_small_lanes(self, except_lane: int, deadline: float) -> None:
        """Begin to drain every other lane that holds few items, each on its own thread.

        One recall touches several lanes. A small merge mostly waits for the disk, so small lanes run side by
        side. A large merge uses the processor; another worker drains it.
        """
        with suppress(RedisError):  # the drain of ``except_lane`` reports it
            small = self.broker.idle_lanes(SMALL_LANE)
            for lane in [lane for lane in small if lane != except_lane and lane not in self._small]:
                self._small[lane] = self._threads.submit(self.drain, lane, deadline=deadline)

    def _finished_small_lanes(self) -> list[DrainReport]:
        """The reports of the small lanes that are drained by now.

        The wait is bounded: a paused process may hold the lock of a lane, which must not stop the others.
        """
        wait(self._small.values(), timeout=SMALL_LANES_WAIT_S)
        done = [lane for lane, report in self._small.items() if report.done()]
        return [self._small.pop(lane).result() for lane in done]

    def ready_lanes(self) -> Iterator[int]:
        """Lanes that have work and no live lease: their doorbell was lost, or their worker died.

        Before it looks, it mends what strangers have written into the store's keys.
        """
        self.broker.mend()
        yield from self.broker.idle_lanes()

    def adopt_orphans(self) -> Moved:
        """Push the entries that dead clients of this store and user left in the spill."""
        return push(self.store, self.broker)

    def drain_all(self, stopping: Callable[[], bool] = lambda: False) -> bool:
        """Drain until every lane is empty; False if the store fails, or once ``stopping()`` is true.

        Waits for a lane that another worker leases: it is drained, or its lease runs out.
        """
        self.adopt_orphans()
        while not stopping():
            if lanes := list(self.ready_lanes()):
                reports = [self.drain(n, deadline=time.monotonic() + TURN_S) for n in lanes if not stopping()]
                if not any(report.outcome in (Outcome.EMPTY, Outcome.TIME) for report in reports):
                    return False
            elif not any(lane.pending or lane.in_flight for lane in self.broker.stats()):
                return True
            else:
                time.sleep(LEASED_PAUSE_S)
        return False


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Pause the garbage collector: a batch is some ten thousand dicts and no cycles.

    Each collection would walk every imported module and double the CPU time of a batch.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


_runners: dict[str, LaneRunner] = {}
forks.in_children(_runners.clear)  # their threads and connections are the parent's


def runner_for(store_id: str, connection: redis.Redis) -> LaneRunner:
    """The runner of a store: the one that this process has open, else the configured one.

    Raises:
        WrongStore: the configured store is another one, or does not exist.
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
    """Open the existing store that this worker's own environment names.

    Raises:
        WrongStore: there is no store at that path.
    """
    settings = Settings.load()
    if not Layout(settings.store_path).meta.exists():
        raise WrongStore(f"there is no store at {settings.store_path}; set IAI_MCP_STORE to an existing one")
    return MemoryStore(settings=settings)
