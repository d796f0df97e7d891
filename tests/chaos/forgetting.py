"""Rounds of load in which Redis forgets what it had taken: ``python -m tests.chaos.forgetting --rounds 20``.

In each round clients recall and workers drain; Redis forgets in the middle, and the clients go on. Lost is every
entry whose ``enqueue`` had returned and that is not in the store once all is drained. Three ways of forgetting:

- power cut: Redis is killed, and what it had not synced is cut off its append-only file (needs a C compiler)
- FLUSHALL: three times, while the clients recall
- failover: the primary is killed, and Sentinel promotes a replica that lacks the last second; a proxy follows, as
  a virtual address does
"""

from __future__ import annotations

import argparse
import itertools
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from tests.chaos.checker import Verdict, check
from tests.chaos.disk import COMPILER, Disk
from tests.chaos.history import read
from tests.chaos.proxy import Proxy
from tests.chaos.rig import Rig
from tests.servers import Server, free_port, redis_server
from tests.support import wait_until

LOAD_S = 1.5  # before and after Redis forgets
LAG_S = 1.0  # what the replica lacks

How = Callable[[Path, random.Random, float], Verdict]


@dataclass
class Row:
    """One way of forgetting, over all rounds so far."""

    rounds: int = 0
    entries: int = 0
    lost: int = 0
    doubled: int = 0
    reordered: int = 0
    p100_ms: float = 0.0

    def add(self, verdict: Verdict) -> None:
        self.rounds += 1
        self.entries += verdict.entries
        self.lost += len(verdict.lost)
        self.doubled += len(verdict.doubled)
        self.reordered += len(verdict.reordered) + len(verdict.phantom)
        self.p100_ms = max(self.p100_ms, verdict.p100_ms)

    def line(self, name: str) -> str:
        cells = (self.rounds, self.entries, self.lost, self.doubled, self.reordered, f"{self.p100_ms:.0f}")
        return f"| {name} | {' | '.join(map(str, cells))} |"


HEAD = "| Redis forgets by | rounds | entries | lost | doubled | reordered | p100 ms |\n| :-- |" + " --: |" * 6


@contextmanager
def load(rig: Rig, producers: int = 2) -> Iterator[None]:
    """Client processes that recall during the block, beside this process; all is drained at its end."""
    running = [rig.start_producer(f"p{number}", seconds=1e9, pause=0.002) for number in range(producers)]
    try:
        wait_until(lambda: all(path.stat().st_size for path in rig.histories[1:]), 60)
        yield
        (rig.folder / "go").unlink()
        time.sleep(0.6)  # an idle client looks four times a second whether Redis has forgotten
        wait_until(lambda: all(client.poll() is None for client in running))
        wait_until(rig.drained, 90)
    finally:
        (rig.folder / "stop").touch()
        for client in running:
            try:
                client.wait(30)
            except subprocess.TimeoutExpired:
                client.kill()


def judged(rig: Rig) -> Verdict:
    """What the history says of the store, once all is drained."""
    wait_until(rig.drained, 90)
    return check(read(rig.histories), rig.look())


