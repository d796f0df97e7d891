"""File locks by ``flock``. The operating system frees the lock of a process that dies, so none grows stale."""

from __future__ import annotations

import fcntl
import os
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Self

from iai_mcp.common import forks
from iai_mcp.common.files import write_all
from iai_mcp.common.private import private_folder
from iai_mcp.common.regular_files import open_regular, reading

__all__ = ["LockedFile", "is_held", "lock_shared", "try_lock"]


def try_lock(fd: int, *, shared: bool = False) -> bool:
    """Lock an open file or folder without waiting; False where another holder is in the way.

    A lock that ``fd`` holds already is converted. A failed conversion may have released it.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_shared(fd: int) -> None:
    """Lock an open file together with others, and wait for that; an exclusive lock is converted.

    Raises:
        OSError: the file system has no locks.
    """
    fcntl.flock(fd, fcntl.LOCK_SH)


def is_held(path: Path) -> bool:
    """Whether a living process holds an exclusive lock on the file at this moment.

    Raises:
        OSError: the file cannot be opened; a file that is gone is not held.
    """
    with suppress(FileNotFoundError), reading(path) as file:
        return not try_lock(file.fileno(), shared=True)  # shared: two probes do not see each other
    return False


class LockedFile:
    """An open file that this process holds exclusively until :meth:`close`.

    Attributes:
        path: its present name.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd
        _open.add(self)

    @classmethod
    def create(cls, path: Path, data: bytes = b"", *, append: bool = True) -> Self:
        """A new file with ``data``, synced and locked before it gets its name: no other process takes it first.

        ``append``: every write goes to the end of the file, wherever it is aimed.

        Raises:
            OSError: it cannot be made; nothing is left of it.
        """
        made = cls.create_hidden(path.with_suffix(f".tmp{os.getpid()}"), data, append=append)
        try:
            made.rename(path)
        except BaseException:
            made.remove()
            raise
        return made

    @classmethod
    def create_hidden(cls, path: Path, data: bytes = b"", *, append: bool = True) -> Self:
        """A new locked file under a name that no other process looks for; :meth:`rename` publishes it.

        Raises:
            OSError: it cannot be made, or exists; nothing new is left.
        """
        private_folder(path.parent)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | (os.O_APPEND if append else 0), 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if data:
                write_all(fd, data)
                os.fsync(fd)
            return cls(path, fd)
        except BaseException:
            os.close(fd)
            with suppress(OSError):
                os.unlink(path)
            raise

    @classmethod
    def take(cls, path: Path, *, append: bool = True) -> Self | None:
        """The existing file, locked; None where a living process holds it, or it has just gone.

        Raises:
            OSError: the file cannot be opened, or is no regular one.
        """
        try:
            fd = open_regular(path, os.O_RDWR | (os.O_APPEND if append else 0))
        except FileNotFoundError:
            return None
        try:
            if try_lock(fd) and os.fstat(fd).st_nlink and os.path.samestat(os.fstat(fd), os.stat(path)):
                return cls(path, fd)
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return None

    def rename(self, path: Path) -> None:
        """Give the file another name; the lock stays.

        Raises:
            OSError: that cannot be done.
        """
        os.rename(self.path, path)
        self.path = path

    def remove(self) -> None:
        """Remove the file, if that can be done, and close it."""
        with suppress(OSError):
            os.unlink(self.path)
        self.close()

    def close(self) -> None:
        """Release the lock; the file stays, and another process may take it. Harmless when repeated."""
        fd, self._fd = self._fd, -1  # first: a thread that forks now must not find a number that is free again
        if fd >= 0:
            with suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_UN)  # a forked process may have the file open too
            os.close(fd)

    def unlock(self) -> None:
        """Release the lock and keep the file open.

        Raises:
            OSError: the file system has no locks.
        """
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def lock(self) -> bool:
        """Lock the file again after :meth:`unlock`; False where another process holds it, or has replaced it."""
        with suppress(FileNotFoundError):
            return try_lock(self._fd) and os.path.samestat(os.fstat(self._fd), os.stat(self.path))
        return False

    def _abandon(self) -> None:
        """Close a file that was inherited by a fork: the lock is the parent's, and stays with it."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with suppress(OSError):
                os.close(fd)


_open: weakref.WeakSet[LockedFile] = weakref.WeakSet()


def _in_child() -> None:
    for file in [*_open]:
        file._abandon()
    _open.clear()


forks.in_children(_in_child)
