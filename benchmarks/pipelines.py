"""Compares this pipeline with one RQ job for each recall, and with Celery and celery-batches.

Run with ``python benchmarks/pipelines.py`` (needs the extra ``bench``). Each pipeline has a Redis and a store of
its own, and one warm worker. ``rq`` is ``Queue.enqueue`` of the recall's five entries, and a job that appends
them, in a worker that does not fork; ``celery`` is ``task.delay`` of the same, and a batch of up to 800 recalls,
or of what came in half a second, that is appended at once (its worker is one process that gathers and one that
writes). All three write through ``append_provenance_batch``.

The producer's side is timed call by call while no worker runs, the pipelines in random order. The drain's side
is a burst of recalls, from its first push until all can be read, the pipelines in turns. Only ours keeps the
order of a record's entries, survives a lost Redis (spill) and makes a repeated write harmless; the others are
given none of that here. The plot goes to ``benchmarks/plots/pipelines.png``.
"""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import matplotlib
import redis_common as common
from rq import Queue
from rq.serializers import JSONSerializer

from iai_mcp.entries.parcel import Pair
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.store import MemoryStore
from tests.servers import Server, serving

HERE = Path(__file__).resolve().parent
PLOT = HERE / "plots" / "pipelines.png"
HITS = 5
MEMORIES = 1_000
BURST = {"iai-mcp": 4_000, "celery-batches": 2_000, "rq job per recall": 40}  # recalls


@dataclass
class Pipeline:
    """One way from a recall to the lane tables."""

    name: str
    server: Server
    store: MemoryStore
    ids: list[uuid.UUID]
    push: Callable[[list[Pair]], object]
    command: list[str]

    def rows(self) -> int:
        """Entries that can be read."""
        return sum(self.store.lane(lane).count() for lane in range(self.store.lanes))


def main() -> None:
    quick = harness.options("this pipeline beside RQ and Celery").quick
    calls, rounds = (500, 1) if quick else (3_000, 5)
    with harness.scratch() as folder, ExitStack() as stack:
        pipelines = [
            stack.enter_context(one(folder / name)) for name, one in (("a", _ours), ("b", _celery), ("c", _rq))
        ]
        pushes = _pushes(pipelines, calls)
        paces: dict[str, list[float]] = {pipeline.name: [] for pipeline in pipelines}
        with ExitStack() as workers:
            for pipeline in pipelines:
                workers.enter_context(_worker(pipeline))
            for _ in range(rounds):
                for pipeline in pipelines:
                    paces[pipeline.name].append(_burst(pipeline, 5 if quick else 1))
    figures = [
        Figures(name, 1 / (sum(taken) / len(taken)), harness.median(taken) * 1e6, harness.median(paces[name]))
        for name, taken in pushes.items()
    ]
    print(f"pipelines: {harness.machine()}, one producer, one worker")
    _print(figures, calls, rounds)
    if quick:
        print("\nno plot: these are no figures to quote")
    else:
        draw(figures)


@dataclass
class Figures:
    """What was measured of one pipeline."""

    name: str
    recalls: float  # enqueued per second
    micro: float  # median of one enqueue
    entries: float  # drained per second


def _print(figures: Sequence[Figures], calls: int, rounds: int) -> None:
    ours = figures[0]
    rows = [
        [
            one.name,
            f"{one.recalls:,.0f}",
            f"{one.micro:,.0f}",
            f"{one.micro / ours.micro:.2f}",
            f"{one.entries:,.0f}",
            f"{one.entries / ours.entries:.3f}",
        ]
        for one in figures
    ]
    heads = ("pipeline", "recalls/s pushed", "push p50 µs", "of ours", "entries/s until readable", "of ours")
    harness.show(f"{calls:,} pushes, {rounds} bursts", heads, rows)


# -- the producer's side


def _pushes(pipelines: Sequence[Pipeline], calls: int) -> dict[str, harness.Seconds]:
    """Seconds of each push; what was pushed is thrown away afterwards."""
    work = {pipeline.name: list(common.recalls(pipeline.ids, 500)) for pipeline in pipelines}
    times: dict[str, harness.Seconds] = {pipeline.name: [] for pipeline in pipelines}
    rng = random.Random(3)
    gc.collect()
    gc.freeze()
    for number in range(calls + 100):
        for pipeline in rng.sample(pipelines, len(pipelines)):
            pairs = [(record_id, dict(entry)) for record_id, entry in work[pipeline.name][number % 500]]
            taken = harness.timed(lambda pipeline=pipeline, pairs=pairs: pipeline.push(pairs))  # type: ignore[misc]
            if number >= 100:
                times[pipeline.name].append(taken)
    gc.unfreeze()
    for pipeline in pipelines:
        pipeline.server.client().flushall()
    return times


