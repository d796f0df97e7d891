"""A long run with faults picked at random: ``python -m tests.chaos --minutes 30 --seed 7``.

Producers recall for a few seconds while one fault after another strikes; after each, all is drained and the
whole history is held against what is visible. Ends with a table; exits 1 on any violation. The seed repeats
the choice of faults (not the kernel's scheduling). Beside the producers runs a control that has no part in any of
it (tests/chaos/control.py): what it loses in the same seconds is the machine's doing.
"""

from __future__ import annotations

import argparse
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import redis
from rq import Queue
from rq.serializers import JSONSerializer

from tests.chaos.checker import check
from tests.chaos.history import read
from tests.chaos.rig import Rig
from tests.support import ROOT, wait_until

FAULT_S = 2.0


def no_fault(rig: Rig, chance: random.Random) -> None:
    """The control: nothing happens."""
    time.sleep(FAULT_S)


def redis_killed(rig: Rig, chance: random.Random) -> None:
    """kill -9, and a restart on the same AOF."""
    rig.server.kill()
    time.sleep(chance.uniform(0.2, FAULT_S))
    rig.server.start()


def redis_hangs(rig: Rig, chance: random.Random) -> None:
    """SIGSTOP for a while."""
    rig.server.send(signal.SIGSTOP)
    time.sleep(chance.uniform(0.5, 2 * FAULT_S))
    rig.server.send(signal.SIGCONT)


def memory_full(rig: Rig, chance: random.Random) -> None:
    """maxmemory below what is used."""
    rig.server.client().config_set("maxmemory", "1")
    time.sleep(FAULT_S)
    rig.server.client().config_set("maxmemory", "0")


def read_only(rig: Rig, chance: random.Random) -> None:
    """The server becomes a replica of nobody."""
    rig.server.client().execute_command("REPLICAOF", "127.0.0.1", "1")
    time.sleep(FAULT_S)
    rig.server.client().execute_command("REPLICAOF", "NO", "ONE")


def scripts_flushed(rig: Rig, chance: random.Random) -> None:
    """SCRIPT FLUSH, several times."""
    for _ in range(4):
        rig.server.client().script_flush()
        time.sleep(FAULT_S / 4)


def link(mode: str) -> Callable[[Rig, random.Random], None]:
    """The producers' line to Redis misbehaves."""

    def fault(rig: Rig, chance: random.Random) -> None:
        assert rig.proxy is not None
        for _ in range(4):
            rig.proxy.set(mode)
            time.sleep(FAULT_S / 4)
            if mode in ("down", "reset"):
                rig.proxy.set("pass")
                time.sleep(FAULT_S / 4)
        rig.proxy.set("down")
        rig.proxy.set("pass")

    fault.__doc__ = f"The producers' line: {mode}."
    return fault


def worker_killed(rig: Rig, chance: random.Random) -> None:
    """kill -9 of a worker; another is started."""
    time.sleep(chance.uniform(0.0, FAULT_S))
    victim = chance.choice(rig.workers)
    victim.kill()
    victim.wait()
    rig.workers.remove(victim)
    rig.start_worker()


def worker_paused(rig: Rig, chance: random.Random) -> None:
    """SIGSTOP of a worker, longer than its lease."""
    victim = chance.choice(rig.workers)
    victim.send_signal(signal.SIGSTOP)
    time.sleep(rig.settings.lease_s + FAULT_S)
    victim.send_signal(signal.SIGCONT)


def no_workers(rig: Rig, chance: random.Random) -> None:
    """Every worker is killed; they come back later."""
    count = stop_workers(rig)
    time.sleep(FAULT_S)
    for _ in range(count):
        rig.start_worker()


def producer_killed(rig: Rig, chance: random.Random) -> None:
    """kill -9 of a client while it recalls."""
    time.sleep(chance.uniform(0.0, FAULT_S))
    victim = chance.choice(producers)
    victim.kill()
    victim.wait()
    producers.remove(victim)
    producers.append(start_producer(rig))


def producer_stops(rig: Rig, chance: random.Random) -> None:
    """A client ends right after its line has failed for a moment; another is started."""
    assert rig.proxy is not None
    time.sleep(chance.uniform(0.0, FAULT_S / 2))
    victim = producers.pop(chance.randrange(len(producers)))
    rig.proxy.set("down")
    time.sleep(0.1)
    (rig.folder / f"stop-{victim.name}").touch()
    rig.proxy.set("pass")
    victim.wait(30)
    producers.append(start_producer(rig))
    time.sleep(FAULT_S / 2)


def producers_fork(rig: Rig, chance: random.Random) -> None:
    """Every client forks children that recall, too."""
    (rig.folder / "fork").touch()
    time.sleep(2 * FAULT_S)
    (rig.folder / "fork").unlink()
    rig.find_histories()


