"""What an operator runs: the users of Redis may do what they must and nothing else; secrets; files that agree."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError
from redis.retry import Retry
from rq import Queue, Worker
from rq.registry import FailedJobRegistry
from rq.serializers import JSONSerializer
from typer.testing import CliRunner, Result

from iai_mcp import config
from iai_mcp.cli import app
from iai_mcp.config import Settings
from iai_mcp.errors import ConfigError
from iai_mcp.record import MemoryRecord
from iai_mcp.server_calls import Calls
from iai_mcp.server_health import fit
from iai_mcp.store import MemoryStore
from tests.servers import DEPLOYED, Server, free_port, redis_server, serving, worker
from tests.support import pairs, wait_until
from tests.test_redis import (  # noqa: F401  the same tests, here under the users of a deployment
    patient,
    record_id,
    start,
    test_a_killed_worker_is_replaced_and_nothing_is_doubled,
    test_flushed_scripts_are_loaded_again,
    test_recall_goes_on_while_redis_is_down_and_order_holds,
)
from tests.test_server import http

PATIENCE = 60


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A Redis with the configuration and the users of a deployment."""
    with serving(tmp_path / "redis", acl=True) as running:
        yield running


Cli = Callable[..., Result]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """``iai-mcp`` with the settings that are given, and no others."""

    def run(*args: str, code: int = 0, **env: str) -> Result:
        env = {"IAI_MCP_STORE": str(tmp_path / "store"), "IAI_MCP_EMBEDDER": "none", **env}
        done = CliRunner().invoke(app, args, env=env, prog_name="iai-mcp")
        assert done.exit_code == code, (done.output, done.exception)
        return done

    return run


# -- the users of Redis


def test_the_way_of_an_operator_from_capture_to_doctor(server: Server, cli: Cli, store: MemoryStore) -> None:
    store.insert(MemoryRecord(text="Ada prefers tabs", session_id="s"))
    as_user = {name: {"IAI_MCP_REDIS_URL": server.url_of(name)} for name in ("producer", "worker", "ops")}
    cli("recall", "tabs", IAI_MCP_PUSH_BUDGET_MS="2000", **as_user["producer"])
    cli("worker", "--burst", **as_user["worker"])
    assert '"cue": "tabs"' in cli("provenance", "--json").stdout
    told = cli("doctor", code=1, **as_user["ops"]).stdout  # for no worker is alive now
    assert [line for line in told.splitlines() if line[:4] in ("FAIL", "WARN")] == [
        "FAIL  workers           0 alive on the queue 'provenance' -> iai-mcp worker"
    ]
    cli("verify", **as_user["ops"])
    assert '"drained": 1' in cli("status", "--json", **as_user["ops"]).stdout
    cli("verify", **as_user["producer"])


@pytest.fixture(scope="module")
def fenced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Redis as deployed, where nobody may do everything; it holds another program's key."""
    owner = Server(tmp_path_factory.mktemp("redis"), acl=True).start()
    try:
        owner.client().set("billing:card", "secret")
        owner.client().rpush("iai-mcp:abc:lane:0:pending", "1:1:{}")
        owner.client().acl_setuser("default", enabled=False)
        yield owner
    finally:
        owner.kill()


USERS = ("health", "producer", "worker", "ops", "dashboard", "scaler")
FORBIDDEN = (
    "FLUSHALL",
    "FLUSHDB",
    "CONFIG SET maxmemory 1",
    "KEYS *",
    "DEBUG SLEEP 0",
    "SCRIPT FLUSH",
    "SCRIPT KILL",
    "FUNCTION LIST",
    "SHUTDOWN NOSAVE",
    "MONITOR",
    "ACL LIST",
    "ACL SETUSER producer on",
    "CLIENT KILL TYPE normal",
    "REPLICAOF NO ONE",
    "MODULE LIST",
    "SAVE",
    "SELECT 1",
    "GET billing:card",
    "SET billing:card 0",
    "DEL billing:card",
    "RENAME billing:card rq:card",
    "COPY billing:card rq:card",
    "SORT iai-mcp:abc:lane:0:pending BY nosort GET billing:*",
    "EVAL return(redis.call('GET','billing:card')) 0",
)


@pytest.mark.parametrize("user", USERS)
def test_no_user_reaches_beyond_its_keys_or_harms_the_server(fenced: Server, user: str) -> None:
    client = fenced.client(user)
    for command in FORBIDDEN:
        with pytest.raises(redis.ResponseError, match=r"(?i)no permissions|can't access|not allowed"):
            client.execute_command(*command.split(" "))


