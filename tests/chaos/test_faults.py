"""One test for each fault that one machine can show; the row numbers are those of docs/reliability.md."""

from __future__ import annotations

import dataclasses
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from iai_mcp.broker.redis.broker import RedisBroker
from iai_mcp.entries.routing import lane_of
from iai_mcp.record import MemoryRecord
from iai_mcp.storage.dead_letters import DeadLetters
from iai_mcp.store import MemoryStore
from tests.chaos.control import Beside
from tests.chaos.disk import COMPILER, Disk, compiled
from tests.chaos.forgetting import How, failover, flushall, power_cut
from tests.chaos.rig import Rig
from tests.servers import Server
from tests.support import cues, finished, pairs, python, wait_until

# A recall's budget is 20 ms on an idle machine (`python -m tests.chaos` measures it). Tests share two cores
# with their own workers, so they hold it against what a call may cost when the scheduler looks away.
BUDGET_MS = 250.0
NO_COMPILER = "no C compiler (cc) to build the disk that fails"

Make = Callable[..., Rig]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Rig] = []

    def rig(*options: str, **settings: object) -> Rig:
        made.append(Rig(tmp_path / f"rig{len(made)}", *options, **settings))  # type: ignore[arg-type]
        return made[-1]

    yield rig
    for each in made:
        each.__exit__()


def redis_broker(rig: Rig) -> RedisBroker:
    assert isinstance(rig.queue._broker, RedisBroker)
    return rig.queue._broker


def clean(rig: Rig, **options: Any) -> None:
    verdict = rig.settle(**options)
    assert verdict.clean, f"{verdict}\n{(rig.folder / 'workers.log').read_text()[-2000:]}"
    assert verdict.entries > 0


# -- Redis


def test_01_redis_is_killed_and_comes_back(make: Make) -> None:
    rig = make()
    rig.produce(50)
    rig.server.kill()
    rig.produce(50)
    rig.server.start()
    rig.produce(50)
    clean(rig, budget_ms=BUDGET_MS)


@pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)
@pytest.mark.parametrize(("durability", "appendfsync"), [("memory", "everysec"), ("fsync", "always")])
def test_02_power_fails_while_the_disk_is_slow(
    tmp_path: Path, make: Make, durability: str, appendfsync: str
) -> None:
    """A synced spill is synced on the caller's thread: the control tells what the disk itself took meanwhile."""
    disk = Disk(tmp_path / "disk")
    options = ("--appendfsync", appendfsync)
    server = Server(tmp_path / "redis", *options, environment=disk.environment).start()
    rig = make(workers=0, durability=durability, server=server)
    with Beside(rig.folder / "spill", 0.01, fsync=durability == "fsync") as control:
        rig.produce(30)
        disk.slow(300)
        rig.produce(100, pause=0.01)
        disk.cut_power(server)
        disk.slow(0)
        server.start()
        rig.produce(20)
    rig.start_worker()
    verdict = rig.settle(budget_ms=BUDGET_MS + control.worst_ms)
    assert verdict.entries == 450
    assert durability == "memory" or not verdict.lost  # with everysec: what came since the last sync
    assert dataclasses.replace(verdict, lost=()).clean, verdict


def test_03_redis_hangs(make: Make) -> None:
    rig = make()
    rig.produce(20)
    rig.server.send(signal.SIGSTOP)
    rig.produce(100, pause=0.01)
    rig.server.send(signal.SIGCONT)
    rig.produce(20)
    clean(rig, budget_ms=BUDGET_MS)


def test_05_memory_runs_out_and_the_drain_frees_it(make: Make) -> None:
    rig = make()
    rig.server.client().config_set("maxmemory", "1")
    rig.produce(50)
    rig.server.client().config_set("maxmemory", "0")
    rig.produce(20)
    clean(rig)