def bad_entries(rig: Rig, chance: random.Random) -> None:
    """Clients hand over entries that contain themselves, beside good ones in the same call."""
    (rig.folder / "bad").touch()
    time.sleep(FAULT_S)
    (rig.folder / "bad").unlink()


def redis_wiped(rig: Rig, chance: random.Random) -> None:
    """FLUSHALL, twice."""
    for _ in range(2):
        time.sleep(chance.uniform(0.2, FAULT_S / 2))
        rig.server.client().flushall()
    time.sleep(0.5)


def redis_cut_back(rig: Rig, chance: random.Random) -> None:
    """kill -9, and a restart on an AOF that lacks the last second."""
    log = max((rig.server.folder / "appendonlydir").glob("*.incr.aof"))
    kept = log.stat().st_size
    time.sleep(1.0)
    rig.server.kill()
    with open(log, "r+b") as file:
        file.truncate(kept)
    rig.server.start()
    time.sleep(0.5)


def stock_workers(rig: Rig, chance: random.Random) -> None:
    """Plain rq workers alone; ours come back later."""
    count = stop_workers(rig)
    for _ in range(count):
        rig.start_stock_worker()
    time.sleep(4 * FAULT_S)  # a job's process takes two seconds to import what it needs
    stop_workers(rig)
    for _ in range(count):
        rig.start_worker()


def stop_workers(rig: Rig) -> int:
    """kill -9 of every worker; how many there were."""
    count = len(rig.workers)
    for victim in rig.workers:
        victim.kill()
        victim.wait()
    rig.workers.clear()
    return count


def doorbells_lost(rig: Rig, chance: random.Random) -> None:
    """RQ's queue is emptied again and again."""
    for _ in range(8):
        Queue("provenance", connection=rig.server.client(), serializer=JSONSerializer).empty()
        time.sleep(FAULT_S / 8)


def compacting(rig: Rig, chance: random.Random) -> None:
    """Another process's compaction, all the time."""
    end = time.monotonic() + FAULT_S
    while time.monotonic() < end:
        for lane in range(rig.store.lanes):
            rig.store.lane(lane).maintain(force=True)


FAULTS: dict[str, Callable[[Rig, random.Random], None]] = {
    "none (control)": no_fault,
    "redis killed": redis_killed,
    "redis hangs": redis_hangs,
    "memory full": memory_full,
    "read-only replica": read_only,
    "scripts flushed": scripts_flushed,
    "link down": link("down"),
    "link swallows": link("swallow"),
    "link drips": link("drip"),
    "link resets": link("reset"),
    "worker killed": worker_killed,
    "worker paused": worker_paused,
    "no workers": no_workers,
    "producer killed": producer_killed,
    "producer stops": producer_stops,
    "producers fork": producers_fork,
    "bad entries": bad_entries,
    "redis wiped": redis_wiped,
    "redis cut back": redis_cut_back,
    "stock workers": stock_workers,
    "doorbells lost": doorbells_lost,
    "compaction": compacting,
}


@dataclass
class Producer:
    """A client process, and its name in the history."""

    name: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        self.process.kill()

    def wait(self, timeout: float | None = None) -> None:
        self.process.wait(timeout)

    def poll(self) -> int | None:
        return self.process.poll()


producers: list[Producer] = []
_started = iter(range(1, 1_000_000))
_pause = 0.005


def start_producer(rig: Rig) -> Producer:
    name = f"p{next(_started)}"
    return Producer(name, rig.start_producer(name, seconds=1e9, pause=_pause))


def start_control(rig: Rig) -> subprocess.Popen[bytes]:
    times = rig.folder / "control.times"
    times.touch()
    command = [sys.executable, "-m", "tests.chaos.control", str(times), str(rig.settings.spill_dir), str(_pause)]
    return subprocess.Popen(command, cwd=ROOT)


@dataclass
class Row:
    """What one kind of fault has done so far."""

    count: int = 0
    lost: int = 0
    doubled: int = 0
    reordered: int = 0
    phantom: int = 0
    slow: int = 0
    calls: list[float] = field(default_factory=list)
    control: list[float] = field(default_factory=list)
    heal_s: list[float] = field(default_factory=list)

    def line(self, name: str) -> str:
        calls = sorted(self.calls)
        p999 = calls[int(len(calls) * 0.999)] if calls else 0.0
        p100 = calls[-1] if calls else 0.0
        control = max(self.control, default=0.0)
        heal = max(self.heal_s, default=0.0)
        return (
            f"| {name:<17} | {self.count:>5} | {len(calls):>7} | {self.lost:>4} | {self.doubled:>7} | "
            f"{self.reordered:>9} | {self.phantom:>7} | {p999:>9.1f} | {p100:>8.1f} | "
            f"{control:>12.1f} | {heal:>12.1f} |"
        )

    @property
    def bad(self) -> int:
        return self.lost + self.doubled + self.reordered + self.phantom + self.slow


