"""Temporary folders on a store's disk, each locked by the process that uses it.

A later process removes the folders of processes that died.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from iai_mcp.common.regular_files import require_folder
from iai_mcp.storage.layout import Layout
from iai_mcp.storage.locked_file import try_lock

__all__ = ["scratch", "sweep"]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


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
        require_folder(layout.scratch)
        for folder in [*layout.scratch.iterdir()]:
            if not stat.S_ISDIR(os.lstat(folder).st_mode):
                continue
            fd = os.open(folder, _FOLDER)
            try:
                if try_lock(fd):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(fd)


def _own_folder(layout: Layout) -> tuple[Path, int]:
    require_folder(layout.scratch)
    while True:
        folder = layout.scratch / f"{os.getpid()}-{secrets.token_hex(4)}"
        layout.scratch.mkdir(mode=0o700, exist_ok=True)  # without parents: a store that is gone stays gone
        folder.mkdir(mode=0o700)
        with suppress(FileNotFoundError):  # a sweep came in between
            fd = os.open(folder, _FOLDER)
            with suppress(FileNotFoundError):
                if try_lock(fd) and os.path.samestat(os.fstat(fd), os.stat(folder)):
                    return folder, fd
            os.close(fd)
