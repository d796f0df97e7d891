"""Many entries through one broker, then a whole count: ``python -m tests.chaos.volume --entries 10000000``.

Clients recall as fast as the broker takes it, ten entries a call. Workers, or the embedded drain, empty the lanes.
Once all is drained, ``verify`` reads every row: each entry once, in the order of its producer, none lost. Exits 1
if that is not so.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from uuid import UUID

from iai_mcp.config import Settings
from iai_mcp.maintenance.verify import Report, verify
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.record import MemoryRecord
from iai_mcp.store import MemoryStore
from tests.servers import Server, worker
from tests.support import ROOT, entry, wait_until

RECORDS = 1000
CALL = 10  # entries
AHEAD = 200_000  # entries: a client does not run further ahead of the drain


def client(name: str, count: int, ids: list[UUID], store: MemoryStore) -> None:
    """Hand out ``count`` entries through a queue of its own, and wait until all are readable."""
    queue = ProvenanceWriteQueue(store, max_queue_size=AHEAD)
    queue.start()
    for turn in range(count // CALL):
        first = turn * 7
        chosen = [ids[(first + step * 31) % len(ids)] for step in range(CALL)]
        queue.enqueue([(one, entry(f"{name}:{turn}", rank=rank)) for rank, one in enumerate(chosen)])
        if turn % (AHEAD // CALL) == AHEAD // CALL - 1:
            wait_until(lambda: queue.flush(10), 600)
    wait_until(lambda: queue.flush(10), 600)
    queue.stop()


def in_process(settings: Settings, count: int, ids: list[UUID], clients: int) -> None:
    store = MemoryStore(settings=settings)
    client("p0", count, ids, store)
    store.close()


def over_redis(settings: Settings, count: int, ids: list[UUID], clients: int) -> None:
    """Two workers, and each client in a process of its own."""
    code = "import sys; from tests.chaos.volume import main_client; main_client(*sys.argv[1:])"
    assert settings.store is not None
    with (
        worker(settings.redis_url, settings.store, env=environment(settings)),
        worker(settings.redis_url, settings.store, env=environment(settings)),
    ):
        each = count // clients
        argv = [[sys.executable, "-c", code, f"p{n}", str(each), *map(str, ids)] for n in range(clients)]
        running = [subprocess.Popen(one, cwd=ROOT, env=environment(settings, whole=True)) for one in argv]
        assert [one.wait() for one in running] == [0] * clients


def main_client(name: str, count: str, *ids: str) -> None:
    client(name, int(count), [UUID(one) for one in ids], MemoryStore())


def environment(settings: Settings, *, whole: bool = False) -> dict[str, str]:
    import os

    own = {
        "IAI_MCP_STORE": str(settings.store),
        "IAI_MCP_REDIS_URL": settings.redis_url,
        "IAI_MCP_SPILL_DIR": str(settings.spill_dir),
        "IAI_MCP_EMBEDDER": "none",
        "IAI_MCP_LOG": "error",
    }
    return {**os.environ, **own} if whole else own


def run(folder: Path, broker: str, count: int, clients: int) -> tuple[Report, float]:
    """The report of ``verify``, and the seconds from the first entry until all were readable."""
    server = Server(folder / "redis").start() if broker == "redis" else None
    try:
        url = server.url if server else ""
        settings = Settings(store=folder / "store", spill_dir=folder / "spill", redis_url=url, embedder="none")
        store = MemoryStore(settings=settings)
        ids = store.insert_many([MemoryRecord(text=f"memory {number}") for number in range(RECORDS)])
        layout = store.layout
        store.close()
        began = time.monotonic()
        (over_redis if server else in_process)(settings, count, ids, clients)
        took = time.monotonic() - began
        return verify(layout, settings), took
    finally:
        if server:
            server.kill()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=2, help="client processes (redis)")
    parser.add_argument("--broker", choices=("embedded", "redis"), action="append", help="default: both")
    options = parser.parse_args()
    sound = True
    print("| broker | entries | applied | lost | doubled | out of order | entries/s |\n| :-- |" + " --: |" * 6)  # noqa: T201
    for broker in options.broker or ("embedded", "redis"):
        with tempfile.TemporaryDirectory() as folder:
            report, took = run(Path(folder), broker, options.entries, options.clients)
        total, lanes = report.total, report.lanes
        doubled, late = sum(lane.doubled for lane in lanes), sum(len(lane.out_of_order) for lane in lanes)
        rate = f"{options.entries / took:.0f}"
        cells = (
            total["handed_out"],
            total["applied"],
            total["lost"],
            doubled,
            late,
            rate,
        )
        print(f"| {broker} | {' | '.join(map(str, cells))} |", flush=True)  # noqa: T201
        for finding in report.breaches:
            print(f"{finding.kind}: {finding.message}", file=sys.stderr)  # noqa: T201
        sound = sound and report.clean and total["applied"] == options.entries
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
