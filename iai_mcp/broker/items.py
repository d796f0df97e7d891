"""What a lane's list holds: a parcel as JSON behind a header that tells its age and size. Pure."""

from __future__ import annotations

from iai_mcp.broker.protocol import Claimed, Poison
from iai_mcp.entry import Parcel, decode, encode
from iai_mcp.errors import MalformedParcel

__all__ = ["from_item", "item_header", "to_item"]


def to_item(parcel: Parcel) -> bytes:
    """A parcel as a lane holds it: when it was pushed and how many entries it has, for the scripts; then JSON."""
    return b"%d:%d:%b" % (int(parcel.pushed * 1000), len(parcel.entries), encode(parcel))


def item_header(item: bytes) -> tuple[int, int]:
    """``(pushed, entries)`` of an item: Unix ms and a count; (0, 1) for what has no such header."""
    pushed, _, rest = item[:40].partition(b":")
    entries = rest.partition(b":")[0]
    return (int(pushed), int(entries)) if pushed.isdigit() and entries.isdigit() else (0, 1)


def from_item(item: bytes) -> Claimed:
    """The parcel in an item, or the item as poison."""
    try:
        return decode(item.split(b":", 2)[2])
    except (IndexError, MalformedParcel) as error:
        return Poison(item, str(error))
