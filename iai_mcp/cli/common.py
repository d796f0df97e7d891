"""Owns what all commands share: common options, the open store, and the output of results, errors and progress.

stdout carries results only: one JSON document, or text for people. Everything else goes to stderr.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import IO, TYPE_CHECKING, Annotated, Any, Protocol, cast

import typer

from iai_mcp.cli.streams import trusted
from iai_mcp.common.limits import RESULTS_MAX
from iai_mcp.common.printable import coloured_only, flat, plain
from iai_mcp.errors import BadParams, ConfigError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from iai_mcp.config import Settings
    from iai_mcp.provenance_queue import ProvenanceWriteQueue
    from iai_mcp.store import Filters, MemoryStore

__all__ = [
    "Json",
    "Limit",
    "Offset",
    "OnlyRole",
    "OnlySession",
    "OnlyTags",
    "Show",
    "Since",
    "Store",
    "Until",
    "ask",
    "coloured",
    "error_line",
    "filters_of",
    "loaded",
    "moment",
    "note",
    "opened",
    "print_json",
    "progress",
    "say",
    "say_lines",
    "screen",
    "settled",
    "show_help",
    "stderr",
    "traced",
]

PIPE_WIDTH = 10_000  # a pipe has no width: this keeps paths, ids and cues in one piece

Store = Annotated[
    str | None,
    typer.Option(
        "--store", metavar="PATH", help="The store's folder (default: $IAI_MCP_STORE, ~/.iai-mcp/store)."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=RESULTS_MAX, help="Maximum number of results.")]
Offset = Annotated[int, typer.Option(min=0, help="Number of results to skip.")]
OnlySession = Annotated[str | None, typer.Option("--session", "-s", help="Only memories of this session.")]
OnlyRole = Annotated[str | None, typer.Option("--role", help="Only memories said in this role.")]
OnlyTags = Annotated[
    list[str] | None, typer.Option("--tag", "-t", metavar="TAG", help="Only memories with this tag; repeatable.")
]
Since = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Not before this time: 2026-11-23, ...T14:00Z, or 2h, 7d (ago)."),
]
Until = Annotated[
    str | None, typer.Option(metavar="TIME", help="Before this time, in the same forms; UTC if no zone is given.")
]


def error_line(message: str) -> None:
    """Write an error to stderr, on one line."""
    typer.echo(f"error: {plain(' '.join(message.split()))}", err=True)


def note(message: str) -> None:
    """Write to stderr, on one line, what is not a result."""
    typer.echo(flat(message), err=True)


def ask(question: str) -> None:
    """Write a question to stderr; the answer follows on the same line."""
    typer.echo(flat(question), nl=False, err=True)


def say(message: str) -> None:
    """Write a line of a result to stdout."""
    typer.echo(flat(message))


def say_lines(text: str, *, end: bool = True) -> None:
    """Write lines to stdout; plain colours stay. ``end``: end the last line."""
    typer.echo(coloured_only(text), nl=end)


def loaded(*also: str, token_file: Path | None = None) -> Settings:
    """Load the settings, and send the log to stderr from now on.

    Args:
        also: names of further loggers to send to stderr.
        token_file: a file with a secret; a warning tells if other users may read it.

    Raises:
        ConfigError: a setting has a value that cannot be used.
    """
    from iai_mcp.config import Settings, world_readable
    from iai_mcp.telemetry import events

    settings = Settings.load()
    events.configure(settings.log_level, as_json=settings.log_format == "json", also=also)
    for path in world_readable(None, token_file):
        events.log.warning("%s holds a secret and every user may read it: run chmod 600 on it", path)
    return settings


def settled(path: str | None) -> Settings:
    """Load the settings, with the store at ``path`` if that is given, and send the log to stderr.

    Raises:
        UsageError: ``path`` is empty.
        ConfigError: a setting has a value that cannot be used.
    """
    from dataclasses import replace
    from pathlib import Path

    if path == "":
        raise UsageError("--store is empty: give a folder, or leave it out for the default store")
    settings = loaded()
    return settings if path is None else replace(settings, store=Path(path).expanduser())


@contextmanager
def opened(path: str | None, *, make: bool = False) -> Iterator[MemoryStore]:
    """Open the store at ``path`` (default: the configured one) for the block, and send the log to stderr.

    Args:
        make: create the store if ``path`` does not exist. Without it, such a path counts as a typing error.

    Raises:
        ConfigError: ``path`` does not exist, and ``make`` is not set.
    """
    settings = settled(path)
    if path is not None and not make and not settings.store_path.exists():
        raise ConfigError(f"there is no store at {settings.store_path}; `iai-mcp capture` or `import` makes one")
    from iai_mcp.store import MemoryStore

    with closing(MemoryStore(path, settings=settings)) as store:
        yield store


@contextmanager
def traced(store: MemoryStore) -> Iterator[ProvenanceWriteQueue | None]:
    """Use the queue for the block if Redis is configured: at the end the trace is in Redis or in the spill.

    The queue connects before the block begins. Without Redis there is no queue, and entries go to the store.
    """
    if not store.settings.redis_url:
        yield None
        return
    store.enable_provenance_queue()
    try:
        if (queue := store.provenance_queue) is not None:
            queue.check_place()
        yield queue
    finally:
        store.disable_provenance_queue()


def show_help(context: typer.Context) -> None:
    """Write a command's help to stdout."""
    typer.echo(context.get_help())


