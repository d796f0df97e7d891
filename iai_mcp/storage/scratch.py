"""Scratch folders on a store's disk. Each belongs to one process; after its death the next process removes it."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from iai_mcp.storage.layout import Layout

__all__ = ["scratch", "sweep"]


@contextmanager
def scratch(layout: Layout) -> Iterator[Path]:
    """An empty folder for the block.

    Raises:
        OSError: it cannot be made.
    """
    folder, fd = _own_folder(layout)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(fd)
        with suppress(OSError):
            layout.scratch.rmdir()


def sweep(layout: Layout) -> None:
    """Remove what processes that died have left; links in there would keep forgotten texts on the disk."""
    with suppress(OSError):
        for folder in [*layout.scratch.iterdir()]:
            fd = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            except BlockingIOError:
                pass  # a living process works there
            finally:
                os.close(fd)


def _own_folder(layout: Layout) -> tuple[Path, int]:
    while True:
        folder = layout.scratch / f"{os.getpid()}-{secrets.token_hex(4)}"
        folder.mkdir(parents=True, mode=0o700)
        with suppress(FileNotFoundError):  # a sweep came in between
            fd = os.open(folder, os.O_RDONLY)
            with suppress(BlockingIOError, FileNotFoundError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(fd), os.stat(folder)):
                    return folder, fd
            os.close(fd)
