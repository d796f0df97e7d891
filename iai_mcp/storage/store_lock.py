"""The lock of an open store: shared while a process uses it, exclusive while its number of lanes changes.

The operating system frees the lock of a process that dies, so it never grows stale.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from iai_mcp.common import forks
from iai_mcp.common.regular_files import open_regular
from iai_mcp.errors import StoreInUse, StoreUnavailable
from iai_mcp.storage.locked_file import lock_shared, try_lock

__all__ = ["StoreLock"]

_NOT_WRITABLE = (errno.EROFS, errno.EACCES)  # a process that cannot write here needs no lock


class StoreLock:
    """The shared lock of one open store.

    Args:
        path: the lock file, in the store's folder of locks.

    Raises:
        StoreUnavailable: another process is changing the number of lanes, or the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        forks.in_children(self._in_child)
        try:
            path.parent.mkdir(exist_ok=True, mode=0o700)
            self._fd = open_regular(path, os.O_RDWR | os.O_CREAT)
            free = try_lock(self._fd, shared=True)
        except OSError as error:
            self.close()
            if error.errno in _NOT_WRITABLE:
                return
            raise StoreUnavailable(f"cannot open the store: {path}: {error.strerror or error}") from error
        if not free:
            self.close()
            raise StoreUnavailable(
                f"the number of lanes of the store at {path.parent.parent} is being changed; try again after that"
            )

    def be_alone(self) -> None:
        """Turn the lock into an exclusive one: no other process can open the store from now on.

        Raises:
            StoreInUse: the store is open in another process, or a second time in this one.
        """
        if not try_lock(self._fd):
            with suppress(OSError):  # the failed conversion may have released the shared lock
                try_lock(self._fd, shared=True)
            raise StoreInUse(
                "the store is open in another process, or a second time in this one: stop every client and worker "
                f"of it first (`lsof {self._path}` names them)"
            )

    def share(self) -> None:
        """Turn the lock into a shared one again."""
        lock_shared(self._fd)

    def close(self) -> None:
        """Release the lock. Harmless when repeated."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_UN)  # a forked process may have the file open too
            os.close(fd)

    def _in_child(self) -> None:
        """A forked child takes a lock of its own: the inherited one is the parent's, and ends with it.

        Where it cannot have one, a change of lanes is under way; every ``enqueue`` finds that out.
        """
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        with suppress(OSError):
            os.close(fd)
            own = open_regular(self._path, os.O_RDWR)
            if try_lock(own, shared=True):
                self._fd = own
            else:
                os.close(own)

    def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not finalizing():  # the system releases it then; this module may be gone already
            self.close()
