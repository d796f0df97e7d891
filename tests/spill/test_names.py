"""The grammar of spill file names: what is built can be parsed, and any other name is a chain by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from iai_mcp.spill.names import (
    SET_ASIDE_PATTERN,
    SpillName,
    chain_name,
    files_in,
    is_spare,
    name_for_store,
    parse,
    segment_name,
    set_aside_path,
    spare_name,
)

STORE, PRODUCER = "0123456789abcdef" * 2, "ab" * 8
CHAIN = chain_name(STORE, PRODUCER)


def test_a_segment_names_its_chain_and_its_producer() -> None:
    assert parse(segment_name(CHAIN, 1_000_000)) == SpillName(CHAIN, PRODUCER, 1_000_000, set_aside=False)


def test_the_segments_of_a_chain_sort_by_number() -> None:
    numbers = [1_000_012, 999_999, 1_000_000, 998_999]
    names = sorted(segment_name(CHAIN, number) for number in numbers)
    assert names == [segment_name(CHAIN, number) for number in sorted(numbers)]


def test_a_file_set_aside_stays_beside_its_own() -> None:
    aside = set_aside_path(Path("folder") / segment_name(CHAIN, 1_000_000))
    assert aside.parent == Path("folder")
    assert parse(aside.name) == SpillName(CHAIN, PRODUCER, 1_000_000, set_aside=True)
    assert aside.match(SET_ASIDE_PATTERN)


def test_a_foreign_name_is_a_chain_by_itself() -> None:
    assert parse("notes.jsonl") == SpillName("notes.jsonl", None, 0, set_aside=False)
    assert parse("notes.failed-1.jsonl") == SpillName("notes.failed-1.jsonl", None, 0, set_aside=True)


@pytest.mark.parametrize("name", [spare_name(CHAIN), ".hidden.jsonl", "notes.txt", f"{CHAIN}.tmp12"])
def test_other_files_are_no_spill_files(name: str) -> None:
    assert parse(name) is None


def test_a_spare_is_told_from_a_segment() -> None:
    assert is_spare(spare_name(CHAIN))
    assert not is_spare(segment_name(CHAIN, 1_000_000))


def test_a_copy_for_another_store_takes_its_prefix() -> None:
    other = "f" * 32
    name = segment_name(CHAIN, 1_000_000)
    assert name_for_store(name, STORE, other) == segment_name(chain_name(other, PRODUCER), 1_000_000)
    assert name_for_store("notes.jsonl", STORE, other) == "notes.jsonl"


def test_a_folder_is_read_by_name_and_may_be_missing(tmp_path: Path) -> None:
    names = ["b.jsonl", "a.jsonl", "a.failed-1.jsonl", "c.txt"]
    for name in names:
        (tmp_path / name).touch()
    assert [path.name for path, _ in files_in(tmp_path)] == ["a.failed-1.jsonl", "a.jsonl", "b.jsonl"]
    assert files_in(tmp_path / "missing") == []
    assert files_in(tmp_path / "a.jsonl") == []
