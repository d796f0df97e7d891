"""Sees every alert fire: Prometheus, Redis, an HTTP server and workers, and each thing broken once.

``python -m tools.see_alerts`` needs ``prometheus`` on the PATH and takes a minute or two; it is not part of the
suite. The rules are those of ``deploy/prometheus/alerts.yml`` with shorter times. Exits with 1 where an alert did
not fire, did not end, or fired before its cause.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2

from iai_mcp.broker.redis.keys import Keys
from iai_mcp.storage.dead_letters import DeadLetters
from iai_mcp.storage.layout import Layout
from iai_mcp.storage.meta import read_meta
from tests.server.test_server import Http, http, used
from tests.servers import Server, free_port, serving
from tests.support import ROOT, wait_until

RULES = ROOT / "deploy/prometheus/alerts.yml"
SHORTER = (
    (r"for: \w+", "for: 1s"),
    (r"\[10m\]", "[10s]"),
    (r"oldest_seconds\) > 60", "oldest_seconds) > 2"),
    (r"versions\) > 2000", "versions) > 12"),
)
CONFIG = """
global: {{ scrape_interval: 1s, evaluation_interval: 1s, scrape_timeout: 1s }}
rule_files: [rules.yml]
scrape_configs:
  - job_name: iai-mcp
    authorization: {{ credentials: s3cret-token }}
    static_configs: [{{ targets: ["127.0.0.1:{server}", "127.0.0.1:{workers}"] }}]
