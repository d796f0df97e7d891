"""Owns the look of memories, traces and the pipeline on a terminal: plain dicts in, Rich renderables out.

Texts are untrusted: control characters never reach the terminal, and markup is never interpreted. Owns no command.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from iai_mcp.cli.text import one_line, plain, when
from iai_mcp.common.printable import flat
from iai_mcp.common.wording import many

__all__ = [
    "hits",
    "letters",
    "pipeline",
    "record",
    "records",
    "snapshot",
    "store_facts",
    "trail",
]

_EXCERPT = 220  # characters: three lines at 80 columns
_COLUMNS = ("pending", "in flight", "applied", "rows", "versions", "bytes")
_REDIS_COLUMNS = ("pending", "in flight", "oldest", "leased by", "seen", "applied")
_NAMED = 6  # workers named in the line
_SUMMED = {"pending", "in_flight", "applied", "rows", "versions", "bytes"}
_WIDE = 130  # columns from which a trail shows whole record ids
_ROOMY = 1000  # columns from which no table column is limited


def hits(found: Sequence[Mapping[str, Any]]) -> RenderableType:
    """A ranked list: score, time, session, the beginning of the text, the id."""
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
    text = Padding(Text(one_line(one["text"], _EXCERPT)), (0, 0, 0, 5), expand=False)
    return Group(head, text, Padding(Text(one["record_id"], "dim"), (0, 0, 1, 5), expand=False))


def _whose(one: Mapping[str, Any]) -> str:
    parts = [one["session_id"], one["role"], " ".join(f"#{tag}" for tag in one["tags"])]
    owner = " · ".join(one_line(part, 40) for part in parts if part)
    return f"  {owner}" if owner else ""


def record(one: Mapping[str, Any]) -> RenderableType:
    """One memory, whole."""
    facts = _facts(
        ("id", one["record_id"]),
        ("session", one["session_id"]),
        ("role", one["role"]),
        ("tags", ", ".join(one["tags"])),
        ("created", when(one["created_at"])),
    )
    return Group(facts, Padding(Text(plain(one["text"])), (1, 0), expand=False))


def _facts(*rows: tuple[str, str]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True, min_width=8)
    table.add_column(overflow="fold")
    for name, value in rows:
        if value:
            table.add_row(name, Text(flat(value)))
    return table


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))


def trail(entries: Sequence[Mapping[str, Any]], width: int, *, of_one_record: bool = False) -> Table:
    """Provenance entries: time, session, client, rank, score, cue and memory."""
    table = _table()
    table.add_column("when (UTC)", no_wrap=True, style="dim")
    for name in ("session", "client"):
        table.add_column(name, max_width=None if width >= _ROOMY else 18, overflow="fold", style="green")
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
    """The store: its path, its size and its embedder."""
    store = status["store"]
    embedder = store["embedder"]
    made_by = f"{embedder['name']}, {embedder['dims']} dimensions"
    if embedder["name"] == "none":
        made_by = "none: full-text search only"
    elif not store["vectors_match"]:
        made_by += "; not the configured one: full-text search only (iai-mcp reembed)"
    memories = many(store["records"], "memory")
    if store["without_vector"] and embedder["name"] != "none":
        memories += f", {store['without_vector']:,} of them without a vector (iai-mcp reembed)"
    return _facts(("store", store["path"]), ("holds", memories), ("embedder", made_by))


def pipeline(status: Mapping[str, Any], rate: float | None = None) -> RenderableType:
    """Where provenance entries are: by lane, spilled, dead; ``rate``: drained entries per second."""
    spilled, dead, redis = status["spilled"], status["dead"], status.get("redis")
    rows = [("broker", status["broker"]), *(_redis_facts(redis) if redis else ())]
    if rate is not None:
        rows.append(("drains", f"{rate:,.0f} entries/s"))
    rows.append(("spilled", f"{many(spilled['entries'], 'entry')} in {many(spilled['files'], 'file')}"))
    if spilled["set_aside"]:
        rows.append(("", f"{many(spilled['set_aside'], 'damaged spill file')} set aside in {spilled['folder']}"))
    rows += [("", f"passed over: {one_line(odd['file'], 200)} is {odd['kind']}") for odd in spilled["passed_over"]]
    rows.append(("dead", many(dead, "letter") + (" (iai-mcp dead list)" if dead else "")))
    return Group(_facts(*rows), *_troubles(redis), _lanes_of(status))


def _redis_facts(redis: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "redis", redis["url"]
    if not redis["reachable"]:
        return
    yield "", f"version {redis['version']}, answers in {redis['ping_ms']:.2f} ms"
    settings = ("appendonly", "appendfsync", "maxmemory_policy")
    yield "keeps", ", ".join(f"{name.replace('_', '-')} {redis[name]}" for name in settings)
    if redis["used_memory"] is not None:
        most = f"of {_size(redis['maxmemory'])}" if redis["maxmemory"] else "(no limit)"
        yield "memory", f"{_size(redis['used_memory'])} {most}"
    yield "workers", _workers_line(redis["workers"])


def _workers_line(workers: Sequence[Mapping[str, Any]] | None) -> str:
    if workers is None:
        return "unknown: this client may not read RQ's keys"
    alive = [worker for worker in workers if worker["alive"]]
    if not alive:
        return "none: entries stay in Redis (start one: iai-mcp worker)"
    line = f"{len(alive)}: " + ", ".join(f"{one['host']}:{one['pid']} {one['state']}" for one in alive[:_NAMED])
    line += ", …" if len(alive) > _NAMED else ""
    silent = len(workers) - len(alive)
    return f"{line}, {silent} silent" if silent else line


def _troubles(redis: Mapping[str, Any] | None) -> Iterator[Text]:
    if redis and redis["error"]:
        yield Text(plain(redis["error"]), "bold white on red" if redis["refused"] else "bold red")
    for warning in redis["warnings"] if redis else ():
        yield Text(f"warning: {warning}", "yellow")


def _lanes_of(status: Mapping[str, Any]) -> Table:
    columns = _REDIS_COLUMNS if status.get("redis") else _COLUMNS
    table = _table()
    table.add_column("lane", justify="right")
    for name in columns:
        table.add_column(name, justify="right")
    for lane in status["lanes"]:
        table.add_row(str(lane["lane"]), *(_cell(lane, name) for name in columns))
    sums = {key: _sum(status["lanes"], key) for key in status["lanes"][0] if key in _SUMMED}
    table.add_row("all", *(_cell(sums, name) for name in columns), style="bold")
    return table


def _cell(lane: Mapping[str, Any], name: str) -> str:
    if name == "leased by":
        return one_line(str(lane.get("holder") or "").rpartition(":")[0], 24)  # without the random part
    if name in ("oldest", "seen"):
        seconds = lane.get("oldest_s" if name == "oldest" else "lease_age_s")
        return f"{seconds:,.1f} s" if seconds is not None else ""
    number = lane[name.replace(" ", "_")]
    return f"{number:,}" if number is not None else "?"


def _sum(lanes: Sequence[Mapping[str, Any]], key: str) -> int | None:
    numbers = [lane[key] for lane in lanes]
    return None if None in numbers else sum(numbers)


def _size(number: float) -> str:
    for unit in ("B", "KB", "MB"):
        if number < 1024:
            return f"{number:.3g} {unit}"
        number /= 1024
    return f"{number:.3g} GB"


def snapshot(status: Mapping[str, Any], rate: float | None) -> str:
    """The state of the pipeline on one line, for logs and other programs."""
    lanes, redis = status["lanes"], status.get("redis")
    parts = [status["broker"]]
    if redis is not None:
        alive = sum(worker["alive"] for worker in redis["workers"] or ())
        parts.append(f"{redis['ping_ms']:.2f} ms" if redis["reachable"] else f"DOWN ({plain(redis['error'])})")
        parts.append(f"workers {alive}")
    for name in ("pending", "in flight", "applied"):
        number = _sum(lanes, name.replace(" ", "_"))
        parts.append(f"{name} {'?' if number is None else number}")
    if rate is not None:
        parts.append(f"{rate:.0f} entries/s")
    return " · ".join([*parts, f"spilled {status['spilled']['entries']}", f"dead {status['dead']}"])


def letters(found: Iterable[Any], width: int) -> Table:
    """Dead letters: id, time, lane, record, reason."""
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
