"""Owns the command ``config``: every setting with its value and source. It never shows a secret."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated

import typer

from iai_mcp.cli.common import Json, note, print_json, say_lines, screen
from iai_mcp.errors import UsageError

if TYPE_CHECKING:
    from iai_mcp.config import ResolvedSetting

__all__ = ["register"]

HIDDEN = "***"


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(epilog="Example: iai-mcp config --json")(config)


def config(
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print all settings as the table of docs/configuration.md.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show every setting, its value and its source; secrets stay hidden."""
    from iai_mcp.config import markdown_table, resolved, unknown_variables

    if as_markdown and as_json:
        raise UsageError("--markdown and --json are two formats: give one of them")
    if as_markdown:
        say_lines(markdown_table())
        return
    found = resolved()
    for name in unknown_variables():
        close = get_close_matches(name, [one.variable for one in found], 1)
        note(f"note: {name} is not a setting{f': did you mean {close[0]}?' if close else ''}")
    if as_json:
        print_json({one.variable: {"value": _shown(one), "source": one.source} for one in found})
        return
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    for _ in range(3):
        grid.add_column(overflow="fold")
    for one in found:
        value = _shown(one)
        grid.add_row(one.variable, "" if value is None else str(value), one.source)
    screen().print(grid)


def _shown(one: ResolvedSetting) -> str | float | None:
    """The value; stars for a secret; the address of Redis without its password."""
    if not one.secret or not one.value:
        return one.value
    if one.name != "redis_url":
        return HIDDEN
    from iai_mcp.broker.redis.client import connect
    from iai_mcp.broker.redis.inspect import masked

    return masked(connect(str(one.value)))
