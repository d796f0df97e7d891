"""Which Redis servers can keep the promises of the scripts, and which one this is."""

from __future__ import annotations

import hashlib

import redis
from redis.exceptions import ResponseError

from iai_mcp.errors import ConfigError

__all__ = ["OLDEST_DURABLE", "OLDEST_SERVER", "check_server"]

OLDEST_SERVER = (7, 0)
OLDEST_DURABLE = (7, 2)


def check_server(client: redis.Redis, *, durable: bool = False) -> str:
    """Refuse a server that cannot be used; ``durable``: for pushes that wait for its disk.

    Returns:
        What tells this server and its history from others: its run id, which a restart changes, and its
        replication id, which a failover changes, as a digest. Empty where it does not say.

    Raises:
        ConfigError: older than Redis 7.0 (durable: 7.2), or a cluster.
        RedisError: the server does not answer.
    """
    try:
        info = client.execute_command("INFO")  # type: ignore[no-untyped-call]
    except ResponseError:
        return ""  # not allowed to ask (or a stand-in that cannot say)
    if isinstance(info, bytes | str):
        text = info.decode() if isinstance(info, bytes) else info
        info = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    version = str(info.get("redis_version", "7.0"))
    numbers = tuple(int(part) for part in version.split(".")[:2])
    if numbers < OLDEST_SERVER:
        raise ConfigError(f"Redis {version} is too old: iai-mcp needs 7.0 or newer")
    if durable and "redis_version" in info and numbers < OLDEST_DURABLE:
        raise ConfigError(f"Redis {version} has no WAITAOF: IAI_MCP_REDIS_DURABILITY=fsync needs 7.2 or newer")
    if str(info.get("cluster_enabled", "0")) == "1":
        raise ConfigError(
            "this Redis runs in cluster mode, where a recall cannot be pushed in one step; use one without"
        )
    history = f"{info.get('run_id', '')}{info.get('master_replid', '')}"
    return hashlib.sha256(history.encode()).hexdigest()[:12] if history else ""
