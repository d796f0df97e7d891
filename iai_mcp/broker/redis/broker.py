"""The Redis broker: lanes as Redis lists, every state change atomic, one round trip.

Lease, claim, acknowledge, release and push are one script each. Where its lanes are known to have room a push
goes as a transaction instead (:mod:`iai_mcp.broker.redis.push_transaction`), which is as atomic, has the same
effect and costs less. The script answers for every lane that may be full and after any unexpected reply.

Producers push under a time budget and behind a circuit breaker, so that a recall never waits for Redis. Only the
background thread connects. After a failure every push is refused, and the queue spills, until that thread has
connected again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import redis
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from iai_mcp.broker.protocol import Mark, Pushed, Refused
from iai_mcp.broker.redis.client import Deadline, ask, control_client, failure, push_client, transacts
from iai_mcp.broker.redis.keys import Count, Keys
from iai_mcp.broker.redis.lanes import RedisLanes
from iai_mcp.broker.redis.push_transaction import Transactions
from iai_mcp.broker.redis.resp import Answer
from iai_mcp.broker.redis.server import check_server
from iai_mcp.config import Settings
from iai_mcp.entries.parcel import Parcel
from iai_mcp.entries.wire import encode
from iai_mcp.errors import ConfigError
from iai_mcp.telemetry.events import emit, log

__all__ = ["RedisBroker", "RedisOptions", "Sent"]

PUSHED = Pushed()
UNANSWERED = Refused("Redis has not answered in time")
PROBE_S = 0.5  # between attempts to connect to a server that failed
SWEEP_S = 2.5  # between looks for lanes that have work and no lease
FULL_S = 0.2  # after a full lane has refused a push, no replay for so long
CONNECT_S = 2.0


@dataclass(frozen=True, slots=True)
class RedisOptions:
    """How a Redis broker behaves.

    Attributes:
        namespace: prefix of every key and of the queue's name.
        ceiling: most entries in one lane; above it pushes are refused.
        lease_s: how long a lease lives without a sign of life from its holder.
        push_s: most seconds that one push may take.
        durable: whether a push counts only once it is on the server's disk.
    """

    namespace: str = ""
    ceiling: int = 100_000
    lease_s: float = 10.0
    push_s: float = 0.010
    durable: bool = False

    @classmethod
    def of(cls, settings: Settings) -> RedisOptions:
        """What the settings say."""
        return cls(
            settings.namespace,
            settings.lane_ceiling,
            settings.lease_s,
            settings.push_budget_ms / 1000,
            settings.redis_durability == "fsync",
        )


class Sent(NamedTuple):
    """The outcome of sending a push.

    Attributes:
        reply: the server's answer; None where it did not come in time.
        durable: whether the push is as durable as the options ask.
    """

    reply: Answer
    durable: bool = True


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
        super().__init__(control_client(connection), keys, lanes, self.options.lease_s)
        self._given = connection
        self._deadline = Deadline()
        self._push: redis.Redis | None = None  # set while the breaker is closed
        self._marks = [0] * lanes
        self._due: set[int] = set()
        self._wake = threading.Event()
        self._full_until = 0.0
        self._next_probe = 0.0
        self._next_sweep = 0.0
        self._said: set[str] = set()
        self.trouble: str | None = None  # why the breaker is open
        self.round_trips = 0
        self._settled_at = [0] * lanes  # the marks that were seen to be drained
        self._transacts = False  # whether this server lets us
        self._transactions = Transactions(keys, lanes)
        self._drained = [0] * lanes  # as last looked: never more than it is
        self._free = [0] * lanes  # how many entries would fit, as far as we know

    # -- producers

    def push(self, parcels: Sequence[Parcel], *, replay: bool = False, waited: float = 0.0) -> Pushed | Refused:
        client = self._push
        if client is None:
            return Refused(self.trouble or "not connected yet")
        if (reason := self._held_back(replay)) is not None:
            return Refused(reason)
        items = [encode(parcel) for parcel in parcels]
        self._deadline.within(self.options.push_s - waited)
        try:
            sent = self._send(client, parcels, items, replay)
        except (RedisError, OSError, ConfigError) as error:
            self._open_breaker(error)
            return Refused(failure(error))
        except BaseException:
            self._hang_up()  # an interrupt: the connection may still be owed an answer
            raise
        return self._concluded(self._answered(parcels, sent.reply), sent, replay)

    def _held_back(self, replay: bool) -> str | None:
        """Why a push must not be tried now; None where it may."""
        return None

    def _send(self, client: redis.Redis, parcels: Sequence[Parcel], items: list[bytes], replay: bool) -> Sent:
        """Push as a transaction, or as a script where that did not work."""
        (reply,) = self._transact(client, parcels, items)
        return Sent(reply if reply is not None else self._run_script(client, parcels, items))

    def _concluded(self, outcome: Pushed | Refused, sent: Sent, replay: bool) -> Pushed | Refused:
        """The outcome for the caller."""
        return outcome

    def _transact(
        self, client: redis.Redis, parcels: Sequence[Parcel], items: list[bytes], further: bytes = b""
    ) -> list[Answer]:
        """Push in one transaction, followed by a ``further`` command; the answers to both.

        None in the place of an answer: the push failed or was not tried, so that the script has to be run. An
        entry that is pushed twice counts once, by its key.
        """
        wanted = 2 if further else 1
        if not self._fits(client, parcels) or not self._transacts:
            return [None] * wanted
        self.round_trips += 1
        commands = self._transactions.commands(parcels, items) + further
        found = ask(client, commands, self._transactions.head(len(parcels)), wanted)
        self._transacts = found[0] is not None  # where it was refused, not again before this connection is renewed
        return found

    def _fits(self, client: redis.Redis, parcels: Sequence[Parcel]) -> bool:
        """Whether the lanes have room, as far as this producer knows; where they have none, it looks again.

        Other producers push too, so a lane may pass its ceiling by one push of each of them.
        """
        for parcel in parcels:
            if len(parcel.seqs) > self._free[parcel.lane]:
                break
        else:
            return True
        self.round_trips += 1
        self._look(client)
        return all(len(parcel.seqs) <= self._free[parcel.lane] for parcel in parcels)

    def _run_script(self, client: redis.Redis, parcels: Sequence[Parcel], items: list[bytes]) -> list[int]:
        """The same push as a script, which keeps to the ceiling even when other producers push."""
        self.round_trips += 1
        keys = [self.keys.counts, *[self.keys.lane(parcel.lane, "pending") for parcel in parcels]]
        args: list[Any] = []
        for parcel, item in zip(parcels, items, strict=True):
            # A parcel above the ceiling fits an empty lane.
            most = self._drained[parcel.lane] + max(self.options.ceiling, len(parcel.seqs))
            args += (Count.PUSHED.of(parcel.lane), most, item, len(parcel.seqs))
        reply: list[int] = self._scripts["push"](client, keys, args)
        return reply

    def _answered(self, parcels: Sequence[Parcel], reply: Answer) -> Pushed | Refused:
        """Read the reply to a push: keep the marks of its lanes, and which of them need a doorbell."""
        if reply is None:
            return UNANSWERED
        if reply[0] == -1:
            self._full_until = time.monotonic() + FULL_S
            return Refused("full")
        at = 0
        for parcel in parcels:
            lane, pushed = parcel.lane, reply[at]
            if pushed <= self._marks[lane]:  # the counts began anew: this Redis was wiped
                self._settled_at[lane] = self._drained[lane] = 0
            self._marks[lane] = pushed
            self._free[lane] = self._drained[lane] + self.options.ceiling - pushed
            if reply[at + 1] == 1:
                self._due.add(lane)
                self._wake.set()
            at += 2
        return PUSHED

    def _look(self, client: redis.Redis) -> None:
        """Learn how far pushes and drains have come."""
        counts = self._count(client, Count.PUSHED, Count.DRAINED)
        pushed, self._drained = counts[: self._lanes], counts[self._lanes :]
        self._free = [self.options.ceiling + gone - come for come, gone in zip(pushed, self._drained, strict=True)]

    @property
    def room(self) -> int:
        """How many parcels of a replay to try now; no limit but where a push cannot succeed."""
        return 1_000_000 if self._push is not None and time.monotonic() >= self._full_until else 0

    def mark(self) -> Mark:
        return tuple(self._marks)

    def open(self, seconds: float | None = None) -> None:
        """Connect, so that the first recall finds Redis ready."""
        self._doorbell.get_ready()
        if self._push is None:
            self.try_connect(CONNECT_S if seconds is None else seconds)

    def close(self) -> None:
        """Ring what is due, then close the connections."""
        with suppress(RedisError):
            if self._push is not None:
                self._ring_due()
        client = self._push
        self._hang_up()
        self.trouble = None
        if client is not None:
            client.close()
        self.control.connection_pool.disconnect()

    def is_durable(self, mark: Mark) -> bool:
        return True  # from the moment the push returned

    def needs_replay(self) -> bool:
        return False

    def wait_settled(self, mark: Mark, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        pause = 0.002
        while True:
            try:
                for lane, drained in enumerate(self._count(self.control, Count.DRAINED)):
                    if drained >= mark[lane]:
                        self._settled_at[lane] = max(self._settled_at[lane], mark[lane])
                if all(settled >= end for settled, end in zip(self._settled_at, mark, strict=True)):
                    return True
            except RedisError:
                pass
            if (left := deadline - time.monotonic()) <= 0:
                return False
            time.sleep(min(pause, left))
            pause = min(pause * 2, 0.02)

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

    def try_connect(self, seconds: float = CONNECT_S) -> bool:
        """Connect to the server, on a thread that may wait for it; whether that worked."""
        self._deadline.within(seconds)
        try:
            client = push_client(self._given, self._deadline)
            self.check_server(client)
            for script in self._scripts.values():
                script.load(client)
            self._look(client)
            self._transacts = transacts(client)
            if not self._fit(client):
                return self._push is not None
        except ConfigError as error:
            self._note(str(error), loud=True)
        except (AuthenticationError, NoPermissionError) as error:
            self._note(f"Redis refuses this client: {failure(error)}", loud=True)
        except (RedisError, OSError) as error:
            wrong_db = "DB index" in str(error) or "invalid password" in str(error) or "NOAUTH" in str(error)
            self._note(f"Redis does not answer: {failure(error)}", loud=wrong_db)
        else:
            if self.trouble is not None:
                emit("breaker_closed", level=logging.WARNING)
            self.trouble = None
            self._said.clear()
            self._push = client
            return True
        self._next_probe = time.monotonic() + PROBE_S
        return False

    def _fit(self, client: redis.Redis) -> bool:
        """Whether recalls may push through this client; a subclass that refuses decides what happens instead."""
        return True

    def _note(self, trouble: str, *, loud: bool) -> None:
        self.trouble = trouble
        if trouble not in self._said:
            self._said.add(trouble)
            log.log(logging.ERROR if loud else logging.WARNING, "%s; entries go to the spill meanwhile", trouble)

    def check_server(self, client: redis.Redis | None = None) -> None:
        """As :func:`iai_mcp.broker.redis.server.check_server`, by default through the control client."""
        check_server(client or self.control, durable=self.options.durable)

    # -- the queue's background thread

    def run_once(self, timeout: float) -> None:
        """Wait for work up to ``timeout`` seconds, then connect, ring doorbells and sweep as far as due."""
        self._wake.wait(min(timeout, 0.25))
        self._wake.clear()
        now = time.monotonic()
        if self._push is None and now >= self._next_probe:
            self.try_connect()
        if self._push is None:
            return
        try:
            self._ring_due()
            if now >= self._next_sweep:
                self._next_sweep = now + SWEEP_S
                for lane in self.idle_lanes():
                    self._doorbell.ring_again(lane)
        except RedisError as error:
            emit("doorbell_failed", level=logging.WARNING, reason=type(error).__name__)

    def _ring_due(self) -> None:
        """Ring for lanes that had been empty, but not for leased ones: their drain looks again before it ends."""
        due: list[int] = []
        while self._due:
            due.append(self._due.pop())
        pipe = self.control.pipeline(transaction=False)
        for lane in due:
            pipe.exists(self.keys.lane(lane, "lease"))
        for lane, leased in zip(due, pipe.execute() if due else (), strict=True):
            if not leased:
                self._doorbell.ring(lane)