# -- the drain's side


def _burst(pipeline: Pipeline, fraction: int) -> float:
    """Entries a second of one burst, from its first push until all can be read."""
    work = list(common.recalls(pipeline.ids, BURST[pipeline.name] // fraction))
    target = pipeline.rows() + len(work) * HITS
    began = time.perf_counter()
    for pairs in work:
        pipeline.push(pairs)
    common.wait_for(lambda: pipeline.rows() >= target, 600, 0.01)
    return len(work) * HITS / (time.perf_counter() - began)


@contextmanager
def _worker(pipeline: Pipeline) -> Iterator[None]:
    """One worker process, warm: it has written every record once."""
    env = {
        **os.environ,
        "IAI_MCP_STORE": str(pipeline.store.path),
        "IAI_MCP_REDIS_URL": pipeline.server.url,
        "IAI_MCP_SPILL_DIR": str(pipeline.store.settings.spill_dir),
    }
    with open(pipeline.server.folder / "worker.log", "wb") as log:
        process = subprocess.Popen(pipeline.command, cwd=HERE, env=env, stdout=log, stderr=log)
    try:
        for at in range(0, len(pipeline.ids), 100):
            pipeline.push([(record_id, {"cue": "warm"}) for record_id in pipeline.ids[at : at + 100]])
        try:
            common.wait_for(lambda: pipeline.rows() >= len(pipeline.ids), 60, 0.05)
        except TimeoutError:
            print((pipeline.server.folder / "worker.log").read_text()[-2000:])
            raise
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)


# -- the three


@contextmanager
def _ours(folder: Path) -> Iterator[Pipeline]:
    with serving(folder / "redis") as server:
        store, ids = common.store(folder, server.url, MEMORIES)
        queue = ProvenanceWriteQueue(store)
        queue.start()
        try:
            yield Pipeline("iai-mcp", server, store, ids, queue.enqueue, [sys.executable, "-m", "workers"])
        finally:
            queue.stop()


@contextmanager
def _celery(folder: Path) -> Iterator[Pipeline]:
    with serving(folder / "redis") as server:
        store, ids = common.store(folder, server.url, MEMORIES)
        os.environ["IAI_MCP_REDIS_URL"] = server.url  # the Celery app reads it when it is imported
        from redis_jobs import write_recalls

        del os.environ["IAI_MCP_REDIS_URL"]
        command = [sys.executable, "-m", "celery", "-A", "redis_jobs", "worker", "-c", "1", "-l", "warning"]
        yield Pipeline(
            "celery-batches", server, store, ids, lambda pairs: write_recalls.delay(_texts(pairs)), command
        )


@contextmanager
def _rq(folder: Path) -> Iterator[Pipeline]:
    with serving(folder / "redis") as server:
        store, ids = common.store(folder, server.url, MEMORIES)
        jobs = Queue("recalls", connection=server.client(), serializer=JSONSerializer)
        command = [sys.executable, "-m", "rq.cli", "worker", "-w", "rq.worker.SimpleWorker", "-S", "json", "-q"]
        yield Pipeline(
            "rq job per recall",
            server,
            store,
            ids,
            lambda pairs: jobs.enqueue("redis_jobs.write", _texts(pairs), result_ttl=0),
            [*command, "-u", server.url, "recalls"],
        )


def _texts(pairs: Sequence[Pair]) -> list[tuple[str, dict[str, Any]]]:
    return [(str(record_id), entry) for record_id, entry in pairs]


# -- the plot


def draw(figures: Sequence[Figures]) -> None:
    """Two panels of bars, each with its figure beside it, written to :data:`PLOT`."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [
        ("One push, median (shorter is better)", "microseconds", [one.micro for one in figures]),
        (
            "Entries readable per second (longer is better)",
            "entries per second, log scale",
            [one.entries for one in figures],
        ),
    ]
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 3.4), constrained_layout=True)
    for axis, (title, unit, values) in zip(axes, panels, strict=True):
        bars = axis.barh([one.name for one in figures], values, color=["#1f6f8b", "#b8b8b8", "#b8b8b8"])
        axis.bar_label(bars, [f"{value:,.0f}" for value in values], padding=4)
        if "log" in unit:
            axis.set(xscale="log", xlim=(1, None))
        axis.set(title=title, xlabel=unit)
        axis.margins(x=0.18)
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"From a recall's five entries to the store through Redis ({harness.machine()}, one worker)")
    PLOT.parent.mkdir(exist_ok=True)
    figure.savefig(PLOT, dpi=130)


if __name__ == "__main__":
    main()
