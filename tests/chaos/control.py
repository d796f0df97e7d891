"""The control: what the machine alone takes from a process, or a thread, that waits and writes as a producer does.

Each turn waits for a timer, as a push that gets no answer does, then creates, fills, renames and removes a file in
the folder of the spill, and notes the milliseconds beyond those that it had asked for. Neither Redis nor any of
iai-mcp has a part in it, so what it loses is lost to the scheduler, to the host or to the disk.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Self

__all__ = ["Beside"]

LINE = b"x" * 1000  # as long as a recall of three entries in the spill


def main(path: str, folder: str, pause: str) -> None:
    out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    go, stop = Path(path).parent / "go", Path(path).parent / "stop"
    while not stop.exists():
        if not go.exists():
            time.sleep(0.05)
            continue
        os.write(out, b"%.3f\n" % turn(Path(folder), float(pause)))


def turn(folder: Path, pause: float, *, fsync: bool = False) -> float:
    """One turn: the milliseconds that it took beyond ``pause`` seconds."""
    began = time.perf_counter()
    time.sleep(pause)
    write(folder, fsync=fsync)
    return (time.perf_counter() - began - pause) * 1000


def write(folder: Path, *, fsync: bool) -> None:
    """What a spill does for its first line and its last; with ``fsync`` as it does where it is synced."""
    folder.mkdir(parents=True, exist_ok=True)
    temp, name = folder / "control.tmp", folder / "control.file"
    file = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.rename(temp, name)
    os.write(file, LINE)
    if fsync:
        os.fsync(file)
    os.close(file)
    os.unlink(name)


class Beside:
    """The control as a thread, for the block of a test; ``worst_ms`` is the longest of its turns so far."""

    def __init__(self, folder: Path, pause: float, *, fsync: bool) -> None:
        self.worst_ms = 0.0
        self._turn = lambda: turn(folder, pause, fsync=fsync)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._over.is_set():
            self.worst_ms = max(self.worst_ms, self._turn())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
