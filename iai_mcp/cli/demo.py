"""Owns the command ``demo``: :mod:`~iai_mcp.cli.demo_run` runs it, :mod:`~iai_mcp.cli.demo_report` prints it."""

from __future__ import annotations

import typer

from iai_mcp.cli.common import Json, Store, loaded, print_json, progress, screen

__all__ = ["register"]

WIDTH = 80  # columns of the report


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(epilog="Example: iai-mcp demo")(demo)


def demo(as_json: Json = False, store: Store = None) -> None:
    """See it work in ten seconds: three clients ask Python's own documentation, each recall leaves a trace."""
    from iai_mcp.cli.demo_run import run

    settings = loaded()
    with progress("starting") as show:
        facts = run(settings, store, progress=show)
    if as_json:
        print_json(facts)
        return
    from iai_mcp.cli.demo_report import print_report

    print_report(screen(width=WIDTH), facts)
