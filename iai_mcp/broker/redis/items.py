"""What a lane's list holds: parcels in their wire form, as the spill does. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from iai_mcp.broker.protocol import Claimed, MalformedItem
from iai_mcp.entries.wire import decode_all, outline
from iai_mcp.errors import MalformedParcel

__all__ = ["entries_in", "from_items", "pushed_at"]


def from_items(items: Sequence[bytes]) -> list[Claimed]:
    """The parcel in each item, or the item as malformed."""
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
