"""The Redis broker whose pushes count once they are on Redis's disk: ``IAI_MCP_REDIS_DURABILITY=fsync``.

A push and the ``WAITAOF`` that confirms it are one round trip. A server that confirms late gets nothing from
recalls: their entries go through the spill, which is synced too. A replay does not wait for the confirmation,
but the spill files stay until it has come. Where the connection is lost before that, they are replayed anew,
ahead of everything else.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import redis
from redis.exceptions import RedisError

from iai_mcp.broker.protocol import Mark, Pushed, Refused
from iai_mcp.broker.redis.broker import PROBE_S, RedisBroker
from iai_mcp.broker.redis.options import RedisOptions
from iai_mcp.broker.redis.retained import Part
from iai_mcp.broker.redis.sender import EpochChanged, Sender, Sent
from iai_mcp.broker.redis.waitaof import SETTING, Pace, confirmed, on_disk, pace, waitaof
from iai_mcp.errors import ConfigError
from iai_mcp.telemetry.events import emit

__all__ = ["DurableRedisBroker"]

PACE_S = 1.0  # between looks whether a disk that was late keeps up again
LATE = (
    f"Redis does not confirm in time that entries are on its disk: {SETTING} wants appendfsync always, on a disk "
    "that syncs within IAI_MCP_PUSH_BUDGET_MS"
)
STUCK = "Redis's disk holds up writes for longer than IAI_MCP_PUSH_BUDGET_MS"


class DurableRedisBroker(RedisBroker):
    """A :class:`RedisBroker` whose pushes succeed only once they are on the server's disk."""

    def __init__(
        self, connection: redis.Redis, store_id: str, lanes: int, options: RedisOptions | None = None
    ) -> None:
        super().__init__(connection, store_id, lanes, options)
        self._waitaof = waitaof(self.options.push_s)
        self._late = False  # the disk does not keep up: recalls do not wait for it
        self._next_pace = 0.0
        self._unconfirmed = False  # something was replayed that the disk is not known to hold
        self._doubt = False  # and the connection that could have told is gone

    def _held_back(self, replay: bool) -> str | None:
        return LATE if self._doubt or (self._late and not replay) else None

    def _send(self, sender: Sender, parts: Sequence[Part], replay: bool) -> Sent:
        if replay:
            return super()._send(sender, parts, replay)
        sent = sender.send(parts, self._waitaof)
        if sent.by_script:
            sent = sent._replace(further=[int(confirmed(sender.client, self.options.push_s))])
        if not _durable(sent):  # an answer may still be owed: this connection is of no more use
            self._disk_is_late()
        return sent

    def _concluded(self, outcome: Pushed | Refused, sent: Sent, replay: bool) -> Pushed | Refused:
        if replay:
            self._unconfirmed |= isinstance(outcome, Pushed)
        elif _durable(sent):
            self._unconfirmed = False
        elif sent.reply is None or isinstance(outcome, Pushed):
            return Refused(LATE)
        return outcome

    def is_durable(self, mark: Mark) -> bool:
        """Whether everything that was replayed is on the disk."""
        sender = self._push
        if self._unconfirmed and sender is not None:
            sender.deadline.within(self.options.push_s)
            try:
                self._unconfirmed = not on_disk(sender.client)
                sender.watch()
            except EpochChanged:
                self._forgotten()
            except (RedisError, OSError) as error:
                self._open_breaker(error)
        return not (self._unconfirmed or self._doubt)

    def needs_replay(self) -> bool:
        doubt, self._doubt = self._doubt, False
        if doubt:
            self._unconfirmed = False
        return doubt

    # -- the breaker

    def _hang_up(self) -> None:
        super()._hang_up()
        self._doubt = self._unconfirmed

    def _disk_is_late(self) -> None:
        """The server is alive: connect again at once, for replays."""
        self._hang_up()
        self._late, self._next_probe = True, 0.0
        self._note(LATE, loud=True)
        emit("breaker_open", level=logging.WARNING, reason="FsyncLate")
        self._wake.set()

    def _fit(self, sender: Sender) -> bool:
        """A disk that holds up the server itself leaves the breaker open: every push would time out."""
        found = pace(sender.client, self.keys.pushed, self.options.push_s)
        self._late = found is Pace.LATE
        self._next_pace = time.monotonic() + PACE_S
        if found is Pace.STUCK:
            self._next_probe = time.monotonic() + PROBE_S
            self._note(STUCK, loud=False)
        elif self._late:
            self._note(LATE, loud=True)
            self._push = sender
        return found is Pace.QUICK

    # -- the queue's background thread

    def run_once(self, timeout: float) -> None:
        super().run_once(timeout)
        if self._late and self._push is not None and time.monotonic() >= self._next_pace:
            self._next_pace = time.monotonic() + PACE_S
            try:
                quick = pace(self.control, self.keys.pushed, self.options.push_s) is Pace.QUICK
            except (RedisError, OSError, ConfigError):
                return  # the next push finds out
            if quick:
                self._late, self.trouble = False, None
                self._said.clear()
                emit("breaker_closed", level=logging.WARNING)


def _durable(sent: Sent) -> bool:
    """Whether the answer to ``WAITAOF`` says that a push is on the disk."""
    return bool(sent.further and sent.further[0] >= 1)
