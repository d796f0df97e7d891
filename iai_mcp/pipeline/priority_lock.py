"""Whose turn it is at the broker: recalls wait for a step of the replay only so long, and go before the next."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["PriorityLock"]


class PriorityLock:
    """One lock with two kinds of takers: a caller at a time, and one background thread.

    A bare lock is not fair. On a busy machine a thread that releases it and takes it again at once wins each time,
    before a waiting thread wakes up.

    Args:
        callers: what a caller holds for as long as it has to do with this at all.
        patience_s: most seconds that a caller waits.
    """

    def __init__(self, callers: threading.Lock, patience_s: float) -> None:
        self._lock = threading.Lock()
        self._callers = callers
        self._patience = patience_s
        self._wanted = False

    def take(self) -> float | None:
        """A caller's turn, until :meth:`leave`: the seconds that it waited, or None where patience ran out."""
        if self._lock.acquire(blocking=False):
            return 0.0
        began = time.monotonic()
        self._wanted = True
        taken = self._lock.acquire(timeout=self._patience)
        self._wanted = False
        return time.monotonic() - began if taken else None

    def leave(self) -> None:
        """The end of a caller's turn."""
        self._lock.release()

    @contextmanager
    def step(self) -> Iterator[None]:
        """The background thread's turn; a caller that waits has its own first."""
        if self._wanted:
            with self._callers:
                pass
        with self._lock:
            yield
