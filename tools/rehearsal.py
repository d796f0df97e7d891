"""What ``docker compose up`` would start, by hand and without an engine: ``python -m tools.rehearsal``.

For Linux, as root.

Redis, the server and two workers run with the command, environment, user, secrets and volumes that
``compose.yaml`` and the Dockerfile say: on a read-only root, without capabilities, each with its own processes
and host name, in one network of their own. Then the health checks, a memory that is kept and recalled, its
trace, and a stop. Exit code 0 where all of it works. The image's packages are installed at /opt/iai-mcp as the
Dockerfile does it; the base image is this machine, which needs redis-cli for Redis's health check.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import yaml

from tests.servers import redis_server
from tests.support import ROOT

SERVICES = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
PROGRAM = Path("/opt/iai-mcp")
PLACES = (Path("/data"), Path("/etc/redis"), PROGRAM)  # made on this machine for the time being, as mount points
SYSTEM_PYTHON = "/usr/bin/python3"  # one that other users can run


def sh(*args: str | Path, **further: Any) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run([*map(str, args)], check=True, stdout=subprocess.PIPE, text=True, **further)
    return str(done.stdout)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def image() -> tuple[dict[str, str], list[str]]:
    """The environment and the health check that the Dockerfile gives a server."""
    text = (ROOT / "deploy" / "Dockerfile").read_text().replace("\\\n", " ")
    env = " ".join(line[4:] for line in text.splitlines() if line.startswith("ENV ") and "PIP_" not in line)
    check = re.search(r"^HEALTHCHECK .*?CMD (\[.*\])", text, re.MULTILINE)
    assert check is not None
    path = f"{PROGRAM}/bin:/usr/bin:/bin"
    return {**dict(re.findall(r"(\w+)=(\S+)", env)), "PATH": path}, json.loads(check[1])


def build(work: Path) -> None:
    """The Dockerfile's steps, with this machine as base."""
    requirements = ROOT / "deploy" / "requirements"
    sh(SYSTEM_PYTHON, "-m", "venv", work / "pip")
    sh(SYSTEM_PYTHON, "-m", "venv", "--without-pip", PROGRAM)
    pip: list[str | Path] = [work / "pip/bin/pip", "--disable-pip-version-check"]
    hashed = ["install", "--quiet", "--require-hashes", "--only-binary", ":all:", "-r"]
    sh(*pip, *hashed, requirements / "build.txt", stderr=subprocess.DEVNULL)
    into: list[str | Path] = [*pip, "--python", PROGRAM / "bin/python"]
    sh(*into, *hashed, requirements / "image.txt", stderr=subprocess.DEVNULL)
    sh(
        work / "pip/bin/hatchling",
        "build",
        "-t",
        "wheel",
        "-d",
        work / "wheel",
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    sh(*into, "install", "--quiet", "--no-deps", *(work / "wheel").glob("*.whl"), stderr=subprocess.DEVNULL)
    say(f"built: {sh('du', '-sm', PROGRAM).split()[0]} MiB of packages")


class Container:
    """One service, running; ``instead`` are arguments that differ, since all share one network here."""

    def __init__(self, work: Path, name: str, label: str = "", **instead: str) -> None:
        self.label = label or name
        self.service = SERVICES[name]
        self.log = work / f"{self.label}.log"
        uid, gid = self.service["user"].split(":")
        self.ours = self.service["image"].startswith("iai-mcp:")
        env = image()[0] if self.ours else {"PATH": f"{work}/bin:/usr/bin:/bin"}
        env |= self.service.get("environment", {})
        self.prefix = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--no-new-privs"]
        self.prefix += ["--bounding-set=-all", "--inh-caps=-all"]
        self.prefix += ["env", "-i", *(f"{key}={value}" for key, value in env.items())]
        args = [arg.replace("${IAI_MCP_PUBLIC_HOST:-localhost}", "localhost") for arg in self.service["command"]]
        args = [instead.get(arg.lstrip("-").partition("=")[0].replace("-", "_"), arg) for arg in args]
        script = "\n".join([*self._mounts(work, int(uid), int(gid)), 'exec "$@"'])
        command = ["unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc"]
        command += ["sh", "-euc", script, "sh", *self.prefix, *(["iai-mcp"] if self.ours else []), *args]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def _mounts(self, work: Path, uid: int, gid: int) -> list[str]:
        lines = [f"hostname {self.label}", f"mount --bind {work}/hosts /etc/hosts", "mount -t tmpfs tmpfs /run"]
        for volume in self.service["volumes"]:
            source, target = volume.split(":")[:2]
            path = ROOT / source if source.startswith("./") else work / "volumes" / source
            if not source.startswith("./") and not path.exists():
                path.mkdir(parents=True)
                path.chmod(0o700)
                os.chown(path, uid, gid)
            if path.is_file():
                lines += [f"mount -t tmpfs tmpfs {Path(target).parent}", f"touch {target}"]
            lines.append(f"mount --bind {path} {target}")
        lines.append("mkdir /run/secrets")
        for name in self.service["secrets"]:
            lines += [f"touch /run/secrets/{name}", f"mount --bind {work}/secrets/{name} /run/secrets/{name}"]
        options = self.service["tmpfs"][0].partition(":")[2]
        lines += ["mount -o remount,ro /run", f"mount -t tmpfs -o {options} tmpfs /tmp"]
        return [*lines, "cd /data", "mount -o remount,bind,ro /"]

    @property
    def pid(self) -> int:
        """The container's first process."""
        return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()[0])

    def exec(self, args: Sequence[str], ours: bool = False) -> subprocess.CompletedProcess[str]:
        """``docker compose exec``."""
        enter = ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--uts", "--wd=/"]
        command = [*enter, *self.prefix, *(["iai-mcp"] if ours else []), *args]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    def wait_healthy(self) -> Container:
        test = self.service.get("healthcheck", {}).get("test") or image()[1]
        command = ["sh", "-c", test[1]] if test[0] == "CMD-SHELL" else test[1:] if test[0] == "CMD" else test
        started, said = time.monotonic(), ""
        while time.monotonic() - started < 90 and self.process.poll() is None:
            with suppress(IndexError):  # not there yet
                done = self.exec(command)
                if done.returncode == 0:
                    say(f"{self.label}: healthy after {time.monotonic() - started:.1f} s, {self.memory} MiB")
                    return self
                said = done.stdout + done.stderr
            time.sleep(0.2)
        raise SystemExit(f"{self.label} does not become healthy: {said}\n{self.log.read_text()}")

    @property
    def memory(self) -> int:
        """MiB that its processes have resident."""
        ids = [self.pid]
        for one in ids:
            ids += map(int, Path(f"/proc/{one}/task/{one}/children").read_text().split())
        sizes = [re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{one}/status").read_text()) for one in ids]
        return sum(int(size[1]) for size in sizes if size) // 1024

    def stop(self) -> None:
        if self.process.poll() is None:
            os.kill(self.pid, signal.SIGTERM)
            self.process.wait(60)
            say(f"{self.label}: stopped with exit code {self.process.returncode}")


def scraped(port: int, token: str) -> list[str]:
    """The sources that a scrape shows, asked for as deploy/prometheus/compose.yml has it; Redis is one of them."""
    headers = {"Authorization": f"Bearer {token}", "Host": "server:8765"}
    with urlopen(Request(f"http://127.0.0.1:{port}/metrics", headers=headers), timeout=10) as answer:
        found = re.findall(r'^iai_mcp_source_up\{source="(\w+)"\} 1\.0$', answer.read().decode(), re.MULTILINE)
    assert "redis" in found
    return found


def rehearse(work: Path) -> None:
    """Everything up, a recall and its trace, everything down."""
    sh("ip", "link", "set", "lo", "up")
    running = [Container(work, "redis").wait_healthy()]
    try:
        running.append(server := Container(work, "server").wait_healthy())
        ports = {f"worker-{number}": 9463 + number for number in (1, 2)}
        for label, port in ports.items():
            running.append(Container(work, "worker", label, metrics_port=f"--metrics-port={port}").wait_healthy())
        for args in (["capture", "The ferry leaves from pier nine."], ["recall", "which pier?"]):
            done = server.exec(args, ours=True)
            say(f"$ iai-mcp {' '.join(args)}\n{done.stdout.strip()}{done.stderr.strip()}")
            assert done.returncode == 0
        for _ in range(100):
            found = json.loads(server.exec(["provenance", "--json"], ours=True).stdout)["entries"]
            if found:
                break
        say(f"the trace of that recall is in the store: {[entry['cue'] for entry in found]}")
        assert len(found) == 1
        token = (work / "secrets" / "token").read_text().strip()
        for label, port in {"server": 8765, **ports}.items():
            say(f"{label}: Prometheus sees {' and '.join(scraped(port, token))}")
        refused = server.exec(["sh", "-c", "touch /etc/x /opt/iai-mcp/x /run/x; id -u"])
        assert refused.stderr.count("Read-only file system") == 3, refused.stderr
        spilled = sh("find", work / "volumes", "-newer", work / "hosts", "-type", "f", "-not", "-user", "10001")
        assert {Path(path).relative_to(work / "volumes").parts[0] for path in spilled.split()} == {"redis"}
        running.append(ops := Container(work, "ops"))
        ops.process.wait(120)
        say(ops.log.read_text().strip())
        assert ops.process.returncode == 0
    finally:
        for container in reversed(running):
            container.stop()
    assert all(container.process.returncode == 0 for container in running)


def main() -> int:
    if "--in-its-own-network" in sys.argv:
        rehearse(Path(sys.argv[-1]))
        return 0
    made = [place for place in PLACES if not place.exists()]
    with tempfile.TemporaryDirectory(prefix="rehearsal-", dir="/var/tmp") as folder:
        work = Path(folder)
        work.chmod(0o755)
        (work / "hosts").write_text("127.0.0.1 localhost redis server worker\n")
        (work / "bin").mkdir()
        shutil.copy(redis_server(), work / "bin" / "redis-server")
        try:
            for place in made:
                place.mkdir(parents=True)
            sh("sh", ROOT / "deploy" / "make-secrets", work / "secrets", stderr=subprocess.DEVNULL)
            build(work)
            command = ["unshare", "--net", "--mount", "--propagation", "private"]
            command += [sys.executable, "-m", "tools.rehearsal", "--in-its-own-network", folder]
            return subprocess.run(command, cwd=ROOT).returncode
        finally:
            for place in made:
                shutil.rmtree(place)


if __name__ == "__main__":
    sys.exit(main())
