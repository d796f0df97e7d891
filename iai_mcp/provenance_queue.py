"""The write queue: takes provenance entries from the caller in microseconds and never drops one.

``enqueue`` numbers the entries, which makes their keys, and pushes them to the broker. Entries that the broker
does not take go to the local spill, and nothing goes past them until they are replayed. A background thread does
that, and drains embedded lanes.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any
from uuid import UUID

from iai_mcp.broker.factory import queue_broker
from iai_mcp.broker.protocol import Mark, Pushed
from iai_mcp.common import forks
from iai_mcp.entries.admission import admit, shift
from iai_mcp.entries.parcel import Parcel
from iai_mcp.entries.routing import as_list
from iai_mcp.errors import BrokerUnavailable, ConfigError, QueueStopped, SpillUnavailable
from iai_mcp.pipeline.background import Background, Driver, LaneDrainer
from iai_mcp.pipeline.counts import QueueCounts
from iai_mcp.pipeline.drain import DrainPolicy
from iai_mcp.pipeline.overflow import Overflow
from iai_mcp.pipeline.ports import ProvenanceStore
from iai_mcp.pipeline.presence import check_lanes
from iai_mcp.pipeline.priority_lock import PriorityLock
from iai_mcp.pipeline.push_groups import Call, PushGroups
from iai_mcp.storage.live_producers import LiveProducer
from iai_mcp.storage.place import store_place
from iai_mcp.telemetry import observer

if TYPE_CHECKING:
    import redis

__all__ = ["ProvenanceWriteQueue", "QueueCounts"]

CLOSE_S = 0.2  # for the last doorbells, once the budget of a stop is spent
CONNECT_IN_CHILD_S = 0.1  # the longest time that a forked child's first entry waits for Redis


class ProvenanceWriteQueue:
    """Background writer of one store's provenance.

    With ``connection`` or ``IAI_MCP_REDIS_URL`` entries wait in Redis, and ``rq`` workers drain them. Otherwise
    they wait in this process's memory (the embedded broker), and a thread of this process drains them.

    An embedded process that is killed with -9 loses the entries that are in memory only. With
    ``IAI_MCP_JOURNAL`` set to ``write`` or ``fsync`` every entry is in a file before ``enqueue`` returns.

    A forked child is a producer of its own from its first use of the queue on. What the parent held stays the
    parent's. Without Redis a child hands its entries over in files, which another process of the store applies.

    Attributes:
        spill_left: number of entries that the last :meth:`stop` left in the spill.

    Args:
        store: entries go there through ``store.append_provenance_batch``.
        coalesce_ms: the linger: how long the oldest entry of a lane waits for company, in milliseconds.
        max_queue_size: most batches (calls of ``enqueue``) that wait in memory, over all lanes; further
            ones are spilled. With Redis, ``IAI_MCP_LANE_CEILING`` takes its place.
        max_batch_pairs: most entries in one write. With Redis, ``IAI_MCP_MAX_BATCH`` takes its place.
        connection: a ``redis.Redis``; default: ``IAI_MCP_REDIS_URL`` as the store's settings have it.

    Raises:
        ConfigError: a number is too small, or the URL of Redis cannot be used.
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
        self._capacity, self._given = max_queue_size, connection
        self._policy = DrainPolicy(max_batch_pairs, coalesce_ms / 1000)
        self._exit = forks.AtExit(self.stop)
        self._running = self._stopped = False
        self._begin()
        self._make()
        forks.in_children(self._begin)

    def _begin(self) -> None:
        """Be a new producer, at first and in a forked child, which makes the rest when it is used."""
        self.producer = secrets.token_hex(8)
        self.counts = QueueCounts()
        self._next_seq = 1
        self.spill_left = 0
        self._order = threading.Lock()  # held around each push
        self._groups = PushGroups(self._number, self._push_calls)
        self._life = threading.Lock()
        self._inherited = True  # what _make makes is the parent's

    def _make(self) -> None:
        """Make what no two processes may share: threads, locks, connections and files."""
        store = self._store
        self._broker = queue_broker(
            store.settings,
            store.store_id,
            store.lanes,
            capacity=self._capacity,
            connection=self._given,
            place=store_place(store.layout),
        )
        self._overflow = Overflow(store, self.producer, self.counts, remote=not self._broker.in_process)
        self._spill = self._overflow.spill
        half = self._settings.push_budget_ms / 2000  # the other half is for the push
        self._priority_lock = PriorityLock(self._order, half)
        self._halt = threading.Event()
        self._living = LiveProducer(
            store.layout, self.producer, lambda: self._next_seq - 1, embedded=self._broker.in_process
        )
        self._background = self._make_background(replace(self._policy, wait=self._halt.wait))
        self._inherited = False

    def _own(self) -> None:
        """In a forked child: make what is still the parent's, and start where the parent's queue runs."""
        forks.notice()
        if self._inherited:
            with self._life:
                if self._inherited:
                    running, self._running = self._running, False
                    self._make()
                    if running:
                        self._start(CONNECT_IN_CHILD_S)

    def _make_background(self, policy: DrainPolicy) -> Background:
        driver: Driver
        if self._broker.in_process:
            driver = LaneDrainer(self._store, self._broker, policy, self.counts)
        else:
            driver = self._broker
        return Background(
            self._store,
            self._broker,
            driver,
            self._overflow,
            self._living,
            self._order,
            self._priority_lock,
            self._halt,
        )

    # -- producers

    def enqueue(self, pairs: Iterable[tuple[UUID, Mapping[str, Any]]]) -> None:
        """Take entries, in order. Returns in microseconds even while the store is busy or unavailable.

        Raises:
            BadParams: a pair is not a UUID and a mapping, or its entry cannot be JSON, is larger than
                ``IAI_MCP_MAX_ENTRY_BYTES`` or nests too deep. The message names the pair; nothing was taken.
            SpillUnavailable: the queue is full and the spill cannot be written; nothing was taken.
            QueueStopped: the queue is stopped and the spill cannot be written; nothing was taken.
            LanesChanged: the store has another number of lanes now; nothing was taken.
        """
        if not (given := as_list(pairs)):
            return
        self._own()
        store = self._store
        check_lanes(store)
        with observer.now.enqueuing(len(given)) as watched:
            parcels = admit(
                store.store_id,
                self.producer,
                self._next_seq,  # most likely
                given,
                store.lanes,
                time.time(),
                self._settings.max_entry_bytes,
                self._store.reuses,
            )
            call = self._groups.hand_over(watched.carrying(parcels), len(given))
            if call.error is not None:
                raise type(call.error)(str(call.error)) from call.error
            if call.spilled:
                watched.spilled(journal=self._overflow.journal)

    def _number(self, parcels: list[Parcel], entries: int) -> None:
        if (ahead := self._next_seq - parcels[0].seqs[0]) != 0:
            shift(parcels, ahead)  # another thread was quicker
        self._next_seq += entries
        self.counts.enqueued += entries

    def _push_calls(self, calls: list[Call]) -> None:
        """Push what the broker takes, and spill the rest of ``calls``, also after an interrupt."""
        left = calls
        try:
            with self._order:
                try:
                    left = self._not_taken(calls)
                finally:
                    if left:
                        self._spill_calls(left)
                        left = []
        finally:
            if left:  # the interrupt came while this thread waited for the lock
                with self._order:
                    self._spill_calls(left)

    def _not_taken(self, calls: list[Call]) -> list[Call]:
        """The calls that the broker did not take: all of them where a step of the replay takes too long."""
        waited = self._priority_lock.take()
        if waited is None:
            return calls
        try:
            if self._overflow.journal or self._stopped or self._spill.active:
                return calls
            if not self._broker.in_process:
                parcels = calls[0].parcels if len(calls) == 1 else [one for call in calls for one in call.parcels]
                return [] if isinstance(self._broker.push(parcels, waited=waited), Pushed) else calls
            for at, call in enumerate(calls):  # each is a batch, as the queue's size counts them
                if not isinstance(self._broker.push(call.parcels), Pushed):
                    return calls[at:]
            return []
        finally:
            self._priority_lock.leave()

    def _spill_calls(self, calls: list[Call]) -> None:
        for call in calls:
            call.error = SpillUnavailable("interrupted before the spill was written")
        try:
            self._to_spill([parcel for call in calls for parcel in call.parcels])
        except (SpillUnavailable, QueueStopped) as error:
            for call in calls:
                call.error = error
        else:
            for call in calls:
                call.error, call.spilled = None, True

    def _to_spill(self, parcels: list[Parcel]) -> None:
        try:
            self._overflow.append(parcels)
        except SpillUnavailable as error:
            if self._stopped:
                raise QueueStopped(f"the queue is stopped, and {error}") from error
            raise
        if self._overflow.journal:
            self._broker.wake()

    def flush(self, timeout: float = 2.0) -> bool:
        """Wait until everything enqueued before this call is readable by any process.

        Returns False where that takes longer than ``timeout`` seconds, or where the queue is not running
        and something waits.
        """
        forks.notice()
        if self._inherited:
            return True  # this process has enqueued nothing
        deadline = time.monotonic() + timeout
        tail = self._spill.tail()
        while not self._spill.passed(tail):
            if time.monotonic() >= deadline or not self._running:
                return False
            self._flush_until(self._broker.mark())
            self._broker.wait_change(min(0.02, deadline - time.monotonic()))
        mark = self._broker.mark()
        self._flush_until(mark)
        wait = deadline - time.monotonic() if self._running else 0.0
        return self._broker.wait_settled(mark, max(0.0, wait))

    def _flush_until(self, mark: Mark) -> None:
        """Stop lingering; how long workers linger is their own setting."""
        if self._broker.in_process:
            self._broker.flush_until(mark)

    # -- life

    def start(self) -> None:
        """Start draining; does nothing where that is so already. Works again after :meth:`stop`."""
        self._own()
        with self._life:
            if not self._running:
                self._start()

    def _start(self, connect_s: float | None = None) -> None:
        with self._order:
            if self._stopped:
                self._spill.reopen()
            self._stopped = False
        if not self._overflow.hands_over:
            self._living.start()
            if not self._broker.in_process:
                self._broker.open(connect_s)
        self._running = True
        if not self._overflow.hands_over:
            self._background.start()
        self._exit.arm()

    def stop(self) -> None:
        """Drain for at most the budget (``IAI_MCP_STOP_BUDGET``), then spill what is left.

        With Redis, what was spilled is replayed to it within the same budget, over a new connection if the old one
        was lost. The log says how many entries stay in the spill (``spill_left``). Does nothing where the queue is
        not running. Entries that are enqueued from now on go to the spill, and the next client of this store
        applies them.
        """
        forks.notice()
        with self._life:
            if not self._running:
                return
            if self._inherited:  # what there is to stop is the parent's
                self._running, self._stopped = False, True
                return
            deadline = time.monotonic() + self._settings.stop_budget
            if self._broker.in_process and not self._overflow.hands_over:
                self.flush(self._settings.stop_budget)
            self._background.stop(max(0.05, deadline - time.monotonic()))
            if not self._overflow.hands_over:
                self._background.replay_own(deadline)
            with self._order, self._priority_lock.step():
                self._stopped = True
                self._running = False
                self._give_back()
            self._living.stop(stored=self._all_stored())
            if not self._broker.in_process:
                self._broker.close(max(CLOSE_S, deadline - time.monotonic()))
            self._exit.disarm()
            self._overflow.erase_forgotten()

    def _give_back(self) -> None:
        """Spill what would die with this process, and give up the spill files."""
        left = self._broker.drain_remaining() if self._broker.in_process else self._broker.endangered()
        if left:
            self._overflow.give_back(left)
        elif not self._spill.unread and (self._broker.in_process or self._broker.is_durable(self._broker.mark())):
            self._spill.commit()  # all of it is applied, or durable elsewhere
        self._overflow.note_refused()
        self.spill_left = self._overflow.tell_left()
        self._background.close()

    def _all_stored(self) -> bool:
        """Whether every entry is known to be in the store: of a queue that has stopped."""
        if self.spill_left or self.counts.refused:
            return False
        return self._broker.in_process or self._broker.retained == 0

    # -- state

    def stats(self) -> dict[str, Any]:
        """Counts since the queue was made (in a forked child: since then), and its lanes now."""
        self._own()
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
        self._own()
        return self._overflow.journal

    @property
    def trouble(self) -> str | None:
        """Why the broker takes no entries just now, so that they are spilled; None where it does."""
        self._own()
        return None if self._broker.in_process else self._broker.trouble

    def check_place(self) -> None:
        """Return unless the broker refuses this store's folder; entries of a refused queue go to the spill.

        Raises:
            WrongPlace: Redis holds the entries of another folder with the same store id.
        """
        if not self._broker.in_process and self._broker.refusal is not None:
            raise self._broker.refusal

    @property
    def connection(self) -> redis.Redis | None:
        """A client of the Redis in use; None with the embedded broker."""
        self._own()
        return None if self._broker.in_process else self._broker.control
