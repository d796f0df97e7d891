"""Sends one producer's pushes over one connection, each on condition that Redis still holds what it held.

The script ``push`` defines what a push does. Where the lanes are known to have room it goes as a transaction
(:mod:`iai_mcp.broker.redis.push_transaction`), which has the same effect and costs less. Data that were wiped or
replaced have another *epoch*: the script checks its name, the transaction watches its key.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import redis
from redis.exceptions import NoPermissionError

from iai_mcp.broker.redis.client import Deadline, Rest, ask, push_client, transacts
from iai_mcp.broker.redis.keys import Count, Keys
from iai_mcp.broker.redis.push_transaction import Transactions
from iai_mcp.broker.redis.resp import OTHER, Reply, integers
from iai_mcp.broker.redis.retained import Part
from iai_mcp.broker.redis.scripts import Script
from iai_mcp.broker.redis.stray import count_of

__all__ = ["EpochChanged", "Sender", "Sent"]

FULL = -1
OTHER_EPOCH = -2


class EpochChanged(Exception):
    """The data in Redis are not those that this producer pushed to: the push was not executed."""


class Sent(NamedTuple):
    """The outcome of sending a push.

    Attributes:
        reply: for each part how many entries its lane has ever been pushed, and how many items are pending there;
            ``[-1]`` where a lane is full; None where the server's answer did not come in time.
        further: the answer to the ``further`` command, where that went along and came in time.
        by_script: whether the script has pushed; the ``further`` command was not sent.
        sound: whether the connection may be used again, and the epoch was still the same after the push.
    """

    reply: list[int] | None
    further: list[int] | None = None
    sound: bool = True
    by_script: bool = False


class Sender:
    """One connection of a producer, and what it knows of the server behind it.

    Attributes:
        client: the connection.
        deadline: bounds what goes over it.
        epoch: the name of the data's epoch, as of :meth:`meet`.
        drained: how many entries of each lane were acknowledged, as last looked: never more than it is.
        round_trips: number of pushes and looks before them so far.

    Args:
        connection: any client of the server; its settings make the connection, within ``seconds``.
        keys: the names of the store's keys.
        lanes: the number of lanes.
        ceiling: most entries in one lane.
        scripts: by name, ``push``, ``meet`` and ``look`` among them.

    Raises:
        RedisError, OSError: the server cannot be reached.
    """

    def __init__(
        self,
        connection: redis.Redis,
        seconds: float,
        keys: Keys,
        lanes: int,
        ceiling: int,
        scripts: Mapping[str, Script],
    ) -> None:
        self.deadline = Deadline()
        self.deadline.within(seconds)
        self.client = push_client(connection, self.deadline)
        self.epoch = b""
        self._rest: Rest = (b"", [])  # the replies to WATCH and GET, where all is well
        self.drained = [0] * lanes
        self.round_trips = 0
        self._keys = keys
        self._lanes = lanes
        self._ceiling = ceiling
        self._scripts = scripts
        self._transacts = False  # whether this server lets us
        self._transactions = Transactions(keys, lanes)
        self._free = [0] * lanes  # how many entries would fit, as far as we know

    def meet(self, identity: str) -> list[int]:
        """Get to know the data behind the connection; how many entries each lane has ever been pushed.

        Args:
            identity: the server's, from :func:`iai_mcp.broker.redis.server.check_server`; it may be empty.

        Raises:
            RedisError: the server does not answer, is read-only, or refuses this.
            EpochChanged: another epoch begins at this moment; try again.
        """
        anew = f"{identity}.{secrets.token_hex(4)}"
        met = self._scripts["meet"](self.client, [self._keys.epoch], [identity, anew])
        self.epoch = met if isinstance(met, bytes) else str(met).encode()
        self._rest = b"\r\n+OK\r\n$%d\r\n%b\r\n" % (len(self.epoch), self.epoch), [OTHER, self.epoch]
        self._transacts = transacts(self.client)
        self.watch()
        return self.look()

    def watch(self) -> None:
        """Watch the epoch, so that the next transaction is refused where it has changed.

        Raises:
            EpochChanged: it has.
        """
        if self._transacts:
            try:
                self.client.execute_command("WATCH", self._keys.epoch)  # type: ignore[no-untyped-call]
            except NoPermissionError:
                self._transacts = False
        if self.client.get(self._keys.epoch) != self.epoch:
            raise EpochChanged

    def look(self) -> list[int]:
        """Learn how far pushes and drains have come; how many entries each lane has ever been pushed.

        An empty list says more than the counts: what was pushed has been drained.
        """
        each = range(self._lanes)
        keys = [self._keys.pushed, self._keys.counts, *[self._keys.lane(lane, "pending") for lane in each]]
        fields = [count.of(lane) for count in (Count.PUSHED, Count.DRAINED) for lane in each]
        reply: list[Any] = self._scripts["look"](self.client, keys, fields)
        pushed, drained = ([*map(count_of, reply[n * self._lanes : (n + 1) * self._lanes])] for n in (0, 1))
        self.drained = [
            come if length == 0 else gone
            for come, gone, length in zip(pushed, drained, reply[2 * self._lanes :], strict=True)
        ]
        self._free = [self._ceiling + gone - come for come, gone in zip(pushed, self.drained, strict=True)]
        return pushed

    def send(self, parts: Sequence[Part], further: bytes = b"") -> Sent:
        """Push parts, as a transaction followed by a ``further`` command, or as a script where that did not work.

        An entry that is pushed twice counts once, by its key. The script comes without the ``further`` command.

        Raises:
            EpochChanged: nothing was pushed.
            RedisError, OSError: the server does not answer, or with an error.
        """
        if self._fits(parts) and self._transacts:
            sent = self._transact(parts, further)
            if sent is not None:
                return sent
            self._transacts = False  # not again before this connection is renewed
        return Sent(self._run_script(parts, self._ceiling), by_script=True)

    def send_again(self, parts: Sequence[Part]) -> list[int]:
        """Push parts that the lanes have held before, whatever their ceiling; each one's end.

        Raises:
            EpochChanged, RedisError, OSError: as of :meth:`send`.
        """
        reply = self._transact(parts, b"") if self._transacts else None
        if reply is not None and (reply.reply is None or not reply.sound):
            raise EpochChanged
        ends = reply.reply if reply is not None else self._run_script(parts, 1 << 53)
        return (ends or [])[::2]

    def _transact(self, parts: Sequence[Part], further: bytes) -> Sent | None:
        """Push in one transaction; None where it failed, so that the script has to be run."""
        self.round_trips += 1
        commands, head = self._transactions.commands(parts) + further, self._transactions.head(len(parts))
        client = self.client
        found = ask(client, commands, head, 4) if further else ask(client, commands, head, 3, self._rest)
        if found[0] is None:
            raise EpochChanged
        if (reply := integers(found[0])) is None:
            return None
        return Sent(reply, integers(_at(found, 3)), sound=_at(found, 2) == self.epoch)

    def _fits(self, parts: Sequence[Part]) -> bool:
        """Whether the lanes have room, as far as this producer knows; where they have none, it looks again.

        Other producers push too, so a lane may pass its ceiling by one push of each of them.
        """
        for lane, entries, _ in parts:
            if entries > self._free[lane]:
                break
        else:
            return True
        self.round_trips += 1
        self.look()
        return all(entries <= self._free[lane] for lane, entries, _ in parts)

    def _run_script(self, parts: Sequence[Part], ceiling: int) -> list[int]:
        """The same push as a script, which keeps to the ceiling even when other producers push."""
        self.round_trips += 1
        keys = [self._keys.pushed, self._keys.epoch, *[self._keys.lane(lane, "pending") for lane, _, _ in parts]]
        args: list[Any] = [self.epoch]
        for lane, entries, item in parts:
            # A parcel above the ceiling fits an empty lane.
            args += (Count.PUSHED.of(lane), self.drained[lane] + max(ceiling, entries), item, entries)
        reply: list[int] = self._scripts["push"](self.client, keys, args)
        if reply[0] == OTHER_EPOCH:
            raise EpochChanged
        return reply

    def pushed(self, parts: Sequence[Part], ends: Sequence[int]) -> None:
        """Note how many entries each part's lane had ever been pushed after it."""
        for (lane, _, _), end in zip(parts, ends, strict=True):
            self._free[lane] = self.drained[lane] + self._ceiling - end


def _at(found: Sequence[Reply], place: int) -> Reply:
    return found[place] if len(found) > place else None
