"""Appending what is certain to be new: never a row twice, whoever wrote the first one, and never out of order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import lancedb
import pytest

import iai_mcp.storage.tables.lane
from iai_mcp.config import Settings
from iai_mcp.entries.parcel import Pair
from iai_mcp.entries.routing import lane_of
from iai_mcp.errors import LeaseLost, StoreUnavailable
from iai_mcp.record import MemoryRecord
from iai_mcp.storage.tables import rows as rows_module
from iai_mcp.storage.tables.write_right import WriteRight
from iai_mcp.store import MemoryStore, RecordsCache
from tests.support import cues, entry


@pytest.fixture
def record_id(store: MemoryStore) -> UUID:
    return store.insert(MemoryRecord(text="the spare key is under the blue flowerpot"))


def numbered(record_id: UUID, *seqs: int, producer: str = "p") -> list[Pair]:
    """Entries as a producer hands them out; each one's cue is its number."""
    return [
        (
            record_id,
            {**entry(str(seq)), "entry_id": f"{producer}-{seq}", "producer": producer, "producer_seq": seq},
        )
        for seq in seqs
    ]


def trace(store: MemoryStore, record_id: UUID) -> list[str]:
    """The record's entries; every row is there once."""
    found = store.get(record_id)
    assert found is not None
    assert store.lane(lane_of(record_id, store.lanes)).count() == len(found.provenance)
    return cues(found.provenance)


Before = Callable[[MemoryStore, UUID, pytest.MonkeyPatch], None]


def we_wrote_it(store: MemoryStore, record_id: UUID, _: pytest.MonkeyPatch) -> None:
    store.append_provenance_batch(numbered(record_id, 1))
    store.append_provenance_batch(numbered(record_id, 2, 3))


def somebody_wrote_it_before_we_came(store: MemoryStore, record_id: UUID, _: pytest.MonkeyPatch) -> None:
    MemoryStore(store.path).append_provenance_batch(numbered(record_id, 1, 2, 3))


def somebody_wrote_it_since_we_last_looked(store: MemoryStore, record_id: UUID, _: pytest.MonkeyPatch) -> None:
    store.append_provenance_batch(numbered(record_id, 1))
    other = MemoryStore(store.path)
    other.append_provenance_batch(numbered(record_id, 2))
    other.append_provenance_batch(numbered(record_id, 3))


