"""One lane's table of provenance rows: one row per entry, keyed, numbered, durable, kept small.

Every write happens under the lane's lock, checks the writer's fencing token right before the commit, and is
on the disk when it returns. Every read sees the latest commit of any process and one row per ``entry_id``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import numpy as np
import pyarrow as pa

from iai_mcp.durable import replace_file, sync_tree
from iai_mcp.entry import Pair, parse_ts
from iai_mcp.errors import LeaseLost
from iai_mcp.events import emit
from iai_mcp.forgotten import Forgotten
from iai_mcp.lance import Table, quoted, quoted_list, retry_vanished, translated, upkeep
from iai_mcp.leftout import LeftOut, Why
from iai_mcp.locks import WriterLock

__all__ = ["INDEXED", "LANE_SCHEMA", "AppendReport", "LaneTable", "RecordsCache"]

LANE_SCHEMA = pa.schema(
    [
        pa.field("entry_id", pa.string(), nullable=False),  # idempotency key
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("producer", pa.string(), nullable=False),  # the queue that handed the entry out
        pa.field("producer_seq", pa.int64(), nullable=False),  # its own count, from 1
        pa.field("seq", pa.int64(), nullable=False),  # ascending within the lane, in the order applied
        pa.field("ts", pa.string()),  # as given
        pa.field("time", pa.timestamp("us", "UTC")),  # ts parsed, where it parses
        pa.field("cue", pa.string()),
        pa.field("session_id", pa.string()),
        pa.field("recall_id", pa.string()),
        pa.field("client", pa.string()),
        pa.field("rank", pa.int64()),
        pa.field("score", pa.float64()),
        pa.field("rest", pa.string()),  # further keys, as a JSON object
    ]
)
INDEXED = ("entry_id", "record_id")
MAINTAIN_EVERY = 64  # commits; a merge slows by about 0.1 ms per fragment that the index does not cover

_TEXT = ("ts", "cue", "session_id", "recall_id", "client")
_GIVEN = frozenset({*_TEXT, "rank", "score", "entry_id", "producer", "producer_seq"})
_KNOWN_LIMIT = 200_000
# Microseconds from 1677 to 2262: Arrow also reads years that no ``datetime`` holds, which would fail every read.
_ARROW_US = (-(2**63) // 1000, 2**63 // 1000)


@dataclass(frozen=True, slots=True)
class AppendReport:
    """What became of the entries of one write.

    Attributes:
        applied: rows that are new in the lane tables.
        duplicate: entries whose key was there already.
        unknown: entries left out since their record does not exist or was deleted.
    """

    applied: int = 0
    duplicate: int = 0
    unknown: int = 0

    def __add__(self, other: AppendReport) -> AppendReport:
        return AppendReport(
            self.applied + other.applied, self.duplicate + other.duplicate, self.unknown + other.unknown
        )


@dataclass(slots=True)
class RecordsCache:
    """What one drain of a lane remembers from batch to batch.

    Attributes:
        known: ids seen in the records table, with their text form; deletions are looked up beside it.
        token: the fencing token under which the drain writes; None for writers without a lease.
    """

    known: dict[UUID, str] = field(default_factory=dict)
    token: int | None = None


class LaneTable:
    """The table of one lane and this process's right to write it."""

    def __init__(
        self,
        table: Table,
        folder: Path,
        lock: WriterLock,
        token_file: Path,
        forgotten: Forgotten,
        left_out: LeftOut,
        existing: Callable[[list[UUID]], set[UUID]],
        cleanup_age: float,
    ) -> None:
        self._table = table
        self._folder = folder
        self._lock = lock
        self._token_file = token_file
        self._forgotten = forgotten
        self._left_out = left_out
        self._existing = existing
        self._cleanup_age = cleanup_age
        self._seen_version = -1
        self._next_seq = 1
        self._due = False
        self._distinct = -1  # rows in the table when it was last seen free of doubles, and ours since

    # -- writing

    def append(self, pairs: list[Pair], cache: RecordsCache) -> AppendReport:
        """Merge ``pairs`` in order; on return they are durable and readable by any process.

        Raises:
            LeaseLost: a later fencing token than ``cache.token`` has been seen here.
            StoreUnavailable: the place fails; nothing was acknowledged, the same call may be repeated.
        """
        with translated(), self._lock.hold():
            ids = self._ids(pairs, cache.known)
            alive = [(text, entry) for text, (_, entry) in zip(ids, pairs, strict=True) if text is not None]
            unknown = len(pairs) - len(alive)
            self._check_fence(cache.token)
            applied = self._merge(_once(alive)) if alive else 0
            if unknown:
                strangers = (entry for text, (_, entry) in zip(ids, pairs, strict=True) if text is None)
                self._left_out.add(Why.UNKNOWN, ((e["producer"], e["producer_seq"]) for e in strangers))
        return AppendReport(applied, len(pairs) - unknown - applied, unknown)

    def _ids(self, pairs: list[Pair], known: dict[UUID, str]) -> list[str | None]:
        """The record id of each pair as text, None where there is no such record.

        Hashing a UUID is Python code: one look into ``known`` for each pair, not one for each question.
        """
        ids = [known.get(record_id) for record_id, _ in pairs]
        if None in ids:
            self._learn(pairs, known)
            ids = [known.get(record_id) for record_id, _ in pairs]
        if gone := self._forgotten.ids():
            ids = [None if pair[0] in gone else text for text, pair in zip(ids, pairs, strict=True)]
        return ids

    def _learn(self, pairs: list[Pair], known: dict[UUID, str]) -> None:
        if len(known) > _KNOWN_LIMIT:
            known.clear()
        strangers = {record_id for record_id, _ in pairs if record_id not in known}
        known.update((record_id, str(record_id)) for record_id in self._existing(list(strangers)))

    def _merge(self, alive: list[tuple[str, dict[str, Any]]]) -> int:
        started = time.time()
        version = self._table.version
        if version != self._seen_version:
            self._next_seq = self._highest_seq(self._next_seq) + 1
        rows = to_arrow(alive, self._next_seq)
        result = self._table.merge_insert("entry_id").when_not_matched_insert_all().execute(rows)
        sync_tree(self._folder, since=started)
        self._next_seq += len(alive)
        self._distinct += int(result.num_inserted_rows)
        self._seen_version = result.version
        self._due = self._due or version // MAINTAIN_EVERY != result.version // MAINTAIN_EVERY
        return int(result.num_inserted_rows)

    def _highest_seq(self, known: int) -> int:
        query = self._table.search().where(f"seq >= {known}").select(["seq"])
        found = query.to_arrow()["seq"]
        return max(known - 1, int(pa.compute.max(found).as_py()) if len(found) else 0)

    def delete_record(self, record_id: UUID) -> None:
        """Remove every row of a record."""
        with translated(), self._lock.hold():
            where = f"record_id = {quoted(str(record_id))}"
            rows = self.rows([where], ["producer", "producer_seq"])
            keys = zip(rows["producer"].to_pylist(), rows["producer_seq"].to_pylist(), strict=True)
            self._left_out.add(Why.FORGOTTEN, keys)
            self._table.delete(where)
            sync_tree(self._folder)

    # -- fencing

    @property
    def token(self) -> int:
        """The highest fencing token seen here: the high-water mark that outlives a wiped broker."""
        try:
            return int(self._token_file.read_text())
        except FileNotFoundError:
            return 0

    def raise_fence(self, token: int) -> None:
        """Refuse from now on every writer whose token is lower than ``token``.

        Raises:
            LeaseLost: a higher token was here already.
        """
        with translated(), self._lock.hold():
            self._check_fence(token)
            if token > self.token:
                replace_file(self._token_file, str(token).encode())

    def _check_fence(self, token: int | None) -> None:
        if token is not None and token < self.token:
            raise LeaseLost(f"{self._folder.name}: token {token} is stale, {self.token} has been seen")

    # -- upkeep

    def maintain(self, *, force: bool = False) -> bool:
        """Compact, re-index and clean up where enough commits have gone by (or ``force``); True if done."""
        if not (self._due or force):
            return False
        with translated(), self._lock.hold():
            self._due = False
            doubled = self._drop_doubled()
            upkeep(self._table, self._cleanup_age)
            self._seen_version = self._table.version
        emit("compaction", lane=self._folder.stem, doubled=doubled)
        return True

    def _drop_doubled(self) -> int:
        """Remove rows that a writer without the lock left beside another of the same key.

        Reads the whole lane, so only where somebody else has added or removed rows since the last time.
        """
        if self._table.count_rows() == self._distinct:
            return 0
        rows = self._table.search().with_row_id(True).select(["entry_id", "seq"]).to_arrow()
        self._distinct = len(pa.compute.unique(rows["entry_id"]))
        if len(rows) == self._distinct:
            return 0
        kept: set[str] = set()
        doubled: list[int] = []
        for row in rows.sort_by("seq").to_pylist():
            if row["entry_id"] in kept:
                doubled.append(row["_rowid"])
            kept.add(row["entry_id"])
        self._table.delete(f"_rowid IN ({', '.join(map(str, doubled))})")
        return len(doubled)

    # -- reading

    @retry_vanished
    def rows(self, conditions: Iterable[str], columns: list[str] | None = None) -> pa.Table:
        """Raw rows that fit every SQL condition; doubled rows are not yet removed."""
        query = self._table.search()
        if where := " AND ".join(conditions):
            query = query.where(where)
        if columns:
            query = query.select(columns)
        result: pa.Table = query.to_arrow()
        return result

    def entries(self, conditions: Iterable[str]) -> list[dict[str, Any]]:
        """The entries that fit, in order (seq, then producer_seq), each key once."""
        return distinct(self.rows(conditions).to_pylist())

    def by_keys(self, entry_ids: list[str]) -> list[dict[str, Any]]:
        """The entries with these keys."""
        return self.entries([f"entry_id IN ({quoted_list(entry_ids)})"]) if entry_ids else []

    @retry_vanished
    def count(self) -> int:
        """Number of raw rows."""
        return int(self._table.count_rows())

    @retry_vanished
    def stats(self) -> dict[str, int]:
        """Rows, versions, fragments and bytes on disk of this lane's table."""
        size = sum(path.stat().st_size for path in self._folder.rglob("*") if path.is_file())
        fragments = self._table.stats()["fragment_stats"]["num_fragments"]
        versions = sum(1 for path in (self._folder / "_versions").iterdir() if path.suffix == ".manifest")
        return {"rows": self.count(), "versions": versions, "fragments": int(fragments), "bytes": size}


