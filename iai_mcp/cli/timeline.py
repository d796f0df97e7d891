"""Owns the look of a trace as plain lines: a memory's timeline, one recall's hits, new entries live.

It uses no Rich tables: their layout of a hundred rows takes longer than a search among a million. Owns no command.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import typer

from iai_mcp.cli.common import coloured
from iai_mcp.cli.text import one_line, when

__all__ = ["live_line", "recall_lines", "timeline_lines", "top_lines"]

_CUE = 200  # characters
_EXCERPT = 140

Entry = Mapping[str, Any]


def timeline_lines(record: Entry, entries: Sequence[Entry]) -> Iterator[str]:
    """One memory's recalls by day, in order: time and cue, and below them session, rank, score and recall."""
    paint = _painter()
    yield paint(one_line(record["text"], _EXCERPT), bold=True)
    yield paint(record["record_id"], dim=True)
    day = None
    for entry in entries:
        on, _, at = when(entry.get("ts")).partition(" ")
        if on != day:
            yield ""
            yield paint(on or "(no time)", bold=True)
            day = on
        yield f"  {at or '':<8}  {one_line(str(entry.get('cue') or ''), _CUE)}"
        yield f"  {'':<8}  {paint(_whose(entry), fg='green')}{paint(_how(entry), dim=True)}"


def _whose(entry: Entry) -> str:
    parts = [entry.get("session_id"), entry.get("client")]
    return " · ".join(one_line(str(part), 40) for part in parts if part) or "(no session or client)"


def _how(entry: Entry) -> str:
    parts = [*_found(entry), f"recall {one_line(str(entry['recall_id']), 40)}" if entry.get("recall_id") else ""]
    return "".join(f" · {part}" for part in parts if part)


def _found(entry: Entry) -> Iterator[str]:
    if entry.get("rank") is not None:
        yield f"rank {entry['rank']}"
    if isinstance(score := entry.get("score"), int | float):
        yield f"{score:.3f}"


def recall_lines(entries: Iterable[Entry], texts: Mapping[str, str]) -> Iterator[str]:
    """One recall by rank: its cue, time and session once, then the memories."""
    paint = _painter()
    ranked = sorted(entries, key=lambda entry: (entry.get("rank") or 0, str(entry["record_id"])))
    for number, entry in enumerate(ranked):
        if number == 0:
            yield paint(one_line(str(entry.get("cue") or ""), _CUE), bold=True)
            yield f"{paint(when(entry.get('ts')), dim=True)}  {paint(_whose(entry), fg='green')}"
            yield ""
        score = entry.get("score")
        shown = f"{score:.3f}" if isinstance(score, int | float) else ""
        text = one_line(texts.get(entry["record_id"], ""), _EXCERPT)
        yield f"{entry.get('rank') or '':>3}  {paint(f'{shown:>5}', fg='cyan')}  {text}"
        yield f"{'':>3}  {'':>5}  {paint(entry['record_id'], dim=True)}"


def top_lines(records: Iterable[Entry]) -> Iterator[str]:
    """The most recalled memories: number of recalls, time of the last one, text."""
    paint = _painter()
    yield paint(f"{'recalls':>8}  {'last (UTC)':<19}  memory", dim=True)
    for one in records:
        last, text = when(one["last_recalled"]), one_line(one["text"], _EXCERPT)
        yield f"{one['recalls']:>8,}  {paint(f'{last:<19}', dim=True)}  {text}"
        yield f"{'':>8}  {'':<19}  {paint(one['record_id'], dim=True)}"


def live_line(entry: Entry, *, of_one_record: bool) -> str:
    """One entry on one line."""
    paint = _painter()
    shown = f"{score:.3f}" if isinstance(score := entry.get("score"), int | float) else ""
    who = [f"{one_line(str(entry.get(name) or '-'), 18):<12}" for name in ("session_id", "client")]
    parts = [
        paint(when(entry.get("ts")), dim=True),
        *(paint(part, fg="green") for part in who),
        f"{entry.get('rank') or '':>3}",
        paint(f"{shown:>5}", fg="cyan"),
        *([] if of_one_record else [paint(str(entry["record_id"]), dim=True)]),
        one_line(str(entry.get("cue") or ""), _CUE),
    ]
    return "  ".join(parts)


def _painter() -> Any:
    """``typer.style`` if stdout takes colours, else a function that returns the text unchanged."""
    return typer.style if coloured() else lambda text, **_: text
