"""Inspects a Redis from outside: whether we may start, and its state. Reads only and never shows a password."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from redis.exceptions import AuthenticationError, BusyLoadingError, NoPermissionError, RedisError, ResponseError

from iai_mcp.broker.protocol import LaneStats
from iai_mcp.broker.redis.client import connect, control_client, failure
from iai_mcp.broker.redis.keys import Keys
from iai_mcp.broker.redis.reader import LaneReader
from iai_mcp.broker.redis.scripts import translated
from iai_mcp.broker.redis.server import check_server
from iai_mcp.broker.redis.trouble import LaneTrouble, troubles
from iai_mcp.config import Settings
from iai_mcp.errors import BrokerUnavailable, ConfigError

if TYPE_CHECKING:
    import redis

__all__ = ["RedisStatus", "RedisWarning", "WorkerStatus", "check", "inspect_redis", "masked", "workers_here"]

UNKNOWN = "unknown"
TIMEOUT_S = 2.0
ALIVE_S = 15.0  # our workers are seen every few seconds; a killed one stays registered for minutes


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One RQ worker of the queue, as it last registered itself."""

    name: str
    state: str
    host: str | None
    pid: int | None
    seen_s: float | None
    alive: bool


@dataclass(frozen=True, slots=True)
class RedisWarning:
    """A setting or state of the server that endangers entries, and what to do about it."""

    kind: Literal["appendonly", "appendfsync", "eviction", "aof_write", "replica", "memory"]
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class RedisStatus:
    """The state of a Redis; ``error`` says why there is no more of it.

    Attributes:
        refused: the server answers and refuses us: no retry helps.
        drained: entries that workers have ever acknowledged; the difference of two looks gives the rate.
        lanes: one row per lane; None where they cannot be read.
        workers: None where RQ's keys cannot be read.
        troubles: what is wrong with the store's keys, and what was set aside.
    """

    url: str
    reachable: bool = False
    error: str | None = None
    refused: bool = False
    ping_ms: float | None = None
    version: str = UNKNOWN
    appendonly: str = UNKNOWN
    appendfsync: str = UNKNOWN
    maxmemory_policy: str = UNKNOWN
    used_memory: int | None = None
    maxmemory: int | None = None
    warnings: list[RedisWarning] = field(default_factory=list)
    queue: str = ""
    drained: int | None = None
    workers: list[WorkerStatus] | None = None
    lanes: list[LaneStats] | None = None
    troubles: list[LaneTrouble] = field(default_factory=list)


def masked(connection: redis.Redis) -> str:
    """The URL of ``connection``, with ``***`` for a password."""
    pool = connection.connection_pool
    kwargs = pool.connection_kwargs
    secret = ":***" if kwargs.get("password") else ""
    user = f"{kwargs.get('username') or ''}{secret}"
    at = f"{user}@" if user else ""
    database = kwargs.get("db") or 0
    if kwargs.get("path"):
        return f"unix://{at}{kwargs['path']}" + (f"?db={database}" if database else "")
    scheme = "rediss" if "SSL" in pool.connection_class.__name__ else "redis"
    host = str(kwargs.get("host", "localhost"))
    host = f"[{host}]" if ":" in host else host
    return f"{scheme}://{at}{host}:{kwargs.get('port', 6379)}/{database}"


def check(url: str) -> None:
    """Return if a worker can start with the Redis at ``url``.

    Raises:
        ConfigError: the URL, the password, the database, the version or the mode is wrong.
        BrokerLoading: the server still loads its data.
        BrokerUnavailable: no server answers; waiting may help.
    """
    with _visiting(connect(url)) as client, translated():
        _greet(client)
        check_server(client)


@contextmanager
def _visiting(connection: redis.Redis) -> Iterator[redis.Redis]:
    client = control_client(connection, TIMEOUT_S)
    try:
        yield client
    finally:
        client.connection_pool.disconnect()


def _greet(client: redis.Redis) -> float:
    """The time of a PING on an open connection, in ms."""
    try:
        with suppress(NoPermissionError):  # an ACL without PING: it does answer
            client.ping()
        started = time.perf_counter()
        with suppress(NoPermissionError):
            client.ping()
    except AuthenticationError as error:
        raise ConfigError(f"Redis refuses this client: {failure(error)}") from None
    except BusyLoadingError:
        raise
    except ResponseError as error:  # SELECT of a database that there is not
        if "NOPERM" not in str(error) and "DB index" not in str(error):
            raise
        raise ConfigError(f"Redis refuses this client: {failure(error)}") from None
    return (time.perf_counter() - started) * 1000