def the_disk_failed_after_the_commit(store: MemoryStore, record_id: UUID, patch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    store.append_provenance_batch(numbered(record_id, 1))
    with patch.context() as broken:
        broken.setattr(iai_mcp.storage.tables.lane, "sync_tree", fail)
        with pytest.raises(StoreUnavailable):
            store.append_provenance_batch(numbered(record_id, 2, 3))


def it_was_adopted(store: MemoryStore, record_id: UUID, _: pytest.MonkeyPatch) -> None:
    store.append_provenance_batch(numbered(record_id, 1))
    lane = store.lane(lane_of(record_id, store.lanes))
    rows = lane.rows([], None)
    moved = [{**rows.to_pylist()[0], "entry_id": f"p-{n}", "producer_seq": n, "cue": str(n)} for n in (2, 3)]
    lane.merge(type(rows).from_pylist(moved, schema=rows.schema))


@pytest.mark.parametrize(
    "before",
    [
        we_wrote_it,
        somebody_wrote_it_before_we_came,
        somebody_wrote_it_since_we_last_looked,
        the_disk_failed_after_the_commit,
        it_was_adopted,
    ],
)
def test_what_comes_again_adds_nothing(
    store: MemoryStore, record_id: UUID, before: Before, monkeypatch: pytest.MonkeyPatch
) -> None:
    before(store, record_id, monkeypatch)
    report = store.append_provenance_batch(numbered(record_id, 2, 3, 4))
    assert (report.applied, report.duplicate) == (1, 2)
    assert trace(store, record_id) == ["1", "2", "3", "4"]


def test_what_comes_late_is_there_all_the_same(store: MemoryStore, record_id: UUID) -> None:
    store.append_provenance_batch(numbered(record_id, 5))
    assert store.append_provenance_batch(numbered(record_id, 3)).applied == 1
    assert store.append_provenance_batch(numbered(record_id, 3, 5)).duplicate == 2
    assert trace(store, record_id) == ["5", "3"]


def test_a_key_of_somebody_s_own_counts_once(store: MemoryStore, record_id: UUID) -> None:
    for seq in (1, 2):
        (pair,) = numbered(record_id, seq)
        store.append_provenance_batch([(record_id, {**pair[1], "entry_id": "mine"})])
    assert trace(store, record_id) == ["1"]


def test_a_repeat_of_what_came_with_such_a_key_adds_nothing(store: MemoryStore, record_id: UUID) -> None:
    store.append_provenance_batch(numbered(record_id, 1))
    mine, *others = numbered(record_id, 2, 3)
    assert store.append_provenance_batch([(record_id, {**mine[1], "entry_id": "mine"}), *others]).applied == 2
    assert store.append_provenance_batch(numbered(record_id, 3, 4)).duplicate == 1
    assert trace(store, record_id) == ["1", "2", "3", "4"]


def test_producers_beyond_counting_at_once(store: MemoryStore, record_id: UUID) -> None:
    """More than are asked about in one batch: nobody takes those for new that were not asked about."""
    names = [f"{number:016x}" for number in range(20)]
    pairs = [pair for name in names for pair in numbered(record_id, 1, producer=name)]
    assert store.append_provenance_batch(pairs).applied == 20
    asked = [pair for name in names[:10] for pair in numbered(record_id, 2, producer=name)]
    report = MemoryStore(store.path).append_provenance_batch([*asked, *pairs[10:]])
    assert (report.applied, report.duplicate) == (10, 10)
    assert trace(store, record_id) == ["1"] * 20 + ["2"] * 10


def test_what_is_certain_to_be_new_is_not_looked_for(
    store: MemoryStore, record_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Any:
        raise AssertionError("merged")

    monkeypatch.setattr(lancedb.table.LanceTable, "merge_insert", refuse)
    cache = RecordsCache()
    for seq in (1, 2):
        assert store.append_provenance_batch(numbered(record_id, seq), cache).applied == 1


def test_upkeep_does_not_hide_what_somebody_else_has_written(store: MemoryStore, record_id: UUID) -> None:
    other, lane = MemoryStore(store.path), store.lane(lane_of(record_id, store.lanes))
    store.append_provenance_batch(numbered(record_id, 1))
    other.append_provenance_batch(numbered(record_id, 2, 3))
    lane.maintain(force=True)
    assert store.append_provenance_batch(numbered(record_id, 3, 4)).duplicate == 1
    assert trace(store, record_id) == ["1", "2", "3", "4"]
    assert len({*lane.rows([], ["seq"])["seq"].to_pylist()}) == 4  # no place in the order twice


# -- somebody who could not get the lock, and writes all the same


@pytest.fixture
def rude(store: MemoryStore) -> MemoryStore:
    """A second process, as it were, that does not wait for the lane's lock."""
    return MemoryStore(store.path, settings=Settings(lock_timeout=0.0))


def amid(monkeypatch: pytest.MonkeyPatch, what: Callable[[], object]) -> None:
    """Do something once, in the midst of the next write: its rows are made, and not yet in the table."""
    whole, todo = rows_module.to_arrow, [what]

    def to_arrow(*args: Any) -> Any:
        if todo:
            todo.pop()()
        return whole(*args)

    monkeypatch.setattr(iai_mcp.storage.tables.lane, "to_arrow", to_arrow)


def test_what_they_write_amid_a_write_is_not_written_again(
    store: MemoryStore, rude: MemoryStore, record_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append_provenance_batch(numbered(record_id, 1))
    amid(monkeypatch, lambda: rude.append_provenance_batch(numbered(record_id, 2, 3)))
    assert store.append_provenance_batch(numbered(record_id, 3, 4)).duplicate == 1
    assert sorted(trace(store, record_id)) == ["1", "2", "3", "4"]


def test_what_they_write_under_numbers_of_ours_is_known_afterwards(
    store: MemoryStore, rude: MemoryStore, record_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append_provenance_batch(numbered(record_id, 1))
    amid(monkeypatch, lambda: rude.append_provenance_batch(numbered(record_id, 2, 3)))
    store.append_provenance_batch(numbered(record_id, 2, 3, 4, producer="q"))
    assert store.append_provenance_batch(numbered(record_id, 2, 3, 4)).duplicate == 2
    assert len(trace(store, record_id)) == 7


def test_a_writer_that_was_paused_amid_a_write_is_refused(
    store: MemoryStore, rude: MemoryStore, record_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = lane_of(record_id, store.lanes)

    def take_over() -> None:
        rude.lane(number).raise_fence(2)
        rude.append_provenance_batch(numbered(record_id, 2, 3), right=WriteRight(number, 2))

    store.append_provenance_batch(numbered(record_id, 1), right=WriteRight(number, 1))
    amid(monkeypatch, take_over)
    with pytest.raises(LeaseLost):
        store.append_provenance_batch(numbered(record_id, 2, 3), right=WriteRight(number, 1))
    assert trace(store, record_id) == ["1", "2", "3"]


def test_who_has_no_lock_appends_nothing_unseen(
    store: MemoryStore, rude: MemoryStore, record_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Any:
        raise AssertionError("appended")

    number = lane_of(record_id, store.lanes)
    with store.lane(number)._lock.hold(), monkeypatch.context() as patch:
        patch.setattr(lancedb.table.LanceTable, "add", refuse)
        assert rude.append_provenance_batch(numbered(record_id, 1)).applied == 1


def test_what_they_write_amid_upkeep_stays_in_order(
    store: MemoryStore, rude: MemoryStore, record_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = store.lane(lane_of(record_id, store.lanes))
    store.append_provenance_batch(numbered(record_id, 1))
    whole = lane._erasure.run

    def run() -> None:
        whole()
        rude.append_provenance_batch(numbered(record_id, 2, 3, 4))

    monkeypatch.setattr(lane._erasure, "run", run)
    lane.maintain(force=True)
    assert store.append_provenance_batch(numbered(record_id, 4, 5)).duplicate == 1
    assert trace(store, record_id) == ["1", "2", "3", "4", "5"]
