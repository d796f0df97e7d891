"""Owns child processes: starts them, restarts those that die, and ends all of them on a stop.

It signals only processes that it started itself. Exit code 2 of a child means that a restart cannot help: the
supervisor then ends all children.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from iai_mcp.errors import BrokerUnavailable, ConfigError
from iai_mcp.telemetry.events import log

if TYPE_CHECKING:
    from iai_mcp.config import Settings

__all__ = ["HOPELESS", "Child", "Stop", "Timing", "check_start", "end", "keep", "worker_children"]

HOPELESS = 2  # exit code of a child with settings that cannot work


@dataclass(frozen=True, slots=True)
class Timing:
    """The delays of a supervisor, in seconds.

    Attributes:
        first: pause before the first restart; it doubles at each further death.
        longest: upper limit of the pause.
        steady: lifetime after which the pause starts again at ``first``.
        budget: time from the request to stop until a child is killed.
        poll: pause between two checks of the children.
    """

    first: float = 0.5
    longest: float = 10.0
    steady: float = 30.0
    budget: float = 30.0
    poll: float = 0.1


class Stop:
    """Handles SIGTERM, SIGINT and SIGHUP for a block: the first requests a stop, a later Ctrl-C forces it."""

    def __init__(self) -> None:
        self.asked = False
        self.forced = False
        self._at = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stop:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue  # nohup
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        # Launchers pass on a Ctrl-C that the terminal has sent to us too: two within a second count as one.
        if self.asked and number == signal.SIGINT and time.monotonic() - self._at > 1:
            self.forced = True
        if not self.asked:
            self._at = time.monotonic()
        self.asked = True


class Child:
    """One supervised process: its command, and the time of its next start.

    - It has its own process group, so that a Ctrl-C reaches the supervisor only.
    - Its output goes to the file ``output`` (default: our stderr), because our stdout carries results.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        env: Mapping[str, str] | None = None,
        *,
        output: Path | None = None,
        timing: Timing | None = None,
    ) -> None:
        self.name = name
        self.timing = timing or Timing()
        self.code: int | None = None  # exit code of the last run
        self._command = [*command]
        self._env = {**os.environ, **(env or {})}
        self._output = output
        self._process: subprocess.Popen[bytes] | None = None
        self._started = self._next = 0.0
        self._pause = self.timing.first

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start the process."""
        sink: Any = 2 if self._output is None else open(self._output, "ab")  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                self._command,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                process_group=0,
            )
        finally:
            if self._output is not None:
                sink.close()
        self._started = time.monotonic()

    def ended(self) -> bool:
        """Whether the process has ended since the last call; sets ``code`` if so."""
        if self._process is None or (code := self._process.poll()) is None:
            return False
        self._process = None
        self.code = code if code >= 0 else 128 - code  # as a shell reports a signal
        return True

    def start_later(self) -> None:
        """Schedule a restart after a pause, which doubles unless the process lived for a while."""
        if time.monotonic() - self._started >= self.timing.steady:
            self._pause = self.timing.first
        self._next = time.monotonic() + self._pause
        log.warning("%s %s; restarting it in %g s", self.name, describe_exit(self.code or 0), self._pause)
        self._pause = min(self.timing.longest, self._pause * 2)

    def start_when_due(self) -> None:
        """Start the process if it does not run and its pause is over."""
        if self._process is None and time.monotonic() >= self._next:
            self.start()

    def send(self, number: signal.Signals) -> None:
        """Signal the process if it runs."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)


def describe_exit(code: int) -> str:
    """An exit code in words."""
    with suppress(ValueError):
        if code > 128:
            return f"was killed by {signal.Signals(code - 128).name}"
    return f"ended with exit code {code}"


def keep(children: Sequence[Child], stop: Stop, *, restart: bool = True) -> int:
    """Run ``children`` until a stop is requested, and return the exit code.

    The code is 0, or ``HOPELESS`` as soon as a child ends with it. Without ``restart``, run until all children
    have ended; the code is then the highest of theirs. Children may still run on return: :func:`end` ends them.
    """
    if not stop.asked:
        for child in children:
            child.start_when_due()
    while not stop.asked:
        if restart:
            for child in children:
                if child.ended():
                    if child.code == HOPELESS:
                        return HOPELESS
                    child.start_later()
                child.start_when_due()
        elif all_ended(children):
            return max(child.code or 0 for child in children)
        time.sleep(children[0].timing.poll)
    return 0


def all_ended(children: Sequence[Child]) -> bool:
    """Whether no child runs."""
    for child in children:
        child.ended()
    return all(child.pid is None for child in children)


def end(children: Sequence[Child], stop: Stop | None = None) -> bool:
    """Ask ``children`` to finish their work and wait; False if any had to be killed."""
    for child in children:
        child.send(signal.SIGTERM)
    deadline = time.monotonic() + max((child.timing.budget for child in children), default=0.0)
    while not all_ended(children):
        if time.monotonic() >= deadline or (stop is not None and stop.forced):
            break
        time.sleep(0.02)
    late = [child for child in children if child.pid is not None]
    for child in late:
        log.warning("%s did not end in time and is killed; its unfinished work will be repeated", child.name)
        child.send(signal.SIGKILL)
    while not all_ended(late):
        time.sleep(0.02)
    return not late


# --- workers ---------------------------------------------------------------------------------------------


def worker_children(
    count: int, env: Mapping[str, str], *, burst: bool = False, metrics: Path | None = None
) -> list[Child]:
    """``count`` worker processes, not started yet. They end by themselves when this process is gone.

    Args:
        metrics: the folder of :class:`iai_mcp.metrics.endpoint.SharedMetrics` for their metrics.
    """
    # -P: a folder named "workers" in the current folder must not shadow our package.
    command = [sys.executable, "-P", "-m", "workers", "--parent-pid", str(os.getpid())]
    command += ["--burst"] if burst else []
    command += ["--metrics-folder", str(metrics)] if metrics is not None else []
    return [Child(f"worker {number}", [*command, "--number", str(number)], env) for number in range(1, count + 1)]


def check_start(settings: Settings) -> str | None:
    """Check that workers can start; the reason why they would have to wait, or None.

    Raises:
        ConfigError: no Redis is configured, Redis refuses this client or this folder, or there is no store.
        StoreError: this version cannot read the store.
    """
    if not settings.redis_url:
        raise ConfigError(
            "workers need IAI_MCP_REDIS_URL, such as redis://localhost:6379/0; "
            "without a Redis, run `iai-mcp up`, which starts one"
        )
    from iai_mcp.broker.redis.inspect import check
    from iai_mcp.broker.redis.place import claim_place, visiting
    from iai_mcp.storage.layout import Layout
    from iai_mcp.storage.meta import read_meta
    from iai_mcp.storage.place import store_place

    layout = Layout(settings.store_path.absolute())
    if not layout.meta.exists():
        raise ConfigError(f"there is no store at {settings.store_path}; set IAI_MCP_STORE to an existing one")
    meta = read_meta(layout)
    try:
        check(settings.redis_url)
        with visiting(settings, meta.store_id) as (client, keys):
            claim_place(client, keys, store_place(layout))
    except BrokerUnavailable as error:
        return str(error)
    return None