def test_06_the_tail_of_the_aof_is_torn(make: Make) -> None:
    rig = make(workers=0)
    rig.produce(30)
    rig.server.kill()
    (incr,) = (rig.server.folder / "appendonlydir").glob("*.incr.aof")
    incr.write_bytes(incr.read_bytes()[:-7])
    rig.server.start()
    rig.produce(10)
    rig.start_worker()
    verdict = rig.settle()
    assert not verdict.doubled
    assert not verdict.reordered
    assert not verdict.phantom
    assert len(verdict.lost) <= 3  # one push of three entries was cut through


def test_07_loading_is_read_as_spill(make: Make) -> None:
    rig = make()
    rig.produce(30)
    rig.server.kill()
    slow = Server(rig.server.folder, "--key-load-delay", "20000", port=rig.server.port)
    rig.server.process = slow.start(wait=False).process
    rig.produce(50, pause=0.01)
    clean(rig, budget_ms=BUDGET_MS)


def test_08_redis_turns_into_a_replica(make: Make) -> None:
    rig = make()
    rig.produce(10)
    rig.server.client().execute_command("REPLICAOF", "127.0.0.1", "1")
    rig.produce(30)
    rig.server.client().execute_command("REPLICAOF", "NO", "ONE")
    rig.produce(10)
    clean(rig)


def test_09_the_broker_is_wiped(make: Make) -> None:
    rig = make(workers=0)
    rig.produce(10)
    rig.server.client().flushall()
    rig.produce(10)
    rig.start_worker()
    clean(rig)


def test_09_the_broker_is_wiped_and_nothing_was_retained(make: Make) -> None:
    rig = make(workers=0, retain_mb=0.0, push_budget_ms=2000.0)
    rig.produce(10)
    rig.server.client().flushall()
    rig.produce(10)
    rig.start_worker()
    verdict = rig.settle()
    assert len(verdict.lost) == 30  # what only Redis held, and the history says so
    assert not verdict.doubled
    assert not verdict.reordered
    assert not verdict.phantom


WAYS = [
    pytest.param(way, marks=pytest.mark.skipif(way is power_cut and COMPILER is None, reason=NO_COMPILER))
    for way in (power_cut, flushall, failover)
]


@pytest.mark.parametrize("way", WAYS)
def test_40_41_42_redis_forgets_under_load(tmp_path: Path, way: How) -> None:
    """An append-only file that is cut back, FLUSHALL, a failover: `python -m tests.chaos.forgetting` has more."""
    verdict = way(tmp_path / "round", random.Random(7), 8.0)
    assert verdict.clean, str(verdict)
    assert verdict.entries > 100


def test_13_too_many_clients(make: Make) -> None:
    rig = make()
    rig.produce(10)
    admin = rig.server.client()
    admin.config_set("maxclients", "1")
    push: Any = redis_broker(rig)._push.client  # type: ignore[union-attr]
    push.connection.disconnect()
    rig.produce(30)
    admin.config_set("maxclients", "1000")
    rig.produce(10)
    clean(rig)


def test_14_scripts_are_flushed(make: Make) -> None:
    rig = make()
    for _ in range(5):
        rig.produce(5)
        rig.server.client().script_flush()
    clean(rig)
    assert rig.queue.counts.refused == 0


# -- the network


def test_10_the_reply_is_lost_after_the_push_was_executed(make: Make) -> None:
    rig = make(proxied=True, workers=0)
    rig.produce(5)
    for _ in range(3):
        assert rig.proxy is not None
        rig.proxy.set("reset")
        rig.produce(3)
        wait_until(lambda: not rig.queue._spill.active)
    rig.start_worker()
    clean(rig)


@pytest.mark.parametrize("mode", ["swallow", "drip"])
def test_11_12_a_black_hole_and_a_dripping_line(make: Make, mode: str) -> None:
    rig = make(proxied=True)
    assert rig.proxy is not None
    rig.produce(10)
    rig.proxy.set(mode)
    rig.produce(150, pause=0.005)
    rig.proxy.set("down")
    rig.proxy.set("pass")
    rig.produce(10)
    clean(rig, budget_ms=BUDGET_MS)


