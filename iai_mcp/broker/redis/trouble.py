"""Finds what is wrong with a store's keys in Redis, and says what to do about it; changes nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import redis

from iai_mcp.broker.redis.keys import Count, Keys
from iai_mcp.broker.redis.stray import answers
from iai_mcp.common.decimals import plain

__all__ = ["LaneTrouble", "troubles"]

MOST_ASIDE = 100  # keys that were set aside and are named, the latest
ASIDE = r"{}:[a-z]+:(all|[0-9]+):[0-9a-f]{{16}}"
MENDS = "a worker mends it at its next sweep: iai-mcp worker"


@dataclass(frozen=True, slots=True)
class LaneTrouble:
    """One thing that is wrong.

    Attributes:
        lane: the lane; None where it concerns all of them.
        message: what is wrong.
        remedy: what to do.
        mended: whether it is out of the way already, and only waits for somebody to look at it.
    """

    lane: int | None
    message: str
    remedy: str
    mended: bool = False


def troubles(client: redis.Redis, keys: Keys, lanes: int) -> list[LaneTrouble]:
    """What is wrong with the keys of a store now, and what was set aside and is still there.

    Raises:
        RedisError: the server does not answer, or does not let this user look.
    """
    return [
        *_wrong_types(client, keys, lanes),
        *_stray_counts(client, keys, lanes),
        *_leases(client, keys, lanes),
        *_set_aside(client, keys),
    ]


def _wrong_types(client: redis.Redis, keys: Keys, lanes: int) -> Iterator[LaneTrouble]:
    expected: list[tuple[int | None, str, str]] = [
        (None, keys.pushed, "hash"),
        (None, keys.counts, "hash"),
        (None, keys.epoch, "string"),
        (None, keys.place, "list"),
        (None, f"rq:queue:{keys.queue}", "list"),
        (None, f"rq:ready:{keys.queue}", "zset"),
    ]
    for lane in range(lanes):
        parts = (("lease", "string"), ("state", "hash"), ("pending", "list"))
        expected += [(lane, keys.lane(lane, part), right) for part, right in parts]
    pipe = client.pipeline(transaction=False)
    for _, key, _ in expected:
        pipe.type(key)
    for (which, key, right), raw in zip(expected, answers(pipe), strict=True):
        kind = raw.decode() if isinstance(raw, bytes) else str(raw)
        if kind not in ("none", right):
            yield LaneTrouble(which, f"the key {key} is a {kind}, where a {right} belongs", MENDS)


def _stray_counts(client: redis.Redis, keys: Keys, lanes: int) -> Iterator[LaneTrouble]:
    pipe = client.pipeline(transaction=True)  # counts and lengths of one moment
    for lane in range(lanes):
        for count in Count:
            pipe.hget(keys.hash_of(count), count.of(lane))
        pipe.llen(keys.lane(lane, "pending"))
    found = answers(pipe)
    for lane in range(lanes):
        *counts, length = found[5 * lane : 5 * lane + 5]
        pushed, drained, *claimed = (plain(count or b"0") for count in counts)
        if pushed is None or drained is None or None in claimed or pushed < drained:
            yield LaneTrouble(lane, f"lane {lane}: its counts in {keys.pushed} and {keys.counts} are stray", MENDS)
        elif length == 0 and pushed != drained:
            message = f"lane {lane}: {pushed - drained} entries are counted where none wait"
            yield LaneTrouble(lane, message, MENDS)


def _leases(client: redis.Redis, keys: Keys, lanes: int) -> Iterator[LaneTrouble]:
    pipe = client.pipeline(transaction=False)
    for lane in range(lanes):
        pipe.pttl(keys.lane(lane, "lease"))
    for lane, left in enumerate(answers(pipe)):
        if left == -1:
            yield LaneTrouble(lane, f"lane {lane}: its lease in {keys.lane(lane, 'lease')} never ends", MENDS)


def _set_aside(client: redis.Redis, keys: Keys) -> Iterator[LaneTrouble]:
    pipe = client.pipeline(transaction=False)
    pipe.lrange(keys.aside, -MOST_ASIDE, -1)
    listed = [name.decode(errors="replace") for name in answers(pipe)[0] or ()]
    names = [name for name in listed if re.fullmatch(ASIDE.format(re.escape(keys.aside)), name)]
    pipe = client.pipeline(transaction=False)
    for name in names:
        pipe.exists(name)
    for name, there in zip(names, answers(pipe) if names else (), strict=True):
        if there:
            where = name.rpartition(":")[0].rpartition(":")[2]
            lane = plain(where)
            what = f"it stood in the place of a key of {'the store' if lane is None else f'lane {lane}'}"
            message = f"the key {name} was set aside: {what}"
            remedy = f"look at it, then remove it: redis-cli DEL {name}"
            yield LaneTrouble(lane, message, remedy, mended=True)
