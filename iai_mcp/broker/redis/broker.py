"""The Redis broker: lanes as Redis lists, every state change atomic, one round trip.

Lease, claim, acknowledge, release and push are one script each, or a transaction with the same effect
(:mod:`iai_mcp.broker.redis.sender`).

Producers push under a time budget and behind a circuit breaker, so that a recall never waits for Redis. Only the
background thread connects. After a failure every push is refused, and the queue spills, until that thread has
connected again. Where Redis has lost entries meanwhile, that thread first pushes again what it has retained
(:mod:`iai_mcp.broker.redis.retained`): nothing new goes past them.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal

import redis
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from iai_mcp.broker.protocol import Mark, Pushed, Refused
from iai_mcp.broker.redis.bells import Bells
from iai_mcp.broker.redis.client import Deadline, control_client, failure
from iai_mcp.broker.redis.items import Admittance
from iai_mcp.broker.redis.keys import Count, Keys
from iai_mcp.broker.redis.lanes import RedisLanes
from iai_mcp.broker.redis.options import RedisOptions
from iai_mcp.broker.redis.place import claim_place
from iai_mcp.broker.redis.retained import Part, Ring, chunk
from iai_mcp.broker.redis.sender import FULL, EpochChanged, Sender, Sent
from iai_mcp.broker.redis.server import check_server
from iai_mcp.broker.redis.stray import answers, count_of
from iai_mcp.common.place import Place
from iai_mcp.entries.parcel import Parcel
from iai_mcp.entries.wire import decode, encode
from iai_mcp.errors import ConfigError, WrongPlace
from iai_mcp.telemetry.events import emit, log

__all__ = ["RedisBroker"]

PUSHED = Pushed()
FORGOTTEN = "Redis has lost entries that it held"
RETAINED = "workers are behind: as many entries wait in Redis as this client may push again (IAI_MCP_RETAIN)"
PROBE_S = 0.5  # between attempts to connect to a server that failed
FULL_S = 0.2  # after a full lane has refused a push, no replay for so long
CONNECT_S = 2.0
SETTLE_S = 0.25  # between looks at how much of the retained is in the store
FULL_SETTLE_S = 0.02  # the same while nothing more may be retained
REPLAY_BYTES_S = 2**20  # a replayed push may take so much longer: a slow line, in bytes a second


class RedisBroker(RedisLanes):
    """The lanes of one store in Redis, with a producer's end.

    Args:
        connection: any redis-py client of the server; clients of our own are made from its settings.
        store_id: the store.
        lanes: its number of lanes.
    """

    name = "redis"
    in_process: Literal[False] = False

    def __init__(
        self, connection: redis.Redis, store_id: str, lanes: int, options: RedisOptions | None = None
    ) -> None:
        self.options = options or RedisOptions()
        keys = Keys(self.options.namespace, store_id)
        self._control_deadline = Deadline()
        control = control_client(connection, deadline=self._control_deadline)
        super().__init__(control, keys, lanes, self.options.lease_s, Admittance(self.options.signer, store_id))
        self._given = connection
        self._push: Sender | None = None  # set while the breaker is closed
        self._marks = [0] * lanes  # how many entries were pushed
        self._settled_at = [0] * lanes  # the marks that were seen to be drained
        self._bells = Bells(self, self._doorbell, self._control_deadline)
        self._wake = threading.Event()
        self._full_until = self._next_probe = self._next_settle = 0.0
        self._said: set[str] = set()
        self.trouble: str | None = None  # why the breaker is open
        self.place: Place | None = None  # of the store's folder; None: not checked
        self.refusal: WrongPlace | None = None  # the lanes belong to another folder
        self._ring = Ring(lanes, self.options.retain_bytes) if self.options.retain_bytes else None
        self._epoch = b""  # the last one that was met to the end
        self._intact = True  # False: what is retained has to be pushed again
        self._again: tuple[bytes, list[list[int]]] = b"", []  # where that has begun: epoch, and ends by lane

    # -- producers

    def push(self, parcels: Sequence[Parcel], *, replay: bool = False, waited: float = 0.0) -> Pushed | Refused:
        sender = self._push
        if sender is None:
            return Refused(self.trouble or "not connected yet")
        if (reason := self._held_back(replay)) is not None:
            return Refused(reason)
        if self._ring is not None and self._ring.full:
            self._wake.set()
            return Refused(RETAINED)
        sign = self.options.signer.sign
        parts: list[Part] = [(parcel.lane, len(parcel.seqs), sign(encode(parcel))) for parcel in parcels]
        budget = self.options.push_s - waited
        if replay:  # no recall waits for it, and a large item takes a while over a slow line
            budget += sum([len(item) for _, _, item in parts]) / REPLAY_BYTES_S
        sender.deadline.within(budget)
        try:
            sent = self._send(sender, parts, replay)
        except EpochChanged:
            self._forgotten()
            return Refused(FORGOTTEN)
        except (RedisError, OSError, ConfigError) as error:
            self._open_breaker(error)
            return Refused(failure(error))
        except BaseException:
            self._hang_up()  # an interrupt: the connection may still be owed an answer
            raise
        outcome = self._concluded(self._answered(sender, parts, sent.reply), sent, replay)
        if not sent.sound:
            self._forgotten()
        return outcome

    def _held_back(self, replay: bool) -> str | None:
        """Why a push must not be tried now; None where it may."""
        return None

    def _send(self, sender: Sender, parts: Sequence[Part], replay: bool) -> Sent:
        return sender.send(parts)

    def _concluded(self, outcome: Pushed | Refused, sent: Sent, replay: bool) -> Pushed | Refused:
        """The outcome for the caller."""
        return outcome

    def _answered(self, sender: Sender, parts: Sequence[Part], reply: list[int] | None) -> Pushed | Refused:
        """Read the reply to a push: keep the marks of its lanes, and which of them need a doorbell."""
        if reply is None:
            return Refused("Redis has not answered in time")
        if reply[0] == FULL:
            self._full_until = time.monotonic() + FULL_S
            return Refused("full")
        ends, marks, at = reply[::2], self._marks, 1
        if self._ring is not None and not self._ring.keep(sender.epoch, parts, ends):
            return Refused(FORGOTTEN)  # meanwhile the background thread has found that out
        for (lane, _, _), end in zip(parts, ends, strict=True):
            marks[lane] = end
            if reply[at] == 1:  # it had been empty
                self._bells.due.add(lane)
                self._wake.set()
            at += 2
        sender.pushed(parts, ends)
        return PUSHED

    @property
    def room(self) -> int:
        """How many parcels of a replay to try now; no limit but where a push cannot succeed."""
        if self._push is None or time.monotonic() < self._full_until or (self._ring and self._ring.full):
            return 0
        return 1_000_000

    def mark(self) -> Mark:
        return tuple(self._marks) if self._ring is None else self._ring.mark()

    @property
    def round_trips(self) -> int:
        """Number of requests for pushes over the present connection."""
        return self._push.round_trips if self._push is not None else 0

    @property
    def retained(self) -> int | None:
        """Number of entries that Redis may still lose and that would be pushed again; None where it is off."""
        return self._ring.entries if self._ring is not None else None

    def recheck(self, seconds: float) -> None:
        if self._ring is None or self._ring.empty:
            return
        self._control_deadline.within(seconds)
        try:
            self._settle(self._ring)
        except (RedisError, OSError) as error:
            self._open_breaker(error)
        finally:
            self._control_deadline.at = None
        if self._push is None and not self._ring.empty:
            self.try_connect(min(CONNECT_S, seconds))

    def endangered(self) -> list[Parcel]:
        if self._ring is None or self._push is not None:
            return []
        return [decode(item) for parts in self._ring.lost() for _, _, item in parts]

    def open(self, seconds: float | None = None) -> None:
        """Connect, so that the first recall finds Redis ready."""
        self._bells.get_ready()
        if self._push is None:
            self.try_connect(CONNECT_S if seconds is None else seconds)

    def reconnect(self, seconds: float) -> bool:
        """Try once to connect where the breaker is open, for at most ``seconds``; whether it is closed now."""
        return self._push is not None or self.try_connect(min(CONNECT_S, seconds))

    def close(self, seconds: float = CONNECT_S) -> None:
        """Ring what is due, for at most ``seconds``, then close the connections."""
        if (sender := self._push) is not None:
            self._bells.last(seconds)
            sender.client.close()
        self._hang_up()
        self.trouble = None
        self.control.connection_pool.disconnect()

    def is_durable(self, mark: Mark) -> bool:
        return True  # from the moment the push returned

    def needs_replay(self) -> bool:
        return False

    def wait_settled(self, mark: Mark, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        pause = 0.002
        while True:
            with suppress(RedisError):
                if self._settled(mark):
                    return True
            if (left := deadline - time.monotonic()) <= 0:
                return False
            time.sleep(min(pause, left))
            pause = min(pause * 2, 0.02)

    def _settled(self, mark: Mark) -> bool:
        """Whether everything up to ``mark`` is in the store, as of now."""
        if self._ring is not None:
            self._settle(self._ring)
            return self._ring.settled(mark)
        for lane, drained in enumerate(self._count(Count.DRAINED)):
            if drained >= mark[lane]:
                self._settled_at[lane] = max(self._settled_at[lane], mark[lane])
        return all(settled >= end for settled, end in zip(self._settled_at, mark, strict=True))

    def _settle(self, ring: Ring) -> None:
        """Drop from the ring what is in the store, and notice where Redis has lost entries.

        The counts and their epoch are read at one moment.
        """
        marks, sender = [*self._marks], self._push
        pipe = self.control.pipeline(transaction=True)
        pipe.get(self.keys.epoch)
        for count in (Count.PUSHED, Count.DRAINED):
            pipe.hmget(self.keys.hash_of(count), [count.of(lane) for lane in range(self._lanes)])
        epoch, *values = answers(pipe)
        pushed, drained = ([*map(count_of, found or [None] * self._lanes)] for found in values)
        ring.settle(epoch or b"", drained)
        went_back = any(count < mark for count, mark in zip(pushed, marks, strict=True))
        if sender is not None and sender is self._push and (epoch != sender.epoch or went_back):
            self._forgotten()

    def wait_change(self, timeout: float) -> None:
        """Wait a moment: changes elsewhere are not told."""
        time.sleep(max(0.0, min(timeout, 0.02)))

    def wake(self) -> None:
        """End a wait of :meth:`run_once`."""
        self._wake.set()

    # -- the breaker

    def _hang_up(self) -> None:
        self._push = None

    def _open_breaker(self, error: BaseException) -> None:
        self._hang_up()
        self._next_probe = time.monotonic() + PROBE_S
        self.trouble = failure(error)
        emit("breaker_open", level=logging.WARNING, reason=type(error).__name__)
        self._wake.set()

    def _forgotten(self) -> None:
        """Redis has lost entries: push nothing before what is retained has been pushed again."""
        self._hang_up()
        self._intact = False
        self._next_probe = 0.0
        self._note(FORGOTTEN, loud=False)
        self._wake.set()

    def try_connect(self, seconds: float = CONNECT_S) -> bool:
        """Connect to the server, on a thread that may wait so long for it; whether that worked."""
        until = time.monotonic() + seconds
        try:
            sender = Sender(self._given, seconds, self.keys, self._lanes, self.options.ceiling, self._scripts)
            identity = self.check_server(sender.client)
            claim_place(sender.client, self.keys, self.place)
            for script in self._scripts.values():
                script.load(sender.client)
            self._meet(sender, identity, until if seconds < CONNECT_S else math.inf)
            self._bells.keep_standing(seconds)
            if not self._fit(sender):
                return self._push is not None
        except EpochChanged:
            self._note(FORGOTTEN, loud=False)
        except ConfigError as error:
            self.refusal = error if isinstance(error, WrongPlace) else None
            self._note(str(error), loud=True)
        except (AuthenticationError, NoPermissionError) as error:
            self._note(f"Redis refuses this client: {failure(error)}", loud=True)
        except (RedisError, OSError) as error:
            wrong_db = "DB index" in str(error) or "invalid password" in str(error) or "NOAUTH" in str(error)
            self._note(f"Redis does not answer: {failure(error)}", loud=wrong_db)
        else:
            if self.trouble is not None:
                emit("breaker_closed", level=logging.WARNING)
            self.trouble = self.refusal = None
            self._said.clear()
            self._push = sender
            return True
        self._next_probe = time.monotonic() + PROBE_S
        return False

    def _meet(self, sender: Sender, identity: str, until: float) -> None:
        """Look at the data behind a new connection, and push again what may be missing there."""
        counts = sender.meet(identity)
        went_back = any(count < mark for count, mark in zip(counts, self._marks, strict=True))
        if self._epoch not in (b"", sender.epoch) or went_back:
            self._intact = False
        if went_back or self._again[0] != sender.epoch:
            self._again = sender.epoch, [[] for _ in range(self._lanes)]
        if not self._intact:
            self._settled_at = [0] * self._lanes
            self._marks = counts
            if self._ring is not None:
                self._push_again(sender, self._ring, until)
            self._bells.sweep_soon()
            self._intact = True
        if self._ring is not None:
            self._ring.begin(sender.epoch)
        self._epoch = sender.epoch  # only now: an attempt that is cut off begins anew

    def _push_again(self, sender: Sender, ring: Ring, until: float) -> None:
        """Push everything that is retained, in its order; what is there already counts once, by its key.

        Args:
            until: when to give up (``time.monotonic()``).

        Raises:
            EpochChanged, RedisError, OSError: the next attempt in this epoch goes on where this one ended.
        """
        _, ends = self._again
        for lane, parts in enumerate(ring.lost()):
            while part := chunk(parts[len(ends[lane]) :]):
                sender.deadline.within(min(CONNECT_S, until - time.monotonic()))
                ends[lane] += sender.send_again(part)
            if parts:
                self._marks[lane] = ends[lane][-1]
                sender.pushed(parts, ends[lane])
                self._bells.due.add(lane)
        ring.pushed_again(sender.epoch, ends)
        self._again = b"", []
        if entries := ring.entries:
            emit("pushed_again", level=logging.WARNING, entries=entries)

    def _fit(self, sender: Sender) -> bool:
        """Whether recalls may push through it; a subclass that refuses decides what happens instead."""
        return True

    def _note(self, trouble: str, *, loud: bool) -> None:
        self.trouble = trouble
        if trouble not in self._said:
            self._said.add(trouble)
            log.log(logging.ERROR if loud else logging.WARNING, "%s; entries go to the spill meanwhile", trouble)

    def check_server(self, client: redis.Redis | None = None) -> str:
        """As :func:`iai_mcp.broker.redis.server.check_server`, by default through the control client."""
        return check_server(client or self.control, durable=self.options.durable)

    # -- the queue's background thread

    def run_once(self, timeout: float) -> None:
        """Wait for work up to ``timeout`` seconds, then connect, ring doorbells and sweep as far as due."""
        pause = FULL_SETTLE_S if self._ring is not None and self._ring.full else SETTLE_S
        self._wake.wait(min(timeout, pause))
        self._wake.clear()
        now = time.monotonic()
        if self._push is None and now >= self._next_probe:
            self.try_connect()
        if self._push is None:
            return
        try:
            self._bells.ring()
            if self._ring is not None and not self._ring.empty and now >= self._next_settle:
                self._settle(self._ring)
                self._next_settle = now + (FULL_SETTLE_S if self._ring.full else SETTLE_S)
        except RedisError as error:
            emit("doorbell_failed", level=logging.WARNING, reason=type(error).__name__)
