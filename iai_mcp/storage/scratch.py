"""Temporary folders on a store's disk, each locked by the process that uses it.

A later process removes the folders of processes that died.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from iai_mcp.common.private import private_folder
from iai_mcp.storage.layout import Layout
from iai_mcp.storage.locked_file import try_lock

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
    """Remove the folders of processes that died: links in them would keep forgotten text on the disk."""
    with suppress(OSError):
        for folder in [*layout.scratch.iterdir()]:
            fd = os.open(folder, os.O_RDONLY)
            try:
                if try_lock(fd):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(fd)


def _own_folder(layout: Layout) -> tuple[Path, int]:
    while True:
        folder = layout.scratch / f"{os.getpid()}-{secrets.token_hex(4)}"
        private_folder(folder)
        with suppress(FileNotFoundError):  # a sweep came in between
            fd = os.open(folder, os.O_RDONLY)
            with suppress(FileNotFoundError):
                if try_lock(fd) and os.path.samestat(os.fstat(fd), os.stat(folder)):
                    return folder, fd
            os.close(fd)
