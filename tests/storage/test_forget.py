"""Forgetting reaches everywhere: what a memory and its trace said is gone from every table, file and queue."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from iai_mcp.broker.memory import MemoryBroker
from iai_mcp.broker.protocol import Refused
from iai_mcp.config import Settings
from iai_mcp.core import dispatch
from iai_mcp.entries.parcel import Parcel
from iai_mcp.entries.wire import encode
from iai_mcp.maintenance.verify import verify
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.spill.writer import Spill
from iai_mcp.storage.dead_letters import DeadLetters
from iai_mcp.storage.exclusions import ExclusionReason
from iai_mcp.storage.tables.erasure import Erasure
from iai_mcp.storage.tables.lane import LaneTable
from iai_mcp.storage.tables.records import RecordTable
from iai_mcp.store import MemoryStore
from iai_mcp.trail.query import TrailFilters, trail
from tests.servers import Server, serving, worker
from tests.support import cues, entry, pairs, wait_until
from tests.test_store import _make

CUE = "zanzibar-quetzalcoatl-cue"
TEXT = "zanzibar-quetzalcoatl-text"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MemoryStore]:
    """A store that keeps no old versions."""
    made = MemoryStore(tmp_path / "store", lanes=1, settings=Settings(cleanup_age=0))
    yield made
    made.disable_provenance_queue()


@pytest.fixture
def secret(store: MemoryStore) -> UUID:
    """A memory and a trace that are to be forgotten, among others that are not."""
    kept = [store.insert(_make(text=f"memory {number}")) for number in range(20)]
    record_id = store.insert(_make(text=TEXT))
    store.append_provenance_batch([(one, entry(f"cue {n}")) for n, one in enumerate(kept)])
    store.append_provenance_batch(pairs(record_id, [CUE]))
    for table in (store.lane(0), store._records):
        table.maintain(force=True)  # one file each, in which there is too little to merge
    return record_id


@pytest.fixture
def overflow(home: Path) -> Path:
    return home / ".iai-mcp" / ".provenance-overflow"


def holding(words: str, *folders: Path) -> list[Path]:
    """Files in which the words can be read."""
    paths = [Path(at, name) for folder in folders for at, _, names in os.walk(folder) for name in names]
    return [path for path in paths if words.encode() in _content(path)]


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:  # a cleanup was faster
        return b""


def a_spill(store: MemoryStore, folder: Path, entries: list[tuple[UUID, str]], producer: str = "ab" * 8) -> Spill:
    """The spill of a client, still open."""
    spill = Spill(store.store_id, producer, folder)
    numbered = [(record_id, seq, entry(cue)) for seq, (record_id, cue) in enumerate(entries, 1)]
    spill.append([Parcel.of(store.store_id, 0, producer, 1.0, numbered)], folder)
    return spill


def why(store: MemoryStore, reason: ExclusionReason) -> set[tuple[str, int]]:
    spans = [span for span in store.exclusions.read() if span.why is reason]
    return {(span.producer, seq) for span in spans for seq in range(span.first, span.last + 1)}


# -- tables


def test_the_words_are_gone_from_the_disk(store: MemoryStore, secret: UUID) -> None:
    assert holding(CUE, store.path)
    assert holding(TEXT, store.path)
    assert store.delete(secret)
    assert holding(CUE, store.path) == holding(TEXT, store.path) == []
    assert (store.count(), store.lane(0).count()) == (20, 20)
    assert [path for path in store.layout.locks.iterdir() if path.suffix == ".erasure"] == []
    assert verify(store.layout, store.settings).clean


def test_without_the_rewrite_lancedb_would_keep_them(store: MemoryStore, secret: UUID) -> None:
    """Why there is a scrub at all: a deleted row alone is no reason for LanceDB to write its file anew."""
    table = store.lane(0)._table
    table.delete(f"record_id = '{secret}'")
    store.lane(0).maintain(force=True)
    assert holding(CUE, store.path)


def test_old_versions_go_by_themselves_once_no_reader_can_have_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore(tmp_path / "other", lanes=1, settings=Settings(cleanup_age=0.5))
    kept, secret = store.insert(_make()), store.insert(_make(text=TEXT))
    store.append_provenance_batch([*pairs(kept, "ab"), *pairs(secret, [CUE])])
    store.delete(secret)
    assert holding(CUE, store.path)  # a reader may have that version open
    store.enable_provenance_queue()
    wait_until(lambda: not holding(CUE, store.path) and not holding(TEXT, store.path), 30)
    store.disable_provenance_queue()
    assert store.lane(0).count() == 2


@pytest.mark.parametrize("step", ["records", "rows", "rewrite"])
def test_a_crash_in_the_middle_is_finished_by_the_next_call(
    store: MemoryStore, secret: UUID, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    class Crash(BaseException):
        pass

    def crash(*_: object, **__: object) -> None:
        raise Crash

    target: tuple[Any, str] = {
        "records": (RecordTable, "delete"),
        "rows": (LaneTable, "delete_record"),
        "rewrite": (Erasure, "_rewrite"),
    }[step]
    with monkeypatch.context() as broken:
        broken.setattr(*target, crash)
        with pytest.raises(Crash):
            store.delete(secret)
    again = MemoryStore(store.path, settings=store.settings)
    again.delete(secret)
    assert again.get(secret) is None
    assert holding(CUE, store.path) == holding(TEXT, store.path) == []
    assert verify(store.layout, store.settings).clean


def test_an_id_in_use_again_starts_with_an_empty_trace(store: MemoryStore, secret: UUID) -> None:
    store.delete(secret)
    store.insert(_make(id=secret))
    store.append_provenance_batch(pairs(secret, ["new"]))
    found = store.get(secret)
    assert found is not None
    assert cues(found.provenance) == ["new"]


# -- what is still on its way


def test_a_spill_that_nobody_holds_is_rewritten_without_it(
    store: MemoryStore, secret: UUID, overflow: Path
) -> None:
    other = store.insert(_make())
    a_spill(store, overflow, [(other, "stays"), (secret, CUE), (other, "stays too")]).close()
    a_spill(store, overflow, [(secret, CUE)], producer="cd" * 8).close()
    torn = encode(Parcel.of(store.store_id, 0, "ef" * 8, 1.0, [(secret, 1, entry(CUE))]))[:-5]
    (overflow / "torn.failed-1.jsonl").write_bytes(torn + b"\nsomething else\n")
    assert len(holding(CUE, overflow)) == 3

    store.delete(secret)
    assert holding(CUE, overflow) == []
    assert (overflow / "torn.failed-1.jsonl").read_bytes() == b"something else\n"
    assert why(store, ExclusionReason.FORGOTTEN) >= {("ab" * 8, 2), ("cd" * 8, 1)}

    store.enable_provenance_queue()
    wait_until(lambda: not [*overflow.glob("????????-*.jsonl")], 20)
    store.disable_provenance_queue()
    found = store.get(other)
    assert found is not None
    assert cues(found.provenance) == ["stays", "stays too"]
    assert verify(store.layout, store.settings).clean


def test_a_spill_that_a_living_process_holds_loses_it_when_it_is_drained(
    store: MemoryStore, secret: UUID, overflow: Path
) -> None:
    held = a_spill(store, overflow, [(secret, CUE)])
    store.delete(secret)
    assert holding(CUE, overflow)  # it is theirs
    held.close()
    store.enable_provenance_queue()
    wait_until(lambda: not holding(CUE, overflow), 20)
    store.disable_provenance_queue()
    assert store.lane(0).count() == 20
    assert why(store, ExclusionReason.UNKNOWN) == {("ab" * 8, 1)}


def test_a_queue_that_stops_too_early_leaves_nothing_of_it_in_its_spill(
    store: MemoryStore, secret: UUID, overflow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = store.insert(_make())
    client = MemoryStore(store.path, settings=Settings(cleanup_age=0, stop_budget=0))
    client.enable_provenance_queue(coalesce_ms=60_000)
    client.queue_provenance_batch([*pairs(other, ["stays"]), *pairs(secret, [CUE])])
    with monkeypatch.context() as full:
        full.setattr(MemoryBroker, "push", lambda *_, **__: Refused("full"))
        client.queue_provenance_batch([*pairs(secret, [CUE]), *pairs(other, ["stays too"])])
        store.delete(secret)
        client.disable_provenance_queue()
    assert holding("stays", overflow)
    assert holding(CUE, overflow) == []
    store.enable_provenance_queue()
    wait_until(lambda: not [*overflow.glob("????????-*.jsonl")], 20)
    store.disable_provenance_queue()
    found = store.get(other)
    assert found is not None
    assert cues(found.provenance) == ["stays", "stays too"]
    assert verify(store.layout, store.settings).clean


def test_dead_letters_go_and_none_comes_back(store: MemoryStore, secret: UUID) -> None:
    letters = DeadLetters(store.layout)
    own = {**entry(CUE), "producer": "p", "entry_id": "x"}
    letters.add_entry(0, (secret, {**own, "producer_seq": 1}), f"it said {CUE}")
    letters.add_raw(0, b'{"of a later version": "' + str(secret).encode() + CUE.encode() + b'"}', "?")
    letters.add_raw(0, encode(Parcel.of("s", 0, "p", 1.0, [(secret, 3, entry(CUE))])), "?")
    letters.add_raw(0, b"nothing to do with it", "?")
    with store.layout.dead_letters.open("ab") as file:  # a line that is no letter: torn, or of another program
        file.write(
            b'{"id":"torn","entry":{"record_id":"' + str(secret).encode() + b'","cue":"' + CUE.encode() + b'"\n'
        )
    store.delete(secret)
    letters.add_entry(0, (secret, {**own, "producer_seq": 2}), "a drain that was late")
    assert [letter.record_id for letter in letters.all()] == [None]
    assert holding(CUE, store.path) == []
    assert why(store, ExclusionReason.FORGOTTEN) >= {("p", 1), ("p", 2), ("p", 3)}


def test_what_waits_in_redis_never_arrives(store: MemoryStore, secret: UUID, tmp_path: Path) -> None:
    with serving(tmp_path / "redis") as server:
        _forget_in_redis(store, secret, server)


def _forget_in_redis(store: MemoryStore, secret: UUID, server: Server) -> None:
    other = store.insert(_make())
    client = MemoryStore(store.path, settings=Settings(push_budget_ms=2000, cleanup_age=0))
    queue = ProvenanceWriteQueue(client, connection=server.client())
    queue.start()
    queue.enqueue([(secret, entry(CUE)), (other, entry("stays"))])
    queue.stop()
    store.delete(secret)
    with worker(server.url, store.path, env={"IAI_MCP_CLEANUP_AGE": "0"}):
        wait_until(lambda: cues(store.get(other).provenance) == ["stays"], 30)  # type: ignore[union-attr]
    assert trail(store, TrailFilters(cue=CUE)) == []
    assert holding(CUE, store.path) == []
    assert why(store, ExclusionReason.UNKNOWN) == {(queue.producer, 1)}
    report = verify(store.layout, Settings(redis_url=server.url))
    assert report.clean, report.breaches


# -- under load


def test_forgetting_while_others_recall(store: MemoryStore, secret: UUID, overflow: Path) -> None:
    """Threads that recall the memory, one that forgets it: in the end nothing of it can be read anywhere."""
    client = MemoryStore(store.path, settings=store.settings)
    client.enable_provenance_queue(coalesce_ms=1)
    busy = threading.Event()
    stop = threading.Event()
    failures: list[Exception] = []

    def hammer(work: Callable[[int], object]) -> None:
        try:
            number = 0
            while not stop.is_set():
                number += 1
                work(number)
                if number == 5:
                    busy.set()
        except Exception as error:  # noqa: BLE001  told at the end
            failures.append(error)

    vector = [0.1] * 384
    works: list[Callable[[int], object]] = [
        lambda n: client.queue_provenance_batch(pairs(secret, [f"{CUE} {n}"])),
        lambda n: dispatch(client, "memory_recall", {"cue": TEXT, "session_id": CUE, "cue_embedding": vector}),
        lambda n: store.append_provenance_batch(pairs(secret, [f"{CUE} direct {n}"])),
    ]
    threads = [threading.Thread(target=hammer, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    assert busy.wait(30)
    assert store.delete(secret)
    wait_until(lambda: why(store, ExclusionReason.UNKNOWN), 30)  # they go on for a while
    stop.set()
    for thread in threads:
        thread.join(30)
    client.disable_provenance_queue()
    assert failures == []

    assert client.get(secret) is None
    assert [one for one in trail(store, TrailFilters(cue=CUE)) if one["record_id"] == str(secret)] == []
    report = verify(store.layout, store.settings)
    assert report.clean, report.breaches
    assert report.total["unknown"] > 0
    for record in store.list_records(limit=100):  # a recall returns others too, and leaves its words on them
        store.delete(record.id)
    assert store.lane(0).count() == 0
    for table in (store.lane(0), store._records):
        table.maintain(force=True)
    assert holding(CUE, store.path, overflow.parent) == holding(TEXT, store.path, overflow.parent) == []
