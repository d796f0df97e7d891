"""The local spill: an ordered store-and-forward of JSON lines for what the broker does not take.

While anything is in it, nothing may overtake: the queue appends here and replays from the head. A line
leaves only when its entries are safe elsewhere, so a crash repeats lines and loses none; the entry's key
makes the repetition harmless. What a dead client left is adopted by the next one.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from iai_mcp.common.files import sync_path
from iai_mcp.config import Settings, overflow_dir
from iai_mcp.entries.parcel import Parcel
from iai_mcp.entries.wire import decode, encode
from iai_mcp.errors import MalformedParcel, SpillUnavailable
from iai_mcp.spill.segment import Segment, failed_name, is_held
from iai_mcp.telemetry.events import emit

__all__ = ["Chain", "Spill", "Waiting", "adopt", "orphans", "waiting"]

SEGMENT_BYTES = 8 * 2**20
Tail = tuple[str, int] | None
SPARE = ".spare"  # the end of the name of a file that was made ahead
_MIDDLE = 1_000_000  # numbers go up from here, and down for what is put in front
_NAME = re.compile(r"(?P<chain>[0-9a-f]{8}-[0-9a-f]{16})-(?P<number>\d{6,})\.jsonl")


class Chain:
    """Segments in order, read from the head and removed once :meth:`commit` says that they are safe."""

    def __init__(self, store_id: str, segments: list[Segment], *, level: int = logging.INFO) -> None:
        self._store_id = store_id
        self._segments = segments
        self._level = level
        self._files = self._entries = self._last_entries = 0  # that have left, since there were none
        self._total = 0
        self._uncommitted = 0  # entries read from the segment at the head
        self._mutex = threading.RLock()
        self._last: Segment | None = None

    @property
    def unread(self) -> bool:
        """Whether there are lines that :meth:`read` has not given yet, or whose way is not settled."""
        with self._mutex:
            return any(not segment.exhausted for segment in self._segments)

    @property
    def empty(self) -> bool:
        """Whether nothing is left on the disk."""
        return not self._segments

    def read(self, limit: int) -> list[Parcel]:
        """Up to ``limit`` parcels from the head segment: a step, which :meth:`settle` or :meth:`rewind` ends.

        A segment that has been read must be committed before the next one gives anything, so that files
        go one by one however long the chain is.
        """
        with self._mutex:
            if not self._segments:
                return []
            self._last = self._segments[0]
            parcels = self._last.read(self._store_id, limit)
            self._last_entries = sum(len(parcel.seqs) for parcel in parcels)
            self._entries += self._last_entries
            self._total += self._last_entries
            self._uncommitted += self._last_entries
            return parcels

    def settle(self) -> None:
        """What the last :meth:`read` gave has been taken: only from now on may anything go past it."""
        with self._mutex:
            if self._last is not None:
                self._last.settle()

    def rewind(self) -> None:
        """Put back what the last :meth:`read` gave."""
        with self._mutex:
            if self._last is not None:
                self._last.rewind()
                self._entries -= self._last_entries
                self._total -= self._last_entries
                self._uncommitted -= self._last_entries
                self._last_entries = 0

    def start_over(self) -> None:
        """Read everything again that was not committed: where it went, it may be lost."""
        with self._mutex:
            self._last = None
            self._entries -= self._uncommitted
            self._total -= self._uncommitted
            self._uncommitted = self._last_entries = 0
            for segment in self._segments:
                segment.start_over()

    @property
    def moved(self) -> int:
        """Number of entries read for good so far."""
        return self._total

    @property
    def length(self) -> int:
        """Number of files."""
        return len(self._segments)

    def commit(self) -> None:
        """Everything read so far is safe: remove the segments that hold nothing else."""
        done: list[Segment] = []
        with self._mutex:
            while self._segments and self._segments[0].exhausted:
                done.append(self._segments.pop(0))
                self._uncommitted = 0
            self._files += len(done)
            files, entries = self._files, self._entries
            if drained := bool(done) and not self._segments:
                self._files = self._entries = self._last_entries = 0
        for segment in done:  # a disk may take its time for this, and a recall must not wait for it
            segment.finish()
        if drained:
            emit("spill_drained", level=self._level, files=files, entries=entries)

    def close(self) -> None:
        """Give every segment up; what is in them stays for whoever adopts it."""
        with self._mutex:
            for segment in self._segments:
                segment.close()
            self._segments.clear()


class Spill(Chain):
    """The spill of one producer.

    Args:
        store_id: the store that the entries belong to; each line names it.
        producer: the producer's key; it names the files.
        folder: where to, asked anew for each new file.
        fsync: whether each append is forced to the disk (survives a power cut).
        level: of the events that tell of its filling and emptying; a journal does so all the time.
    """

    def __init__(
        self,
        store_id: str,
        producer: str,
        folder: Path,
        *,
        fsync: bool = False,
        max_bytes: int = SEGMENT_BYTES,
        level: int = logging.INFO,
    ) -> None:
        super().__init__(store_id, [], level=level)
        self._name = f"{store_id[:8]}-{producer}"
        self._folder = folder
        self._fsync = fsync
        self._max_bytes = max_bytes
        self._next = self._first = _MIDDLE
        self._elsewhere: list[Path] = []
        self._spare: Segment | None = None

    def prepare(self, folder: Path) -> None:
        """Make the next file ahead: a busy disk may take tens of ms for that, and no recall must wait for it.

        Raises:
            OSError: that cannot be done now; :meth:`append` then makes its own.
        """
        if self._spare is None:
            self._spare = Segment.blank(folder / f"{self._name}{SPARE}")

    def close(self) -> None:
        """Give every segment up; what is in them stays for whoever adopts it."""
        super().close()
        with self._mutex:
            spare, self._spare = self._spare, None
        if spare is not None:
            spare.discard()

    @property
    def active(self) -> bool:
        """Whether entries wait here, so that nothing may go past them."""
        return self.unread or self._adopted_elsewhere()

    def append(self, parcels: Sequence[Parcel], folder: Path) -> None:
        """Add one line for each parcel, below ``folder`` where a new file is needed.

        Raises:
            SpillUnavailable: the disk is full or the folder not writable; nothing was added.
        """
        data = b"".join(encode(parcel) + b"\n" for parcel in parcels)
        with self._mutex:
            try:
                fresh = not self._segments
                if fresh or self._segments[-1].size >= self._max_bytes:
                    self._segments.append(self._new_segment(folder))
                self._segments[-1].append(data, fsync=self._fsync)
            except OSError as error:
                raise SpillUnavailable(f"cannot spill to {folder}: {error.strerror or error}") from error
        if fresh:
            entries = sum(len(parcel.seqs) for parcel in parcels)
            emit("spill_started", level=self._level, folder=str(folder), entries=entries)

    def tail(self) -> Tail:
        """The present end."""
        with self._mutex:
            last = self._segments[-1] if self._segments else None
            return (last.path.name, last.size) if last else None

    def passed(self, tail: Tail) -> bool:
        """Whether everything up to ``tail`` has been taken, and nothing older is left elsewhere."""
        with self._mutex:
            read = tail is None or all(
                segment.settled >= (tail[1] if segment.path.name == tail[0] else segment.size)
                for segment in self._segments
                if segment.path.name <= tail[0]
            )
        return read and not self._adopted_elsewhere()

    def prepend(self, parcels: Sequence[Parcel], folder: Path) -> None:
        """Add lines in front of everything that waits here: a queue that stops gives back what is older.

        Raises:
            SpillUnavailable: as :meth:`append`.
        """
        with self._mutex:
            later, self._segments = self._segments, []
            self._next, end = self._first - 1, self._next
            try:
                self.append(parcels, folder)
                self._first -= 1
            finally:
                self._next = end
                self._segments += later

    def _new_segment(self, folder: Path) -> Segment:
        self._folder = folder
        path = folder / f"{self._name}-{self._next:07d}.jsonl"
        segment = self._from_spare(path) or Segment.create(path)
        if self._fsync:
            sync_path(folder)  # a line on the disk is of no use in a file without a name
        self._next += 1
        return segment

    def _from_spare(self, path: Path) -> Segment | None:
        spare, self._spare = self._spare, None
        if spare is not None:
            if spare.path.parent == path.parent:
                with suppress(OSError):  # somebody has tidied it away
                    spare.rename(path)
                    return spare
            spare.discard()
        return None

    def reopen(self) -> None:
        """Take back what an earlier :meth:`close` left; what somebody adopted since is waited for."""
        with self._mutex:
            paths = _chain_files(self._folder, self._name)
            segments = _take_chain(paths)
            if segments is None:
                self._elsewhere = paths
            else:
                self._segments[:0] = segments

    def _adopted_elsewhere(self) -> bool:
        if self._elsewhere:
            self._elsewhere = [path for path in self._elsewhere if path.exists()]
        return bool(self._elsewhere)


def adopt(folder: Path, store_id: str) -> Iterator[Chain]:
    """Chains of this store in ``folder`` that no living process holds; malformed files are set aside.

    What killed clients of any store had made ahead is removed: nothing was ever written to it.
    """
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            if entry.name.endswith(SPARE) and not is_held(Path(entry.path)):
                os.unlink(entry.path)
    for segments in orphans(folder, store_id):
        if _owner(segments[0].path) is None:
            _set_aside(segments)
        else:
            emit("spill_adopted", files=len(segments))
            yield Chain(store_id, segments)


def orphans(folder: Path, store_id: str) -> Iterator[list[Segment]]:
    """The same chains as segments that are locked now, among them those that no line says the owner of."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if _is_spill(entry.name))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    for _, group in groupby(names, _chain_of):
        paths = [folder / name for name in group]
        if _owner(paths[0]) in (store_id, None) and (segments := _take_chain(paths)):
            if _owner(paths[0]) in (store_id, None):  # looked again under the lock
                yield segments
            else:
                for segment in segments:
                    segment.close()