def print_json(document: dict[str, Any], *, line: bool = False) -> None:
    """Write the JSON document of a command; ``line``: on one line, as one of several."""
    import msgspec

    text = msgspec.json.encode(document)
    text = text if line else msgspec.json.format(text, indent=2)
    sys.stdout.buffer.write(text + b"\n")  # UTF-8 for every terminal encoding
    sys.stdout.buffer.flush()


def coloured() -> bool:
    """Whether stdout takes colours: a terminal that can show them, and NO_COLOR is not set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def screen(width: int | None = None) -> Console:
    """stdout for people, with colours on a terminal only; ``width``: columns where there is no terminal."""
    from iai_mcp.cli.screen import SafeConsole

    colours = None if os.environ.get("NO_COLOR") else "auto"
    console = SafeConsole(file=trusted(sys.stdout), color_system=cast("Any", colours))
    if not console.is_terminal:
        console.width = width or PIPE_WIDTH
        console.file = cast("IO[str]", _Trimmed())
    return console


class _Trimmed:
    """stdout without the trailing blanks of Rich's lines, which other programs would have to strip."""

    def write(self, text: str) -> int:
        return sys.stdout.write(re.sub(r" +$", "", text, flags=re.MULTILINE))

    def flush(self) -> None:
        sys.stdout.flush()


def stderr() -> Console:
    """stderr for people."""
    from iai_mcp.cli.screen import SafeConsole

    return SafeConsole(file=trusted(sys.stderr), soft_wrap=True)


class Show(Protocol):
    """Draws progress: ``done`` of ``total`` steps (None: unknown) of the activity ``what``."""

    def __call__(self, done: int, total: int | None = None, what: str | None = None) -> object: ...


@contextmanager
def progress(what: str) -> Iterator[Show]:
    """Show a bar on stderr while the block runs; show nothing if stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total=None, what=None: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=stderr(), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total=None, what=None: bar.update(task, completed=done, total=total, description=what)


_SPAN = re.compile(r"(\d{1,9})([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def moment(option: str, value: str | None) -> datetime | None:
    """The value of a time option, in UTC: an ISO 8601 time, or a span such as 2h, which counts back from now.

    Raises:
        BadParams: ``value`` is neither.
    """
    from iai_mcp.common.times import parse_ts

    if value is None:
        return None
    if span := _SPAN.fullmatch(value.strip().lower()):
        try:
            return datetime.now(UTC) - timedelta(**{_UNITS[span[2]]: int(span[1])})
        except OverflowError:
            return datetime.min.replace(tzinfo=UTC)
    time = parse_ts(value)
    if time is None:
        raise BadParams(
            f"{option} {value!r} is not an ISO 8601 time, such as 2026-11-23 or 2026-11-23T14:00Z, "
            "nor a span back from now, such as 30m, 2h or 7d"
        )
    return time


def filters_of(
    session: str | None, tags: list[str] | None, role: str | None, since: str | None, until: str | None
) -> Filters:
    """The options that choose memories, as the store takes them.

    Raises:
        BadParams: a time cannot be read.
    """
    from iai_mcp.store import Filters

    return Filters(session, tags or [], role, moment("--since", since), moment("--until", until))
