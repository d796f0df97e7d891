"""The store: memories in and out, and provenance rows that are there once, in order and for good."""

from __future__ import annotations

import atexit
import json
import random
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import lancedb
import pytest

from iai_mcp.config import Settings
from iai_mcp.entries.routing import lane_of
from iai_mcp.errors import (
    BadParams,
    ConfigError,
    EmbeddingMismatch,
    LeaseLost,
    RecordExists,
    StoreError,
    StoreTooNew,
    StoreUnavailable,
)
from iai_mcp.record import MemoryRecord
from iai_mcp.storage.tables.write_right import WriteRight
from iai_mcp.store import Filters, MemoryStore, RecordsCache, open_store
from iai_mcp.trail.query import TrailFilters, trail
from tests.support import cues, entry, finished, pairs, python


def _make(**fields: Any) -> MemoryRecord:
    """A valid record with a fresh id and an embedding of the default embedder's size."""
    noise = random.Random(uuid4().int)
    given: dict[str, Any] = {
        "text": "the harbour opens at six",
        "embedding": [noise.uniform(-1, 1) for _ in range(384)],
        "session_id": "session-1",
        "role": "user",
        "tags": ["harbour"],
    }
    return MemoryRecord(**{**given, **fields})


# -- the tutorial


def test_a_memory_remembers_being_asked(store: MemoryStore) -> None:
    record = _make(text="Ada keeps the spare key under the blue pot")
    store.insert(record)

    store.append_provenance_batch([(record.id, entry("where is the key?", session="monday"))])
    store.append_provenance_batch([(record.id, entry("blue pot", session="tuesday"))])

    found = store.get(record.id)
    assert found is not None
    assert found.text == "Ada keeps the spare key under the blue pot"
    assert [(item["session_id"], item["cue"]) for item in found.provenance] == [
        ("monday", "where is the key?"),
        ("tuesday", "blue pot"),
    ]


# -- records


def test_what_was_inserted_comes_back_whole(store: MemoryStore) -> None:
    record = _make(created_at=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC))
    assert store.insert(record) == record.id
    found = store.get(str(record.id))
    assert found is not None
    assert list(found.embedding) == pytest.approx(list(record.embedding), rel=1e-6)
    for name in ("id", "text", "session_id", "role", "tags", "created_at", "updated_at"):
        assert getattr(found, name) == getattr(record, name), name
    assert found.provenance == []


def test_the_same_text_may_come_any_number_of_times_but_an_id_only_once(store: MemoryStore) -> None:
    first, second = _make(text="twice"), _make(text="twice")
    store.insert_many([first, second])
    assert store.count() == 2
    with pytest.raises(RecordExists, match=str(first.id)):
        store.insert(_make(id=first.id))
    with pytest.raises(RecordExists):
        store.insert_many([third := _make(), third])
    assert store.count() == 2
    assert store.insert_many([first, fresh := _make()], skip_existing=True) == [fresh.id]


def test_insert_many_is_one_commit(store: MemoryStore) -> None:
    table = lancedb.connect(store.path).open_table("records")
    before = len(table.list_versions())
    store.insert_many([_make() for _ in range(40)])
    table.checkout_latest()
    assert len(table.list_versions()) == before + 1


def test_an_embedding_may_be_missing_but_not_of_another_size(store: MemoryStore) -> None:
    store.insert(bare := _make(embedding=[], text="no vector yet"))
    found = store.get(bare.id)
    assert found is not None
    assert list(found.embedding) == []
    assert [hit.record.id for hit in store.search_text("vector")] == [bare.id]
    with pytest.raises(EmbeddingMismatch, match="3 dimensions, this store has 384"):
        store.insert(_make(embedding=[1.0, 2.0, 3.0]))
    with pytest.raises(EmbeddingMismatch):
        store.search_vector([1.0])


