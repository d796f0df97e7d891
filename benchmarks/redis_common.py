"""What the Redis benchmarks share: a real server with its append-only file on, settings that use it, recalls.

The server is the one the tests start: on a free port, ``appendonly yes``, ``appendfsync everysec``.
"""

from __future__ import annotations

import os
import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import redis

from iai_mcp.config import Settings
from iai_mcp.entries.parcel import Pair, Parcel
from iai_mcp.entries.routing import route
from iai_mcp.store import MemoryStore
from tests.servers import Server, serving, worker

PATIENT_MS = 5_000.0  # a benchmark must not be told "spilled" by a machine that does other things too
ROOMY = 10**9


@contextmanager
def server() -> Iterator[tuple[Path, Server]]:
    """A scratch folder and a Redis in it, for the block."""
    with harness.scratch() as folder, serving(folder / "redis") as running:
        yield folder, running


def version(server: Server) -> str:
    """The server's version."""
    info: Any = server.client().info("server")
    return str(info["redis_version"])


def settings(folder: Path, url: str, **further: Any) -> Settings:
    """Default settings over Redis, but for a push that may take long, and a lane and a ring that may hold much."""
    plain = harness.settings(folder)
    roomy = {"push_budget_ms": PATIENT_MS, "lane_ceiling": ROOMY, "retain_mb": 1024.0}
    return replace(plain, redis_url=url, **{**roomy, **further})


def store(folder: Path, url: str, memories: int) -> tuple[MemoryStore, list[uuid.UUID]]:
    """A store in ``folder`` with so many memories."""
    made = MemoryStore(settings=settings(folder, url))
    return made, made.insert_many(harness.records(memories))


def recalls(ids: Sequence[uuid.UUID], count: int, hits: int = 5, seed: int = 5) -> Iterator[list[Pair]]:
    """What ``count`` recalls hand over."""
    rng = random.Random(seed)
    for number in range(count):
        found, said = rng.sample(ids, hits), harness.entry(rng, 0, number)
        yield [
            (record_id, {**said, "rank": rank, "score": rng.random()}) for rank, record_id in enumerate(found, 1)
        ]


def parcels(store: MemoryStore, producer: str, work: Sequence[list[Pair]]) -> list[list[Parcel]]:
    """What ``enqueue`` would push for each recall."""
    made, seq, now = [], 1, time.time()
    for pairs in work:
        made.append(route(store.store_id, producer, seq, pairs, store.lanes, now))
        seq += len(pairs)
    return made


@contextmanager
def workers(server: Server, store: MemoryStore, count: int, **env: str) -> Iterator[list[int]]:
    """``count`` processes of ``python -m workers``, warm: imported, store open, waiting; their pids."""
    spill = str(store.settings.spill_dir)
    with ExitStack() as stack:
        pids = [
            stack.enter_context(worker(server.url, store.path, env={"IAI_MCP_SPILL_DIR": str(spill), **env})).pid
            for _ in range(count)
        ]
        client = server.client()
        wait_for(lambda: _idle(client) >= count, 120, 0.1)
        yield pids


def _idle(client: redis.Redis) -> int:
    """Workers that wait for a doorbell."""
    names = [name for name in client.scan_iter("rq:worker:*", 1000) if client.type(name) == b"hash"]
    return sum(client.hget(name, "state") == b"idle" for name in names)


def cpu_seconds(pids: Iterable[int]) -> float:
    """What processes have used of the processors so far (Linux)."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def wait_for(condition: Callable[[], object], timeout: float, pause: float = 0.002) -> None:
    """Return once ``condition`` holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so after {timeout} s: {condition}")
        time.sleep(pause)
