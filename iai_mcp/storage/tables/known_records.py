"""What a drain remembers from batch to batch: which records exist, and the token it writes under. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from iai_mcp.entries.batch import EntryBatch
from iai_mcp.entries.identity import dashed
from iai_mcp.entries.routing import lane_of_hex

__all__ = ["RecordsCache"]

_KNOWN_LIMIT = 200_000
_FEW = 10_000  # memories of which a drain learns the ids at once


@dataclass(slots=True)
class RecordsCache:
    """What one drain of a lane remembers from batch to batch.

    Attributes:
        token: the fencing token under which the drain writes; None for writers without a lease.
        lane: the lane that it belongs to, where it never leaves one, and ``lanes`` how many there are.
    """

    token: int | None = None
    lane: int | None = None
    lanes: int = 0
    _known: set[str] = field(default_factory=set)  # ids that were seen in the records table

    def strangers(self, ids: Sequence[str]) -> set[str]:
        """Those of the ids that were not seen in the records table; deletions are looked up beside it."""
        return set() if self._known.issuperset(ids) else {*ids} - self._known

    def learn(self, strangers: set[str], some_ids: Callable[[Sequence[str], int], list[str]]) -> None:
        """Remember those of the ids that ``some_ids`` knows, and what else of the lane it tells; old ones go when
        there are too many."""
        if len(self._known) > _KNOWN_LIMIT:
            self._known.clear()
        few = _FEW if self.lanes else 0
        found = [text.replace("-", "") for text in some_ids([*map(dashed, strangers)], few)]
        self._known.update(strangers.intersection(found))
        if self.lanes:
            self._known.update(one for one in found if lane_of_hex(one, self.lanes) == self.lane)

    def covers(self, batch: EntryBatch) -> bool:
        """Whether every record of the batch is known to be of :attr:`lane`."""
        return self.lane is not None and self._known.issuperset(batch.ids)
