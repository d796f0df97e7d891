"""Makes the broker that the settings ask for. Redis is imported only where it is used."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from iai_mcp.broker.memory import MemoryBroker
from iai_mcp.broker.protocol import QueueBroker
from iai_mcp.common.place import Place
from iai_mcp.config import Settings

if TYPE_CHECKING:
    import redis

    from iai_mcp.broker.redis.broker import RedisBroker

__all__ = ["queue_broker", "redis_broker"]


def queue_broker(
    settings: Settings,
    store_id: str,
    lanes: int,
    *,
    capacity: int,
    connection: redis.Redis | None = None,
    place: Place | None = None,
) -> QueueBroker:
    """The broker of a write queue: Redis with a ``connection`` or a configured URL, else embedded.

    Args:
        capacity: most batches that an embedded broker holds.
        place: as of :func:`redis_broker`.

    Raises:
        ConfigError: the URL of Redis cannot be used.
    """
    if connection is None and not settings.redis_url:
        return MemoryBroker(lanes, capacity)
    return redis_broker(settings, store_id, lanes, connection, place, retain=True)


def redis_broker(
    settings: Settings,
    store_id: str,
    lanes: int,
    connection: redis.Redis | None = None,
    place: Place | None = None,
    *,
    retain: bool = False,
) -> RedisBroker:
    """The Redis broker of a store, on ``connection`` or the configured URL.

    Args:
        place: of the store's folder. With it the broker refuses lanes that belong to another folder.
        retain: keep what is pushed until it is in the store, as the settings say; for producers.

    Raises:
        ConfigError: the URL of Redis cannot be used.
    """
    from iai_mcp.broker.redis.broker import RedisBroker
    from iai_mcp.broker.redis.client import connect
    from iai_mcp.broker.redis.durable import DurableRedisBroker
    from iai_mcp.broker.redis.options import RedisOptions

    options = RedisOptions.of(settings if retain else replace(settings, retain_mb=0.0))
    kind = DurableRedisBroker if options.durable else RedisBroker
    broker = kind(connection if connection is not None else connect(settings.redis_url), store_id, lanes, options)
    broker.place = place
    return broker
