"""The commands around the trace and the store as a whole: provenance, status, reembed and demo."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from iai_mcp.cli_common import (
    Json,
    Limit,
    Offset,
    Since,
    Store,
    Until,
    moment,
    note,
    opened,
    print_json,
    progress,
    screen,
)

__all__ = ["register", "register_demo"]


def register_demo(app: typer.Typer) -> None:
    """Add ``demo`` to ``app``, the first command that a newcomer should see."""
    app.command(epilog="Example: iai-mcp demo")(demo)


def register(app: typer.Typer) -> None:
    """Add the other commands to ``app``."""
    app.command(epilog='Example: iai-mcp provenance --session s1 --cue "prefer" --since 2026-11-01')(provenance)
    app.command(epilog="Example: IAI_MCP_EMBEDDER=fastembed iai-mcp reembed")(reembed)
    app.command(epilog="Example: iai-mcp status --json")(status)


def provenance(
    record: Annotated[str | None, typer.Option(metavar="ID", help="Only the trace of this memory.")] = None,
    session: Annotated[str | None, typer.Option("--session", "-s", help="Only what this session asked.")] = None,
    cue: Annotated[str | None, typer.Option(metavar="TEXT", help="Only cues that hold this.")] = None,
    recall: Annotated[str | None, typer.Option(metavar="ID", help="Only what this recall returned.")] = None,
    since: Since = None,
    until: Until = None,
    limit: Limit = 100,
    offset: Offset = 0,
    as_json: Json = False,
    store: Store = None,
) -> None:
    """Show who recalled which memory, when, and for what."""
    from iai_mcp.core import dispatch

    params: dict[str, Any] = {
        "record_id": record,
        "session_id": session,
        "cue": cue,
        "recall_id": recall,
        "since": moment("--since", since),
        "until": moment("--until", until),
        "limit": limit,
        "offset": offset,
    }
    with opened(store) as memories:
        result = dispatch(memories, "memory_provenance", params)
    if as_json:
        print_json(result)
    elif result["entries"]:
        from iai_mcp.cli_show import trail

        out = screen()
        out.print(trail(result["entries"], out.width, of_one_record=record is not None))
    else:
        note("no recall left such a trace")


def status(as_json: Json = False, store: Store = None) -> None:
    """Show the store, and what of the trace waits where."""
    from iai_mcp.core import dispatch

    with opened(store) as memories:
        result = dispatch(memories, "memory_status")
    if as_json:
        print_json(result)
        return
    from iai_mcp.cli_show import pipeline, store_facts

    out = screen(width=80)
    out.print(store_facts(result))
    out.print(pipeline(result))


def reembed(as_json: Json = False, store: Store = None) -> None:
    """Make every missing vector, or all of them anew after a change of embedder; safe to interrupt."""
    from iai_mcp.reembed import reembed as run

    with opened(store) as memories, progress("embedding") as show:
        done = run(memories, progress=show)
    if as_json:
        document: dict[str, Any] = {"embedded": done.embedded, "embedder": done.embedder, "dims": done.dims}
        print_json({**document, "skipped": list(done.skipped)})
    else:
        typer.echo(f"{done.embedded} embedded with {done.embedder} ({done.dims} dimensions)")
    if done.skipped:
        note(f"{len(done.skipped)} could not be embedded, words still find them: {', '.join(done.skipped[:5])}")


def demo(as_json: Json = False, store: Store = None) -> None:
    """See it work in ten seconds: three clients ask Python's own documentation, each recall leaves a trace."""
    from iai_mcp import events
    from iai_mcp.config import Settings
    from iai_mcp.demo import run

    settings = Settings.load()
    events.configure(settings.log_level)
    with progress("starting") as show:
        facts = run(settings, store, progress=show)
    if as_json:
        print_json(facts)
        return
    from iai_mcp.cli_demo import tell

    tell(screen(width=80), facts)
