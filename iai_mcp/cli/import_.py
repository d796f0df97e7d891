"""Owns the command ``import``: makes memories of files, and reports the lines that it cannot read.

It recognizes the folder of an ``export`` by its files and restores memories and trace from it.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iai_mcp.cli.common import (
    Json,
    Store,
    error_line,
    note,
    opened,
    print_json,
    progress,
    say,
)
from iai_mcp.cli.transfer import import_export, is_export
from iai_mcp.common.wording import many
from iai_mcp.errors import UsageError
from iai_mcp.ingest.loader import BATCH, BATCH_EMBEDDED, ImportReport, ingest

if TYPE_CHECKING:
    from iai_mcp.ingest.readers import BadLine

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("import", epilog="Example: iai-mcp import notes/ ~/.claude/projects chat.jsonl")(_import)


def _import(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Files or folders; - for standard input.")],
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first bad line, with exit code 1.")
    ] = False,
    reembed: Annotated[
        bool,
        typer.Option("--reembed", help="Make all vectors of an export again, with this store's embedder."),
    ] = False,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="In folders, follow links that lead out of them.")
    ] = False,
    as_json: Json = False,
    store: Store = None,
) -> None:
    """Make memories of files: JSON lines, Claude Code transcripts, Markdown, text; or of an export's folder."""
    from iai_mcp.ingest.readers import read_paths

    if is_export(paths):
        import_export(paths[0], reembed, as_json, store)
        return
    if reembed:
        raise UsageError("--reembed is for the folder of an export only: leave it out, files are always embedded")

    items = read_paths(
        paths, stdin=sys.stdin.buffer, follow_links=follow_links
    )  # a missing path is an error before the store opens
    with opened(store, make=True) as memories, progress("importing") as show:
        report = ingest(
            memories,
            items,
            strict=strict,
            batch=BATCH if memories.embedder is None else BATCH_EMBEDDED,
            on_bad=lambda bad: note(_where(bad)),
            on_batch=lambda so_far: show(so_far.read),
        )
    if as_json:
        print_json(_report_dict(report))
    else:
        say(_summary(report))
    if strict and report.bad:
        error_line(f"stopped at {_where(report.bad[0])} (--strict); the lines before it are kept")
    if report.bad and (strict or not report.read):
        raise typer.Exit(1)


def _where(bad: BadLine) -> str:
    return f"{bad.file}:{bad.line}: {bad.reason}" if bad.line else f"{bad.file}: {bad.reason}"


def _report_dict(report: ImportReport) -> dict[str, Any]:
    return {
        "added": report.added,
        "existing": report.existing,
        "forgotten": report.forgotten,
        "bad": [asdict(bad) for bad in report.bad],
    }


def _summary(report: ImportReport) -> str:
    parts = [f"{report.added} added"]
    if report.existing:
        parts.append(f"{report.existing} already there")
    if report.forgotten:
        parts.append(f"{report.forgotten} forgotten before and skipped")
    if report.bad:
        parts.append(many(len(report.bad), "bad line"))
    return ", ".join(parts)
