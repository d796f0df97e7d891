"""The memory of a drain from batch to batch: which records exist, and its fencing token. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from iai_mcp.entries.batch import EntryBatch
from iai_mcp.entries.parcel import dashed, lane_of_hex

__all__ = ["RecordsCache"]

_KNOWN_LIMIT = 200_000  # ids
_FEW = 10_000  # a drain learns the ids of a table of at most so many memories in one read


@dataclass(slots=True)
class RecordsCache:
    """The memory of one drain of a lane, from batch to batch.

    Attributes:
        token: the fencing token under which the drain writes; None for writers without a lease.
        lane: the lane that the drain writes; None if it writes several.
        lanes: the store's number of lanes; 0 if ``lane`` is None.
    """

    token: int | None = None
    lane: int | None = None
    lanes: int = 0
    _known: set[str] = field(default_factory=set)  # ids that were seen in the records table

    def unseen(self, ids: Sequence[str]) -> set[str]:
        """The ids (32 hexadecimal digits) that were not seen in the records table. Ignores deletions."""
        return set() if self._known.issuperset(ids) else {*ids} - self._known

    def learn(self, unseen: set[str], some_ids: Callable[[Sequence[str], int], list[str]]) -> None:
        """Remember the ids that ``some_ids`` finds, among them all others of the lane that it returns.

        The cache starts over once it holds too many ids.
        """
        if len(self._known) > _KNOWN_LIMIT:
            self._known.clear()
        few = _FEW if self.lanes else 0
        found = [text.replace("-", "") for text in some_ids([*map(dashed, unseen)], few)]
        self._known.update(unseen.intersection(found))
        if self.lanes:
            self._known.update(one for one in found if lane_of_hex(one, self.lanes) == self.lane)

    def covers(self, batch: EntryBatch) -> bool:
        """Whether every record of the batch is known to exist and to belong to :attr:`lane`."""
        return self.lane is not None and self._known.issuperset(batch.ids)