def test_27_a_flapping_link(make: Make) -> None:
    rig = make(proxied=True)
    assert rig.proxy is not None
    for turn in range(6):
        rig.proxy.set("pass" if turn % 2 else "down")
        rig.produce(40, pause=0.005)
    rig.proxy.set("pass")
    rig.produce(10)
    clean(rig, budget_ms=BUDGET_MS)


# -- workers

KILL = "import os, signal\ndef die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)\n"
FAILPOINTS = {
    "before the claim": KILL + "from iai_mcp.broker.redis.broker import RedisBroker\nRedisBroker.claim = die",
    "after the claim": KILL + "from iai_mcp.store import MemoryStore\nMemoryStore.append_provenance_batch = die",
    "after the merge": KILL + "import iai_mcp.storage.tables.lane as m\nm.sync_tree = die",
    "before the ack": KILL + "from iai_mcp.broker.redis.broker import RedisBroker\nRedisBroker.ack = die",
}


@pytest.mark.parametrize("point", FAILPOINTS)
def test_15_16_a_worker_dies_and_another_takes_over(make: Make, point: str) -> None:
    rig = make(workers=0)
    rig.produce(20)
    victim = rig.start_worker(FAILPOINTS[point])
    assert victim.wait(30) == -signal.SIGKILL
    rig.produce(5)
    began = time.monotonic()
    rig.start_worker()
    clean(rig)
    assert time.monotonic() - began < 20
    rows = sum(rig.store.lane(lane).count() for lane in range(rig.store.lanes))
    assert rows == 75


def test_17_a_paused_worker_wakes_after_its_lease_has_passed_on(make: Make) -> None:
    rig = make(workers=0, lease_s=1.0)
    rig.produce(20)
    flag = rig.folder / "paused"
    pause = f"""
import os, pathlib, signal
from iai_mcp.store import MemoryStore
real = MemoryStore.append_provenance_batch
def stop_first(self, pairs, **further):
    if not pathlib.Path({str(flag)!r}).exists():
        pathlib.Path({str(flag)!r}).touch()
        os.kill(os.getpid(), signal.SIGSTOP)
    return real(self, pairs, **further)
MemoryStore.append_provenance_batch = stop_first
"""
    sleeper = rig.start_worker(pause)
    wait_until(flag.exists, 30)
    impatient = 'import os; os.environ["IAI_MCP_LOCK_TIMEOUT"] = "0.2"'  # the sleeper may hold the lock of a lane
    rig.start_worker(impatient)
    rig.produce(5)
    wait_until(rig.drained, 30)
    sleeper.send_signal(signal.SIGCONT)
    rig.produce(20)
    clean(rig)
    wait_until(lambda: b"lease_lost" in (rig.folder / "workers.log").read_bytes(), 10)


@pytest.mark.skipif(COMPILER is None, reason="no C compiler (cc) to stop a process in the middle of a system call")
@pytest.mark.parametrize(
    ("place", "at"), [*[("lane_{home}.lance/_versions", at) for at in (2, 3, 4, 5)], ("lane_{home}.lance", 1)]
)
def test_17_a_process_that_is_paused_while_it_makes_a_table_takes_nothing_from_it_when_it_wakes(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, at: int
) -> None:
    """Others make the table meanwhile, and write."""
    record_id = store.insert(MemoryRecord(text="a"))
    home = lane_of(record_id, store.lanes)
    code = "import sys; from iai_mcp.store import MemoryStore; MemoryStore(sys.argv[1]).lane(int(sys.argv[2]))"
    env = {
        "LD_PRELOAD": str(compiled("pause.c", tmp_path)),
        "CHAOS_PAUSE": place.format(home=home),
        "CHAOS_PAUSE_AT": str(at),
    }
    sleeper = python(code, store.path, home, **env)
    stat = Path(f"/proc/{sleeper.pid}/stat")
    wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", 60)
    monkeypatch.setenv("IAI_MCP_LOCK_TIMEOUT", "0.2")
    other = MemoryStore(store.path)
    other.append_provenance_batch(pairs(record_id, "ab"))
    sleeper.send_signal(signal.SIGCONT)
    finished(sleeper)
    other.append_provenance_batch(pairs(record_id, "c"))
    found = MemoryStore(store.path).get(record_id)
    assert found is not None
    assert cues(found.provenance) == ["a", "b", "c"]
    assert not store.layout.scratch.exists()


