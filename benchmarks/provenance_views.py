"""Measures ``iai-mcp provenance`` in a store of a million entries, and what the index behind it costs the drain.

Run with ``python benchmarks/provenance_views.py``. Every command is a process of its own, timed inside: *the
command* is from the arguments to the last line written, after all imports; *with imports* has those of this
package and of Rich with it, after that of ``lancedb``. The drain's side is one lane with the index on
``record_id`` and one without, which take turns.
"""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import harness

from iai_mcp.entries.batch import EntryBatch
from iai_mcp.entries.identity import entry_id
from iai_mcp.entries.routing import lane_of
from iai_mcp.storage.tables.lane import LaneTable
from iai_mcp.storage.tables.lane_reader import MAINTAIN_EVERY
from iai_mcp.store import MemoryStore, RecordsCache

RECORDS = 10_000
ENTRIES = 1_000_000
HOT = 20_000  # of them belong to one memory
BATCH = 25_000
MERGE = 256
RECORD_S = 0.1

COMMAND = """
import sys, time
import lancedb
began = time.perf_counter()
import iai_mcp.core, iai_mcp.cli.tables, iai_mcp.cli.timeline
from typer.main import get_command
from iai_mcp.cli.app import app
imported = time.perf_counter()
get_command(app)(["provenance", *sys.argv[1:]], standalone_mode=False)
sys.stdout.flush()
ended = time.perf_counter()
print(ended - began, ended - imported, file=sys.stderr)
"""


def main() -> None:
    quick = harness.options("the views of the trace, at a million entries").quick
    entries, rounds = (100_000, 3) if quick else (ENTRIES, 9)
    print(f"provenance views: {harness.machine()}; {entries:,} entries of {RECORDS:,} memories")
    with harness.scratch() as folder:
        store = MemoryStore(settings=harness.settings(folder))
        ids = _filled(store, entries)
        _views(store, ids, rounds)
        _index(store, ids, 1 if quick else 2)
        commits = MAINTAIN_EVERY - 1
        lane = lane_of(ids[1], store.lanes)
        beside = [one for one in ids if lane_of(one, store.lanes) == lane][:MERGE]
        _written(store.lane(lane), beside, commits)
        view = ("--record", str(ids[1]))
        rows = [_row("--record ID", [_command(store, *view) for _ in range(rounds)], RECORD_S)]
        harness.show(f"after {commits} commits that no upkeep has indexed yet, ms", _HEADS, rows)


_HEADS = ("view", "the command", "worst", "with imports", "worst", "target (the command)")


def _views(store: MemoryStore, ids: list[uuid.UUID], rounds: int) -> None:
    views = {
        "--record ID": ("--record", str(ids[1])),
        "--record ID --json": ("--record", str(ids[1]), "--json"),
        f"--record ID of {HOT:,} entries": ("--record", str(ids[0])),
        "--session S": ("--session", "session-7"),
        "--top": ("--top",),
        "--never": ("--never",),
    }
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in views}
    sides = {name: (lambda name=name: took[name].append(_command(store, *views[name]))) for name in views}
    harness.interleave(sides, rounds)
    rows = [_row(name, took[name], RECORD_S if name.startswith("--record") else None) for name in views]
    harness.show(f"{rounds} processes of each, ms", _HEADS, rows)


def _row(name: str, took: list[tuple[float, float]], target: float | None) -> list[object]:
    whole, inside = (list(column) for column in zip(*took, strict=True))
    cells = [f"{number * 1000:.0f}" for times in (inside, whole) for number in (harness.median(times), max(times))]
    return [name, *cells, harness.at_most(harness.median(inside) * 1000, target * 1000) if target else "-"]


def _command(store: MemoryStore, *arguments: str) -> tuple[float, float]:
    """Seconds for all of it, and for the command alone."""
    command = [sys.executable, "-c", COMMAND, *arguments, "--store", str(store.path)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    whole, inside = map(float, ran.stderr.splitlines()[-1].split())
    return whole, inside


def _filled(store: MemoryStore, entries: int) -> list[uuid.UUID]:
    memories = harness.records(RECORDS)
    store.insert_many(memories)
    ids = [memory.id for memory in memories]
    rng = random.Random(3)
    hot = HOT * entries // ENTRIES
    lanes: dict[int, list[tuple[uuid.UUID, dict[str, Any]]]] = {number: [] for number in range(store.lanes)}
    caches = {number: RecordsCache() for number in lanes}
    for number in range(1, entries + 1):
        record_id = ids[0] if rng.random() * entries < hot else rng.choice(ids)
        lanes[lane_of(record_id, store.lanes)].append((record_id, _entry(rng, number)))
        if number % BATCH == 0:
            for lane, pairs in lanes.items():
                store.lane(lane).append(EntryBatch.of_pairs(pairs), caches[lane])
                pairs.clear()
    for lane in lanes:
        store.lane(lane).maintain(force=True)
    return ids


def _entry(rng: random.Random, number: int, producer: str = "bench") -> dict[str, Any]:
    made = harness.entry(rng, rng.randint(1, 10), number)
    return {**made, "entry_id": entry_id(producer, number), "producer": producer, "producer_seq": number}


_numbers = itertools.count(1)


def _written(lane: LaneTable, records: list[uuid.UUID], commits: int) -> harness.Seconds:
    """Seconds of each of ``commits`` appends of one entry for each of ``records``."""
    rng, cache = random.Random(4), RecordsCache()
    return [harness.timed(partial(lane.append, pairs, cache)) for pairs in _batches(rng, records, commits)]


def _batches(rng: random.Random, records: list[uuid.UUID], commits: int) -> Iterator[EntryBatch]:
    for _ in range(commits):
        yield EntryBatch.of_pairs([(record_id, _entry(rng, next(_numbers), "drain")) for record_id in records])


def _index(store: MemoryStore, ids: list[uuid.UUID], rounds: int) -> None:
    """One lane with the index and one without: what a look-up, a merge and an upkeep take."""
    sides = {"with the index": 0, "without": 1}
    of = {name: [one for one in ids if lane_of(one, store.lanes) == lane] for name, lane in sides.items()}
    lanes = {name: store.lane(lane) for name, lane in sides.items()}
    lanes["without"]._table.drop_index("record_id_idx")
    found: dict[str, Callable[[], object]] = {
        name: partial(lanes[name].rows, [f"record_id = '{of[name][7]}'"]) for name in sides
    }
    looked = harness.interleave(found, 9)
    merged: dict[str, harness.Seconds] = {name: [] for name in sides}
    upkept: dict[str, harness.Seconds] = {name: [] for name in sides}
    rng = random.Random(5)
    for _ in range(rounds):
        for _ in range(MAINTAIN_EVERY // 8):
            for name in sides:  # turns of eight
                merged[name] += _written(lanes[name], [rng.choice(of[name]) for _ in range(MERGE)], 8)
        for name in sides:
            upkept[name].append(harness.timed(partial(lanes[name].maintain, force=True)))
    rows = [
        [name, *(f"{harness.median(times[name]) * 1000:.1f}" for times in (looked, merged, upkept))]
        for name in sides
    ]
    heads = ("lane", "a memory's rows", f"merge of {MERGE}", f"upkeep after {MAINTAIN_EVERY} merges")
    harness.show("the index on record_id, medians in ms", heads, rows)


if __name__ == "__main__":
    main()
