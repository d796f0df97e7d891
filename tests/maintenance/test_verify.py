"""``iai-mcp verify``: every entry that was handed out is found somewhere, or has a name; and what mends what."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import lancedb
import numpy as np
import pyarrow.compute as pc
import pytest
from typer.testing import CliRunner, Result

from iai_mcp.cli.app import app
from iai_mcp.common.arrays import repeated
from iai_mcp.config import Settings
from iai_mcp.entries.parcel import Parcel
from iai_mcp.entries.routing import lane_of
from iai_mcp.errors import BadParams, StoreUnavailable
from iai_mcp.maintenance.ledger import EntryState, LedgerBuilder, out_of_order
from iai_mcp.maintenance.verify import Report, verify
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.spill.writer import Spill
from iai_mcp.storage.dead_letters import DeadLetters
from iai_mcp.storage.tables.lane import LaneTable
from iai_mcp.store import MemoryStore
from tests.servers import Server, serving
from tests.support import cues, entry, pairs, python
from tests.test_store import _make


@pytest.fixture(autouse=True)
def _no_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IAI_MCP_EMBEDDER", "none")


@pytest.fixture
def record_id(store: MemoryStore) -> UUID:
    return store.insert(_make())


@pytest.fixture
def overflow(home: Path) -> Path:
    return home / ".iai-mcp" / ".provenance-overflow"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "redis") as running:
        yield running


def look(store: MemoryStore, **settings: Any) -> Report:
    """A report, without the pause before the second look."""
    return verify(store.layout, Settings(**settings), settle=0)


def kinds(report: Report) -> list[str]:
    return sorted(finding.kind for finding in report.breaches)


def run(store: MemoryStore, *args: str, code: int) -> Result:
    """The command, in this process."""
    result = CliRunner().invoke(app, ["verify", *args, "--store", str(store.path)], prog_name="iai-mcp")
    assert result.exit_code == code, (result.output, result.exception)
    return result


def table_of(store: MemoryStore, record_id: UUID) -> Any:
    """The lane's table as LanceDB itself opens it, past all our care."""
    return lancedb.connect(store.path).open_table(f"lane_{lane_of(record_id, store.lanes)}")


def seen(store: MemoryStore, record_id: UUID) -> list[str]:
    found = store.get(record_id)
    assert found is not None
    return cues(found.provenance)


def leave_spill(store: MemoryStore, folder: Path, record_id: UUID, what: list[str]) -> None:
    """What a client leaves that died with entries in its spill."""
    producer = "ab" * 8
    spill = Spill(store.store_id, producer, folder)
    for seq, cue in enumerate(what, 1):
        lane = lane_of(record_id, store.lanes)
        spill.append([Parcel.of(store.store_id, lane, producer, 1.0, [(record_id, seq, entry(cue))])], folder)
    spill.close()


# -- the arithmetic


def test_an_entry_counts_once_at_its_most_advanced_place() -> None:
    builder = LedgerBuilder()
    builder.add_seqs(EntryState.SPILLED, "a", [1, 2, 3])
    builder.add_seqs(EntryState.PENDING, "a", [2, 3, 9])
    builder.add_seqs(EntryState.APPLIED, "a", [3, 3, 5])
    builder.add_seqs(EntryState.APPLIED, "b", [2])
    first, second = builder.build()
    assert (first.producer, first.handed_out, first.gaps, first.missing) == ("a", 9, ((4, 4), (6, 8)), 4)
    states = (EntryState.SPILLED, EntryState.PENDING, EntryState.APPLIED)
    assert [first.counts[state] for state in states] == [1, 2, 2]
    assert (second.producer, second.handed_out, second.gaps) == ("b", 2, ((1, 1),))


def test_nothing_handed_out_is_nothing_to_account_for() -> None:
    assert LedgerBuilder().build() == []
    assert out_of_order(*[np.zeros(0, np.int64)] * 3).tolist() == []


def test_order_is_per_producer_within_a_record() -> None:
    builder = LedgerBuilder()
    keys = builder.keys(["a", "b"], [0, 0, 1, 0, 0, 1], [1, 5, 1, 2, 3, 2])
    records = np.array([7, 7, 7, 7, 8, 7])
    late = out_of_order(records, np.arange(6), keys)
    assert [builder.name(key) for key in keys[late]] == ["a-2"]  # a-3 is another record's, b counts for itself
    assert out_of_order(records, np.array([0, 3, 1, 2, 4, 5]), keys).tolist() == [False] * 6
    assert repeated(keys[[0, 1, 0, 0]]).tolist() == [False, False, True, True]


