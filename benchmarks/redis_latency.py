"""Measures how long an entry takes from its push until any process can read it.

Run with ``python benchmarks/redis_latency.py``. One worker process; this process pushes four recalls of five
entries a second, and after each looks into the lane tables, through a second ``MemoryStore``, until all five are
there (every 4 ms). The linger is part of the time: an entry that comes alone waits that long
for company. Beside it, as the yardstick of this machine at this minute, taken right before each recall: five
rows merged into a table with the same indexes.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import lancedb
import redis_common as common
from lancedb.index import BTree

from iai_mcp.entries.batch import EntryBatch
from iai_mcp.entries.parcel import Pair
from iai_mcp.entries.routing import lane_of
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.storage.tables.lane import INDEXED
from iai_mcp.storage.tables.rows import LANE_SCHEMA, to_arrow
from iai_mcp.store import MemoryStore

PER_SECOND = 4
ALLOWANCE_MS = 150.0
LOOK_S = 0.004  # each look costs a core about a millisecond, which the worker needs too


def main() -> None:
    quick = harness.options("from the push until it can be read").quick
    recalls = 40 if quick else 240
    with common.server() as (folder, server):
        store, ids = common.store(folder, server.url, 1_000)
        queue = ProvenanceWriteQueue(store)
        queue.start()
        with common.workers(server, store, 1):
            times = _latencies(store, queue, list(common.recalls(ids, recalls + 10)), _merger(folder, store))
        queue.stop()
    print(f"redis_latency: {harness.machine()}; {PER_SECOND} recalls a second, one worker")
    _print([taken[10:] for taken in times], store.settings.linger_ms)


def _latencies(
    store: MemoryStore, queue: ProvenanceWriteQueue, work: list[list[Pair]], merge: Callable[[], None]
) -> tuple[harness.Seconds, harness.Seconds]:
    """Seconds until readable, and seconds that a bare merge took just before."""
    reader = MemoryStore(settings=store.settings)
    expected: Counter[int] = Counter()
    visible, merges = [], []
    due = time.monotonic()
    for pairs in work:
        due = max(due + 1 / PER_SECOND, time.monotonic())
        merges.append(harness.timed(merge))
        time.sleep(max(0.0, due - time.monotonic()))
        touched = Counter(lane_of(record_id, store.lanes) for record_id, _ in pairs)
        expected += touched
        began = time.perf_counter()
        queue.enqueue(pairs)
        for lane in touched:
            common.wait_for(_shows(reader, lane, expected[lane]), 60, LOOK_S)
        visible.append(time.perf_counter() - began)
    return visible, merges


def _shows(reader: MemoryStore, lane: int, rows: int) -> Callable[[], bool]:
    return lambda: reader.lane(lane).count() >= rows


def _merger(folder: Path, store: MemoryStore) -> Callable[[], None]:
    """Merges five rows into a table like a lane's."""
    table: Any = lancedb.connect(folder / "bare").create_table("bare", schema=LANE_SCHEMA)
    for column in INDEXED:
        table.create_index(column, config=BTree())
    ids = [uuid.uuid4() for _ in range(100)]

    def merge() -> None:
        (work,) = common.recalls(ids, 1)
        batch = EntryBatch.of(common.parcels(store, uuid.uuid4().hex[:16], [work])[0])
        rows = to_arrow(batch, 1)
        table.merge_insert("entry_id").when_not_matched_insert_all().execute(rows)

    return merge


def _print(times: list[harness.Seconds], linger_ms: float) -> None:
    rows = []
    for name, taken in zip(("readable after the push", "bare merge of five rows"), times, strict=True):
        cells = [f"{harness.percentile(taken, percent) * 1000:.0f}" for percent in (50, 90, 99, 100)]
        p99 = harness.percentile(taken, 99) * 1000
        ours = name.startswith("readable")
        rows.append([name, *cells, harness.at_most(round(p99), linger_ms + ALLOWANCE_MS) if ours else "-"])
    heads = ("what", "p50 ms", "p90 ms", "p99 ms", "max ms", "target (p99)")
    harness.show(f"{len(times[0])} recalls, linger_ms {linger_ms:g}", heads, rows)


if __name__ == "__main__":
    main()