def test_listing_filters_and_goes_newest_first(store: MemoryStore) -> None:
    start = datetime(2026, 5, 1, tzinfo=UTC)
    made = [
        _make(
            text=f"note {day}",
            session_id=f"s{day % 2}",
            role="user" if day < 3 else "assistant",
            tags=["odd"] if day % 2 else ["even", "o'brien"],
            created_at=start + timedelta(days=day),
        )
        for day in range(6)
    ]
    store.insert_many(made)

    def texts(filters: Filters, **page: int) -> list[str]:
        return [record.text for record in store.list_records(filters, **page)]

    assert texts(Filters(), limit=2, offset=1) == ["note 4", "note 3"]
    assert texts(Filters(session="s1")) == ["note 5", "note 3", "note 1"]
    assert texts(Filters(tags=["o'brien"], role="user")) == ["note 2", "note 0"]
    assert texts(Filters(since=start + timedelta(days=1), until=start + timedelta(days=3))) == ["note 2", "note 1"]
    assert store.count(Filters(role="assistant")) == 3


def test_search_finds_by_meaning_and_by_words(store: MemoryStore) -> None:
    near, far = _make(text="apples", embedding=[1.0] * 384), _make(text="pears", embedding=[-1.0] * 384)
    store.insert_many([near, far])
    by_vector = store.search_vector([0.5] * 384, limit=2)
    assert [hit.record.id for hit in by_vector] == [near.id, far.id]
    assert by_vector[0].score == pytest.approx(1.0, abs=1e-5)
    assert [hit.record.id for hit in store.search_text("pears")] == [far.id]
    assert store.search_vector([0.5] * 384, filters=Filters(session="elsewhere")) == []


def test_every_read_sees_what_another_process_has_committed(store: MemoryStore) -> None:
    store.insert(record := _make())
    other = """
import sys
from uuid import UUID
from iai_mcp.store import MemoryStore
from iai_mcp.record import MemoryRecord
store = MemoryStore(sys.argv[1])
store.insert(MemoryRecord(text="from the other side"))
store.append_provenance_batch([(UUID(sys.argv[2]), {"ts": "2026-01-01", "cue": "hello", "session_id": "x"})])
"""
    finished(python(other, store.path, record.id))
    assert store.count() == 2
    assert [hit.record.text for hit in store.search_text("other side", limit=1)] == ["from the other side"]
    found = store.get(record.id)
    assert found is not None
    assert cues(found.provenance) == ["hello"]


# -- provenance


def test_what_an_entry_holds_survives(store: MemoryStore) -> None:
    store.insert(record := _make())
    given: list[dict[str, Any]] = [
        {"ts": "yesterday at noon", "cue": "a", "session_id": "s"},
        {"ts": "2026-01-01T00:00:00Z", "cue": "b", "session_id": "s", "client": "c", "rank": 3, "score": 0.25},
        {"ts": 17, "cue": None, "session_id": 5, "mood": {"deep": [1, 2]}, "rank": "first", "score": "high"},
        {"cue": "broken \ud800 surrogate", "session_id": "s", "rank": 2**70},
    ]
    store.append_provenance_batch([(record.id, item) for item in given])
    found = store.get(record.id)
    assert found is not None
    first, second, third, fourth = found.provenance
    assert (first["ts"], first["cue"]) == ("yesterday at noon", "a")
    assert {**given[1]}.items() <= second.items()
    assert {key: value for key, value in given[2].items() if value is not None}.items() <= third.items()
    assert fourth["rank"] == 2**70
    assert [item["seq"] for item in found.provenance] == sorted(item["seq"] for item in found.provenance)


def test_lane_tables_can_be_read_with_nothing_but_lancedb(store: MemoryStore) -> None:
    store.insert(record := _make())
    store.append_provenance_batch([(record.id, entry("q", extra=1))])
    table = lancedb.connect(store.path).open_table(f"lane_{lane_of(record.id, store.lanes)}")
    (row,) = table.to_arrow().to_pylist()
    assert set(row) == {
        *("entry_id", "record_id", "producer", "producer_seq", "seq", "ts", "time", "cue", "session_id"),
        *("recall_id", "client", "rank", "score", "rest"),
    }
    assert row["record_id"] == str(record.id)
    assert row["time"] == datetime(2026, 11, 23, 12, tzinfo=UTC)
    assert json.loads(row["rest"]) == {"extra": 1}


