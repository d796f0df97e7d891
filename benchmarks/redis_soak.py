"""Pushes 200,000 entries through Redis with eight producers and two workers, and checks every single one.

Run with ``python benchmarks/redis_soak.py``. Each producer is a process with a queue of its own, and enqueues
recalls of five entries as fast as it can. Half of them have the default budget of 10 ms for a push, which eight
busy processes on a few cores overrun all the time: most of what they enqueue goes by way of the spill. The other
half wait for Redis. At the end every entry must be readable once, and the entries of one record and producer in
the order in which they were enqueued. The workers' memory is looked at all the while, and compared with what
they held when they waited, warm (one entry of each lane drained), for the first producer.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections import Counter
from pathlib import Path

import harness
import redis_common as common

from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.spill.listing import waiting
from iai_mcp.store import MemoryStore
from tests.servers import Server

PRODUCERS, WORKERS, HITS = 8, 2, 5
ENTRIES = 200_000
GROWTH_MIB = 100
BUDGETS: tuple[dict[str, str], ...] = ({}, {"IAI_MCP_PUSH_BUDGET_MS": "5000"})

PRODUCER = """
import logging, random, sys, uuid
logging.getLogger("iai_mcp").setLevel(logging.ERROR)  # the breaker opens and closes all the time
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.store import MemoryStore
seed, recalls, hits, memories = map(int, sys.argv[1:5])
ids = [uuid.UUID(hex=text) for text in open(sys.argv[5]).read().split()]
rng = random.Random(seed)
queue = ProvenanceWriteQueue(MemoryStore())
queue.start()
print("ready", flush=True)
sys.stdin.readline()
for number in range(recalls):
    found = rng.sample(ids, hits)
    queue.enqueue([(record, {"ts": "2026-01-01T00:00:00+00:00", "cue": f"{number}/{rank}", "session_id": str(seed),
                             "rank": rank}) for rank, record in enumerate(found, 1)])
print(queue.producer, queue.counts.enqueued, queue.counts.spilled, queue.counts.refused, flush=True)
sys.stdin.readline()
queue.stop()
"""


def main() -> None:
    quick = harness.options("eight producers, two workers, every entry once").quick
    entries = ENTRIES // 10 if quick else ENTRIES
    print(f"redis_soak: {harness.machine()}; {entries:,} entries, {PRODUCERS} producers, {WORKERS} workers")
    with common.server() as (folder, server):
        store, ids = common.store(folder, server.url, 1_000)
        with common.workers(server, store, WORKERS) as pids:
            warm = _warm(store, ids)
            memory = Memory(pids)
            pushed, drained, producers, spilled = _produce(folder, server, store, ids, entries, memory)
            growth = memory.growth()
        _check(store, producers, warm, entries)
    rows = [
        ["entries enqueued", f"{entries:,} in {pushed:.1f} s", f"{entries / pushed:,.0f} a second"],
        ["of these by way of the spill", f"{spilled:,}", "-"],
        ["all readable", f"after {drained:.1f} s", f"{entries / drained:,.0f} a second"],
        ["missing, doubled, out of order", "0, 0, 0", "0, 0, 0: met"],
        [
            "worker memory over idle, MiB",
            " ".join(f"{one:.0f}" for one in growth),
            harness.at_most(max(growth), GROWTH_MIB),
        ],
    ]
    harness.show("Soak", ("what", "figure", "pace or target"), [[*map(str, row)] for row in rows])


class Memory:
    """What processes hold, now and at most."""

    def __init__(self, pids: list[int]) -> None:
        self._pids = pids
        self._idle = self._now()
        self._peak = list(self._idle)

    def _now(self) -> list[float]:
        page = os.sysconf("SC_PAGE_SIZE")
        return [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page / 2**20 for pid in self._pids]

    def look(self) -> bool:
        """Note what is held now; False, so that it fits in a wait."""
        self._peak = [max(pair) for pair in zip(self._peak, self._now(), strict=True)]
        return False

    def growth(self) -> list[float]:
        """MiB of each process at its peak, over what it held at first."""
        return [peak - idle for peak, idle in zip(self._peak, self._idle, strict=True)]


def _warm(store: MemoryStore, ids: list[uuid.UUID]) -> str:
    """Have every record written to once, in turns that reach both workers; the producer's key."""
    queue = ProvenanceWriteQueue(store)
    queue.start()
    for at in range(0, len(ids), 50):
        queue.enqueue([(record_id, {"cue": "warm"}) for record_id in ids[at : at + 50]])
        assert queue.flush(60)
    queue.stop()
    return queue.producer


def _produce(
    folder: Path, server: Server, store: MemoryStore, ids: list[uuid.UUID], entries: int, memory: Memory
) -> tuple[float, float, list[str], int]:
    """Seconds until all was enqueued and until all was readable; the producers' keys; entries spilled."""
    names = folder / "ids"
    names.write_text(" ".join(record_id.hex for record_id in ids))
    env = {
        **os.environ,
        "IAI_MCP_STORE": str(store.path),
        "IAI_MCP_REDIS_URL": server.url,
        "IAI_MCP_SPILL_DIR": str(store.settings.spill_dir),
    }
    recalls = entries // PRODUCERS // HITS
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PRODUCER, *map(str, (seed, recalls, HITS, len(ids), names))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**env, **BUDGETS[seed % 2]},
        )
        for seed in range(PRODUCERS)
    ]  # fmt: skip
    for process in processes:
        assert _line(process) == ["ready"]
    before = _rows(store)
    began = time.perf_counter()
    for process in processes:
        _go_on(process)
    told = [_line(process) for process in processes]
    pushed = time.perf_counter() - began
    assert all(refused == "0" for *_, refused in told), told
    assert sum(int(enqueued) for _, enqueued, *_ in told) == entries
    common.wait_for(lambda: memory.look() or _rows(store) >= before + entries, 600, 0.1)
    drained = time.perf_counter() - began
    for process in processes:
        _go_on(process)
        assert process.wait(60) == 0
    return pushed, drained, [producer for producer, *_ in told], sum(int(spilled) for *_, spilled, _ in told)


def _line(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


def _go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def _rows(store: MemoryStore) -> int:
    return sum(store.lane(lane).count() for lane in range(store.lanes))


def _check(store: MemoryStore, producers: list[str], warm: str, entries: int) -> None:
    """Every entry once, in order per record and producer, and nothing anywhere else."""
    columns = ["record_id", "producer", "producer_seq", "seq"]
    seen: Counter[tuple[str, int]] = Counter()
    for lane in range(store.lanes):
        last: dict[tuple[str, str], int] = {}
        for row in store.lane(lane).rows([], columns).sort_by("seq").to_pylist():
            if row["producer"] == warm:
                continue
            stream = row["record_id"], row["producer"]
            assert last.get(stream, 0) < row["producer_seq"], f"out of order: {row}"
            last[stream] = row["producer_seq"]
            seen[row["producer"], row["producer_seq"]] += 1
    each = range(1, entries // PRODUCERS + 1)
    missing = [(producer, number) for producer in producers for number in each if (producer, number) not in seen]
    doubled = [key for key, times in seen.items() if times > 1]
    assert not missing, f"{len(missing)} are missing, such as {missing[:3]}"
    assert not doubled, f"{len(doubled)} are doubled, such as {doubled[:3]}"
    assert len(seen) == entries, len(seen)
    assert waiting(store.settings, store.store_id).entries == 0


if __name__ == "__main__":
    main()
