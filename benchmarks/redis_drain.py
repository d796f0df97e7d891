"""Measures the drain through Redis: by how much workers scale, and what it costs beside bare merges.

Run with ``python benchmarks/redis_drain.py``. Each round takes a new store with 50,000 rows in each of its four
lanes, fills the lanes in Redis with 100,000 entries (recalls of ten hits, so that an item holds a few), and lets
1, 2 or 4 processes of ``python -m workers`` drain them: from the ringing of the lanes' doorbells, with the workers
warm (imported, store open, some entries of each lane drained), to the last acknowledgement. The bare side gives
the same rows, made ready as Arrow beforehand, in batches of the same size (``max_batch``), to ``merge_insert``
of four tables with the same columns, indexes and number of rows, as LanceDB makes them by itself, in as many warm
processes, each with its share of the tables: no Redis, no decoding, no sync, no upkeep.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import harness
import pyarrow as pa
import redis_common as common

from iai_mcp.broker.protocol import Lease
from iai_mcp.broker.redis.broker import RedisBroker
from iai_mcp.broker.redis.options import RedisOptions
from iai_mcp.entries.batch import EntryBatch
from iai_mcp.entries.parcel import Parcel
from iai_mcp.entries.routing import route
from iai_mcp.storage.tables.rows import to_arrow
from iai_mcp.store import MemoryStore
from tests.servers import Server, serving

ENTRIES = 100_000
HITS = 10
WORKERS = (1, 2, 4)
MEMORIES = 5_000
PRELOADED = 50_000  # rows in each lane before, on both sides

BARE = """
import sys, lancedb, pyarrow as pa
from lancedb.index import BTree
folder, batch, *lanes = sys.argv[1:]
work = []
def read(name):
    with pa.memory_map(f"{folder}/{name}.arrow") as file:
        return pa.ipc.open_file(file).read_all().combine_chunks()