def test_18_every_worker_is_dead_for_a_while(make: Make) -> None:
    rig = make(workers=2)
    rig.produce(20)
    for worker in rig.workers:
        worker.kill()
        worker.wait()
    rig.produce(100)
    assert len(rig.waiting()) >= 300
    rig.start_worker()
    clean(rig)


def test_19_poison_in_a_lane(make: Make) -> None:
    rig = make(workers=0)
    rig.produce(10)
    key = redis_broker(rig).keys.lane(lane_of(rig.records[0], rig.store.lanes), "pending")
    rig.server.client().rpush(key, b"\xff\x00", b"[]", b"{" * 10_000_000)
    rig.produce(10)
    rig.start_worker()
    clean(rig)
    assert DeadLetters(rig.store.layout).count() == 3


def test_20_a_writer_is_killed_at_any_moment(make: Make) -> None:
    rig = make(workers=0)
    for _ in range(3):
        rig.produce(40)
        before = len(rig.waiting())
        victim = rig.start_worker()
        wait_until(lambda before=before: len(rig.waiting()) < before, 30)  # type: ignore[misc]
        victim.kill()
        victim.wait()
    rig.start_worker()
    clean(rig)


def test_22_an_embedded_client_writes_beside_the_workers(make: Make) -> None:
    rig = make(workers=2)
    lodger = """
import sys, time
from uuid import UUID
from iai_mcp.store import MemoryStore
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from tests.chaos.history import Recorder
from pathlib import Path
queue = ProvenanceWriteQueue(MemoryStore(sys.argv[1]), coalesce_ms=1)
queue.start()
recorder = Recorder(Path(sys.argv[2]), "lodger")
for turn in range(200):
    recorder.enqueue(queue, [UUID(key) for key in sys.argv[3:]])
    time.sleep(0.002)
queue.stop()
"""
    path = rig.folder / "lodger.history"
    rig.histories.append(path)
    process = python(lodger, rig.store.path, path, *rig.records)
    rig.produce(200, pause=0.002)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    clean(rig)


def test_23_compaction_against_readers_and_writers(make: Make) -> None:
    rig = make(workers=1)
    stop = threading.Event()
    trouble: list[BaseException] = []

    def loop(work: Callable[[], object]) -> None:
        while not stop.is_set():
            try:
                work()
            except BaseException as error:  # noqa: BLE001
                trouble.append(error)
                return

    def compact() -> None:
        for lane in range(rig.store.lanes):
            rig.store.lane(lane).maintain(force=True)

    threads = [threading.Thread(target=loop, args=(work,)) for work in (compact, rig.look)]
    for thread in threads:
        thread.start()
    rig.produce(150, pause=0.01)
    stop.set()
    for thread in threads:
        thread.join(30)
    assert trouble == []
    clean(rig)


# -- the spill


def test_24_a_producer_is_killed_while_it_spills(make: Make) -> None:
    rig = make()
    rig.server.kill()
    producer = rig.start_producer("victim", seconds=60, pause=0.0)
    wait_until(lambda: (rig.folder / "victim.history").stat().st_size > 20_000, 30)
    producer.kill()
    producer.wait()
    rig.server.start()
    clean(rig)


