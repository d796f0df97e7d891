"""Measures the drain: its pace beside LanceDB's own merge, with much in the tables, and with long histories.

Run with ``python benchmarks/drain.py``. A drained batch goes the real way, out of a pre-filled embedded broker
through ``drain()`` into a lane's table: claim, keys, unknown ids, numbering, merge, sync, acknowledgement and,
every 64 commits, upkeep. The bare side gives the same rows in the same batches, made ready as Arrow beforehand,
to ``merge_insert("entry_id").when_not_matched_insert_all()`` of a table with the same indexes and as many rows,
and does not sync. It comes twice: without any upkeep (``bare``), and with ``optimize`` every 64 commits
(``upkept``), which is what the drain's own upkeep does; the target is held against the latter. ``cold`` is a
drain that has seen none of the batch's records before. Dirty pages are written before each batch, outside the
clock, so that nobody syncs what another side wrote.
"""

from __future__ import annotations

import os
import random
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import harness
import lancedb
from lancedb.index import BTree

from iai_mcp.broker.memory import MemoryBroker
from iai_mcp.entries.batch import EntryBatch
from iai_mcp.entries.parcel import Pair, Parcel
from iai_mcp.entries.routing import lane_of, route
from iai_mcp.pipeline.drain import DrainPolicy, drain
from iai_mcp.storage.tables.known_records import RecordsCache
from iai_mcp.storage.tables.lane import INDEXED
from iai_mcp.storage.tables.lane_reader import MAINTAIN_EVERY
from iai_mcp.storage.tables.rows import LANE_SCHEMA, to_arrow
from iai_mcp.store import MemoryStore

RECALLED = 2  # entries of one recall in one lane: ten hits over four lanes
RECORDS = 5_000


@dataclass
class Lanes:
    """A store whose lanes are filled, and what drains it."""

    store: MemoryStore
    broker: MemoryBroker
    ids: list[list[uuid.UUID]]  # by lane
    caches: list[RecordsCache]


