"""Instrumentation hooks of the write pipeline; they do nothing until an observer registers.

The pipeline tells :data:`now` what it does. Without an observer that costs some nanoseconds. An observer (see
:mod:`iai_mcp.metrics.instruments` and :mod:`iai_mcp.telemetry.tracing`) derives from :class:`Observer` and is
registered with :func:`watch`. Events of :mod:`iai_mcp.telemetry.events` reach observers too, at any log level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Self

from iai_mcp.telemetry import events

if TYPE_CHECKING:
    from iai_mcp.entries.parcel import Parcel

__all__ = ["Batch", "Enqueue", "Observer", "Recalled", "now", "unwatch", "watch"]


class _Block:
    """A block that nobody watches."""

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        """The end of the block, however it came."""


class Recalled(_Block):
    """One recall, from the cue to its entries being handed over."""

    __slots__ = ()

    def stages(self, seconds: Mapping[str, float]) -> None:
        """How long each stage took, in the order that they ran, and ``total``."""


class Enqueue(_Block):
    """One call of ``enqueue``, the wait for its turn included; leaving it with an error means refused."""

    __slots__ = ()

    def carrying(self, parcels: list[Parcel]) -> list[Parcel]:
        """The parcels, marked with what whoever drains them needs to go on watching."""
        return parcels

    def spilled(self, *, journal: bool) -> None:
        """They went to the local spill; ``journal``: as the settings ask, and not for want of the broker."""


class Batch:
    """One batch of a drain; made right before the claim. One that fails says no more."""

    __slots__ = ()

    def claimed(self, parcels: Sequence[object]) -> None:
        """These are in flight now: parcels, and what is no parcel."""

    def written(self) -> None:
        """What can be is in the store, durably; the rest is buried."""

    def acknowledged(self) -> None:
        """The broker has let go of it."""


class Observer:
    """Watches nothing; each method may be overridden. They are called on the pipeline's threads: be quick."""

    def recalling(self) -> Recalled:
        """A recall begins."""
        return _RECALLED

    def enqueuing(self, entries: int) -> Enqueue:
        """Entries are about to be handed to the broker."""
        return _ENQUEUE

    def batch(self, lane: int) -> Batch:
        """A drain is about to claim a batch of ``lane``."""
        return _BATCH

    def committed(self, merge_s: float, sync_s: float) -> None:
        """A lane's table took rows: seconds of the merge, and of making it durable."""

    def drained(self, applied: int, duplicate: int, unknown: int, dead: int) -> None:
        """How many entries of a drain ended in which way."""

    def event(self, name: str, fields: Mapping[str, object]) -> None:
        """Something was logged with :func:`iai_mcp.telemetry.events.emit`."""


_RECALLED, _ENQUEUE, _BATCH = Recalled(), Enqueue(), Batch()
_NOBODY = Observer()
_watching: tuple[Observer, ...] = ()

now: Observer = _NOBODY
"""Whom the pipeline tells; look it up anew each time."""


def watch(observer: Observer) -> None:
    """Let ``observer`` watch this process from now on, beside those that do already."""
    _set((*_watching, observer))


def unwatch(observer: Observer) -> None:
    """Undo :func:`watch`."""
    _set(tuple(one for one in _watching if one is not observer))


def _set(observers: tuple[Observer, ...]) -> None:
    global _watching, now
    _watching = observers
    now = _NOBODY if not observers else observers[0] if len(observers) == 1 else _Several(observers)
    events.listeners = tuple(one.event for one in observers)


# -- several at once


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