def test_26_a_replay_is_killed_half_way(make: Make) -> None:
    rig = make(workers=0)
    rig.server.kill()
    producer = rig.start_producer("first", seconds=2, pause=0.0)
    producer.wait(60)
    rig.server.start()
    rig.queue.stop()
    flag = (
        "import os\nfrom iai_mcp.pipeline.replay import ReplayCursor as o\nsteps = []\nreal = o.replay\n"
        "def step(*a):\n    steps.append(1)\n    return real(*a) if len(steps) < 3 else os.kill(os.getpid(), 9)\n"
        "o.replay = step"
    )
    victim = rig.start_worker(flag)
    assert victim.wait(30) == -signal.SIGKILL
    rig.start_worker()
    clean(rig)


def test_28_29_an_orphan_is_adopted_by_one_of_two(make: Make) -> None:
    rig = make(workers=0)
    rig.server.kill()
    orphan = rig.start_producer("orphan", seconds=60, pause=0.0)
    wait_until(lambda: (rig.folder / "orphan.history").stat().st_size > 50_000, 30)
    orphan.kill()
    orphan.wait()
    rig.server.start()
    for _ in range(2):
        rig.start_worker()
    clean(rig)


def test_30_the_clock_jumps_back(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make()
    rig.produce(20)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 3600)
    rig.produce(20)
    monkeypatch.setattr(time, "time", lambda: now() + 3600)
    rig.produce(20)
    clean(rig)


def test_32_a_later_wire_version_is_refused_whole(make: Make) -> None:
    rig = make(workers=0)
    rig.produce(5)
    broker = redis_broker(rig)
    key = broker.keys.lane(0, "pending")
    rig.server.client().rpush(
        key, b'{"store":"x","lane":0,"producer":"n","pushed":1,"ids":[],"seqs":[],"own":{},"v":2}'
    )
    rig.produce(5)
    rig.start_worker()
    clean(rig)
    (letter,) = DeadLetters(rig.store.layout).all()
    assert "upgrade" in letter.reason


# -- disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip("mounting a small disk is not allowed here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def test_04_the_disk_under_the_aof_is_full(make: Make, small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("1m")
    server = Server(disk / "redis", "--auto-aof-rewrite-percentage", "0").start()
    rig = make(server=server, workers=0)
    rig.produce(10)
    filler = disk / "filler"
    filler.write_bytes(b"x" * 4096)
    with open(filler, "ab", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
    rig.produce(60, pause=0.02)
    assert rig.queue._spill.active
    filler.unlink()
    rig.produce(10)
    rig.start_worker()
    clean(rig)


def test_21_the_stores_disk_is_full(tmp_path: Path, small_disk: Callable[[str], Path]) -> None:
    from iai_mcp.provenance_queue import ProvenanceWriteQueue
    from iai_mcp.store import MemoryStore
    from tests.support import cues, pairs
    from tests.test_store import _make

    disk = small_disk("8m")
    store = MemoryStore(disk / "store")
    record = store.insert(_make())
    queue = ProvenanceWriteQueue(store, coalesce_ms=0)
    queue.start()
    filler = disk / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 65536)
        except OSError:
            pass
    for turn in range(20):
        queue.enqueue(pairs(record, [turn]))
    assert not queue.flush(1)
    assert queue.counts.dead == 0
    filler.unlink()
    assert queue.flush(20)
    queue.stop()
    found = store.get(record)
    assert found is not None
    assert cues(found.provenance) == [str(turn) for turn in range(20)]


def test_25_the_spills_disk_is_full(make: Make, small_disk: Callable[[str], Path], tmp_path: Path) -> None:
    disk = small_disk("64k")
    folder = tmp_path / "rig0"
    folder.mkdir()
    (folder / "spill").symlink_to(disk)
    rig = make()
    assert rig.folder == folder
    rig.server.kill()
    rig.produce(300)
    refused = rig.queue.counts.refused
    assert refused > 0
    rig.server.start()
    wait_until(lambda: not rig.queue._spill.active)
    rig.produce(10)
    clean(rig)
    assert rig.queue.counts.refused == refused
