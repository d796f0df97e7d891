"""One client process of the fault suite: recalls at a steady pace and writes its history.

It works while the file ``go`` lies in its folder, idles while it does not, and ends with the file ``stop`` or
``stop-NAME``, or after its time. While the file ``fork`` is there it forks children that recall, too. While the
file ``bad`` is there it hands over bad entries in between, which are refused.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path
from typing import Any
from uuid import UUID

from iai_mcp.errors import BadParams
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.store import MemoryStore
from tests.chaos.history import Recorder

CHILDREN = 3  # of one producer
CHILD_S = 1.0


def main(name: str, path: str, seconds: str, pause: str, *records: str) -> None:
    folder = Path(path).parent
    queue = ProvenanceWriteQueue(MemoryStore())
    queue.start()
    recorder = Recorder(Path(path), name)
    known = [UUID(record) for record in records]
    chance = random.Random(name)
    end = time.monotonic() + float(seconds)
    forked = 0
    while time.monotonic() < end and not (folder / "stop").exists() and not (folder / f"stop-{name}").exists():
        if (folder / "go").exists():
            recorder.enqueue(queue, chance.sample(known, 3))
        if (folder / "bad").exists():
            refused(queue, [(chance.choice(known), entry) for entry in ({"cue": "good"}, bad())])
        if (folder / "fork").exists() and forked < CHILDREN:
            forked += 1
            child(queue, f"{name}c{os.getpid()}x{forked}", folder, known)
        time.sleep(float(pause))
    queue.stop()
    for _ in range(forked):
        os.wait()


def refused(queue: ProvenanceWriteQueue, pairs: list[tuple[UUID, dict[str, Any]]]) -> None:
    try:
        queue.enqueue(pairs)
    except BadParams:
        return
    raise AssertionError("a bad entry was taken")


def bad() -> dict[str, Any]:
    """An entry that contains itself."""
    entry: dict[str, Any] = {"cue": "bad"}
    entry["again"] = entry
    return entry


def child(queue: ProvenanceWriteQueue, name: str, folder: Path, known: list[UUID]) -> None:
    """Fork a child that recalls through the same queue for a moment, and ends in an orderly way."""
    if os.fork():
        return
    recorder = Recorder(folder / f"{name}.history", name)
    end = time.monotonic() + CHILD_S
    while time.monotonic() < end:
        recorder.enqueue(queue, known[:3])
        time.sleep(0.005)
    queue.stop()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