def test_a_key_counts_once_within_a_batch_and_between_batches(store: MemoryStore) -> None:
    store.insert(record := _make())
    keyed = [(record.id, entry(cue, entry_id=f"key-{cue}")) for cue in "aab"]
    report = store.append_provenance_batch(keyed)
    assert (report.applied, report.duplicate, report.unknown) == (2, 1, 0)
    report = store.append_provenance_batch([*keyed, (record.id, entry("c"))])
    assert (report.applied, report.duplicate) == (1, 3)
    found = store.get(record.id)
    assert found is not None
    assert cues(found.provenance) == ["a", "b", "c"]


def test_entries_without_a_key_are_always_new(store: MemoryStore) -> None:
    store.insert(record := _make())
    for _ in range(2):
        store.append_provenance_batch(pairs(record.id, "xy"))
    found = store.get(record.id)
    assert found is not None
    assert cues(found.provenance) == ["x", "y", "x", "y"]


def test_entries_for_strangers_and_for_the_forgotten_are_counted_and_left_out(store: MemoryStore) -> None:
    kept, gone = _make(), _make()
    store.insert_many([kept, gone])
    cache = RecordsCache()
    store.append_provenance_batch([(gone.id, entry("before")), (kept.id, entry("before"))], cache)
    assert store.delete(gone.id)
    assert not store.delete(gone.id)
    late = [(gone.id, entry("late")), (uuid4(), entry("nobody")), (kept.id, entry("after"))]
    report = store.append_provenance_batch(late, cache)  # the cache still knows the deleted one
    assert (report.applied, report.unknown) == (1, 2)
    assert store.get(gone.id) is None
    assert cues(trail(store, TrailFilters())) == ["before", "after"]


def test_another_process_forgets_and_this_one_knows(store: MemoryStore) -> None:
    store.insert(record := _make())
    cache = RecordsCache()
    store.append_provenance_batch(pairs(record.id, "a"), cache)
    code = "import sys; from iai_mcp.store import MemoryStore; MemoryStore(sys.argv[1]).delete(sys.argv[2])"
    finished(python(code, store.path, record.id))
    assert store.append_provenance_batch(pairs(record.id, "b"), cache).unknown == 1
    assert trail(store, TrailFilters()) == []


def test_an_id_that_is_inserted_again_lives_again(store: MemoryStore) -> None:
    record = _make()
    store.insert(record)
    cache = RecordsCache()
    store.append_provenance_batch(pairs(record.id, "a"), cache)
    store.delete(record.id)
    store.insert(record)
    assert store.append_provenance_batch(pairs(record.id, "b"), cache).applied == 1
    found = store.get(record.id)
    assert found is not None
    assert cues(found.provenance) == ["b"]


@pytest.mark.parametrize("pair", [("no uuid", {}), (uuid4(), "no mapping"), (uuid4(), None)])
def test_a_pair_of_the_wrong_kind_is_refused_before_anything_is_written(store: MemoryStore, pair: Any) -> None:
    store.insert(record := _make())
    with pytest.raises(BadParams):
        store.append_provenance_batch([(record.id, entry("good")), pair])
    assert trail(store, TrailFilters()) == []


