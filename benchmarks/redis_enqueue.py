"""Measures what ``enqueue`` costs the caller with Redis, beside a bare RPUSH and beside one RQ job per recall.

Run with ``python benchmarks/redis_enqueue.py``. The server keeps its append-only file (everysec), no worker
runs. A bare RPUSH sends the bytes that the recall's parcels come to, made beforehand, as one list item, through
a plain redis-py client: with its default pool, and with ``single_connection_client=True``, the kind of
connection that ``enqueue`` has. ``rq.Queue.enqueue`` makes one job out of the same pairs. The sides take turns
in a new order each time, and each is handed copies made right before, since a recall has just made its entries
too. They do so twice: fifty calls at a turn, which the targets are for, and one call at a turn, where each finds
the processor's caches, here and in the server, full of what the others (RQ above all) have left. Round trips are
counted in the broker and, as transactions and script calls, by the server. A second queue with
``IAI_MCP_RETAIN=off`` shows what it costs to keep every entry until it is in the store.
"""

from __future__ import annotations

import gc
import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import harness
import redis
import redis_common as common
from rq import Queue
from rq.serializers import JSONSerializer

from iai_mcp.broker.redis.broker import RedisBroker
from iai_mcp.entries.parcel import Pair
from iai_mcp.entries.wire import encode
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.store import MemoryStore

CALLS = 4_000
WARM = 200
AT_A_TURN = 50


class Work:
    """The recall at hand, in the form that each side takes."""

    def __init__(self, store: MemoryStore, recalls: list[list[Pair]]) -> None:
        parcels = common.parcels(store, "0123456789abcdef", recalls)
        self._packed = [b"".join(map(encode, each)) for each in parcels]
        self._recalls = recalls
        self._turn = itertools.cycle(range(len(recalls)))

    def next(self) -> None:
        """Turn to another recall."""
        at = next(self._turn)
        self.pairs = [(record_id, dict(entry)) for record_id, entry in self._recalls[at]]
        self.texts = [(str(record_id), entry) for record_id, entry in self.pairs]
        self.item = bytes(bytearray(self._packed[at]))


def main() -> None:
    quick = harness.options("what enqueue costs with Redis").quick
    calls = CALLS // 8 if quick else CALLS
    with common.server() as (folder, server):
        store, ids = common.store(folder, server.url, 1_000)
        queue = ProvenanceWriteQueue(store)
        queue.start()
        forgetful = MemoryStore(settings=replace(store.settings, retain_mb=0.0))
        off = ProvenanceWriteQueue(forgetful)
        off.start()
        work = Work(store, list(common.recalls(ids, 1_000)))
        sides = _sides(server.client, queue, off, work)
        shuffled(sides, WARM, 1, work.next)
        times = shuffled(sides, calls // AT_A_TURN, AT_A_TURN, work.next)
        cold = shuffled(sides, calls // 2, 1, work.next)
        trips = min(_round_trips(queue, work, server.client()) for _ in range(3))
        assert queue.counts.spilled == 0, queue.counts
        queue.stop()
        off.stop()
        print(f"redis_enqueue: {harness.machine()}, Redis {common.version(server)}")
    _print(times, cold, trips)


def shuffled(
    sides: dict[str, Callable[[], object]], rounds: int, at_a_turn: int, before: Callable[[], object]
) -> dict[str, harness.Seconds]:
    """Time every side some calls a round, in a random order."""
    rng = random.Random(7)
    times: dict[str, harness.Seconds] = {name: [] for name in sides}
    gc.collect()
    gc.freeze()
    for _ in range(rounds):
        for name in rng.sample(list(sides), len(sides)):
            for _ in range(at_a_turn):
                before()
                times[name].append(harness.timed(sides[name]))
    gc.unfreeze()
    return times


def _sides(
    client: Callable[..., redis.Redis], queue: ProvenanceWriteQueue, off: ProvenanceWriteQueue, work: Work
) -> dict[str, Callable[[], object]]:
    single, pooled = client(single_connection_client=True), client()
    jobs = Queue("beside", connection=client(), serializer=JSONSerializer)
    return {
        "enqueue": lambda: queue.enqueue(work.pairs),
        "enqueue, nothing retained": lambda: off.enqueue(work.pairs),
        "RPUSH, one connection": lambda: single.rpush("beside", work.item),
        "RPUSH, default pool": lambda: pooled.rpush("beside", work.item),
        "rq.Queue.enqueue": lambda: jobs.enqueue("workers.jobs.drain_lane", work.texts),
    }


def _round_trips(queue: ProvenanceWriteQueue, work: Work, client: redis.Redis) -> tuple[float, float]:
    """Round trips of one ``enqueue``, as the broker and as the server counts them.

    The server also counts what the background thread does when it rings for a lane that lies idle, every few
    seconds: hence the least of some counts.
    """
    broker = queue._broker
    assert isinstance(broker, RedisBroker)
    before = broker.round_trips, _pushes(client)
    for _ in range(WARM):
        work.next()
        queue.enqueue(work.pairs)
    return (broker.round_trips - before[0]) / WARM, (_pushes(client) - before[1]) / WARM


def _pushes(client: redis.Redis) -> int:
    stats: Any = client.info("commandstats")
    return sum(int(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"]) for name in ("exec", "eval", "evalsha"))


def _print(
    times: dict[str, harness.Seconds], cold: dict[str, harness.Seconds], trips: tuple[float, float]
) -> None:
    ours, ours_cold = harness.median(times["enqueue"]), harness.median(cold["enqueue"])
    rows = []
    for name, taken in times.items():
        micro = [f"{harness.percentile(taken, percent) * 1e6:.0f}" for percent in (50, 99)]
        there = f"{ours_cold / harness.median(cold[name]):.2f} x"
        rows.append([name, *micro, *_verdict(name, ours, harness.median(taken)), there])
    heads = ("way", "p50 µs", "p99 µs", "enqueue takes", "target", "one call at a turn")
    harness.show(f"{len(times['enqueue']):,} calls each, five pairs", heads, rows)
    print(
        f"\nround trips per recall: {trips[0]:.3f} by the broker, {trips[1]:.3f} by the server; ",
        end="",
    )
    print(f"target {harness.at_most(max(trips), 1)}")


def _verdict(name: str, ours: float, theirs: float) -> list[str]:
    ratio = ours / theirs
    if name == "enqueue":
        return ["-", "-"]
    if name == "enqueue, nothing retained":
        return [f"{ratio:.2f} x", harness.at_most(ratio, 1.05)]
    if name.startswith("rq"):
        return [f"1/{1 / ratio:.2f} of it", harness.at_least(1 / ratio, 3)]
    return [f"{ratio:.2f} x", harness.at_most(ratio, 1.4)]


if __name__ == "__main__":
    main()
