"""Forks: calls in every forked child what must be made anew there, and functions at the end of any process.

Python calls the hooks after ``os.fork``. A server in C may fork without that: :func:`notice` finds
it out by the process id.
"""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from types import MethodType
from typing import Any

__all__ = ["AtExit", "bare", "in_children", "notice"]

_hooks: list[Callable[[], Callable[[], None] | None]] = []
_pid = os.getpid()
_bare = False


def in_children(renew: Callable[[], None]) -> None:
    """Call ``renew`` in every forked child, in the order of registration.

    An object that a bound method belongs to may go away meanwhile. ``renew`` runs in the midst of the fork. It
    takes no lock that another thread may have held, starts no thread and raises nothing.
    """
    for gone in [hook for hook in _hooks if hook() is None]:
        with suppress(ValueError):  # another thread has removed it
            _hooks.remove(gone)
    _hooks.append(weakref.WeakMethod(renew) if isinstance(renew, MethodType) else lambda: renew)


def notice() -> None:
    """Call the hooks if this process was forked without them."""
    global _bare
    if os.getpid() != _pid:
        _bare = True
        _renew()


def bare() -> bool:
    """Whether this process was forked without Python's hooks: it can start no thread."""
    return _bare


def _renew() -> None:
    global _pid
    _pid = os.getpid()
    for hook in [*_hooks]:
        if (renew := hook()) is not None:
            renew()


os.register_at_fork(after_in_child=_renew)


class AtExit:
    """Calls a function when this process ends, until :meth:`disarm`.

    A process that ``multiprocessing`` has started skips the hooks of ``atexit``, and runs finalizers instead.
    """

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._finalizer: Any = None

    def arm(self) -> None:
        """Call the function at the end; once, also where a parent of this process has armed it."""
        atexit.unregister(self._call)
        atexit.register(self._call)
        process = sys.modules.get("multiprocessing.process")  # importing it would take its time
        if process is not None and process.parent_process() is not None:
            from multiprocessing.util import Finalize

            self._finalizer = Finalize(None, self._call, exitpriority=10)

    def disarm(self) -> None:
        """Do not call it."""
        atexit.unregister(self._call)
        if self._finalizer is not None:
            self._finalizer.cancel()
            self._finalizer = None