def test_the_trail_is_filtered_and_paged(store: MemoryStore) -> None:
    records = [_make() for _ in range(5)]
    store.insert_many(records)
    for minute in range(10):
        stamp = f"2026-11-23T12:{minute:02}:00Z"
        item = {
            "ts": stamp,
            "cue": f"Cue {minute}",
            "session_id": f"s{minute % 2}",
            "recall_id": f"r{minute // 5}",
        }
        store.append_provenance_batch([(records[minute % 5].id, item)])

    def found(limit: int = 100, offset: int = 0, **by: Any) -> list[str]:
        return cues(trail(store, TrailFilters(**by), limit=limit, offset=offset))

    assert found() == [f"Cue {minute}" for minute in range(10)]
    assert found(limit=3, offset=2) == ["Cue 5", "Cue 6", "Cue 7"]
    assert found(session="s1", recall_id="r1") == ["Cue 5", "Cue 7", "Cue 9"]
    assert found(cue="cue 4") == ["Cue 4"]
    assert found(cue="%") == []
    assert found(record_id=records[2].id) == ["Cue 2", "Cue 7"]
    assert found(record_id=records[2].id, limit=1) == ["Cue 7"]
    assert found(record_id=records[2].id, limit=1, offset=1) == ["Cue 2"]
    since = datetime(2026, 11, 23, 12, 8, tzinfo=UTC)
    assert found(since=since) == ["Cue 8", "Cue 9"]
    assert found(until=since - timedelta(minutes=7)) == ["Cue 0"]


def test_a_worker_in_the_same_process_finds_the_store_that_is_open(store: MemoryStore) -> None:
    assert open_store(store.store_id) is store
    later = MemoryStore(store.path)
    assert open_store(store.store_id) is later
    store.enable_provenance_queue()
    assert open_store(store.store_id) is store
    store.close()
    assert open_store(store.store_id) is later
    del later
    assert open_store(store.store_id) is None


def test_a_stale_fencing_token_writes_nothing(store: MemoryStore) -> None:
    store.insert(record := _make())
    number = lane_of(record.id, store.lanes)
    lane, stale = store.lane(number), WriteRight(number, 7)
    lane.raise_fence(7)
    store.append_provenance_batch(pairs(record.id, "a"), right=stale)
    MemoryStore(store.path).lane(number).raise_fence(8)
    with pytest.raises(LeaseLost, match="token 7 is stale"):
        store.append_provenance_batch(pairs(record.id, "b"), right=stale)
    with pytest.raises(LeaseLost):
        lane.raise_fence(7)
    assert lane.token == 8
    assert cues(trail(store, TrailFilters())) == ["a"]


def test_doubled_rows_are_read_once_and_compaction_removes_them(store: MemoryStore) -> None:
    store.insert(record := _make())
    store.append_provenance_batch(pairs(record.id, "abc"))
    number = lane_of(record.id, store.lanes)
    table = lancedb.connect(store.path).open_table(f"lane_{number}")
    table.add(table.to_arrow().slice(0, 2))  # what a writer without the lock may leave
    found = store.get(record.id)
    assert found is not None
    assert cues(found.provenance) == ["a", "b", "c"]
    assert cues(trail(store, TrailFilters())) == ["a", "b", "c"]
    assert store.lane(number).count() == 5
    store.lane(number).maintain(force=True)
    assert store.lane(number).count() == 3


def test_two_stores_writing_the_same_lanes_number_on_from_each_other(store: MemoryStore) -> None:
    store.insert(record := _make())
    other = MemoryStore(store.path)
    for turn in range(6):
        (store if turn % 2 else other).append_provenance_batch(pairs(record.id, [turn]))
    found = store.get(record.id)
    assert found is not None
    assert cues(found.provenance) == list("012345")
    numbers = [item["seq"] for item in found.provenance]
    assert numbers == sorted(set(numbers))


def test_files_versions_and_unindexed_rows_do_not_pile_up(tmp_path: Path) -> None:
    store = MemoryStore(tmp_path / "busy", lanes=1, settings=Settings(cleanup_age=0.0))
    store.insert(record := _make())
    for turn in range(200):
        store.append_provenance_batch(pairs(record.id, [turn]))
    stats = store.lane(0).stats()
    assert stats["rows"] == 200
    assert stats["versions"] < 80
    assert stats["fragments"] < 80
    found = store.get(record.id)
    assert found is not None
    assert cues(found.provenance) == [str(turn) for turn in range(200)]


# -- opening


