"""What a lane's list holds: parcels in their wire form, as the spill does. Pure."""

from __future__ import annotations

import re

from iai_mcp.broker.protocol import Claimed, Poison
from iai_mcp.entry import decode, outline
from iai_mcp.errors import MalformedParcel

__all__ = ["from_item", "pushed_at"]

_HEADER = re.compile(rb"\d+:\d+:")  # what items of the wire versions 1 and 2 began with


def from_item(item: bytes) -> Claimed:
    """The parcel in an item, or the item as poison."""
    try:
        try:
            return decode(item)
        except MalformedParcel:
            if (header := _HEADER.match(item)) is None:
                raise
            return decode(item[header.end() :])
    except MalformedParcel as error:
        return Poison(item, str(error))


def pushed_at(item: bytes) -> float:
    """When an item was pushed, Unix time in seconds; 0 for what does not say."""
    found = outline(item)
    return found.pushed if found else 0.0
