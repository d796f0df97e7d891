"""Two processes under one producer id, or one that uses another's numbers: both entries are kept and shown."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from typer.testing import CliRunner

from iai_mcp.broker.redis.keys import Keys
from iai_mcp.cli.app import app
from iai_mcp.cli.dead_letters import retry_letters
from iai_mcp.config import Settings
from iai_mcp.entries.batch import EntryBatch
from iai_mcp.entries.parcel import Parcel
from iai_mcp.entries.routing import lane_of
from iai_mcp.entries.wire import decode, encode
from iai_mcp.maintenance.inventory import FindingKind
from iai_mcp.maintenance.verify import verify
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.storage.dead_letters import DeadLetters
from iai_mcp.store import MemoryStore
from tests.servers import serving, worker
from tests.support import cues, entry, pairs, wait_until
from tests.test_store import _make

PRODUCER = "ab" * 8


@pytest.fixture
def store(tmp_path: Path) -> MemoryStore:
    return MemoryStore(tmp_path / "store", lanes=1)


@pytest.fixture
def record_id(store: MemoryStore) -> UUID:
    return store.insert(_make())


def numbered(entry: Mapping[str, Any], seq: int = 1, producer: str = PRODUCER) -> dict[str, Any]:
    """An entry as a producer has numbered it."""
    return {**entry, "producer": producer, "producer_seq": seq, "entry_id": f"{producer}-{seq}"}


def parcel(store: MemoryStore, record_id: UUID, entries: list[tuple[int, Mapping[str, Any]]]) -> Parcel:
    given = [(record_id, seq, dict(contents)) for seq, contents in entries]
    return Parcel.of(store.store_id, lane_of(record_id, store.lanes), PRODUCER, 1.0, given)


def seen(store: MemoryStore, record_id: UUID) -> list[str]:
    found = store.get(record_id)
    assert found is not None
    return cues(found.provenance)


def dead(store: MemoryStore) -> list[str]:
    """What the dead letters say."""
    return [letter.entry["cue"] for letter in DeadLetters(store.layout).all() if letter.entry is not None]


def clones(store: MemoryStore, make: Callable[[MemoryStore], ProvenanceWriteQueue]) -> list[ProvenanceWriteQueue]:
    """Two queues of one id, as two copies of a virtual machine have them."""
    queues = []
    for _ in range(2):
        queue = make(MemoryStore(store.path, settings=Settings(push_budget_ms=2000)))
        queue.producer = PRODUCER
        queue.start()
        queues.append(queue)
    return queues


def hand_out(queues: list[ProvenanceWriteQueue], record_id: UUID) -> set[str]:
    """Entries of each queue, in turns; what they say."""
    for number in range(8):
        for name, queue in enumerate(queues):
            queue.enqueue(pairs(record_id, [f"{name} says {number}"]))
    return {f"{name} says {number}" for name in range(2) for number in range(8)}


def test_embedded_clones_lose_nothing(store: MemoryStore, record_id: UUID) -> None:
    queues = clones(store, ProvenanceWriteQueue)
    said = hand_out(queues, record_id)
    for queue in queues:
        queue.stop()
    assert sorted(seen(store, record_id)) == sorted(said)
    for name in range(2):
        assert [cue for cue in seen(store, record_id) if cue[0] == str(name)] == [
            f"{name} says {n}" for n in range(8)
        ]
    assert sum(queue.counts.duplicate for queue in queues) == 0
    (breach,) = verify(store.layout, store.settings, settle=0).breaches
    assert breach.kind is FindingKind.CONFLICT
    assert f"8 numbers of two entries in lane 0, such as {PRODUCER}-1" in breach.message
    told = CliRunner().invoke(app, ["verify", "--store", str(store.path)], prog_name="iai-mcp")
    assert told.exit_code == 1
    accepted = CliRunner().invoke(app, ["verify", "--repair", "--store", str(store.path)], prog_name="iai-mcp")
    assert accepted.exit_code == 0, accepted.output
    assert len(seen(store, record_id)) == 16


@pytest.mark.parametrize("kind", ["ours", "stock"])
def test_clones_over_redis_lose_nothing(store: MemoryStore, record_id: UUID, tmp_path: Path, kind: str) -> None:
    with serving(tmp_path / "redis") as server:
        queues = clones(store, lambda of: ProvenanceWriteQueue(of, connection=server.client()))
        said = hand_out(queues, record_id)
        for queue in queues:
            queue.stop()
        with worker(server.url, store.path, kind=kind):
            wait_until(lambda: len(seen(store, record_id)) >= len(said), 60)
    assert sorted(seen(store, record_id)) == sorted(said)


def test_both_of_one_batch_are_kept(store: MemoryStore, record_id: UUID, caplog: pytest.LogCaptureFixture) -> None:
    theirs = [parcel(store, record_id, [(seq, entry(f"{name} {seq}")) for seq in (1, 2)]) for name in "ab"]
    with caplog.at_level(logging.ERROR, "iai_mcp"):
        report = store.append_provenance_batch(EntryBatch.of(theirs))
    assert (report.applied, report.duplicate, report.conflict) == (4, 0, 2)
    assert seen(store, record_id) == ["a 1", "a 2", "b 1", "b 2"]
    (event,) = [one for one in caplog.records if getattr(one, "event", "") == "key_conflict"]
    assert event.fields == {"lane": 0, "entries": 2, "producers": PRODUCER}  # type: ignore[attr-defined]


def test_a_record_that_differs_is_a_conflict_too(store: MemoryStore, record_id: UUID) -> None:
    other = store.insert(_make())
    store.append_provenance_batch([(record_id, numbered(entry("a")))])
    report = store.append_provenance_batch([(other, numbered(entry("a")))])
    assert (report.applied, report.duplicate, report.conflict) == (1, 0, 1)
    assert seen(store, other) == ["a"]


SPELLINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "numbers": {"rank": 3, "score": 1},
    "floats": {"score": 0.1 + 0.2, "further": [1e300, 5e-324, -0.0, 1.0]},
    "not a number": {"score": float("nan"), "further": float("nan")},
    "nothing": {"session_id": None, "further": None},
    "a time": {"ts": dt.datetime(2026, 11, 23, tzinfo=dt.UTC)},
    "a set": {"further": {1}},
    "an object": {"further": UUID(int=7), "kind": int},
    "text of another kind": {"cue": 7, "rank": True, "score": "x"},
    "order": {"z": 1, "a": {"z": 1, "a": 2}},
    "accents": {"cue": "\u00e9\u4e2d\U0001f600", "further": "\u00e9"},
    "large": {"rank": 2**63 - 1, "further": 2**63},
}


@pytest.mark.parametrize("contents", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_one_entry_in_two_spellings_is_a_repetition(
    store: MemoryStore, record_id: UUID, contents: dict[str, Any]
) -> None:
    """An embedded broker hands over the caller's objects; a spill and Redis hand over their JSON."""
    given = parcel(store, record_id, [(1, {**entry("a"), **contents})])
    backwards = dict(reversed({**entry("a"), **contents}.items()))
    spellings = [given, decode(encode(given)), decode(encode(parcel(store, record_id, [(1, backwards)])))]
    reports = [store.append_provenance_batch(EntryBatch.of([one])) for one in spellings]
    assert [(one.applied, one.duplicate, one.conflict) for one in reports] == [(1, 0, 0), (0, 1, 0), (0, 1, 0)]
    assert DeadLetters(store.layout).count() == 0