def test_a_store_keeps_its_own_facts(tmp_path: Path) -> None:
    made = MemoryStore(tmp_path / "s", lanes=7)
    again = MemoryStore(tmp_path / "s")
    assert (again.store_id, again.lanes) == (made.store_id, 7)
    assert again.meta.embedder.dims == 384
    assert again.meta.embedder.name.startswith("builtin")
    with pytest.raises(ConfigError, match="has 7 lanes, not 3"):
        MemoryStore(tmp_path / "s", lanes=3)
    with pytest.raises(ConfigError, match="out of range"):
        MemoryStore(tmp_path / "t", lanes=0)


def test_the_environment_is_read_when_a_store_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MemoryStore().path == tmp_path / "home" / ".iai-mcp" / "store"
    monkeypatch.setenv("IAI_MCP_STORE", str(tmp_path / "elsewhere"))
    assert MemoryStore().path == tmp_path / "elsewhere"


def test_a_store_of_a_newer_schema_is_refused(store: MemoryStore) -> None:
    facts = json.loads((store.path / "store.json").read_text())
    (store.path / "store.json").write_text(json.dumps({**facts, "schema_version": 99}))
    with pytest.raises(StoreTooNew, match="upgrade iai-mcp"):
        MemoryStore(store.path)


def test_a_folder_that_is_no_store_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear diary")
    with pytest.raises(StoreError, match="holds no store"):
        MemoryStore(tmp_path)
    assert not (tmp_path / "store.json").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable):
        MemoryStore(tmp_path / "file" / "below")


def test_another_embedder_means_full_text_until_reembed(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store.insert(record := _make(text="cormorants dive"))
    facts = json.loads((store.path / "store.json").read_text())
    facts["embedder"]["name"] = "somebody:else"
    (store.path / "store.json").write_text(json.dumps(facts))
    other = MemoryStore(store.path)
    assert other.embedder is None
    assert "reembed" in caplog.text
    assert [hit.record.id for hit in other.search_text("cormorants")] == [record.id]


def test_many_processes_may_create_one_store_at_once(tmp_path: Path) -> None:
    code = """
import sys
from iai_mcp.store import MemoryStore
from iai_mcp.record import MemoryRecord
sys.stdin.readline()
store = MemoryStore(sys.argv[1])
store.lane(0)
store.insert(MemoryRecord(text="mine"))
print(store.store_id)
"""
    crowd = [python(code, tmp_path / "shared") for _ in range(3)]
    ids = {finished(process).strip() for process in crowd}
    assert ids == {MemoryStore(tmp_path / "shared").store_id}
    assert MemoryStore(tmp_path / "shared").count() == 3


def test_inserting_and_getting_register_no_exit_handler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[Any] = []
    monkeypatch.setattr(atexit, "register", lambda *call, **_: registered.append(call))
    store = MemoryStore(tmp_path / "quiet")
    store.insert(record := _make())
    store.append_provenance_batch(pairs(record.id, "a"))
    store.get(record.id)
    assert registered == []


def test_importing_the_package_does_not_import_lancedb() -> None:
    code = "import iai_mcp, sys; print({'lancedb', 'pyarrow', 'numpy', 'redis'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_a_store_that_vanishes_is_unavailable_and_comes_back(store: MemoryStore, tmp_path: Path) -> None:
    store.insert(record := _make())
    store.append_provenance_batch(pairs(record.id, "a"))
    store.path.rename(tmp_path / "away")
    with pytest.raises(StoreUnavailable):
        store.append_provenance_batch(pairs(record.id, "b"))
    assert not store.path.exists()
    (tmp_path / "away").rename(store.path)
    store.append_provenance_batch(pairs(record.id, "c"))
    found = store.get(record.id)
    assert found is not None
    assert cues(found.provenance) == ["a", "c"]


def test_ids_come_back_as_uuids(store: MemoryStore) -> None:
    store.insert(record := _make())
    assert isinstance(store.list_records()[0].id, UUID)
    assert [r.id for r in store.stream()] == [record.id]
    with pytest.raises(BadParams, match="not a record id"):
        store.get("seventeen")