@dataclass(frozen=True, slots=True)
class Waiting:
    """What lies in a spill folder for one store: files, lines and entries; and files set aside."""

    folder: str
    files: int = 0
    lines: int = 0
    entries: int = 0
    set_aside: int = 0


def waiting(settings: Settings, store_id: str) -> Waiting:
    """Look into the spill folder without touching anything."""
    folder = overflow_dir(settings)
    files = lines = entries = aside = 0
    with suppress(OSError):
        for path in folder.iterdir():
            aside += ".failed-" in path.name
            if not _is_spill(path.name) or _owner(path) != store_id:
                continue
            files += 1
            for line in path.read_bytes().splitlines():
                with suppress(MalformedParcel):
                    entries += len(decode(line).seqs)
                lines += 1
    return Waiting(str(folder), files, lines, entries, aside)


def _take_chain(paths: list[Path]) -> list[Segment] | None:
    """All of a chain's segments, lowest first; None where the lowest is somebody's."""
    segments: list[Segment] = []
    for path in paths:
        segment = Segment.take(path)
        if segment is None:
            for taken in segments:
                taken.close()
            return None
        segments.append(segment)
    return segments


def _set_aside(segments: list[Segment]) -> None:
    """No line of the first one says whose it is: out of the way with it, the others get their own look."""
    first, *others = segments
    aside = failed_name(first.path)
    with suppress(FileNotFoundError):
        os.rename(first.path, aside)
        emit("spill_set_aside", file=aside.name)
    first.close()
    for other in others:
        other.close()


def _owner(path: Path) -> str | None:
    """The store that the first whole line names; None where no line does."""
    with suppress(OSError), open(path, "rb") as file:
        for line in file:
            with suppress(MalformedParcel):
                return decode(line).store
    return None


def _is_spill(name: str) -> bool:
    return name.endswith(".jsonl") and ".failed-" not in name and not name.startswith(".")


def _chain_of(name: str) -> str:
    found = _NAME.fullmatch(name)
    return found["chain"] if found else name


def _chain_files(folder: Path, chain: str) -> list[Path]:
    with suppress(OSError):
        return sorted(path for path in folder.iterdir() if _is_spill(path.name) and _chain_of(path.name) == chain)
    return []
