"""The lock under which one lane, or the records table, is written on this machine.

It keeps commits of several writers from colliding, which costs LanceDB retries and can double a new key.
It is not the guarantee: a writer that could not get the lock in time goes on, and stays correct, only
slower (it merges on keys, readers keep one row per entry, compaction removes the rest).
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from iai_mcp.telemetry.events import emit

__all__ = ["WriterLock"]


class WriterLock:
    """A mutex between the threads of this process, and a file lock between processes.

    The operating system drops the file lock of a killed process at once.
    """

    def __init__(self, path: Path, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self._mutex = threading.Lock()
        self._file = filelock.FileLock(path, timeout=timeout, poll_interval=0.005)
        self._given_up = False  # a paused process holds it; to wait every time would outlast every lease

    @contextmanager
    def hold(self) -> Iterator[bool]:
        """Hold the lock for the block; yields False where it was not to be had within the timeout.

        Raises:
            OSError: the lock file cannot be opened (the store's folder is gone, or not writable).
        """
        with self._mutex:
            held = self._acquire()
            try:
                yield held
            finally:
                if held:
                    self._file.release()

    def _acquire(self) -> bool:
        if not self._path.parent.is_dir():  # filelock would make it, and a store that is away must stay away
            raise FileNotFoundError(errno.ENOENT, "the store's folder is gone", str(self._path.parent))
        try:
            self._file.acquire(timeout=0 if self._given_up else self._timeout)
            self._given_up = False
        except filelock.Timeout:
            self._given_up = True
            emit("lock_timeout", lock=self._path.name, seconds=self._timeout)
            return False
        return True
