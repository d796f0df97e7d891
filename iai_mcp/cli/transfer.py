"""Owns the commands ``export``, ``backup``, ``restore`` and ``lanes``, which copy or reshape a whole store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iai_mcp.cli.common import (
    Json,
    Show,
    Store,
    note,
    opened,
    print_json,
    progress,
    say,
    settled,
)
from iai_mcp.common.wording import many

if TYPE_CHECKING:
    from iai_mcp.maintenance.pending import Pending
    from iai_mcp.transfer.restore import Restored

__all__ = ["import_export", "is_export", "register"]

New = Annotated[Path, typer.Argument(metavar="FOLDER", help="A new or an empty folder.")]


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command(epilog="Example: iai-mcp export ~/memories-2026-11")(export)
    app.command(epilog="Example: iai-mcp backup /media/disk/iai-mcp-2026-11-23")(backup)
    app.command(epilog="Example: iai-mcp restore /media/disk/iai-mcp-2026-11-23")(restore)
    app.command(epilog="Example: iai-mcp lanes 8")(lanes)


def export(folder: New, as_json: Json = False, store: Store = None) -> None:
    """Write all memories and their provenance to a folder of Parquet files; `import` reads it back."""
    from iai_mcp.maintenance.repair import move_spill
    from iai_mcp.maintenance.verify import layout_of
    from iai_mcp.transfer.export import export as write
    from iai_mcp.transfer.manifest import total

    layout_of(store, settled(store))
    with opened(store) as memories, progress("exporting") as show:
        move_spill(memories)
        found, waits = write(memories, folder, _shown(show))
    if as_json:
        sizes = {"files": len(found.files), "bytes": total(found.files), "not_included": found.not_included}
        rest = {**sizes, "unsound": found.unsound, "pending": waits.document()}
        print_json({"records": found.records, "entries": found.entries, **rest})
    else:
        size = f"{many(len(found.files), 'file')}, {many(total(found.files), 'byte')}"
        say(f"{_held(found.records, found.entries)} in {folder} ({size})")
    if found.unsound:
        rows = many(found.unsound, "row that is no entry", "rows that are no entries")
        note(f"left out: {rows}; `iai-mcp verify --repair` makes dead letters of them")
    _note_pending("export", waits)


def backup(folder: New, as_json: Json = False, store: Store = None) -> None:
    """Copy the store to a folder, consistently, while clients write; `restore` makes a store of it."""
    from iai_mcp.maintenance.verify import layout_of
    from iai_mcp.transfer.backup import backup as take
    from iai_mcp.transfer.manifest import total

    settings = settled(store)
    layout = layout_of(store, settings)
    with progress("backing up") as show:
        found, waits = take(layout, settings, folder, _shown(show))
    if as_json:
        sizes = {"files": len(found.files), "bytes": total(found.files), "spilled": found.spilled}
        print_json({"records": found.records, "entries": found.entries, **sizes, "pending": waits.document()})
    else:
        size = f"{many(len(found.files), 'file')}, {many(total(found.files), 'byte')}"
        spilled = f" and {found.spilled:,} that wait in the spill" if found.spilled else ""
        say(f"{_held(found.records, found.entries)}{spilled} in {folder} ({size})")
    _note_pending("backup", waits, local=False)  # the spill and the dead letters are in it


def restore(
    source: Annotated[Path, typer.Argument(metavar="BACKUP", help="A folder that `backup` made.")],
    as_copy: Annotated[
        bool,
        typer.Option("--as-copy", help="Give the store a new identity, so that it can run beside the original."),
    ] = False,
    as_json: Json = False,
    store: Store = None,
) -> None:
    """Make a store from a backup, and check every file and entry; all of it or nothing."""
    from iai_mcp.transfer.restore import restore as make

    settings = settled(store)
    with progress("restoring") as show:
        done = make(source, settings, settings.store_path, as_copy=as_copy, show=_shown(show))
    if as_json:
        print_json(_restored(done, settings.store_path))
    else:
        _tell_restored(done, settings.store_path)
    for finding in done.report.breaches:
        kind = finding.kind.replace("_", " ")
        note(f"BROKEN, as in the original: {kind}: {finding.message} -> {finding.remedy}")
    if not done.report.clean:
        raise typer.Exit(1)


def _restored(done: Restored, path: Path) -> dict[str, Any]:
    return {
        "store": str(path),
        "store_id": done.store_id,
        "records": done.manifest.records,
        "entries": done.report.total["applied"],
        "spilled": done.manifest.spilled,
        "missing": {producer: [*spans] for producer, spans in done.missing.items()},
        "forgotten": done.forgotten,
        "clean": done.report.clean,
    }


def _tell_restored(done: Restored, path: Path) -> None:
    say(f"{_held(done.manifest.records, done.report.total['applied'])} in {path}")
    if done.spilled:
        say(f"restored: {many(done.spilled, 'spill file')}, which the next client or worker replays")
    if done.forgotten:
        gone = many(done.forgotten, "memory that was", "memories that were")
        say(f"deleted: {gone} being forgotten when the backup was made")
    missing = sum(last - first + 1 for spans in done.missing.values() for first, last in spans)
    if missing:
        absent = many(missing, "entry that was on its way", "entries that were on their way")
        say(f"not in the backup: {absent} when it was made")
    if done.report.clean:
        say("every entry is accounted for")


def lanes(
    number: Annotated[
        int | None, typer.Argument(metavar="[N]", help="The new number; leave it out to print the number.")
    ] = None,
    redis_gone: Annotated[
        bool, typer.Option("--redis-gone", help="The store's former Redis is gone for good.")
    ] = False,
    as_json: Json = False,
    store: Store = None,
) -> None:
    """Print the number of lanes, or change it while no process has the store open; safe to interrupt."""
    from iai_mcp.maintenance.verify import layout_of
    from iai_mcp.storage.meta import read_meta

    settings = settled(store)
    now = read_meta(layout_of(store, settings)).lanes
    if number is None:
        if as_json:
            print_json({"lanes": now})
        else:
            say(str(now))
        return
    from iai_mcp.maintenance.reshard import reshard

    with progress("moving entries") as show:
        done = reshard(settings, number, redis_gone=redis_gone, show=_shown(show))
    if as_json:
        print_json({"lanes": done.now, "before": done.before, "rows": done.rows, "repeated": done.repeated})
    elif done.before == done.now:
        say(f"the store has {many(done.now, 'lane')} already")
    else:
        say(f"{many(done.rows, 'entry')} moved from {many(done.before, 'lane')} to {done.now}")
    if done.repeated:
        note(f"skipped: {many(done.repeated, 'entry')} whose id the caller had given to an earlier entry")


# -- import, as far as it reads exports


def is_export(paths: list[str]) -> bool:
    """Whether the one given path is the folder of an export.

    Raises:
        UsageError: the folder of an export is one of several paths.
    """
    from iai_mcp.errors import UsageError
    from iai_mcp.transfer.manifest import is_export

    found = [path for path in paths if path != "-" and is_export(Path(path))]
    if found and len(paths) > 1:
        raise UsageError(f"{found[0]} is an export: import it by itself")
    return bool(found)


def import_export(path: str, anew: bool, as_json: bool, store: str | None) -> None:
    """Add the memories and the trace of an export to the store."""
    from iai_mcp.transfer.load import load

    settings = settled(store)
    with progress("importing") as show:
        done = load(Path(path), settings, anew=anew, show=_shown(show))
    records, entries = done.records, done.entries
    if as_json:
        added = {"added": records.added, "existing": records.existing, "forgotten": records.forgotten}
        traced = {"added": entries.applied, "existing": entries.duplicate, "unknown": entries.unknown}
        rest = {"not_included": done.manifest.not_included, "embedded": done.embedded, "bad": []}
        print_json({**added, "entries": traced, **rest})
        return
    say(
        f"memories: {records.added:,} added, {records.existing:,} already there"
        + (f", {records.forgotten:,} forgotten before and skipped" if records.forgotten else "")
    )
    say(
        f"entries: {entries.applied:,} added, {entries.duplicate:,} already there"
        + (f", {entries.unknown:,} of unknown memories skipped" if entries.unknown else "")
    )
    if entries.conflict:
        kept = many(entries.conflict, "entry that differs", "entries that differ")
        note(f"{kept} from the entry here with the same number: both are kept, see `iai-mcp verify`")
    if done.dead:
        note(f"{many(done.dead, 'row that is no entry', 'rows that are no entries')}: see `iai-mcp dead list`")
    if done.embedded:
        say(f"{done.embedded:,} embedded again")
    if done.manifest.not_included:
        missing = many(done.manifest.not_included, "entry that was on its way", "entries that were on their way")
        note(f"not in the export: {missing} when it was made")


# -- what they share


def _held(records: int, entries: int) -> str:
    return f"{many(records, 'memory')} and {many(entries, 'entry')}"


def _shown(show: Show) -> Any:
    return lambda done, total: show(done, total)


def _note_pending(copy: str, waits: Pending, *, local: bool = True) -> None:
    """Say what the copy does not hold; ``local``: spill files and dead letters, too."""
    lines = []
    if local and (spilled := waits.spill.entries):
        lines.append(f"{many(spilled, 'entry waits', 'entries wait')} in the spill")
    if waits.redis is None:
        lines.append(f"what waits in Redis cannot be counted: {waits.redis_error}")
    elif waits.redis.entries:
        lines.append(f"{many(waits.redis.entries, 'entry waits', 'entries wait')} in Redis")
    if local and waits.dead:
        lines.append(many(waits.dead, "dead letter"))
    if waits.live_producers:
        lines.append(f"{many(len(waits.live_producers), 'running client')} may hold entries in memory")
    for line in lines:
        note(f"not in the {copy}: {line}")
