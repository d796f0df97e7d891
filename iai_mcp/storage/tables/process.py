"""Which process may use LanceDB: the one that has used it first, and no fork of that one.

LanceDB 0.40 takes some of its state along into a forked child. Of 200 children that opened a table anew, read and
wrote it, 135 crashed. In further runs some hung, or read bytes that were not in the table. A parent that has only
imported it is harmless (200 of 200).
"""

from __future__ import annotations

import atexit
import gc
import os
from typing import Any

from iai_mcp.common import forks
from iai_mcp.errors import ForkedProcess

__all__ = ["Refused", "check", "claim", "refuse", "usable"]

_FORKED = -1
_user = 0  # id of the process that has used LanceDB; _FORKED: a process that this one was forked from
_kept: list[object] = []  # of a parent: to destroy a handle is to use it
_MESSAGE = (
    "this process was forked from one that had opened a store, and LanceDB does not survive a fork: open the "
    "store after the fork, or start the process with spawn or forkserver. In such a process only a provenance "
    "queue goes on"
)


def usable() -> bool:
    """Whether this process may use LanceDB."""
    return _user in (0, os.getpid())


def check() -> None:
    """Refuse a process that must not use LanceDB.

    Raises:
        ForkedProcess: a process that this one was forked from has used it.
    """
    if not usable():
        raise ForkedProcess(_MESSAGE)


def claim() -> None:
    """Call this before each connection: from now on no fork of this process may use LanceDB.

    Raises:
        ForkedProcess: as of :func:`check`.
    """
    global _user
    check()
    if not _user:
        _user = os.getpid()
        atexit.register(_spare_the_shutdown)  # after LanceDB's own: this one runs before it


class Refused:
    """In the place of an object that a forked child must not touch."""

    def __getattr__(self, name: str) -> Any:
        check()
        raise AttributeError(name)


def refuse(owner: object, *names: str) -> None:
    """In a forked child: put :class:`Refused` in the place of these attributes of ``owner``."""
    for name in names:
        if not isinstance(found := getattr(owner, name), Refused):
            _kept.append(found)
            setattr(owner, name, Refused())


def _in_child() -> None:
    global _user
    if _user:
        _user = _FORKED


def _spare_the_shutdown() -> None:
    """LanceDB's exit hook waits for threads that a forked child does not have: five seconds, or for ever."""
    if not usable():
        for one in gc.get_objects():
            if type(one) is type(len) and one.__name__ == "shutdown_runtime":
                atexit.unregister(one)


forks.in_children(_in_child)
