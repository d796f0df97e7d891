"""How memories, trails and the pipeline look on a terminal: plain dicts in, Rich renderables out.

Texts come from anywhere, so control characters never reach the terminal, and markup is never interpreted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

__all__ = ["hits", "letters", "one_line", "pipeline", "plain", "record", "records", "store_facts", "trail", "when"]

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_EXCERPT = 220  # characters: three lines at 80 columns
_WIDE = 130  # columns from which a trail shows whole record ids


def plain(text: str) -> str:
    """``text`` without what would move the cursor, ring the bell or turn the writing direction."""
    return _CONTROL.sub("\ufffd", text.replace("\r\n", "\n"))


def one_line(text: str, limit: int) -> str:
    """The beginning of ``text`` on one line."""
    flat = plain(" ".join(text.split()))
    return flat if len(flat) <= limit else f"{flat[: limit - 1].rstrip()}…"


def when(iso: object) -> str:
    """An ISO time to the second, in UTC, or what there is instead."""
    from datetime import UTC

    from iai_mcp.entry import parse_ts

    time = parse_ts(iso)
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S") if time else one_line(str(iso or ""), 19)


def hits(found: Sequence[Mapping[str, Any]]) -> RenderableType:
    """A ranked list: score, when, whose, the beginning of the text, the id."""
    shown = (
        _entry(Text.assemble((f"{hit['rank']:>3}  ", "bold"), (f"{hit['score']:.3f}", "cyan")), hit)
        for hit in found
    )
    return Group(*shown)


def records(found: Sequence[Mapping[str, Any]]) -> RenderableType:
    """A list of memories."""
    return Group(*(_entry(Text("  -"), one) for one in found))


def _entry(head: Text, one: Mapping[str, Any]) -> RenderableType:
    head.append(f"  {when(one['created_at'])}", "dim")
    head.append(_whose(one), "green")
    text = Padding(Text(one_line(one["text"], _EXCERPT)), (0, 0, 0, 5))
    return Group(head, text, Padding(Text(one["record_id"], "dim"), (0, 0, 1, 5)))


def _whose(one: Mapping[str, Any]) -> str:
    parts = [one["session_id"], one["role"], " ".join(f"#{tag}" for tag in one["tags"])]
    said = " · ".join(one_line(part, 40) for part in parts if part)
    return f"  {said}" if said else ""


def record(one: Mapping[str, Any]) -> RenderableType:
    """One memory, whole."""
    facts = _facts(
        ("id", one["record_id"]),
        ("session", one["session_id"]),
        ("role", one["role"]),
        ("tags", ", ".join(one["tags"])),
        ("created", when(one["created_at"])),
    )
    return Group(facts, Padding(Text(plain(one["text"])), (1, 0)))


def _facts(*rows: tuple[str, str]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True, min_width=8)
    table.add_column(overflow="fold")
    for name, value in rows:
        if value:
            table.add_row(name, Text(plain(value)))
    return table


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))


def trail(entries: Sequence[Mapping[str, Any]], width: int, *, of_one_record: bool = False) -> Table:
    """Provenance entries: when, session, client, rank, score, cue, and which memory."""
    table = _table()
    table.add_column("when (UTC)", no_wrap=True, style="dim")
    for name in ("session", "client"):
        table.add_column(name, max_width=18, overflow="fold", style="green")
    table.add_column("rank", justify="right")
    table.add_column("score", justify="right", style="cyan")
    table.add_column("cue", ratio=1, overflow="fold", min_width=16)
    if not of_one_record:
        table.add_column("record", no_wrap=True, style="dim")
    for entry in entries:
        table.add_row(*map(Text, _trail_cells(entry, width, of_one_record)))
    return table


def _trail_cells(entry: Mapping[str, Any], width: int, of_one_record: bool) -> list[str]:
    score, record_id = entry.get("score"), str(entry.get("record_id") or "")
    time = when(entry.get("ts"))
    cells = [
        time if width >= _WIDE or len(time) < 19 else time[5:],
        one_line(str(entry.get("session_id") or ""), 36),
        one_line(str(entry.get("client") or ""), 36),
        str(entry.get("rank") or ""),
        f"{score:.3f}" if isinstance(score, int | float) else "",
        one_line(str(entry.get("cue") or ""), 120),
    ]
    if not of_one_record:
        cells.append(record_id if width >= _WIDE else f"{record_id[:8]}…")
    return cells


def store_facts(status: Mapping[str, Any]) -> RenderableType:
    """What the store is."""
    store = status["store"]
    embedder = store["embedder"]
    made_by = f"{embedder['name']}, {embedder['dims']} dimensions"
    if embedder["name"] == "none":
        made_by = "none: full-text search only"
    elif not store["vectors_match"]:
        made_by += "; not the configured one: full-text search only (iai-mcp reembed)"
    memories = f"{store['records']:,} memories"
    if store["without_vector"] and embedder["name"] != "none":
        memories += f", {store['without_vector']:,} of them without a vector (iai-mcp reembed)"
    return _facts(("store", store["path"]), ("holds", memories), ("embedder", made_by))


def pipeline(status: Mapping[str, Any]) -> RenderableType:
    """Where provenance entries are: by lane, spilled, dead."""
    table = _table()
    columns = ("lane", "pending", "in flight", "applied", "rows", "versions", "bytes")
    for name in columns:
        table.add_column(name, justify="right")
    keys = [name.replace(" ", "_") for name in columns[1:]]
    for lane in status["lanes"]:
        table.add_row(str(lane["lane"]), *(f"{lane[key]:,}" for key in keys))
    sums = (sum(lane[key] for lane in status["lanes"]) for key in keys)
    table.add_row("all", *(f"{number:,}" for number in sums), style="bold")
    spilled, dead = status["spilled"], status["dead"]
    rows = [
        ("broker", status["broker"]),
        ("spilled", f"{spilled['entries']:,} entries in {spilled['files']} files"),
    ]
    if spilled["set_aside"]:
        rows.append(("", f"{spilled['set_aside']} damaged spill files set aside in {spilled['folder']}"))
    rows.append(("dead", f"{dead:,} letters" + (" (iai-mcp dead list)" if dead else "")))
    return Group(_facts(*rows), table)


def letters(found: Iterable[Any], width: int) -> Table:
    """Dead letters: id, when, lane, record, why."""
    table = _table()
    table.add_column("id", no_wrap=True, style="bold")
    table.add_column("when (UTC)", no_wrap=True, style="dim")
    table.add_column("lane", justify="right")
    table.add_column("record", no_wrap=True)
    table.add_column("reason", ratio=1, overflow="fold")
    for letter in found:
        record_id = letter.record_id or "(raw bytes)"
        shown = record_id if width >= _WIDE or not letter.record_id else f"{record_id[:8]}…"
        cells = (letter.id, when(letter.at), str(letter.lane), shown, one_line(letter.reason, 200))
        table.add_row(*map(Text, cells))
    return table
