"""Makes written files survive a power cut, and replaces small files whole.

LanceDB does not sync its files and folders, so a power cut could undo an acknowledged commit. Callers run
:func:`sync_tree` between the commit and the acknowledgement.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from iai_mcp.common.regular_files import LOG_MAX, lines_of, open_regular, reading

__all__ = ["append_lines", "read_lines", "replace_file", "sync_path", "sync_tree", "write_all"]

_T = TypeVar("_T")
_SLACK_S = 2.0  # file systems keep times to a second or two


def sync_tree(folder: Path, *, since: float | None = None) -> None:
    """Wait until all data written below ``folder`` is on the disk.

    On Linux one ``syncfs`` (below 1 ms beside an 11 ms merge); elsewhere an fsync of each file and folder
    modified after ``since`` (Unix time; None: all of them).

    Raises:
        OSError: the disk reports that it could not write.
    """
    if _syncfs is not None:
        fd = os.open(folder, os.O_RDONLY)
        try:
            _syncfs(fd)
        finally:
            os.close(fd)
        return
    sync_files(folder, since=since)


def sync_files(folder: Path, *, since: float | None = None) -> None:
    """The portable form of :func:`sync_tree`: files first, then the folders that name them."""
    cutoff = 0.0 if since is None else since - _SLACK_S
    for parent, _, names in os.walk(folder, topdown=False):
        for path in [*(os.path.join(parent, name) for name in names), parent]:
            with suppress(FileNotFoundError):  # a compaction may remove what we are about to sync
                found = os.lstat(path)
                if found.st_mtime >= cutoff and (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
                    sync_path(path)


def replace_file(path: Path, data: bytes, *, mode: int = 0o600, sync: bool = True) -> None:
    """Replace the file at ``path`` by ``data`` in one step: readers see the old file or the new one.

    The same holds after a crash of the process, and with ``sync`` after a power cut.

    ``mode`` counts whatever the umask is.

    Raises:
        OSError: the file cannot be written; the old one is unchanged, unless only the last sync failed.
    """
    temp = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}.tmp")
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(temp, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temp)
        raise
    if sync:
        sync_path(str(path.parent))


def append_lines(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Add whole lines to the end of ``path``, durably, in one write.

    The torn end of an earlier append becomes a line of its own, which readers skip.

    Raises:
        OSError: the file cannot be written, or the disk is full.
    """
    fd = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, mode=mode)
    try:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            data = b"\n" + data
        if os.write(fd, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(fd)
    finally:
        os.close(fd)


def read_lines(path: Path, kind: type[_T]) -> Iterator[_T]:
    """The JSON lines of an append-only log as ``kind``, none where there is no file.

    A line that is none, torn by a power cut, is left out.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        file = reading(path, limit=LOG_MAX)
    except FileNotFoundError:
        return
    with file:
        for line in lines_of(file):
            with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                yield msgspec.json.decode(line, type=kind)


def write_all(fd: int, data: bytes) -> None:
    """Write all of ``data``, in as many steps as that takes.

    Raises:
        OSError: the file cannot be written, or the disk is full; a part may be written.
    """
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def sync_path(path: str | Path) -> None:
    """Wait until the file or folder at ``path`` is on the disk; for a folder, the names in it.

    Raises:
        OSError: the path cannot be opened, or the disk cannot write.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if sys.platform == "darwin":
            import fcntl

            with suppress(OSError):  # plain fsync leaves the drive's cache unflushed on macOS
                fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
                return
        os.fsync(fd)
    finally:
        os.close(fd)


def _load_syncfs() -> Callable[[int], None] | None:
    if not sys.platform.startswith("linux"):
        return None
    function = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if function is None:
        return None

    def call(fd: int) -> None:
        if function(fd) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"syncfs: {os.strerror(code)}")

    return call


_syncfs = _load_syncfs()
