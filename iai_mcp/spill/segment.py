"""A segment: one spill file, appended to by its owner, read in order, locked by its consumer.

A chain of segments belongs to the process that locks its *lowest* one, which every process takes first: two
consumers can never overtake each other.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from iai_mcp.common.files import write_all
from iai_mcp.entries.parcel import Parcel
from iai_mcp.entries.signature import Signer
from iai_mcp.entries.wire import decode, outline
from iai_mcp.errors import MalformedParcel
from iai_mcp.spill.names import SEGMENT_MAX, set_aside_path
from iai_mcp.storage.dead_letters import Raw
from iai_mcp.storage.locked_file import LockedFile
from iai_mcp.telemetry.events import emit

__all__ = ["NO_KEY", "Segment", "take_all", "take_leading"]

NO_KEY = Signer()


class Segment(LockedFile):
    """An open and locked spill file.

    Attributes:
        size: bytes of whole lines, as far as this process writes them.
        offset: bytes read.
        settled: bytes read for good: :meth:`rewind` goes back to here.
    """

    def __init__(self, path: Path, fd: int) -> None:
        super().__init__(path, fd)
        self.size = os.fstat(fd).st_size
        self.offset = 0
        self.settled = 0
        self._good = 0
        self._bad: list[bytes] = []
        self._unproven: list[Raw] = []
        self._before = (0, 0, 0)  # good, bad and unproven lines at the last settle

    def append(self, data: bytes, *, fsync: bool) -> None:
        """Add whole lines; after an error the file is as it was before.

        Raises:
            OSError: the disk is full, or the file cannot be written.
        """
        try:
            write_all(self._fd, data)
            if fsync:
                os.fsync(self._fd)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._fd, self.size)
            raise
        self.size += len(data)

    def read(self, store_id: str, limit: int, signer: Signer = NO_KEY) -> list[Parcel]:
        """Up to ``limit`` further parcels; :meth:`finish` sets aside the lines that are no parcels of this store.

        Lines that ``signer`` finds without a valid proof are the dead letters of :meth:`finish`. Follow a read
        with :meth:`settle` or :meth:`rewind`; reading on settles, too.
        """
        self.settle()
        parcels: list[Parcel] = []
        with open(self._fd, "rb", closefd=False) as file:
            file.seek(self.offset)
            while len(parcels) < limit and self.offset < self.size:
                line = file.readline()
                if not line:
                    break
                self.offset += len(line)
                if (fault := signer.fault(line.removesuffix(b"\n"))) is not None:
                    self._unproven.append(Raw(line.removesuffix(b"\n"), fault, True))
                elif (parcel := _parcel(line, store_id)) is None:
                    self._bad.append(line)
                else:
                    parcels.append(parcel)
        self._good += len(parcels)
        return parcels

    def settle(self) -> None:
        """Keep the last :meth:`read`: its parcels have been taken."""
        self.settled = self.offset
        self._before = (self._good, len(self._bad), len(self._unproven))

    def rewind(self) -> None:
        """Undo the last :meth:`read`."""
        self.offset = self.settled
        self._good, bad, unproven = self._before
        del self._bad[bad:]
        del self._unproven[unproven:]

    def start_over(self) -> None:
        """Undo every :meth:`read`."""
        self.offset = self._good = 0
        self._bad.clear()
        self._unproven.clear()
        self.settle()

    def content(self) -> bytes:
        """All bytes of the file.

        Raises:
            OSError: the file cannot be read.
        """
        with open(self._fd, "rb", closefd=False) as file:
            file.seek(0)
            return file.read(SEGMENT_MAX)

    def rewrite(self, change: Callable[[bytes], bytes]) -> None:
        """Replace each line by ``change(line)``, and remove the file where nothing is left.

        The lock is ours throughout: the new file is locked before it gets its name.

        Raises:
            OSError: the file cannot be read or replaced; it is as it was before.
        """
        lines = self.content().splitlines(keepends=True)
        data = b"".join(map(change, lines))
        if data == b"".join(lines):
            return
        if data:
            new = Segment.create(self.path, data)
            self._fd, new._fd, self.size = new._fd, self._fd, new.size
            new.close()
        else:
            os.unlink(self.path)

    def entries_left(self, until: float) -> int:
        """Number of entries that have not been read and settled, as far as they can be counted ``until`` then.

        Args:
            until: when to stop counting, in seconds of ``time.monotonic()``.
        """
        found = 0
        with suppress(OSError), open(self._fd, "rb", closefd=False) as file:
            file.seek(self.settled)
            for line in file:
                parcel = outline(line)
                found += len(parcel.seqs) if parcel is not None else 0
                if time.monotonic() >= until:
                    break
        return found

    @property
    def exhausted(self) -> bool:
        """Whether every line has been read and settled."""
        return self.settled >= self.size

    def finish(self, refuse: Callable[[Sequence[Raw]], None] | None = None) -> None:
        """Remove the file, all of whose entries are safe, and set its malformed lines aside.

        Args:
            refuse: keeps the lines without a valid proof.
        """
        if self._unproven and refuse is not None:
            refuse(self._unproven)
        if self._bad and not self._good and not self._unproven:
            aside = set_aside_path(self.path)
            os.rename(self.path, aside)
        else:
            if self._bad:
                aside = set_aside_path(self.path)
                _write_new(aside, b"".join(self._bad))
            with suppress(FileNotFoundError):
                os.unlink(self.path)
        if self._bad:
            emit("spill_set_aside", file=aside.name, lines=len(self._bad))
        self.close()


def take_all(paths: Sequence[Path]) -> list[Segment] | None:
    """The segments of one chain, lowest first; None where another process holds one of them.

    Raises:
        OSError: a file cannot be opened.
    """
    with ExitStack() as taken:
        segments = []
        for path in paths:
            if (segment := Segment.take(path)) is None:
                return None
            taken.callback(segment.close)
            segments.append(segment)
        taken.pop_all()
    return segments


def take_leading(paths: Sequence[Path]) -> list[Segment]:
    """The segments at the head of one chain, lowest first, up to one that another process holds.

    Raises:
        OSError: a file cannot be opened.
    """
    with ExitStack() as taken:
        segments = []
        for path in paths:
            if (segment := Segment.take(path)) is None:
                break
            taken.callback(segment.close)
            segments.append(segment)
        taken.pop_all()
    return segments


def _parcel(line: bytes, store_id: str) -> Parcel | None:
    try:
        parcel = decode(line)
    except MalformedParcel:
        return None
    return parcel if parcel.store == store_id else None


def _write_new(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