@pytest.mark.parametrize(
    ("user", "command"),
    [
        ("producer", "SET iai-mcp:abc:lane:0:lease 9:me"),  # leases and acknowledgements are the workers'
        ("producer", "LPOP iai-mcp:abc:lane:0:pending"),
        ("producer", "DEL iai-mcp:abc:lane:0:pending"),
        ("producer", "CONFIG GET *"),
        ("worker", "CONFIG GET *"),
        ("worker", "LTRIM iai-mcp:abc:lane:0:pending 1 0"),
        ("ops", "RPUSH iai-mcp:abc:lane:0:pending x"),
        ("ops", "DEL iai-mcp:abc:lane:0:pending"),
        ("dashboard", "LRANGE iai-mcp:abc:lane:0:pending 0 -1"),  # cues
        ("dashboard", "RPUSH rq:queue:provenance x"),
        ("dashboard", "DEL rq:queue:provenance"),
        ("scaler", "LRANGE iai-mcp:abc:lane:0:pending 0 -1"),
        ("scaler", "LLEN rq:queue:provenance"),
        ("health", "INFO"),
        ("health", "EXISTS rq:queues"),
    ],
)
def test_each_user_has_its_own_work_only(fenced: Server, user: str, command: str) -> None:
    with pytest.raises(NoPermissionError):
        fenced.client(user).execute_command(*command.split(" "))


def test_nobody_gets_in_without_a_name_and_its_password(fenced: Server) -> None:
    for how in ({}, {"username": "producer", "password": "wrong"}, {"password": "the-producers-own"}):
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=fenced.port, retry=Retry(NoBackoff(), 0), **how).ping()


def test_the_template_itself_lets_nobody_in(tmp_path: Path) -> None:
    """With its passwords unfilled Redis does not start at all."""
    options = ["--port", "0", "--dir", str(tmp_path), "--aclfile", str(DEPLOYED / "users.acl")]
    done = subprocess.run(
        [redis_server(), str(DEPLOYED / "redis.conf"), *options], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 1
    assert "ACL" in done.stdout + done.stderr


def test_the_dashboards_user_sees_queues_jobs_and_workers_and_changes_nothing(
    server: Server,
    store: MemoryStore,
    start: Any,  # noqa: F811
    record_id: Any,  # noqa: F811
) -> None:
    queue = start(server.client("producer"), patient(store))
    queue.enqueue(pairs(record_id, "a"))
    mine = server.client("dashboard")
    (doorbells,) = wait_until(lambda: Queue.all(connection=mine, serializer=JSONSerializer))
    job, *_ = wait_until(lambda: doorbells.jobs)
    assert job.get_position() == 0
    assert FailedJobRegistry(doorbells.name, connection=mine).get_job_count(cleanup=False) == 0
    with pytest.raises(NoPermissionError):
        job.delete()
    with pytest.raises(NoPermissionError):
        doorbells.empty()
    with worker(server.url_of("worker"), store.path):
        wait_until(lambda: Worker.all(connection=mine), PATIENCE)
    server.client().acl_log_reset()  # type: ignore[no-untyped-call]


def test_the_scalers_user_sees_how_much_waits_in_a_lane(fenced: Server) -> None:
    # as KEDA's Redis scaler asks
    script = (
        "local listName = KEYS[1] local listType = redis.call('type', listName).ok "
        "local cmd = {list='llen', none='llen'} return redis.call(cmd[listType], listName)"
    )
    assert fenced.client("scaler").eval(script, 1, "iai-mcp:abc:lane:0:pending") == 1
    assert fenced.client("scaler").eval(script, 1, "iai-mcp:abc:lane:1:pending") == 0


# -- secrets in files


def test_a_secret_may_lie_in_a_file(tmp_path: Path) -> None:
    secrets = {}
    for name in ("IAI_MCP_REDIS_URL", "IAI_MCP_TOKEN", "IAI_MCP_EMBEDDER_KEY"):
        file = tmp_path / name
        file.write_text(f"unix://{name}\n")
        secrets[f"{name}_FILE"] = str(file)
    found = Settings.load(secrets)
    assert (found.redis_url, found.token) == ("unix://IAI_MCP_REDIS_URL", "unix://IAI_MCP_TOKEN")
    assert found.embedder_key == "unix://IAI_MCP_EMBEDDER_KEY"
    assert Settings.load({"IAI_MCP_CLIENT_FILE": "nowhere"}).client == ""  # what is no secret needs no file


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file or directory"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"one\ntwo\n", "holds more than one line"),
        (b"\xff\xfe", "not text"),
        ("a folder", "Is a directory"),
    ],
)
def test_a_file_of_no_use_is_one_line_and_exit_code_2(
    tmp_path: Path, cli: Cli, content: bytes | str | None, said: str
) -> None:
    file = tmp_path / "secret"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content:
        file.mkdir()
    for command in (["serve", "--transport", "http"], ["worker"], ["status"]):
        done = cli(*command, code=2, IAI_MCP_REDIS_URL_FILE=str(file))
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"error: IAI_MCP_REDIS_URL_FILE={file}")
        assert said in line
        assert done.stdout == ""


