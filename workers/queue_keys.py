"""Keeps the keys of the doorbells' queue in a state that RQ can work with.

The lanes are the truth and a sweep finds their work, so a doorbell that cannot be used is dropped. RQ's own worker
ends at a key of another type, and at an id that is no text.
"""

from __future__ import annotations

import re
from typing import Any

import redis

from iai_mcp.broker.redis.stray import is_wrong_type
from iai_mcp.telemetry.events import log

__all__ = ["DOORBELLS_MAX", "is_stray", "mend_queue"]

DOORBELLS_MAX = 1000  # that wait; one for each lane would do
STEP = 1000
_ID = re.compile(rb"[A-Za-z0-9_-]{1,200}(:[A-Za-z0-9_-]{1,200})?")


def mend_queue(connection: redis.Redis, name: str) -> None:
    """Drop what keeps RQ from working on the queue ``name``: keys of another type, ids that are none, floods.

    Raises:
        RedisError: the server does not answer.
    """
    _drop_wrong_types(connection, name)
    for key in (f"rq:queue:{name}", f"rq:queue:{name}:intermediate"):
        _thin_out(connection, key)
        _drop_from_list(connection, key)
    _drop_from_registry(connection, f"rq:ready:{name}")


def _drop_wrong_types(connection: redis.Redis, name: str) -> None:
    queue = f"rq:queue:{name}"
    registries = ("ready", "wip", "finished", "failed", "deferred", "scheduled", "canceled")
    expected = {
        queue: "list",
        f"{queue}:intermediate": "list",
        "rq:queues": "set",
        "rq:workers": "set",
        f"rq:workers:{name}": "set",
        **{f"rq:{registry}:{name}": "zset" for registry in registries},
    }
    pipe = connection.pipeline(transaction=False)
    for key in expected:
        pipe.type(key)
    for (key, right), raw in zip(expected.items(), pipe.execute(), strict=True):
        kind = raw.decode() if isinstance(raw, bytes) else raw
        if kind not in ("none", right):
            connection.delete(key)
            log.warning("the key %s was a %s, where RQ has a %s: it was removed", key, kind, right)


def _thin_out(connection: redis.Redis, key: str) -> None:
    """Drop all but the newest doorbells of a flood, with their jobs."""
    dropped = 0
    while (length := int(connection.llen(key))) > DOORBELLS_MAX:
        ids: Any = connection.lpop(key, min(STEP, length - DOORBELLS_MAX // 2))
        connection.delete(*[b"rq:job:" + one for one in ids or ()] or ["rq:job:"])
        dropped += len(ids or ())
    if dropped:
        log.warning(
            "%s held too many doorbells: the oldest %d were dropped, a sweep does their work", key, dropped
        )


def _drop_from_list(connection: redis.Redis, key: str) -> None:
    ids: Any = connection.lrange(key, 0, -1)  # bounded by now
    for one in {*ids} - {*filter(_ID.fullmatch, ids)}:
        connection.lrem(key, 0, one)
        log.warning("%s held an id of no job, which was dropped", key)


def _drop_from_registry(connection: redis.Redis, key: str) -> None:
    ids: Any = connection.zrange(key, 0, DOORBELLS_MAX)
    stray = [one for one in ids if not _ID.fullmatch(one)]
    if len(ids) > DOORBELLS_MAX:
        stray = ids
    if stray:
        connection.zrem(key, *stray)
        log.warning("%s held %d ids that are none, or too many, which were dropped", key, len(stray))


def is_stray(error: BaseException) -> bool:
    """Whether RQ has met something that :func:`mend_queue` drops."""
    return is_wrong_type(error) or isinstance(error, ValueError)
