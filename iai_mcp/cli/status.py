"""Owns the commands ``status`` and ``reembed``: the state of the store and its pipeline, and its vectors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iai_mcp.cli.common import (
    Json,
    Store,
    error_line,
    note,
    opened,
    print_json,
    progress,
    say,
    screen,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["register"]

WATCH_S = 1.0


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command(epilog="Example: IAI_MCP_EMBEDDER=fastembed iai-mcp reembed")(reembed)
    app.command(epilog="Example: iai-mcp status --watch")(status)


def status(
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Repeat every second, until Ctrl-C.")] = False,
    store: Store = None,
) -> None:
    """Show the store, and where trace entries wait."""
    from iai_mcp.core import dispatch

    with opened(store) as memories:
        if watch:
            _watch(lambda: dispatch(memories, "memory_status"), as_json=as_json)
            return
        result = dispatch(memories, "memory_status")
    _report_trouble(result)
    if as_json:
        print_json(result)
    else:
        screen().print(_shown(result, None))


def _shown(result: dict[str, Any], rate: float | None) -> RenderableType:
    from rich.console import Group

    from iai_mcp.cli.tables import pipeline, store_facts

    return Group(store_facts(result), pipeline(result, rate))


def _report_trouble(result: dict[str, Any]) -> None:
    redis = result["redis"]
    if redis and redis["refused"]:  # no retry helps: an operator must act
        error_line(f"{redis['error']}; until that is solved, entries go to the spill")
    for one in redis["troubles"] if redis else ():
        error_line(f"{one['message']}; {one['remedy']}")
    for one in result["upkeep_failing"]:
        error_line(f"upkeep of {one['table']} fails since {one['since']}: {one['reason']}; see `iai-mcp doctor`")


def _watch(inspect: Callable[[], dict[str, Any]], *, as_json: bool) -> None:
    """Show the status every second: in place on a terminal, else one line each."""
    with suppress(KeyboardInterrupt):
        if as_json:
            for result, _ in _each_second(inspect):
                print_json(result, line=True)
        elif (out := screen()).is_terminal:
            from rich.live import Live

            with Live(console=out, auto_refresh=False) as live:
                for result, rate in _each_second(inspect):
                    live.update(_shown(result, rate), refresh=True)
        else:
            from iai_mcp.cli.tables import snapshot

            for result, rate in _each_second(inspect):
                say(f"{datetime.now(UTC):%H:%M:%SZ} {snapshot(result, rate)}")


def _each_second(inspect: Callable[[], dict[str, Any]]) -> Iterator[tuple[dict[str, Any], float | None]]:
    """The status once a second, with the entries drained per second since the previous one (None: unknown)."""
    due = time.monotonic()
    before: tuple[float, int] | None = None
    while True:
        result, now = inspect(), time.monotonic()
        drained = _drained(result)
        rate = None
        if before is not None and drained is not None:
            rate = max(0, drained - before[1]) / (now - before[0])
        before = (now, drained) if drained is not None else None
        yield result, rate
        due = max(due + WATCH_S, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))


def _drained(result: dict[str, Any]) -> int | None:
    """Entries drained so far: Redis's count, else the rows of the store."""
    redis = result["redis"]
    counted: int | None = redis["drained"] if redis is not None else sum(lane["rows"] for lane in result["lanes"])
    return counted


def reembed(as_json: Json = False, store: Store = None) -> None:
    """Make all missing vectors; after a change of embedder, make all vectors again. Safe to interrupt."""
    from iai_mcp.maintenance.reembed import reembed as run

    with opened(store) as memories, progress("embedding") as show:
        done = run(memories, progress=show)
    if as_json:
        document: dict[str, Any] = {"embedded": done.embedded, "embedder": done.embedder, "dims": done.dims}
        print_json({**document, "skipped": list(done.skipped)})
    else:
        say(f"{done.embedded} embedded with {done.embedder} ({done.dims} dimensions)")
    if done.skipped:
        some = ", ".join(done.skipped[:5])
        note(f"{len(done.skipped)} could not be embedded; recalls find them by words only: {some}")
