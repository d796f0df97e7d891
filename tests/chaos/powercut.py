"""What each durability costs and loses in a power cut of Redis's machine: ``python -m tests.chaos.powercut``.

In each round a client recalls for a second or two (three entries each, and after each a bare RPUSH of about as
many bytes); then the power fails: the server is killed, and what it had not synced is cut off its append-only
file. Then the server starts again, and the client, which lives on, has time to notice. Lost is every entry whose
``enqueue`` had returned and that is neither in the restarted server nor in the client's spill.
Needs a C compiler, and a folder for temporary files that lies on a real disk.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import redis

from tests.chaos.checker import check
from tests.chaos.disk import COMPILER, Disk
from tests.chaos.history import read
from tests.chaos.rig import Rig
from tests.servers import Server
from tests.support import wait_until

WARM = 50
SETTINGS: tuple[tuple[Literal["memory", "fsync"], str, float], ...] = (
    ("memory", "everysec", 8.0),
    ("memory", "everysec", 0.0),
    ("memory", "always", 0.0),
    ("fsync", "everysec", 0.0),
    ("fsync", "always", 0.0),
)  # IAI_MCP_REDIS_DURABILITY, appendfsync, IAI_MCP_RETAIN


@dataclass
class Row:
    """One setting over all rounds; times in ms, counts in entries."""

    name: str
    took: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    entries: int = 0
    spilled: int = 0
    doubled: int = 0

    def __str__(self) -> str:
        times = [f"{_percentile(each, p):.2f}" for each in (self.took, self.bare) for p in (50, 99)]
        slower = _percentile(self.took, 50) / _percentile(self.bare, 50)
        cells = [self.name, *times, f"{slower:.1f}", str(self.entries), str(self.spilled)]
        return f"| {' | '.join(cells)} | {sum(self.lost)} | {max(self.lost)} |"


HEAD = (
    "| durability, appendfsync, retained MiB | p50 ms | p99 ms | RPUSH p50 | RPUSH p99 | p50 ratio | entries "
    "| spilled | lost | most in one cut |"
)


def _percentile(values: list[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


def one_round(
    folder: Path,
    row: Row,
    durability: Literal["memory", "fsync"],
    appendfsync: str,
    retain_mb: float,
    s: float,
) -> None:
    """Recall for ``s`` seconds, cut the power, start again and count."""
    disk = Disk(folder / "disk")
    server = Server(folder / "redis", "--appendfsync", appendfsync, environment=disk.environment).start()
    with Rig(folder, workers=0, durability=durability, server=server, retain_mb=retain_mb) as rig:
        bare = redis.Redis(port=server.port, single_connection_client=True)
        item = b"x" * 900  # about what three entries come to
        end = time.monotonic() + s
        for turn in itertools.count():
            (took,) = rig.produce(1)
            began = time.perf_counter()
            bare.rpush("bare", item)
            if turn >= WARM:
                row.bare.append((time.perf_counter() - began) * 1000)
                row.took.append(took)
            if time.monotonic() > end:
                break
            time.sleep(0.001)
        (took,) = rig.produce(1)  # the last call before the cut is a recall's
        disk.cut_power(server)
        server.start()
        wait_until(lambda: rig.queue._broker.room > 0, 20)  # connected again
        rig.queue.stop()
        row.spilled += rig.queue.counts.spilled
        verdict = check(read(rig.histories), {}, waiting=rig.waiting())
        row.entries += verdict.entries
        row.lost.append(len(verdict.lost))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="power cuts for each setting (5)")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    if COMPILER is None:
        print("error: this needs a C compiler: install one that is called cc", file=sys.stderr)  # noqa: T201
        return 2
    rows = [Row(f"{durability}, {fsync}, {mb:g}") for durability, fsync, mb in SETTINGS]
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as root:
        for number in range(options.rounds):
            for row, setting in zip(rows, SETTINGS, strict=True):
                folder = Path(root) / f"{number}-{'-'.join(map(str, setting))}"
                one_round(folder, row, *setting, chance.uniform(1.0, 2.0))
                print(f"round {number + 1}, {row.name}: {row.lost[-1]} lost", file=sys.stderr)  # noqa: T201
    print(HEAD, "| :-- |" + " --: |" * 9, *rows, sep="\n")  # noqa: T201
    return int(any(lost for row in rows if not row.name.startswith("memory, everysec, 0") for lost in row.lost))


if __name__ == "__main__":
    sys.exit(main())