def test_a_file_that_may_not_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> str:  # root may read everything
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refused)
    with pytest.raises(ConfigError, match="IAI_MCP_TOKEN_FILE=/x: Permission denied"):
        Settings.load({"IAI_MCP_TOKEN_FILE": "/x"})


def test_a_secret_and_its_file_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="IAI_MCP_TOKEN and IAI_MCP_TOKEN_FILE are both set"):
        Settings.load({"IAI_MCP_TOKEN": "s3cret", "IAI_MCP_TOKEN_FILE": "/x"})


def test_a_secret_that_everybody_may_read_is_warned_of(tmp_path: Path, cli: Cli) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret")
    file.chmod(0o644)
    said = f"{file} holds a secret and every user may read it: chmod 600 it"
    assert said in cli("list", IAI_MCP_TOKEN_FILE=str(file)).stderr
    assert (
        f"WARN  settings          every user may read the secret in {file}"
        in cli("doctor", IAI_MCP_TOKEN_FILE=str(file)).stdout
    )
    file.chmod(0o640)
    assert "every user" not in cli("list", IAI_MCP_TOKEN_FILE=str(file)).stderr


def test_modes_that_a_container_engine_chose_are_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "ENGINE_SECRETS", tmp_path)
    (tmp_path / "token").write_text("s3cret")
    assert config.exposed({"IAI_MCP_TOKEN_FILE": str(tmp_path / "token")}) == []


# -- health


def test_a_server_tells_of_its_health_and_of_nothing_else(tmp_path: Path) -> None:
    redis_url = f"redis://127.0.0.1:{free_port()}/0"  # nobody listens there: recalls go on, and spill
    file = tmp_path / "token"
    file.write_text("s3cret")
    env = {"IAI_MCP_TOKEN_FILE": str(file), "IAI_MCP_REDIS_URL": redis_url}
    with http(tmp_path, **env) as server:
        root = server.url.removesuffix("/mcp")
        for path in ("/healthz", "/readyz"):
            stranger = httpx2.get(root + path, headers={"host": "10.1.2.3:8765"})  # as a kubelet asks
            assert (stranger.status_code, stranger.text) == (200, "ok\n")
            assert "server" not in stranger.headers
            assert httpx2.head(root + path).status_code == 200
            assert httpx2.post(root + path).status_code == 405
        assert httpx2.get(server.url).status_code == 401
        assert httpx2.get(f"{root}/healthz/").status_code == 401
        (tmp_path / "store" / "store.json").rename(tmp_path / "away")
        gone = httpx2.get(f"{root}/readyz")
        assert (gone.status_code, gone.text) == (503, "not ready\n")
        assert httpx2.get(f"{root}/healthz").status_code == 200
        (tmp_path / "away").rename(tmp_path / "store" / "store.json")
        assert httpx2.get(f"{root}/readyz").status_code == 200
        assert server.stop() == 0


def test_a_server_whose_trace_has_nowhere_to_go_is_not_ready(tmp_path: Path) -> None:
    (tmp_path / "spill").write_text("no folder")
    away = Settings(
        embedder="none",
        store=tmp_path / "store",
        spill_dir=tmp_path / "spill",
        redis_url=f"redis://127.0.0.1:{free_port()}/0",
    )
    calls = Calls(away)
    try:
        assert not fit(calls.store())
        (tmp_path / "spill").unlink()
        assert fit(calls.store())
    finally:
        calls.close()


def test_a_workers_health_is_that_of_its_own_host(
    server: Server, store: MemoryStore, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = {"IAI_MCP_REDIS_URL": server.url_of("worker")}
    assert cli("worker", "--check", code=1, **env).stderr == "no worker of this host is alive\n"
    with worker(server.url_of("worker"), store.path):
        wait_until(lambda: Worker.all(connection=server.client()), PATIENCE)
        assert "seen " in cli("worker", "--check", **env).stdout
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr("socket.gethostname", lambda: "another")
            cli("worker", "--check", code=1, **env)
    cli("worker", "--check", code=1, **env)
    assert "Error" in cli("worker", "--check", code=1, IAI_MCP_REDIS_URL="redis://127.0.0.1:1/0").stderr
    assert "IAI_MCP_REDIS_URL" in cli("worker", "--check", code=2).stderr
