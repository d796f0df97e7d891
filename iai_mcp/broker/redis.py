"""The Redis broker: lanes as Redis lists, every state change one atomic script.

Producers push under a time budget and behind a circuit breaker, so that a recall never waits for Redis:
only the background thread connects, and after any failure every push is refused (the queue then spills)
until that thread has got through again. Drains use the same scripts under a lease with a fencing token.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import redis
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    NoScriptError,
    RedisError,
    ResponseError,
)

from iai_mcp.broker.client import Deadline, ask, control_client, failure, packed, push_client
from iai_mcp.broker.doorbell import Doorbell
from iai_mcp.broker.keys import Keys
from iai_mcp.broker.protocol import Claimed, LaneStats, Lease, Mark, Poison, Pushed, Refused
from iai_mcp.config import Settings
from iai_mcp.entry import Parcel, decode, encode
from iai_mcp.errors import BrokerUnavailable, ConfigError, LeaseLost, MalformedParcel
from iai_mcp.events import emit, log

__all__ = ["OLDEST_SERVER", "RedisBroker", "RedisOptions"]

OLDEST_SERVER = (7, 0)
PROBE_S = 0.5  # between attempts to get through to a server that failed
SWEEP_S = 2.5  # between looks for lanes that have work and no drain
FULL_S = 0.2  # a lane above its ceiling is tried again after this
CONNECT_S = 2.0
MAX_CLAIM_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class RedisOptions:
    """How a Redis broker behaves.

    Attributes:
        namespace: prefix of every key and of the queue's name.
        ceiling: most entries in one lane; above it pushes are refused.
        lease_s: how long a lease lives without a sign of life from its holder.
        push_s: most seconds that one push may take.
    """

    namespace: str = ""
    ceiling: int = 100_000
    lease_s: float = 10.0
    push_s: float = 0.010

    @classmethod
    def of(cls, settings: Settings) -> RedisOptions:
        """What the settings say."""
        return cls(settings.namespace, settings.lane_ceiling, settings.lease_s, settings.push_budget_ms / 1000)


class _Script:
    """A Lua file of this package, run by its digest."""

    def __init__(self, name: str) -> None:
        self.source = resources.files("iai_mcp.broker").joinpath(f"lua/{name}.lua").read_text()
        self.digest = _digest(self.source)

    def __call__(self, client: redis.Redis, keys: Sequence[str], args: Sequence[Any]) -> Any:
        try:
            return client.execute_command("EVALSHA", self.digest, len(keys), *keys, *args)  # type: ignore[no-untyped-call]
        except NoScriptError:  # the server restarted, or somebody flushed its scripts
            return client.execute_command("EVAL", self.source, len(keys), *keys, *args)  # type: ignore[no-untyped-call]
        except ResponseError as error:
            if "unexpected symbol near '#'" not in str(error):
                raise
            self.source = self.source.split("\n", 1)[1]  # a stand-in that knows no script flags
            self.digest = _digest(self.source)
            return self(client, keys, args)

    def load(self, client: redis.Redis) -> None:
        """Make the server know the script, so that the first push takes one round trip."""
        with suppress(NoPermissionError):  # EVAL will do
            client.script_load(self.source)


def _digest(source: str) -> str:
    return hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


@cache
def _holder() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


class RedisBroker:
    """The lanes of one store in Redis.

    Args:
        connection: any redis-py client of the server; clients of our own are made from its settings.
        store_id: the store.
        lanes: its number of lanes.
    """

    name = "redis"
    held_here = False

    def __init__(
        self, connection: redis.Redis, store_id: str, lanes: int, options: RedisOptions | None = None
    ) -> None:
        self.options = options or RedisOptions()
        self.keys = Keys(self.options.namespace, store_id)
        self.control = control_client(connection)
        self._given = connection
        self._lanes = lanes
        self._scripts = {name: _Script(name) for name in ("push", "lease", "claim", "ack", "release")}
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
        self._lane_keys = [
            (self.keys.lane(n, "pending"), self.keys.lane(n, "state"), self.keys.lane(n, "lease"))
            for n in range(lanes)
        ]
        self._packed_keys = [packed(*map(str.encode, keys)) for keys in self._lane_keys]
        self._evalsha = packed(b"EVALSHA", self._scripts["push"].digest.encode())
        self._ceiling = packed(b"%d" % self.options.ceiling)
        self._doorbell = Doorbell(self.control, self.keys)

    # -- producers

    def push(self, parcels: Sequence[Parcel], *, replay: bool = False) -> Pushed | Refused:
        client = self._push
        if client is None:
            return Refused(self.trouble or "not connected yet")
        items = [to_item(parcel) for parcel in parcels]
        self._deadline.within(self.options.push_s)
        try:
            self.round_trips += 1
            reply = ask(client, self._push_command(parcels, items)) or self._push_again(client, parcels, items)
        except (RedisError, OSError) as error:
            self._open_breaker(error)
            return Refused(failure(error))
        if reply[0] == -1:
            self._full_until = time.monotonic() + FULL_S
            return Refused("full")
        for parcel, pushed, idle in zip(parcels, reply[::2], reply[1::2], strict=True):
            self._marks[parcel.lane] = pushed
            if idle:
                self._due.add(parcel.lane)
                self._wake.set()
        return Pushed()

    def _push_command(self, parcels: Sequence[Parcel], items: list[bytes]) -> bytes:
        """The script's call as it goes over the wire: the keys have been made ready, lane by lane."""
        count = len(parcels)
        keys = args = b""
        for parcel, item in zip(parcels, items, strict=True):
            keys += self._packed_keys[parcel.lane]
            entries = b"%d" % len(parcel.entries)
            args += b"$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(item), item, len(entries), entries)
        head = b"*%d\r\n%b%b" % (4 + 5 * count, self._evalsha, packed(b"%d" % (3 * count)))
        return b"%b%b%b%b" % (head, keys, self._ceiling, args)

    def _push_again(self, client: redis.Redis, parcels: Sequence[Parcel], items: list[bytes]) -> Any:
        """The same push the long way: nothing came of the first, or it was no connection of ours."""
        keys = [key for parcel in parcels for key in self._lane_keys[parcel.lane]]
        args: list[Any] = [self.options.ceiling]
        for parcel, item in zip(parcels, items, strict=True):
            args += (item, len(parcel.entries))
        return self._scripts["push"](client, keys, args)

    @property
    def room(self) -> int:
        """How many batches it is worth trying to push now."""
        return 1_000_000 if self._push is not None and time.monotonic() >= self._full_until else 0

    def mark(self) -> Mark:
        return tuple(self._marks)

    def open(self) -> None:
        """Connect, so that the first recall finds Redis ready."""
        if self._push is None:
            self.try_connect()

    def close(self) -> None:
        """Ring what is due, then close the connections."""
        with suppress(RedisError):
            while self._due and self._push is not None:
                self._doorbell.ring(self._due.pop())
        client, self._push = self._push, None
        self.trouble = None
        if client is not None:
            client.close()
        self.control.connection_pool.disconnect()

    def safe(self, mark: Mark) -> bool:
        return True  # it is Redis's from the moment the push returned

    def hurry(self, mark: Mark) -> None:
        """Lanes are drained elsewhere: their linger is theirs."""

    def wait_settled(self, mark: Mark, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        pause = 0.002
        while True:
            try:
                if all(settled >= end for settled, end in zip(self._settled(), mark, strict=True)):
                    return True
            except RedisError:
                pass
            if (left := deadline - time.monotonic()) <= 0:
                return False
            time.sleep(min(pause, left))
            pause = min(pause * 2, 0.02)

    def _settled(self) -> list[int]:
        pipe = self.control.pipeline(transaction=False)
        for number in range(self._lanes):
            pipe.hget(self.keys.lane(number, "state"), "drained")
        return [int(value or 0) for value in pipe.execute()]

    def wait_change(self, timeout: float) -> None:
        """Wait a moment for the thread to get on."""
        time.sleep(max(0.0, min(timeout, 0.02)))

    def take_back(self) -> list[Parcel]:
        """Nothing is held in this process."""
        return []

    def wake(self) -> None:
        """End a wait of :meth:`tend`."""
        self._wake.set()

    def put_off(self, lane: int, seconds: float) -> None:
        """Lanes are drained elsewhere."""

    # -- the breaker

    def _open_breaker(self, error: BaseException) -> None:
        self._push = None
        self._next_probe = time.monotonic() + PROBE_S
        self.trouble = failure(error)
        emit("breaker_open", level=logging.WARNING, reason=type(error).__name__)
        self._wake.set()

    def try_connect(self) -> bool:
        """Get through to the server, on whatever thread may wait for it; whether that worked."""
        self._deadline.within(CONNECT_S)
        try:
            client = push_client(self._given, self._deadline)
            self.check_server(client)
            for script in self._scripts.values():
                script.load(client)
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

    def _note(self, trouble: str, *, loud: bool) -> None:
        self.trouble = trouble
        if trouble not in self._said:
            self._said.add(trouble)
            log.log(logging.ERROR if loud else logging.WARNING, "%s; entries go to the spill meanwhile", trouble)

    def check_server(self, client: redis.Redis | None = None) -> None:
        """Refuse servers on which the scripts cannot keep their promises.

        Raises:
            ConfigError: older than Redis 7.0, or a cluster.
        """
        try:
            info = (client or self.control).execute_command("INFO")  # type: ignore[no-untyped-call]
        except ResponseError:
            return  # not allowed to ask (or a stand-in that cannot say)
        if isinstance(info, bytes | str):
            text = info.decode() if isinstance(info, bytes) else info
            info = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        version = str(info.get("redis_version", "7.0"))
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_SERVER:
            raise ConfigError(f"Redis {version} is too old: iai-mcp needs 7.0 or newer")
        if str(info.get("cluster_enabled", "0")) == "1":
            raise ConfigError(
                "this Redis runs in cluster mode, where a recall cannot be pushed in one step; use one without"
            )

    # -- the queue's background thread

    def tend(self, timeout: float) -> None:
        """Connect, ring doorbells and sweep, for up to ``timeout`` seconds; no lane is drained here."""
        self._wake.wait(min(timeout, 0.25))
        self._wake.clear()
        now = time.monotonic()
        if self._push is None and now >= self._next_probe:
            self.try_connect()
        if self._push is None:
            return
        try:
            while self._due:
                self._doorbell.ring(self._due.pop())
            if now >= self._next_sweep:
                self._next_sweep = now + SWEEP_S
                for lane in self.idle_lanes():
                    self._doorbell.ring_again(lane)
        except RedisError as error:
            emit("doorbell_failed", level=logging.WARNING, reason=type(error).__name__)

    def ring(self, lane: int) -> None:
        """Ask for another turn at a lane."""
        with translated():
            self._doorbell.ring(lane)

    def idle_lanes(self) -> list[int]:
        """Lanes that have work and no live lease.

        Raises:
            RedisError: the server does not answer.
        """
        pipe = self.control.pipeline(transaction=False)
        for number in range(self._lanes):
            pipe.exists(self.keys.lane(number, "pending"), self.keys.lane(number, "flight"))
            pipe.exists(self.keys.lane(number, "lease"))
        found = pipe.execute()
        return [n for n in range(self._lanes) if found[2 * n] and not found[2 * n + 1]]

    # -- the drain

    def lease(self, lane: int, floor: int = 0) -> Lease | None:
        holder = f"{_holder()}:{secrets.token_hex(4)}"
        keys = [self.keys.lane(lane, part) for part in ("lease", "state", "flight")]
        token, *left = self._run("lease", keys, [holder, self._lease_ms, floor])
        if token == -1:
            return None
        before, items = left
        ours = before.decode().rpartition(":")[0] == _holder()
        return Lease(lane, int(token), f"{token}:{holder}", inherited=0 if ours else int(items))

    def claim(self, lease: Lease, max_entries: int, linger: float) -> list[Claimed]:
        keys = [self.keys.lane(lease.lane, part) for part in ("lease", "pending", "flight", "state")]
        while True:
            now_ms = int(time.time() * 1000)
            args = [lease.holder, self._lease_ms, max_entries, MAX_CLAIM_BYTES, int(linger * 1000), now_ms]
            state, *items = self._run("claim", keys, args)
            if state == -1:
                raise LeaseLost(f"lane {lease.lane}: the lease with token {lease.token} has passed on")
            if state == 0:
                return [from_item(item) for item in items]
            time.sleep(state / 1000)
            linger = 0.0

    def ack(self, lease: Lease, count: int) -> None:
        keys = [self.keys.lane(lease.lane, part) for part in ("lease", "flight", "state")]
        if self._run("ack", keys, [lease.holder, self._lease_ms, count]) == -1:
            raise LeaseLost(f"lane {lease.lane}: the lease with token {lease.token} has passed on")

    def release(self, lease: Lease, *, if_empty: bool = False) -> bool:
        keys = [self.keys.lane(lease.lane, part) for part in ("lease", "pending", "flight")]
        return bool(self._run("release", keys, [lease.holder, int(if_empty)]))

    @property
    def _lease_ms(self) -> int:
        return int(self.options.lease_s * 1000)

    def _run(self, script: str, keys: list[str], args: list[Any]) -> Any:
        with translated():
            return self._scripts[script](self.control, keys, args)

    # -- looking in

    def stats(self) -> list[LaneStats]:
        with translated():
            pipe = self.control.pipeline(transaction=False)
            for n in range(self._lanes):
                pipe.hmget(self.keys.lane(n, "state"), "pushed", "drained")
                pipe.lrange(self.keys.lane(n, "flight"), 0, -1)
                pipe.lindex(self.keys.lane(n, "pending"), 0)
                pipe.get(self.keys.lane(n, "lease"))
                pipe.pttl(self.keys.lane(n, "lease"))
            found = pipe.execute()
        return [self._lane_stats(n, *found[5 * n : 5 * n + 5]) for n in range(self._lanes)]

    def _lane_stats(
        self,
        lane: int,
        counts: list[bytes | None],
        flight: list[bytes],
        head: bytes | None,
        lease: bytes | None,
        ttl: int,
    ) -> LaneStats:
        held = int(counts[0] or 0) - int(counts[1] or 0)
        in_flight = sum(item_header(item)[1] for item in flight)
        oldest = flight[0] if flight else head
        age = max(0.0, time.time() - item_header(oldest)[0] / 1000) if oldest else None
        return LaneStats(
            lane,
            max(0, held - in_flight),
            in_flight,
            age,
            lease.decode().split(":", 1)[1] if lease else None,
            max(0.0, self.options.lease_s - ttl / 1000) if lease else None,
        )


class translated:
    """Redis's errors become :class:`BrokerUnavailable`."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RedisError):
            raise BrokerUnavailable(failure(error)) from error


def to_item(parcel: Parcel) -> bytes:
    """A parcel as a lane holds it: when it was pushed and how many entries it has, for the scripts; then JSON."""
    return b"%d:%d:%b" % (int(parcel.pushed * 1000), len(parcel.entries), encode(parcel))


def item_header(item: bytes) -> tuple[int, int]:
    """``(pushed, entries)`` of an item: Unix ms and a count; (0, 1) for what has no such header."""
    pushed, _, rest = item[:40].partition(b":")
    entries = rest.partition(b":")[0]
    return (int(pushed), int(entries)) if pushed.isdigit() and entries.isdigit() else (0, 1)


def from_item(item: bytes) -> Claimed:
    """The parcel in an item, or the item as poison."""
    try:
        return decode(item.split(b":", 2)[2])
    except (IndexError, MalformedParcel) as error:
        return Poison(item, str(error))
