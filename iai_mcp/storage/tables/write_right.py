"""The right of a drain to write one lane."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["WriteRight"]


@dataclass(frozen=True, slots=True)
class WriteRight:
    """The lease of one lane, as a write shows it.

    Attributes:
        lane: the lane's number. The right says nothing of other lanes.
        token: the fencing token of the lease; the lane refuses a token lower than the highest it has seen.
    """

    lane: int
    token: int