def main() -> None:
    quick = harness.options("pace of the drain beside bare merges").quick
    print(f"drain: {harness.machine()}; times in ms, median of the commits; pace in entries/s over all commits")
    commits = MAINTAIN_EVERY // 2 if quick else 2 * MAINTAIN_EVERY
    rows = [
        against_bare(preloaded, batch, commits if batch < 1000 else max(16, commits // 2))
        for preloaded in (10_000, 250_000)
        for batch in (256, 4096)
    ]
    heads = (
        "rows there",
        "batch",
        "ours",
        "cold",
        "bare",
        "upkept",
        "pace ours",
        "pace bare",
        "pace upkept",
    )
    harness.show("One lane against bare merges", (*heads, "of bare", "of upkept", "target"), rows)
    harness.show("Pace by rows in the store", PACE_HEADS, [by_size(commits)])
    harness.show("Pace by length of history", PACE_HEADS, [by_history(commits)])


PACE_HEADS = ("comparison", "ms before", "ms after", "pace before", "pace after", "ratio", "target")


def against_bare(preloaded: int, batch: int, commits: int) -> list[object]:
    """One row of the first table."""
    with harness.scratch() as folder:
        lanes = _lanes(folder, 1, RECORDS)
        _preload(lanes, 0, preloaded, spread=True)
        work = list(_parcels(lanes, 0, commits * batch, spread=True))
        ready = _ready(work, batch)
        bare = [_bare(folder / name, preloaded, lanes) for name in ("bare", "upkept")]
        _push(lanes, work)
        cold = _parcels(lanes, 0, commits * batch, spread=True)
        _warm(lanes, 0)
        sides = {
            "ours": lambda: _drain_one(lanes, 0, batch),
            "bare": _merger(bare[0], iter(ready)),
            "upkept": _merger(bare[1], iter(ready), upkeep=True),
        }
        times = harness.interleave(sides, commits, before=os.sync)
        again = _cold(lanes, list(cold)[: 8 * batch // RECALLED], batch)
    ours, plain, upkept = (times[name] for name in ("ours", "bare", "upkept"))
    pace = [commits * batch / sum(side) for side in (ours, plain, upkept)]
    of_bare, of_upkept = pace[0] / pace[1], pace[0] / pace[2]
    milliseconds = [f"{harness.median(side) * 1000:.1f}" for side in (ours, again, plain, upkept)]
    verdict = harness.at_least(of_upkept, 0.65)
    return [
        f"{preloaded:,}",
        batch,
        *milliseconds,
        *(f"{p:,.0f}" for p in pace),
        f"{of_bare:.2f}",
        f"{of_upkept:.2f}",
        verdict,
    ]


def by_size(commits: int) -> list[object]:
    """Four lanes with 2,500 rows each beside four lanes with 250,000 each."""
    return _pair("10k -> 1M rows, batch 256", commits * 4, 0.8, 4, (2_500, True), (250_000, True))


def by_history(commits: int) -> list[object]:
    """5,000 records with ten entries each beside one record with 50,000."""
    return _pair("5k x 10 -> 1 x 50k entries", commits, 0.9, 1, (50_000, True), (50_000, False))


def _pair(
    name: str, commits: int, target: float, count: int, before: tuple[int, bool], after: tuple[int, bool]
) -> list[object]:
    with harness.scratch() as folder:
        sides = {
            side: _filled(folder / side, count, commits, *shape)
            for side, shape in (("before", before), ("after", after))
        }
        times = harness.interleave(sides, commits, before=os.sync)
    pace = {side: commits * 256 / sum(taken) for side, taken in times.items()}
    ratio = pace["after"] / pace["before"]
    milliseconds = [f"{harness.median(taken) * 1000:.1f}" for taken in times.values()]
    return [
        name,
        *milliseconds,
        *(f"{p:,.0f}" for p in pace.values()),
        f"{ratio:.2f}",
        harness.at_least(ratio, target),
    ]


def _filled(folder: Path, count: int, commits: int, rows: int, spread: bool) -> Callable[[], None]:
    """What drains one batch of a new store with ``count`` lanes of ``rows``, lane after lane."""
    lanes = _lanes(folder, count, RECORDS * count)
    for lane in range(count):
        _preload(lanes, lane, rows, spread=spread)
        _push(lanes, _parcels(lanes, lane, (commits // count) * 256, spread=spread))
        _warm(lanes, lane)
    turns = iter(range(commits))
    return lambda: _drain_one(lanes, next(turns) % count, 256)


# -- our side


def _lanes(folder: Path, count: int, records: int) -> Lanes:
    store = MemoryStore(lanes=count, settings=harness.settings(folder))
    ids: list[list[uuid.UUID]] = [[] for _ in range(count)]
    for record_id in store.insert_many(harness.records(records)):
        ids[lane_of(record_id, count)].append(record_id)
    return Lanes(store, MemoryBroker(count, 10**9), ids, [RecordsCache() for _ in range(count)])


def _pairs(lanes: Lanes, lane: int, count: int, *, spread: bool, seed: int) -> Iterator[Pair]:
    """Entries for one lane: for every record in turn, or for a single one."""
    rng = random.Random(seed)
    ids = lanes.ids[lane] if spread else lanes.ids[lane][:1]
    for number in range(count):
        yield ids[number % len(ids)], harness.entry(rng, number % RECALLED + 1, number)


def _preload(lanes: Lanes, lane: int, count: int, *, spread: bool) -> None:
    """Rows as if they had been drained long ago, in the table's own way and up to date in its indexes."""
    table: Any = lanes.store.lane(lane)._table
    table.add(_arrow("preload", list(_pairs(lanes, lane, count, spread=spread, seed=2))))
    table.optimize(cleanup_older_than=timedelta(milliseconds=1))


def _parcels(lanes: Lanes, lane: int, count: int, *, spread: bool) -> Iterator[Parcel]:
    producer = uuid.uuid4().hex[:16]
    pairs = list(_pairs(lanes, lane, count, spread=spread, seed=3))
    number = len(lanes.ids)
    for at in range(0, count, RECALLED):
        yield from route(lanes.store.store_id, producer, at + 1, pairs[at : at + RECALLED], number, 0.0)


def _push(lanes: Lanes, parcels: Iterator[Parcel] | Sequence[Parcel]) -> None:
    for parcel in parcels:
        lanes.broker.push([parcel])


def _warm(lanes: Lanes, lane: int) -> None:
    """A drain that has been at work for a while knows the records of its lane."""
    lanes.caches[lane].learn({one.hex for one in lanes.ids[lane]}, lambda ids, _: [*ids])
    lanes.store.lane(lane)._numbering.seen_version = -1


def _drain_one(lanes: Lanes, lane: int, batch: int) -> None:
    """One batch: the deadline has passed, so that the drain stops after it."""
    report = drain(lanes.store, lanes.broker, lane, lanes.caches[lane], DrainPolicy(batch, 0.0), deadline=0.0)
    assert report.applied == batch, report


def _cold(lanes: Lanes, work: Sequence[Parcel], batch: int) -> list[float]:
    """Batches of a drain that has seen none of its records before."""
    _push(lanes, work)
    times = []
    for _ in range(len(work) * RECALLED // batch):
        lanes.caches[0] = RecordsCache()
        os.sync()
        times.append(harness.timed(lambda: _drain_one(lanes, 0, batch)))
    return times


# -- the bare side


def _arrow(producer: str, pairs: Sequence[Pair]) -> Any:
    return _rows(EntryBatch.of(route("", producer, 1, pairs, 1, 0.0)), 1)


def _rows(batch: EntryBatch, first_seq: int) -> Any:
    return to_arrow(batch, first_seq)


def _ready(work: Sequence[Parcel], batch: int) -> list[Any]:
    """The rows of the same batches, as Arrow."""
    whole = EntryBatch.of(work)
    return [_rows(whole[at : at + batch], at + 10_000_000) for at in range(0, len(whole), batch)]


def _bare(folder: Path, preloaded: int, lanes: Lanes) -> Any:
    table = lancedb.connect(folder).create_table("bare", schema=LANE_SCHEMA)
    table.add(_arrow("preload", list(_pairs(lanes, 0, preloaded, spread=True, seed=2))))
    for column in INDEXED:
        table.create_index(column, config=BTree())
    table.optimize(cleanup_older_than=timedelta(milliseconds=1))
    return table


def _merger(table: Any, batches: Iterator[Any], *, upkeep: bool = False) -> Callable[[], None]:
    done = iter(range(1, 10**9))

    def merge() -> None:
        table.merge_insert("entry_id").when_not_matched_insert_all().execute(next(batches))
        if next(done) % MAINTAIN_EVERY == 0 and upkeep:
            table.optimize(cleanup_older_than=timedelta(seconds=10))

    return merge


if __name__ == "__main__":
    main()
