"""The background thread of a queue: replays the spill, drives the broker, and adopts what dead clients left."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from typing import Protocol

from iai_mcp.broker.protocol import EmbeddedBroker, QueueBroker
from iai_mcp.config import overflow_dir
from iai_mcp.pipeline.counts import QueueCounts
from iai_mcp.pipeline.drain import DrainPolicy, DrainReport, Outcome, drain
from iai_mcp.pipeline.overflow import Overflow
from iai_mcp.pipeline.ports import ProvenanceStore
from iai_mcp.pipeline.priority_lock import PriorityLock
from iai_mcp.pipeline.replay import ReplayCursor
from iai_mcp.spill.adoption import adopt
from iai_mcp.storage.live_producers import LiveProducer
from iai_mcp.storage.tables.known_records import RecordsCache
from iai_mcp.telemetry.events import emit, log, safe_message

__all__ = ["Background", "Driver", "LaneDrainer"]

SCAN_S = 1.0  # between looks for orphaned spill files
TURN_S = 0.2  # a lane is drained for so long before the next one
BACKOFF_S = (0.1, 5.0)  # shortest and longest wait while the storage is unavailable
ERROR_PAUSE_S = 0.5
PATIENCE_S = 3.0  # a stopping queue waits so long for progress of its replay: a server may sync every second
LOST_PATIENCE_S = 1.0  # the same without a connection
PAUSE_S = 0.02


class Driver(Protocol):
    """Does a broker's work; a remote broker is its own."""

    def run_once(self, timeout: float) -> None:
        """Wait for work up to ``timeout`` seconds and do some of it."""
        ...


class LaneDrainer:
    """The driver of an embedded broker: drains its lanes, the one that has waited longest first."""

    def __init__(
        self, store: ProvenanceStore, broker: EmbeddedBroker, policy: DrainPolicy, counts: QueueCounts
    ) -> None:
        self._store = store
        self._broker = broker
        self._policy = policy
        self._counts = counts
        self._caches = [RecordsCache() for _ in range(store.lanes)]
        self._failures = [0] * store.lanes  # in a row

    def run_once(self, timeout: float) -> None:
        """Drain the next lane that has work, for a turn."""
        lane = self._broker.next_ready_lane(timeout)
        if lane is None:
            return
        deadline = time.monotonic() + TURN_S
        report = drain(self._store, self._broker, lane, self._caches[lane], self._policy, deadline=deadline)
        self._counts.add(report)
        if report.outcome is Outcome.STORE_UNAVAILABLE:
            self._back_off(report)
        else:
            self._failures[lane] = 0

    def _back_off(self, report: DrainReport) -> None:
        first, longest = BACKOFF_S
        delay = min(longest, first * 2 ** min(self._failures[report.lane], 10))
        self._failures[report.lane] += 1
        self._broker.defer(report.lane, delay)
        error = safe_message(report.error) if report.error else ""
        emit("store_unavailable", level=logging.WARNING, lane=report.lane, retry_s=delay, error=error)


