"""Recovery: moves the spill files that no living process holds, to the store or back into the broker's lanes."""

from __future__ import annotations

import time
from dataclasses import dataclass

from iai_mcp.broker.protocol import Mark, RemoteBroker
from iai_mcp.config import overflow_dir
from iai_mcp.pipeline.drain import DrainPolicy, DrainReport, EntryWriter
from iai_mcp.pipeline.ports import ProvenanceStore
from iai_mcp.pipeline.replay import STEP, ReplayCursor
from iai_mcp.spill.adoption import adopt
from iai_mcp.spill.proof import Proof
from iai_mcp.storage.tables.known_records import RecordsCache

__all__ = ["Moved", "apply", "push"]

DURABLE_S = 3.0  # a server that syncs every second confirms within this


@dataclass(frozen=True, slots=True)
class Moved:
    """The outcome of a replay.

    Attributes:
        files: files that are gone.
        applied, duplicate, unknown, dead: entries by their outcome in the store.
        pushed: entries pushed to the broker.
        stayed: files that had to stay.
    """

    files: int = 0
    applied: int = 0
    duplicate: int = 0
    unknown: int = 0
    dead: int = 0
    pushed: int = 0
    stayed: int = 0


def apply(store: ProvenanceStore) -> Moved:
    """Write the entries to the store, in order, and remove the files.

    An entry that cannot be written becomes a dead letter.

    Raises:
        StoreUnavailable: storage unavailable; entries that were not written are still in their files.
    """
    report, files = DrainReport(-1), 0
    writer = EntryWriter(store, RecordsCache(), DrainPolicy(), report)
    for chain in adopt(overflow_dir(store.settings), store.store_id, Proof.of(store.settings, store.layout)):
        try:
            while not chain.empty:
                before = chain.length
                writer.write(chain.read(STEP))
                chain.settle()
                chain.commit()
                files += before - chain.length
        finally:
            chain.close()
    store.tidy()
    return Moved(files, report.applied, report.duplicate, report.unknown, report.dead)


def push(store: ProvenanceStore, broker: RemoteBroker) -> Moved:
    """Push spill files that no living process holds into the lanes of ``broker``, as far as it takes them."""
    files = pushed = stayed = 0
    for chain in adopt(overflow_dir(store.settings), store.store_id, Proof.of(store.settings, store.layout)):
        before, cursor = chain.length, ReplayCursor(chain)
        try:
            broker.open()
            broker.needs_replay()  # a doubt about an earlier chain: its files are still there
            while cursor.replay(broker, store.lanes) or (cursor.mark is not None and not chain.unread):
                if cursor.mark is None or not _becomes_durable(broker, cursor.mark):
                    break
                chain.commit()
                if chain.empty:
                    break
            files += before - chain.length
            pushed += chain.moved
            stayed += chain.length
        finally:
            chain.close()
    return Moved(files=files, pushed=pushed, stayed=stayed)


def _becomes_durable(broker: RemoteBroker, mark: Mark) -> bool:
    """Whether everything up to ``mark`` becomes durable within a few seconds; else its files stay."""
    deadline = time.monotonic() + DURABLE_S
    while not (durable := broker.is_durable(mark)) and time.monotonic() < deadline:
        broker.wait_change(0.02)
    return durable
