"""Asks a Redis server what is on its disk: ``IAI_MCP_REDIS_DURABILITY=fsync``.

``WAITAOF`` answers for everything that its own connection wrote. The append-only file is a sequence, so all that
reached the server before that is on the disk too.
"""

from __future__ import annotations

import time
from enum import Enum

import redis
from redis.exceptions import NoPermissionError, ResponseError

from iai_mcp.broker.redis.client import failure
from iai_mcp.broker.redis.keys import Count
from iai_mcp.broker.redis.resp import packed
from iai_mcp.errors import ConfigError

__all__ = ["SETTING", "Pace", "confirmed", "on_disk", "pace", "waitaof"]

SETTING = "IAI_MCP_REDIS_DURABILITY=fsync"
WRITES = 2  # after a second of rest even "everysec" syncs the first one at once


class Pace(Enum):
    """How a server gets its writes onto its disk, held against a push's budget."""

    QUICK = "confirmed in time"
    LATE = "taken in time, confirmed later"
    STUCK = "not even taken in time"


def waitaof(budget_s: float) -> bytes:
    """The packed command that waits for this connection's writes. Its timeout frees the server of us, no more:
    Redis looks at timeouts ten times a second, which is why the client watches its own clock."""
    return b"*4\r\n" + packed(b"WAITAOF", b"1", b"0", b"%d" % max(1, budget_s * 1000))


def confirmed(client: redis.Redis, budget_s: float) -> bool:
    """Wait until this connection's writes are on the server's disk; False after ``budget_s``, or later.

    Raises:
        ConfigError: the server keeps no append-only file, or does not know the command.
    """
    try:
        reply = client.execute_command("WAITAOF", 1, 0, max(1, int(budget_s * 1000)))  # type: ignore[no-untyped-call]
    except NoPermissionError:
        raise
    except ResponseError as error:
        if "appendonly is disabled" in str(error):
            raise ConfigError(f"{SETTING} needs a Redis with appendonly yes") from None
        if "unknown command" in str(error).lower():
            raise ConfigError(f"{SETTING} needs WAITAOF: Redis 7.2 or newer ({failure(error)})") from None
        raise
    return bool(reply[0] >= 1)


def on_disk(client: redis.Redis) -> bool:
    """Whether this connection's writes are on the server's disk now: in a transaction nothing waits.

    The connection watches no key afterwards. False, too, where one that it watched has changed.

    Not a pipeline of redis-py, which would take another connection, one that has written nothing.
    """
    client.execute_command("MULTI")  # type: ignore[no-untyped-call]
    client.execute_command("WAITAOF", 1, 0, 0)  # type: ignore[no-untyped-call]
    found = client.execute_command("EXEC")  # type: ignore[no-untyped-call]
    return bool(found and found[0][0] >= 1)


def pace(client: redis.Redis, pushed: str, budget_s: float) -> Pace:
    """Try it with writes to the hash ``pushed`` that change nothing.

    Raises:
        ConfigError: as :func:`confirmed`.
    """
    for _ in range(WRITES):
        began = time.monotonic()
        client.hincrby(pushed, Count.PUSHED.of(0), 0)
        if time.monotonic() - began > budget_s:
            return Pace.STUCK
        if not confirmed(client, budget_s) or time.monotonic() - began > budget_s:
            return Pace.LATE
    return Pace.QUICK
