"""The spill folder from outside: what lies in it, moving on what nobody holds, and forgetting within it.

A file that a living process holds is only ever looked at.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from iai_mcp.broker.protocol import Mark, RemoteBroker
from iai_mcp.config import overflow_dir
from iai_mcp.entries.wire import Outline, outline
from iai_mcp.pipeline.drain import DrainPolicy, DrainReport, EntryWriter
from iai_mcp.pipeline.ports import ProvenanceStore
from iai_mcp.pipeline.replay import STEP, ReplayCursor
from iai_mcp.spill.chain import adopt, orphans
from iai_mcp.spill.segment import Segment, is_held
from iai_mcp.storage.exclusions import ExclusionReason, Exclusions, Key
from iai_mcp.storage.tables.known_records import RecordsCache
from iai_mcp.telemetry.events import emit, quiet_words

__all__ = ["Moved", "SpillFile", "apply", "forget", "listing", "outlines", "push"]

DURABLE_S = 3.0  # a server that syncs every second confirms within this
_PRODUCER = re.compile(r"[0-9a-f]{8}-(?P<producer>[0-9a-f]{16})-\d{6,}")


@dataclass(frozen=True, slots=True)
class SpillFile:
    """One file of the spill folder.

    Attributes:
        store: the store whose entries it holds; None where no line says.
        oldest: Unix time at which the first of its entries was handed out.
        unreadable: lines that are no entries.
        held: whether a living process holds it, and will move it on.
        set_aside: whether it is out of the way for people to look at.
    """

    path: Path
    store: str | None
    producer: str | None
    lines: int
    entries: int
    unreadable: int
    bytes: int
    oldest: float | None
    held: bool
    set_aside: bool


@dataclass(frozen=True, slots=True)
class Moved:
    """What a replay did: files that are gone, entries in the store (or in Redis), files that had to stay."""

    files: int = 0
    applied: int = 0
    duplicate: int = 0
    unknown: int = 0
    dead: int = 0
    pushed: int = 0
    stayed: int = 0


def listing(folder: Path) -> list[SpillFile]:
    """Every spill file in ``folder``, by name, those of other stores and those set aside among them."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.name.endswith(".jsonl"))
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = []
    for path in paths:
        with suppress(FileNotFoundError, PermissionError):  # moved on while we looked; another user's
            found.append(_file(path))
    return found


def _file(path: Path) -> SpillFile:
    held, size = is_held(path), path.stat().st_size
    lines = [*outlines(path)]
    good = [line for line in lines if line is not None]
    name = _PRODUCER.match(path.name)
    return SpillFile(
        path=path,
        store=good[0].store if good else None,
        producer=good[0].producer if good else name["producer"] if name else None,
        lines=len(lines),
        entries=sum(len(line.seqs) for line in good),
        unreadable=len(lines) - len(good),
        bytes=size,
        oldest=min((line.pushed for line in good), default=None),
        held=held,
        set_aside=".failed-" in path.name,
    )


def outlines(path: Path) -> Iterator[Outline | None]:
    """What each line tells, None for one that tells nothing; the end of a line still being written is no line."""
    with open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n") or not is_held(path):
                yield outline(line)


# -- moving on


def apply(store: ProvenanceStore) -> Moved:
    """Write spill files that no living process holds to the store, in order, and remove them.

    An entry that cannot be written becomes a dead letter.

    Raises:
        StoreUnavailable: the storage is unavailable; what was not written is still in its file.
    """
    report, files = DrainReport(-1), 0
    writer = EntryWriter(store, RecordsCache(), DrainPolicy(), report)
    for chain in adopt(overflow_dir(store.settings), store.store_id):
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
    for chain in adopt(overflow_dir(store.settings), store.store_id):
        broker.open()
        before, cursor = chain.length, ReplayCursor(chain)
        while cursor.replay(broker, store.lanes) or (cursor.mark is not None and not chain.unread):
            if cursor.mark is None or not _becomes_durable(broker, cursor.mark):
                break
            chain.commit()
            if chain.empty:
                break
        files += before - chain.length
        pushed += chain.moved
        stayed += chain.length
        chain.close()
    return Moved(files=files, pushed=pushed, stayed=stayed)


def _becomes_durable(broker: RemoteBroker, mark: Mark) -> bool:
    """Whether everything up to ``mark`` becomes durable within a few seconds; else its files stay."""
    deadline = time.monotonic() + DURABLE_S
    while not (durable := broker.is_durable(mark)) and time.monotonic() < deadline:
        broker.wait_change(0.02)
    return durable


# -- forgetting


def forget(folder: Path, store_id: str, record_id: UUID, exclusions: Exclusions) -> None:
    """Take a deleted record's entries out of the files that nobody holds, and note that they were.

    In a file that is held they stay until their turn comes, at which they are left out.
    """
    for segments in orphans(folder, store_id):
        for segment in segments:
            _scrub(segment, record_id, exclusions)
    with suppress(OSError):
        for path in sorted(folder.glob("*.failed-*.jsonl")):
            if (aside := Segment.take(path)) is not None:
                _scrub(aside, record_id, exclusions)


def _scrub(segment: Segment, record_id: UUID, exclusions: Exclusions) -> None:
    names = record_id.hex.encode(), str(record_id).encode()

    def concerned(line: bytes) -> bool:
        return any(name in line for name in names)

    try:
        lines = segment.path.read_bytes().splitlines()
        if keys := [key for line in lines if concerned(line) for key in _keys_of(line, record_id)]:
            exclusions.add(ExclusionReason.FORGOTTEN, keys)
        segment.rewrite(lambda line: _without(line, record_id) if concerned(line) else line)
    except OSError as error:
        emit("forget_incomplete", level=logging.WARNING, file=segment.path.name, error=quiet_words(error))
    finally:
        segment.close()


def _keys_of(line: bytes, record_id: UUID) -> list[Key]:
    if (found := outline(line)) is None:
        return []
    return [(found.producer, seq) for one, seq in zip(found.ids, found.seqs, strict=False) if one == record_id.hex]


def _without(line: bytes, record_id: UUID) -> bytes:
    """The line without the record's entries; fields that this version does not know stay.

    Empty where no entry is left, and for a line that is no parcel.
    """
    try:
        parcel: dict[str, Any] = msgspec.json.decode(line)
        kept = [one != record_id.hex for one in parcel["ids"]]
        for name in ("ids", "seqs", "own"):
            parcel[name] = _picked(parcel[name], kept)
    except (msgspec.DecodeError, UnicodeDecodeError, TypeError, LookupError, AttributeError):
        return b""
    return msgspec.json.encode(parcel) + b"\n" if any(kept) else b""


def _picked(value: Any, kept: list[bool]) -> Any:
    """A column without what is not ``kept``; of several columns each."""
    if isinstance(value, dict):
        return {name: _picked(column, kept) for name, column in value.items()}
    return [*compress(value, kept)]
