"""``iai-mcp import``: files become memories in batches, each batch one durable commit that is then counted.

What was imported before, or forgotten since, is left alone: importing the same file again adds nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iai_mcp.cli_common import Json, Store, error_line, note, opened, print_json, progress

if TYPE_CHECKING:
    from iai_mcp.importer import BadLine, Passage
    from iai_mcp.record import MemoryRecord
    from iai_mcp.store import MemoryStore

__all__ = ["ImportReport", "ingest", "register"]

BATCH = 256
BATCH_EMBEDDED = 64  # takes a second or two, which is as long as a progress bar should stand still


@dataclass(slots=True)
class ImportReport:
    """What an import did, in memories; ``bad`` is the input that could not be read."""

    added: int = 0
    existing: int = 0
    forgotten: int = 0
    bad: list[BadLine] = field(default_factory=list)

    @property
    def read(self) -> int:
        """How many memories were read and dealt with."""
        return self.added + self.existing + self.forgotten


def ingest(
    store: MemoryStore,
    items: Iterable[Passage | BadLine],
    *,
    strict: bool = False,
    batch: int = BATCH,
    on_bad: Callable[[BadLine], object] | None = None,
    on_batch: Callable[[ImportReport], object] | None = None,
) -> ImportReport:
    """Keep the passages of ``items`` as memories; with ``strict``, up to the first bad line.

    A count is of what is durable: an exception leaves whole batches in the store, and a second run adds
    the rest.
    """
    from iai_mcp.importer import BadLine

    report = ImportReport()
    records: list[MemoryRecord] = []
    for item in _dated(items):
        if isinstance(item, BadLine):
            report.bad.append(item)
            if on_bad is not None:
                on_bad(item)
            if strict:
                break
            continue
        records.append(item)
        if len(records) >= batch:
            _keep(store, records, report)
            records = []
            if on_batch is not None:
                on_batch(report)
    _keep(store, records, report)
    return report


def _dated(items: Iterable[Passage | BadLine]) -> Iterator[MemoryRecord | BadLine]:
    """Passages as records; those without a time get now, a microsecond apart, which keeps their order."""
    from iai_mcp.importer import BadLine
    from iai_mcp.record import MemoryRecord, utcnow

    now = utcnow()
    for number, item in enumerate(items):
        if isinstance(item, BadLine):
            yield item
            continue
        yield MemoryRecord(
            text=item.text,
            id=item.id,
            session_id=item.session_id,
            role=item.role,
            tags=list(item.tags),
            created_at=item.created_at or now + timedelta(microseconds=number),
            updated_at=now,
        )


def _keep(store: MemoryStore, records: list[MemoryRecord], report: ImportReport) -> None:
    from iai_mcp.core import capture_records

    gone = store.forgotten.ids()
    wanted = [record for record in records if record.id not in gone]
    added = len(capture_records(store, wanted)) if wanted else 0
    report.added += added
    report.existing += len(wanted) - added
    report.forgotten += len(records) - len(wanted)


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("import", epilog="Example: iai-mcp import notes/ ~/.claude/projects chat.jsonl")(_import)


def _import(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Files or folders; - for standard input.")],
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first bad line, with exit code 1.")
    ] = False,
    as_json: Json = False,
    store: Store = None,
) -> None:
    """Keep files as memories: JSON lines, Claude Code transcripts, Markdown and text."""
    from iai_mcp.importer import read_paths

    items = read_paths(paths, stdin=sys.stdin.buffer)  # a path that is not there is told before all else
    with opened(store) as memories, progress("importing") as show:
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
        typer.echo(_summary(report))
    if strict and report.bad:
        error_line(f"stopped at {_where(report.bad[0])} (--strict); what came before it is kept")
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
        parts.append(f"{report.forgotten} forgotten before and left out")
    if report.bad:
        parts.append(f"{len(report.bad)} bad {'line' if len(report.bad) == 1 else 'lines'}")
    return ", ".join(parts)
