"""``iai-mcp provenance``: who recalled which memory, when and for what; as pages, as an export, or live."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iai_mcp.cli.common import Json, Offset, Since, Store, Until, moment, note, opened, print_json
from iai_mcp.cli.row_writers import Format, Rows, Target, batched, entry_rows
from iai_mcp.errors import UsageError

if TYPE_CHECKING:
    from iai_mcp.store import MemoryStore

__all__ = ["register"]

PAGE = 100

Document = dict[str, Any]


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(epilog="Example: iai-mcp provenance --top --since 7d")(provenance)


@dataclass(frozen=True, slots=True)
class _Ask:
    """What was asked for, once it makes sense."""

    view: str
    params: Mapping[str, Any]
    limit: int | None
    offset: int
    target: Target

    @property
    def most(self) -> int:
        return self.limit or PAGE

    @property
    def page(self) -> dict[str, Any]:
        return {**self.params, "view": self.view, "limit": self.most, "offset": self.offset}


def provenance(
    record: Annotated[str | None, typer.Option(metavar="ID", help="The timeline of this memory.")] = None,
    recall: Annotated[str | None, typer.Option(metavar="ID", help="What this very recall returned.")] = None,
    top: Annotated[bool, typer.Option("--top", help="The memories that were recalled most.")] = False,
    never: Annotated[bool, typer.Option("--never", help="The memories that nobody recalled.")] = False,
    session: Annotated[str | None, typer.Option("--session", "-s", help="Only what this session asked.")] = None,
    cue: Annotated[str | None, typer.Option(metavar="TEXT", help="Only cues that hold this.")] = None,
    since: Since = None,
    until: Until = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print new entries as they come (after --limit old ones).")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option("--limit", "-n", min=1, max=1000, help="At most so many (100; jsonl, csv, parquet: all)."),
    ] = None,
    offset: Offset = 0,
    form: Annotated[Format | None, typer.Option("--format", help="How to print (default: table).")] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Write this file anew instead of stdout.")
    ] = None,
    as_json: Json = False,
    store: Store = None,
) -> None:
    """Show who recalled which memory, when, and for what."""
    if as_json and form not in (None, "json"):
        raise UsageError(f"--json says --format json, and --format says {form}: give one of them")
    given = {
        "--record": record is not None,
        "--recall": recall is not None,
        "--top": top,
        "--never": never,
        "--until": until is not None,
        "--offset": bool(offset),
        "--follow": follow,
        "--output": output is not None,
    }
    _refuse_what_contradicts(given)
    params = {
        "record_id": record,
        "recall_id": recall,
        "session_id": session,
        "cue": cue,
        "since": moment("--since", since),
        "until": moment("--until", until),
    }
    view = "top" if top else "never" if never else "entries"
    ask = _Ask(view, params, limit, offset, Target("json" if as_json else form, output))
    if follow:
        from iai_mcp.cli.follow import follow as live

        live(store, params, ask.target, newest=limit or (PAGE if since else 0))
        return
    with opened(store) as memories:
        if ask.target.exports and limit is None and not offset:
            ask.target.write(_everything(memories, ask))
        else:
            _page(memories, ask)


_CONTRADICT = (
    ("--top", "--never", "one lists what was recalled, the other what was not"),
    ("--top", "--record", "it ranks many memories"),
    ("--top", "--recall", "it ranks many recalls' memories"),
    ("--never", "--record", "--record ID alone shows whether that memory was recalled"),
    ("--never", "--recall", "it lists what no recall returned"),
    ("--follow", "--top", "it prints entries as they come"),
    ("--follow", "--never", "it prints entries as they come"),
    ("--follow", "--recall", "a recall is over when its id is known"),
    ("--follow", "--until", "it prints what is yet to come"),
    ("--follow", "--offset", "it prints what is yet to come"),
    ("--follow", "--output", "it never ends: send stdout to the file"),
)


def _refuse_what_contradicts(given: Mapping[str, bool]) -> None:
    for one, other, why in _CONTRADICT:
        if given[one] and given[other]:
            raise UsageError(f"{one} and {other} do not go together: {why}")


# -- a page


def _page(memories: MemoryStore, ask: _Ask) -> None:
    from iai_mcp.core import dispatch

    if ask.target.exports and ask.view == "entries":
        from iai_mcp.core import trail_filters
        from iai_mcp.trail.query import trail_rows

        page = trail_rows(memories, trail_filters(memories, ask.params), limit=ask.most, offset=ask.offset)
        ask.target.write(entry_rows([page]))
        return
    result = dispatch(memories, "memory_provenance", ask.page)
    if ask.target.exports:
        ask.target.write(_memories(ask.view, result["records"]))
    elif ask.target.format == "json":
        _json(ask.target, result)
    else:
        _tell(memories, ask, result)


def _json(target: Target, result: Document) -> None:
    if target.path is None:
        print_json(result)
        return
    import msgspec

    with target.opened() as out:
        out.write(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")


def _tell(memories: MemoryStore, ask: _Ask, result: Document) -> None:
    found: list[Document] = next(iter(result.values()))
    if not found:
        note(_nothing(ask))
        return
    if lines := _lines(memories, ask, found):
        typer.echo("\n".join(lines))
    else:
        from iai_mcp.cli.common import screen
        from iai_mcp.cli.tables import records, trail

        out = screen()
        out.print(records(found) if ask.view == "never" else trail(found, out.width))
    if len(found) == ask.most:
        further = "older ones" if ask.view == "entries" else "more"
        note(f"{len(found)} shown; {further}: --offset {ask.offset + len(found)}")


def _lines(memories: MemoryStore, ask: _Ask, found: list[Document]) -> list[str]:
    """The views that are plain lines; none for the others."""
    from iai_mcp.cli.timeline import recall_lines, timeline_lines, top_lines

    if ask.view == "top":
        return [*top_lines(found)]
    if ask.params["record_id"] is not None:
        about = {"record_id": found[0]["record_id"], "text": ""}
        about["text"] = _texts(memories, found[:1]).get(about["record_id"], "")
        return [*timeline_lines(about, found)]
    if ask.params["recall_id"] is not None:
        return [*recall_lines(found, _texts(memories, found))]
    return []


def _texts(memories: MemoryStore, entries: Iterable[Document]) -> dict[str, str]:
    ids = list(dict.fromkeys(entry["record_id"] for entry in entries))
    return {str(record.id): record.text for record in memories.records(ids)}


def _nothing(ask: _Ask) -> str:
    if ask.offset:
        return f"--offset {ask.offset} is beyond the last"
    if ask.view == "never":
        return "every memory was recalled"
    return "no recall left such a trace"


# -- everything


def _everything(memories: MemoryStore, ask: _Ask) -> Rows:
    """All that fits, read as it is written."""
    from iai_mcp.core import recalled_dict, record_dict, trail_filters

    filters = trail_filters(memories, ask.params)
    if ask.view == "entries":
        from iai_mcp.trail.stream import stream

        return entry_rows(stream(memories, filters))
    from iai_mcp.trail import query

    if ask.view == "top":
        return _memories("top", map(recalled_dict, query.each_recalled(memories, filters)))
    return _memories("never", map(record_dict, query.each_unasked(memories, filters)))


def _memories(view: str, documents: Iterable[Document]) -> Rows:
    """Memories as :func:`dispatch` gives them, in columns."""
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