def inspect_redis(
    connection: redis.Redis, settings: Settings, store_id: str, lanes: int, *, config: bool = True
) -> RedisStatus:
    """The state of a Redis and of a store's lanes in it; trouble with Redis is part of the answer.

    ``config``: ask for the server's configuration too, of which INFO tells only a part. Only operators may.
    """
    url = masked(connection)
    queue = Keys(settings.namespace, store_id).queue
    with _visiting(connection) as client:
        reader = LaneReader(client, Keys(settings.namespace, store_id), lanes, settings.lease_s)
        try:
            ping_ms = _greet(client)
            check_server(client, durable=settings.redis_durability == "fsync")
            return RedisStatus(
                url=url,
                reachable=True,
                ping_ms=round(ping_ms, 3),
                queue=queue,
                workers=_workers(client, queue),
                **_server(client, config),
                **_lanes(reader),
            )
        except ConfigError as error:
            return RedisStatus(url=url, error=str(error), refused=True, queue=queue)
        except (RedisError, OSError) as error:
            return RedisStatus(url=url, error=f"Redis does not answer: {failure(error)}", queue=queue)


def workers_here(settings: Settings) -> list[WorkerStatus]:
    """The workers of the configured queue that are alive on this host.

    Raises:
        BrokerUnavailable: Redis does not answer, or hides RQ's keys from us.
        ConfigError: the URL cannot be used.
    """
    with _visiting(connect(settings.redis_url)) as client, translated():
        found = _workers(client, Keys(settings.namespace, "").queue)
    if found is None:
        raise BrokerUnavailable("this user may not read RQ's keys")
    return [one for one in found if one.alive and one.host == socket.gethostname()]


def _lanes(reader: LaneReader) -> dict[str, Any]:
    try:
        found: dict[str, Any] = {"drained": sum(reader.drained()), "lanes": reader.stats()}
    except (NoPermissionError, BrokerUnavailable) as error:
        return {"error": f"the lanes cannot be read: {failure(error)}"}
    with suppress(NoPermissionError):  # an ACL of an earlier deployment
        found["troubles"] = troubles(reader.control, reader.keys, len(found["lanes"]))
    return found


def _server(client: redis.Redis, ask_config: bool) -> dict[str, Any]:
    """Version, persistence and eviction as far as the ACL lets us ask, and warnings about them."""
    info: dict[str, Any] = {}
    with suppress(ResponseError):
        info = client.info("everything")
    config: dict[str, str] = {}
    if ask_config:
        with suppress(ResponseError):
            config = client.config_get("append*", "maxmemory*")  # type: ignore[assignment]
    aof = info.get("aof_enabled")
    facts: dict[str, Any] = {
        "version": str(info.get("redis_version", UNKNOWN)),
        "appendonly": config.get("appendonly") or ("yes" if aof else UNKNOWN if aof is None else "no"),
        "appendfsync": config.get("appendfsync", UNKNOWN),
        "maxmemory_policy": config.get("maxmemory-policy") or str(info.get("maxmemory_policy", UNKNOWN)),
        "used_memory": info.get("used_memory"),
        "maxmemory": info.get("maxmemory"),
    }
    return {**facts, "warnings": _warnings(facts, info)}


def _warnings(facts: dict[str, Any], info: dict[str, Any]) -> list[RedisWarning]:
    found = []
    if facts["appendonly"] == "no":
        message = "appendonly is no: entries that wait here are lost when Redis restarts"
        found.append(RedisWarning("appendonly", message, "set it to yes"))
    elif facts["appendfsync"] == "no":
        message = "appendfsync is no: a power cut loses what waits here"
        found.append(RedisWarning("appendfsync", message, "set it to everysec or always"))
    if (policy := facts["maxmemory_policy"]) not in ("noeviction", UNKNOWN):
        message = f"maxmemory-policy is {policy}: Redis may evict entries that wait"
        found.append(RedisWarning("eviction", message, "set it to noeviction"))
    if info.get("aof_last_write_status", "ok") != "ok":
        message = "Redis could not write its append-only file"
        found.append(RedisWarning("aof_write", message, "make room on its disk"))
    if info.get("role", "master") == "slave":
        message = "this is a replica: pushes are refused and entries are spilled"
        found.append(RedisWarning("replica", message, "point to the primary"))
    used, most = facts["used_memory"], facts["maxmemory"]
    if used and most and used > 0.9 * most:
        message = "memory is nearly full: pushes will be refused and entries spilled"
        found.append(RedisWarning("memory", message, "raise maxmemory, or add workers"))
    return found


def _workers(client: redis.Redis, queue: str) -> list[WorkerStatus] | None:
    from rq import Queue, Worker

    try:
        found = Worker.all(queue=Queue(queue, connection=client))
    except ResponseError:  # an ACL hides RQ's keys, or this is a replica: RQ tidies up while it reads
        return None
    return sorted((_worker(one) for one in found), key=lambda one: one.name)


def _worker(one: Any) -> WorkerStatus:
    seen: datetime | None = one.last_heartbeat
    age = max(0.0, (datetime.now(UTC) - seen).total_seconds()) if seen else None
    state = one.get_state()
    return WorkerStatus(
        name=one.name,
        state=str(getattr(state, "value", state)),
        host=one.hostname,
        pid=one.pid,
        seen_s=round(age, 1) if age is not None else None,
        alive=age is not None and age < ALIVE_S and not _known_dead(one.hostname, one.pid),
    )


def _known_dead(host: str | None, pid: int | None) -> bool:
    """Whether a worker ran on this host and its process is gone: a killed one cannot sign off."""
    if host != socket.gethostname() or not pid:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # another user's, and alive
    return False