def distinct(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """``rows`` in a record's order, the first of each ``entry_id``, as the dicts that callers know."""
    ordered = sorted(rows, key=lambda row: (row["seq"], row["producer_seq"]))
    return list({row["entry_id"]: from_row(row) for row in reversed(ordered)}.values())[::-1]


def from_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """The entry that a row holds: given keys as they came, ours beside them, nothing for what is null."""
    entry = {key: value for key, value in row.items() if value is not None and key not in ("time", "rest")}
    return {**msgspec.json.decode(row["rest"]), **entry} if row.get("rest") else entry


def _once(alive: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """``alive`` with the first of each key: one that comes twice would be inserted twice."""
    if len({entry["entry_id"] for _, entry in alive}) == len(alive):
        return alive
    by_key: dict[str, tuple[str, dict[str, Any]]] = {}
    for row in alive:
        by_key.setdefault(row[1]["entry_id"], row)
    return list(by_key.values())


def to_arrow(alive: list[tuple[str, dict[str, Any]]], first_seq: int) -> pa.Table:
    """Rows for ``(record id, entry)``, numbered from ``first_seq``; columns are built, not rows."""
    record_ids = [record_id for record_id, _ in alive]
    entries = [entry for _, entry in alive]
    try:
        rests = [_rest(entry) for entry in entries] if set().union(*entries) - _GIVEN else None
        return _columns(record_ids, entries, rests, first_seq)
    except (pa.ArrowException, TypeError, UnicodeEncodeError, OverflowError):
        split = [_split(entry) for entry in entries]
        return _columns(record_ids, [typed for typed, _ in split], [rest for _, rest in split], first_seq)


def _columns(
    record_ids: list[str], entries: list[dict[str, Any]], rests: list[str | None] | None, first_seq: int
) -> pa.Table:
    columns = {
        field.name: pa.array(_values(entries, field.name), field.type)
        for field in LANE_SCHEMA
        if field.name in _GIVEN
    }
    columns["record_id"] = pa.array(record_ids, pa.string())
    columns["seq"] = pa.array(np.arange(first_seq, first_seq + len(entries)))
    columns["time"] = _times(columns["ts"])
    columns["rest"] = pa.nulls(len(entries), pa.string()) if rests is None else pa.array(rests, pa.string())
    return pa.table([columns[name] for name in LANE_SCHEMA.names], schema=LANE_SCHEMA)


def _values(entries: list[dict[str, Any]], name: str) -> list[Any]:
    try:
        return list(map(itemgetter(name), entries))  # twice as fast as asking each entry, and nearly always so
    except KeyError:
        return [entry.get(name) for entry in entries]


def _times(texts: pa.Array) -> pa.Array:
    """What :func:`parse_ts` says of each; Arrow reads a column of times with offsets ten times faster."""
    kind = LANE_SCHEMA.field("time").type
    with suppress(pa.ArrowInvalid):
        times = texts.cast(kind)
        span = pa.compute.min_max(times.cast(pa.int64())).as_py()
        if span["min"] is not None and _ARROW_US[0] <= span["min"] and span["max"] <= _ARROW_US[1]:
            return times
    return pa.array([parse_ts(ts) for ts in texts.to_pylist()], kind)


def _rest(entry: dict[str, Any]) -> str | None:
    if entry.keys() <= _GIVEN:
        return None
    return _json({key: value for key, value in entry.items() if key not in _GIVEN})


def _split(entry: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """``entry`` as what fits the typed columns, and the rest as JSON: nothing a caller gave is refused."""
    typed = {key: _plain(value) for key, value in entry.items() if key in _GIVEN and _fits(key, value)}
    rest = {key: value for key, value in entry.items() if key not in typed and value is not None}
    return typed, _json(rest) if rest else None


def _fits(key: str, value: object) -> bool:
    if key in _TEXT:
        return isinstance(value, str)
    if key == "rank":
        return type(value) is int and abs(value) < 2**63
    if key == "score":
        return type(value) in (int, float)
    return True  # the keys, which the store has set itself


def _plain(value: object) -> object:
    """Text without lone surrogates, which no UTF-8 column takes."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _json(value: dict[str, Any]) -> str:
    try:
        return msgspec.json.encode(value, enc_hook=repr).decode()
    except (UnicodeEncodeError, TypeError, ValueError, RecursionError):
        return msgspec.json.encode({str(_plain(str(key))): repr(item) for key, item in value.items()}).decode()
