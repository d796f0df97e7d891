"""Reads many items of a lane at once: a reply is taken apart as a whole, and not item by item.

redis-py's own reader takes as long for an item as decoding it does, most of it for replies of other shapes.
Whatever is not as expected is left to it.
"""

from __future__ import annotations

from typing import Any

import redis

from iai_mcp.broker.redis.push_transaction import packed

__all__ = ["Reply", "Unusual", "fetch", "replies"]

READ_BYTES = 2**18
MOST_BYTES = 16 * READ_BYTES  # of replies that are taken apart as a whole: each look begins at their beginning

Reply = bytes | list[bytes] | None
"""A text, a list of texts, or nothing."""


class Unusual(ValueError):
    """Replies of other kinds, or very long ones; or a text with a line break in it."""


def fetch(client: redis.Redis, *commands: tuple[bytes, ...]) -> list[Any]:
    """What commands answer that read texts or lists of texts, in one round trip.

    Raises:
        RedisError: the server does not answer, or with an error.
    """
    pool = client.connection_pool
    if hasattr(pool.connection_class, "bounded"):
        connection: Any = pool.get_connection()
        try:
            return _asked(connection.bounded, commands)
        except Unusual:
            connection.disconnect()
        except OSError as error:
            connection.disconnect()
            raise redis.ConnectionError(str(error)) from error
        except BaseException:
            connection.disconnect()  # it may be owed an answer
            raise
        finally:
            pool.release(connection)
    pipe = client.pipeline(transaction=False)
    for command in commands:
        pipe.execute_command(*command)  # type: ignore[no-untyped-call]
    return pipe.execute()


def _asked(sock: Any, commands: tuple[tuple[bytes, ...], ...]) -> list[Reply]:
    sock.sendall(b"".join([b"*%d\r\n%b" % (len(command), packed(*command)) for command in commands]))
    data = b""
    while True:
        more = sock.recv(READ_BYTES)
        if not more:
            raise ConnectionError("Redis closed the connection")
        data = data + more if data else more
        if len(data) > MOST_BYTES:
            raise Unusual
        if more.endswith(b"\n") and (found := replies(data, len(commands))) is not None:
            return found


def replies(data: bytes, count: int) -> list[Reply] | None:
    """The ``count`` replies that ``data`` holds; None while they are not whole.

    Raises:
        Unusual: they are of other kinds, or there is more.
    """
    lines = data.split(b"\r\n")
    end = len(lines) - 1  # the last line has not ended
    found: list[Reply] = []
    at = 0
    while len(found) < count:
        if at >= end:
            return None
        kind, size = lines[at][:1], lines[at][1:]
        at += 1
        if kind == b"$" and size == b"-1":
            found.append(None)
        elif kind == b"$" and size.isdigit():
            if at >= end:
                return None
            if len(lines[at]) != int(size):
                raise Unusual
            found.append(lines[at])
            at += 1
        elif kind == b"*" and size.isdigit():
            upto = at + 2 * int(size)
            if upto > end:
                return None
            items = lines[at + 1 : upto : 2]
            if lines[at:upto:2] != [b"$%d" % len(item) for item in items]:
                raise Unusual
            found.append(items)
            at = upto
        else:
            raise Unusual
    if at != end or lines[-1]:
        raise Unusual
    return found
