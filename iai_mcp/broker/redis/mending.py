"""Mends a store's keys in Redis after strangers: from the lists, and from keys of the right type.

A worker does it at each sweep. A key of another type gets another name and is never deleted.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import redis
from redis.exceptions import ResponseError

from iai_mcp.broker.redis.client import failure
from iai_mcp.broker.redis.items import entries_in, from_items
from iai_mcp.broker.redis.keys import Count, Keys
from iai_mcp.broker.redis.scripts import Script
from iai_mcp.telemetry.events import emit

__all__ = ["Mender"]

LONGEST_LEASES = 20  # a lease may live so many of ours: another worker may be told otherwise
LONGEST_LEASE_S = 600.0  # or so long
STEP = 512  # items that are counted at a time


@dataclass(frozen=True, slots=True)
class _Counted:
    """What waits in a lane: entries, and the items that hold them."""

    entries: int
    items: int


class Mender:
    """Mends the keys of one store.

    Args:
        control: a client with a worker's rights.
        keys: the names of the store's keys.
        lanes: the number of lanes.
        lease_s: how long a lease lives without a sign of life from its holder.
    """

    def __init__(self, control: redis.Redis, keys: Keys, lanes: int, lease_s: float) -> None:
        self._control = control
        self._keys = keys
        self._lanes = lanes
        self._lease_ms = int(lease_s * 1000)
        self._script = Script("mend")
        self._refused = ""  # why this user may not, as last told

    def mend(self) -> None:
        """Mend what is wrong, and log it.

        Raises:
            RedisError: the server does not answer.
        """
        try:
            findings = self._run({})
            if recount := [lane for lane, what, _ in findings if what == "recount"]:
                findings += self._run({lane: self._counted(lane) for lane in recount})
        except ResponseError as error:
            self._tell_refused(failure(error))
            return
        self._refused = ""
        for lane, what, aside in findings:
            if what != "recount":
                where = {} if lane < 0 else {"lane": lane}
                emit(
                    "lane_mended", level=logging.WARNING, **where, key=what, **({"aside": aside} if aside else {})
                )

    def _run(self, counted: dict[int, _Counted]) -> list[tuple[int, str, str]]:
        longest = max(LONGEST_LEASES * self._lease_ms, LONGEST_LEASE_S * 1000)
        begin, end = f"{self._keys.aside}:", f":{secrets.token_hex(8)}"
        args: list[Any] = [int(longest), self._lease_ms, begin, end]
        for lane in range(self._lanes):
            known = counted.get(lane)
            args += [count.of(lane) for count in Count]
            args += [known.entries, known.items] if known else ["", 0]
        reply = self._script(self._control, [*self._named()], args)
        texts = [one.decode() if isinstance(one, bytes) else str(one) for one in reply]
        return [(int(lane), what, aside) for lane, what, aside in zip(*[iter(texts)] * 3, strict=True)]

    def _named(self) -> Iterator[str]:
        yield from (self._keys.pushed, self._keys.counts, self._keys.epoch, self._keys.place, self._keys.aside)
        for lane in range(self._lanes):
            yield from (self._keys.lane(lane, part) for part in ("lease", "state", "pending"))

    def _counted(self, lane: int) -> _Counted:
        entries = items = 0
        while found := self._some(lane, items):
            entries += sum(map(entries_in, from_items(found)))
            items += len(found)
        return _Counted(entries, items)

    def _some(self, lane: int, at: int) -> list[bytes]:
        found: Any = self._control.lrange(self._keys.lane(lane, "pending"), at, at + STEP - 1)
        return list(found)

    def _tell_refused(self, reason: str) -> None:
        if reason != self._refused:
            self._refused = reason
            emit("mending_refused", level=logging.WARNING, reason=reason)
