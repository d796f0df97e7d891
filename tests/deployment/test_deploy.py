"""What an operator runs: the users of Redis may do what they must and nothing else; secrets; files that agree."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
import typer
import yaml
from packaging.requirements import Requirement
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError
from redis.retry import Retry
from rq import Queue, Worker
from rq.registry import FailedJobRegistry
from rq.serializers import JSONSerializer
from typer.testing import CliRunner, Result

from iai_mcp import config
from iai_mcp.broker.redis.keys import Keys
from iai_mcp.cli.app import app
from iai_mcp.config import Settings
from iai_mcp.deployment.supervisor import Timing
from iai_mcp.errors import ConfigError
from iai_mcp.metrics import gauges
from iai_mcp.record import MemoryRecord
from iai_mcp.server.calls import Calls
from iai_mcp.server.health import LIVE, READY, is_ready
from iai_mcp.server.lifetime import GRACE_S, MARGIN_S
from iai_mcp.storage.meta import DEFAULT_LANES
from iai_mcp.store import MemoryStore
from tests.broker.redis.test_redis import (  # noqa: F401  the same tests, here under the users of a deployment
    patient,
    record_id,
    start,
    test_a_killed_worker_is_replaced_and_nothing_is_doubled,
    test_flushed_scripts_are_loaded_again,
    test_recall_goes_on_while_redis_is_down_and_order_holds,
)
from tests.server.test_server import http
from tests.servers import DEPLOYED, Server, free_port, redis_server, serving, worker
from tests.support import ROOT, pairs, wait_until

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
    key = {"IAI_MCP_SIGNING_KEY": "k" * 32}
    as_user = {name: {"IAI_MCP_REDIS_URL": server.url_of(name), **key} for name in ("producer", "worker", "ops")}
    cli("recall", "tabs", IAI_MCP_PUSH_BUDGET_MS="2000", **as_user["producer"])
    cli("worker", "--burst", **as_user["worker"])
    assert '"cue": "tabs"' in cli("provenance", "--json").stdout
    told = cli("doctor", code=1, **as_user["ops"]).stdout  # for no worker is alive now
    assert [line for line in told.splitlines() if line[:4] in ("FAIL", "WARN")] == [
        "FAIL  workers            0 alive on the queue 'provenance' -> iai-mcp worker"
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
        owner.client().rpush("iai-mcp:abc:lane:0:pending", "{}")
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
        ("worker", "LPOP iai-mcp:abc:lane:0:pending"),
        ("worker", "LMOVE iai-mcp:abc:lane:0:pending iai-mcp:abc:lane:1:pending LEFT RIGHT"),
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
    ways: list[dict[str, Any]] = [
        {},
        {"username": "producer", "password": "wrong"},
        {"password": "the-producers-own"},
    ]
    for how in ways:
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
    server.client().acl_log_reset()


@pytest.mark.parametrize("user", ["producer", "worker"])
def test_metrics_are_read_with_the_rights_that_these_users_have(
    server: Server, store: MemoryStore, user: str
) -> None:
    settings = Settings(store=store.path, redis_url=server.url_of(user))
    shown = {(name, label): value for name, label, value in gauges.redis_readings(settings)}
    assert shown["iai_mcp_redis_aof_enabled", ""] == 1
    assert shown["iai_mcp_redis_memory_limit_bytes", ""] == 512 * 2**20
    assert shown["iai_mcp_lane_pending_entries", "3"] == shown["iai_mcp_workers", ""] == 0


@pytest.mark.parametrize("user", ["producer", "worker"])
def test_a_user_may_no_more_with_the_lanes_than_this_program_does(user: str) -> None:
    (line,) = re.findall(rf"^user {user} .*$", (DEPLOYED / "users.acl").read_text(), re.MULTILINE)
    rules = re.findall(r"\((?:%R)?~iai-mcp:[^)]*? -@all ([^)]*)\)", line)
    allowed = {word.lstrip("+") for rule in rules for word in rule.split()}
    broker = ROOT / "iai_mcp" / "broker" / "redis"
    source = "\n".join(path.read_text() for path in (*broker.glob("*.py"), *broker.glob("lua/*.lua")))
    done = re.findall(r"call\('(\w+)'|(?:pipe|client|control)\.(\w+)\(|\"(EVAL\w*|WATCH)\"", source)
    assert allowed <= {name.lower() for names in done for name in names}


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
        ("a folder", "is a folder and no regular file"),
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
    def refused(*_: object, **__: object) -> bytes:  # root may read everything
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("iai_mcp.config.read_regular", refused)
    with pytest.raises(ConfigError, match="IAI_MCP_TOKEN_FILE=/x: Permission denied"):
        Settings.load({"IAI_MCP_TOKEN_FILE": "/x"})


def test_a_secret_and_its_file_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="IAI_MCP_TOKEN and IAI_MCP_TOKEN_FILE are both set"):
        Settings.load({"IAI_MCP_TOKEN": "s3cret", "IAI_MCP_TOKEN_FILE": "/x"})


def test_a_secret_that_everybody_may_read_is_warned_of(tmp_path: Path, cli: Cli) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret")
    file.chmod(0o644)
    said = f"{file} holds a secret and every user may read it: run chmod 600 on it"
    assert said in cli("list", IAI_MCP_TOKEN_FILE=str(file)).stderr
    assert (
        f"WARN  settings           every user may read the secret in {file}"
        in cli("doctor", IAI_MCP_TOKEN_FILE=str(file)).stdout
    )
    file.chmod(0o640)
    assert "every user" not in cli("list", IAI_MCP_TOKEN_FILE=str(file)).stderr


def test_modes_that_a_container_engine_chose_are_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "ENGINE_SECRETS", tmp_path)
    (tmp_path / "token").write_text("s3cret")
    assert config.world_readable({"IAI_MCP_TOKEN_FILE": str(tmp_path / "token")}) == []


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
        assert not is_ready(calls.store())
        (tmp_path / "spill").unlink()
        assert is_ready(calls.store())
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


# -- the files agree with the program and with each other

DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
UNITS = [DEPLOY / "systemd" / name for name in ("iai-mcp.service", "iai-mcp-worker@.service")]
MADE = {  # what deploy/make-secrets leaves
    "grafana-password",
    "redis-password-scaler",
    *(f"redis-url-{user}" for user in ("producer", "worker", "ops", "dashboard", "scaler")),
    "signing-key",
    "token",
    "users.acl",
}


def manifests(*folders: str) -> list[dict[str, Any]]:
    """The Kubernetes objects of these folders below deploy/."""
    files = [path for folder in folders for path in sorted((DEPLOY / folder).glob("*.yaml"))]
    found = [one for path in files for one in yaml.safe_load_all(path.read_text())]
    return [one for one in found if one["kind"] not in ("Kustomization",)]


OBJECTS = manifests("kubernetes")
PODS = {one["metadata"]["name"]: one["spec"]["template"] for one in OBJECTS if "template" in one.get("spec", {})}


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def understood(args: list[str]) -> dict[str, Any]:
    """What ``iai-mcp`` makes of a command line, without running it; fails where it would be refused."""
    group: Any = typer.main.get_command(app)
    command = group.commands[args[0]]
    context = command.make_context(args[0], args[1:], parent=group.context_class(group, info_name="iai-mcp"))
    found: dict[str, Any] = context.params
    return found


def known_setting(name: str) -> bool:
    specs = {spec.metadata["env"]: spec.metadata["secret"] for spec in dataclasses.fields(Settings)}
    return name in specs or specs.get(name.removesuffix("_FILE"), False)


def directives(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def dockerfile() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile with what they say, continued lines joined."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def commands() -> Iterator[list[str]]:
    said = dict(dockerfile())  # the last one of a kind: those of the last stage
    assert json.loads(said["ENTRYPOINT"]) == ["iai-mcp"]
    yield json.loads(said["CMD"])
    for service in COMPOSE["services"].values():
        if service["image"].startswith("iai-mcp:"):
            yield [arg.replace("${IAI_MCP_PUBLIC_HOST:-localhost}", "localhost") for arg in service["command"]]
            check = service.get("healthcheck", {}).get("test", ["CMD", "iai-mcp", "status"])
            assert check[:2] == ["CMD", "iai-mcp"]
            yield check[2:]
    for pod in PODS.values():
        for one in containers(pod):
            if one["image"] == "iai-mcp":
                yield one["args"]
                if "exec" in one.get("readinessProbe", {}):
                    assert one["readinessProbe"]["exec"]["command"][0] == "iai-mcp"
                    yield one["readinessProbe"]["exec"]["command"][1:]
    for unit in UNITS:
        for line in (*directives(unit)["ExecStart"], *directives(unit).get("ExecStartPre", [])):
            program, *args = line.replace("%i", "1").split()
            assert program == "/opt/iai-mcp/bin/iai-mcp"
            yield args


def test_every_command_line_is_one_that_the_program_takes() -> None:
    seen = [*commands()]
    for args in seen:
        found = understood(args)
        if args[0] == "serve":
            assert (found["transport"], found["port"]) == ("http", 8765)
    assert {args[0] for args in seen} == {"serve", "worker", "status", "doctor"}
    assert len(seen) == 14


def test_every_setting_is_one_that_the_program_knows() -> None:
    names = re.findall(r"\b(IAI_MCP_\w+)=", dict(dockerfile())["ENV"])
    names += [name for one in COMPOSE["services"].values() for name in one.get("environment", {})]
    names += [var["name"] for pod in PODS.values() for one in containers(pod) for var in one.get("env", [])]
    for unit in UNITS:
        names += re.findall(r"(\w+)=", " ".join(directives(unit)["Environment"]))
    ours = {name for name in names if name.startswith("IAI_MCP_")}
    assert len(ours) == 7
    assert all(known_setting(name) for name in ours), ours
    assert not known_setting("IAI_MCP_STORE_FILE")


def test_ports_and_health_checks_are_the_programs_own() -> None:
    said = dict(dockerfile())
    assert said["EXPOSE"] == "8765"
    assert f"http://127.0.0.1:8765{READY}" in said["HEALTHCHECK"]
    assert COMPOSE["services"]["server"]["ports"] == ["127.0.0.1:${IAI_MCP_PORT:-8765}:8765"]
    (server,) = PODS["iai-mcp-server"]["spec"]["containers"]
    assert server["ports"] == [{"name": "http", "containerPort": 8765}]
    probes = {name: server[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {probe["port"] for probe in probes.values()} == {"http"}
    assert [probe["path"] for probe in probes.values()] == [LIVE, LIVE, READY]


def mounted(service: dict[str, Any]) -> dict[Path, Path]:
    """Where a service sees a file or folder of this repository."""
    found = [volume.split(":") for volume in service["volumes"] if volume.startswith("./")]
    assert all(mode == "ro" for *_, mode in found)
    return {Path(target): ROOT / source for source, target, _ in found}


def test_prometheus_asks_where_servers_and_workers_listen() -> None:
    services = COMPOSE["services"]
    there = mounted(services["prometheus"])
    (config_file,) = [arg[14:] for arg in services["prometheus"]["command"] if arg.startswith("--config.file=")]
    said = yaml.safe_load(there[Path(config_file)].read_text())
    assert all(there[Path(config_file).parent / name].is_file() for name in said["rule_files"])
    (job,) = said["scrape_configs"]
    assert job["job_name"] in there[Path(config_file).parent / "alerts.yml"].read_text()
    assert Path(job["authorization"]["credentials_file"]).name in services["prometheus"]["secrets"]
    ((server,),) = [one["targets"] for one in job["static_configs"]]
    asked = understood([arg for arg in services["server"]["command"] if "$" not in arg])
    assert server == f"server:{asked['port']}"
    assert "server" in asked["allow_host"]
    (workers,) = job["dns_sd_configs"]
    drains = understood(services["worker"]["command"])
    assert (workers["names"], workers["port"]) == (["worker"], drains["metrics_port"])
    for name in ("server", "worker"):
        assert {*services[name]["networks"]} & {*services["prometheus"]["networks"]}, name

    (pod,) = PODS["iai-mcp-worker"]["spec"]["containers"]
    assert pod["ports"] == [{"name": "metrics", "containerPort": drains["metrics_port"]}]
    assert understood(pod["args"]) == drains
    assert drains["metrics_host"] == "0.0.0.0"
    policies = {one["metadata"]["name"]: one["spec"] for one in OBJECTS if one["kind"] == "NetworkPolicy"}
    for name, port in (("servers", asked["port"]), ("workers", drains["metrics_port"])):
        (rule,) = policies[f"metrics-of-{name}"]["ingress"]
        assert rule["ports"] == [{"protocol": "TCP", "port": port}]


def test_grafana_finds_its_dashboards_and_prometheus() -> None:
    service = COMPOSE["services"]["grafana"]
    there = mounted(service)
    provisioning = there[Path("/etc/grafana/provisioning")]
    (provider,) = yaml.safe_load((provisioning / "dashboards/iai-mcp.yml").read_text())["providers"]
    assert [*there[Path(provider["options"]["path"])].glob("*.json")]
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    assert (source["url"], service["network_mode"]) == ("http://localhost:9090", "service:prometheus")


def test_containers_can_do_little() -> None:
    for name, service in COMPOSE["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert int(service["user"].split(":")[0]) > 0, name
        assert {"cpus", "memory", "pids"} == {*service["deploy"]["resources"]["limits"]}, name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert ":latest" not in service["image"].replace("${IAI_MCP_VERSION:-latest}", "x"), name
    assert COMPOSE["networks"]["broker"] == {"internal": True}
    for name, pod in PODS.items():
        assert pod["spec"]["securityContext"]["runAsNonRoot"], name
        assert pod["spec"]["securityContext"]["runAsUser"] > 0, name
        assert not pod["spec"]["automountServiceAccountToken"], name
        for one in containers(pod):
            mine = one["securityContext"]
            assert (mine["readOnlyRootFilesystem"], mine["allowPrivilegeEscalation"]) == (True, False), name
            assert mine["capabilities"] == {"drop": ["ALL"]}, name
            assert "memory" in one["resources"]["limits"], name
    for unit in UNITS:
        said = directives(unit)
        assert said["NoNewPrivileges"] == said["MemoryDenyWriteExecute"] == ["yes"]
        assert said["ProtectSystem"] == ["strict"]
        assert said["CapabilityBoundingSet"] == [""]


def test_containers_write_to_volumes_only() -> None:
    said = dict(dockerfile())
    store, spill = (re.search(rf"{name}=(\S+)", said["ENV"]) for name in ("IAI_MCP_STORE", "IAI_MCP_SPILL_DIR"))
    assert store
    assert spill
    assert {Path(found[1]).parent for found in (store, spill)} == {Path(said["VOLUME"])}
    for service in COMPOSE["services"].values():
        if service["image"].startswith("iai-mcp:"):
            assert (service["volumes"], service["user"]) == (["data:/data"], "10001:10001")
    for name in ("iai-mcp-server", "iai-mcp-worker"):
        spec = PODS[name]["spec"]
        assert spec["securityContext"]["runAsUser"] == spec["securityContext"]["fsGroup"] == 10001
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert volumes["data"]["persistentVolumeClaim"] == {"claimName": "iai-mcp-data"}
        for one in containers(PODS[name]):
            writable = {m["mountPath"]: m["name"] for m in one["volumeMounts"] if not m.get("readOnly")}
            assert writable == {"/data": "data", "/tmp": "tmp"}


def test_selectors_services_and_policies_meet_their_pods() -> None:
    labels = [pod["metadata"]["labels"] for pod in PODS.values()]
    for one in OBJECTS:
        spec, kind = one.get("spec", {}), one["kind"]
        if kind == "Service":
            assert spec["selector"] in labels
            (pod,) = [pod for pod in PODS.values() if pod["metadata"]["labels"] == spec["selector"]]
            named = {p["name"]: p["containerPort"] for c in containers(pod) for p in c.get("ports", [])}
            assert all(named[port["targetPort"]] == port["port"] for port in spec["ports"])
        elif kind in ("Deployment", "StatefulSet"):
            assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
        elif kind == "PodDisruptionBudget":
            assert spec["selector"]["matchLabels"] in labels
        elif kind == "NetworkPolicy":
            said = re.findall(r"'app\.kubernetes\.io/name': '([\w-]+)'", str(spec))
            assert all({"app.kubernetes.io/name": name} in labels for name in said)
    kept = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())["resources"]
    there = {path.name for path in (DEPLOY / "kubernetes").glob("*.yaml")} - {"kustomization.yaml"}
    assert {*kept} == there | {"../redis"}


def test_the_scaler_looks_at_the_lanes_of_a_store() -> None:
    scaled, auth = manifests("kubernetes-keda")
    assert scaled["spec"]["scaleTargetRef"]["name"] in PODS
    keys = Keys("", "STORE_ID")
    lists = [trigger["metadata"]["listName"] for trigger in scaled["spec"]["triggers"]]
    assert lists == [keys.lane(lane, "pending") for lane in range(DEFAULT_LANES)]
    assert scaled["spec"]["maxReplicaCount"] == DEFAULT_LANES
    assert {t["authenticationRef"]["name"] for t in scaled["spec"]["triggers"]} == {auth["metadata"]["name"]}
    assert all(t["metadata"]["username"] == "scaler" for t in scaled["spec"]["triggers"])


def test_stopping_gets_more_time_than_the_program_takes() -> None:
    server, worker_ = (COMPOSE["services"][name]["stop_grace_period"] for name in ("server", "worker"))
    takes = GRACE_S + Settings().stop_budget + MARGIN_S
    times = {"server": int(server[:-1]), "worker": int(worker_[:-1])}
    for name, unit in zip(times, UNITS, strict=True):
        assert PODS[f"iai-mcp-{name}"]["spec"]["terminationGracePeriodSeconds"] == times[name]
        assert directives(unit)["TimeoutStopSec"] == [str(times[name])]
    assert times["server"] > takes
    assert times["worker"] > Timing().budget


# -- secrets and the image


def made(folder: Path, *options: str) -> dict[str, str]:
    command = ["sh", str(DEPLOY / "make-secrets"), *options, str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
    return {path.name: path.read_text().strip() for path in folder.iterdir()}


def test_secrets_are_made_once_and_open_the_redis_that_they_close(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    found = made(folder)
    assert {*found} == MADE
    assert folder.stat().st_mode & 0o777 == 0o700
    assert made(folder) == found
    rotated = made(folder, "--rotate")
    assert rotated["token"] != found["token"]
    new, before = rotated["signing-key"].splitlines()
    assert before == found["signing-key"] != new  # what is on its way stays valid
    assert len(Settings.load({"IAI_MCP_SIGNING_KEY_FILE": str(folder / "signing-key")}).signing_keys) == 2
    assert made(folder, "--rotate")["signing-key"].splitlines()[1:] == [new]
    found = made(folder)
    assert not any(secret in found["users.acl"] for name, secret in found.items() if name != "users.acl")
    urls = {name.removeprefix("redis-url-"): url for name, url in found.items() if name.startswith("redis-url-")}
    owner = Server(tmp_path / "redis", "--aclfile", str(folder / "users.acl"), acl=False)
    owner.start(wait=False)
    try:
        wait_until(lambda: "Ready to accept" in (owner.folder / "server.log").read_text())
        for user, url in urls.items():
            assert url.startswith(f"redis://{user}:")
            client = redis.Redis.from_url(url.replace("@redis:6379", f"@127.0.0.1:{owner.port}"))
            assert client.ping()
    finally:
        owner.kill()


def test_clients_and_workers_get_the_key_that_signs_entries() -> None:
    for name in ("server", "worker", "ops"):
        service = COMPOSE["services"][name]
        assert service["environment"]["IAI_MCP_SIGNING_KEY_FILE"] == "/run/secrets/signing-key"
    for pod in PODS.values():
        for one in containers(pod):
            if one["image"] == "iai-mcp":
                assert "IAI_MCP_SIGNING_KEY_FILE" in {var["name"] for var in one["env"]}
    for unit in UNITS:
        assert "IAI_MCP_SIGNING_KEY_FILE=%d/signing-key" in " ".join(directives(unit)["Environment"])
        assert "signing-key:/etc/iai-mcp/signing-key" in directives(unit)["LoadCredential"]


def test_every_secret_that_is_named_is_made_and_mounted() -> None:
    assert {name: one["file"] for name, one in COMPOSE["secrets"].items()} == {
        name: f"./secrets/{name}" for name in COMPOSE["secrets"]
    }
    assert {*COMPOSE["secrets"]} <= MADE
    for name, service in COMPOSE["services"].items():
        text = str(service.get("environment", "")) + str(service.get("command", ""))
        for path in re.findall(r"/run/secrets/([\w.-]+)", text):
            assert path in service["secrets"], name
    for pod in PODS.values():
        for volume in pod["spec"]["volumes"]:
            if "secret" in volume:
                assert volume["secret"]["secretName"] == "iai-mcp"
                assert {item["key"] for item in volume["secret"]["items"]} <= MADE
        for one in containers(pod):
            for var in one.get("env", []):
                if var["name"].endswith("_FILE"):
                    assert Path(var["value"]).name in str(pod["spec"]["volumes"])
    assert "secrets/" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_image_is_pinned_to_versions_that_this_package_takes() -> None:
    for word, said in dockerfile():
        if word == "FROM" and not said.startswith("base "):
            assert re.match(r"python:3\.\d+\.\d+-slim-\w+ AS ", said)
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for file, needs in (
        ("image", wanted["project"]["dependencies"]),
        ("build", wanted["build-system"]["requires"]),
        ("dashboard", ["rq-dashboard", "rq", "redis"]),
    ):
        text = (DEPLOY / "requirements" / f"{file}.txt").read_text()
        pinned = dict(re.findall(r"^([\w.-]+)==([\w.]+) \\$", text, re.MULTILINE))
        assert text.count("--hash=sha256:") >= len(pinned) > 0
        for need in map(Requirement, needs):
            assert need.specifier.contains(pinned[need.name]), f"{need}: make deploy/requirements/{file}.txt anew"


def test_the_image_gets_what_it_copies_and_no_more() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [said.split()[:-1] for word, said in dockerfile() if word == "COPY" and not said.startswith("--from")]
    for path in (Path(source) for sources in copied for source in sources):
        assert (ROOT / path).exists()
        assert {str(path), *map(str, path.parents)} & allowed, path
    assert "secrets" not in allowed
