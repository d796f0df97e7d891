"""Resident memory of a server and of a worker, each a process of its own: at rest, and after work.

Run with ``python benchmarks/resident.py``. A server over HTTP with the built-in embedder, a Redis, one worker
(``python -m workers``, without its supervisor). An MCP client captures and recalls through the server; then
recalls are pushed past it, as many clients would. What is shown is VmRSS, in MiB: files that are mapped count,
and so does what the allocator keeps. Linux.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import harness
import redis_common as common
from mcp.client import Client

from iai_mcp.store import MemoryStore

CAPTURES, RECALLS, PUSHED = 200, 500, 20_000
HITS = 10


def main() -> None:
    quick = harness.options("memory of a server and of a worker").quick
    recalls, pushed = (RECALLS // 10, PUSHED // 10) if quick else (RECALLS, PUSHED)
    print(f"resident: {harness.machine()}")
    with common.server() as (folder, redis):
        env = {"IAI_MCP_STORE": str(folder / "store"), "IAI_MCP_REDIS_URL": redis.url, "HOME": str(folder)}
        env |= {"IAI_MCP_SPILL_DIR": str(folder / "spill"), "IAI_MCP_EMBEDDER": "builtin"}
        with _serving(env, folder / "log") as (server, url):
            rows = [("server", "at rest", _resident(server))]
            store = MemoryStore(settings=common.settings(folder, redis.url))
            with common.workers(redis, store, 1) as (worker,):
                rows.append(("worker", "at rest", _resident(worker)))
                asyncio.run(_ask(url, recalls))
                _drained(store)
                rows.append(("server", f"after {CAPTURES} captures and {recalls} recalls", _resident(server)))
                rows.append(("worker", f"after {recalls * HITS:,} entries of these", _resident(worker)))
                store.enable_provenance_queue()
                ids = [record.id for record in store.list_records(limit=CAPTURES)]
                for pairs in common.recalls(ids, pushed):
                    store.queue_provenance_batch(pairs)
                _drained(store)
                rows.append(("worker", f"after {pushed * 5:,} more", _resident(worker)))
                store.disable_provenance_queue()
    harness.show("resident memory, MiB", ("process", "when", "VmRSS"), [[*map(str, row)] for row in rows])


@contextmanager
def _serving(env: dict[str, str], log: Path) -> Iterator[tuple[int, str]]:
    command = [sys.executable, "-m", "iai_mcp", "serve", "--transport", "http", "--port", "0"]
    with open(log, "wb") as sink:
        server = subprocess.Popen(command, env={**os.environ, **env}, stderr=sink)
    try:
        common.wait_for(lambda: "/mcp" in log.read_text(), 60, 0.1)
        url = log.read_text().split()[-1]
        asyncio.run(_warm(url))
        yield server.pid, url
    finally:
        server.terminate()
        server.wait(30)


async def _warm(url: str) -> None:
    async with Client(url) as client:
        await client.call_tool("memory_status", {})


async def _ask(url: str, recalls: int) -> None:
    async with Client(url) as client:
        for number in range(CAPTURES):
            text = f"Ferry number {number} leaves from pier {number * 7} at {number % 24} o'clock."
            await client.call_tool("memory_capture", {"text": text})
        for number in range(recalls):
            await client.call_tool("memory_recall", {"cue": f"when does ferry {number % CAPTURES} leave?"})


def _drained(store: MemoryStore) -> None:
    from iai_mcp.core import dispatch

    def empty() -> bool:
        lanes = dispatch(store, "memory_status")["lanes"]
        return not any(lane["pending"] or lane["in_flight"] for lane in lanes)

    common.wait_for(empty, 120, 0.2)


def _resident(pid: int) -> int:
    (found,) = re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found) // 1024


if __name__ == "__main__":
    main()
