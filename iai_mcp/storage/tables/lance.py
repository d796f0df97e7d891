"""What every table of a store shares: typed handles, filters, translated errors, upkeep.

LanceDB raises ``RuntimeError``, ``ValueError`` and ``OSError`` with prose inside; :func:`translated` turns
what concerns the place into :class:`StoreUnavailable` and lets the rest through.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, ParamSpec, TypeVar

from iai_mcp.common.times import as_utc
from iai_mcp.errors import StoreUnavailable

__all__ = ["Table", "matches", "quoted", "quoted_list", "retry_vanished", "sql_time", "translated", "upkeep"]

Table = Any  # lancedb.table.Table, which is not typed

P = ParamSpec("P")
R = TypeVar("R")

# Lance's own words for trouble with the place, as opposed to trouble with the data.
_PLACE = re.compile(
    r"No space left|Permission denied|Read-only file system|Input/output error|Too many open files|"
    r"LanceError\(IO\)|IO error|lance error: Not found|was not found|Disk quota|Stale file handle|"
    r"[Cc]ommit conflict|Too many concurrent writers",
)


@contextmanager
def translated() -> Iterator[None]:
    """Raise :class:`StoreUnavailable` for what concerns the place: disk, permissions, a missing folder."""
    try:
        yield
    except StoreUnavailable:
        raise
    except OSError as error:
        raise StoreUnavailable(str(error)) from error
    except (RuntimeError, ValueError) as error:
        if _PLACE.search(str(error)):
            raise StoreUnavailable(str(error).split(", /root")[0].splitlines()[0]) from error
        raise


def retry_vanished(read: Callable[P, R]) -> Callable[P, R]:
    """Repeat a read once: a cleanup may have removed the version that a slow reader had open."""

    @functools.wraps(read)
    def again(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with translated():
                return read(*args, **kwargs)
        except StoreUnavailable:
            with translated():
                return read(*args, **kwargs)

    return again


def quoted(text: str) -> str:
    """``text`` as an SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def quoted_list(texts: Sequence[str]) -> str:
    """``texts`` as what stands between the brackets of an SQL ``IN``."""
    return ", ".join(quoted(text) for text in texts)


def sql_time(time: datetime) -> str:
    """``time`` as an SQL timestamp literal in UTC; naive times are UTC."""
    aware = as_utc(time)
    return f"timestamp '{aware.isoformat(sep=' ', timespec='microseconds')}'"


def matches(**columns: str | None) -> list[str]:
    """One SQL condition for each column that is given."""
    return [f"{name} = {quoted(value)}" for name, value in columns.items() if value is not None]


def upkeep(table: Table, cleanup_age: float) -> None:
    """Compact small fragments, bring the indexes up to date, remove versions older than ``cleanup_age`` s."""
    with translated():
        table.optimize(cleanup_older_than=timedelta(seconds=max(cleanup_age, 0.001)))