def recall(rig: Rig, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        rig.produce(1)
        time.sleep(0.002)


def power_cut(folder: Path, chance: random.Random, retain_mb: float) -> Verdict:
    """The last second is cut off the append-only file."""
    disk = Disk(folder / "disk")
    server = Server(folder / "redis", "--appendfsync", "everysec", environment=disk.environment).start()
    with Rig(folder, server=server, retain_mb=retain_mb) as rig:
        with load(rig):
            recall(rig, LOAD_S + chance.random())
            disk.cut_power(server)
            server.start()
            recall(rig, LOAD_S)
        return judged(rig)


def flushall(folder: Path, chance: random.Random, retain_mb: float) -> Verdict:
    """Every key is gone, three times."""
    with Rig(folder, retain_mb=retain_mb) as rig:
        with load(rig):
            for _ in range(3):
                recall(rig, LOAD_S / 2 + chance.random() / 2)
                rig.server.client().flushall()
            recall(rig, LOAD_S)
        return judged(rig)


def failover(folder: Path, chance: random.Random, retain_mb: float) -> Verdict:
    """Sentinel promotes a replica that lacks the last second."""
    primary, replica = (Server(folder / name, acl=False).start() for name in ("redis", "replica"))
    link = Proxy(primary.port)
    sentinel = Sentinel(folder / "sentinel")
    try:
        replica.client().execute_command("REPLICAOF", "127.0.0.1", link.port)
        wait_until(lambda: replica.client().info("replication")["master_link_status"] == "up", 30)
        with Rig(folder, server=primary, proxied="all", retain_mb=retain_mb) as rig:
            with load(rig):
                sentinel.watch(primary.port, replica.port)
                recall(rig, LOAD_S / 2 + chance.random() / 2)
                link.set("swallow")
                recall(rig, LAG_S)
                primary.kill()
                promoted = sentinel.failed_over(primary.port)
                assert promoted == replica.port
                assert rig.proxy is not None
                rig.proxy.target(promoted)
                rig.server = replica
                recall(rig, LOAD_S)
            return judged(rig)
    finally:
        sentinel.end()
        link.close()
        for server in (primary, replica):
            server.kill()


class Sentinel:
    """A Redis Sentinel process that watches one primary."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def watch(self, primary: int, replica: int) -> None:
        """Start, and return once it knows the replica."""
        self._folder.mkdir()
        config = self._folder / "sentinel.conf"
        config.write_text(
            f"port {self._port}\nbind 127.0.0.1\ndir {self._folder}\n"
            f"sentinel monitor main 127.0.0.1 {primary} 1\n"
            "sentinel down-after-milliseconds main 400\n"
            "sentinel failover-timeout main 3000\n"
        )
        with open(self._folder / "sentinel.log", "ab") as log:
            command = [redis_server(), str(config), "--sentinel"]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(lambda: self._knows(replica), 30)

    def _knows(self, replica: int) -> bool:
        try:
            found = redis.Redis(port=self._port).execute_command("SENTINEL", "REPLICAS", "main")
        except redis.RedisError:
            return False
        return str(replica).encode() in str(found).encode()

    def failed_over(self, primary: int) -> int:
        """The port of the new primary, once there is one."""
        client = redis.Redis(port=self._port)

        def moved() -> int:
            host_and_port = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")
            port = int(host_and_port[1])
            return port if port != primary else 0

        return int(wait_until(moved, 60))

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)


WAYS: dict[str, How] = {"power cut": power_cut, "FLUSHALL": flushall, "failover": failover}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds for each way (3)")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--only", action="append", choices=sorted(WAYS), help="only this way")
    parser.add_argument("--retain-mb", type=float, default=8.0, help="IAI_MCP_RETAIN of the clients (8)")
    options = parser.parse_args()
    ways = {name: how for name, how in WAYS.items() if name in (options.only or WAYS)}
    if COMPILER is None and "power cut" in ways:
        print("error: the power cut needs a C compiler: install one that is called cc", file=sys.stderr)  # noqa: T201
        return 2
    chance, rows = random.Random(options.seed), {name: Row() for name in ways}
    with tempfile.TemporaryDirectory() as root:
        for number, (name, how) in itertools.product(range(options.rounds), ways.items()):
            verdict = how(Path(root) / f"{number}-{name.replace(' ', '-')}", chance, options.retain_mb)
            rows[name].add(verdict)
            print(f"{time.strftime('%H:%M:%S')} round {number + 1}, {name}: {verdict}", file=sys.stderr)  # noqa: T201
    print(HEAD, *(row.line(name) for name, row in rows.items()), sep="\n")  # noqa: T201
    return int(any(row.lost + row.doubled + row.reordered for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
