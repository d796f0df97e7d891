"""Instrumentation hooks of the write pipeline; they do nothing until an observer registers.

The pipeline calls the methods of :data:`now`. Without a registered observer a call costs some nanoseconds. An
observer derives from :class:`Observer` and is registered with :func:`watch`; see :mod:`iai_mcp.telemetry.tracing`
and ``iai_mcp.metrics``. Observers also get every event of :mod:`iai_mcp.telemetry.events`, at any log level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Self

from iai_mcp.common import forks
from iai_mcp.telemetry import events

if TYPE_CHECKING:
    from iai_mcp.entries.parcel import Parcel

__all__ = ["Batch", "Enqueue", "Observer", "Recalled", "now", "unwatch", "watch"]


class _Block:
    """A context manager that does nothing."""

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        """Called at the end of the block, also after an error."""


class Recalled(_Block):
    """One recall, from the cue to the hand-over of its entries."""

    __slots__ = ()

    def stages(self, seconds: Mapping[str, float]) -> None:
        """Seconds of each stage, in the order in which they ran, and of ``total``."""


class Enqueue(_Block):
    """One call of ``enqueue``, including the wait for the lock. An error that leaves the block means refused."""

    __slots__ = ()

    def carrying(self, parcels: list[Parcel]) -> list[Parcel]:
        """The parcels to push. An observer may add what the drain needs, such as a trace context."""
        return parcels

    def spilled(self, *, journal: bool) -> None:
        """The entries went to the local spill. ``journal``: the settings ask for it, the broker did not fail."""


class Batch:
    """One batch of a drain, made right before the claim. A failed batch gets no further call."""

    __slots__ = ()

    def claimed(self, parcels: Sequence[object]) -> None:
        """These items are in flight now: parcels and malformed items."""

    def written(self) -> None:
        """The entries are in the store, durably. Entries that cannot be stored are dead letters."""

    def acknowledged(self) -> None:
        """The broker has dropped the batch."""


class Observer:
    """Base class of observers. Its methods do nothing. The pipeline's threads call them: return quickly.

    Attributes:
        in_children: whether the observer stays registered in a forked child. Its locks must survive that.
    """

    in_children = True

    def recalling(self) -> Recalled:
        """A recall begins."""
        return _RECALLED

    def enqueuing(self, entries: int) -> Enqueue:
        """A call of ``enqueue`` begins."""
        return _ENQUEUE

    def batch(self, lane: int) -> Batch:
        """A drain is about to claim a batch of ``lane``."""
        return _BATCH

    def committed(self, merge_s: float, sync_s: float) -> None:
        """A lane's table took rows. ``merge_s``: seconds of the merge; ``sync_s``: seconds to make it durable."""

    def drained(self, applied: int, duplicate: int, unknown: int, dead: int) -> None:
        """A drain ended: numbers of entries by outcome."""

    def event(self, name: str, fields: Mapping[str, object]) -> None:
        """:func:`iai_mcp.telemetry.events.emit` was called."""


_RECALLED, _ENQUEUE, _BATCH = Recalled(), Enqueue(), Batch()
_IDLE = Observer()
_registered: tuple[Observer, ...] = ()

now: Observer = _IDLE
"""The current observer. Read it at each use: it changes when observers are registered."""


def watch(observer: Observer) -> None:
    """Register ``observer`` beside those that are registered already."""
    _set((*_registered, observer))


def unwatch(observer: Observer) -> None:
    """Undo :func:`watch`."""
    _set(tuple(one for one in _registered if one is not observer))


def _set(observers: tuple[Observer, ...]) -> None:
    global _registered, now
    _registered = observers
    now = _IDLE if not observers else observers[0] if len(observers) == 1 else _Several(observers)
    events.listeners = tuple(one.event for one in observers)


def _in_child() -> None:
    _set(tuple(one for one in _registered if one.in_children))


forks.in_children(_in_child)

# -- several observers at once


class _SeveralBlocks(Recalled, Enqueue):
    __slots__ = ("_all",)

    def __init__(self, blocks: Sequence[_Block]) -> None:
        self._all = blocks

    def __enter__(self) -> Self:
        for block in self._all:
            block.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        for block in reversed(self._all):
            block.__exit__(kind, error, trace)

    def stages(self, seconds: Mapping[str, float]) -> None:
        for block in self._all:
            if isinstance(block, Recalled):
                block.stages(seconds)

    def carrying(self, parcels: list[Parcel]) -> list[Parcel]:
        for block in self._all:
            if isinstance(block, Enqueue):
                parcels = block.carrying(parcels)
        return parcels

    def spilled(self, *, journal: bool) -> None:
        for block in self._all:
            if isinstance(block, Enqueue):
                block.spilled(journal=journal)


class _SeveralBatches(Batch):
    __slots__ = ("_all",)

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._all = batches

    def claimed(self, parcels: Sequence[object]) -> None:
        for batch in self._all:
            batch.claimed(parcels)

    def written(self) -> None:
        for batch in self._all:
            batch.written()

    def acknowledged(self) -> None:
        for batch in self._all:
            batch.acknowledged()


class _Several(Observer):
    def __init__(self, observers: Sequence[Observer]) -> None:
        self._all = observers

    def recalling(self) -> Recalled:
        return _SeveralBlocks([one.recalling() for one in self._all])

    def enqueuing(self, entries: int) -> Enqueue:
        return _SeveralBlocks([one.enqueuing(entries) for one in self._all])

    def batch(self, lane: int) -> Batch:
        return _SeveralBatches([one.batch(lane) for one in self._all])

    def committed(self, merge_s: float, sync_s: float) -> None:
        for one in self._all:
            one.committed(merge_s, sync_s)

    def drained(self, applied: int, duplicate: int, unknown: int, dead: int) -> None:
        for one in self._all:
            one.drained(applied, duplicate, unknown, dead)
