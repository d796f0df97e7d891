"""What a lane's list holds: parcels in their wire form, as the spill does. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from iai_mcp.broker.protocol import Claimed, MalformedItem
from iai_mcp.entries.parcel import decode, decode_all, outline
from iai_mcp.errors import MalformedParcel

__all__ = ["entries_in", "from_items", "pushed_at"]

_HEADER = re.compile(rb"\d+:\d+:")  # what items of the wire versions 1 and 2 began with


def from_items(items: Sequence[bytes]) -> list[Claimed]:
    """The parcel in each item, or the item as poison."""
    return [
        _behind_header(item, found) if isinstance(found, MalformedParcel) else found
        for item, found in zip(items, decode_all(items), strict=True)
    ]


def _behind_header(item: bytes, error: MalformedParcel) -> Claimed:
    if header := _HEADER.match(item):
        try:
            return decode(item[header.end() :])
        except MalformedParcel as behind:
            error = behind
    return MalformedItem(item, str(error))


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
