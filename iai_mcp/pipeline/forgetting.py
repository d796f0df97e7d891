"""Forgets a memory everywhere, and lets its id be used again for another one, which starts with an empty trace.

Entries of the old memory may still be on their way then. The store numbers the reuses of ids, and a parcel carries
the last number that its producer knew. An entry from before its id's last reuse is left out. No clock takes part.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from uuid import UUID

from iai_mcp.config import Settings, overflow_dir
from iai_mcp.entries.routing import lane_of
from iai_mcp.entries.signature import Signer
from iai_mcp.spill import erase
from iai_mcp.storage.dead_letters import DeadLetters
from iai_mcp.storage.exclusions import Exclusions
from iai_mcp.storage.facts import StoreFacts
from iai_mcp.storage.layout import Layout
from iai_mcp.storage.tables.lance import quoted_list
from iai_mcp.storage.tables.lane import LaneTable
from iai_mcp.storage.tables.records import RecordTable
from iai_mcp.storage.tombstones import Tombstones

__all__ = ["Forgetting"]


class Forgetting:
    """The forgetting of one store."""

    def __init__(
        self,
        layout: Layout,
        settings: Settings,
        facts: StoreFacts,
        tombstones: Tombstones,
        records: RecordTable,
        lane: Callable[[int], LaneTable],
    ) -> None:
        self._settings = settings
        self._facts = facts
        self._tombstones = tombstones
        self._exclusions = Exclusions(layout.exclusions)
        self._letters = DeadLetters(layout)
        self._records = records
        self._lane = lane

    def forget(self, record_id: UUID) -> bool:
        """Remove a memory, its entries, dead letters and spilled entries; whether there was such a memory.

        After a crash, the same call finishes.

        Raises:
            StoreUnavailable: the storage is unavailable; the call may be repeated.
        """
        found = bool(self._records.existing([record_id]))
        if not found and record_id not in self._tombstones.ids():
            return False
        if record_id not in self._tombstones.ids():
            self._tombstones.add(record_id)
        self._records.delete(record_id)
        self._lane(lane_of(record_id, self._facts.opened.lanes)).delete_record(record_id)
        self._letters.forget(record_id)
        signer = Signer(self._settings.signing_keys)
        erase.forget(overflow_dir(self._settings), self._facts.store_id, record_id, self._exclusions, signer)
        return found

    def finish(self, record_ids: Collection[UUID]) -> None:
        """Finish what a crash has left of these deletions, before their ids are used again.

        Spilled entries stay: they are left out when they are replayed.
        """
        deleted = self._tombstones.ids()
        if not (back := deleted.intersection(record_ids) if deleted else None):
            return
        lanes = self._facts.opened.lanes
        for number in {lane_of(record_id, lanes) for record_id in back}:
            of_lane = quoted_list([str(record_id) for record_id in back if lane_of(record_id, lanes) == number])
            rows = self._lane(number).rows([f"record_id IN ({of_lane})"], ["record_id"])
            for left in rows["record_id"].unique().to_pylist():
                self._lane(number).delete_record(UUID(left))
        if self._letters.count():
            for record_id in back:
                self._letters.forget(record_id)

    def reuse(self, record_ids: Collection[UUID]) -> None:
        """Note that these ids have memories again; entries that were handed out before belong to the old ones.

        Raises:
            StoreUnavailable: the store cannot be written.
        """
        deleted = self._tombstones.ids()
        if back := deleted.intersection(record_ids) if deleted else None:
            self._tombstones.discard(back, self._facts.next_reuse())
