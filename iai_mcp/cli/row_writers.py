"""Owns the export of rows as JSON lines, CSV or Parquet, to stdout or to a file. Owns no command.

A file appears whole or not at all. Rows are written as they are read, so memory use stays flat.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from iai_mcp.common.private import new_private
from iai_mcp.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Format", "Rows", "Target", "batched", "entry_rows", "row_writer"]

Format = Literal["table", "json", "jsonl", "csv", "parquet"]

_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Rows:
    """A result in columns.

    Attributes:
        schema: the columns.
        tables: the rows, in parts.
        document: turns a row into the JSON object of the ``memory_*`` methods.
    """

    schema: pa.Schema
    tables: Iterable[pa.Table]
    document: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict


def entry_rows(tables: Iterable[pa.Table]) -> Rows:
    """Provenance entries in the columns of the lane tables; their documents are those of ``memory_provenance``."""
    from iai_mcp.storage.tables.rows import LANE_SCHEMA, from_row

    return Rows(LANE_SCHEMA, tables, from_row)


class Target:
    """The destination of a result and its format.

    Raises:
        UsageError: the destination cannot take the format, or no format is given.
    """

    def __init__(self, given: Format | None, output: str | None, *, spreadsheet: bool = False) -> None:
        if output == "":
            raise UsageError("--output is empty: give a file, or leave it out for stdout")
        path = None if output is None or output == "-" else Path(output).expanduser()
        self.path = path
        self.format = given or (_by_suffix(path) if path else "table")
        self.spreadsheet = spreadsheet
        if spreadsheet and self.format != "csv":
            raise UsageError("--spreadsheet is for CSV: add --format csv")
        if path and self.format == "table":
            raise UsageError("--output cannot take a table: give --format json, jsonl, csv or parquet")
        if self.format == "parquet" and path is None and on_terminal():
            raise UsageError("Parquet is binary: give --output FILE, or redirect stdout")

    @property
    def exports(self) -> bool:
        """Whether the format is for all rows, and not for a page."""
        return self.format in ("jsonl", "csv", "parquet")

    @contextmanager
    def opened(self) -> Iterator[IO[bytes]]:
        """Open the destination for bytes; a file gets its name when the block ends without an error."""
        if self.path is None:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        elif self.path.exists() and not self.path.is_file():  # a device or a pipe is not replaced
            with open(self.path, "wb") as place:
                yield place
        else:
            yield from self._replaced(self.path)

    def _replaced(self, path: Path) -> Iterator[IO[bytes]]:
        beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with new_private(beside) as file:
                yield file
            os.replace(beside, path)
        except BaseException:
            with suppress(OSError):
                beside.unlink()
            raise

    def write(self, rows: Rows) -> int:
        """Write all rows; returns their number."""
        count = 0
        how = {"spreadsheet": self.spreadsheet}
        with self.opened() as out, row_writer(self.format, rows.schema, rows.document, out, **how) as write:
            for table in rows.tables:
                write(table)
                count += len(table)
        return count


def on_terminal() -> bool:
    """Whether stdout is a terminal."""
    return sys.stdout.isatty()


def _by_suffix(path: Path) -> Format:
    kinds: dict[str, Format] = {".json": "json", ".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet"}
    if path.suffix.lower() not in kinds:
        raise UsageError(f"the name {path.name!r} implies no format: add --format json, jsonl, csv or parquet")
    return kinds[path.suffix.lower()]


@contextmanager
def row_writer(
    kind: str,
    schema: pa.Schema,
    document: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    out: IO[bytes],
    *,
    spreadsheet: bool = False,
) -> Iterator[Callable[[pa.Table], None]]:
    """A function that writes rows of ``schema`` to ``out`` in the format ``kind``: jsonl, csv or parquet.

    ``spreadsheet``: put a quote in front of a text of a CSV that a spreadsheet would take for a formula.
    """
    if kind == "jsonl":
        import msgspec

        encode = msgspec.json.encode
        yield lambda rows: out.writelines(encode(document(row)) + b"\n" for row in _dicts(rows))
    elif kind == "csv":
        import pyarrow.csv

        with pyarrow.csv.CSVWriter(out, schema) as writer:
            yield (lambda rows: writer.write_table(_no_formulas(rows))) if spreadsheet else writer.write_table
    else:
        import pyarrow.parquet

        with pyarrow.parquet.ParquetWriter(out, schema) as writer:
            yield writer.write_table


_FORMULA = r"^[\s]*[=+\-@\t\r\x{ff1d}\x{ff0b}\x{ff0d}\x{ff20}]"  # full-width signs count too


def _no_formulas(rows: pa.Table) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as compute

    for number, field in enumerate(rows.schema):
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            cells = rows.column(number)
            acts = compute.fill_null(compute.match_substring_regex(cells, _FORMULA), False)
            quoted = compute.binary_join_element_wise(pa.scalar("'", field.type), cells, pa.scalar("", field.type))
            rows = rows.set_column(number, field, compute.if_else(acts, quoted, cells))
    return rows


def _dicts(rows: pa.Table) -> Iterator[dict[str, Any]]:
    for start in range(0, len(rows), _BATCH):
        yield from rows.slice(start, _BATCH).to_pylist()


def batched(documents: Iterable[Mapping[str, Any]], schema: pa.Schema) -> Iterator[pa.Table]:
    """Dicts as tables of ``schema``; times in the dicts may be ISO 8601 text."""
    import itertools

    import pyarrow as pa

    fields = [pa.field(one.name, pa.string() if pa.types.is_timestamp(one.type) else one.type) for one in schema]
    left = iter(documents)
    while part := list(itertools.islice(left, _BATCH)):
        yield pa.Table.from_pylist(part, pa.schema(fields)).cast(schema)
