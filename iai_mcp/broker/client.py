"""Redis clients for two purposes: pushes that must end by a deadline, and everything else.

redis-py's timeouts count from byte to byte, so a server that drips its reply can hold a call for seconds.
:class:`Deadline` bounds a whole call instead: every socket operation gets what is left of the budget.
"""

from __future__ import annotations

import socket
import time
from typing import Any, cast

import redis
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, ConnectionPool
from redis.exceptions import BusyLoadingError, RedisError
from redis.retry import Retry

from iai_mcp.errors import BrokerUnavailable, ConfigError

__all__ = [
    "Deadline",
    "ask",
    "ask_both",
    "connect",
    "control_client",
    "failure",
    "packed",
    "push_client",
    "shut_down",
]

CONTROL_TIMEOUT_S = 5.0
REPLY_BYTES = 4096


class Deadline:
    """When the call under way must have ended (``time.monotonic()``); None for no limit."""

    def __init__(self) -> None:
        self.at: float | None = None

    def within(self, seconds: float) -> None:
        """Give everything from now on ``seconds``."""
        self.at = time.monotonic() + seconds


class _Socket:
    """A socket whose operations share one deadline."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._sock = sock
        self._deadline = deadline
        self._asked = sock.gettimeout()

    def settimeout(self, seconds: float | None) -> None:
        self._asked = seconds
        self._sock.settimeout(seconds)

    def _arm(self) -> None:
        if self._deadline.at is None or self._asked == 0:  # 0: redis-py only looks whether anything is there
            return
        left = self._deadline.at - time.monotonic()
        if left <= 0:
            raise TimeoutError("the time budget of a Redis call is spent")
        self._sock.settimeout(left if self._asked is None else min(left, self._asked))

    def recv(self, *args: Any) -> bytes:
        self._arm()
        return self._sock.recv(*args)

    def recv_into(self, *args: Any) -> int:
        self._arm()
        return self._sock.recv_into(*args)

    def sendall(self, data: Any) -> None:
        self._arm()
        self._sock.sendall(data)

    def ask(self, command: bytes) -> list[int] | None:
        """Send a packed command and read a reply of integers; None where that is no such reply.

        redis-py's own way takes longer than the server does, nearly all of it for cases that are not this one.
        """
        self.sendall(command)
        lines = self.recv(REPLY_BYTES).split(b"\r\n")
        while len(lines) == 1 or (lines[0][:1] == b"*" and len(lines) < int(lines[0][1:]) + 2):
            more = self.recv(REPLY_BYTES)
            if not more:
                raise ConnectionError("Redis closed the connection")
            lines = (b"\r\n".join(lines) + more).split(b"\r\n")
        return [int(line[1:]) for line in lines[1:-1]] if lines[0][:1] == b"*" else None

    def ask_both(self, commands: bytes) -> list[list[int] | None]:
        """Send two packed commands and read their replies, as :meth:`ask` does; only the first where the second is
        late, and then this connection is of no more use."""
        self.sendall(commands)
        data = b""
        while len(replies := _whole(data)) < 2:
            try:
                more = self.recv(REPLY_BYTES)
            except TimeoutError:
                if replies:
                    break
                raise
            if not more:
                raise ConnectionError("Redis closed the connection")
            data += more
        return replies

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def _whole(data: bytes) -> list[list[int] | None]:
    """The replies of integers in ``data``, as far as they are whole; None in the place of any other line."""
    lines = data.split(b"\r\n")[:-1]
    replies: list[list[int] | None] = []
    while lines:
        count = int(lines[0][1:]) if lines[0][:1] == b"*" else 0
        if len(lines) <= count:
            break
        replies.append([int(line[1:]) for line in lines[1 : count + 1]] if count else None)
        del lines[: count + 1]
    return replies


def packed(*args: bytes) -> bytes:
    """Arguments of a command as they go over the wire, without the line that counts them."""
    return b"".join([b"$%d\r\n%b\r\n" % (len(arg), arg) for arg in args])


def ask(client: redis.Redis, command: bytes) -> list[int] | None:
    """The integers that a packed command is answered with, over the connection of a :func:`push_client`.

    None for any other answer, an error among them, and from a stand-in: ask again through ``client``, which
    knows what to raise.
    """
    bounded = getattr(client.connection, "bounded", None)
    return bounded.ask(command) if bounded is not None else None


def ask_both(client: redis.Redis, commands: bytes) -> list[list[int] | None]:
    """The same for two commands; one reply only where the second did not come in time."""
    bounded = getattr(client.connection, "bounded", None)
    return bounded.ask_both(commands) if bounded is not None else [None, None]


def connect(url: str) -> redis.Redis:
    """A client for ``url`` (``redis://``, ``rediss://`` or ``unix://``); connects on first use.

    Raises:
        ConfigError: the URL makes no sense; the message does not repeat it, it may hold a password.
    """
    try:
        return redis.Redis.from_url(url)
    except ValueError as error:
        raise ConfigError(f"IAI_MCP_REDIS_URL cannot be used: {error}") from None


def _settings(connection: redis.Redis) -> tuple[type[AbstractConnection], dict[str, Any]]:
    pool = connection.connection_pool
    kept = {
        key: value
        for key, value in pool.connection_kwargs.items()
        if not key.startswith("maint_notifications") and key not in ("himport_registry", "client_class")
    }
    kept.update(decode_responses=False)
    return pool.connection_class, kept


def is_fake(connection: redis.Redis) -> bool:
    """Whether this is no redis-py connection: an in-process stand-in has no socket to bound."""
    return not connection.connection_pool.connection_class.__module__.startswith("redis.")


def control_client(connection: redis.Redis, timeout: float = CONTROL_TIMEOUT_S) -> redis.Redis:
    """A client of our own to the same server: RQ changes the timeouts of a pool that it shares."""
    kind, kept = _settings(connection)
    if not is_fake(connection):
        kept.update(
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
    return redis.Redis(connection_pool=ConnectionPool(connection_class=kind, **kept))


def push_client(connection: redis.Redis, deadline: Deadline) -> redis.Redis:
    """A client with one connection, opened now, whose every call ends by ``deadline``.

    Raises:
        RedisError, OSError: the server cannot be reached.
    """
    kind, kept = _settings(connection)
    if is_fake(connection):
        return redis.Redis(connection_pool=ConnectionPool(connection_class=kind, **kept))

    def bounded_connect(self: Any) -> Any:
        self.bounded = _Socket(kind._connect(self), deadline)  # type: ignore[no-untyped-call]
        return self.bounded

    bounded = cast(
        "type[AbstractConnection]", type(f"Bounded{kind.__name__}", (kind,), {"_connect": bounded_connect})
    )
    kept.update(
        socket_timeout=CONTROL_TIMEOUT_S,
        socket_connect_timeout=1.0,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
        protocol=2,
    )
    pool = ConnectionPool(connection_class=bounded, **kept)
    return redis.Redis(connection_pool=pool, single_connection_client=True)


def shut_down(url: str) -> None:
    """End the server at ``url``, if there is one, and return once it is gone; its append-only file is whole.

    Raises:
        BrokerUnavailable: it does not end.
    """
    client = control_client(connect(url))
    try:
        client.ping()
    except BusyLoadingError:
        pass
    except RedisError:
        return
    try:
        client.shutdown()  # comes back when the connection breaks: the process is gone
    except RedisError as error:
        raise BrokerUnavailable(f"the Redis that runs already does not end: {failure(error)}") from error
    finally:
        client.connection_pool.disconnect()


def failure(error: BaseException) -> str:
    """What went wrong, in a few words and without secrets: the kind, and the server's own first words."""
    if isinstance(error, RedisError | OSError):
        words = str(error).split("\n", 1)[0][:160]
        return f"{type(error).__name__}: {words}" if words else type(error).__name__
    return type(error).__name__
