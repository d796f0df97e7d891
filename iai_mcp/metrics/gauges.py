"""The gauges that are read at a scrape: lanes, Redis, workers, spill, dead letters.

Each source is looked at on a thread of its own, at most every few seconds, and a scrape waits a second at most:
a Redis that hangs costs its own gauges, never the scrape. A value that is not fresh is left out, for an old one
would look like a good one.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from iai_mcp._version import __version__
from iai_mcp.config import Settings, overflow_dir
from iai_mcp.errors import IaiMcpError
from iai_mcp.metrics.catalogue import CATALOGUE
from iai_mcp.spill.names import parse, store_prefix
from iai_mcp.storage.dead_letters import DeadLetters
from iai_mcp.storage.layout import Layout
from iai_mcp.storage.meta import read_meta
from iai_mcp.telemetry.events import log, safe_message

if TYPE_CHECKING:
    from iai_mcp.provenance_queue import ProvenanceWriteQueue
    from iai_mcp.store import MemoryStore

__all__ = ["Reading", "Source", "Sources", "families", "files", "queued", "redis", "stored"]

FRESH_S = 3.0  # seconds; younger readings serve every scrape
WAIT_S = 1.0  # and a scrape waits for one no longer than this

Reading = tuple[str, str, float]
"""A gauge's name, its label's value ('' where it has none), and the value."""

_SPECS = {spec.name: spec for spec in CATALOGUE}


class Source:
    """One source of gauges.

    Args:
        name: of the source, for ``iai_mcp_source_up``.
        take: reads it, on a thread; may raise, may hang.
    """

    def __init__(self, name: str, take: Callable[[], Iterable[Reading]]) -> None:
        self.name = name
        self._take = take
        self._mutex = threading.Lock()
        self._running: threading.Event | None = None
        self._taken_at = -FRESH_S
        self._readings: list[Reading] | None = None

    def begin(self) -> threading.Event | None:
        """Start to read, unless the readings are fresh or a read is under way; the event that ends it, or None."""
        with self._mutex:
            if self._running is None and time.monotonic() - self._taken_at >= FRESH_S:
                self._running = threading.Event()
                threading.Thread(
                    target=self._run, args=(self._running,), name=f"iai-mcp-gauges-{self.name}", daemon=True
                ).start()
            return self._running

    def _run(self, done: threading.Event) -> None:
        readings: list[Reading] | None = None
        try:
            readings = [*self._take()]
        except Exception as error:  # noqa: BLE001  a scrape tells of it; the process goes on
            level = logging.DEBUG if isinstance(error, IaiMcpError | OSError) else logging.WARNING
            log.log(level, "metrics: cannot read %s: %s", self.name, safe_message(error))
        with self._mutex:
            self._readings, self._taken_at, self._running = readings, time.monotonic(), None
        done.set()

    def fresh(self) -> list[Reading] | None:
        """The readings; None if the last read failed or is still under way."""
        with self._mutex:
            return self._readings if self._running is None else None


class Sources(Collector):
    """All sources of one process, for a registry."""

    def __init__(self, sources: Iterable[Source], *, wait: float = WAIT_S) -> None:
        self._sources = [*sources]
        self._wait = wait

    def describe(self) -> Iterable[Metric]:
        """No metric: registering must not read the sources."""
        return []

    def collect(self) -> Iterator[Metric]:
        """A family for each gauge that was read."""
        deadline = time.monotonic() + self._wait
        for running in [source.begin() for source in self._sources]:
            if running is not None:
                running.wait(max(0.0, deadline - time.monotonic()))
        readings: list[Reading] = [("iai_mcp_build_info", __version__, 1.0)]
        for source in self._sources:
            found = source.fresh()
            readings += [("iai_mcp_source_up", source.name, float(found is not None)), *(found or ())]
        yield from families(readings)


def families(readings: Iterable[Reading]) -> list[GaugeMetricFamily]:
    """The readings as Prometheus wants them."""
    found: dict[str, GaugeMetricFamily] = {}
    for name, label, value in readings:
        spec = _SPECS[name]
        if name not in found:
            found[name] = GaugeMetricFamily(name, spec.help, labels=[spec.label] if spec.label else None)
        found[name].add_metric([label] if spec.label else [], float(value))
    return [*found.values()]


# -- the sources


def redis(settings: Settings) -> Iterator[Reading]:
    """Lanes, workers and Redis itself.

    Raises:
        BrokerUnavailable: Redis does not answer.
        StoreError: the store's own facts cannot be read.
    """
    from iai_mcp.broker.redis.client import connect
    from iai_mcp.broker.redis.inspect import inspect_redis
    from iai_mcp.errors import BrokerUnavailable

    meta = read_meta(Layout(settings.store_path.absolute()))
    seen = inspect_redis(connect(settings.redis_url), settings, meta.store_id, meta.lanes, config=False)
    if seen.lanes is None:
        raise BrokerUnavailable(seen.error or "the lanes cannot be read")
    for lane in seen.lanes:
        yield from _lane(lane.lane, lane.pending, lane.in_flight, lane.oldest_s)
    if seen.workers is not None:
        yield "iai_mcp_workers", "", sum(worker.alive for worker in seen.workers)
    if seen.appendonly in ("yes", "no"):
        yield "iai_mcp_redis_aof_enabled", "", seen.appendonly == "yes"
    if seen.used_memory is not None:
        yield "iai_mcp_redis_memory_bytes", "", seen.used_memory
        yield "iai_mcp_redis_memory_limit_bytes", "", seen.maxmemory or 0


def queued(queue: ProvenanceWriteQueue) -> Iterator[Reading]:
    """What only a write queue knows: its breaker, and the lanes of the embedded broker."""
    yield "iai_mcp_journal", "", queue.journals
    if queue.connection is not None:
        yield "iai_mcp_breaker_open", "", queue.trouble is not None
        return
    for lane in queue.stats()["lanes"]:
        yield from _lane(lane["lane"], lane["pending"], lane["in_flight"], lane["oldest_s"])


def _lane(number: int, pending: int, in_flight: int, oldest_s: float | None) -> Iterator[Reading]:
    yield "iai_mcp_lane_pending_entries", str(number), pending
    yield "iai_mcp_lane_in_flight_entries", str(number), in_flight
    yield "iai_mcp_lane_oldest_seconds", str(number), oldest_s or 0.0


def files(settings: Settings) -> Iterator[Reading]:
    """The spill folder and the dead letters; sizes and names only, however much lies there."""
    layout = Layout(settings.store_path.absolute())
    prefix = store_prefix(read_meta(layout).store_id)
    sizes: list[int] = []
    aside = 0
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(overflow_dir(settings)) as found:
        for one in found:
            if one.name.startswith(prefix) and (name := parse(one.name)) is not None:
                with suppress(FileNotFoundError):
                    if name.set_aside:
                        aside += 1
                    elif (size := one.stat().st_size) > 0:  # an empty one has just been made, or emptied
                        sizes.append(size)
    yield "iai_mcp_spill_files", "", len(sizes)
    yield "iai_mcp_spill_bytes", "", sum(sizes)
    yield "iai_mcp_spill_set_aside_files", "", aside
    yield "iai_mcp_dead_letters", "", DeadLetters(layout).count()


def stored(store: MemoryStore) -> Iterator[Reading]:
    """The tables of an open store."""
    yield "iai_mcp_records", "", store.count()
    for lane in range(store.lanes):
        facts = store.lane(lane).stats()
        for what in ("rows", "versions", "bytes"):
            yield f"iai_mcp_lane_{what}", str(lane), facts[what]
