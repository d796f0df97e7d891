"""What all commands share: their options, the open store, and how results, errors and progress are written.

stdout carries results only: either one JSON document or text for people. Everything else goes to stderr.
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

from iai_mcp.errors import BadParams, ConfigError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from iai_mcp.config import Settings
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
    "coloured",
    "error_line",
    "filters_of",
    "loaded",
    "moment",
    "note",
    "opened",
    "print_json",
    "progress",
    "screen",
    "settled",
    "stderr",
    "traced",
]

PIPE_WIDTH = 10_000  # a pipe has no width: no path, id or cue is cut in two there

Store = Annotated[
    str | None,
    typer.Option(
        "--store", metavar="PATH", help="The store's folder (default: $IAI_MCP_STORE, ~/.iai-mcp/store)."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="At most so many.")]
Offset = Annotated[int, typer.Option(min=0, help="Skip so many first.")]
OnlySession = Annotated[str | None, typer.Option("--session", "-s", help="Only memories of this session.")]
OnlyRole = Annotated[str | None, typer.Option("--role", help="Only memories said in this role.")]
OnlyTags = Annotated[
    list[str] | None, typer.Option("--tag", "-t", metavar="TAG", help="Only memories with this tag; repeatable.")
]
Since = Annotated[
    str | None, typer.Option(metavar="TIME", help="Not before, e.g. 2026-11-23, ...T14:00Z, or 2h, 7d (ago).")
]
Until = Annotated[
    str | None, typer.Option(metavar="TIME", help="Before this time, e.g. 2026-11-23 or 30m (UTC unless it says).")
]


def error_line(message: str) -> None:
    """Say on stderr, in one line, what is wrong."""
    typer.echo(f"error: {' '.join(message.split())}", err=True)


def note(message: str) -> None:
    """Say something on stderr that is no result."""
    typer.echo(message, err=True)


def loaded(*also: str, token_file: Path | None = None) -> Settings:
    """The settings, with the log (that of the loggers ``also`` too) going to stderr from now on.

    Raises:
        ConfigError: a setting cannot be used.
    """
    from iai_mcp.config import Settings, exposed
    from iai_mcp.telemetry import events

    settings = Settings.load()
    events.configure(settings.log_level, as_json=settings.log_format == "json", also=also)
    for path in exposed(None, token_file):
        events.log.warning("%s holds a secret and every user may read it: chmod 600 it", path)
    return settings


def settled(path: str | None) -> Settings:
    """The settings, with the store at ``path`` where that is given, and the log going to stderr."""
    from dataclasses import replace
    from pathlib import Path

    if path == "":
        raise UsageError("--store is empty: give a folder, or leave it out for the default store")
    settings = loaded()
    return settings if path is None else replace(settings, store=Path(path).expanduser())


@contextmanager
def opened(path: str | None, *, make: bool = False) -> Iterator[MemoryStore]:
    """The store at ``path`` (default: as the settings say), with the log going to stderr.

    ``make``: where ``path`` names none, make it; without, it is taken for a slip of the pen.

    Raises:
        ConfigError: there is nothing at ``path``.
    """
    settings = settled(path)
    if path is not None and not make and not settings.store_path.exists():
        raise ConfigError(f"there is no store at {settings.store_path}; `iai-mcp capture` or `import` makes one")
    from iai_mcp.store import MemoryStore

    with closing(MemoryStore(path, settings=settings)) as store:
        yield store


@contextmanager
def traced(store: MemoryStore) -> Iterator[None]:
    """Leave the trace to the workers where Redis is configured; it is in Redis, or in the spill, at the end."""
    if not store.settings.redis_url:
        yield
        return
    store.enable_provenance_queue()
    try:
        yield
    finally:
        store.disable_provenance_queue()


def print_json(document: dict[str, Any], *, line: bool = False) -> None:
    """Write the one JSON document of a command, or one ``line`` of several."""
    import msgspec

    text = msgspec.json.encode(document)
    text = text if line else msgspec.json.format(text, indent=2)
    sys.stdout.buffer.write(text + b"\n")  # UTF-8, whatever the terminal speaks
    sys.stdout.buffer.flush()


def coloured() -> bool:
    """Whether stdout takes colours: a terminal that can, and nobody has said NO_COLOR."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def screen(width: int | None = None) -> Console:
    """stdout for people: colours on a terminal only; ``width`` counts where there is none."""
    from rich.console import Console

    plainly = None if os.environ.get("NO_COLOR") else "auto"
    found = Console(highlight=False, markup=False, emoji=False, color_system=cast("Any", plainly))
    if not found.is_terminal:
        found.width = width or PIPE_WIDTH
        found.file = cast("IO[str]", _Trimmed())
    return found


class _Trimmed:
    """stdout without the blanks with which Rich fills its lines: they are noise to another program."""

    def write(self, text: str) -> int:
        return sys.stdout.write(re.sub(r" +$", "", text, flags=re.MULTILINE))

    def flush(self) -> None:
        sys.stdout.flush()


def stderr() -> Console:
    """stderr for people."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


class Show(Protocol):
    """What draws progress: so much is done, of so much in all (None: nobody knows), and of what."""

    def __call__(self, done: int, total: int | None = None, what: str | None = None) -> object: ...


@contextmanager
def progress(what: str) -> Iterator[Show]:
    """A bar on stderr while the block runs; nothing where stderr is no terminal."""
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
    """The time that ``option`` was given, in UTC: ISO 8601, or so long ago."""
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
            "nor so long ago, such as 30m, 2h or 7d"
        )
    return time


def filters_of(
    session: str | None, tags: list[str] | None, role: str | None, since: str | None, until: str | None
) -> Filters:
    """The options that choose memories, as the store takes them."""
    from iai_mcp.store import Filters

    return Filters(session, tags or [], role, moment("--since", since), moment("--until", until))
