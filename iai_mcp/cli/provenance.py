"""Owns the command ``provenance``: the trace of recalls as a page, as an export, or live."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iai_mcp.cli.common import (
    Json,
    Offset,
    Since,
    Store,
    Until,
    moment,
    note,
    opened,
    print_json,
    say_lines,
)
from iai_mcp.cli.row_writers import Format, Rows, Target, batched, entry_rows
from iai_mcp.common.limits import RESULTS_MAX
from iai_mcp.errors import UsageError

if TYPE_CHECKING:
    from iai_mcp.store import MemoryStore

__all__ = ["register"]

PAGE = 100

Document = dict[str, Any]
Follow = Annotated[
    bool, typer.Option("--follow", "-f", help="Print new entries as they arrive, after --limit old ones.")
]
MaybeLimit = Annotated[
    int | None,
    typer.Option(
        "--limit", "-n", min=1, max=RESULTS_MAX, help="Maximum number of results (100; jsonl, csv, parquet: all)."
    ),
]
Output = Annotated[
    str | None, typer.Option("--output", "-o", metavar="FILE", help="Replace this file instead of using stdout.")
]

Spreadsheet = Annotated[
    bool, typer.Option("--spreadsheet", help="CSV: a quote in front of each text that would be a formula.")
]


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(epilog="Example: iai-mcp provenance --top --since 7d")(provenance)


@dataclass(frozen=True, slots=True)
class _Request:
    """The checked options of one call."""

    view: str
    params: Mapping[str, Any]
    limit: int | None
    offset: int
    target: Target

    @property
    def page_size(self) -> int:
        return self.limit or PAGE

    @property
    def page(self) -> dict[str, Any]:
        return {**self.params, "view": self.view, "limit": self.page_size, "offset": self.offset}


def provenance(
    record: Annotated[str | None, typer.Option(metavar="ID", help="The timeline of this memory.")] = None,
    recall: Annotated[
        str | None, typer.Option(metavar="ID", help="The memories that this recall returned.")
    ] = None,
    top: Annotated[bool, typer.Option("--top", help="The most recalled memories.")] = False,
    never: Annotated[bool, typer.Option("--never", help="The memories that no recall returned.")] = False,
    session: Annotated[str | None, typer.Option("--session", "-s", help="Only recalls of this session.")] = None,
    cue: Annotated[str | None, typer.Option(metavar="TEXT", help="Only cues that contain this text.")] = None,
    since: Since = None,
    until: Until = None,
    follow: Follow = False,
    limit: MaybeLimit = None,
    offset: Offset = 0,
    form: Annotated[Format | None, typer.Option("--format", help="Output format (default: table).")] = None,
    output: Output = None,
    spreadsheet: Spreadsheet = False,
    as_json: Json = False,
    store: Store = None,
) -> None:
    """Show who recalled which memory, when and with which cue."""
    if as_json and form not in (None, "json"):
        raise UsageError(f"--json means --format json, and --format is {form}: give one of them")
    given = {"--record": record, "--recall": recall, "--top": top, "--never": never, "--until": until}
    _check_combination({**given, "--offset": offset, "--follow": follow, "--output": output})
    params = {
        "record_id": record,
        "recall_id": recall,
        "session_id": session,
        "cue": cue,
        "since": moment("--since", since),
        "until": moment("--until", until),
    }
    view = "top" if top else "never" if never else "entries"
    request = _Request(
        view, params, limit, offset, Target("json" if as_json else form, output, spreadsheet=spreadsheet)
    )
    if follow:
        from iai_mcp.cli.follow import follow as live

        live(store, params, request.target, newest=limit or (PAGE if since else 0))
        return
    with opened(store) as memories:
        if request.target.exports and limit is None and not offset:
            request.target.write(_all_rows(memories, request))
        else:
            _page(memories, request)


_CONFLICTS = (
    ("--top", "--never", "one lists what was recalled, the other what was not"),
    ("--top", "--record", "it ranks many memories"),
    ("--top", "--recall", "it ranks the memories of many recalls"),
    ("--never", "--record", "--record ID alone shows whether that memory was recalled"),
    ("--never", "--recall", "it lists what no recall returned"),
    ("--follow", "--top", "it prints entries as they come"),
    ("--follow", "--never", "it prints entries as they come"),
    ("--follow", "--recall", "a recall leaves no more entries once its id is known"),
    ("--follow", "--until", "it prints entries to come"),
    ("--follow", "--offset", "it prints entries to come"),
    ("--follow", "--output", "it never ends: send stdout to the file"),
)


def _check_combination(options: Mapping[str, object]) -> None:
    given = {name for name, value in options.items() if value not in (None, False, 0)}
    for one, other, why in _CONFLICTS:
        if {one, other} <= given:
            raise UsageError(f"{one} and {other} do not go together: {why}; leave one out")


# -- a page


def _page(memories: MemoryStore, request: _Request) -> None:
    from iai_mcp.core import dispatch

    if request.target.exports and request.view == "entries":
        from iai_mcp.core import trail_filters
        from iai_mcp.trail.query import trail_rows

        page = trail_rows(
            memories, trail_filters(memories, request.params), limit=request.page_size, offset=request.offset
        )
        request.target.write(entry_rows([page]))
        return
    result = dispatch(memories, "memory_provenance", request.page)
    if request.target.exports:
        request.target.write(_memories(request.view, result["records"]))
    elif request.target.format == "json":
        _json(request.target, result)
    else:
        _tell(memories, request, result)


def _json(target: Target, result: Document) -> None:
    if target.path is None:
        print_json(result)
        return
    import msgspec

    with target.opened() as out:
        out.write(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")


def _tell(memories: MemoryStore, request: _Request, result: Document) -> None:
    found: list[Document] = result["entries" if request.view == "entries" else "records"]
    if not found:
        note(_empty(request))
        return
    if lines := _lines(memories, request, found):
        say_lines("\n".join(lines))
    else:
        from iai_mcp.cli.common import screen
        from iai_mcp.cli.tables import records, trail

        out = screen()
        out.print(records(found) if request.view == "never" else trail(found, out.width))
    if len(found) == request.page_size:
        further = "older ones" if request.view == "entries" else "more"
        note(f"{len(found)} shown; {further}: --offset {request.offset + len(found)}")


def _lines(memories: MemoryStore, request: _Request, found: list[Document]) -> list[str]:
    """The views that print plain lines; empty for the others."""
    from iai_mcp.cli.timeline import recall_lines, timeline_lines, top_lines

    if request.view == "top":
        return [*top_lines(found)]
    if request.params["record_id"] is not None:
        about = {"record_id": found[0]["record_id"], "text": ""}
        about["text"] = _texts(memories, found[:1]).get(about["record_id"], "")
        return [*timeline_lines(about, found)]
    if request.params["recall_id"] is not None:
        return [*recall_lines(found, _texts(memories, found))]
    return []


def _texts(memories: MemoryStore, entries: Iterable[Document]) -> dict[str, str]:
    ids = list(dict.fromkeys(entry["record_id"] for entry in entries))
    return {str(record.id): record.text for record in memories.records(ids)}


def _empty(request: _Request) -> str:
    if request.offset:
        return f"--offset {request.offset} is beyond the last result: lower it"
    if request.view == "never":
        return "every memory was recalled"
    return "no entry of the trace matches"


# -- exports


def _all_rows(memories: MemoryStore, request: _Request) -> Rows:
    """All rows that meet the conditions, read while they are written."""
    from iai_mcp.core import recalled_dict, record_dict, trail_filters

    filters = trail_filters(memories, request.params)
    if request.view == "entries":
        from iai_mcp.trail.stream import stream

        return entry_rows(stream(memories, filters))
    from iai_mcp.trail import query

    if request.view == "top":
        return _memories("top", map(recalled_dict, query.all_recalled(memories, filters)))
    return _memories("never", map(record_dict, query.all_never_recalled(memories, filters)))


def _memories(view: str, documents: Iterable[Document]) -> Rows:
    """Memories, as ``dispatch`` returns them, in columns."""
    import pyarrow as pa

    time = pa.timestamp("us", "UTC")
    fields = [("record_id", pa.string())]
    if view == "top":
        fields += [("recalls", pa.int64()), ("last_recalled", time)]
    fields += [(name, pa.string()) for name in ("text", "session_id", "role", "tags")]
    schema = pa.schema([*fields, ("created_at", time), ("updated_at", time)])
    flat = ({**one, "tags": _encoded(one["tags"])} for one in documents)
    return Rows(schema, batched(flat, schema), _record_document)


def _record_document(row: Mapping[str, Any]) -> Mapping[str, Any]:
    import msgspec

    times = {key: value.isoformat() for key, value in row.items() if key.endswith("_at") and value is not None}
    if row.get("last_recalled"):
        times["last_recalled"] = row["last_recalled"].isoformat()
    return {**row, **times, "tags": msgspec.json.decode(row["tags"])}


def _encoded(tags: list[str]) -> str:
    import msgspec

    return msgspec.json.encode(tags).decode()
