"""A fair lock: a recall waits a bounded time for a replay step and goes ahead of the next one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["PriorityLock"]


class PriorityLock:
    """One lock with two kinds of takers: a caller at a time, and one background thread.

    A bare lock is not fair: on a busy machine a thread that releases it and takes it again at once does so before
    a waiting thread has woken up, step after step.

    Args:
        callers: the lock that a caller holds around :meth:`take` and :meth:`leave`.
        patience_s: most seconds that a caller waits.
    """

    def __init__(self, callers: threading.Lock, patience_s: float) -> None:
        self._lock = threading.Lock()
        self._callers = callers
        self._patience = patience_s
        self._wanted = False

    def take(self) -> float | None:
        """Take the lock until :meth:`leave`; the seconds waited, or None where that took too long."""
        if self._lock.acquire(blocking=False):
            return 0.0
        began = time.monotonic()
        self._wanted = True
        try:
            taken = self._lock.acquire(timeout=self._patience)
        finally:  # also after an interrupt: a step would wait for this caller for ever
            self._wanted = False
        return time.monotonic() - began if taken else None

    def leave(self) -> None:
        """Release the lock."""
        self._lock.release()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Hold the lock on the background thread; a waiting caller goes first."""
        if self._wanted:
            with self._callers:
                pass
        with self._lock:
            yield
