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
from redis.exceptions import BusyLoadingError, RedisError, ResponseError
from redis.retry import Retry

from iai_mcp.broker.redis.resp import Reply, Unusual, answers, packed, replies, usual
from iai_mcp.errors import BrokerUnavailable, ConfigError

__all__ = [
    "Deadline",
    "Rest",
    "ask",
    "connect",
    "control_client",
    "failure",
    "fetch",
    "push_client",
    "shut_down",
    "transacts",
]

CONTROL_TIMEOUT_S = 5.0
REPLY_BYTES = 4096
READ_BYTES = 2**18
MOST_BYTES = 16 * READ_BYTES  # of replies that are taken apart as a whole: each look starts from their beginning
SLACK = 0.1  # of the time that is left: a socket that is armed for about as long stays so

Rest = tuple[bytes, list[Reply]]
NO_REST: Rest = (b"", [])


class Deadline:
    """When the call under way must have ended (``time.monotonic()``); None for no limit."""

    def __init__(self) -> None:
        self.at: float | None = None

    def within(self, seconds: float) -> None:
        """Give everything from now on ``seconds``."""
        self.at = time.monotonic() + seconds

    def left(self, most: float) -> float:
        """Seconds that are left, up to ``most`` and above 0."""
        return most if self.at is None else max(0.001, min(most, self.at - time.monotonic()))


class _Socket:
    """A socket whose operations share one deadline."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._sock = sock
        self._deadline = deadline
        self._asked = self._armed = sock.gettimeout()

    def settimeout(self, seconds: float | None) -> None:
        self._asked = self._armed = seconds
        self._sock.settimeout(seconds)

    def _arm(self) -> None:
        if self._deadline.at is None or self._asked == 0:  # 0: redis-py only looks whether anything is there
            return
        left = self._deadline.at - time.monotonic()
        if left <= 0:
            raise TimeoutError("the time budget of a Redis call is spent")
        wanted = left if self._asked is None else min(left, self._asked)
        if self._armed is None or abs(self._armed - wanted) > wanted * SLACK:  # arming costs a system call
            self._armed = wanted
            self._sock.settimeout(wanted)

    def recv(self, *args: Any) -> bytes:
        self._arm()
        return self._sock.recv(*args)

    def recv_into(self, *args: Any) -> int:
        self._arm()
        return self._sock.recv_into(*args)

    def sendall(self, data: Any) -> None:
        self._arm()
        self._sock.sendall(data)

    def ask(self, commands: bytes, head: bytes, wanted: int, rest: Rest) -> list[Reply]:
        """Send packed commands and read the answers after ``head``, as :func:`ask`.

        redis-py's own way takes longer than the server does, nearly all of it for cases that are not this one.
        """
        self.sendall(commands)
        data = b""
        found: list[Reply] = []
        while len(found) < wanted:
            try:
                more = self.recv(REPLY_BYTES)
            except TimeoutError:
                if found:
                    break
                raise
            if not more:
                raise ConnectionError("Redis closed the connection")
            data += more
            if rest[0] and (numbers := usual(data, head, rest[0])) is not None:
                return [numbers, *rest[1]]
            try:
                found = answers(data, head)
            except ValueError:
                raise ConnectionError("the server does not answer as Redis does") from None
        if len(found) > wanted:
            raise ConnectionError("Redis answered what was not asked")
        return found

    def fetch(self, commands: tuple[tuple[bytes, ...], ...]) -> list[Any]:
        """Send commands and read their replies, as :func:`fetch`.

        Raises:
            Unusual: the replies are not texts, or very long.
        """
        self.sendall(b"".join([b"*%d\r\n%b" % (len(command), packed(*command)) for command in commands]))
        data = b""
        while True:
            more = self.recv(READ_BYTES)
            if not more:
                raise ConnectionError("Redis closed the connection")
            data = data + more if data else more
            if len(data) > MOST_BYTES:
                raise Unusual
            if more.endswith(b"\n") and (found := replies(data, len(commands))) is not None:
                return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def ask(client: redis.Redis, commands: bytes, head: bytes, wanted: int = 1, rest: Rest = NO_REST) -> list[Reply]:
    """Send packed commands over the connection of a :func:`push_client` that :func:`transacts`.

    Args:
        commands: all of them, to be sent in one write.
        head: what precedes the answers.
        wanted: how many answers follow it.
        rest: what all answers but the first one mostly are: in bytes, and as they are returned.

    Returns:
        The answers; one that is :data:`iai_mcp.broker.redis.resp.OTHER` may be an error: ask again through
        ``client``, which knows what to raise. Only the first ones where a later one did not come in time; then
        this connection is of no more use.
    """
    found: list[Reply] = client.connection.bounded.ask(commands, head, wanted, rest)  # type: ignore[union-attr]
    return found


def fetch(client: redis.Redis, *commands: tuple[bytes, ...]) -> list[Any]:
    """The replies to commands that read texts or lists of texts, in one round trip.

    Raises:
        RedisError: the server does not answer, or with an error.
    """
    pool = client.connection_pool
    if hasattr(pool.connection_class, "bounded"):
        connection: Any = pool.get_connection()
        try:
            return cast("list[Any]", connection.bounded.fetch(commands))
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


def transacts(client: redis.Redis) -> bool:
    """Whether a :func:`push_client` can push in transactions: no stand-in, and no user who may not use them."""
    connection: Any = client.connection
    if getattr(connection, "bounded", None) is None:
        return False
    try:
        client.execute_command("MULTI")  # type: ignore[no-untyped-call]
        client.execute_command("EXEC")  # type: ignore[no-untyped-call]
    except ResponseError:
        connection.disconnect()  # it may be left within a transaction; the next command connects anew
        return False
    return True


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


def _bounded(kind: type[AbstractConnection], deadline: Deadline) -> type[AbstractConnection]:
    """Connections of this kind whose socket is a :class:`_Socket`, at hand as ``bounded``."""

    def connect(self: Any) -> Any:
        self.bounded = _Socket(kind._connect(self), deadline)  # type: ignore[no-untyped-call]
        return self.bounded

    members = {"_connect": connect, "bounded": None}
    return cast("type[AbstractConnection]", type(f"Bounded{kind.__name__}", (kind,), members))


def control_client(
    connection: redis.Redis, timeout: float = CONTROL_TIMEOUT_S, deadline: Deadline | None = None
) -> redis.Redis:
    """A client of our own to the same server: RQ changes the timeouts of a pool that it shares.

    Args:
        timeout: seconds for each operation on a socket.
        deadline: bounds whole calls; default: nothing does.
    """
    kind, kept = _settings(connection)
    if not is_fake(connection):
        kind = _bounded(kind, deadline or Deadline())
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

    kept.update(
        socket_timeout=CONTROL_TIMEOUT_S,
        socket_connect_timeout=deadline.left(1.0),
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
        protocol=2,
    )
    pool = ConnectionPool(connection_class=_bounded(kind, deadline), **kept)
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
        words = words.rstrip(".")  # a sentence goes on behind it
        return f"{type(error).__name__}: {words}" if words else type(error).__name__
    return type(error).__name__
