"""The second entry of a number: whatever way it comes again, it is there once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from uuid import UUID

import pyarrow as pa
import pytest

from iai_mcp.entries.batch import EntryBatch
from iai_mcp.entries.parcel import Parcel
from iai_mcp.entries.wire import decode, encode
from iai_mcp.store import MemoryStore
from tests.pipeline.test_queue import record_id, seen  # noqa: F401
from tests.support import entry
from tests.test_store import _make

PRODUCER = "f" * 16


def parcel(store: MemoryStore, record: UUID, cue: str, seq: int = 1) -> Parcel:
    return Parcel.of(
        store.store_id, 0, PRODUCER, 1.0, [(record, seq, entry(cue, further={"b": [1.5], "a": None}))]
    )


def twin(path: Path, record: UUID) -> MemoryStore:
    """A store with a memory of the same id."""
    store = MemoryStore(path, lanes=1)
    store.insert(_make(id=record))
    return store


def rows(store: MemoryStore) -> pa.Table:
    return pa.concat_tables([*store.lane(0).in_order(100)])


def write(store: MemoryStore, record: UUID, told: Sequence[str]) -> None:
    for cue in told:
        store.append_provenance_batch(EntryBatch.of([parcel(store, record, cue)]))


@pytest.mark.parametrize("order", [*permutations("abc")], ids="".join)
@pytest.mark.parametrize("there", ["a", "b", "ab", "ba", "bca"])
def test_an_import_brings_no_entry_twice(tmp_path: Path, order: tuple[str, ...], there: str) -> None:
    """In the other store another one of the entries came first, and so has the number itself."""
    record = UUID(int=7)
    ours, theirs = twin(tmp_path / "ours", record), twin(tmp_path / "theirs", record)
    write(ours, record, there)
    write(theirs, record, order)
    for _ in range(2):
        ours.merge_entries(rows(theirs))
    assert sorted(seen(ours, record)) == [*"abc"]
    theirs.merge_entries(rows(ours))
    assert sorted(seen(theirs, record)) == [*"abc"]


@pytest.mark.parametrize("batched", [False, True])
def test_entries_come_again_in_any_order_and_after_a_restart(tmp_path: Path, batched: bool) -> None:
    record = UUID(int=7)
    store = twin(tmp_path / "store", record)
    for order in permutations("abc"):
        store = MemoryStore(store.path)  # what one remembers of the producer's numbers is gone
        again = [parcel(store, record, cue) for cue in order]
        again += [decode(encode(one)) for one in again]  # as the spill and Redis hand them over
        for batch in [again] if batched else [[one] for one in again]:
            store.append_provenance_batch(EntryBatch.of(batch))
        assert seen(store, record) == [*"abc"]


@pytest.mark.parametrize("further", ["", "c"])
def test_an_entry_is_there_once_after_the_one_with_its_number_is_forgotten(tmp_path: Path, further: str) -> None:
    record, other = UUID(int=7), UUID(int=8)
    store = twin(tmp_path / "store", record)
    store.insert(_make(id=other))
    write(store, other, ["forged"])
    write(store, record, ["a"])
    store.delete(other)
    for _ in range(2):
        store = MemoryStore(store.path)
        write(store, record, ["a", *further])
    assert seen(store, record) == ["a", *further]
