"""The commands that look after a store: ``verify``, ``doctor`` and ``spill``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iai_mcp.cli.common import (
    Json,
    Store,
    note,
    opened,
    print_json,
    say,
    settled,
    show_help,
)
from iai_mcp.common.wording import many

if TYPE_CHECKING:
    from iai_mcp.maintenance.doctor import Check
    from iai_mcp.maintenance.verify import Finding, Report
    from iai_mcp.pipeline.recovery import Moved
    from iai_mcp.spill.listing import SpillFile

__all__ = ["register"]

MOST_LINES = 20


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command(epilog="Example: iai-mcp verify --repair")(verify)
    app.command(epilog="Example: iai-mcp doctor")(doctor)
    group = typer.Typer(
        help="Look at the trace entries that wait in local spill files, and move them on.",
        epilog="Example: iai-mcp spill replay",
        no_args_is_help=False,
    )
    group.callback(invoke_without_command=True)(_root)
    group.command("list", epilog="Example: iai-mcp spill list")(_list)
    group.command("replay", epilog="Example: iai-mcp spill replay")(_replay)
    app.add_typer(group, name="spill")


# -- verify


def verify(
    repair: Annotated[bool, typer.Option("--repair", help="Repair what can be repaired, and say what.")] = False,
    as_json: Json = False,
    store: Store = None,
) -> None:
    """Check that every trace entry ever handed out is accounted for, once and in order; exit code 1 if not."""
    from iai_mcp.maintenance.verify import layout_of
    from iai_mcp.maintenance.verify import verify as verify_store

    settings = settled(store)
    layout = layout_of(store, settings)
    report, done = verify_store(layout, settings), []
    if repair:
        from iai_mcp.maintenance.repair import repair as run

        for action in run(layout, settings, report):
            done.append(action)
            note(action)
        report = verify_store(layout, settings)
    if as_json:
        print_json({**report.document(), **({"repaired": done} if repair else {})})
    else:
        _tell(report)
    if not report.clean:
        raise typer.Exit(1)


def _tell(report: Report) -> None:
    total = report.total
    seen = ", as far as could be read" if report.unreadable() else ""
    say(f"handed out  {total['handed_out']:>12,}  by {many(len(report.producers), 'producer')}{seen}")
    for name, number in [*total.items()][1:]:
        if number or name in ("applied", "lost"):
            unsure = seen.replace(",", " ", 1) if name == "lost" else ""
            say(f"{name.replace('_', ' '):<10}  {number:>12,}{unsure}")
    for lane in report.lanes:
        said = "cannot be read" if lane.error else many(lane.rows, "row")
        say(f"{f'lane {lane.lane}':<10}  {said}")
    for one in report.notes:
        note(f"note: {one}")
    _tell_findings("warning", report.warnings)
    _tell_findings("BROKEN", report.breaches)
    if report.clean:
        say(f"every {'known ' if report.killed else ''}entry is accounted for")


def _tell_findings(word: str, found: list[Finding]) -> None:
    for finding in found[:MOST_LINES]:
        say(f"{word}: {finding.kind.replace('_', ' ')}: {finding.message} -> {finding.remedy}")
    if len(found) > MOST_LINES:
        say(f"{word}: and {len(found) - MOST_LINES} more -> iai-mcp verify --json shows all")


# -- doctor


def doctor(as_json: Json = False, store: Store = None) -> None:
    """Check this installation, the store and what it depends on; exit code 1 where something fails."""
    from iai_mcp.errors import UsageError
    from iai_mcp.maintenance.doctor import State, examine

    if store == "":
        raise UsageError("--store is empty: give a folder, or leave it out for the default store")
    checks = []
    for check in examine(store):
        checks.append(check)
        if not as_json:
            say(_line(check))
    worst = [sum(check.state is state for check in checks) for state in (State.FAIL, State.WARN)]
    if as_json:
        shown = [{"name": c.name, "state": c.state, "message": c.message, "remedy": c.remedy} for c in checks]
        print_json({"ok": not worst[0], "checks": shown})
    else:
        say(f"{len(checks)} checks: {worst[0]} failed, {many(worst[1], 'warning')}")
    if worst[0]:
        raise typer.Exit(1)


def _line(check: Check) -> str:
    message = " ".join(check.message.split())
    return f"{check.state.value}  {check.name:<17}  {message}{f' -> {check.remedy}' if check.remedy else ''}"


# -- spill


def _root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        show_help(context)


def _list(as_json: Json = False, store: Store = None) -> None:
    """List the spill files, those of other stores and those set aside among them."""
    from iai_mcp.config import overflow_dir
    from iai_mcp.spill.listing import listing
    from iai_mcp.spill.names import odd_files
    from iai_mcp.storage.layout import Layout
    from iai_mcp.storage.meta import read_meta

    settings = settled(store)
    folder = overflow_dir(settings)
    files, odd = listing(folder), odd_files(folder)
    layout = Layout(settings.store_path.absolute())
    ours = read_meta(layout).store_id if layout.meta.exists() else None
    if as_json:
        passed = [{"file": one.path.name, "kind": one.kind} for one in odd]
        shown = [_file(file) for file in files]
        print_json({"folder": str(folder), "store_id": ours, "files": shown, "passed_over": passed})
        return
    for file in files:
        say(_row(file, ours))
    for one in odd:
        note(f"passed over: {one.path} is {one.kind}, and no spill file")
    if not files:
        note(f"nothing is spilled in {folder}")


def _file(file: SpillFile) -> dict[str, Any]:
    from dataclasses import asdict

    age = max(0.0, time.time() - file.oldest) if file.oldest is not None else None
    return {**asdict(file), "path": str(file.path), "age_s": age}


def _row(file: SpillFile, ours: str | None) -> str:
    age = f"{max(0.0, time.time() - file.oldest):.0f} s old" if file.oldest is not None else "of unknown age"
    whose = f"store {file.store}" if file.store else "no store"
    whose = "this store" if file.store and file.store == ours else whose
    state = "set aside" if file.set_aside else "held by a living process" if file.held else "held by no process"
    bad = f", {file.unreadable} unreadable lines" if file.unreadable else ""
    entries = many(file.entries, "entry")
    return f"{file.path.name}  {entries}{bad}  {age}  {whose}, producer {file.producer or 'unknown'}  {state}"


def _replay(as_json: Json = False, store: Store = None) -> None:
    """Move on what no living process holds: to Redis where one is configured, else into the store."""
    from dataclasses import asdict

    from iai_mcp.maintenance.repair import move_spill
    from iai_mcp.maintenance.verify import layout_of

    layout_of(store, settled(store))
    with opened(store) as memories:
        moved = move_spill(memories)
    if as_json:
        print_json(asdict(moved))
    else:
        say(_told(moved))
    if moved.stayed:
        note(f"{many(moved.stayed, 'file')} had to stay: Redis does not take the entries now")
    if moved.dead:
        note(f"{many(moved.dead, 'entry')} became dead letters: see `iai-mcp dead list`")
    if moved.stayed or moved.dead:
        raise typer.Exit(1)


def _told(moved: Moved) -> str:
    if not moved.files:
        return "nothing was moved" if moved.stayed else "nothing to replay"
    counts = {"applied": moved.applied, "applied before": moved.duplicate, "pushed to Redis": moved.pushed}
    counts |= {"left out, for their memory is gone": moved.unknown}
    said = ", ".join(f"{number} {name}" for name, number in counts.items() if number)
    return f"{many(moved.files, 'file')} replayed: {said or 'no entries'}"
