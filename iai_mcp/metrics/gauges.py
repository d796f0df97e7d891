"""The gauges that a scrape reads: lanes, Redis, workers, spill, dead letters.

Each source is read on a thread of its own, at most every few seconds, and a scrape waits a second at most. A Redis
that hangs costs its own gauges, but never the scrape. A value that is not fresh is left out, because readers could
not tell it from a fresh one.
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

__all__ = [
    "Reading",
    "Source",
    "SourceCollector",
    "families",
    "file_readings",
    "queue_readings",
    "redis_readings",
    "store_readings",
]

FRESH_S = 3.0  # scrapes within this time share one reading
WAIT_S = 1.0  # maximum wait of a scrape

Reading = tuple[str, str, float]
"""A gauge's name, the value of its label ('' without a label), and the gauge's value."""

_SPECS = {spec.name: spec for spec in CATALOGUE}


class Source:
    """One source of gauges.

    Args:
        name: the source's name in ``iai_mcp_source_up``.
        read: reads the source, on a thread. It may raise and may hang.
    """

    def __init__(self, name: str, read: Callable[[], Iterable[Reading]]) -> None:
        self.name = name
        self._read = read
        self._mutex = threading.Lock()
        self._running: threading.Event | None = None
        self._read_at = -FRESH_S
        self._readings: list[Reading] | None = None

    def begin(self) -> threading.Event | None:
        """Start a reading unless one runs or is fresh. Returns the event that ends the running one."""
        with self._mutex:
            if self._running is None and time.monotonic() - self._read_at >= FRESH_S:
                self._running = threading.Event()
                threading.Thread(
                    target=self._run, args=(self._running,), name=f"iai-mcp-gauges-{self.name}", daemon=True
                ).start()
            return self._running

    def _run(self, done: threading.Event) -> None:
        readings: list[Reading] | None = None
        try:
            readings = [*self._read()]
        except Exception as error:  # noqa: BLE001  source_up shows it
            level = logging.DEBUG if isinstance(error, IaiMcpError | OSError) else logging.WARNING
            log.log(level, "metrics: %s cannot be read: %s", self.name, safe_message(error))
        with self._mutex:
            self._readings, self._read_at, self._running = readings, time.monotonic(), None
        done.set()

    def fresh(self) -> list[Reading] | None:
        """The last readings, or None if the last attempt failed or is still running."""
        with self._mutex:
            return self._readings if self._running is None else None


class SourceCollector(Collector):
    """All sources of one process, for a registry."""

    def __init__(self, sources: Iterable[Source], *, wait: float = WAIT_S) -> None:
        self._sources = [*sources]
        self._wait = wait

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registration reads no source."""
        return []

    def collect(self) -> Iterator[Metric]:
        """One family per gauge."""
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
    """The readings as Prometheus's metric families."""
    found: dict[str, GaugeMetricFamily] = {}
    for name, label, value in readings:
        spec = _SPECS[name]
        if name not in found:
            found[name] = GaugeMetricFamily(name, spec.help, labels=[spec.label] if spec.label else None)
        found[name].add_metric([label] if spec.label else [], float(value))
    return [*found.values()]


# -- the sources


def redis_readings(settings: Settings) -> Iterator[Reading]:
    """Lanes, workers and Redis itself.

    Raises:
        BrokerUnavailable: Redis does not answer.
        StoreError: the store's metadata cannot be read.
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
        concerned = [one for one in seen.troubles if one.lane in (lane.lane, None)]
        yield "iai_mcp_lane_trouble", str(lane.lane), len(concerned)
    if seen.workers is not None:
        yield "iai_mcp_workers", "", sum(worker.alive for worker in seen.workers)
    if seen.appendonly in ("yes", "no"):
        yield "iai_mcp_redis_aof_enabled", "", seen.appendonly == "yes"
    if seen.used_memory is not None:
        yield "iai_mcp_redis_memory_bytes", "", seen.used_memory
        yield "iai_mcp_redis_memory_limit_bytes", "", seen.maxmemory or 0


def queue_readings(queue: ProvenanceWriteQueue) -> Iterator[Reading]:
    """The queue's breaker, and the lanes of the embedded broker. All of it is in memory."""
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


def file_readings(settings: Settings) -> Iterator[Reading]:
    """The spill folder and the dead letters. Only names and sizes are read, so that large files cost no more."""
    layout = Layout(settings.store_path.absolute())
    prefix = store_prefix(read_meta(layout).store_id)
    sizes: list[int] = []
    aside = 0
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(overflow_dir(settings)) as found:
        for one in found:
            if one.name.startswith(prefix) and (name := parse(one.name)) is not None:
                with suppress(FileNotFoundError):
                    if not one.is_file(follow_symlinks=False):
                        continue
                    if name.set_aside:
                        aside += 1
                    elif (size := one.stat().st_size) > 0:  # an empty file is new or drained
                        sizes.append(size)
    yield "iai_mcp_spill_files", "", len(sizes)
    yield "iai_mcp_spill_bytes", "", sum(sizes)
    yield "iai_mcp_spill_set_aside_files", "", aside
    yield "iai_mcp_dead_letters", "", DeadLetters(layout).count()


def store_readings(store: MemoryStore) -> Iterator[Reading]:
    """The tables of an open store."""
    yield "iai_mcp_records", "", store.count()
    for lane in range(store.lanes):
        facts = store.lane(lane).stats()
        for what in ("rows", "versions", "bytes"):
            yield f"iai_mcp_lane_{what}", str(lane), facts[what]
