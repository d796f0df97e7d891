"""What a lane's list holds: a parcel as JSON behind a header that tells its age and size. Pure."""

from __future__ import annotations

from iai_mcp.broker.protocol import Claimed, Poison
from iai_mcp.entry import Parcel, decode, encode
from iai_mcp.errors import MalformedParcel

__all__ = ["from_item", "from_parts", "item_header", "item_parts", "to_item"]

MOST_DIGITS = 40  # of both numbers in a header; what has more is no header


def to_item(parcel: Parcel) -> bytes:
    """A parcel as a lane holds it: when it was pushed and how many entries it has, for the scripts; then JSON."""
    return b"%d:%d:%b" % (int(parcel.pushed * 1000), len(parcel.seqs), encode(parcel))


def item_parts(item: bytes) -> tuple[int, int, bytes]:
    """``(pushed, entries, parcel)`` of an item: Unix ms, a count, JSON; (0, 1, ...) where it has no header."""
    pushed, _, rest = item.partition(b":")
    entries, _, parcel = rest.partition(b":")
    if pushed.isdigit() and entries.isdigit() and len(pushed) + len(entries) < MOST_DIGITS:
        return int(pushed), int(entries), parcel
    return 0, 1, b""


def item_header(item: bytes) -> tuple[int, int]:
    """``(pushed, entries)`` of an item, as :func:`item_parts` has it."""
    return item_parts(item)[:2]


def from_parts(item: bytes, parcel: bytes) -> Claimed:
    """The ``parcel`` that :func:`item_parts` found in an item, or the item as poison."""
    try:
        return decode(parcel)
    except MalformedParcel as error:
        return Poison(item, str(error))


def from_item(item: bytes) -> Claimed:
    """The parcel in an item, or the item as poison."""
    return from_parts(item, item_parts(item)[2])
