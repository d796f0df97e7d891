"""One spill file: appended to by its owner, read in order, locked by whoever may consume it.

The lock is ``flock`` on the file itself, so the operating system frees it when its holder dies. A chain of
segments belongs to whoever holds its *lowest* one; nobody takes a higher one first, so two consumers can
never overtake each other.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from iai_mcp.entries.parcel import Parcel
from iai_mcp.entries.wire import decode
from iai_mcp.errors import MalformedParcel
from iai_mcp.telemetry.events import emit

__all__ = ["Segment", "failed_name", "is_held"]


def failed_name(path: Path) -> Path:
    """Where a malformed file, or the malformed lines of one, are set aside."""
    return path.with_name(f"{path.name.removesuffix('.jsonl')}.failed-{time.time_ns()}.jsonl")


class Segment:
    """An open and locked spill file."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.size = os.fstat(fd).st_size  # whole lines only, as far as this process writes them
        self.offset = 0  # read up to here
        self.settled = 0  # and up to here it is no more to be rewound
        self._fd = fd
        self._good = 0
        self._bad: list[bytes] = []
        self._before = (0, 0)

    @classmethod
    def create(cls, path: Path, data: bytes = b"") -> Segment:
        """A new segment, locked before it gets its name, so that nobody can adopt it in between."""
        made = cls.blank(path.with_suffix(f".tmp{os.getpid()}"))
        try:
            if data:
                made.append(data, fsync=True)
            made.rename(path)
        except BaseException:
            made.discard()
            raise
        return made

    @classmethod
    def blank(cls, path: Path) -> Segment:
        """An empty locked file under a name that no adopter looks for; :meth:`rename` makes a segment of it."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(fd)
            with suppress(OSError):
                os.unlink(path)
            raise
        return cls(path, fd)

    def rename(self, path: Path) -> None:
        """Give it its name."""
        os.rename(self.path, path)
        self.path = path

    def discard(self) -> None:
        """Remove it, unused."""
        with suppress(OSError):
            os.unlink(self.path)
        self.close()

    @classmethod
    def take(cls, path: Path) -> Segment | None:
        """An existing segment, unless a living process holds it or it has just gone."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_APPEND)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink and os.path.samestat(os.fstat(fd), os.stat(path)):
                return cls(path, fd)
        except (BlockingIOError, FileNotFoundError):
            pass
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return None

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

    def read(self, store_id: str, limit: int) -> list[Parcel]:
        """Up to ``limit`` further parcels; lines that are none of this store's are kept for :meth:`finish`.

        Follow it with :meth:`settle` or :meth:`rewind`; reading on settles, too.
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
                if (parcel := _parcel(line, store_id)) is None:
                    self._bad.append(line)
                else:
                    parcels.append(parcel)
        self._good += len(parcels)
        return parcels

    def settle(self) -> None:
        """What the last :meth:`read` gave has gone where it was meant to."""
        self.settled = self.offset
        self._before = (self._good, len(self._bad))

    def rewind(self) -> None:
        """Undo the last :meth:`read`."""
        self.offset = self.settled
        self._good, bad = self._before
        del self._bad[bad:]

    def start_over(self) -> None:
        """Undo every :meth:`read`."""
        self.offset = self._good = 0
        self._bad.clear()
        self.settle()

    def rewrite(self, change: Callable[[bytes], bytes]) -> None:
        """Put what ``change`` makes of each line in the file's place; gone where nothing is left of it.

        The lock is ours throughout: the new file is locked before it gets its name.
        """
        lines = self.path.read_bytes().splitlines(keepends=True)
        data = b"".join(map(change, lines))
        if data == b"".join(lines):
            return
        if data:
            whole = Segment.create(self.path, data)
            self._fd, whole._fd, self.size = whole._fd, self._fd, whole.size
            whole.close()
        else:
            os.unlink(self.path)

    @property
    def exhausted(self) -> bool:
        """Whether every line has been read, for good."""
        return self.settled >= self.size

    def finish(self) -> None:
        """Remove the file, all of whose entries are safe; what was malformed is set aside."""
        if self._bad and not self._good:
            aside = failed_name(self.path)
            os.rename(self.path, aside)
        else:
            if self._bad:
                aside = failed_name(self.path)
                _write_new(aside, b"".join(self._bad))
            with suppress(FileNotFoundError):
                os.unlink(self.path)
        if self._bad:
            emit("spill_set_aside", file=aside.name, lines=len(self._bad))
        self.close()

    def close(self) -> None:
        """Give the file up as it is; another process may take it from now on."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def is_held(path: Path) -> bool:
    """Whether a living process holds the file, at this moment."""
    with suppress(FileNotFoundError), open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two who look do not see each other
        except BlockingIOError:
            return True
    return False


def write_all(fd: int, data: bytes) -> None:
    """Write ``data``, in as many steps as that takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


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
