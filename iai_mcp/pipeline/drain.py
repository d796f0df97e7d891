"""The drain: moves the entries of one lane from a broker into the store. It is the same for every broker.

An entry is acknowledged only after the commit that holds it is durable. A crash therefore repeats work and loses
none, and the entry's key makes the repetition harmless. Entries keep the lane's order: a batch that fails is
retried in its place, then halved until the malformed entry is found.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from iai_mcp.broker.protocol import Claimed, DrainBroker, Lease, MalformedItem
from iai_mcp.entries.batch import EntryBatch
from iai_mcp.entries.parcel import Pair
from iai_mcp.errors import BrokerUnavailable, LeaseLost
from iai_mcp.pipeline.ports import ProvenanceStore
from iai_mcp.storage.dead_letters import DeadLetters, Raw
from iai_mcp.storage.tables.known_records import RecordsCache
from iai_mcp.storage.tables.write_right import WriteRight
from iai_mcp.telemetry import observer
from iai_mcp.telemetry.events import emit

__all__ = ["DrainPolicy", "DrainReport", "EntryWriter", "Outcome", "drain"]


class Outcome(StrEnum):
    """How a drain ended."""

    EMPTY = "empty"  # the lane is empty
    LEASED = "leased"  # another drain holds the lease
    LOST = "lost"  # the lease passed on meanwhile
    STORE_UNAVAILABLE = "store_unavailable"  # the storage is unavailable; the batch stays in flight
    BROKER = "broker"  # the broker did not answer
    TIME = "time"  # the deadline has passed


@dataclass(frozen=True, slots=True)
class DrainPolicy:
    """How a drain batches and retries.

    Attributes:
        max_batch: most entries in one write.
        linger: seconds that the oldest entry waits for company, from its push.
        tries: attempts at a whole batch before it is halved.
        backoff: seconds before the second attempt; doubles with each.
        wait: sleeps for so many seconds; true once the drain has to stop (an event's ``wait``).
    """

    max_batch: int = 256
    linger: float = 0.05
    tries: int = 4
    backoff: float = 0.05
    wait: Callable[[float], object] = time.sleep


@dataclass(slots=True)
class DrainReport:
    """What one call of :func:`drain` did, in entries; ``batches`` are commits."""

    lane: int
    outcome: Outcome = Outcome.EMPTY
    applied: int = 0
    duplicate: int = 0
    unknown: int = 0
    dead: int = 0
    batches: int = 0
    taken_over: int = 0  # entries that another process had left in flight
    error: BaseException | None = None


def drain(
    store: ProvenanceStore,
    broker: DrainBroker,
    lane: int,
    cache: RecordsCache,
    policy: DrainPolicy,
    *,
    deadline: float | None = None,
) -> DrainReport:
    """Drain ``lane`` until it is empty, or until ``deadline`` (``time.monotonic()``) has passed.

    ``cache`` is the lane's own, the same for every call. Trouble with the storage, the broker or the lease is the
    report's outcome and never raised; no entry is lost by it.
    """
    report = DrainReport(lane)
    lease: Lease | None = None
    try:
        lease = broker.lease(lane, store.lane(lane).token)
        if lease is None:
            report.outcome = Outcome.LEASED
            return report
        writer = EntryWriter(store, cache, policy, report, _raise_fence(store, lease))
        while lease is not None:
            if not _drain_batch(store, broker, lease, writer):
                lease = None
            elif deadline is not None and time.monotonic() >= deadline:
                report.outcome = Outcome.TIME
                break
    except (LeaseLost, BrokerUnavailable, OSError) as error:
        report.outcome, report.error = _outcome_of(error), error
        if report.outcome is Outcome.LOST:
            emit("lease_lost", level=logging.WARNING, lane=lane)
    finally:
        if lease is not None:
            with suppress(BrokerUnavailable):  # the lease expires by itself
                broker.release(lease)
        observer.now.drained(report.applied, report.duplicate, report.unknown, report.dead)
    return report


def _raise_fence(store: ProvenanceStore, lease: Lease) -> WriteRight | None:
    """Shut out every earlier holder of the lane; None where no other process can hold a lease."""
    if lease.token is None:
        return None
    store.lane(lease.lane).raise_fence(lease.token)
    return WriteRight(lease.lane, lease.token)


def _drain_batch(store: ProvenanceStore, broker: DrainBroker, lease: Lease, writer: EntryWriter) -> bool:
    """Claim, write and acknowledge one batch; False once the lane is empty and its lease given back."""
    watched = observer.now.batch(lease.lane)
    claimed = broker.claim(lease, writer.policy.max_batch, writer.policy.linger)
    if not claimed:
        return not broker.release(lease, if_empty=True)
    watched.claimed(claimed)
    _note_takeover(writer.report, lease, claimed)
    with broker.keep(lease):
        writer.write(claimed)
        watched.written()
        broker.ack(lease, len(claimed))
        watched.acknowledged()
        store.lane(lease.lane).maintain()
    return True


def _note_takeover(report: DrainReport, lease: Lease, claimed: Sequence[Claimed]) -> None:
    """Tell of a batch that another process had in flight, once."""
    if lease.inherited and not report.taken_over:
        report.taken_over = sum(len(item.seqs) for item in claimed if not isinstance(item, MalformedItem))
        emit("takeover", lane=lease.lane, items=lease.inherited, entries=report.taken_over)


def _outcome_of(error: BaseException) -> Outcome:
    if isinstance(error, LeaseLost):
        return Outcome.LOST
    return Outcome.BROKER if isinstance(error, BrokerUnavailable) else Outcome.STORE_UNAVAILABLE


class EntryWriter:
    """Writes claimed items to the store in order; an entry that cannot be written becomes a dead letter.

    Args:
        cache: known records; of one lane where there is a ``right``.
        report: counts what became of the entries.
        right: the lease under which it writes; None without one.
    """

    def __init__(
        self,
        store: ProvenanceStore,
        cache: RecordsCache,
        policy: DrainPolicy,
        report: DrainReport,
        right: WriteRight | None = None,
    ) -> None:
        self.policy = policy
        self.report = report
        self._store = store
        self._cache = cache
        self._right = right
        self._dead: list[tuple[Pair, str]] = []

    def write(self, claimed: Sequence[Claimed]) -> None:
        """Write all of it.

        Raises:
            OSError: the storage is unavailable; the call may be repeated.
            LeaseLost: the right to write has passed on.
        """
        self._dead = []
        malformed = [item for item in claimed if isinstance(item, MalformedItem)]
        self._write_entries(EntryBatch.of([item for item in claimed if not isinstance(item, MalformedItem)]))
        if malformed:  # after the write: a batch that is tried again leaves no letter twice
            self._set_aside(malformed)
        for pair, reason in self._dead:
            self._dead_letter(pair, reason)

    def _write_entries(self, entries: EntryBatch) -> None:
        """Halve a batch that fails until it is written or a single entry, which becomes a dead letter."""
        most = self.policy.max_batch
        at, size = 0, most
        while at < len(entries):
            part = entries[at : at + size]
            error = self._attempt(part, self.policy.tries if size == most or len(part) == 1 else 1)
            if error is None:
                size = min(most, size * 2)
            elif len(part) > 1:
                size = len(part) // 2
                continue
            else:
                self._dead.append((part[0], f"{type(error).__name__}: {error}"))
            at += len(part)

    def _attempt(self, part: EntryBatch, tries: int) -> Exception | None:
        """Write one batch, ``tries`` times at most; the last error that concerns the batch, None once written."""
        for attempt in range(1, tries + 1):
            try:
                self._append(part)
            except (OSError, LeaseLost, BrokerUnavailable):
                raise  # a smaller batch would fail as well
            except Exception as error:
                last = error
                found = {"lane": self.report.lane, "entries": len(part), "attempt": attempt}
                emit("write_failed", level=logging.WARNING, **found)
                if attempt < tries and self.policy.wait(self.policy.backoff * 2 ** (attempt - 1)):
                    raise BrokerUnavailable("stopping; the batch stays in flight") from error
            else:
                return None
        return last

    def _append(self, part: EntryBatch) -> None:
        """One call of the store; it takes a ``right`` only where another process could hold one."""
        further = {} if self._right is None else {"right": self._right}
        result = self._store.append_provenance_batch(part, records_cache=self._cache, **further)
        self.report.batches += 1
        self.report.applied += getattr(result, "applied", len(part))
        self.report.duplicate += getattr(result, "duplicate", 0)
        self.report.unknown += getattr(result, "unknown", 0)

    def _set_aside(self, items: Sequence[MalformedItem]) -> None:
        raws = [Raw(item.raw, item.reason, item.unproven) for item in items]
        DeadLetters(self._store.layout).add_raws(self.report.lane, raws)
        self.report.dead += len(items)

    def _dead_letter(self, pair: Pair, reason: str) -> None:
        DeadLetters(self._store.layout).add_entry(self.report.lane, pair, reason)
        self.report.dead += 1
        # Only the kind of error: its text may quote the entry.
        emit("dead_letter", level=logging.ERROR, lane=self.report.lane, kind=reason.split(":", 1)[0])
