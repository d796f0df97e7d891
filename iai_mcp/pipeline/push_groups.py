"""Groups the pushes of several threads: who waits for a push under way goes with the next one, all in one.

A call waits for at most the push that is under way and for its own, however many threads there are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from msgspec import Struct

from iai_mcp.entries.parcel import Parcel

__all__ = ["Call", "PushGroups"]


class Call(Struct):
    """One call of ``enqueue`` on its way.

    Attributes:
        parcels: what it hands over.
        spilled: whether the parcels went to the spill.
        error: why they were not taken; None where they were.
        done: whether its push is over.
    """

    parcels: list[Parcel]
    spilled: bool = False
    error: Exception | None = None
    done: bool = False


class PushGroups:
    """Gives each call its numbers and its place in one step, and pushes one group of calls at a time.

    Args:
        number: numbers the parcels of a call, which hold so many entries.
        push: pushes or spills the calls of a group, in order, and notes in each what became of it. It raises
            only what concerns the thread that runs it, such as an interrupt.
    """

    def __init__(self, number: Callable[[list[Parcel], int], None], push: Callable[[list[Call]], None]) -> None:
        self._number = number
        self._push = push
        self._lock = threading.Lock()  # held for a moment, never during a push
        self._change = threading.Condition(self._lock)
        self._waiting: list[Call] = []
        self._pushing = False

    def hand_over(self, parcels: list[Parcel], entries: int) -> Call:
        """Number and push ``parcels``, which hold so many ``entries``; the call, once it is done.

        An interrupt is raised only after the turn: the parcels have their numbers.
        """
        call = Call(parcels)
        group: list[Call] | None = None
        joined = False
        try:
            with self._lock:
                self._number(parcels, entries)
                self._waiting.append(call)
                joined = True
                group = self._next_group()
            if group is None:
                self._wait(call)
            else:
                self._lead(group)
        except BaseException:
            if joined and not call.done:  # interrupted before its turn began
                if group is None:
                    self._wait(call)
                else:
                    self._lead(group)
            raise
        return call

    def _next_group(self) -> list[Call] | None:
        """The calls that wait, for this thread to push; None while another thread pushes."""
        if self._pushing:
            return None
        self._pushing = True
        group, self._waiting = self._waiting, []
        return group

    def _lead(self, group: list[Call]) -> None:
        try:
            self._push(group)
        finally:
            with self._lock:
                self._pushing = False
                for call in group:
                    call.done = True
                if len(group) > 1 or self._waiting:
                    self._change.notify_all()

    def _wait(self, call: Call) -> None:
        """Wait until another thread has pushed ``call``, or push its group where it is the next one's turn."""
        interrupt: BaseException | None = None
        group: list[Call] | None = None
        while not call.done and group is None:
            try:
                with self._lock:
                    while not call.done and (group := self._next_group()) is None:
                        self._change.wait()
            except BaseException as error:  # noqa: BLE001  it is raised below
                interrupt = interrupt or error
        if group is not None:
            self._lead(group)
        if interrupt is not None:
            raise interrupt
