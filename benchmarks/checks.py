"""Measures what the checks of other processes' input cost: the check of every field, and signatures.

Run with ``python benchmarks/checks.py``. Two queues of one store take turns in a random order, one with a key and
one without, fifty calls at a turn. So do two drains, whose processor time is taken: with and without the check of
fields, and with and without a key. Each figure is the median of the ratios of several rounds. The hash alone is
timed, too: a loaded machine cannot blur it.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import harness
import redis_common as common

from iai_mcp.broker.factory import redis_broker
from iai_mcp.entries import fields, wire
from iai_mcp.entries.parcel import Pair
from iai_mcp.entries.signature import Signer
from iai_mcp.entries.wire import encode
from iai_mcp.pipeline.drain import DrainPolicy, drain
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.store import MemoryStore, RecordsCache

KEY = "a key for measurements and no other use"
ROUNDS, TURNS, CALLS, DRAINED = 20, 4, 50, 2_000


def main() -> None:
    rounds = ROUNDS // 4 if harness.options("what the checks cost").quick else ROUNDS
    print(f"checks: {harness.machine()}")
    with common.server() as (folder, server):
        store, ids = common.store(folder, server.url, 1_000)
        recalls = list(common.recalls(ids, 1_000))
        rows = [_row("signatures: enqueue over Redis", _enqueue(store, recalls, rounds))]
        for journal in ("off", "write"):
            plain = _with(store, redis_url="", journal=journal, spill_dir=folder / f"spill-{journal}")
            rows.append(_row(f"signatures: embedded enqueue, journal {journal}", _enqueue(plain, recalls, rounds)))
        connection = server.client()
        rows.append(_row("signatures: drain", _drain(store, connection, recalls, rounds, keys=("", KEY))))
        rows.append(_row("fields: drain", _drain(store, connection, recalls, rounds, checks=(False, True))))
        items = [encode(one) for each in common.parcels(store, "0123456789abcdef", recalls[:200]) for one in each]
    harness.show("what the checks cost", ("what", "with / without", "first quartile", "third quartile"), rows)
    signer = Signer([KEY])
    taken = min(harness.timed(lambda: [*map(signer.sign, items)]) for _ in range(20)) / len(items)
    print(f"one signature of {sum(map(len, items)) // len(items)} bytes takes {taken * 1e6:.2f} us")


def _with(store: MemoryStore, **further: Any) -> MemoryStore:
    return MemoryStore(store.path, settings=replace(store.settings, **further))


def _row(name: str, ratios: Sequence[float]) -> list[str]:
    cuts = statistics.quantiles(ratios, n=4)
    return [name, f"{statistics.median(ratios):.3f}", f"{cuts[0]:.3f}", f"{cuts[2]:.3f}"]


def _enqueue(store: MemoryStore, recalls: Sequence[list[Pair]], rounds: int) -> list[float]:
    queues = [ProvenanceWriteQueue(_with(store, signing_key=key)) for key in ("", KEY)]
    for queue in queues:
        queue.start()
    rng, found = random.Random(7), []
    for number in range(rounds + 5):
        times: tuple[list[float], list[float]] = [], []
        for _ in range(TURNS):
            some = rng.choices(recalls, k=CALLS)
            for side in rng.sample((0, 1), 2):
                for recall in some:
                    pairs = [(record_id, dict(entry)) for record_id, entry in recall]
                    times[side].append(harness.timed(lambda q=queues[side], p=pairs: q.enqueue(p)))  # type: ignore[misc]
        if number >= 5:
            found.append(statistics.median(times[1]) / statistics.median(times[0]))
    for queue in queues:
        queue.stop()
    return found


def _drain(
    store: MemoryStore,
    connection: Any,
    recalls: Sequence[list[Pair]],
    rounds: int,
    *,
    keys: tuple[str, str] = ("", ""),
    checks: tuple[bool, bool] = (True, True),
) -> list[float]:
    """Ratios of the processor's time for as many entries, each side in lanes of its own."""
    caches = [[RecordsCache() for _ in range(store.lanes)] for _ in range(2)]
    stores = [_with(store, signing_key=key, namespace=f"side{side}") for side, key in enumerate(keys)]
    rng = random.Random(7)
    found: list[float] = []
    for number in range(rounds + 1):
        taken = [0.0, 0.0]
        for side in rng.sample((0, 1), 2):
            mine = stores[side]
            broker = redis_broker(mine.settings, mine.store_id, mine.lanes, connection)
            broker.open()
            made = common.parcels(
                mine, f"{side}{len(found):07x}{rng.getrandbits(32):08x}", rng.choices(recalls, k=DRAINED)
            )
            broker.push([one for each in made for one in each], replay=True)
            wire.all_sound = fields.all_sound if checks[side] else lambda parcels: True  # type: ignore[attr-defined]
            before = time.process_time()
            _drain_all(mine, broker, caches[side])
            taken[side] = time.process_time() - before
            wire.all_sound = fields.all_sound  # type: ignore[attr-defined]
            broker.close()
        if number:
            found.append(taken[1] / taken[0])
    return found


def _drain_all(store: MemoryStore, broker: Any, caches: Sequence[RecordsCache]) -> None:
    for lane in range(store.lanes):
        report = drain(store, broker, lane, caches[lane], DrainPolicy(max_batch=4096, linger=0))
        assert (report.error, report.dead) == (None, 0), report


if __name__ == "__main__":
    main()