HEAD = (
    "| fault             | count | recalls | lost | doubled | reordered | phantom "
    "| p99.9 ms  | p100 ms  | control p100 | drained in s |\n"
    "| :---------------- | ----: | ------: | ---: | ------: | --------: | ------: "
    "| --------: | -------: | -----------: | -----------: |"
)


def episode(
    rig: Rig, name: str, chance: random.Random, row: Row, known: dict[str, int], budget_ms: float | None
) -> None:
    """One fault from the first recall to the last entry drained."""
    go, control = rig.folder / "go", rig.folder / "control.times"
    controlled = len(control.read_bytes().splitlines())
    before = {path: len(path.read_bytes().splitlines()) for path in rig.histories}
    go.touch()
    time.sleep(0.5)
    FAULTS[name](rig, chance)
    time.sleep(0.5)
    go.unlink()
    for producer in producers:
        assert producer.poll() is None, f"a producer died: {(rig.folder / 'producers.log').read_text()[-2000:]}"
    healed = time.monotonic()
    wait_until(rig.drained, 120)
    row.heal_s.append(time.monotonic() - healed)
    history = read(rig.histories)
    verdict = check(history, rig.look())
    row.count += 1
    for kind in ("lost", "doubled", "reordered", "phantom"):
        total = len(getattr(verdict, kind))
        setattr(row, kind, getattr(row, kind) + total - known.get(kind, 0))
        known[kind] = total
    row.doubled += len(rig.doubled)
    rig.doubled.clear()
    calls: list[float] = []
    for path in rig.histories:
        lines = path.read_bytes().splitlines()[before.get(path, 0) :]
        calls += [float(line.split(b'"ms": ')[1].rstrip(b"}")) for line in lines if b'"ms": ' in line]
    times = [float(line) for line in control.read_bytes().split()[controlled:]]
    row.calls += calls
    row.control += times
    if budget_ms is not None:
        row.slow += sum(ms > budget_ms + max(times) for ms in calls)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--producers", type=int, default=2)
    parser.add_argument("--pause-ms", type=float, default=5.0, help="between two recalls of a producer")
    parser.add_argument(
        "--budget-ms",
        type=float,
        default=None,
        help="a recall that is slower, by more than the control lost during the same fault, is a violation too",
    )
    parser.add_argument(
        "--only", action="append", choices=sorted(FAULTS), help="only this fault; may be given several times"
    )
    options = parser.parse_args()
    global _pause
    _pause = options.pause_ms / 1000
    chance = random.Random(options.seed)
    print(f"seed {options.seed}: python -m tests.chaos {said(options)}", flush=True)  # noqa: T201
    rows = {name: Row() for name in FAULTS}
    with tempfile.TemporaryDirectory() as folder:
        ok = run(options, Path(folder), chance, rows)
    table = [row.line(name) for name, row in rows.items() if row.count]
    print("\n".join(["", HEAD, *table]))  # noqa: T201
    for name, row in rows.items():
        if row.slow:
            print(f"{name}: {row.slow} recalls took longer than the budget and what the control lost")  # noqa: T201
    return 0 if ok and not any(row.bad for row in rows.values()) else 1


def said(options: argparse.Namespace) -> str:
    """The command line that repeats this run."""
    given = [
        f"--{name.replace('_', '-')} {shlex.quote(str(value))}"
        for name, values in vars(options).items()
        for value in (values if isinstance(values, list) else [values])
        if value is not None
    ]
    return " ".join(given)


def run(options: argparse.Namespace, folder: Path, chance: random.Random, rows: dict[str, Row]) -> bool:
    """Fault after fault until the time is up; False where the deployment did not come round."""
    known: dict[str, int] = {}
    with Rig(folder, workers=options.workers, proxied=True) as rig:
        control = start_control(rig)
        producers[:] = [start_producer(rig) for _ in range(options.producers)]
        wait_until(lambda: all(path.stat().st_size for path in rig.histories[1:]), 60)
        faults = options.only or list(FAULTS)
        order: list[str] = []
        end = time.monotonic() + options.minutes * 60
        try:
            while time.monotonic() < end:
                order = order or chance.sample(faults, len(faults))
                name = order.pop()
                episode(rig, name, chance, rows[name], known, options.budget_ms)
                print(f"{time.strftime('%H:%M:%S')} {rows[name].line(name)}", flush=True)  # noqa: T201
        except (AssertionError, redis.RedisError) as error:
            print(f"the deployment did not come round: {error}", file=sys.stderr)  # noqa: T201
            return False
        finally:
            (rig.folder / "stop").touch()
            for producer in producers:
                producer.kill()
                producer.wait()
            control.kill()
            control.wait()
    return True


if __name__ == "__main__":
    sys.exit(main())
