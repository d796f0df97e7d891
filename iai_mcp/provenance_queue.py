"""The write queue: takes provenance entries off the caller's hands in microseconds, and never drops one.

``enqueue`` numbers the entries, which makes their keys, and gives them to the broker; what the broker does
not take goes to the local spill, and while anything is there nothing goes past it. One daemon thread drains
the lanes, replays the spill and adopts what dead clients left.
"""

from __future__ import annotations

import atexit
import logging
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from iai_mcp.broker.memory import MemoryBroker
from iai_mcp.broker.protocol import Mark, Pushed, QueueBroker
from iai_mcp.config import overflow_dir
from iai_mcp.entries.parcel import Pair, Parcel
from iai_mcp.entries.routing import route
from iai_mcp.errors import BadParams, BrokerUnavailable, ConfigError, QueueStopped, SpillUnavailable
from iai_mcp.pipeline.drain import DrainPolicy, Outcome, drain
from iai_mcp.pipeline.ports import ProvenanceStore
from iai_mcp.pipeline.priority_lock import PriorityLock
from iai_mcp.pipeline.replay import replay
from iai_mcp.spill.adoption import adopt
from iai_mcp.spill.chain import Chain
from iai_mcp.spill.writer import Spill
from iai_mcp.storage.exclusions import ExclusionReason, Key
from iai_mcp.storage.live_producers import LiveProducer
from iai_mcp.storage.tables.known_records import RecordsCache
from iai_mcp.telemetry import observer
from iai_mcp.telemetry.events import emit, log, quiet_words

if TYPE_CHECKING:
    import redis

__all__ = ["ProvenanceWriteQueue", "QueueCounts"]

SCAN_S = 1.0  # how often orphaned spill files are looked for
PLACE_BACKOFF_S = (0.1, 5.0)  # first and longest wait after the store's place failed
JOURNAL_IDLE_S = 1.0  # a journal file that holds nothing is removed after this


@dataclass(slots=True)
class QueueCounts:
    """What a queue has done since it was made, in entries."""

    enqueued: int = 0
    spilled: int = 0
    refused: int = 0  # neither broker nor spill could take them
    applied: int = 0
    duplicate: int = 0
    unknown: int = 0
    dead: int = 0