class Background:
    """One daemon thread.

    Args:
        store: the store that the queue is for.
        broker: where replayed parcels go.
        driver: does the broker's own work.
        overflow: the queue's own spill.
        living: the producer's sign of life.
        order: the lock under which producers number and push.
        priority_lock: the lock around every use of the broker for a push.
        halt: set by :meth:`stop`; the driver's waits end with it.
    """

    def __init__(
        self,
        store: ProvenanceStore,
        broker: QueueBroker,
        driver: Driver,
        overflow: Overflow,
        living: LiveProducer,
        order: threading.Lock,
        priority_lock: PriorityLock,
        halt: threading.Event,
    ) -> None:
        self._store = store
        self._broker = broker
        self._driver = driver
        self._overflow = overflow
        self._living = living
        self._order = order
        self._priority_lock = priority_lock
        self._halt = halt
        self._own = ReplayCursor(overflow.spill)
        self._adopted: list[ReplayCursor] = []
        self._adoption = threading.Lock()
        self._last_scan = -SCAN_S
        self._thread: threading.Thread | None = None
        self._run_number = 0

    def start(self) -> None:
        """Start the thread."""
        self._halt.clear()
        self._run_number += 1  # a thread of an earlier run that has not ended yet ends now
        self._thread = threading.Thread(
            target=self._run, args=(self._run_number,), name="iai-mcp-provenance", daemon=True
        )
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Let the thread end, and wait for that up to ``timeout`` seconds."""
        self._halt.set()
        self._broker.wake()
        if self._thread is not None:
            self._thread.join(timeout)
            if not self._thread.is_alive():
                self._thread = None

    def replay_own(self, deadline: float) -> None:
        """Push the queue's own spill to a remote broker once more, after :meth:`stop`.

        Connects again where the connection was lost. Gives up at ``deadline`` (``time.monotonic()``), or where
        nothing has moved for a while.
        """
        if self._broker.in_process or self._thread is not None:  # a thread that does not end has the files
            return
        self._broker.recheck(min(LOST_PATIENCE_S, max(0.05, deadline - time.monotonic())))
        moved, since = -1, 0.0
        while not self._own_is_safe():
            now = time.monotonic()
            if self._own.chain.moved != moved:
                moved, since = self._own.chain.moved, now
            end = min(deadline, since + (LOST_PATIENCE_S if self._broker.trouble else PATIENCE_S))
            if now >= end:
                return
            self._replay_lost()
            if not self._broker.room:  # the ring is full: see what has been drained
                self._broker.recheck(min(0.1, end - now))
            with self._priority_lock.step():
                more = self._broker.reconnect(end - now) and self._own.replay(self._broker, self._store.lanes)
            if not more:
                time.sleep(PAUSE_S)

    def _own_is_safe(self) -> bool:
        """Whether every entry of the own spill is durable in the broker; removes the files that are."""
        chain = self._own.chain
        if self._own.mark is not None and self._broker.is_durable(self._own.mark):
            chain.commit()
        return chain.empty

    def close(self) -> None:
        """Give up the spill files that this process holds; they stay for the next client."""
        with self._adoption:
            held = [*self._adopted, self._own]
            self._adopted.clear()
        for cursor in held:
            cursor.chain.close()

    def _run(self, number: int) -> None:
        while not self._ends(number):
            try:
                self._overflow.prepare()
                more = self.replay()
                self._driver.run_once(0.0 if more else SCAN_S)
                self._scan(number)
            except Exception as error:  # noqa: BLE001  without this thread nothing would be drained any more
                emit("queue_error", level=logging.ERROR, error=safe_message(error))
                log.debug("the provenance thread goes on after this error", exc_info=True)
                self._halt.wait(ERROR_PAUSE_S)

    def replay(self) -> bool:
        """Move spilled parcels on, a step of each chain; whether more could follow at once."""
        self._replay_lost()
        more = False
        for cursor in (self._own, *self._adopted):
            if self._may_commit(cursor):
                cursor.chain.commit()
            with self._priority_lock.step():
                more = cursor.replay(self._broker, self._store.lanes) or more
        self._adopted = [cursor for cursor in self._adopted if not cursor.chain.empty]
        return more

    def _replay_lost(self) -> None:
        """Begin anew with what a remote broker may have lost, before anything else is pushed."""
        if self._broker.in_process:
            return
        with self._order:
            if self._broker.needs_replay():
                for cursor in (self._own, *self._adopted):
                    cursor.start_over()

    def _may_commit(self, cursor: ReplayCursor) -> bool:
        if cursor.mark is None:
            return False
        with self._priority_lock.step():  # asking may use the connection that pushes use
            durable = self._broker.is_durable(cursor.mark)
        return durable and (cursor is not self._own or self._overflow.may_commit())

    def _ends(self, number: int) -> bool:
        return self._halt.is_set() or number != self._run_number

    def _scan(self, number: int) -> None:
        if time.monotonic() - self._last_scan < SCAN_S:
            return
        self._last_scan = time.monotonic()
        self._overflow.note_refused()
        self._living.note()
        with suppress(OSError):  # a drain will say so
            self._store.tidy()
        if self._ends(number):
            return
        settings = self._store.settings
        orphans = [*map(ReplayCursor, adopt(overflow_dir(settings), self._store.store_id, self._overflow.proof))]
        with self._adoption:
            if not self._ends(number):
                self._adopted.extend(orphans)
                return
        for cursor in orphans:  # the queue stopped meanwhile, and has given its files up: so do we
            cursor.chain.close()
        self._overflow.erase_forgotten()
