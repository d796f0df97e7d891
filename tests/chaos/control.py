"""The control of a long run: what the machine alone takes from a process that waits and writes as a producer does.

Each turn waits for a timer, as a push that gets no answer does, then creates, fills, renames and removes a file in
the folder of the spill, and notes the milliseconds beyond those that it had asked for. Neither Redis nor any of
iai-mcp has a part in it, so what it loses is lost to the scheduler, to the host or to the disk.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

LINE = b"x" * 1000  # as long as a recall of three entries in the spill


def main(path: str, folder: str, pause: str) -> None:
    out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    go, stop = Path(path).parent / "go", Path(path).parent / "stop"
    while not stop.exists():
        if not go.exists():
            time.sleep(0.05)
            continue
        os.write(out, b"%.3f\n" % turn(Path(folder), float(pause)))


def turn(folder: Path, pause: float) -> float:
    """One turn: the milliseconds that it took beyond ``pause`` seconds."""
    began = time.perf_counter()
    time.sleep(pause)
    write(folder, os.close)
    return (time.perf_counter() - began - pause) * 1000


def write(folder: Path, end: Callable[[int], None]) -> None:
    """What a spill does for its first line and its last; ``end`` gets the file's descriptor."""
    folder.mkdir(parents=True, exist_ok=True)
    temp, name = folder / "control.tmp", folder / "control.file"
    file = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.rename(temp, name)
    os.write(file, LINE)
    end(file)
    os.unlink(name)


if __name__ == "__main__":
    main(*sys.argv[1:])
