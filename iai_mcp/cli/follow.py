"""Owns ``provenance --follow``: prints entries as they become readable, from every process that writes them.

It ends with exit code 0 on Ctrl-C and SIGTERM, and when the reader of stdout is gone, even between entries.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from iai_mcp.cli.common import opened, say_lines
from iai_mcp.cli.row_writers import Target, entry_rows, row_writer
from iai_mcp.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["follow"]

POLL_MS = 250  # pause between two polls; a poll takes less than 1 ms a lane if there is nothing new


def follow(store: str | None, params: Mapping[str, Any], target: Target, *, newest: int) -> None:
    """Print the ``newest`` entries that meet ``params``, then every new one.

    Raises:
        UsageError: the format needs an end.
    """
    if target.format in ("json", "parquet"):
        raise UsageError(f"--follow never ends, and a {target.format} file must: use --format table, jsonl or csv")
    from iai_mcp.deployment.supervisor import Stop

    with Stop() as stop, opened(store) as memories:  # the signals first: the imports take a second
        from iai_mcp.core import trail_filters
        from iai_mcp.trail.stream import Follower

        follower = Follower(memories, trail_filters(memories, params), newest=newest)
        try:
            with _printer(target, of_one_record=params["record_id"] is not None) as show:
                while not stop.asked:
                    show(follower.poll())
                    if _reader_left(POLL_MS):
                        break
        except BrokenPipeError:
            # The interpreter's flush at exit must not report it again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _printer(target: Target, *, of_one_record: bool) -> Iterator[Callable[[pa.Table], None]]:
    out = sys.stdout.buffer
    if target.format == "table":
        from iai_mcp.cli.timeline import live_line

        def tell(rows: pa.Table) -> None:
            for row in rows.to_pylist():
                say_lines(live_line(row, of_one_record=of_one_record))

        yield tell
        return
    columns = entry_rows([])
    with row_writer(target.format, columns.schema, columns.document, out, spreadsheet=target.spreadsheet) as write:

        def pass_on(rows: pa.Table) -> None:
            if len(rows):
                write(rows)
            out.flush()  # at once, the header of a CSV included

        yield pass_on


def _reader_left(milliseconds: int) -> bool:
    """Wait up to ``milliseconds``; True, and at once, when the reader of stdout is gone."""
    watch = select.poll()
    watch.register(sys.stdout.fileno(), 0)  # errors and hang-ups are always reported
    return bool(watch.poll(milliseconds))
