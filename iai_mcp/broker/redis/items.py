"""What a lane's list holds: parcels in their wire form, as the spill does. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from iai_mcp.broker.protocol import Claimed, MalformedItem
from iai_mcp.entries.signature import BAD_SIGNATURE, Signer
from iai_mcp.entries.wire import decode_all, outline
from iai_mcp.errors import MalformedParcel

__all__ = ["Admittance", "entries_in", "from_items", "pushed_at"]


class Admittance:
    """Reads the items of one store's lanes.

    Args:
        signer: with keys, only items with a valid proof are taken, and only those of their lane.
        store_id: the store.
    """

    def __init__(self, signer: Signer, store_id: str) -> None:
        self._signer = signer
        self._store_id = store_id

    def read(self, lane: int, items: Sequence[bytes]) -> list[Claimed]:
        """The parcel in each item, or the item as malformed."""
        faults = [*map(self._signer.fault, items)] if self._signer else []
        if not any(faults):
            return [self._in_place(lane, *both) for both in zip(items, from_items(items), strict=True)]
        sound = [item for item, fault in zip(items, faults, strict=True) if fault is None]
        found = iter(self.read(lane, sound) if sound else [])
        return [
            next(found) if fault is None else MalformedItem(item, fault, unproven=True)
            for item, fault in zip(items, faults, strict=True)
        ]

    def _in_place(self, lane: int, item: bytes, claimed: Claimed) -> Claimed:
        """``claimed``, unless it is for another store, or was signed for another lane."""
        if isinstance(claimed, MalformedItem):
            return claimed
        if self._signer and (claimed.lane != lane or claimed.store != self._store_id):
            return MalformedItem(item, BAD_SIGNATURE, unproven=True)
        if claimed.store != self._store_id:
            return MalformedItem(item, "not a provenance parcel: it belongs to another store")
        return claimed


def from_items(items: Sequence[bytes]) -> list[Claimed]:
    """The parcel in each item, or the item as malformed; no proof is asked for."""
    return [
        MalformedItem(item, str(found)) if isinstance(found, MalformedParcel) else found
        for item, found in zip(items, decode_all(items), strict=True)
    ]


def entries_in(claimed: Claimed) -> int:
    """How many entries were counted when this was pushed."""
    if isinstance(claimed, MalformedItem):
        found = outline(claimed.raw)
        return len(found.seqs) if found else 1
    return len(claimed.seqs)


def pushed_at(item: bytes) -> float:
    """When an item was pushed, Unix time in seconds; 0 for what does not say."""
    found = outline(item)
    return found.pushed if found else 0.0
