"""Keeps child processes running: starts again what dies, passes a stop on once, and leaves nobody behind.

Only processes that it started itself are ever signalled. A child that ends with exit code 2 says that no
restart helps, and ends them all.
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

HOPELESS = 2  # exit code of a child whose settings cannot work


@dataclass(frozen=True, slots=True)
class Timing:
    """How patient a supervisor is, in seconds.

    Attributes:
        first: before the first restart; the pause doubles from death to death.
        longest: before any restart.
        steady: a child that lived so long starts over with the first pause.
        budget: from the request to stop until a child is killed.
        look: between two looks at the children.
    """

    first: float = 0.5
    longest: float = 10.0
    steady: float = 30.0
    budget: float = 30.0
    look: float = 0.1


class Stop:
    """Catches SIGTERM, SIGINT and SIGHUP for a block: the first asks for a stop, a later Ctrl-C hurries it."""

    def __init__(self) -> None:
        self.asked = False
        self.hurried = False
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
        # Launchers pass a Ctrl-C on that the terminal has sent already: twice within a second is once.
        if self.asked and number == signal.SIGINT and time.monotonic() - self._at > 1:
            self.hurried = True
        if not self.asked:
            self._at = time.monotonic()
        self.asked = True


class Child:
    """One process that is to run: its command, and when it may be started again.

    It gets a process group of its own, so that a Ctrl-C reaches the supervisor alone; its stdout goes to
    ``output`` (default: our stderr), since ours is for results.
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
        self.code: int | None = None  # of the last run that ended
        self._command = [*command]
        self._env = {**os.environ, **(env or {})}
        self._output = output
        self._process: subprocess.Popen[bytes] | None = None
        self._started = self._next = 0.0
        self._pause = self.timing.first

    @property
    def pid(self) -> int | None:
        """The process's id while it runs."""
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

        if self._process is None or (code := self._process.poll()) is None:
            return False
        self._process = None
        self.code = code if code >= 0 else 128 - code  # as a shell counts
        return True

    def start_later(self) -> None:
        """Start the process again after a pause, which doubles unless it had lived for a while."""
        if time.monotonic() - self._started >= self.timing.steady:
            self._pause = self.timing.first
        self._next = time.monotonic() + self._pause
        log.warning("%s %s; starting it again in %g s", self.name, told(self.code or 0), self._pause)
        self._pause = min(self.timing.longest, self._pause * 2)

    def start_when_due(self) -> None:
        """Start the process again, once its pause is over."""
        if self._process is None and time.monotonic() >= self._next:
            self.start()

    def send(self, number: signal.Signals) -> None:
        """Signal the process, where it runs."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)


def told(code: int) -> str:
    """What an exit code means, in words."""
    with suppress(ValueError):
        if code > 128:
            return f"was killed by {signal.Signals(code - 128).name}"
    return f"ended with exit code {code}"


def keep(children: Sequence[Child], stop: Stop, *, restart: bool = True) -> int:
    """Run ``children`` until a stop is asked for; the exit code: 0, or that of a child that is hopeless.

    Without ``restart`` until all of them have ended, and the exit code is the worst of theirs. Children may
    still run when this returns: :func:`end` ends them.
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
        elif all_gone(children):
            return max(child.code or 0 for child in children)
        time.sleep(children[0].timing.look)
    return 0


def all_gone(children: Sequence[Child]) -> bool:
    """Whether none of ``children`` runs."""
    for child in children:
        child.ended()
    return all(child.pid is None for child in children)


def end(children: Sequence[Child], stop: Stop | None = None) -> bool:
    """Ask ``children`` to finish what they have in hand, and wait; False where some had to be killed."""
    for child in children:
        child.send(signal.SIGTERM)
    deadline = time.monotonic() + max((child.timing.budget for child in children), default=0.0)
    while not all_gone(children):
        if time.monotonic() >= deadline or (stop is not None and stop.hurried):
            break
        time.sleep(0.02)
    late = [child for child in children if child.pid is not None]
    for child in late:
        log.warning("%s did not end in time and is killed; what it had in hand is done again later", child.name)
        child.send(signal.SIGKILL)
    while not all_gone(late):
        time.sleep(0.02)
    return not late


# --- workers ---------------------------------------------------------------------------------------------


def worker_children(
    count: int, env: Mapping[str, str], *, burst: bool = False, metrics: Path | None = None
) -> list[Child]:
    """``count`` worker processes, not started yet; they end by themselves when this process is gone.

    ``metrics``: the folder of :class:`iai_mcp.metrics.endpoint.Shared` in which they count.
    """
    # -P: a folder named "workers" where the user happens to be must not take the place of ours.
    command = [sys.executable, "-P", "-m", "workers", "--parent-pid", str(os.getpid())]
    command += ["--burst"] if burst else []
    command += ["--metrics-folder", str(metrics)] if metrics is not None else []
    return [Child(f"worker {number}", [*command, "--number", str(number)], env) for number in range(1, count + 1)]


def check_start(settings: Settings) -> str | None:
    """Make sure that workers could start; why they would have to wait, or None.

    Raises:
        ConfigError: no Redis is set, or it refuses us; there is no store.
        StoreError: the store cannot be read by this version.
    """
    if not settings.redis_url:
        raise ConfigError(
            "workers need IAI_MCP_REDIS_URL, such as redis://localhost:6379/0; "
            "`iai-mcp up` brings a Redis of its own"
        )
    from iai_mcp.broker.redis.inspect import check
    from iai_mcp.storage.layout import Layout
    from iai_mcp.storage.meta import read_meta

    layout = Layout(settings.store_path.absolute())
    if not layout.meta.exists():
        raise ConfigError(f"there is no store at {settings.store_path}; set IAI_MCP_STORE to an existing one")
    read_meta(layout)
    try:
        check(settings.redis_url)
    except BrokerUnavailable as error:
        return str(error)
    return None
