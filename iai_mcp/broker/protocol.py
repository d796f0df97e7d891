"""What a broker promises the queue and the drain.

A lane is a FIFO of parcels with at most one lease. What was claimed stays *in flight* until it is
acknowledged under the same lease; whoever claims next gets it again first. So a drain that dies at any
point loses nothing and overtakes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from iai_mcp.entries.parcel import Parcel

__all__ = ["Broker", "Claimed", "LaneStats", "Lease", "MalformedItem", "Mark", "Pushed", "QueueBroker", "Refused"]

Mark = tuple[int, ...]
"""A point in the stream: for each lane how many parcels had been pushed."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """The broker holds the parcels."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The broker did not take the parcels, or may not have (a reply was lost): spill them."""

    reason: str


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to drain one lane. ``token`` only grows; None where no other process can hold a lease.

    ``inherited``: how many items another process has left in flight.
    """

    lane: int
    token: int | None
    holder: str
    inherited: int = 0


@dataclass(frozen=True, slots=True)
class MalformedItem:
    """An item of a lane that is no parcel."""

    raw: bytes
    reason: str


Claimed = Parcel | MalformedItem


@dataclass(frozen=True, slots=True)
class LaneStats:
    """One lane now: entries pending and in flight, the age in seconds of the oldest of them, and who drains it
    since how many seconds without a sign of life."""

    lane: int
    pending: int
    in_flight: int
    oldest_s: float | None = None
    holder: str | None = None
    lease_age_s: float | None = None


class Broker(Protocol):
    """The lanes of one store."""

    name: str

    def push(self, parcels: Sequence[Parcel], *, replay: bool = False, waited: float = 0.0) -> Pushed | Refused:
        """Append all parcels of one call to their lanes, or none of them. Never raises, never blocks long.

        ``replay`` marks parcels that come back from a spill, one at a time as far as capacity goes. ``waited``:
        seconds of its budget that the call has spent before.
        """
        ...

    def lease(self, lane: int, floor: int = 0) -> Lease | None:
        """Take the lane under a token above ``floor``; None while another holder's lease lives.

        Like every method of a drain, raises BrokerUnavailable where the broker does not answer.
        """
        ...

    def claim(self, lease: Lease, max_entries: int, linger: float) -> list[Claimed]:
        """What is in flight, else up to ``max_entries`` entries (but one parcel at least), now in flight.

        Waits for more until ``linger`` seconds after the oldest one's push. Empty when the lane is.

        Raises:
            LeaseLost: the lease has passed on.
        """
        ...

    def ack(self, lease: Lease, count: int) -> None:
        """Drop the first ``count`` items in flight.

        Raises:
            LeaseLost: the lease has passed on; nothing was dropped.
        """
        ...

    def release(self, lease: Lease, *, if_empty: bool = False) -> bool:
        """Give the lane back; harmless where the lease is lost.

        With ``if_empty`` a lane that has got new work is kept, and False returned: between a last empty
        claim and the release nobody else would have been called.
        """
        ...

    def stats(self) -> list[LaneStats]:
        """One row per lane."""
        ...


class QueueBroker(Broker, Protocol):
    """What the queue needs beside: its background thread, its barrier and its end."""

    in_process: bool
    """Whether entries wait in this process's memory, so that stopping means draining."""

    def close(self) -> None:
        """Let go of connections; :meth:`open` works again afterwards."""
        ...

    def open(self) -> None:
        """Get ready before the first push, within a second or so; failing is no error."""
        ...

    @property
    def room(self) -> int:
        """How many further parcels of a replay fit now."""
        ...

    def mark(self) -> Mark:
        """The end of every lane as this producer knows it."""
        ...

    def is_durable(self, mark: Mark) -> bool:
        """Whether everything up to ``mark`` outlives this process, so that the spill may let go of it."""
        ...

    def needs_replay(self) -> bool:
        """Whether what was replayed and never durable may be gone and must be replayed anew.

        Says so once; until it is asked the broker takes nothing, lest that be overtaken.
        """
        ...

    def wait_settled(self, mark: Mark, timeout: float) -> bool:
        """Wait until everything up to ``mark`` is acknowledged; False after ``timeout`` seconds."""
        ...

    def flush_until(self, mark: Mark) -> None:
        """Do not linger for anything up to ``mark``."""
        ...

    def tend(self, timeout: float) -> int | None:
        """Look after the lanes for up to ``timeout`` seconds; a lane that this process must drain now."""
        ...

    def defer(self, lane: int, seconds: float) -> None:
        """Leave a lane alone for a while: its store failed."""
        ...

    def wake(self) -> None:
        """End a wait of :meth:`tend`, present or next."""
        ...

    def wait_change(self, timeout: float) -> None:
        """Wait until something moves, at most ``timeout`` seconds."""
        ...

    def drain_remaining(self) -> list[Parcel]:
        """Everything that would die with this process, in order; it is the caller's now."""
        ...
