"""What a broker promises to drains and to the write queue.

A lane is a FIFO of parcels with at most one lease. A claimed parcel stays *in flight* until it is acknowledged
under the same lease; the next claim begins with it. A drain that dies at any point therefore loses nothing and
changes no order.

A drain needs a :class:`DrainBroker`. A queue needs a :class:`WriteBroker` and one of two kinds of upkeep: the
lanes of an :class:`EmbeddedBroker` are drained by the queue's own thread, those of a :class:`RemoteBroker` by
workers in other processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from iai_mcp.entries.parcel import Parcel
from iai_mcp.errors import WrongPlace

if TYPE_CHECKING:
    import redis

__all__ = [
    "Claimed",
    "DrainBroker",
    "EmbeddedBroker",
    "LaneStats",
    "Lease",
    "MalformedItem",
    "Mark",
    "Pushed",
    "QueueBroker",
    "Refused",
    "RemoteBroker",
    "WriteBroker",
]

Mark = tuple[int, ...]
"""A point in the stream of every lane, as the broker counts what was pushed into it."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """The broker holds the parcels."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The broker did not take the parcels, or a reply was lost and it may not have: spill them."""

    reason: str


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to drain one lane.

    Attributes:
        token: the fencing token, higher than that of every lease before; None where no other process can hold one.
        holder: names the lease to the broker.
        inherited: number of items that another process has left in flight.
    """

    lane: int
    token: int | None
    holder: str
    inherited: int = 0


@dataclass(frozen=True, slots=True)
class MalformedItem:
    """An item of a lane that cannot be read as a parcel, or that must not be.

    Attributes:
        unproven: whether it has no valid proof of its producer (:mod:`iai_mcp.entries.signature`).
    """

    raw: bytes
    reason: str
    unproven: bool = False


Claimed = Parcel | MalformedItem


@dataclass(frozen=True, slots=True)
class LaneStats:
    """The state of one lane.

    Attributes:
        pending: entries that wait to be claimed.
        in_flight: entries that are claimed and not acknowledged.
        oldest_s: age of the oldest of both in seconds; None where the lane is empty.
        holder: who leases the lane; None without a lease, and for embedded lanes.
        lease_age_s: seconds since the holder's last sign of life.
    """

    lane: int
    pending: int
    in_flight: int
    oldest_s: float | None = None
    holder: str | None = None
    lease_age_s: float | None = None


class DrainBroker(Protocol):
    """What a drain needs. Every method raises BrokerUnavailable where the broker does not answer."""

    def lease(self, lane: int, floor: int = 0) -> Lease | None:
        """Take the lane under a token above ``floor``; None while another lease lives."""
        ...

    def keep(self, lease: Lease) -> AbstractContextManager[None]:
        """Keep the lease alive while the block runs: a batch may take longer to write than a lease lives."""
        ...

    def claim(self, lease: Lease, max_entries: int, linger: float) -> list[Claimed]:
        """Claim the items in flight, else at least one parcel and up to ``max_entries`` entries.

        Waits for more until ``linger`` seconds after the push of the oldest one. Returns an empty list where the
        lane is empty.

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
        """Give the lane back; harmless where the lease has passed on.

        With ``if_empty`` a lane that has new work is kept and the answer is False: no other drain has been called
        for work that came between the last claim and the release.
        """
        ...


class WriteBroker(Protocol):
    """What a queue needs of every broker."""

    name: str

    def push(self, parcels: Sequence[Parcel], *, replay: bool = False, waited: float = 0.0) -> Pushed | Refused:
        """Append all parcels to their lanes, in order, or none of them. Never raises and never blocks for long.

        Args:
            parcels: of one call, or of several threads' calls, or of a replay; a lane may have several.
            replay: the parcels come from a spill; each counts as a batch of its own.
            waited: seconds of the push's time budget that are spent already.
        """
        ...

    @property
    def room(self) -> int:
        """How many parcels of a replay fit now."""
        ...

    def mark(self) -> Mark:
        """The end of every lane as this producer knows it."""
        ...

    def is_durable(self, mark: Mark) -> bool:
        """Whether everything up to ``mark`` outlives this process, so that its spill files may go."""
        ...

    def wait_settled(self, mark: Mark, timeout: float) -> bool:
        """Wait until everything up to ``mark`` is acknowledged; False after ``timeout`` seconds."""
        ...

    def wait_change(self, timeout: float) -> None:
        """Wait until something moves, at most ``timeout`` seconds."""
        ...

    def wake(self) -> None:
        """End the wait of the background thread: the present one, else the next one."""
        ...

    def stats(self) -> list[LaneStats]:
        """The state of every lane."""
        ...


class EmbeddedBroker(WriteBroker, DrainBroker, Protocol):
    """Lanes in this process's memory: the queue drains them, and stopping means draining."""

    in_process: Literal[True]

    def next_ready_lane(self, timeout: float) -> int | None:
        """The lane with work whose oldest parcel has waited longest; None after ``timeout`` seconds."""
        ...

    def defer(self, lane: int, seconds: float) -> None:
        """Leave a lane alone for so long: its storage is unavailable."""
        ...

    def flush_until(self, mark: Mark) -> None:
        """Stop lingering for anything up to ``mark``."""
        ...

    def drain_remaining(self) -> list[Parcel]:
        """Empty all lanes; the parcels, in order, are the caller's now. Leases end."""
        ...


class RemoteBroker(WriteBroker, Protocol):
    """Lanes on a server: workers in other processes drain them, and the queue keeps the connection."""

    in_process: Literal[False]

    trouble: str | None
    """Why the broker takes nothing just now; None where it does."""

    refusal: WrongPlace | None
    """Set while the lanes belong to another folder with the same store id: no retry helps."""

    @property
    def control(self) -> redis.Redis:
        """The client for everything but pushes."""
        ...

    @property
    def retained(self) -> int | None:
        """Number of pushed entries that are not known to be in the store; None where that is not tracked."""
        ...

    def recheck(self, seconds: float) -> None:
        """Look once more whether the server has lost entries, and push them again, for at most ``seconds``."""
        ...

    def endangered(self) -> list[Parcel]:
        """While the server does not answer: the pushed parcels that it may have lost, in order."""
        ...

    def open(self, seconds: float | None = None) -> None:
        """Connect, within ``seconds`` (default: a second or so).

        A failure is no error, :meth:`run_once` tries again.
        """
        ...

    def reconnect(self, seconds: float) -> bool:
        """Try once to connect where the connection was lost, for at most ``seconds``; whether there is one now."""
        ...

    def close(self, seconds: float) -> None:
        """Ring for what still waits, for at most ``seconds``, and disconnect; :meth:`open` works again."""
        ...

    def run_once(self, timeout: float) -> None:
        """Wait for work up to ``timeout`` seconds, then connect, ring doorbells and sweep as far as due."""
        ...

    def needs_replay(self) -> bool:
        """Whether what was replayed and never durable may be lost, so that it must be replayed anew.

        Answers True once. Until it is asked the broker takes nothing, so that nothing overtakes that replay.
        """
        ...


QueueBroker = EmbeddedBroker | RemoteBroker
"""The broker of a queue; ``in_process`` tells which."""
