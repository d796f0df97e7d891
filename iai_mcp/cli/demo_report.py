"""Prints the facts of the demo for a newcomer, on a terminal of 80 columns. Owns no command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from iai_mcp.cli.tables import pipeline, trail
from iai_mcp.cli.text import one_line

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["print_report"]

SHOWN_QUESTIONS = 4
SHOWN_HITS = 2


def print_report(out: Console, facts: Mapping[str, Any]) -> None:
    """Print what :func:`iai_mcp.cli.demo_run.run` returned."""
    _memories(out, facts)
    _questions(out, facts)
    _most_recalled(out, facts["most_recalled"])
    out.print(_head("Where the trace is now"))
    out.print(Padding(pipeline(facts["status"]), (0, 0, 0, 2)))
    _cost(out, facts["cost"])
    _next(out, facts["store"])


def _head(title: str) -> Rule:
    return Rule(Text(title, "bold"), align="left", style="dim", characters="─")


def _memories(out: Console, facts: Mapping[str, Any]) -> None:
    kept = facts["memories"]
    number = kept["added"] + kept["existing"]
    out.print(_head("Remember"))
    out.print(
        f"  {number} passages of Python's own language reference, kept as memories in {kept['seconds']:.1f} s."
    )
    out.print()


def _questions(out: Console, facts: Mapping[str, Any]) -> None:
    questions, clients = facts["questions"], facts["clients"]
    out.print(_head("Recall"))
    names = ", ".join(f"{one['session_id']} ({one['client']})" for one in clients)
    intro = f"{len(clients)} clients at once: {names}. Each asked {len(questions)} questions, such as:"
    out.print(Padding(Text(intro), (0, 2)))
    out.print()
    for question in questions[:SHOWN_QUESTIONS]:
        out.print(Text(f"  {question['cue']}", "bold"))
        out.print(_answers(question["hits"][:SHOWN_HITS]))


def _answers(hits: list[dict[str, Any]]) -> Padding:
    table = Table.grid(padding=(0, 1))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    for hit in hits:
        title, _, body = hit["text"].partition("\n\n")
        text = Text(f"{one_line(title, 60)}: ", "green").append(
            one_line(body, 136 - min(60, len(title))), "default"
        )
        table.add_row(f"{hit['score']:.2f}", text)
    return Padding(table, (0, 0, 1, 4))


def _most_recalled(out: Console, memory: Mapping[str, Any]) -> None:
    out.print(_head("Every recall left a trace: the memory that was recalled most"))
    title, _, body = memory["text"].partition("\n\n")
    out.print(Padding(Text(f"{one_line(title, 60)}: ", "green").append(one_line(body, 120), "default"), (0, 2)))
    entries = sorted(memory["provenance"], key=lambda entry: str(entry.get("ts")))[-12:]
    out.print(Padding(trail(entries, 80, of_one_record=True), (0, 0, 0, 2)))


def _cost(out: Console, cost: Mapping[str, Any]) -> None:
    out.print(_head("What the trace cost"))
    share = cost["provenance_ms_p50"] / cost["total_ms_p50"] if cost["total_ms_p50"] else 0.0
    out.print(
        f"  A recall took {cost['total_ms_p50']:.1f} ms, its trace {cost['provenance_ms_p50']:.3f} ms of them "
        f"({share:.2%}).\n"
        f"  Without a trace, in the same run: {cost['total_ms_p50_without_trace']:.1f} ms.\n"
        f"  (medians, three at once; {cost['recalls']} recalls, {cost['entries']} trace entries, all written)"
    )
    out.print()


def _next(out: Console, store: str | None) -> None:
    out.print(_head("Next"))
    lines = [
        ("iai-mcp import ~/notes ~/.claude/projects", "remember your own files"),
        ('iai-mcp recall "what did we decide?"', "ask them"),
        ("iai-mcp provenance", "see who recalled what"),
    ]
    if store is not None:
        lines = [(f"iai-mcp status --store {store}", "the demo's store, which was kept"), *lines]
    table = Table.grid(padding=(0, 3))
    for command, what in lines:
        table.add_row(Text(command, "bold"), Text(what, "dim"))
    out.print(Padding(table, (0, 2)))
