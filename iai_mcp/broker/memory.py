"""The embedded broker: bounded lanes in this process's memory.

Its parcels die with the process; ``IAI_MCP_JOURNAL`` closes that gap. It holds up to ``capacity`` batches (calls
of ``push``) over all lanes, those in flight included, and refuses further ones.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

from msgspec import Struct

from iai_mcp.broker.protocol import Claimed, LaneStats, Lease, Mark, Pushed, Refused
from iai_mcp.entries.parcel import Parcel
from iai_mcp.errors import LeaseLost

__all__ = ["MemoryBroker"]

PUSHED = Pushed()


class _Item(Struct, gc=False):  # made in a third of the time that a dataclass takes
    parcel: Parcel
    batch: list[int]  # one cell, shared by the parcels of a push: how many of them are still here
    arrived: float


@dataclass(slots=True)
class _Lane:
    pending: deque[_Item] = field(default_factory=deque)
    in_flight: deque[_Item] = field(default_factory=deque)
    entries: int = 0  # pending ones
    pushed: int = 0
    settled: int = 0
    flush_until: int = 0  # a flush waits for everything up to here
    lease: int = 0  # number of the live lease, 0 for none
    not_before: float = 0.0


class MemoryBroker:
    """Lanes as deques under one condition."""

    name = "embedded"
    in_process: Literal[True] = True

    def __init__(self, lanes: int, capacity: int) -> None:
        self._lanes = [_Lane() for _ in range(lanes)]
        self._capacity = capacity
        self._waiting = 0
        self._leases = 0
        self._kicked = False
        self._change = threading.Condition()

    # -- producers

    def push(self, parcels: Sequence[Parcel], *, replay: bool = False, waited: float = 0.0) -> Pushed | Refused:
        with self._change:
            if self._waiting >= self._capacity and not replay:
                return Refused("full")
            batch = [len(parcels)]
            arrived = time.monotonic()
            wake = False
            for parcel in parcels:
                lane = self._lanes[parcel.lane]
                wake = wake or not lane.pending
                lane.pending.append(_Item(parcel, [1] if replay else batch, arrived))
                lane.entries += len(parcel.seqs)
                lane.pushed += 1
            self._waiting += len(parcels) if replay else 1
            if wake:  # a lane with work has woken its drain already
                self._change.notify_all()
        return PUSHED

    @property
    def room(self) -> int:
        """How many more batches fit."""
        return max(0, self._capacity - self._waiting)

    def mark(self) -> Mark:
        with self._change:
            return tuple(lane.pushed for lane in self._lanes)

    def is_durable(self, mark: Mark) -> bool:
        with self._change:  # nothing here is, only what the store has
            return self._settled(mark)

    def _settled(self, mark: Mark) -> bool:
        return all(lane.settled >= end for lane, end in zip(self._lanes, mark, strict=True))

    def flush_until(self, mark: Mark) -> None:
        """Stop lingering for anything up to ``mark``."""
        with self._change:
            for lane, end in zip(self._lanes, mark, strict=True):
                lane.flush_until = max(lane.flush_until, end)
            self._change.notify_all()

    def wait_settled(self, mark: Mark, timeout: float) -> bool:
        """Wait until everything up to ``mark`` is acknowledged, at most ``timeout`` seconds."""
        with self._change:
            return self._change.wait_for(lambda: self._settled(mark), timeout)

    # -- the drain

    def lease(self, lane: int, floor: int = 0) -> Lease | None:
        with self._change:
            if self._lanes[lane].lease:
                return None
            self._leases += 1
            self._lanes[lane].lease = self._leases
            return Lease(lane, None, str(self._leases))

    def keep(self, lease: Lease) -> AbstractContextManager[None]:
        return nullcontext()  # it lives until it is given back

    def claim(self, lease: Lease, max_entries: int, linger: float) -> list[Claimed]:
        with self._change:
            lane = self._held(lease)
            if not lane.in_flight and lane.pending:
                ripe = lane.pending[0].arrived + linger
                while lane.entries < max_entries and lane.settled >= lane.flush_until:
                    if (left := ripe - time.monotonic()) <= 0:
                        break
                    self._change.wait(left)
                    self._held(lease)
                self._take(lane, max_entries)
            return [item.parcel for item in lane.in_flight]

    def _take(self, lane: _Lane, max_entries: int) -> None:
        taken = 0
        while lane.pending and (not taken or taken + len(lane.pending[0].parcel.seqs) <= max_entries):
            item = lane.pending.popleft()
            lane.in_flight.append(item)
            taken += len(item.parcel.seqs)
        lane.entries -= taken

    def ack(self, lease: Lease, count: int) -> None:
        with self._change:
            lane = self._held(lease)
            for _ in range(count):
                item = lane.in_flight.popleft()
                item.batch[0] -= 1
                self._waiting -= not item.batch[0]
            lane.settled += count
            self._change.notify_all()

    def release(self, lease: Lease, *, if_empty: bool = False) -> bool:
        with self._change:
            lane = self._lanes[lease.lane]
            if str(lane.lease) == lease.holder:
                if if_empty and (lane.in_flight or lane.pending):
                    return False
                lane.lease = 0
        return True

    def _held(self, lease: Lease) -> _Lane:
        lane = self._lanes[lease.lane]
        if str(lane.lease) != lease.holder:
            raise LeaseLost(f"lane {lease.lane} was taken away")
        return lane

    # -- the thread that drains

    def next_ready_lane(self, timeout: float) -> int | None:
        """The lane with work whose oldest parcel has waited longest, but for deferred lanes; None in the end."""
        deadline = time.monotonic() + timeout
        with self._change:
            while True:
                now = time.monotonic()
                ready = [
                    (heads[0].arrived, number)
                    for number, lane in enumerate(self._lanes)
                    if (heads := lane.in_flight or lane.pending) and lane.not_before <= now
                ]
                if ready:
                    return min(ready)[1]
                wake = min((lane.not_before for lane in self._lanes if lane.not_before > now), default=deadline)
                if now >= deadline or self._kicked:
                    self._kicked = False
                    return None
                self._change.wait(min(wake, deadline) - now)

    def defer(self, lane: int, seconds: float) -> None:
        """Leave the lane alone for so long: its storage is unavailable."""
        with self._change:
            self._lanes[lane].not_before = time.monotonic() + seconds

    def wake(self) -> None:
        """End a wait of :meth:`next_ready_lane`, present or next."""
        with self._change:
            self._kicked = True
            self._change.notify_all()

    def wait_change(self, timeout: float) -> None:
        """Wait until something moves, at most ``timeout`` seconds."""
        with self._change:
            self._change.wait(max(0.0, timeout))

    def drain_remaining(self) -> list[Parcel]:
        """Empty every lane, in flight first, in order; leases end, so that a late ack is refused."""
        with self._change:
            parcels = [item.parcel for lane in self._lanes for item in (*lane.in_flight, *lane.pending)]
            for number, lane in enumerate(self._lanes):
                self._lanes[number] = _Lane(pushed=lane.pushed, settled=lane.pushed)
            self._waiting = 0
            self._change.notify_all()
        return parcels

    def stats(self) -> list[LaneStats]:
        now = time.monotonic()
        with self._change:
            return [
                LaneStats(
                    number,
                    lane.entries,
                    sum(len(item.parcel.seqs) for item in lane.in_flight),
                    now - heads[0].arrived if (heads := lane.in_flight or lane.pending) else None,
                )
                for number, lane in enumerate(self._lanes)
            ]