for lane in lanes:
    rows = read(lane)
    table = lancedb.connect(folder).create_table(f"bare_{lane}", read("preload"))
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
    entries, rounds = (ENTRIES // 5, 1) if quick else (ENTRIES, 5)
    spent: dict[tuple[str, int], list[Spent]] = {}
    for turn in range(rounds):
        for count in WORKERS if turn % 2 == 0 else reversed(WORKERS):
            ours, bare = _round(entries, count)
            spent.setdefault(("ours", count), []).append(ours)
            spent.setdefault(("bare", count), []).append(bare)
    print(f"redis_drain: {harness.machine()}; {entries:,} entries, medians of {rounds}")
    _print(entries, {key: Spent(*map(harness.median, zip(*each, strict=True))) for key, each in spent.items()})


class Spent(NamedTuple):
    """What one side took, in seconds: by the clock, and of all processors (``redis``: the server's part)."""

    clock: float
    cpu: float
    redis: float = 0.0


def _round(entries: int, count: int) -> tuple[Spent, Spent]:
    """What our workers took, and the bare merges of the same rows right after."""
    with harness.scratch() as folder, serving(folder / "redis") as server:
        store, ids = common.store(folder, server.url, MEMORIES)
        work = list(common.recalls(ids, entries // HITS, HITS))
        parcels = [parcel for recall in common.parcels(store, "0123456789abcdef", work) for parcel in recall]
        ours = _ours(server, store, parcels, entries, count)
        bare = _bare(folder, store, parcels, count)
    return ours, bare


# -- our side


def _ours(server: Server, store: MemoryStore, parcels: list[Parcel], entries: int, count: int) -> Spent:
    options = RedisOptions(ceiling=common.ROOMY, push_s=60, lease_s=600)
    broker = RedisBroker(server.client(), store.store_id, store.lanes, options)
    broker.open()
    warm = [_one_for_each_lane(parcels, turn) for turn in range(4 * count)]
    for lane in range(store.lanes):
        table: Any = store.lane(lane)._table
        table.add(_preloaded())
        table.optimize(cleanup_older_than=timedelta(milliseconds=1))
    with common.workers(server, store, count) as pids:
        for each in warm:  # one after the other, so that every worker has come to every lane, most likely
            broker.push(each)
            _ring(broker, store.lanes)
            assert broker.wait_settled(broker.mark(), 120)
        leases = [_leased(broker, lane) for lane in range(store.lanes)]  # no worker touches what we lease
        for at in range(0, len(parcels), 500):
            broker.push(parcels[at : at + 500])
        assert sum(lane.pending for lane in broker.stats()) == entries
        time.sleep(1)  # the server's disk writes are over
        sides = pids, [server.process.pid] if server.process else []
        cpu = [common.cpu_seconds(side) for side in sides]
        began = time.perf_counter()
        for lease in leases:
            broker.release(lease)
            broker.ring(lease.lane)
        assert broker.wait_settled(broker.mark(), 600)
        taken = time.perf_counter() - began
        workers, redis = (common.cpu_seconds(side) - before for side, before in zip(sides, cpu, strict=True))
    rows = sum(store.lane(lane).count() for lane in range(store.lanes))
    assert rows == entries + sum(map(len, warm)) + PRELOADED * store.lanes, rows
    broker.close()
    return Spent(taken, workers + redis, redis)


def _leased(broker: RedisBroker, lane: int) -> Lease:
    while (lease := broker.lease(lane)) is None:
        time.sleep(0.01)
    return lease


def _one_for_each_lane(parcels: list[Parcel], turn: int) -> list[Parcel]:
    """A parcel of another producer for every lane."""
    found = {parcel.lane: parcel for parcel in parcels}
    return [Parcel.of(p.store, p.lane, f"warm{turn}", p.pushed, [next(p.handed_out())]) for p in found.values()]


def _ring(broker: RedisBroker, lanes: int) -> None:
    for lane in range(lanes):
        broker.ring(lane)


@cache
def _preloaded() -> Any:
    """Rows as if they had been drained long ago."""
    rng = random.Random(1)
    ids = [uuid.UUID(int=rng.getrandbits(128), version=4) for _ in range(MEMORIES)]
    pairs = [(ids[at % MEMORIES], harness.entry(rng, 1, at)) for at in range(PRELOADED)]
    return _rows(route("", "preload", 1, pairs, 1, 0.0))


def _rows(parcels: list[Parcel]) -> Any:
    batch = EntryBatch.of(parcels)
    return to_arrow(batch, 1)


def _save(path: Path, rows: Any) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, rows.schema) as writer:
        writer.write_table(rows)


# -- the bare side


def _bare(folder: Path, store: MemoryStore, parcels: list[Parcel], count: int) -> Spent:
    target = folder / "bare"
    target.mkdir()
    _save(target / "preload.arrow", _preloaded())
    for lane in range(store.lanes):
        _save(target / f"{lane}.arrow", _rows([parcel for parcel in parcels if parcel.lane == lane]))
    shares = [range(first, store.lanes, count) for first in range(count)]
    with ExitStack() as stack:
        processes = [stack.enter_context(_merging(target, store.settings.max_batch, share)) for share in shares]
        pids = [process.pid for process in processes]
        cpu, began = common.cpu_seconds(pids), time.perf_counter()
        for process in processes:
            _tell(process)
        for process in processes:
            _hear(process, "done")
        return Spent(time.perf_counter() - began, common.cpu_seconds(pids) - cpu)


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


def _print(entries: int, spent: dict[tuple[str, int], Spent]) -> None:
    rows = []
    for count in WORKERS:
        ours, bare = spent["ours", count], spent["bare", count]
        clocks = [f"{ours.clock:.2f}", f"{bare.clock:.2f}", f"{ours.clock / bare.clock:.2f}"]
        verdict = harness.at_most(round(ours.clock / bare.clock, 2), 1.6)
        cpus = [f"{ours.cpu:.2f}", f"{ours.redis:.2f}", f"{bare.cpu:.2f}", f"{ours.cpu / bare.cpu:.2f}"]
        rows.append([count, f"{entries / ours.clock:,.0f}", *clocks, verdict, *cpus])
    heads = ("workers", "entries/s", "ours s", "bare s", "of bare", "target", "ours CPU s", "of it Redis")
    harness.show("Workers beside bare merges in as many processes", (*heads, "bare CPU s", "of bare"), rows)
    two = spent["ours", 1].clock / spent["ours", 2].clock
    four = spent["ours", 2].clock / spent["ours", 4].clock
    print(f"\ntwo workers are {two:.2f} times as fast as one, target {harness.at_least(round(two, 2), 1.5)}")
    print(f"four are {four:.2f} times as fast as two, target {harness.at_least(round(four, 2), 1.0)}")


if __name__ == "__main__":
    main()
