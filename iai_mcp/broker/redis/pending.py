"""Reads what waits in a store's Redis lanes, and the server's clock, from outside; changes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import redis
from redis.exceptions import RedisError

from iai_mcp.broker.redis.client import connect, control_client, failure
from iai_mcp.broker.redis.keys import Count, Keys
from iai_mcp.broker.redis.stray import answers, count_of
from iai_mcp.config import Settings
from iai_mcp.entries.wire import Outline, outline
from iai_mcp.errors import BrokerUnavailable

__all__ = ["Waiting", "clock_offset", "waiting_in"]


@dataclass(frozen=True, slots=True)
class Waiting:
    """The items of one lane; None for one that cannot be read and will become a dead letter."""

    lane: int
    pending: list[Outline | None]
    in_flight: list[Outline | None]


def waiting_in(settings: Settings, store_id: str, lanes: int) -> Iterator[Waiting]:
    """Each lane as it is at one moment: what is in flight is the head of the list.

    Raises:
        BrokerUnavailable: Redis does not answer, or does not let us read.
        ConfigError: the URL cannot be used.
    """
    keys = Keys(settings.namespace, store_id)
    with _client(settings) as client:
        for lane in range(lanes):
            pipe = client.pipeline(transaction=True)
            pipe.lrange(keys.lane(lane, "pending"), 0, -1)
            pipe.hget(keys.counts, Count.CLAIMED.of(lane))
            items, claimed = answers(pipe)
            outlines, in_flight = [*map(outline, items or ())], count_of(claimed)
            yield Waiting(lane, outlines[in_flight:], outlines[:in_flight])


def clock_offset(settings: Settings) -> float:
    """By how many seconds the clock of Redis is ahead of ours, give or take half a round trip.

    Raises:
        BrokerUnavailable: Redis does not answer, or does not let us ask.
        ConfigError: the URL cannot be used.
    """
    with _client(settings) as client:
        client.ping()  # the connection is open now
        before = time.time()
        seconds, micros = client.time()
        return float(seconds + micros / 1e6 - (before + time.time()) / 2)


@contextmanager
def _client(settings: Settings) -> Iterator[redis.Redis]:
    client = control_client(connect(settings.redis_url))
    try:
        yield client
    except RedisError as error:
        raise BrokerUnavailable(failure(error)) from error
    finally:
        client.connection_pool.disconnect()
