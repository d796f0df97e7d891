"""One client process of the fault suite: recalls at a steady pace and writes its history."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from uuid import UUID

from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.store import MemoryStore
from tests.chaos.history import Recorder


def main(name: str, path: str, seconds: str, pause: str, *records: str) -> None:
    store = MemoryStore()
    queue = ProvenanceWriteQueue(store)
    queue.start()
    recorder = Recorder(Path(path), name)
    known = [UUID(record) for record in records]
    chance = random.Random(name)
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        recorder.enqueue(queue, chance.sample(known, 3))
        time.sleep(float(pause))
    queue.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
