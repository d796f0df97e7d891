"""What a broker promises the queue and the drain.

A lane is a FIFO of parcels with at most one lease. What was claimed stays *in flight* until it is
acknowledged under the same lease; whoever claims next gets it again first. So a drain that dies at any
point loses nothing and overtakes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from iai_mcp.entry import Parcel

__all__ = ["Broker", "Claimed", "LaneStats", "Lease", "Mark", "Poison", "Pushed", "Refused"]

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
    """The right to drain one lane. ``token`` only grows; None where no other process can hold a lease."""

    lane: int
    token: int | None
    holder: str


@dataclass(frozen=True, slots=True)
class Poison:
    """An item of a lane that is no parcel."""

    raw: bytes
    reason: str


Claimed = Parcel | Poison


@dataclass(frozen=True, slots=True)
class LaneStats:
    """One lane now: entries pending and in flight, and the age in seconds of the oldest of them."""

    lane: int
    pending: int
    in_flight: int
    oldest_s: float | None = None
    holder: str | None = None


class Broker(Protocol):
    """The lanes of one store."""

    name: str

    def push(self, parcels: Sequence[Parcel], *, replay: bool = False) -> Pushed | Refused:
        """Append all parcels of one call to their lanes, or none of them. Never raises, never blocks long.

        ``replay`` marks parcels that come back from a spill, one at a time as far as capacity goes.
        """
        ...

    def lease(self, lane: int) -> Lease | None:
        """Take the lane; None while another holder's lease lives."""
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

    def release(self, lease: Lease) -> None:
        """Give the lane back; harmless where the lease is lost."""
        ...

    def mark(self) -> Mark:
        """The present end of every lane."""
        ...

    def settled(self, mark: Mark) -> bool:
        """Whether everything up to ``mark`` has been acknowledged."""
        ...

    def stats(self) -> list[LaneStats]:
        """One row per lane."""
        ...