"""
PATIENCE = 60


class Run:
    """The processes, and what Prometheus says of them."""

    def __init__(self, folder: Path, redis: Server, server: Http, prometheus: str, port: int) -> None:
        self.folder = folder
        self.redis = redis
        self.server = server
        self._prometheus = prometheus
        self._port = port
        self.store = folder / "store"
        self.spill = folder / "spill"
        self._workers: subprocess.Popen[bytes] | None = None
        self.seen: list[tuple[str, float, str]] = []

    @property
    def keys(self) -> Keys:
        """Where the lanes are in Redis."""
        return Keys("", read_meta(Layout(self.store)).store_id)

    def firing(self) -> dict[str, str]:
        """Alerts that fire now, with their summary."""
        alerts: list[dict[str, Any]] = httpx2.get(f"{self._prometheus}/api/v1/alerts").json()["data"]["alerts"]
        return {a["labels"]["alertname"]: a["annotations"]["summary"] for a in alerts if a["state"] == "firing"}

    def fires(self, *names: str) -> None:
        """Wait for these alerts."""
        began = time.monotonic()
        for name in names:
            summary = wait_until(lambda name=name: self.firing().get(name), PATIENCE)  # type: ignore[misc]
            self.seen.append((name, time.monotonic() - began, summary))
            say(f"  {name:<24} after {time.monotonic() - began:4.1f} s: {summary}")

    def quiet(self) -> None:
        """Wait until none fires."""
        began = time.monotonic()
        wait_until(lambda: not self.firing(), PATIENCE)
        say(f"  all quiet after {time.monotonic() - began:.1f} s")

    def recall(self, times: int = 1) -> None:
        """Ask the server."""

        async def ask() -> None:
            async with self.server.client() as client:
                for _ in range(times):
                    await used(client, "memory_recall", cue="ferry")

        asyncio.run(ask())

    def start_workers(self) -> None:
        command = [sys.executable, "-m", "iai_mcp", "worker", "-n", "2", "--metrics-port", str(self._port)]
        env = environment(self.folder, self.redis)
        with open(self.folder / "workers.log", "ab") as log:
            self._workers = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)

    def stop_workers(self) -> None:
        if self._workers is not None:
            self._workers.terminate()
            self._workers.wait(40)
            self._workers = None


def environment(folder: Path, redis: Server) -> dict[str, str]:
    """Of the server and the workers."""
    ours = {"HOME": str(folder), "IAI_MCP_STORE": str(folder / "store"), "IAI_MCP_EMBEDDER": "none"}
    ours |= {"IAI_MCP_REDIS_URL": redis.url, "IAI_MCP_SPILL_DIR": str(folder / "spill"), "IAI_MCP_LOG": "info"}
    return {**os.environ, **ours}


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


# -- what is broken


def redis_without_its_file(run: Run) -> None:
    run.redis.client().config_set("appendonly", "no")
    run.fires("IaiMcpAofOff")
    run.redis.client().config_set("appendonly", "yes")
    run.quiet()


def poison(run: Run) -> None:
    run.redis.client().rpush(run.keys.lane(0, "pending"), b"noise")
    run.fires("IaiMcpDeadLetters")
    letters = DeadLetters(Layout(run.store))
    letters.drop([letter.id for letter in letters.all()])
    run.quiet()


def no_workers(run: Run) -> None:
    run.stop_workers()
    run.recall()
    run.fires("IaiMcpNoWorkers", "IaiMcpDown", "IaiMcpBacklogOld")
    run.start_workers()
    run.quiet()


def a_disk_that_takes_nothing(run: Run) -> None:
    shutil.rmtree(run.spill, ignore_errors=True)
    run.spill.write_text("where the folder should be")
    run.redis.send(signal.SIGSTOP)
    with suppress(AssertionError):
        run.recall(3)
    run.fires("IaiMcpEntriesRefused")
    run.spill.unlink()


def redis_hangs(run: Run) -> None:
    run.recall(3)
    run.fires("IaiMcpRedisUnreachable", "IaiMcpBreakerOpen", "IaiMcpSpillNotEmpty")
    run.redis.send(signal.SIGCONT)
    run.quiet()


def half_a_line(run: Run) -> None:
    store_id = run.keys.store_id
    run.spill.mkdir(exist_ok=True)
    torn = run.spill / f"{store_id[:8]}-{secrets.token_hex(8)}-1000000.jsonl"
    torn.write_text(f'{{"store":"{store_id}", "noi')
    run.fires("IaiMcpSpillSetAside")
    for path in run.spill.glob("*.failed-*"):
        path.unlink()
    run.quiet()


def a_lane_without_upkeep(run: Run) -> None:
    for _ in range(14):  # a commit each
        run.recall()
        time.sleep(0.1)
    run.fires("IaiMcpLaneNotCompacted")


STEPS: tuple[Callable[[Run], None], ...] = (
    redis_without_its_file,
    poison,
    no_workers,
    a_disk_that_takes_nothing,
    redis_hangs,
    half_a_line,
    a_lane_without_upkeep,
)


@contextmanager
def prometheus(folder: Path, server: int, workers: int) -> Iterator[str]:
    """A Prometheus that watches both ports; its URL."""
    rules = RULES.read_text()
    for pattern, shorter in SHORTER:
        rules, count = re.subn(pattern, shorter, rules)
        assert count, pattern
    folder.mkdir()
    (folder / "rules.yml").write_text(rules)
    (folder / "prometheus.yml").write_text(CONFIG.format(server=server, workers=workers))
    port = free_port()
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    command.append(f"--web.listen-address=127.0.0.1:{port}")
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: _answers(f"{url}/-/ready"), PATIENCE)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _answers(url: str) -> bool:
    with suppress(httpx2.HTTPError):
        return bool(httpx2.get(url).status_code == 200)
    return False


def main() -> int:
    """All of it; the exit code."""
    if shutil.which("prometheus") is None:
        say("there is no prometheus on the PATH; Debian and Ubuntu have it: apt install prometheus")
        return 2
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name, serving(Path(name, "redis")) as redis:
        folder = Path(name)
        ours = {k: v for k, v in environment(folder, redis).items() if k.startswith(("IAI_MCP_", "HOME"))}
        with http(folder / "server", IAI_MCP_TOKEN="s3cret-token", **ours) as server:
            port = free_port()
            at = int(server.url.split(":")[2].split("/")[0])
            with prometheus(folder / "prometheus", at, port) as url:
                run = Run(folder, redis, server, url, port)
                try:
                    return follow(run, began)
                finally:
                    redis.send(signal.SIGCONT)
                    run.stop_workers()


def follow(run: Run, began: float) -> int:
    """Break one thing after the other."""

    async def remember() -> None:
        async with run.server.client() as client:
            await used(client, "memory_capture", text="the ferry leaves from pier nine")

    asyncio.run(remember())
    run.start_workers()
    run.recall(3)
    say("all is well")
    wait_until(lambda: _up(run) == 2, PATIENCE)
    run.quiet()
    for step in STEPS:
        say(step.__name__.replace("_", " "))
        early = {name for name in run.firing() if name not in {seen for seen, _, _ in run.seen}}
        assert not early, f"fires before its cause: {early}"
        step(run)
    missing = {*re.findall(r"- alert: (\w+)", RULES.read_text())} - {name for name, _, _ in run.seen}
    say(f"{len(run.seen)} alerts seen in {time.monotonic() - began:.0f} s; not seen: {sorted(missing) or 'none'}")
    return 1 if missing else 0


def _up(run: Run) -> int:
    found = httpx2.get(f"{run._prometheus}/api/v1/query", params={"query": "sum(up)"}).json()["data"]["result"]
    return int(float(found[0]["value"][1])) if found else 0


if __name__ == "__main__":
    sys.exit(main())
