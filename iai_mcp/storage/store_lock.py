"""The store lock: shared while a process has the store open, exclusive while one changes the number of lanes.

The operating system frees the lock of a process that dies, so a lock never grows stale.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path

from iai_mcp.errors import StoreInUse, StoreUnavailable

__all__ = ["StoreLock"]

_NO_FILE = (errno.EROFS, errno.EACCES)  # a process that cannot write here does no harm


class StoreLock:
    """One open store; closed with it.

    Raises:
        StoreUnavailable: another process is changing the number of lanes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        try:
            path.parent.mkdir(exist_ok=True, mode=0o700)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise StoreUnavailable(
                f"the number of lanes of the store at {path.parent.parent} is being changed; try again after that"
            ) from None
        except OSError as error:
            self.close()
            if error.errno not in _NO_FILE:
                raise StoreUnavailable(f"cannot open the store: {path}: {error.strerror}") from error

    def be_alone(self) -> None:
        """Take the lock exclusively.

        Raises:
            StoreInUse: another process has the store open, or this one has it open twice.
        """
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with suppress(OSError):  # a failed upgrade may have let go of what was held
                fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            others = ", ".join(_told(pid) for pid in _holders(self._fd) if pid != os.getpid())
            where = others or "another process, or once more in this one"
            raise StoreInUse(f"the store is open in {where}: stop every client and worker of it first") from None

    def share(self) -> None:
        """Share the lock again."""
        fcntl.flock(self._fd, fcntl.LOCK_SH)

    def close(self) -> None:
        """Give the lock back; harmless where that is done already."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()


def _holders(fd: int) -> list[int]:
    """The processes that lock the file, as far as this system tells (Linux does)."""
    found = os.fstat(fd)
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    pids = set()
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if "FLOCK" in fields and device in fields:
                pids.add(int(fields[fields.index(device) - 1]))
    return sorted(pids)


def _told(pid: int) -> str:
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        command = " ".join(word for word in words if word)
        return f"process {pid} ({command if len(command) <= 60 else f'{command[:59]}…'})"
    return f"process {pid}"