def test_a_conflict_that_is_met_again_is_a_repetition(store: MemoryStore, record_id: UUID) -> None:
    """A crash between the commit and the acknowledgement repeats the batch."""
    store.append_provenance_batch([(record_id, numbered(entry("a")))])
    reports = [store.append_provenance_batch([(record_id, numbered(entry(cue, further={1.5})))]) for cue in "bbab"]
    assert [(one.applied, one.duplicate, one.conflict) for one in reports[:2]] == [(1, 0, 1), (0, 1, 0)]
    assert seen(store, record_id) == ["a", "b", "a"]  # the third has the cue of the first, and says more
    assert verify(store.layout, store.settings, settle=0).total["handed_out"] == 1


def test_stolen_numbers_cost_their_producer_no_entry(store: MemoryStore, record_id: UUID, tmp_path: Path) -> None:
    """Row 62: somebody reads a client's parcel in Redis, and pushes its next hundred numbers."""
    with serving(tmp_path / "redis") as server:
        client = server.client()
        victim = ProvenanceWriteQueue(
            MemoryStore(store.path, settings=Settings(push_budget_ms=2000)), connection=client
        )
        victim.start()
        victim.enqueue(pairs(record_id, ["first"]))
        pending = Keys("", store.store_id).lane(0, "pending")
        (raw,) = client.lrange(pending, 0, -1)
        theirs = decode(raw)  # type: ignore[arg-type]
        for seq in range(theirs.seqs[-1] + 1, theirs.seqs[-1] + 101):
            forged = [(record_id, seq, entry(f"forged {seq}"))]
            client.rpush(pending, encode(Parcel.of(store.store_id, 0, theirs.producer, theirs.pushed, forged)))
        for number in range(11):
            victim.enqueue(pairs(record_id, [f"mine {number}"]))
        with worker(server.url, store.path, kind="ours"):
            wait_until(lambda: len(seen(store, record_id)) >= 112, 60)
        victim.stop()
    mine = [cue for cue in seen(store, record_id) if "forged" not in cue]
    assert mine == ["first", *(f"mine {number}" for number in range(11))]
    told = CliRunner().invoke(app, ["verify", "--store", str(store.path)], prog_name="iai-mcp")
    assert told.exit_code == 1
    assert "BROKEN: conflict: 11 numbers of two entries in lane 0" in told.stdout


