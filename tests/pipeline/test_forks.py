"""Processes that fork, are started by ``multiprocessing`` or end at any moment lose, double and reorder no entry.

Each test runs a small program, which notes every entry that ``enqueue`` has taken in a file outside the store.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest

from iai_mcp.entries.identity import is_second_id
from iai_mcp.maintenance.inventory import FindingKind
from iai_mcp.maintenance.verify import verify
from iai_mcp.record import MemoryRecord
from iai_mcp.store import MemoryStore
from tests import servers
from tests.support import ROOT, cues, finished, python, wait_until
from workers.runner import LaneRunner

PRELUDE = """
import asyncio, ctypes, multiprocessing, os, signal, subprocess, sys, threading, time, warnings
from uuid import UUID
warnings.simplefilter("ignore")
import iai_mcp.store
from iai_mcp.errors import ForkedProcess
from iai_mcp.store import MemoryStore
path, record, history = sys.argv[1], UUID(sys.argv[2]), sys.argv[3]

def opened():
    store = MemoryStore(path)
    store.enable_provenance_queue()
    return store

def put(store, who, numbers):
    file = os.open(history, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for number in numbers:
        cue = f"{who}/{number}"
        store.queue_provenance_batch([(record, {"ts": "", "cue": cue, "session_id": ""})])
        os.write(file, f"{cue}\\n".encode())
    os.close(file)

def forked(work, *args, fork=os.fork):
    pid = fork()
    if pid == 0:
        signal.alarm(60)
        code = 70
        try:
            work(*args)
            code = 0
        except SystemExit:
            raise
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
        os._exit(code)
    return pid

def ended(*pids):
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0, pid
"""


@dataclass
class Rig:
    """A store, the file of what was taken, and perhaps a Redis."""

    store: MemoryStore
    record: UUID
    history: Path
    redis: servers.Server | None = None

    def start(self, program: str, **env: str) -> subprocess.Popen[str]:
        if self.redis is not None:
            env["IAI_MCP_REDIS_URL"] = self.redis.url_of("producer")
        return python(PRELUDE + program, self.store.path, self.record, self.history, **env)

    def run(self, program: str, **env: str) -> str:
        return finished(self.start(program, **env), 120)

    def taken(self) -> list[str]:
        return self.history.read_text().split() if self.history.exists() else []

    def arrives(self, count: int, *, shared: int = 0, within: float = 30) -> None:
        """The ``count`` entries that were taken arrive, each once and in its sender's order.

        ``shared``: how many of them have the number of another.
        """
        if self.redis is None:
            self.store.enable_provenance_queue()  # adopts what dead processes left
        else:
            runner = LaneRunner(self.store, self.redis.client("worker"))
        sent = self.taken()
        assert len(sent) == count == len({*sent}), sent

        def all_there() -> bool:
            if self.redis is not None:
                runner.drain_all()
            return {*self.seen()} >= {*sent}

        wait_until(all_there, within)
        seen = self.seen()
        assert len(seen) == len({*seen}), "doubled"
        for who in {cue.split("/")[0] for cue in seen}:
            numbers = [int(cue.split("/")[1]) for cue in seen if cue.startswith(f"{who}/")]
            assert numbers == sorted(numbers), who
        found = self.store.get(self.record)
        assert found is not None
        keys = [(one["entry_id"], one["producer"], one["producer_seq"]) for one in found.provenance]
        assert sum(is_second_id(*key) for key in keys) == shared

    def seen(self) -> list[str]:
        found = self.store.get(self.record)
        assert found is not None
        return cues(found.provenance)

    def numbers(self) -> list[tuple[str, int]]:
        found = self.store.get(self.record)
        assert found is not None
        return [(one["producer"], one["producer_seq"]) for one in found.provenance]


@pytest.fixture
def embedded(store: MemoryStore, tmp_path: Path) -> Rig:
    vector = [0.0] * store.meta.embedder.dims
    return Rig(store, store.insert(MemoryRecord(text="a memory", embedding=vector)), tmp_path / "history")


@pytest.fixture
def with_redis(embedded: Rig, tmp_path: Path) -> Iterator[Rig]:
    with servers.serving(tmp_path / "redis", "--appendfsync", "always") as server:
        embedded.redis = server
        yield embedded


@pytest.fixture(params=["embedded", "with_redis"])
def rig(request: pytest.FixtureRequest) -> Rig:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Rig)
    return found


THREE_CHILDREN = """
store = opened()
put(store, "parent", range(1))
children = [forked(put, store, f"child{n}", range(5)) for n in range(3)]
put(store, "parent", range(1, 6))
ended(*children)
store.close()
"""


def test_each_forked_child_is_a_producer_of_its_own(rig: Rig) -> None:
    rig.run(THREE_CHILDREN)
    rig.arrives(21)
    by_producer: dict[str, list[int]] = {}
    for producer, number in rig.numbers():
        by_producer.setdefault(producer, []).append(number)
    assert sorted(map(len, by_producer.values())) == [5, 5, 5, 6]
    assert all(numbers == [*range(1, len(numbers) + 1)] for numbers in by_producer.values())


def test_a_child_that_keeps_its_parents_producer_costs_no_entry_and_is_named(with_redis: Rig) -> None:
    """A broken variant: the same numbers for different entries."""
    with_redis.run(
        """
from iai_mcp.provenance_queue import ProvenanceWriteQueue as Queue
begin = Queue._begin
def keep(self):
    kept = {name: getattr(self, name) for name in ("producer", "_next_seq") if hasattr(self, name)}
    begin(self)
    vars(self).update(kept)
Queue._begin = keep
"""
        + THREE_CHILDREN
    )
    with_redis.arrives(21, shared=15)
    report = verify(with_redis.store.layout, with_redis.store.settings, settle=0)
    assert {finding.kind for finding in report.breaches} == {FindingKind.CONFLICT}


def test_a_fork_in_c_that_runs_no_hooks_is_noticed(rig: Rig) -> None:
    rig.run("""
store = opened()
put(store, "parent", range(3))
bare = ctypes.PyDLL(None).fork  # as a server in C does it
bare.restype = ctypes.c_int
child = forked(put, store, "child", range(3), fork=bare)
put(store, "parent", range(3, 6))
ended(child)
store.close()
""")
    rig.arrives(9)


def test_a_fork_while_another_thread_enqueues(rig: Rig) -> None:
    rig.run("""
store = opened()
on = threading.Event()
def loop():
    for number in range(100_000):
        put(store, "thread", [number])
        if number >= 200 and on.is_set():
            break
thread = threading.Thread(target=loop)
thread.start()
for n in range(20):
    ended(forked(put, store, f"child{n}", range(3)))
on.set()
thread.join()
store.close()
""")
    sent = rig.taken()
    assert sum(cue.startswith("child") for cue in sent) == 60
    rig.arrives(len(sent))


@pytest.mark.parametrize("journal", ["write", "fsync"])
def test_a_fork_with_a_journal(rig: Rig, journal: str) -> None:
    rig.run(THREE_CHILDREN, IAI_MCP_JOURNAL=journal)
    rig.arrives(21)


def test_a_fork_while_entries_are_spilled(with_redis: Rig) -> None:
    server = with_redis.redis
    assert server is not None
    process = with_redis.start("""
store = opened()
put(store, "parent", range(2))
print("up", flush=True)
sys.stdin.readline()
put(store, "parent", range(2, 4))
assert store.provenance_queue.stats()["spill_active"]
children = [forked(put, store, f"child{n}", range(5)) for n in range(3)]
put(store, "parent", range(4, 6))
ended(*children)
print("spilled", flush=True)
sys.stdin.readline()
put(store, "parent", range(6, 8))
store.close()
""")
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "up\n", process.communicate()[1]
    server.kill()
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "spilled\n", process.communicate()[1]
    server.start()
    process.stdin.write("\n")
    finished(process)
    with_redis.arrives(23)


def test_a_child_neither_frees_nor_keeps_the_files_of_its_parent(embedded: Rig) -> None:
    """The parent dies by kill -9 while its child lives on: others take the parent's files at once."""
    process = embedded.start(
        """
store = opened()
put(store, "parent", range(4))
def wait():
    put(store, "child", range(2))
    print(os.getppid(), flush=True)
    signal.alarm(0)
    sys.stdin.readline()
    put(store, "child", range(2, 4))
forked(wait)
time.sleep(60)
""",
        IAI_MCP_JOURNAL="write",
        IAI_MCP_LINGER_MS="60000",
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert int(process.stdout.readline()) == process.pid
    process.kill()
    process.wait(20)
    embedded.store.enable_provenance_queue()
    wait_until(lambda: sum(cue.startswith("parent") for cue in embedded.seen()) == 4, 20)
    process.communicate("\n", timeout=60)  # the child has the pipes open until it ends
    embedded.arrives(8)


def test_flush_in_a_child_waits_for_the_process_that_applies_its_entries(embedded: Rig) -> None:
    out = embedded.run("""
store = opened()
def work():
    assert store.provenance_queue.flush(0.1)  # nothing yet
    put(store, "child", range(5))
    print(store.provenance_queue.flush(30), flush=True)
ended(forked(work))
print(len(store.get(record).provenance))
store.close()
""")
    assert out.split() == ["True", "5"]


def test_a_child_gets_an_error_at_once_where_it_needs_the_storage(embedded: Rig) -> None:
    out = embedded.run("""
store = opened()
lane = store.lane(0)
def work():
    other = lambda: MemoryStore(path)
    for use in (other, store.count, lambda: store.get(record), lambda: lane.count(), lambda: store.embedder,
                lambda: store.delete(record), lambda: store.append_provenance_batch([(record, {"cue": ""})])):
        try:
            use()
        except ForkedProcess as error:
            print("open the store after the fork" in str(error), flush=True)
    store.tidy()
ended(forked(work))
store.close()
""")
    assert out.split() == ["True"] * 7


def test_a_child_that_exits_is_not_held_up_and_leaves_its_parents_queue_alone(rig: Rig) -> None:
    """LanceDB's own exit hook would wait for threads that are not there."""
    rig.run("""
store = opened()
put(store, "parent", range(2))
def idle():
    sys.exit(0)
def busy(n):
    put(store, f"child{n}", range(2))
    sys.exit(0)
for n in range(3):
    ended(forked(idle), forked(busy, n))
put(store, "parent", range(2, 4))
assert store.provenance_queue.flush(10) or store.provenance_queue.connection is not None
store.close()
""")
    rig.arrives(10)


def test_locks_that_are_held_at_the_fork_hold_nothing_up_in_the_child(rig: Rig) -> None:
    rig.run("""
from prometheus_client import CollectorRegistry
from iai_mcp.metrics.instruments import ClientMetrics
from iai_mcp.telemetry import observer
store = opened()
metrics = ClientMetrics(CollectorRegistry())
observer.watch(metrics)
queue = store.provenance_queue
counter = metrics._made["iai_mcp_enqueue_total"].labels("pushed")._value
locks = [queue._order, queue._life, queue._priority_lock._lock, queue._spill._mutex, store._mutex,
         store.tombstones._mutex, counter._lock]
if queue.connection is None:
    locks.append(queue._broker._change)
def work():
    put(store, "child", range(3))
    queue.stats()
    queue.stop()
    store.disable_provenance_queue()
held, go_on = threading.Event(), threading.Event()
def hold():
    for lock in locks:
        lock.acquire()
    held.set()
    go_on.wait()
    for lock in reversed(locks):
        lock.release()
thread = threading.Thread(target=hold)
thread.start()
held.wait()
child = forked(work)
go_on.set()
thread.join()
ended(child)
put(store, "parent", range(3))
store.close()
""")
    rig.arrives(6)


def test_the_calls_of_a_server_that_forks_answer_with_the_reason(embedded: Rig) -> None:
    out = embedded.run(
        """
from iai_mcp.config import Settings
from iai_mcp.server.calls import Calls, Caller
calls = Calls(Settings.load(), path)
def ask():
    return asyncio.run(calls.call("memory_status", {}, Caller()))
print(ask().error, flush=True)
def work():
    answer = ask()
    print(answer.error, "open the store after the fork" in answer.text, flush=True)
ended(forked(work))
calls.close()
""",
        IAI_MCP_EMBEDDER="none",
    )
    assert out.split() == ["False", "True", "True"]


def test_a_preloading_server_that_only_imports_has_whole_stores_in_its_children(rig: Rig) -> None:
    rig.run("""
def serve(n):
    store = opened()
    put(store, f"child{n}", range(5))
    assert store.get(record) is not None
    store.close()
ended(*[forked(serve, n) for n in range(3)])
""")
    rig.arrives(15)


def test_a_forked_child_forks(rig: Rig) -> None:
    rig.run("""
store = opened()
put(store, "parent", range(2))
def work():
    put(store, "child", range(2))
    grandchild = forked(put, store, "grandchild", range(3))
    put(store, "child", range(2, 4))
    ended(grandchild)
ended(forked(work))
store.close()
""")
    rig.arrives(9)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(rig: Rig, method: str, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        PRELUDE
        + f"""
store = None
def work(n):
    put(store or opened(), f"child{{n}}", range(5))
if __name__ == "__main__":
    store = opened() if {method == "fork"} else None
    context = multiprocessing.get_context({method!r})
    started = [context.Process(target=work, args=(n,)) for n in range(2)]
    for one in started:
        one.start()
    for one in started:
        one.join(60)
        assert one.exitcode == 0
    if store:
        put(store, "parent", range(3))
        store.close()
"""
    )
    rig.run(
        f"import runpy; sys.argv[0] = {str(script)!r}; sys.path.insert(0, {str(ROOT)!r})\n"
        f"env = dict(os.environ, PYTHONPATH={str(ROOT)!r})\n"
        "raise SystemExit(subprocess.call([sys.executable, *sys.argv], env=env, timeout=100))"
    )
    rig.arrives(13 if method == "fork" else 10)


def test_threads_asyncio_and_subprocesses(rig: Rig) -> None:
    rig.run("""
if len(sys.argv) > 4:  # the subprocess
    store = opened()
    put(store, "subprocess", range(3))
    sys.exit(0)
store = opened()
threads = [threading.Thread(target=put, args=(store, f"thread{n}", range(5))) for n in range(4)]
for thread in threads:
    thread.start()
async def main(who):
    await asyncio.gather(*[asyncio.to_thread(put, store, f"{who}{n}", range(5)) for n in range(4)])
asyncio.run(main("task"))
for thread in threads:
    thread.join()
def work():
    asyncio.run(main("child-task"))
ended(forked(work))
store.close()
""")
    rig.arrives(60)


@pytest.mark.parametrize("journal", ["off", "write"])
def test_os_exit_right_after_enqueue(rig: Rig, journal: str) -> None:
    if rig.redis is None and journal == "off":
        journal = "fsync"  # without a journal such entries die with the process, as the docs say
    rig.run("store = opened(); put(store, 'parent', range(20)); os._exit(0)", IAI_MCP_JOURNAL=journal)
    rig.arrives(20)


def test_sys_exit_in_a_thread_and_the_end_of_the_program(rig: Rig) -> None:
    rig.run("""
store = opened()
def work():
    put(store, "thread", range(10))
    sys.exit(3)
thread = threading.Thread(target=work)
thread.start()
put(store, "parent", range(10))
thread.join()
""")
    rig.arrives(20)


def test_the_program_ends_while_a_thread_enqueues(rig: Rig) -> None:
    rig.run("""
store = opened()
def loop():
    for number in range(1_000_000):
        put(store, "thread", [number])
        time.sleep(0.002)  # the end takes seconds, and thousands of entries would take long to read
threading.Thread(target=loop, daemon=True).start()
while os.path.getsize(history) < 1000 if os.path.exists(history) else True:
    time.sleep(0.001)
""")
    sent = rig.taken()
    rig.arrives(len(sent), within=60)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
@pytest.mark.parametrize("journal", ["off", "write"])
def test_a_signal_ends_a_library_program(rig: Rig, number: signal.Signals, journal: str) -> None:
    if rig.redis is None and journal == "off":
        journal = "fsync"  # without a journal such entries die with the process, as the docs say
    process = rig.start(
        "store = opened(); put(store, 'parent', range(20)); print('done', flush=True); time.sleep(60)",
        IAI_MCP_JOURNAL=journal,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "done\n"
    process.send_signal(number)
    assert process.wait(20) == -number
    process.communicate()
    rig.arrives(20)
