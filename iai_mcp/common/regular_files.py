"""Opens files that others may have put there: regular ones only, without following a link or waiting for a peer.

A pipe, a socket, a folder, a device or a link is refused with :class:`UnfitFile`, in bounded time. So is a file
that is larger than its content can be.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from iai_mcp.errors import UnfitFile

__all__ = [
    "DOCUMENT_MAX",
    "LINE_MAX",
    "LOG_MAX",
    "NOTE_MAX",
    "lines_of",
    "odd_kind",
    "open_regular",
    "read_regular",
    "reading",
    "require_folder",
]

NOTE_MAX = 2**16  # bytes of a lock's note, a token or a secret
DOCUMENT_MAX = 2**26  # bytes of a JSON document that is read whole
LOG_MAX = 2**32  # bytes of an append-only log
LINE_MAX = 2**28  # bytes of one line of a log

_SAFE = os.O_NONBLOCK | os.O_CLOEXEC
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_REFUSED = {errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EISDIR, errno.EOPNOTSUPP, errno.ENODEV}


def odd_kind(path: str | Path, limit: int | None = None) -> str | None:
    """What ``path`` is, such as "a pipe", where it is no regular file of at most ``limit`` bytes; else None.

    Raises:
        OSError: it is not there, or cannot be looked at.
    """
    found = os.lstat(path)
    if limit is not None and stat.S_ISREG(found.st_mode) and found.st_size > limit:
        return f"larger than {limit:,} bytes"
    return _odd(found.st_mode)


def require_folder(path: Path) -> None:
    """Check that ``path`` is a folder and no link, or missing.

    Raises:
        UnfitFile: it is something else.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(mode):
        raise UnfitFile(errno.ENOTDIR, f"is {_odd(mode) or 'a file'} and no folder", str(path))


def open_regular(
    path: str | Path,
    flags: int = os.O_RDONLY,
    *,
    mode: int = 0o600,
    limit: int | None = None,
    follow: bool = False,
) -> int:
    """Open a regular file; its descriptor.

    Args:
        flags: of ``os.open``.
        limit: maximum size in bytes.
        follow: whether ``path`` may be a link to a regular file.

    Raises:
        UnfitFile: it is no regular file, a link, or too large.
        OSError: it cannot be opened.
    """
    try:
        fd = os.open(path, flags | _SAFE | (0 if follow else os.O_NOFOLLOW), mode)
    except OSError as error:
        if error.errno in _REFUSED and (kind := _kind_now(path, follow=follow)) is not None:
            raise _unfit(path, kind) from None
        raise
    try:
        found = os.fstat(fd)
        if (kind := _odd(found.st_mode)) is not None:
            raise _unfit(path, kind)
        if limit is not None and found.st_size > limit:
            raise UnfitFile(errno.EFBIG, f"is larger than {limit:,} bytes", str(path))
    except BaseException:
        os.close(fd)
        raise
    return fd


def reading(path: str | Path, *, limit: int | None = None, follow: bool = False) -> BinaryIO:
    """A regular file, open for reading. Arguments and errors as of :func:`open_regular`."""
    return os.fdopen(open_regular(path, limit=limit, follow=follow), "rb")


def read_regular(path: str | Path, limit: int, *, follow: bool = False) -> bytes:
    """The content of a regular file of at most ``limit`` bytes. Errors as of :func:`open_regular`."""
    with reading(path, limit=limit, follow=follow) as file:
        data = file.read(limit + 1)
    if len(data) > limit:  # it has grown since
        raise UnfitFile(errno.EFBIG, f"is larger than {limit:,} bytes", str(path))
    return data


def lines_of(file: BinaryIO, limit: int = LINE_MAX) -> Iterator[bytes]:
    """The lines of a file. Of a longer one the first ``limit`` bytes come, and the end of the line."""
    while line := file.readline(limit):
        cut = line
        while len(cut) == limit and not cut.endswith(b"\n"):
            cut = file.readline(limit)
            if cut.endswith(b"\n"):
                line += b"\n"
        yield line


def _odd(mode: int) -> str | None:
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "of an unknown kind")


def _kind_now(path: str | Path, *, follow: bool) -> str | None:
    try:
        return _odd((os.stat if follow else os.lstat)(path).st_mode)
    except OSError:
        return None


def _unfit(path: str | Path, kind: str) -> UnfitFile:
    return UnfitFile(errno.EINVAL, f"is {kind} and no regular file", str(path))
