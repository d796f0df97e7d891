"""Tells whether a Redis has several users."""

from __future__ import annotations

from contextlib import suppress

from redis.exceptions import ResponseError

from iai_mcp.broker.redis.client import connect, control_client
from iai_mcp.broker.redis.scripts import translated
from iai_mcp.config import Settings

__all__ = ["has_several_users"]


def has_several_users(settings: Settings) -> bool:
    """Whether the configured Redis has several users, as far as this one may know: it is named, or sees others.

    Raises:
        BrokerUnavailable: the server does not answer.
        ConfigError: the URL cannot be used.
    """
    given = connect(settings.redis_url)
    if given.connection_pool.connection_kwargs.get("username") not in (None, "", "default"):
        return True
    client = control_client(given)
    try:
        with translated(), suppress(ResponseError):  # it may not ask, or the server has no users
            return len(client.acl_users()) > 1
        return False
    finally:
        client.connection_pool.disconnect()
