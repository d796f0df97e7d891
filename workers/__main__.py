"""One worker process for the configured store and Redis (``python -m workers``).

Exit codes: 0 stopped by a signal, or done (``--burst``); 1 an error that a restart may cure; 2 wrong settings.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from iai_mcp.common.printable import flat
from iai_mcp.common.private import write_for_owner_only
from iai_mcp.config import Settings
from iai_mcp.errors import BrokerUnavailable, IaiMcpError, UsageError
from iai_mcp.telemetry.events import configure, log

if TYPE_CHECKING:
    from iai_mcp.store import MemoryStore

RETRY_S = (0.5, 5.0)  # first and longest pause between attempts to reach Redis
PARENT_LOOK_S = 1.0  # between two checks of the parent process


def main() -> int:
    """Run until a signal asks to stop; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m workers", description=__doc__)
    parser.add_argument("--burst", action="store_true", help="end as soon as every lane is empty")
    parser.add_argument("--parent-pid", type=int, metavar="PID", help="end when this is no longer the parent")
    parser.add_argument("--metrics-port", type=int, metavar="PORT", help="serve Prometheus metrics on this port")
    parser.add_argument("--metrics-host", default="127.0.0.1", metavar="HOST", help="and on this address")
    parser.add_argument("--metrics-folder", type=Path, help=argparse.SUPPRESS)  # of the supervisor of several
    parser.add_argument("--number", type=int, default=1, help=argparse.SUPPRESS)  # among these
    options = parser.parse_args()
    write_for_owner_only()
    for number in (signal.SIGTERM, signal.SIGINT):  # until RQ installs its own handlers
        signal.signal(number, _leave)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    if options.parent_pid is not None:
        threading.Thread(target=_end_with, args=(options.parent_pid,), daemon=True).start()
    try:
        settings = Settings.load()
        as_json = settings.log_format == "json"
        configure(settings.log_level, as_json=as_json, also=("rq",) if as_json else ())
        return run(settings, burst=options.burst, watch=lambda store: _watch(options, settings, store))
    except IaiMcpError as error:
        print(f"error: {flat(str(error))}", file=sys.stderr)  # noqa: T201
        return 2 if isinstance(error, UsageError) else 1


def _watch(options: argparse.Namespace, settings: Settings, store: MemoryStore) -> None:
    """Publish metrics: to the supervisor's folder, or on a port of this process."""
    if options.metrics_folder is not None:
        from iai_mcp.metrics.endpoint import SharedMetrics

        SharedMetrics(options.metrics_folder).join(options.number, store)
    elif options.metrics_port is not None:
        from iai_mcp.metrics import endpoint

        watched = endpoint.worker_registry(settings, store)
        served = endpoint.serve(watched, options.metrics_host, options.metrics_port)
        print(f"metrics on {served.url}", file=sys.stderr, flush=True)  # noqa: T201


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def _end_with(parent: int) -> None:
    """Stop gracefully once ``parent`` is gone: a killed supervisor sends no signal."""
    while os.getppid() == parent:
        time.sleep(PARENT_LOOK_S)
    os.kill(os.getpid(), signal.SIGTERM)


def run(settings: Settings, *, burst: bool, watch: Callable[[MemoryStore], None] | None = None) -> int:
    """Run one worker; the exit code.

    Args:
        burst: end once every lane is empty, and do not wait for an unreachable Redis.
        watch: called once with the open store.

    Raises:
        ConfigError: no Redis is configured, it refuses the login, or it is too old.
        WrongStore: there is no store at the configured path.
        BrokerUnavailable: Redis is unreachable (``burst``), or was lost during the work.
    """
    # Imported here: LanceDB takes a second, and the signal handlers must be there before.
    from redis.exceptions import RedisError
    from rq import Queue

    from iai_mcp.broker.redis.client import connect, failure
    from iai_mcp.broker.redis.keys import Keys
    from iai_mcp.errors import ConfigError
    from workers.runner import configured_store, runner_for
    from workers.worker import ProvenanceWorker

    if not settings.redis_url:
        raise ConfigError("workers need IAI_MCP_REDIS_URL, such as redis://localhost:6379/0")
    store = configured_store()
    if watch is not None:
        watch(store)
    _reach(settings.redis_url, patient=not burst)
    connection = connect(settings.redis_url)
    try:
        runner = runner_for(store.store_id, connection)
        name = Keys(settings.namespace, store.store_id).queue
        worker = ProvenanceWorker([Queue(name, connection=connection)], connection=connection)
        worker.log_job_description = False
        level = {"warning": "WARNING", "error": "ERROR", "debug": "DEBUG"}.get(settings.log_level, "INFO")
        worker.work(burst=burst, logging_level=level)
        if burst and not worker.told_to_stop:
            asked = _stop_asked()
            return 0 if runner.drain_all(asked) or asked() else 1
    except RedisError as error:
        raise BrokerUnavailable(f"Redis does not answer: {failure(error)}") from error
    return 0 if worker.told_to_stop else 1  # RQ ends on errors without a word


def _reach(url: str, *, patient: bool) -> None:
    from iai_mcp.broker.redis.inspect import check

    pause, longest = RETRY_S
    while True:
        try:
            return check(url)
        except BrokerUnavailable as error:
            if not patient:
                raise
            log.warning("%s; next attempt in %g s", error, pause)
        time.sleep(pause)
        pause = min(longest, pause * 2)


def _stop_asked() -> Callable[[], bool]:
    """Tells whether a signal has come since; RQ's handlers would raise in the middle of a write."""
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    return asked.is_set


if __name__ == "__main__":
    sys.exit(main())
