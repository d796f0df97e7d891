"""The record ids that a drain has seen, so that it need not look for them again. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from iai_mcp.entries.identity import dashed
from iai_mcp.entries.routing import lane_of_hex

__all__ = ["RecordsCache"]

_KNOWN_LIMIT = 200_000
_FEW = 10_000  # a table of fewer memories is learned as a whole


@dataclass(slots=True)
class RecordsCache:
    """Ids of records that exist, kept from batch to batch.

    It is for one thread and one store. Deletions are looked up elsewhere, so an id may stay here after its record
    is gone.
    """

    _known: set[str] = field(default_factory=set)
    _lanes: set[int] = field(default_factory=set)  # that the known ids belong to, where their number was given

    def unknown(self, ids: Collection[str]) -> set[str]:
        """Those of the ids that are not known to exist."""
        return set() if self._known.issuperset(ids) else {*ids} - self._known

    def learn(self, unknown: set[str], some_ids: Callable[[list[str], int], list[str]], lanes: int = 0) -> None:
        """Remember which of the ids ``some_ids`` finds in the records table; forget old ones above a limit.

        ``lanes``: the store's number of lanes. With it, other ids of the same lanes are remembered too, as far as
        ``some_ids`` tells of them.
        """
        if len(self._known) > _KNOWN_LIMIT:
            self._known.clear()
            self._lanes.clear()
        found = [text.replace("-", "") for text in some_ids([*map(dashed, unknown)], _FEW if lanes else 0)]
        self._known.update(unknown.intersection(found))
        if lanes:
            touched = {lane_of_hex(one, lanes) for one in unknown}
            self._lanes |= touched
            self._known.update(one for one in found if lane_of_hex(one, lanes) in touched)

    def lane_of(self, ids: Collection[str]) -> int | None:
        """The one lane that all of the ids belong to; None where that is not known."""
        if len(self._lanes) == 1 and self._known.issuperset(ids):
            return next(iter(self._lanes))
        return None