# -- a sound store


def test_every_end_of_an_entry_is_accounted_for(store: MemoryStore, record_id: UUID, overflow: Path) -> None:
    gone, stranger = store.insert(_make()), uuid4()
    queue = ProvenanceWriteQueue(store)
    queue.start()
    queue.enqueue([*pairs(record_id, "abc"), *pairs(stranger, "d"), *pairs(gone, "ef")])
    assert queue.flush(30)
    store.delete(gone)
    store.append_provenance_batch(pairs(record_id, "gh"))  # a producer of its own
    letters = DeadLetters(store.layout)
    dead = {**entry("x"), "producer": queue.producer, "producer_seq": 7, "entry_id": f"{queue.producer}-7"}
    letters.add_entry(0, (record_id, dead), "it would not go")
    leave_spill(store, overflow, record_id, ["i", "j"])
    store.append_provenance_batch(  # the first of them has been applied by now
        [(record_id, {**entry("i"), "producer": "ab" * 8, "producer_seq": 1, "entry_id": "ab" * 8 + "-1"})]
    )
    queue.stop()

    report = look(store)
    assert report.clean, report.breaches
    total = {name: number for name, number in report.total.items() if number}
    assert total == {"handed_out": 11, "applied": 6, "unknown": 1, "forgotten": 2, "dead": 1, "spilled": 1}
    assert len(report.producers) == 3


def test_an_id_that_the_caller_gave_twice_is_no_gap(store: MemoryStore, record_id: UUID) -> None:
    queue = ProvenanceWriteQueue(store)
    queue.start()
    for given in ("mine", "mine", "", None, 5):
        queue.enqueue([(record_id, entry("x", entry_id=given))])
        assert queue.flush(30)
    queue.stop()
    store.append_provenance_batch([(record_id, entry("y", entry_id="mine")), (record_id, entry("z"))])
    report = look(store)
    assert report.clean, report.breaches
    assert (report.total["applied"], report.total["duplicate"], report.total["dead"]) == (5, 2, 0)


