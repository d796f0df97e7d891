"""Keeps two folders with one store id from sharing lanes: Redis notes whose they are, and others are refused.

The note is a list whose last item is the folder's place: producers may append to lists, and need no further right.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import redis
from redis.exceptions import RedisError, ResponseError

from iai_mcp.broker.redis.client import connect, control_client, failure
from iai_mcp.broker.redis.keys import Keys
from iai_mcp.broker.redis.scripts import Script
from iai_mcp.broker.redis.stray import unless_wrong_type
from iai_mcp.common.place import Place, is_gone
from iai_mcp.config import Settings
from iai_mcp.errors import BrokerUnavailable, WrongPlace

__all__ = ["claim_place", "owner", "refusal", "take_place", "visiting"]

TRIES = 5


def claim_place(client: redis.Redis, keys: Keys, place: Place | None) -> None:
    """Return if the lanes belong to the folder at ``place``, which takes them where nobody has them.

    It takes them too where this host can tell that the owner's folder is gone. A server that is full, or lets this
    user write nothing, leaves them as they are.

    Raises:
        WrongPlace: the lanes belong to another folder.
        RedisError: the server does not answer.
    """
    for _ in range(TRIES if place is not None else 0):
        length, found = unless_wrong_type(lambda: client.llen(keys.place)), owner(client, keys)
        if length is None:  # a key of another type: a worker sets it aside
            return
        moved = found is not None and is_gone(found)  # the note names a path where the folder is no more
        if place is None or (found is not None and found.id == place.id and not moved):
            return
        if found is not None and not moved:
            raise WrongPlace(refusal(found, place))
        try:
            if Script("place")(client, [keys.place], [length, msgspec.json.encode(place)]) == 1:
                return
        except ResponseError:
            return


def take_place(client: redis.Redis, keys: Keys, place: Place) -> None:
    """Give the lanes to the folder at ``place``.

    Raises:
        RedisError: the server does not answer, or refuses.
    """
    client.rpush(keys.place, msgspec.json.encode(place))


@contextmanager
def visiting(settings: Settings, store_id: str) -> Iterator[tuple[redis.Redis, Keys]]:
    """A client of the configured Redis, and the store's keys, for the block.

    Raises:
        BrokerUnavailable: Redis does not answer, or refuses.
        ConfigError: the URL cannot be used.
    """
    client = control_client(connect(settings.redis_url))
    try:
        yield client, Keys(settings.namespace, store_id)
    except RedisError as error:
        raise BrokerUnavailable(f"Redis does not answer: {failure(error)}") from error
    finally:
        client.connection_pool.disconnect()


def owner(client: redis.Redis, keys: Keys) -> Place | None:
    """The place of the folder that has the lanes; None where nobody has them.

    Raises:
        RedisError: the server does not answer, or refuses.
    """
    raw = unless_wrong_type(lambda: client.lindex(keys.place, -1))
    try:
        return msgspec.json.decode(raw, type=Place) if isinstance(raw, bytes) else None
    except msgspec.DecodeError:
        return None


def refusal(found: Place, place: Place) -> str:
    """Why ``place`` gets no lanes that belong to ``found``, and what to do."""
    return (
        f"this Redis holds the entries of another folder with the same store id: {found.folder} on {found.host}. "
        f"If {place.folder} is a copy of it, run `iai-mcp place --new-id`; if it was moved here or is gone, run "
        "`iai-mcp place --take`"
    )
