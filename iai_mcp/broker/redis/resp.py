"""The wire form of Redis commands and replies (RESP 2). Pure.

Replies are taken apart as a whole and not item by item: redis-py's own reader takes as long for an item as
decoding it does, most of it for replies of other shapes.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

__all__ = ["OTHER", "Reply", "Unusual", "answers", "integers", "packed", "replies", "usual"]


class Other(Enum):
    """A status, an error, or an array that holds one."""

    OTHER = "other"


OTHER = Other.OTHER

Reply = bytes | int | list[bytes] | list[int] | Other | None
"""A text, a number, a list of either, nothing, or a reply of another kind."""


class Unusual(ValueError):
    """Data that this reader does not take apart: a text with a line break, nested lists, or no replies at all."""


def packed(*args: bytes) -> bytes:
    """Arguments of a command as they go over the wire, without the line that counts them."""
    return b"".join([b"$%d\r\n%b\r\n" % (len(arg), arg) for arg in args])


def replies(data: bytes, count: int) -> list[Any] | None:
    """The ``count`` texts and lists of texts that ``data`` holds; None while they are not whole.

    Raises:
        Unusual: there are other replies, or there is more.
    """
    found, rest = _whole(data)
    if any(not _is_text(reply) for reply in found) or len(found) > count or (rest and len(found) == count):
        raise Unusual
    return found if len(found) == count else None


def _is_text(reply: Reply) -> bool:
    return reply is None or isinstance(reply, bytes) or (isinstance(reply, list) and integers(reply) is None)


def answers(data: bytes, head: bytes) -> list[Reply]:
    """The replies to writes that come after ``head`` in ``data``, as far as they are whole.

    Where ``data`` begins in another way, with errors, as many replies are skipped as ``head`` has.

    Raises:
        Unusual: these are no replies of Redis.
    """
    if data.startswith(head):
        return _whole(data[len(head) :])[0]
    return _whole(data)[0][head.count(b"\n") :]


def usual(data: bytes, head: bytes, tail: bytes) -> list[int] | None:
    """The list of integers between ``head`` and ``tail`` where ``data`` is just that: the quick way to read it."""
    if not (data.startswith(head) and data.endswith(tail)):
        return None
    count, _, rest = data[len(head) : -len(tail)].partition(b"\r\n:")
    try:
        found = [*map(int, rest.split(b"\r\n:"))]
    except ValueError:
        return None
    return found if count == b"*%d" % len(found) else None


def integers(reply: Any) -> list[int] | None:
    """The reply where it is a list of integers; None for any other."""
    return reply if isinstance(reply, list) and reply and isinstance(reply[0], int) else None


def _whole(data: bytes) -> tuple[list[Reply], bool]:
    """The replies in ``data`` as far as they are whole, and whether there is more behind them."""
    lines = data.split(b"\r\n")
    end = len(lines) - 1  # the last line has not ended
    found: list[Reply] = []
    at = 0
    while at < end:
        kind, size = lines[at][:1], lines[at][1:]
        if kind == b"*" and size.isdigit():
            after, reply = _list(lines, at + 1, end, int(size))
        elif kind == b"$" and size.isdigit():
            after, reply = _text(lines, at + 1, end, int(size))
        elif size == b"-1" and kind in (b"$", b"*"):
            after, reply = at + 1, None
        elif kind == b":":
            after, reply = at + 1, int(size)
        elif kind in (b"+", b"-"):
            after, reply = at + 1, OTHER
        else:
            raise Unusual
        if after > end:
            break
        found.append(reply)
        at = after
    return found, at < end or bool(lines[-1])


def _text(lines: list[bytes], at: int, end: int, size: int) -> tuple[int, Reply]:
    """The text at line ``at``, and the line after it; one past ``end`` where it is not whole."""
    if at < end and len(lines[at]) != size:
        raise Unusual
    return at + 1, lines[at]


def _list(lines: list[bytes], at: int, end: int, count: int) -> tuple[int, Reply]:
    """The list of ``count`` items from line ``at`` on, as :func:`_text`."""
    if not count:
        return at, []
    kind = lines[at][:1]
    after = at + (2 * count if kind == b"$" else count)
    if after > end or at >= end:
        return end + 1, None
    if kind == b"$":
        items = lines[at + 1 : after : 2]
        if lines[at:after:2] != [b"$%d" % len(item) for item in items]:
            raise Unusual
        return after, items
    if any(line[:1] not in (b":", b"+", b"-") for line in lines[at:after]):
        raise Unusual
    numbers = [int(line[1:]) for line in lines[at:after] if line[:1] == b":"]
    return after, numbers if len(numbers) == count else OTHER
