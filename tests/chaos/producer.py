"""One client process of the fault suite: recalls at a steady pace and writes its history.

It works while the file ``go`` lies in its folder, idles while it does not, and ends with the file ``stop``
or after its time.
"""

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
    folder = Path(path).parent
    queue = ProvenanceWriteQueue(MemoryStore())
    queue.start()
    recorder = Recorder(Path(path), name)
    known = [UUID(record) for record in records]
    chance = random.Random(name)
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end and not (folder / "stop").exists():
        if (folder / "go").exists():
            recorder.enqueue(queue, chance.sample(known, 3))
        time.sleep(float(pause))
    queue.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
