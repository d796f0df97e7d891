"""Measures the drain through Redis: by how much workers scale, and what it costs beside bare merges.

Run with ``python benchmarks/redis_drain.py``. Each round fills the four lanes of a new store with 100,000
entries (recalls of ten hits, so that an item of a lane holds a few entries), then lets 1, 2 or 4 processes of
``python -m workers`` drain them: from the moment the lanes' doorbells ring, with the workers warm (imported,
store open, one entry drained by each lane), to the last acknowledgement. The bare side gives the same rows, made
ready as Arrow beforehand, in batches of the same size (``worker_batch``) to ``merge_insert`` of four tables with
the same indexes in as many warm processes, each with its share of the tables: no Redis, no decoding, no sync, no
upkeep.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import harness
import pyarrow as pa
import redis_common as common

from iai_mcp.broker.protocol import Lease
from iai_mcp.broker.redis import RedisBroker, RedisOptions
from iai_mcp.entry import Parcel, as_pairs
from iai_mcp.lane_table import to_arrow
from iai_mcp.store import MemoryStore
from tests.servers import Server, serving

ENTRIES = 100_000
HITS = 10
WORKERS = (1, 2, 4)
MEMORIES = 5_000

BARE = """
import sys, lancedb, pyarrow as pa
from datetime import timedelta
from lancedb.index import BTree
folder, batch, *lanes = sys.argv[1:]
work = []
for lane in lanes:
    with pa.memory_map(f"{folder}/{lane}.arrow") as file:
        rows = pa.ipc.open_file(file).read_all().combine_chunks()
    table = lancedb.connect(folder).create_table(f"bare_{lane}", schema=rows.schema)
    for column in ("entry_id", "record_id"):
        table.create_index(column, config=BTree())
    table.merge_insert("entry_id").when_not_matched_insert_all().execute(rows.slice(0, 1))
    work.append((table, rows))
print("ready", flush=True)
sys.stdin.readline()
for table, rows in work:
    for at in range(1, len(rows), int(batch)):
        table.merge_insert("entry_id").when_not_matched_insert_all().execute(rows.slice(at, int(batch)))
print("done", flush=True)
sys.stdin.readline()
"""


def main() -> None:
    quick = harness.options("the drain through Redis").quick
    entries, rounds = (ENTRIES // 5, 1) if quick else (ENTRIES, 3)
    times: dict[tuple[str, int], harness.Seconds] = {}
    for turn in range(rounds):
        for count in WORKERS if turn % 2 == 0 else reversed(WORKERS):
            ours, bare = _round(entries, count)
            times.setdefault(("ours", count), []).append(ours)
            times.setdefault(("bare", count), []).append(bare)
    print(f"redis_drain: {harness.machine()}; {entries:,} entries, medians of {rounds}")
    _print(entries, {key: harness.median(taken) for key, taken in times.items()})


def _round(entries: int, count: int) -> tuple[float, float]:
    """Seconds of our workers, and of the bare merges of the same rows right after."""
    with harness.scratch() as folder, serving(folder / "redis") as server:
        store, ids = common.store(folder, server.url, MEMORIES)
        work = list(common.recalls(ids, entries // HITS, HITS))
        parcels = [parcel for recall in common.parcels(store, "0123456789abcdef", work) for parcel in recall]
        ours = _ours(server, store, parcels, entries, count)
        bare = _bare(folder, store, parcels, count)
    return ours, bare


# -- our side


def _ours(server: Server, store: MemoryStore, parcels: list[Parcel], entries: int, count: int) -> float:
    options = RedisOptions(ceiling=common.ROOMY, push_s=60, lease_s=600)
    broker = RedisBroker(server.client(), store.store_id, store.lanes, options)
    broker.open()
    warm = _one_for_each_lane(parcels)
    with common.workers(server, store, count):
        broker.push(warm)
        _ring(broker, store.lanes)
        assert broker.wait_settled(broker.mark(), 120)
        leases = [_leased(broker, lane) for lane in range(store.lanes)]  # no worker touches what we lease
        for at in range(0, len(parcels), 500):
            broker.push(parcels[at : at + 500])
        assert sum(lane.pending for lane in broker.stats()) == entries
        time.sleep(1)  # the server's disk writes are over
        began = time.perf_counter()
        for lease in leases:
            broker.release(lease)
            broker.ring(lease.lane)
        assert broker.wait_settled(broker.mark(), 600)
        taken = time.perf_counter() - began
    rows = sum(store.lane(lane).count() for lane in range(store.lanes))
    assert rows == entries + len(warm), rows
    broker.close()
    return taken


def _leased(broker: RedisBroker, lane: int) -> Lease:
    while (lease := broker.lease(lane)) is None:
        time.sleep(0.01)
    return lease


def _one_for_each_lane(parcels: list[Parcel]) -> list[Parcel]:
    """A parcel of another producer for every lane."""
    found = {parcel.lane: parcel for parcel in parcels}
    return [Parcel(p.store, p.lane, "warm", p.pushed, p.entries[:1]) for p in found.values()]


def _ring(broker: RedisBroker, lanes: int) -> None:
    for lane in range(lanes):
        broker.ring(lane)


# -- the bare side


def _bare(folder: Path, store: MemoryStore, parcels: list[Parcel], count: int) -> float:
    target = folder / "bare"
    target.mkdir()
    for lane in range(store.lanes):
        pairs = as_pairs(parcel for parcel in parcels if parcel.lane == lane)
        rows = to_arrow([(str(record_id), entry) for record_id, entry in pairs], 1)
        with pa.OSFile(str(target / f"{lane}.arrow"), "wb") as file, pa.ipc.new_file(file, rows.schema) as writer:
            writer.write_table(rows)
    shares = [range(first, store.lanes, count) for first in range(count)]
    with ExitStack() as stack:
        processes = [stack.enter_context(_merging(target, store.settings.worker_batch, share)) for share in shares]
        began = time.perf_counter()
        for process in processes:
            _tell(process)
        for process in processes:
            _hear(process, "done")
        return time.perf_counter() - began


@contextmanager
def _merging(folder: Path, batch: int, lanes: range) -> Iterator[subprocess.Popen[str]]:
    """A process that has its tables made and waits for the word."""
    command = [sys.executable, "-c", BARE, str(folder), str(batch), *map(str, lanes)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        _hear(process, "ready")
        yield process
        _tell(process)


def _tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def _hear(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().strip() == word


def _print(entries: int, times: dict[tuple[str, int], float]) -> None:
    rows = []
    for count in WORKERS:
        ours, bare = times["ours", count], times["bare", count]
        paces = [f"{entries / side:,.0f}" for side in (ours, bare)]
        rows.append(
            [count, f"{ours:.2f}", f"{bare:.2f}", *paces, f"{ours / bare:.2f}", harness.at_most(ours / bare, 1.6)]
        )
    heads = ("workers", "ours s", "bare s", "ours entries/s", "bare entries/s", "of bare", "target")
    harness.show("Workers beside bare merges in as many processes", heads, rows)
    two = times["ours", 1] / times["ours", 2]
    four = times["ours", 2] / times["ours", 4]
    print(f"\ntwo workers are {two:.2f} times as fast as one, target {harness.at_least(round(two, 2), 1.5)}")
    print(f"four are {four:.2f} times as fast as two, target {harness.at_least(round(four, 2), 1.0)}")


if __name__ == "__main__":
    main()