class ProvenanceWriteQueue:
    """Background writer of one store's provenance.

    Entries wait in Redis where ``connection`` or ``IAI_MCP_REDIS_URL`` says so, and ``rq`` workers drain
    them; else they wait in this process's memory (the embedded broker), and its own thread does.

    Args:
        store: where entries go, through ``store.append_provenance_batch``.
        coalesce_ms: how long the oldest entry of a lane waits for company, in milliseconds.
        max_queue_size: most batches (calls of ``enqueue``) that wait in memory, over all lanes; further
            ones are spilled. With Redis, ``IAI_MCP_LANE_CEILING`` takes its place.
        max_batch_pairs: most entries in one write. With Redis, ``IAI_MCP_WORKER_BATCH`` takes its place.
        connection: a ``redis.Redis``; default: ``IAI_MCP_REDIS_URL`` as the store's settings have it.

    An embedded process killed with -9 loses what is in memory only, unless ``IAI_MCP_JOURNAL`` is ``write`` or
    ``fsync``: then every entry is in a file before ``enqueue`` returns.
    """

    def __init__(
        self,
        store: ProvenanceStore,
        *,
        coalesce_ms: float = 50,
        max_queue_size: int = 4096,
        max_batch_pairs: int = 256,
        connection: redis.Redis | None = None,
    ) -> None:
        for name, value, least in (
            ("coalesce_ms", coalesce_ms, 0),
            ("max_queue_size", max_queue_size, 1),
            ("max_batch_pairs", max_batch_pairs, 1),
        ):
            if value < least:
                raise ConfigError(f"{name} must be at least {least}, not {value}")
        self._store = store
        self._settings = store.settings
        self._journal = self._settings.journal != "off"
        self._lanes = store.lanes
        self._broker = _broker(store, connection, max_queue_size)
        self._halt = threading.Event()
        self._policy = DrainPolicy(max_batch_pairs, coalesce_ms / 1000, wait=self._halt.wait)
        self._caches = [RecordsCache() for _ in range(store.lanes)]
        self._failures = [0] * store.lanes
        self.producer = secrets.token_hex(8)
        self._next_seq = 1
        folder = overflow_dir(self._settings)
        kept_on_disk = not self._broker.in_process and self._settings.redis_durability == "fsync"
        fsync = self._settings.journal == "fsync" or kept_on_disk
        level = logging.DEBUG if self._journal else logging.INFO
        self._spill = Spill(store.store_id, self.producer, folder, fsync=fsync, level=level)
        self._adopted: list[Chain] = []
        self._refused: list[Key] = []
        self._last_scan = -SCAN_S
        self._last_append = 0.0
        self._living = LiveProducer(store.layout.locks, self.producer)
        self._order = threading.Lock()  # numbers and pushes in one order
        self._priority_lock = PriorityLock(
            self._order, self._settings.push_budget_ms / 2000
        )  # the other half is for the push
        self._life = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopped = False
        self.counts = QueueCounts()

    # -- producers

    def enqueue(self, pairs: Sequence[tuple[UUID, Mapping[str, Any]]]) -> None:
        """Take entries, in order. Returns in microseconds whatever the store is doing.

        Raises:
            BadParams: a pair is not a UUID and a mapping; nothing was taken.
            SpillUnavailable: the queue is full and the spill cannot be written; nothing was taken.
            QueueStopped: the queue is stopped and the spill cannot be written; nothing was taken.
            LanesChanged: the store has another number of lanes now; nothing was taken.
        """
        if not pairs:
            return
        self._store.check_lanes()
        with observer.now.enqueuing(len(pairs)) as watched, self._order:
            try:
                parcels = route(
                    self._store.store_id,
                    self.producer,
                    self._next_seq,
                    cast("Sequence[Pair]", pairs),
                    self._lanes,
                    time.time(),
                )
            except (AttributeError, TypeError, ValueError) as error:
                raise BadParams(f"enqueue takes pairs of a UUID and a mapping: {error}") from None
            parcels = watched.carrying(parcels)
            self._next_seq += len(pairs)
            self.counts.enqueued += len(pairs)
            try:
                taken = self._push(parcels)
            except BaseException:  # an interrupt: the entries have their numbers, and may be on their way
                self._to_spill(parcels, len(pairs))
                raise
            if not taken:
                self._to_spill(parcels, len(pairs))
                watched.spilled(journal=self._journal)

    def _push(self, parcels: list[Parcel]) -> bool:
        """Whether the broker has taken them; where a replay is at it for too long they join its spill."""
        waited = self._priority_lock.take()
        if waited is None:
            return False
        try:
            if self._journal or self._stopped or self._spill.active:
                return False
            return isinstance(self._broker.push(parcels, waited=waited), Pushed)
        finally:
            self._priority_lock.leave()

    def _to_spill(self, parcels: list[Parcel], entries: int) -> None:
        folder = overflow_dir(self._settings)
        try:
            self._spill.append(parcels, folder)
        except SpillUnavailable as error:
            self.counts.refused += entries
            self._refused += [(self.producer, seq) for parcel in parcels for seq in parcel.seqs]
            emit("spill_failed", level=logging.ERROR, entries=entries, folder=str(folder))
            if self._stopped:
                raise QueueStopped(f"the queue is stopped, and {error}") from error
            raise
        self.counts.spilled += entries
        self._last_append = time.monotonic()
        if self._journal:
            self._broker.wake()

    def flush(self, timeout: float = 2.0) -> bool:
        """Wait until everything enqueued before this call is readable by any process.

        Returns False where that takes longer than ``timeout`` seconds, or where the queue is not running
        and something waits.
        """
        deadline = time.monotonic() + timeout
        tail = self._spill.tail()
        while not self._spill.passed(tail):
            if time.monotonic() >= deadline or not self._running:
                return False
            self._broker.flush_until(self._broker.mark())
            self._broker.wait_change(min(0.02, deadline - time.monotonic()))
        mark = self._broker.mark()
        self._broker.flush_until(mark)
        wait = deadline - time.monotonic() if self._running else 0.0
        return self._broker.wait_settled(mark, max(0.0, wait))

    # -- life

    @property
    def _running(self) -> bool:
        return self._thread is not None

    def start(self) -> None:
        """Start draining; does nothing where that is so already. Works again after :meth:`stop`."""
        with self._life:
            if self._thread is not None:
                return
            self._halt.clear()
            with self._order:
                if self._stopped:
                    self._spill.reopen()
                self._stopped = False
            if self._broker.in_process:
                self._living.start()
            self._broker.open()
            self._thread = threading.Thread(target=self._run, name="iai-mcp-provenance", daemon=True)
            self._thread.start()
            atexit.register(self.stop)

    def stop(self) -> None:
        """Drain for at most the budget (``IAI_MCP_STOP_BUDGET``), then spill what is left.

        With Redis nothing is waited for: all is in Redis, or in the spill, already. Does nothing where
        the queue is not running. What is enqueued from now on goes to the spill, and is applied by the next
        client of this store.
        """
        with self._life:
            thread = self._thread
            if thread is None:
                return
            deadline = time.monotonic() + self._settings.stop_budget
            if self._broker.in_process:
                self.flush(self._settings.stop_budget)
            self._halt.set()
            self._broker.wake()
            thread.join(max(0.05, deadline - time.monotonic()))
            with self._order, self._priority_lock.step():
                self._stopped = True
                self._thread = None
                self._give_back()
            self._living.stop()
            self._broker.close()
            atexit.unregister(self.stop)

    def _give_back(self) -> None:
        left = self._broker.drain_remaining()
        if left:
            entries = sum(len(parcel.seqs) for parcel in left)
            try:
                self._spill.prepend(left, overflow_dir(self._settings))
                self.counts.spilled += entries
            except SpillUnavailable as error:
                self.counts.refused += entries
                self._refused += [(parcel.producer, seq) for parcel in left for seq in parcel.seqs]
                emit("spill_failed", level=logging.ERROR, entries=entries, error=quiet_words(error))
        elif not self._spill.unread and (self._broker.in_process or self._broker.is_durable(self._broker.mark())):
            self._spill.commit()  # all of it has been applied, or is safe elsewhere
        self._note_refused()
        for chain in (*self._adopted, self._spill):
            chain.close()
        self._adopted.clear()

    def _note_refused(self) -> None:
        """Tell the store which of its entries were never taken, once its disk lets us."""
        if self._refused:
            noted = len(self._refused)
            with suppress(OSError):
                self._store.exclusions.add(ExclusionReason.REFUSED, self._refused[:noted])
                del self._refused[:noted]

    # -- the thread

    def _run(self) -> None:
        while not self._halt.is_set():
            try:
                self._prepare()
                more = self._replay()
                lane = self._broker.tend(0.0 if more else SCAN_S)
                if lane is not None:
                    self._drain(lane)
                self._scan()
            except Exception as error:  # noqa: BLE001  nobody else would go on
                emit("queue_error", level=logging.ERROR, error=quiet_words(error))
                log.debug("the provenance thread goes on after this error", exc_info=True)
                self._halt.wait(0.5)

    def _prepare(self) -> None:
        """Where recalls may have to spill at any time, have a file ready for that."""
        if self._journal or not self._broker.in_process:
            with suppress(OSError):  # said once entries are to be written
                self._spill.prepare(overflow_dir(self._settings))

    def _drain(self, lane: int) -> None:
        report = drain(
            self._store,
            self._broker,
            lane,
            self._caches[lane],
            self._policy,
            deadline=time.monotonic() + 0.2,  # then the other lanes have their turn
        )
        self.counts.applied += report.applied
        self.counts.duplicate += report.duplicate
        self.counts.unknown += report.unknown
        self.counts.dead += report.dead
        if report.outcome is Outcome.STORE_UNAVAILABLE:
            first, longest = PLACE_BACKOFF_S
            delay = min(longest, first * 2 ** min(self._failures[lane], 10))
            self._failures[lane] += 1
            self._broker.defer(lane, delay)
            error = quiet_words(report.error) if report.error else ""
            emit("store_unavailable", level=logging.WARNING, lane=lane, retry_s=delay, error=error)
        else:
            self._failures[lane] = 0

    def _replay(self) -> bool:
        """Move spilled parcels on; whether more could follow at once."""
        more = False
        with self._order:
            if self._broker.needs_replay():
                for chain in (self._spill, *self._adopted):
                    chain.start_over()
        for chain in (self._spill, *self._adopted):
            if chain.mark is not None and self._is_safe(chain.mark) and self._may_commit(chain):
                chain.commit()
            more = self._replay_some(chain) or more
        self._adopted = [chain for chain in self._adopted if not chain.empty]
        return more

    def _is_safe(self, mark: Mark) -> bool:
        with self._priority_lock.step():  # who looks may use the connection that pushes use
            return self._broker.is_durable(mark)

    def _replay_some(self, chain: Chain) -> bool:
        with self._priority_lock.step():
            return replay(chain, self._broker, self._lanes)

    def _may_commit(self, chain: Chain) -> bool:
        if chain is not self._spill or not self._journal:
            return True
        return chain.length > 1 or time.monotonic() - self._last_append > JOURNAL_IDLE_S

    def _scan(self) -> None:
        if time.monotonic() - self._last_scan >= SCAN_S:
            self._last_scan = time.monotonic()
            self._note_refused()
            with suppress(OSError):  # said where it is drained
                self._store.tidy()
            self._adopted.extend(adopt(overflow_dir(self._settings), self._store.store_id))

    # -- looking in

    def stats(self) -> dict[str, Any]:
        """Counts since the queue was made, and its lanes now."""
        return {
            "broker": self._broker.name,
            "running": self._running,
            "producer": self.producer,
            "handed_out": self._next_seq - 1,
            "spill_active": self._spill.active,
            "counts": asdict(self.counts),
            "lanes": self._lane_stats(),
        }

    def _lane_stats(self) -> list[dict[str, Any]]:
        try:
            return [asdict(lane) for lane in self._broker.stats()]
        except BrokerUnavailable:  # the counts are worth having all the same
            return []

    @property
    def journals(self) -> bool:
        """Whether every entry goes through the spill."""
        return self._journal

    @property
    def trouble(self) -> str | None:
        """Why the broker takes no entries just now, which are spilled meanwhile; None where it does."""
        return getattr(self._broker, "trouble", None)

    @property
    def connection(self) -> redis.Redis | None:
        """A client of the Redis in use; None with the embedded broker."""
        return getattr(self._broker, "control", None)


def _broker(store: ProvenanceStore, connection: redis.Redis | None, capacity: int) -> QueueBroker:
    """The broker that the settings ask for; Redis is imported only where it is one."""
    settings = store.settings
    if connection is None and not settings.redis_url:
        return MemoryBroker(store.lanes, capacity)
    from iai_mcp.broker.redis.broker import RedisOptions
    from iai_mcp.broker.redis.client import connect
    from iai_mcp.broker.redis.durable import redis_broker

    connection = connection if connection is not None else connect(settings.redis_url)
    return redis_broker(connection, store.store_id, store.lanes, RedisOptions.of(settings))