def test_an_id_that_the_caller_chose_adds_nothing_the_second_time(store: MemoryStore, record_id: UUID) -> None:
    for cue in "ab":
        store.append_provenance_batch([(record_id, entry(cue, entry_id="mine"))])
    assert seen(store, record_id) == ["a"]
    assert dead(store) == []


def test_a_chosen_id_that_spells_a_producers_key_costs_nobody_an_entry(
    store: MemoryStore, record_id: UUID
) -> None:
    store.append_provenance_batch([(record_id, entry("chosen", entry_id=f"{PRODUCER}-1"))])
    store.append_provenance_batch(EntryBatch.of([parcel(store, record_id, [(1, entry("produced"))])]))
    assert seen(store, record_id) == ["chosen", "produced"]


def test_rows_that_a_writer_without_the_lock_has_left_are_compared_when_they_are_cleaned_up(
    store: MemoryStore, record_id: UUID
) -> None:
    store.append_provenance_batch([(record_id, numbered(entry("a"))), (record_id, numbered(entry("c"), 2))])
    table = store.lane(0)._table
    rows = table.search().to_arrow().to_pylist()
    stray = [{**row, "seq": row["seq"] + 2, "cue": "b" if row["cue"] == "a" else "c"} for row in rows]
    table.add(stray)
    store.lane(0).maintain(force=True)
    assert seen(store, record_id) == ["a", "c"]
    assert dead(store) == ["b"]
    (breach,) = verify(store.layout, store.settings, settle=0).breaches
    assert (breach.kind, breach.source) == ("conflict", "dead_letters")
    letters = DeadLetters(store.layout).all()
    for _ in range(2):  # the second time as after a crash before the letters were removed
        retry_letters(store, letters)
    assert seen(store, record_id) == ["a", "c", "b"]
    assert verify(store.layout, store.settings, settle=0).clean


def test_an_import_compares_too(store: MemoryStore, record_id: UUID) -> None:
    store.append_provenance_batch([(record_id, numbered(entry("a"))), (record_id, numbered(entry("c"), 2))])
    rows = store.lane(0)._table.search().to_arrow()
    cue = rows.schema.get_field_index("cue")
    theirs = rows.set_column(cue, rows.schema.field("cue"), [["b", "c"]])
    report, _ = store.merge_entries(theirs)
    assert (report.applied, report.duplicate, report.conflict) == (1, 1, 1)
    assert seen(store, record_id) == ["a", "c", "b"]


def test_one_key_in_two_lanes_is_found_by_verify(tmp_path: Path) -> None:
    store = MemoryStore(tmp_path / "lanes", lanes=2)
    ids = {lane_of(one, 2): one for one in store.insert_many([_make() for _ in range(20)])}
    for lane, cue in ((0, "a"), (1, "b")):
        store.append_provenance_batch([(ids[lane], numbered(entry(cue)))])
    store.append_provenance_batch([(ids[0], numbered(entry("c"), 2))])
    assert [seen(store, ids[lane]) for lane in (0, 1)] == [["a", "c"], ["b"]]
    (breach,) = verify(store.layout, store.settings, settle=0).breaches
    assert breach.kind is FindingKind.CONFLICT
    assert f"{PRODUCER}-1" in breach.message
    result = CliRunner().invoke(app, ["verify", "--store", str(store.path)], prog_name="iai-mcp")
    assert result.exit_code == 1
    again = CliRunner().invoke(app, ["verify", "--repair", "--store", str(store.path)], prog_name="iai-mcp")
    assert again.exit_code == 0, again.output
    assert verify(store.layout, store.settings, settle=0).clean
    assert [seen(store, ids[lane]) for lane in (0, 1)] == [["a", "c"], ["b"]]
