"""Measures what the MCP server adds: to a start, to one recall over stdio, and to recalls of 16 clients at once.

Run with ``python benchmarks/server.py``. The handshake is timed from the start of the process to the answer to
``initialize``, beside a server of the bare SDK. Recalls look through 10,000 memories with random vectors and the
built-in embedder; each side is a process of its own, and the sides take turns. The 16 HTTP clients live in
this process, which therefore takes part of the machine that ``dispatch`` in 16 threads has for itself.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import harness

from iai_mcp.core import dispatch
from iai_mcp.store import MemoryStore

MEMORIES = 10_000
CLIENTS = 16
HANDSHAKE_S = 0.3
STDIO_MS = 3.0
THROUGHPUT = 0.8
SPREAD = 5.0

BARE = """
import anyio
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

async def main():
    server = Server("bare")
    async with stdio_server() as streams:
        await server.run(*streams, server.create_initialization_options())

anyio.run(main)
"""
INITIALIZE = {
    "protocolVersion": "2025-06-18",
    "capabilities": {},
    "clientInfo": {"name": "benchmark", "version": "1"},
}


def main() -> None:
    quick = harness.options("what the MCP server adds").quick
    print(f"server: {harness.machine()}")
    with harness.scratch() as folder:
        _fill(folder)
        env = {**os.environ, "IAI_MCP_STORE": str(folder / "store"), "IAI_MCP_SPILL_DIR": str(folder / "spill")}
        env["IAI_MCP_EMBEDDER"] = "builtin"
        _handshakes(env, 5 if quick else 15)
        _stdio(env, folder, 60 if quick else 300)
        _http(env, folder, *((2, 15) if quick else (5, 40)))


def _fill(folder: Path) -> None:
    store = MemoryStore(settings=harness.settings(folder, embedder="builtin"))
    memories = harness.records(MEMORIES, dims=store.meta.embedder.dims)
    for batch in (memories[at : at + 2_000] for at in range(0, MEMORIES, 2_000)):
        store.insert_many(batch)
    store._records.maintain()


# -- the handshake


def _handshakes(env: dict[str, str], rounds: int) -> None:
    ours = [sys.executable, "-m", "iai_mcp", "serve"]
    sides = {"bare": [sys.executable, "-c", BARE], "ours": ours}
    # Only the part up to the answer counts, so each side keeps its own clock.
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name in list(sides) if turn % 2 else reversed(list(sides)):
            child = _Child(sides[name], env)
            took = harness.timed(partial(child.ask, "initialize", INITIALIZE))
            child.close()
            if turn:  # the first round warms the disk's cache
                times[name].append(took + child.started)
    bare, mine = harness.median(times["bare"]), harness.median(times["ours"])
    more = round(harness.median([ours - bare for ours, bare in zip(times["ours"], times["bare"], strict=True)]), 3)
    rows = [
        ("server of the bare SDK", f"{bare:.3f}", f"{min(times['bare']):.3f}", "-"),
        ("iai-mcp serve", f"{mine:.3f}", f"{min(times['ours']):.3f}", "-"),
        ("difference, in pairs", f"{more:+.3f}", "", harness.at_most(more, HANDSHAKE_S)),
    ]
    harness.show(f"Start to handshake, s ({rounds} processes each)", ("side", "median", "best", "target"), rows)


class _Child:
    """A stdio server and its one client."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self._numbers = itertools.count(1)
        self.started = harness.timed(lambda: self._start(command, env))

    def _start(self, command: list[str], env: dict[str, str]) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=env)

    def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        number = next(self._numbers)
        self.tell({"id": number, "method": method, "params": params})
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        assert answer["id"] == number, answer
        return dict(answer["result"])

    def tell(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
        self._process.stdin.flush()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# -- one recall


def _arguments(rng: random.Random) -> dict[str, Any]:
    return {"cue": harness.words(rng, 6), "session_id": "bench"}


def _direct(folder: Path) -> tuple[MemoryStore, Callable[[], None]]:
    store = MemoryStore(settings=harness.settings(folder, embedder="builtin"))
    store.enable_provenance_queue()
    rng = random.Random(3)

    def recall() -> None:
        assert len(dispatch(store, "memory_recall", {**_arguments(rng), "client": "benchmark/1"})["hits"]) == 10

    return store, recall


def _stdio(env: dict[str, str], folder: Path, rounds: int) -> None:
    store, direct = _direct(folder)
    rng = random.Random(4)
    with _Child([sys.executable, "-m", "iai_mcp", "serve"], env) as child:
        child.ask("initialize", INITIALIZE)
        child.tell({"method": "notifications/initialized"})

        def over_stdio() -> None:
            result = child.ask("tools/call", {"name": "memory_recall", "arguments": _arguments(rng)})
            assert len(result["structuredContent"]["hits"]) == 10, result

        for _ in range(20):
            direct()
            over_stdio()
        times = harness.interleave({"dispatch": direct, "stdio": over_stdio}, rounds)
    store.disable_provenance_queue()
    p50 = {name: harness.median(values) * 1000 for name, values in times.items()}
    p99 = {name: harness.percentile(values, 99) * 1000 for name, values in times.items()}
    pairs = zip(times["stdio"], times["dispatch"], strict=True)
    more = round(harness.median([served - direct for served, direct in pairs]) * 1000, 2)
    rows = [
        ("dispatch in process", f"{p50['dispatch']:.2f}", f"{p99['dispatch']:.2f}", "-"),
        ("memory_recall over stdio", f"{p50['stdio']:.2f}", f"{p99['stdio']:.2f}", "-"),
        ("difference, in pairs", f"{more:+.2f}", "", harness.at_most(more, STDIO_MS)),
    ]
    harness.show(f"One recall, ms ({rounds} each)", ("side", "p50", "p99", "target (p50)"), rows)


# -- sixteen at once


def _http(env: dict[str, str], folder: Path, blocks: int, each: int) -> None:
    store, direct = _direct(folder)
    ratios, spreads, rows = [], [], []
    with _http_server(env) as url:
        asyncio.run(_clients(url, 4))
        _threads(direct, 4)
        for block in range(blocks):
            alone, alone_times = _threads(direct, each)
            served, times = asyncio.run(_clients(url, each))
            ratios.append(served / alone)
            spreads.append(harness.percentile(times, 99) / harness.median(times))
            rows.append((block + 1, f"{alone:.1f}", _spread(alone_times), f"{served:.1f}", _spread(times)))
            assert store._provenance_queue is not None
            assert store._provenance_queue.flush(60)
    store.disable_provenance_queue()
    heads = ("block", "threads, 1/s", "p50 / p99 ms", "HTTP, 1/s", "p50 / p99 ms")
    harness.show(f"{CLIENTS} at once, {each} recalls each", heads, rows)
    ratio, spread = round(harness.median(ratios), 2), round(harness.median(spreads), 2)
    targets = [
        ("HTTP / threads", ratio, harness.at_least(ratio, THROUGHPUT)),
        ("p99 / p50 over HTTP", spread, harness.at_most(spread, SPREAD)),
    ]
    harness.show("Middle of the blocks", ("what", "ratio", "target"), targets)


def _spread(times: harness.Seconds) -> str:
    return f"{harness.median(times) * 1000:.0f} / {harness.percentile(times, 99) * 1000:.0f}"


def _threads(recall: Callable[[], None], each: int) -> tuple[float, harness.Seconds]:
    """Recalls per second, and how long each took."""
    times: harness.Seconds = []

    def work(_: int) -> None:
        for _ in range(each):
            times.append(harness.timed(recall))

    with ThreadPoolExecutor(CLIENTS) as pool:
        took = harness.timed(lambda: list(pool.map(work, range(CLIENTS))))
    return CLIENTS * each / took, times


@contextmanager
def _http_server(env: dict[str, str]) -> Iterator[str]:
    command = [sys.executable, "-m", "iai_mcp", "serve", "--transport", "http", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=env, text=True)
    try:
        assert process.stderr is not None
        yield process.stderr.readline().split()[-1]
    finally:
        process.terminate()
        process.wait(30)


async def _clients(url: str, each: int) -> tuple[float, harness.Seconds]:
    clients = [_HttpClient(url, seed) for seed in range(CLIENTS)]
    await asyncio.gather(*(client.open() for client in clients))
    loop = asyncio.get_running_loop()
    began = loop.time()
    await asyncio.gather(*(client.work(each) for client in clients))
    took = loop.time() - began
    for client in clients:
        await client.close()
    return CLIENTS * each / took, [time for client in clients for time in client.times]


class _HttpClient:
    """One MCP session over one connection, with as little of its own as a client can have."""

    def __init__(self, url: str, seed: int) -> None:
        host, _, self._path = url.removeprefix("http://").partition("/")
        self._host = host
        self._rng = random.Random(seed)
        self._numbers = itertools.count(1)
        self._session = ""
        self.times: harness.Seconds = []

    async def open(self) -> None:
        name, _, port = self._host.partition(":")
        self._reader, self._writer = await asyncio.open_connection(name, int(port))
        await self._ask("initialize", INITIALIZE)
        await self._post({"jsonrpc": "2.0", "method": "notifications/initialized"})

    async def work(self, each: int) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(each):
            began = loop.time()
            call = {"name": "memory_recall", "arguments": _arguments(self._rng)}
            result = await self._ask("tools/call", call)
            self.times.append(loop.time() - began)
            assert len(result["structuredContent"]["hits"]) == 10, result

    async def _ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        message = {"jsonrpc": "2.0", "id": next(self._numbers), "method": method, "params": params}
        return dict(json.loads(await self._post(message))["result"])

    async def _post(self, message: dict[str, Any]) -> bytes:
        body = json.dumps(message).encode()
        head = (
            f"POST /{self._path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
            f"Accept: application/json, text/event-stream\r\nContent-Length: {len(body)}\r\n"
        )
        if self._session:
            head += f"Mcp-Session-Id: {self._session}\r\nMcp-Protocol-Version: 2025-06-18\r\n"
        self._writer.write(f"{head}\r\n".encode() + body)
        length = 0
        while (line := await self._reader.readline()).strip():
            name, _, value = line.decode().partition(":")
            if name.lower() == "mcp-session-id":
                self._session = value.strip()
            elif name.lower() == "content-length":
                length = int(value)
        return await self._reader.readexactly(length)

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


if __name__ == "__main__":
    main()
