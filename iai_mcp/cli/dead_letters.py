"""Owns the group ``dead``: list, show, retry and drop the trace entries that could not be applied."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from iai_mcp.cli.common import (
    Json,
    Store,
    note,
    opened,
    print_json,
    say,
    screen,
    show_help,
)
from iai_mcp.errors import MalformedParcel, RecordNotFound, UsageError

if TYPE_CHECKING:
    from iai_mcp.storage.dead_letters import DeadLetter, DeadLetters
    from iai_mcp.store import AppendReport, MemoryStore

__all__ = ["register", "retry_letters"]

Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="The letters' ids.")]
All = Annotated[bool, typer.Option("--all", help="All letters.")]
BATCH = 256


def register(app: typer.Typer) -> None:
    """Add the group to ``app``."""
    group = typer.Typer(
        help="Show, retry or drop trace entries that could not be applied.",
        epilog="Example: iai-mcp dead retry --all",
        no_args_is_help=False,
    )
    group.callback(invoke_without_command=True)(_root)
    group.command("list", epilog="Example: iai-mcp dead list")(_list)
    group.command("show", epilog="Example: iai-mcp dead show 5f0c3e9a1b2d")(_show)
    group.command("retry", epilog="Example: iai-mcp dead retry --all")(_retry)
    group.command("drop", epilog="Example: iai-mcp dead drop 5f0c3e9a1b2d")(_drop)
    app.add_typer(group, name="dead")


def _root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        show_help(context)


def _list(as_json: Json = False, store: Store = None) -> None:
    """List the dead letters, oldest first."""
    with opened(store) as memories:
        letters = _letters(memories)
        found, overflown = letters.all(), letters.overflown()
    if overflown.items:
        since = f"from {overflown.first} to {overflown.last}"
        note(f"{overflown.items} items were not kept ({overflown.bytes} bytes, {since}): the file was full")
    if as_json:
        print_json({"letters": [_dict(letter) for letter in found], "not_kept": overflown.items})
    elif found:
        from iai_mcp.cli import tables

        out = screen()
        out.print(tables.letters(found, out.width))
    else:
        note("no dead letters")


def _show(
    letter_id: Annotated[str, typer.Argument(metavar="ID", help="The letter's id.")],
    as_json: Json = False,
    store: Store = None,
) -> None:
    """Show one dead letter whole."""
    with opened(store) as memories:
        (letter,) = _chosen(_letters(memories), [letter_id], False)
    if as_json:
        print_json(_dict(letter))
        return
    import msgspec

    from iai_mcp.cli.text import plain

    screen().print(plain(msgspec.json.format(msgspec.json.encode(_dict(letter)), indent=2).decode()))


def _retry(ids: Ids = None, every: All = False, as_json: Json = False, store: Store = None) -> None:
    """Apply dead letters again; those that fail again stay, and the exit code is 1."""
    with opened(store) as memories:
        report = retry_letters(memories, _chosen(_letters(memories), ids, every))
    if as_json:
        print_json(report)
    else:
        say(f"{report['applied']} applied, {report['duplicate']} already applied")
    if report["unknown"]:
        note(f"{report['unknown']} dropped: their memory is gone")
    if report["raw"]:
        note(f"{len(report['raw'])} hold raw bytes, which cannot be retried: see `dead show`, then `dead drop`")
    for failed in report["failed"]:
        note(f"{failed['id']} failed again: {' '.join(failed['reason'].split())}")
    if report["failed"] or (report["raw"] and not every):
        raise typer.Exit(1)


def _drop(ids: Ids = None, every: All = False, as_json: Json = False, store: Store = None) -> None:
    """Delete dead letters for good."""
    with opened(store) as memories:
        letters = _letters(memories)
        dropped = letters.drop([letter.id for letter in _chosen(letters, ids, every)])
    if as_json:
        print_json({"dropped": dropped})
    else:
        say(f"{dropped} dropped")


def retry_letters(store: MemoryStore, letters: list[DeadLetter]) -> dict[str, Any]:
    """Apply ``letters``, and remove those that are in the store now or whose memory is gone.

    Returns:
        Counts ``applied``, ``duplicate`` (applied before) and ``unknown`` (memory gone), ``failed`` as
        ``{"id", "reason"}``, and the ids of ``raw`` letters. A letter without a valid proof fails again unless it
        has one under the keys that are set now, or no key is set.

    Raises:
        StoreUnavailable: the storage fails; the letters not yet applied stay.
    """
    report: dict[str, Any] = {"applied": 0, "duplicate": 0, "unknown": 0, "failed": [], "raw": []}
    unproven = [letter for letter in letters if letter.unproven]
    report["raw"] = [letter.id for letter in letters if letter.pair is None and not letter.unproven]
    waiting = [letter for letter in letters if letter.pair is not None]
    if old := _letters(store).of_reused(waiting):  # their memory was forgotten, and another one has its id
        report["unknown"] += len(old)
        _letters(store).drop([letter.id for letter in old])
        waiting = [letter for letter in waiting if letter not in old]
    for start in range(0, len(waiting), BATCH):
        _retry_batch(store, waiting[start : start + BATCH], report)
    for letter in unproven:
        _retry_unproven(store, letter, report)
    return report


def _retry_unproven(store: MemoryStore, letter: DeadLetter, report: dict[str, Any]) -> None:
    """Apply a parcel that had no valid proof, if it has one under the present keys, or if there are none."""
    from iai_mcp.pipeline.proving import apply_unproven

    try:
        done = apply_unproven(store, letter)
    except OSError:
        raise  # the storage fails: the next one would fail too
    except Exception as error:  # noqa: BLE001  as above
        reason = str(error) if isinstance(error, MalformedParcel) else f"{type(error).__name__}: {error}"
        report["failed"].append({"id": letter.id, "reason": reason})
        return
    for name in ("applied", "duplicate", "unknown"):
        report[name] += getattr(done, name)


def _retry_batch(store: MemoryStore, letters: list[DeadLetter], report: dict[str, Any]) -> None:
    try:
        done = _apply(store, letters)
    except OSError:
        raise  # the storage fails: a retry of single letters would fail too
    except Exception as error:  # noqa: BLE001  the cause of the dead letter may persist, of any type
        if len(letters) == 1:
            report["failed"].append({"id": letters[0].id, "reason": f"{type(error).__name__}: {error}"})
            return
        for letter in letters:
            _retry_batch(store, [letter], report)
        return
    for name in ("applied", "duplicate", "unknown"):
        report[name] += getattr(done, name)


def _apply(store: MemoryStore, letters: list[DeadLetter]) -> AppendReport:
    from iai_mcp.storage.exclusions import ExclusionReason

    # First, because later entries of the same producers have their rows by now.
    late = [key for letter in letters if not letter.conflict for key in letter.keys]
    store.exclusions.add(ExclusionReason.LATE, late)
    done = store.append_provenance_batch([letter.pair for letter in letters if letter.pair is not None])
    _letters(store).remove(
        [letter.id for letter in letters]
    )  # after the commit: the entry's key makes a repetition safe
    return done


def _letters(store: MemoryStore) -> DeadLetters:
    from iai_mcp.storage.dead_letters import DeadLetters

    return DeadLetters(store.layout)


def _chosen(letters: DeadLetters, ids: list[str] | None, every: bool) -> list[DeadLetter]:
    if bool(ids) == every:
        raise UsageError("give either ids (see `iai-mcp dead list`) or --all")
    found = letters.find(ids or [])
    missing = sorted(set(ids or []) - {letter.id for letter in found})
    if missing:
        raise RecordNotFound(f"no dead letter has the id {', '.join(missing)}; see `iai-mcp dead list`")
    return found


def _dict(letter: DeadLetter) -> dict[str, Any]:
    import msgspec

    built: dict[str, Any] = msgspec.to_builtins(letter)
    return built
