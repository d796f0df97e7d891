"""The drain: moves the entries of one lane from a broker into the store, for every broker alike.

An entry is acknowledged only after the commit that holds it is durable, so a crash anywhere repeats work
and never loses any; the entry's key makes the repetition harmless. Order is the lane's: a batch that fails
is retried where it stands, and what concerns it alone is halved until the poison entry is found.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from iai_mcp.broker.protocol import Broker, Lease, MalformedItem
from iai_mcp.entries.batch import EntryBatch
from iai_mcp.entries.parcel import Pair
from iai_mcp.errors import BrokerUnavailable, LeaseLost
from iai_mcp.pipeline.ports import ProvenanceStore
from iai_mcp.storage.dead_letters import DeadLetters
from iai_mcp.storage.tables.known_records import RecordsCache
from iai_mcp.telemetry import observer
from iai_mcp.telemetry.events import emit

__all__ = ["DrainPolicy", "DrainReport", "Outcome", "drain", "write_pairs"]


class Outcome(StrEnum):
    """How a drain ended."""

    EMPTY = "empty"  # nothing is left in the lane
    LEASED = "leased"  # somebody else drains it
    LOST = "lost"  # the lease passed on while draining
    STORE_UNAVAILABLE = "store_unavailable"  # the store's place fails; what is in flight stays so
    BROKER = "broker"  # the broker did not answer
    TIME = "time"  # the time budget is spent


@dataclass(frozen=True, slots=True)
class DrainPolicy:
    """How a drain goes about it.

    Attributes:
        max_pairs: most entries in one write.
        linger: seconds, from the push of the oldest entry, to wait for company.
        tries: attempts at a whole batch before it is halved.
        backoff: seconds before the second attempt; doubles with each.
        wait: sleeps; true when the caller has been told to stop (an event's ``wait``).
    """

    max_pairs: int = 256
    linger: float = 0.05
    tries: int = 4
    backoff: float = 0.05
    wait: Callable[[float], object] = time.sleep


@dataclass(slots=True)
class DrainReport:
    """What one call of :func:`drain` did, in entries (``batches``: commits)."""

    lane: int
    outcome: Outcome = Outcome.EMPTY
    applied: int = 0
    duplicate: int = 0
    unknown: int = 0
    dead: int = 0
    batches: int = 0
    taken_over: int = 0  # that another process had in flight
    error: BaseException | None = None


def drain(
    store: ProvenanceStore,
    broker: Broker,
    lane: int,
    cache: RecordsCache,
    policy: DrainPolicy,
    *,
    deadline: float | None = None,
) -> DrainReport:
    """Drain ``lane`` until it is empty, or until ``deadline`` (``time.monotonic()``) has passed.

    ``cache`` belongs to this lane and is handed to every call. Never raises for trouble with the store's
    place, the broker or the lease: the report's outcome says which, and nothing was lost.
    """
    report = DrainReport(lane)
    lease: Lease | None = None
    try:
        lease = broker.lease(lane, store.lane(lane).token)
        if lease is None:
            report.outcome = Outcome.LEASED
            return report
        cache.token, cache.lane, cache.lanes = lease.token, lane, store.lanes
        if lease.token is not None:
            store.lane(lane).raise_fence(lease.token)
        while True:
            watched = observer.now.batch(lane)
            claimed = broker.claim(lease, policy.max_pairs, policy.linger)
            if not claimed:
                if broker.release(lease, if_empty=True):
                    lease = None
                    break
                continue
            watched.claimed(claimed)
            if lease.inherited and not report.taken_over:
                report.taken_over = sum(len(p.seqs) for p in claimed if not isinstance(p, MalformedItem))
                emit("takeover", lane=lane, items=lease.inherited, entries=report.taken_over)
            for item in claimed:
                if isinstance(item, MalformedItem):
                    _dead_letter(store, report, item.raw, item.reason)
            write_pairs(
                store, EntryBatch.of(p for p in claimed if not isinstance(p, MalformedItem)), cache, policy, report
            )
            watched.written()
            broker.ack(lease, len(claimed))
            watched.acknowledged()
            store.lane(lane).maintain()
            if deadline is not None and time.monotonic() >= deadline:
                report.outcome = Outcome.TIME
                break
    except LeaseLost as error:
        report.outcome, report.error = Outcome.LOST, error
        emit("lease_lost", level=logging.WARNING, lane=lane)
    except BrokerUnavailable as error:
        report.outcome, report.error = Outcome.BROKER, error
    except OSError as error:
        report.outcome, report.error = Outcome.STORE_UNAVAILABLE, error
    finally:
        if lease is not None:
            _release(broker, lease)
        observer.now.drained(report.applied, report.duplicate, report.unknown, report.dead)
    return report


def write_pairs(
    store: ProvenanceStore, pairs: Sequence[Pair], cache: RecordsCache, policy: DrainPolicy, report: DrainReport
) -> None:
    """Write ``pairs`` in order; what is sick is halved down to the entry and buried.

    Raises:
        OSError: the place fails; the call may be repeated.
    """
    at, size = 0, policy.max_pairs
    while at < len(pairs):
        part = pairs[at : at + size]
        tries = policy.tries if size == policy.max_pairs or len(part) == 1 else 1
        error = _write(store, part, cache, policy, tries, report)
        if error is None:
            size = min(policy.max_pairs, size * 2)
        elif len(part) > 1:
            size = len(part) // 2
            continue
        else:
            _dead_letter(store, report, part[0], f"{type(error).__name__}: {error}")
        at += len(part)


def _write(
    store: ProvenanceStore,
    part: Sequence[Pair],
    cache: RecordsCache,
    policy: DrainPolicy,
    tries: int,
    report: DrainReport,
) -> Exception | None:
    """One batch, ``tries`` times at most; the last error that concerns the batch, or None once written."""
    for attempt in range(tries):
        try:
            result = store.append_provenance_batch(part, records_cache=cache)
        except (OSError, LeaseLost, BrokerUnavailable):
            raise  # the place or the right to write: nothing that a smaller batch would cure
        except Exception as error:
            last = error
            emit(
                "write_failed",
                level=logging.WARNING,
                lane=report.lane,
                entries=len(part),
                attempt=attempt + 1,
            )
            if attempt + 1 < tries and policy.wait(policy.backoff * 2**attempt):
                raise BrokerUnavailable("stopping; the batch stays in flight") from error
        else:
            report.batches += 1
            report.applied += getattr(result, "applied", len(part))
            report.duplicate += getattr(result, "duplicate", 0)
            report.unknown += getattr(result, "unknown", 0)
            return None
    return last


def _dead_letter(store: ProvenanceStore, report: DrainReport, what: Pair | bytes, reason: str) -> None:
    letters = DeadLetters(store.layout)
    if isinstance(what, bytes):
        letters.add_raw(report.lane, what, reason)
    else:
        letters.add_entry(report.lane, what, reason)
    report.dead += 1
    # Only the kind of error: its text may quote the entry.
    emit("dead_letter", level=logging.ERROR, lane=report.lane, kind=reason.split(":", 1)[0])


def _release(broker: Broker, lease: Lease) -> None:
    with suppress(BrokerUnavailable):  # it expires by itself
        broker.release(lease)
