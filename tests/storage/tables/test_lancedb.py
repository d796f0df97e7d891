"""What this package relies on in LanceDB, pinned: a new version that behaves otherwise fails here first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lancedb
import pyarrow as pa
import pytest
from lancedb.index import FTS, BTree

from iai_mcp.errors import StoreUnavailable
from iai_mcp.storage.tables.lance import retry_vanished, translated
from iai_mcp.storage.tables.lane_reader import MAINTAIN_EVERY
from tests.support import finished, python

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("number", pa.int64(), nullable=False),
        pa.field("text", pa.string()),
    ]
)
NOW, LONG = timedelta(milliseconds=1), timedelta(hours=1)


def rows(keys: Iterable[str], number: int = 0, schema: pa.Schema = SCHEMA) -> pa.Table:
    return pa.Table.from_pylist([{"key": key, "number": number, "text": f"word {key}"} for key in keys], schema)


def made(folder: Path, schema: pa.Schema = SCHEMA, *, indexed: bool = True) -> Any:
    table = lancedb.connect(folder).create_table("t", schema=schema)
    if indexed:
        table.create_index("key", config=BTree())
    return opened(folder)


def opened(folder: Path, interval: timedelta | None = timedelta(0)) -> Any:
    return lancedb.connect(folder, read_consistency_interval=interval).open_table("t")


def merge(table: Any, new: pa.Table) -> Any:
    return table.merge_insert("key").when_not_matched_insert_all().execute(new)


def keys_of(table: Any) -> list[str]:
    found: list[str] = table.search().select(["key"]).to_arrow()["key"].to_pylist()
    return sorted(found)


def test_a_merge_on_the_indexed_first_column_adds_what_is_new_and_says_how_many(tmp_path: Path) -> None:
    table = made(tmp_path)
    merge(table, rows("abc"))
    table.optimize()
    merge(table, rows("de"))  # not in the index yet
    before = int(table.version)
    result = merge(table, rows("bdfg"))
    assert (result.num_inserted_rows, result.num_updated_rows, result.version) == (2, 0, before + 1)
    assert keys_of(table) == [*"abcdefg"]
    assert [row["number"] for row in merge_numbers(table)] == [0] * 7
    assert "ScalarIndexQuery" in table.search().where("key IN ('a', 'd')").explain_plan()


def merge_numbers(table: Any) -> list[dict[str, Any]]:
    """An existing row stays as it is."""
    merge(table, rows("abcdefg", 9))
    found: list[dict[str, Any]] = table.search().to_list()
    return found


def test_each_commit_is_one_version_and_an_append_tells_its_own(tmp_path: Path) -> None:
    """So a writer can tell that nobody else has committed since its last commit."""
    table = made(tmp_path)
    before = int(table.version)
    assert table.add(rows("a")).version == before + 1
    assert merge(table, rows("b")).version == before + 2
    assert int(opened(tmp_path).version) == before + 2


def test_a_key_that_comes_twice_in_one_merge_is_not_caught(tmp_path: Path) -> None:
    """Why a batch is deduplicated before it is written."""
    table = made(tmp_path)
    try:
        merge(table, rows("aa"))
    except (RuntimeError, ValueError, OSError):
        return
    assert keys_of(table) == ["a", "a"]


@pytest.mark.parametrize(("declared", "indexed", "doubled"), [(False, True, 1), (True, True, 1), (True, False, 0)])
def test_two_writers_double_a_key_where_there_is_an_index(
    tmp_path: Path, declared: bool, indexed: bool, doubled: int
) -> None:
    """Why a lane has one writer at a time, and why no primary key is declared: it does nothing beside an index."""
    key = SCHEMA.field("key").with_metadata({"lance-schema:unenforced-primary-key": "true"})
    table = made(tmp_path, SCHEMA.set(0, key) if declared else SCHEMA, indexed=indexed)
    table.add(rows("xyz", 0, table.schema))
    table.optimize()  # the index has rows
    first, second = opened(tmp_path, None), opened(tmp_path, None)  # both at the same version
    schema = first.schema
    merge(first, rows("ab", 1, schema))
    merge(second, rows("bc", 2, schema))
    assert keys_of(opened(tmp_path)) == sorted("abcxyz" + "b" * doubled)


def beside(work: Callable[[int], object], upkeep: Callable[[], object], times: int) -> list[BaseException]:
    """``work`` so often, with ``upkeep`` in a loop beside it; the errors of the work."""
    stop, failures = threading.Event(), list[BaseException]()

    def tend() -> None:
        while not stop.is_set():
            try:
                upkeep()
            except Exception:  # noqa: BLE001  upkeep may be refused beside a writer; it is tried again
                continue

    thread = threading.Thread(target=tend)
    thread.start()
    try:
        for number in range(times):
            try:
                work(number)
            except BaseException as error:  # noqa: BLE001  told to the caller
                failures.append(error)
    finally:
        stop.set()
        thread.join(60)
    return failures


def test_upkeep_beside_a_writer_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """A writer that did not get the lock in time goes on beside the upkeep of another process."""
    table, other = made(tmp_path), opened(tmp_path)

    def write(number: int) -> None:
        with translated():
            if number % 2:
                merge(table, rows([f"k{number}"]))
            else:
                table.add(rows([f"k{number}"]))

    failures = beside(write, lambda: other.optimize(cleanup_older_than=LONG), MAINTAIN_EVERY)
    assert {type(error) for error in failures} <= {StoreUnavailable}  # a conflict: the call may be repeated
    found = keys_of(opened(tmp_path))
    assert len(found) == len(set(found)) == MAINTAIN_EVERY - len(failures)


def test_a_text_search_beside_upkeep_finds_every_word(tmp_path: Path) -> None:
    table = made(tmp_path)
    table.create_index("text", config=FTS(with_position=False))
    other = opened(tmp_path)

    @retry_vanished
    def found(number: int) -> set[str]:
        hits = table.search("word", query_type="fts", fts_columns="text").limit(1000).to_list()
        return {hit["key"] for hit in hits}

    def work(number: int) -> None:
        table.add(rows([f"k{number}"]))
        assert found(number) == {f"k{n}" for n in range(number + 1)}

    assert beside(work, lambda: other.optimize(cleanup_older_than=LONG), 40) == []


def test_a_reader_sees_the_rows_of_another_process_after_checkout_latest(tmp_path: Path) -> None:
    made(tmp_path)
    current, still = opened(tmp_path), opened(tmp_path, None)
    assert still.count_rows() == 0
    code = "import sys, lancedb; lancedb.connect(sys.argv[1]).open_table('t').add([{'key': 'a', 'number': 1}])"
    finished(python(code, tmp_path))
    assert current.count_rows() == 1
    assert still.count_rows() == 0
    still.checkout_latest()
    assert still.count_rows() == 1


def test_a_cleanup_leaves_versions_that_are_younger_than_its_age(tmp_path: Path) -> None:
    table = made(tmp_path)
    for key in "abc":
        table.add(rows(key))
    reader = opened(tmp_path, None)
    assert reader.count_rows() == 3
    table.delete("key = 'a'")
    table.optimize(cleanup_older_than=LONG)
    assert keys_of(reader) == [*"abc"]  # a slow reader still has its version
    table.optimize(cleanup_older_than=NOW)
    table.optimize(cleanup_older_than=NOW)  # the first one's own versions
    assert len([*(tmp_path / "t.lance" / "_versions").glob("*.manifest")]) <= 2
    assert keys_of(opened(tmp_path)) == [*"bc"]
    with pytest.raises(ValueError, match="no longer exists"):
        reader.checkout(1)