def test_a_direct_write_that_fails_uses_up_its_numbers_and_says_so(
    store: MemoryStore, record_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append_provenance_batch(pairs(record_id, "a"))
    with monkeypatch.context() as broken:

        def full(*_: object) -> None:
            raise StoreUnavailable("no space left")

        broken.setattr(LaneTable, "append", full)
        with pytest.raises(StoreUnavailable):
            store.append_provenance_batch(pairs(record_id, "bc"))
    with pytest.raises(BadParams):
        store.append_provenance_batch([*pairs(record_id, "d"), (record_id, "no mapping")])  # type: ignore[list-item]
    store.append_provenance_batch(pairs(record_id, "e"))
    report = look(store)
    assert report.clean, report.breaches
    assert (report.total["handed_out"], report.total["refused"]) == (4, 2)


def test_a_dead_letter_that_comes_late_is_no_disorder_and_a_dropped_one_no_loss(
    store: MemoryStore, record_id: UUID
) -> None:
    def numbered(seq: int) -> dict[str, Any]:
        return {**entry(seq), "producer": "p", "producer_seq": seq, "entry_id": f"p-{seq}"}

    letters = DeadLetters(store.layout)
    letters.add_entry(0, (record_id, numbered(1)), "it would not go")
    letters.add_entry(0, (record_id, numbered(2)), "nor would this")
    store.append_provenance_batch([(record_id, numbered(3))])
    first, second = letters.all()
    for command in (["dead", "retry", first.id], ["dead", "drop", second.id]):
        assert CliRunner().invoke(app, [*command, "--store", str(store.path)]).exit_code == 0
    assert seen(store, record_id) == ["3", "1"]
    report = look(store)
    assert report.clean, report.breaches
    assert (report.total["applied"], report.total["dropped"]) == (2, 1)


def test_looking_changes_nothing(store: MemoryStore, record_id: UUID, overflow: Path) -> None:
    store.append_provenance_batch(pairs(record_id, "abc"))
    leave_spill(store, overflow, record_id, ["x"])
    table_of(store, record_id).delete("cue = 'b'")

    def everything() -> dict[str, str]:
        return {
            str(path): hashlib.sha256(path.read_bytes()).hexdigest()
            for root in (store.path, overflow)
            for path in sorted(root.rglob("*"))
            if path.is_file()
        }

    before = everything()
    run(store, code=1)
    assert everything() == before


def test_without_a_store_there_is_nothing_to_verify_and_none_is_made(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["verify", "--store", str(tmp_path / "none")])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: there is no store")
    assert not (tmp_path / "none").exists()


# -- what can be broken


def test_lost_entries_are_named_and_accepted_on_request(store: MemoryStore, record_id: UUID) -> None:
    store.append_provenance_batch(pairs(record_id, "abcdefg"))
    (ledger,) = look(store).producers
    table_of(store, record_id).delete("cue IN ('b', 'c', 'f')")

    said = run(store, code=1).stdout
    (line,) = [line for line in said.splitlines() if line.startswith("BROKEN")]
    assert line.startswith(f"BROKEN: lost: 3 entries of producer {ledger.producer}: 2-3, 6 -> ")

    document = json.loads(run(store, "--repair", "--json", code=0).stdout)
    assert document["repaired"] == [f"accepted as lost: 3 entries of producer {ledger.producer}: 2-3, 6"]
    assert document["total"] == {**document["total"], "handed_out": 7, "applied": 4, "accepted": 3, "lost": 0}
    assert json.loads(run(store, "--json", code=0).stdout)["clean"]
    table_of(store, record_id).delete("cue = 'd'")  # what is new is found again
    assert json.loads(run(store, "--json", code=1).stdout)["producers"][0]["lost"] == [[4, 4]]


def test_doubled_rows_are_counted_and_removed(store: MemoryStore, record_id: UUID) -> None:
    store.append_provenance_batch([*pairs(record_id, "abc"), (record_id, entry("d", entry_id="mine"))])
    table = table_of(store, record_id)
    table.add(table.search().where("cue IN ('b', 'd')").to_arrow())
    report = look(store)
    assert kinds(report) == ["doubled"]
    assert (report.total["applied"], sum(lane.doubled for lane in report.lanes)) == (4, 2)

    assert "removed 2 doubled rows" in run(store, "--repair", code=0).stderr
    assert table_of(store, record_id).count_rows() == 4
    assert seen(store, record_id) == ["a", "b", "c", "d"]


def test_rows_in_the_wrong_lane_are_moved_to_where_reads_find_them(store: MemoryStore, record_id: UUID) -> None:
    store.append_provenance_batch(pairs(record_id, "ab"))
    right = table_of(store, record_id)
    wrong = (lane_of(record_id, store.lanes) + 1) % store.lanes
    store.lane(wrong)
    lancedb.connect(store.path).open_table(f"lane_{wrong}").add(right.search().where("cue = 'a'").to_arrow())
    right.delete("cue = 'a'")
    report = look(store)
    assert kinds(report) == ["misplaced"]
    assert report.lanes[wrong].misplaced == 1

    run(store, "--repair", code=0)
    assert sorted(seen(store, record_id)) == ["a", "b"]
    assert store.lane(wrong).count() == 0


def test_entries_out_of_order_are_named(store: MemoryStore, record_id: UUID) -> None:
    store.append_provenance_batch(pairs(record_id, "abc"))
    table_of(store, record_id).update(where="cue = 'a'", values={"seq": 99})
    report = look(store)
    assert kinds(report) == ["out_of_order"]
    assert [key[16:] for lane in report.lanes for key in lane.out_of_order] == ["-1"]
    run(store, "--repair", code=0)
    assert look(store).clean


def test_rows_of_memories_that_do_not_exist_are_deleted(store: MemoryStore, record_id: UUID) -> None:
    other = store.insert(_make())
    store.append_provenance_batch([*pairs(record_id, "abc"), *pairs(other, "d")])
    lancedb.connect(store.path).open_table("records").delete(f"id = '{record_id}'")
    report = look(store)
    assert kinds(report) == ["unknown_records"]
    assert sum(lane.unknown for lane in report.lanes) == 3

    run(store, "--repair", code=0)
    report = look(store)
    assert (report.total["applied"], report.total["forgotten"]) == (1, 3)
    assert table_of(store, record_id).count_rows(f"record_id = '{record_id}'") == 0


def damage(folder: Path, how: str) -> None:
    """Break a table's data, or what describes it."""
    (data, *_) = sorted((folder / "data").iterdir())
    if how == "cut":
        data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    elif how == "gone":
        data.unlink()
    else:
        for manifest in (folder / "_versions").iterdir():
            manifest.write_bytes(b"xx")


@pytest.mark.parametrize("how", ["cut", "gone", "undescribed"])
def test_a_lane_that_cannot_be_read_is_said_and_the_others_are_counted(
    store: MemoryStore, record_id: UUID, how: str
) -> None:
    other = store.insert(_make())
    while lane_of(other, store.lanes) == lane_of(record_id, store.lanes):
        other = store.insert(_make())
    store.append_provenance_batch([*pairs(record_id, "abc"), *pairs(other, "de")])
    lane = lane_of(record_id, store.lanes)
    damage(store.path / f"lane_{lane}.lance", how)

    document = json.loads(run(store, "--json", code=1).stdout)
    (broken,) = [look for look in document["lanes"] if look["error"]]
    assert broken["lane"] == lane
    assert document["total"]["applied"] == 2
    unreadable, lost = document["breaches"]
    assert (unreadable["kind"], lost["kind"]) == ("unreadable", "lost")
    assert unreadable["message"].startswith(f"lane {lane} cannot be read: ")
    assert "first" in lost["remedy"]


def test_rows_that_are_no_entries_are_counted(store: MemoryStore, record_id: UUID) -> None:
    store.append_provenance_batch([*pairs(record_id, "ab"), (record_id, entry("c", more=1))])
    table = table_of(store, record_id)
    table.update(where="cue = 'a'", values={"record_id": "no id"})
    table.update(where="cue = 'c'", values={"rest": "{no JSON"})
    report = look(store)
    assert kinds(report) == ["unsound_rows"]
    assert sum(lane.unreadable for lane in report.lanes) == 2


# -- files


def test_an_orphaned_spill_is_a_warning_and_is_replayed(
    store: MemoryStore, record_id: UUID, overflow: Path
) -> None:
    leave_spill(store, overflow, record_id, ["a", "b"])
    aside = overflow / "broken.failed-1.jsonl"
    aside.write_text("no entry\n")
    stray = store.path / ".store.json.1.2.tmp"
    stray.write_text("{")
    os.utime(stray, (1, 1))
    said = run(store, code=0).stdout
    assert [line.split(":")[1].strip() for line in said.splitlines() if line.startswith("warning")] == [
        "orphaned",
        "set aside",
        "stale files",
    ]
    assert "every entry is accounted for" in said

    run(store, "--repair", code=0)
    assert seen(store, record_id) == ["a", "b"]
    assert [path.name for path in overflow.iterdir()] == [aside.name]
    assert not stray.exists()
    assert [warning.kind for warning in look(store).warnings] == ["set_aside"]


def test_a_half_written_line_of_the_log_hides_no_later_one(store: MemoryStore) -> None:
    queue = ProvenanceWriteQueue(store)
    queue.start()
    queue.enqueue(pairs(uuid4(), "a"))
    assert queue.flush(30)
    with open(store.layout.exclusions, "ab") as file:
        file.write(b'{"why":"unk')
    queue.enqueue(pairs(uuid4(), "b"))
    assert queue.flush(30)
    queue.stop()
    assert look(store).total["unknown"] == 2


# -- processes


HOLDING = """
import sys, time, uuid
from iai_mcp.entries.routing import lane_of
from iai_mcp.errors import StoreUnavailable
from iai_mcp.storage.tables.lane import LaneTable
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.store import MemoryStore
store, held, free = MemoryStore(sys.argv[1]), uuid.UUID(sys.argv[2]), uuid.UUID(sys.argv[3])
append = LaneTable.append
def some(self, batch, *args, **kwargs):
    if held.hex in batch.ids:
        raise StoreUnavailable("not now")
    return append(self, batch, *args, **kwargs)
LaneTable.append = some
queue = ProvenanceWriteQueue(store)
queue.start()
queue.enqueue([(held, {"cue": "a"}), (held, {"cue": "b"}), (free, {"cue": "c"})])
while not store.get(free).provenance:
    time.sleep(0.01)
print(queue.producer, flush=True)
time.sleep(60)
"""


def test_what_a_living_process_holds_is_not_lost_until_it_dies(store: MemoryStore, record_id: UUID) -> None:
    other = store.insert(_make())
    while lane_of(other, store.lanes) == lane_of(record_id, store.lanes):
        other = store.insert(_make())
    process = python(HOLDING, store.path, record_id, other)
    try:
        assert process.stdout is not None
        producer = process.stdout.readline().strip()
        report = look(store)
        assert report.clean, report.breaches
        assert (report.total["applied"], report.total["in_memory"]) == (1, 2)
        assert any(producer in note for note in report.notes)
        process.send_signal(signal.SIGKILL)
        process.wait(20)
        report = look(store)
        assert kinds(report) == ["lost"]
        assert f"2 entries of producer {producer}: 1-2" in report.breaches[0].message
    finally:
        process.kill()
        process.communicate(timeout=20)


def test_a_stopped_queue_leaves_no_sign_of_life(store: MemoryStore, record_id: UUID) -> None:
    queue = ProvenanceWriteQueue(store)
    queue.start()
    assert [*store.layout.locks.glob("producer-*")]
    (store.layout.locks / "producer-dead.lock").touch()  # of a process that was killed
    queue.stop()
    queue.start()
    queue.stop()
    assert [*store.layout.locks.glob("producer-*")] == []


# -- Redis


def test_what_waits_in_redis_counts_and_a_redis_that_is_away_is_said(
    store: MemoryStore, record_id: UUID, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = ProvenanceWriteQueue(
        MemoryStore(store.path, settings=Settings(push_budget_ms=2000)), connection=server.client()
    )
    queue.start()
    queue.enqueue(pairs(record_id, "abc"))
    queue.enqueue(pairs(record_id, "de"))
    broker: Any = queue._broker
    lane = lane_of(record_id, store.lanes)
    lease = broker.lease(lane)
    assert len(broker.claim(lease, 3, 0.0)) == 1
    server.client().rpush(broker.keys.lane(lane, "pending"), b"no item")
    queue.stop()

    report = look(store, redis_url=server.url)
    assert report.clean, report.breaches
    assert (report.total["handed_out"], report.total["in_flight"], report.total["pending"]) == (5, 3, 2)
    assert any("1 item in Redis that cannot be read" in note for note in report.notes)

    server.client().lpop(broker.keys.lane(lane, "pending"))
    report = look(store, redis_url=server.url)
    assert [finding.message for finding in report.breaches] == [f"3 entries of producer {queue.producer}: 1-3"]

    server.kill()
    report = look(store, redis_url=server.url)
    assert kinds(report) == ["unreadable"]
    assert "what waits in Redis cannot be read" in report.breaches[0].message
    monkeypatch.setenv("IAI_MCP_REDIS_URL", server.url)
    said = run(store, code=1).stdout
    assert "by 0 producers, as far as could be read" in said


def test_the_account_adds_up_while_everything_moves(store: MemoryStore, record_id: UUID) -> None:
    queue = ProvenanceWriteQueue(store, coalesce_ms=1)
    queue.start()
    others = [store.insert(_make()) for _ in range(6)]
    for step in range(40):
        queue.enqueue([(other, entry(step)) for other in (record_id, *others)])
        if step % 10 == 9:
            report = look(store)
            assert report.clean, report.breaches
    assert queue.flush(30)
    queue.stop()
    report = look(store)
    assert (report.total["handed_out"], report.total["applied"], report.total["lost"]) == (280, 280, 0)


def test_an_entry_refused_by_a_full_disk_is_accounted_for(
    store: MemoryStore, record_id: UUID, overflow: Path
) -> None:
    queue = ProvenanceWriteQueue(store)
    overflow.parent.mkdir(parents=True)
    overflow.write_text("in the way")
    queue._stopped = True  # everything goes to the spill
    with pytest.raises(RuntimeError):
        queue.enqueue(pairs(record_id, "ab"))
    overflow.unlink()
    queue._stopped = False
    queue.start()
    queue.enqueue(pairs(record_id, "c"))
    assert queue.flush(30)
    queue.stop()
    report = look(store)
    assert report.clean, report.breaches
    assert (report.total["applied"], report.total["refused"]) == (1, 2)


def test_a_lane_column_is_what_lancedb_has(store: MemoryStore, record_id: UUID) -> None:
    """The report's rows are the table's own, so that a person can check them with LanceDB alone."""
    store.append_provenance_batch(pairs(record_id, "abcd"))
    rows = table_of(store, record_id).search().select(["producer_seq"]).to_arrow()
    (ledger,) = look(store).producers
    assert ledger.handed_out == pc.max(rows["producer_seq"]).as_py() == 4
