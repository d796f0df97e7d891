"""Owns the commands ``capture``, ``recall``, ``list``, ``get`` and ``forget``, which work on single memories."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iai_mcp.cli.common import (
    Json,
    Limit,
    Offset,
    OnlyRole,
    OnlySession,
    OnlyTags,
    Since,
    Store,
    Until,
    ask,
    filters_of,
    moment,
    note,
    opened,
    print_json,
    say,
    screen,
    traced,
)
from iai_mcp.common.limits import RESULTS_MAX
from iai_mcp.common.wording import many
from iai_mcp.errors import BadParams, RecordNotFound, UsageError

if TYPE_CHECKING:
    from uuid import UUID

    from iai_mcp.provenance_queue import ProvenanceWriteQueue
    from iai_mcp.store import MemoryStore

__all__ = ["CLIENT", "register"]

CLIENT = "iai-mcp-cli"  # the client in the trace, if $IAI_MCP_CLIENT is not set


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command(epilog='Example: iai-mcp capture "Ada prefers tabs" --session s1 --tag style')(capture)
    app.command(epilog='Example: iai-mcp recall "what does Ada prefer?" --session s1 -k 5')(recall)
    app.command("list", epilog="Example: iai-mcp list --tag style --since 2026-11-01")(list_)
    app.command(epilog="Example: iai-mcp get c8029d49-e502-5f5b-b78b-b30278e60217")(get)
    app.command(epilog="Example: iai-mcp forget c8029d49-e502-5f5b-b78b-b30278e60217 --yes")(forget)


def capture(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to remember; - reads standard input.")],
    session: Annotated[str, typer.Option("--session", "-s", help="The session that it belongs to.")] = "",
    role: Annotated[str, typer.Option(help="Who said it, e.g. user.")] = "",
    tag: Annotated[list[str] | None, typer.Option("--tag", "-t", help="A tag; repeatable.")] = None,
    as_json: Json = False,
    store: Store = None,
) -> None:
    """Keep one memory; the same text again in one session is the same memory."""
    from iai_mcp.core import dispatch

    params = {"text": _from_stdin() if text == "-" else text, "session_id": session, "role": role}
    if not params["text"].strip():
        raise BadParams("the text is empty: say what to remember")
    with opened(store, make=True) as memories:
        result = dispatch(memories, "memory_capture", {**params, "tags": tag or []})
    if as_json:
        print_json(result)
    else:
        say(f"{result['record_id']}{'' if result['created'] else ' (was there already)'}")


def _from_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode().strip("\r\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8 text: convert it (byte {error.start + 1})") from None


def recall(
    cue: Annotated[str, typer.Argument(metavar="CUE", help="What to look for, in your own words.")],
    session: Annotated[str, typer.Option("--session", "-s", help="The asking session, kept in the trace.")] = "",
    limit: Annotated[
        int, typer.Option("--limit", "-k", min=1, max=RESULTS_MAX, help="Maximum number of hits.")
    ] = 10,
    in_session: Annotated[str | None, typer.Option("--in-session", help="Only memories of this session.")] = None,
    tag: OnlyTags = None,
    role: OnlyRole = None,
    since: Since = None,
    until: Until = None,
    no_trace: Annotated[bool, typer.Option("--no-trace", help="Leave no trace on the hits.")] = False,
    as_json: Json = False,
    store: Store = None,
) -> None:
    """Find the memories that match a cue best; each hit keeps a trace of the recall."""
    from iai_mcp.core import dispatch

    if not cue.strip():
        raise BadParams("the cue is empty: say what to look for")
    params: dict[str, Any] = {
        "cue": cue,
        "session_id": session,
        "limit": limit,
        "session": in_session,
        "tags": tag or [],
        "role": role,
        "since": moment("--since", since),
        "until": moment("--until", until),
        "record_provenance": not no_trace,
    }
    with opened(store) as memories:
        with nullcontext() if no_trace else traced(memories) as queue:
            result = dispatch(memories, "memory_recall", {**params, "client": memories.settings.client or CLIENT})
        entries = 0 if no_trace else len(result["hits"]) - memories.provenance_failures
        result["provenance"] = {"entries": entries, "at": _place(queue) if entries else None}
    if as_json:
        print_json(result)
    elif result["hits"]:
        from iai_mcp.cli.tables import hits

        screen().print(hits(result["hits"]))
    else:
        note("no memory matches; add some with `iai-mcp import PATH` or `iai-mcp capture TEXT`")


def _place(queue: ProvenanceWriteQueue | None) -> str:
    """Where the entries of a stopped queue are: in the store, which readers see, or on their way to it."""
    if queue is None:
        return "store"
    return "spill" if queue.spill_left else "redis"


def list_(
    session: OnlySession = None,
    tag: OnlyTags = None,
    role: OnlyRole = None,
    since: Since = None,
    until: Until = None,
    limit: Limit = 20,
    offset: Offset = 0,
    as_json: Json = False,
    store: Store = None,
) -> None:
    """List memories, newest first."""
    from iai_mcp.core import record_dict

    chosen = filters_of(session, tag, role, since, until)
    with opened(store) as memories:
        total = memories.count(chosen)
        found = [record_dict(record) for record in memories.list_records(chosen, limit=limit, offset=offset)]
    if as_json:
        print_json({"records": found, "total": total})
    elif found:
        from iai_mcp.cli.tables import records

        screen().print(records(found))
        note(f"{offset + 1} to {offset + len(found)} of {total}")
    else:
        note("no memory matches" if total == 0 else f"only {total} match: lower --offset {offset}")


def get(
    record_id: Annotated[str, typer.Argument(metavar="ID", help="The memory's id.")],
    as_json: Json = False,
    store: Store = None,
) -> None:
    """Show one memory whole, with its recalls."""
    from iai_mcp.core import dispatch

    with opened(store) as memories:
        result = dispatch(memories, "memory_get", {"record_id": record_id})
    if as_json:
        print_json(result)
        return
    from iai_mcp.cli.tables import record, trail

    out = screen()
    out.print(record(result))
    if result["provenance"]:
        out.print(trail(result["provenance"], out.width, of_one_record=True))
    else:
        out.print("not recalled yet", style="dim")


def forget(
    record_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="The memories' ids.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    as_json: Json = False,
    store: Store = None,
) -> None:
    """Delete memories and their trace for good; a later import does not bring them back."""
    with opened(store) as memories:
        chosen = _all_there(memories, record_ids)
        if not yes and not _confirmed(memories, chosen):
            note("nothing was forgotten")
            raise typer.Exit(1)
        gone = [str(record_id) for record_id in chosen if memories.delete(record_id)]
    if as_json:
        print_json({"forgotten": gone})
    else:
        say(f"forgot {many(len(gone), 'memory')}")


def _all_there(memories: MemoryStore, given: list[str]) -> list[UUID]:
    from iai_mcp.store import as_uuid

    chosen = list(dict.fromkeys(map(as_uuid, given)))
    missing = sorted(map(str, set(chosen) - memories.existing(chosen)))
    if missing:
        raise RecordNotFound(f"no memory has the id {', '.join(missing)}; nothing was forgotten")
    return chosen


def _confirmed(memories: MemoryStore, chosen: list[UUID]) -> bool:
    if not _on_terminal():
        raise UsageError("forgetting is for good and there is no terminal to ask on: confirm with --yes")
    from iai_mcp.cli.text import one_line

    for record_id in chosen:
        found = memories.get(record_id)
        note(f"  {record_id}  {one_line(found.text, 38) if found else ''}")
    ask(f"Forget {len(chosen)} for good? [y/N] ")  # typer.confirm writes to stdout too
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _on_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()
