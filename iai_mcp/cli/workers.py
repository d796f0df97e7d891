"""Owns the commands ``worker`` (drains an existing Redis) and ``up`` (a private Redis and its workers)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iai_mcp.cli.common import (
    Store,
    error_line,
    note,
    say,
    say_lines,
    settled,
)
from iai_mcp.common.wording import many
from iai_mcp.errors import BrokerUnavailable

if TYPE_CHECKING:
    from iai_mcp.config import Settings
    from iai_mcp.deployment.local_redis import Deployment
    from iai_mcp.deployment.supervisor import Stop

__all__ = ["register"]

MetricsPort = Annotated[
    int | None,
    typer.Option(min=0, max=65535, help="Serve the workers' Prometheus metrics on this port; 0 picks one."),
]
MetricsHost = Annotated[str, typer.Option(help="Address of the metrics; they need no token.")]


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command(epilog="Example: iai-mcp up --workers 2")(up)
    app.command(epilog="Example: IAI_MCP_REDIS_URL=redis://localhost:6379/0 iai-mcp worker -n 2")(worker)


def up(
    workers: Annotated[int, typer.Option("--workers", "-n", min=1, max=64, help="Number of workers.")] = 2,
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = "127.0.0.1",
    store: Store = None,
) -> None:
    """Run a whole deployment on this machine, a private Redis and its workers, until Ctrl-C."""
    from iai_mcp.deployment.local_redis import AlreadyUp, Deployment, redis_server
    from iai_mcp.deployment.supervisor import Stop

    settings = settled(store)
    server = redis_server()
    with Stop() as stop:
        here = Deployment(settings)
        try:
            with here.locked(), _metrics(here.settings, workers, metrics_host, metrics_port) as folder:
                code = _up(here, server, workers, stop, folder)
        except AlreadyUp as error:
            error_line(f"{error}; to connect a client, run the lines on stdout")
            say_lines("\n".join(here.exports))
            code = 1
    raise typer.Exit(code)


def _up(here: Deployment, server: str, workers: int, stop: Stop, metrics: Path | None) -> int:
    from iai_mcp.deployment.supervisor import end

    redis = here.redis(server)
    try:
        here.start_redis(redis, stop)
    except BaseException:
        end([redis])
        raise
    if not stop.asked:
        note(f"Redis answers ({server}, log and data in {here.folder})")
        note(f"{_serving(workers)} {here.store}; Ctrl-C stops all of it; to connect a client, run:")
        say_lines("\n".join(here.exports))
    return here.run(redis, here.workers(workers, metrics), stop)


def worker(
    count: Annotated[int, typer.Option("-n", "--count", min=1, max=64, help="Number of processes.")] = 1,
    burst: Annotated[bool, typer.Option("--burst", help="End when every lane is empty.")] = False,
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = "127.0.0.1",
    check: Annotated[
        bool, typer.Option("--check", help="Only check that a worker of this host is alive; exit code 1 if not.")
    ] = False,
    store: Store = None,
) -> None:
    """Drain entries from Redis into the store, with processes that are restarted when they die."""
    from iai_mcp.broker.redis.client import connect
    from iai_mcp.broker.redis.inspect import masked
    from iai_mcp.deployment.supervisor import Stop, check_start, end, keep, worker_children

    settings = settled(store)
    if check:
        raise typer.Exit(_check(settings))
    with Stop() as stop, ExitStack() as stack:
        trouble = check_start(settings)
        folder = stack.enter_context(_metrics(settings, count, metrics_host, metrics_port))
        env = {"IAI_MCP_STORE": str(settings.store_path.absolute())}
        children = worker_children(count, env, burst=burst, metrics=folder)
        where = masked(connect(settings.redis_url))
        if trouble and burst:
            raise BrokerUnavailable(f"Redis does not answer: {trouble}")
        if trouble:
            note(f"Redis does not answer: {trouble}; the workers wait for it")
        if not burst:
            note(f"{_serving(count)} {settings.store_path} from {where}; Ctrl-C stops")
        try:
            code = keep(children, stop, restart=not burst)
        finally:
            clean = end(children, stop)
    raise typer.Exit(code or (0 if clean else 1))


@contextmanager
def _metrics(settings: Settings, count: int, host: str, port: int | None) -> Iterator[Path | None]:
    """Serve the metrics of ``count`` workers for the block; yields their folder, or None without a port."""
    if port is None:
        yield None
        return
    from iai_mcp.metrics import endpoint

    with endpoint.SharedMetrics.temporary(count) as shared:
        served = endpoint.serve(shared.registry(settings), host, port)
        note(f"metrics on {served.url}")
        try:
            yield shared.folder
        finally:
            served.close()


def _check(settings: Settings) -> int:
    """Print the living workers of this host; returns the exit code of a container's health check."""
    from iai_mcp.broker.redis.inspect import workers_here
    from iai_mcp.errors import ConfigError

    if not settings.redis_url:
        raise ConfigError("workers need IAI_MCP_REDIS_URL, such as redis://localhost:6379/0")
    found = workers_here(settings)
    for one in found:
        say(f"{one.name}  {one.state}  seen {one.seen_s} s ago")
    if not found:
        note("no worker of this host is alive")
    return 0 if found else 1


def _serving(workers: int) -> str:
    return many(workers, "worker serves", "workers serve")
