"""Measures what provenance costs a recall: the same recalls with the trace and without, in turns.

Run with ``python benchmarks/recall_overhead.py``. 10,000 memories with random vectors; the embedded queue
drains into the same store in the same process, so that the recalls pay for the drain's share of the machine
too. Blocks take turns, and a flush outside the clock ends each block with provenance: nothing of it runs
into the next one. ``given`` hands the cue's vector in; ``builtin`` has the built-in embedder make it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import harness
import numpy as np

from iai_mcp.core import dispatch
from iai_mcp.store import MemoryStore

MEMORIES = 10_000
BATCH = 2_000
EACH_S = 0.25  # four recalls a second

Recall = Callable[[bool], None]


@dataclass
class Sides:
    """Seconds of each recall, with provenance and without; one list for each block."""

    on: list[harness.Seconds] = field(default_factory=list)
    off: list[harness.Seconds] = field(default_factory=list)

    def of(self, provenance: bool) -> list[harness.Seconds]:
        return self.on if provenance else self.off

    def ratio(self, percent: float) -> float:
        """The middle one of the blocks' ratios of this percentile."""
        return harness.median(self.ratios(percent))

    def ratios(self, percent: float) -> list[float]:
        at = harness.percentile
        return [at(on, percent) / at(off, percent) for on, off in zip(self.on, self.off, strict=True)]

    def milliseconds(self, percent: float) -> list[str]:
        """Over all blocks: with and without."""
        return [
            f"{harness.percentile(list(chain.from_iterable(side)), percent) * 1000:.2f}"
            for side in (self.on, self.off)
        ]


def main() -> None:
    quick = harness.options("what provenance costs a recall").quick
    with harness.scratch() as folder:
        store = _store(folder)
        print(
            f"recall_overhead: {harness.machine()}; {MEMORIES:,} memories, ten hits; ms with / without provenance"
        )
        rows = []
        for name, recall in (("given", _recall(store, True)), ("builtin", _recall(store, False))):
            blocks, count = (4, 40) if quick else (10, 100)
            rows.append(_row(f"{name}, back to back", _sides(store, recall, blocks, count, 0.0), 1.15, 1.5))
            blocks, count = (2, 12) if quick else (5, 40)
            rows.append(_row(f"{name}, 4 a second", _sides(store, recall, blocks, count, EACH_S), 1.05, None))
        heads = ("vector, pace", "p50 on", "off", "p95 on", "off", "p50 ratio", "target", "p95 ratio", "target")
        harness.show("Recalls with provenance beside recalls without", (*heads, "p50 ratio of each block"), rows)
        counts = store._provenance_queue.counts if store._provenance_queue else None
        store.disable_provenance_queue()
    print(f"\n{counts}")


def _row(name: str, sides: Sides, p50: float, p95: float | None) -> Sequence[object]:
    return [
        name,
        *sides.milliseconds(50),
        *sides.milliseconds(95),
        f"{sides.ratio(50):.3f}",
        harness.at_most(round(sides.ratio(50), 3), p50),
        f"{sides.ratio(95):.3f}",
        harness.at_most(round(sides.ratio(95), 3), p95) if p95 else "-",
        " ".join(f"{ratio:.2f}" for ratio in sides.ratios(50)),
    ]


def _sides(store: MemoryStore, recall: Recall, blocks: int, count: int, each: float) -> Sides:
    sides = Sides()
    for provenance in (True, False):
        _block(store, recall, provenance, 10, 0.0)  # the caches are warm
    for block in range(blocks):
        for provenance in (True, False) if block % 2 == 0 else (False, True):
            sides.of(provenance).append(_block(store, recall, provenance, count, each))
    return sides


def _block(store: MemoryStore, recall: Recall, provenance: bool, count: int, each: float) -> harness.Seconds:
    times, due = [], time.monotonic()
    for _ in range(count):
        times.append(harness.timed(lambda: recall(provenance)))
        due += each
        time.sleep(max(0.0, due - time.monotonic()))
    assert store._provenance_queue is not None
    assert store._provenance_queue.flush(60)
    return times


def _store(folder: Path) -> MemoryStore:
    store = MemoryStore(settings=harness.settings(folder, embedder="builtin"))
    memories = harness.records(MEMORIES, dims=store.meta.embedder.dims)
    for at in range(0, MEMORIES, BATCH):
        store.insert_many(memories[at : at + BATCH])
    store._records.maintain()
    store.enable_provenance_queue()
    return store


def _recall(store: MemoryStore, given: bool) -> Recall:
    """One recall with a new cue; ``given``: with its vector."""
    rng = random.Random(7)
    dims = store.meta.embedder.dims
    vectors = np.random.default_rng(7).standard_normal((256, dims), dtype=np.float32).tolist()

    def recall(provenance: bool) -> None:
        params = {"cue": harness.words(rng, 6), "session_id": "bench", "record_provenance": provenance}
        if given:
            params["cue_embedding"] = rng.choice(vectors)
        hits = dispatch(store, "memory_recall", params)["hits"]
        assert len(hits) == 10

    return recall


if __name__ == "__main__":
    main()
