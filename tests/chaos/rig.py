"""A deployment to break: a Redis server, a proxy before it, workers, producers, and the history of it all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, cast
from uuid import UUID

from iai_mcp.broker.redis.broker import RedisBroker
from iai_mcp.config import Settings, overflow_dir
from iai_mcp.entries.wire import decode
from iai_mcp.errors import IaiMcpError, MalformedParcel
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.record import MemoryRecord
from iai_mcp.spill.names import files_in
from iai_mcp.store import MemoryStore
from tests.chaos.checker import Verdict, check
from tests.chaos.history import Recorder, read
from tests.chaos.proxy import Proxy
from tests.servers import Server, worker_commands
from tests.support import ROOT, wait_until

RECORDS = 8
_SUPERVISED = """
import sys, time
from workers.__main__ import main
sys.argv[1:] = []
while main() == 1:
    time.sleep(0.5)
"""


class Rig:
    """Everything that a fault needs, in ``folder``; close it at the end."""

    def __init__(
        self,
        folder: Path,
        *server_options: str,
        workers: int = 1,
        proxied: bool | Literal["all"] = False,
        lease_s: float = 2.0,
        push_budget_ms: float = 10.0,
        durability: Literal["memory", "fsync"] = "memory",
        server: Server | None = None,
        retain_mb: float = 8.0,
    ) -> None:
        self.folder = folder
        self.server = server or Server(folder / "redis", *server_options).start()
        self._all = proxied == "all"  # workers, too
        self.proxy = Proxy(self.server.port) if proxied else None
        self.url = f"redis://127.0.0.1:{self.proxy.port if self.proxy else self.server.port}/0"
        self.settings = Settings(
            store=folder / "store",
            redis_url=self.url,
            spill_dir=folder / "spill",
            lease_s=lease_s,
            push_budget_ms=push_budget_ms,
            redis_durability=durability,
            retain_mb=retain_mb,
            embedder="none",
        )
        self.store = MemoryStore(settings=self.settings)
        self.records = self.store.insert_many([MemoryRecord(text=f"memory {n}") for n in range(RECORDS)])
        self.histories: list[Path] = []
        self.excused: list[str] = []
        self.workers: list[subprocess.Popen[bytes]] = []
        self.doubled: set[str] = set()
        self.queue = ProvenanceWriteQueue(self.store)
        self.queue.start()
        self.recorder = self._recorder("main")
        self.took: list[float] = []
        for _ in range(workers):
            self.start_worker()

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.send_signal(signal.SIGCONT)
            worker.kill()
            worker.wait(20)
        self.queue.stop()
        if self.proxy:
            self.proxy.close()
        self.server.kill()

    # -- people

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "IAI_MCP_STORE": str(self.store.path),
            "IAI_MCP_REDIS_URL": self.url if self._all else f"redis://127.0.0.1:{self.server.port}/0",
            "IAI_MCP_RETAIN": str(self.settings.retain_mb),
            "IAI_MCP_SPILL_DIR": str(self.folder / "spill"),
            "IAI_MCP_LEASE": str(self.settings.lease_s),
            "IAI_MCP_EMBEDDER": "none",
        }

    def start_stock_worker(self) -> subprocess.Popen[bytes]:
        """A plain ``rq worker``, which forks for each job and never sweeps."""
        command = worker_commands(f"redis://127.0.0.1:{self.server.port}/0")["stock"]
        with open(self.folder / "workers.log", "ab") as log:
            process = subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=log, stderr=log)
        self.workers.append(process)
        return process

    def start_worker(self, before: str = "") -> subprocess.Popen[bytes]:
        """A worker process, started again when it ends on an error, as under a supervisor.

        ``before`` is Python that runs first: a failpoint that production never sees.
        """
        code = f"{before}\n{_SUPERVISED}"
        with open(self.folder / "workers.log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", code], cwd=ROOT, env=self.environment, stdout=log, stderr=log
            )
        self.workers.append(process)
        return process

    def start_producer(self, name: str, seconds: float, pause: float = 0.005) -> subprocess.Popen[bytes]:
        """A client process that recalls for a while."""
        path = self.folder / f"{name}.history"
        path.touch()
        self.histories.append(path)
        (self.folder / "go").touch()
        command = [sys.executable, "-m", "tests.chaos.producer", name, str(path), str(seconds), str(pause)]
        environment = {**self.environment, "IAI_MCP_REDIS_URL": self.url}
        with open(self.folder / "producers.log", "ab") as log:
            return subprocess.Popen(
                [*command, *map(str, self.records)], cwd=ROOT, env=environment, stdout=log, stderr=log
            )

    def _recorder(self, name: str) -> Recorder:
        path = self.folder / f"{name}.history"
        self.histories.append(path)
        return Recorder(path, name)

    def produce(self, calls: int, pause: float = 0.0) -> list[float]:
        """Recalls of this process, each leaving an entry on three records; the milliseconds that each took."""
        took = []
        for turn in range(calls):
            chosen = [self.records[(turn + step) % RECORDS] for step in (0, 2, 5)]
            took.append(self.recorder.enqueue(self.queue, chosen))
            if pause:
                time.sleep(pause)
        self.took += took
        return took

    # -- looking

    @property
    def _broker(self) -> RedisBroker:
        assert isinstance(self.queue._broker, RedisBroker)
        return self.queue._broker

    def look(self) -> dict[str, list[str]]:
        """What any reader sees now; doubles are remembered whenever they were seen."""
        visible: dict[str, list[str]] = {}
        for record in self.records:
            found = self.store.get(record)
            names = [entry["cue"] for entry in found.provenance] if found else []
            self.doubled |= {f"{name}@{record}" for name in names if names.count(name) > 1}
            visible[str(record)] = names
        return visible

    def waiting(self) -> list[tuple[str, str]]:
        """Entries in lanes, in flight and in the spill."""
        found: list[tuple[str, str]] = []
        items: list[bytes] = []
        client = self.server.client()
        keys = RedisBroker(client, self.store.store_id, self.store.lanes).keys
        for lane in range(self.store.lanes):
            items += cast("list[bytes]", client.lrange(keys.lane(lane, "pending"), 0, -1))
        folder = overflow_dir(self.settings)
        for path, _ in files_in(folder):
            items += path.read_bytes().splitlines()
        for raw in items:
            try:
                found += [(str(record), entry["cue"]) for record, _, entry in decode(raw).handed_out()]
            except MalformedParcel:
                continue
        return found

    def find_histories(self) -> None:
        """Add the histories of forked clients."""
        self.histories += sorted({*self.folder.glob("*.history")} - {*self.histories})

    def drained(self) -> bool:
        """Whether nothing waits anywhere."""
        try:
            stats = self._broker.stats()
        except IaiMcpError:
            return False
        idle = all(lane.pending + lane.in_flight == 0 for lane in stats) and not self._broker.retained
        folder = overflow_dir(self.settings)
        return idle and all(name.set_aside for _, name in files_in(folder))

    def settle(self, timeout: float = 40.0, *, budget_ms: float | None = None) -> Verdict:
        """Wait until all is drained, then hold what is visible against the history."""
        wait_until(self.drained, timeout)
        verdict = check(read(self.histories), self.look(), budget_ms=budget_ms, may_lose=self.excused)
        assert not self.doubled, f"read twice at some moment: {sorted(self.doubled)[:3]}"
        return verdict

    def wait(self, condition: Callable[[], object], timeout: float = 20.0) -> None:
        wait_until(condition, timeout)

    def records_of(self, numbers: Sequence[int]) -> list[UUID]:
        return [self.records[number] for number in numbers]
