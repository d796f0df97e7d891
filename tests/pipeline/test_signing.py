"""Signed parcels: what has no valid proof of its producer becomes a dead letter, and costs others nothing."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import fakeredis
import msgspec
import pytest

from iai_mcp.broker.memory import MemoryBroker
from iai_mcp.broker.redis.keys import Keys
from iai_mcp.cli.dead_letters import retry_letters
from iai_mcp.config import Settings
from iai_mcp.entries.parcel import Parcel
from iai_mcp.entries.routing import lane_of
from iai_mcp.entries.signature import Signer, unsigned
from iai_mcp.maintenance.verify import verify
from iai_mcp.pipeline import recovery
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.storage import dead_letters, letter_ids
from iai_mcp.storage.dead_letters import DeadLetter, DeadLetters
from iai_mcp.store import MemoryStore
from tests.servers import serving, worker
from tests.support import cues, entry, pairs, wait_until
from tests.test_store import _make
from workers.runner import LaneRunner

KEY = "a key for the tests and no other use 1"
OTHER = "a key for the tests and no other use 2"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IAI_MCP_SIGNING_KEY", KEY)


def reopened(store: MemoryStore, key: str | None, **further: Any) -> MemoryStore:
    """The same store for a process with another key."""
    env = {"IAI_MCP_SIGNING_KEY": key} if key else {}
    settings = Settings.load({**env, "IAI_MCP_PUSH_BUDGET_MS": "2000", **further})
    return MemoryStore(store.path, settings=settings)


@dataclass
class Rig:
    """A store, a stand-in for Redis, and a running client."""

    store: MemoryStore
    connection: Any
    record: UUID
    queue: ProvenanceWriteQueue

    @property
    def lane(self) -> int:
        return lane_of(self.record, self.store.lanes)

    @property
    def pending(self) -> str:
        return Keys("", self.store.store_id).lane(self.lane, "pending")

    def items(self) -> list[bytes]:
        return [*self.connection.lrange(self.pending, 0, -1)]

    def push(self, *items: bytes, lane: int | None = None) -> None:
        """Push by hand, as another user of this Redis can."""
        keys = Keys("", self.store.store_id)
        number = self.lane if lane is None else lane
        self.connection.rpush(keys.lane(number, "pending"), *items)
        for item in items:
            self.connection.hincrby(keys.counts, f"{number}:pushed", len(msgspec.json.decode(item)["seqs"]))

    def drain(self, key: str | None = KEY) -> None:
        """Drain all lanes, as a worker with ``key`` does."""
        store = reopened(self.store, key)
        LaneRunner(store, self.connection).drain_all()

    def seen(self) -> list[str]:
        found = self.store.get(self.record)
        assert found is not None
        return cues(found.provenance)

    def letters(self) -> list[DeadLetter]:
        return DeadLetters(self.store.layout).all()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    store = MemoryStore(tmp_path / "store", settings=Settings.load({"IAI_MCP_SIGNING_KEY": KEY}))
    (record,) = store.insert_many([_make()])
    connection = fakeredis.FakeStrictRedis()
    queue = ProvenanceWriteQueue(reopened(store, KEY), connection=connection)
    queue.start()
    yield Rig(store, connection, record, queue)
    queue.stop()


def forged(rig: Rig, seqs: range, **further: Any) -> bytes:
    """A parcel of the client with its next numbers, made by someone who reads the lane and has no key."""
    known = msgspec.json.decode(rig.items()[0])
    known.pop("mac", None)
    ids = [rig.record.hex] * len(seqs)
    own = [entry(f"forged {seq}") for seq in seqs]
    return msgspec.json.encode({**known, "ids": ids, "seqs": [*seqs], "own": own, "shared": {}, **further})


def test_stolen_numbers_without_the_key_cost_the_client_nothing(rig: Rig) -> None:
    rig.queue.enqueue(pairs(rig.record, ["first"]))
    rig.push(forged(rig, range(2, 102)))
    later = [f"later {number}" for number in range(10)]
    for cue in later:
        rig.queue.enqueue(pairs(rig.record, [cue]))
    rig.drain()
    assert rig.seen() == ["first", *later]
    (letter,) = rig.letters()
    assert letter.reason.startswith("unsigned")
    report = verify(rig.store.layout, Settings(), settle=0)
    assert "unproven" in {finding.kind for finding in report.warnings}
    assert report.clean, report.breaches


def changed(item: bytes) -> bytes:
    return item.replace(b'"first"', b'"worst"')


def of_another_store(item: bytes) -> bytes:
    """A parcel that was signed with the same key for another store."""
    signer = Signer([KEY])
    document = {**msgspec.json.decode(unsigned(item)), "store": "ab" * 16}
    return signer.sign(msgspec.json.encode(document))


@pytest.mark.parametrize("change", [changed, of_another_store])
def test_a_signed_parcel_that_was_changed_is_refused(rig: Rig, change: Callable[[bytes], bytes]) -> None:
    rig.queue.enqueue(pairs(rig.record, ["first"]))
    rig.push(change(rig.items()[0]))
    rig.queue.enqueue(pairs(rig.record, ["second"]))
    rig.drain()
    assert rig.seen() == ["first", "second"]
    (letter,) = rig.letters()
    assert letter.reason.startswith("bad signature")
    assert letter.unproven


def test_a_signed_parcel_in_another_lane_is_refused(rig: Rig) -> None:
    rig.queue.enqueue(pairs(rig.record, ["first"]))
    rig.push(rig.items()[0], lane=(rig.lane + 1) % rig.store.lanes)
    rig.drain()
    assert rig.seen() == ["first"]
    (letter,) = rig.letters()
    assert letter.reason.startswith("bad signature")


def test_a_signed_parcel_that_is_pushed_again_is_one_entry(rig: Rig) -> None:
    rig.queue.enqueue(pairs(rig.record, ["first"]))
    rig.push(rig.items()[0])
    rig.drain()
    assert rig.seen() == ["first"]
    assert rig.letters() == []


@pytest.mark.parametrize("clients_key", [OTHER, None])
def test_a_client_with_another_key_loses_nothing(rig: Rig, clients_key: str | None) -> None:
    odd = ProvenanceWriteQueue(reopened(rig.store, clients_key), connection=rig.connection)
    odd.start()
    odd.enqueue(pairs(rig.record, ["odd"]))
    rig.queue.enqueue(pairs(rig.record, ["sound"]))
    odd.stop()
    rig.drain()
    assert rig.seen() == ["sound"]
    (letter,) = rig.letters()
    report = retry_letters(reopened(rig.store, KEY), rig.letters())
    assert [failed["id"] for failed in report["failed"]] == [letter.id]
    assert rig.letters() == [letter]
    right = reopened(rig.store, f"{KEY},{OTHER}" if clients_key else None)
    assert retry_letters(right, rig.letters())["applied"] == 1
    assert retry_letters(right, [letter])["applied"] == 0
    assert sorted(rig.seen()) == ["odd", "sound"]
    assert rig.letters() == []
    assert verify(rig.store.layout, Settings(), settle=0).clean


def test_an_unproven_letter_of_another_store_is_not_applied(rig: Rig) -> None:
    rig.queue.enqueue(pairs(rig.record, ["first"]))
    rig.push(of_another_store(rig.items()[0]))
    rig.drain()
    (letter,) = rig.letters()
    (failed,) = retry_letters(reopened(rig.store, KEY), [letter])["failed"]
    assert "another store" in failed["reason"]


def test_what_a_forger_claims_is_no_loss_of_others_and_hides_none(rig: Rig) -> None:
    rig.queue.enqueue(pairs(rig.record, ["first"]))
    rig.push(forged(rig, range(1, 2)), forged(rig, range(700, 701)), forged(rig, range(5, 6), producer="ghost"))
    rig.drain()
    report = verify(rig.store.layout, Settings(), settle=0)
    assert report.clean, report.breaches
    assert [one.handed_out for one in report.producers] == [1]
    DeadLetters(rig.store.layout).drop([letter.id for letter in rig.letters()])
    assert rig.letters() == []
    report = verify(rig.store.layout, Settings(), settle=0)
    assert (report.clean, report.warnings) == (True, [])
    assert [one.counts["applied"] for one in report.producers] == [1]


def test_keys_are_replaced_without_a_pause(rig: Rig) -> None:
    """First all processes accept the new key, then clients sign with it, then the old one goes."""
    rig.queue.enqueue(pairs(rig.record, ["old"]))
    rig.drain(f"{KEY},{OTHER}")
    rig.queue.enqueue(pairs(rig.record, ["old again"]))
    new = ProvenanceWriteQueue(reopened(rig.store, f"{OTHER}\n{KEY}"), connection=rig.connection)
    new.start()
    new.enqueue(pairs(rig.record, ["new"]))
    new.stop()
    rig.drain(f"{OTHER},{KEY}")
    assert rig.seen() == ["old", "old again", "new"]
    assert rig.letters() == []


def test_without_a_key_a_signed_parcel_is_read(rig: Rig) -> None:
    rig.queue.enqueue(pairs(rig.record, ["first"]))
    rig.drain(None)
    assert rig.seen() == ["first"]


# -- spill


def left_in(queue: ProvenanceWriteQueue) -> list[Parcel]:
    """What waits in an embedded queue."""
    broker = queue._broker
    assert isinstance(broker, MemoryBroker)
    return broker.drain_remaining()


def spilled(rig: Rig, home: Path, *found: str, key: str | None = KEY) -> Path:
    """The spill file of a client with ``key`` that was killed; it holds a line for each cue."""
    dead = ProvenanceWriteQueue(reopened(rig.store, key))
    for cue in found:  # it never started
        dead.enqueue(pairs(rig.record, [cue]))
    dead._spill.append(left_in(dead), folder(home))
    dead._spill.close()
    (path,) = folder(home).glob(f"*{dead.producer}*.jsonl")
    return path


def folder(home: Path) -> Path:
    return home / ".iai-mcp" / ".provenance-overflow"


def by_a_client(rig: Rig) -> None:
    rig.queue.start()
    wait_until(lambda: rig.items(), 10)
    rig.drain()


def by_an_embedded_client(rig: Rig) -> None:
    queue = ProvenanceWriteQueue(reopened(rig.store, KEY))
    queue.start()
    wait_until(lambda: rig.letters(), 10)
    queue.stop()


def by_apply(rig: Rig) -> None:
    recovery.apply(reopened(rig.store, KEY))


def by_a_worker(rig: Rig) -> None:
    runner = LaneRunner(reopened(rig.store, KEY), rig.connection)
    runner.adopt_orphans()
    runner.drain_all()


@pytest.mark.parametrize("way", [by_a_client, by_an_embedded_client, by_apply, by_a_worker])
def test_spilled_lines_are_signed_and_checked(rig: Rig, home: Path, way: Callable[[Rig], None]) -> None:
    rig.queue.stop()
    folder(home).mkdir(parents=True, exist_ok=True)
    path = spilled(rig, home, "one", "two", "three")
    first, second, third = path.read_bytes().splitlines()
    bare = unsigned(first).replace(b'"one"', b'"bare"')
    path.write_bytes(b"".join(line + b"\n" for line in [first, bare, second.replace(b"two", b"tow"), third]))
    way(rig)
    wait_until(lambda: not path.exists(), 10)
    assert rig.seen() == ["one", "three"]
    reasons = sorted(letter.reason.split(":")[0] for letter in rig.letters())
    assert reasons == ["bad signature", "unsigned"]
    assert not [*folder(home).glob("*.failed-*")]


def test_a_client_without_the_key_leaves_spill_that_a_retry_applies(rig: Rig, home: Path) -> None:
    rig.queue.stop()  # it would adopt the files
    folder(home).mkdir(parents=True, exist_ok=True)
    spilled(rig, home, "one", "two", key=None)
    by_apply(rig)
    assert rig.seen() == []
    assert len(rig.letters()) == 2
    assert retry_letters(reopened(rig.store, None), rig.letters())["applied"] == 2
    assert rig.seen() == ["one", "two"]


def test_forgetting_leaves_the_rest_of_a_signed_line_signed(rig: Rig, home: Path) -> None:
    rig.queue.stop()  # it would adopt the files
    folder(home).mkdir(parents=True, exist_ok=True)
    other = next(one for one in rig.store.insert_many([_make() for _ in range(40)]) if same_lane(rig, one))
    dead = ProvenanceWriteQueue(reopened(rig.store, KEY))
    dead.enqueue([(rig.record, entry("kept")), (other, entry("secret"))])
    dead._spill.append(left_in(dead), folder(home))
    dead._spill.close()
    rig.store.delete(other)
    (path,) = folder(home).glob(f"*{dead.producer}*.jsonl")
    assert other.hex.encode() not in path.read_bytes()
    by_apply(rig)
    assert rig.seen() == ["kept"]
    assert rig.letters() == []


def test_forgetting_does_not_sign_what_a_forger_wrote(rig: Rig, home: Path) -> None:
    rig.queue.stop()  # it would adopt the files
    folder(home).mkdir(parents=True, exist_ok=True)
    path = spilled(rig, home, "one", key=None)
    other = rig.store.insert(_make())
    document = msgspec.json.decode(path.read_bytes())
    document = {**document, "ids": [rig.record.hex, other.hex], "seqs": [1, 2], "own": [entry("x"), entry("y")]}
    path.write_bytes(msgspec.json.encode({**document, "shared": {}, "mac": "0" * 32}) + b"\n")
    rig.store.delete(other)
    assert other.hex.encode() not in path.read_bytes()
    by_apply(rig)
    assert rig.seen() == []
    (letter,) = rig.letters()
    assert letter.reason.startswith("unsigned")


def same_lane(rig: Rig, record: UUID) -> bool:
    return lane_of(record, rig.store.lanes) == rig.lane


# -- an embedded queue


def test_the_journal_of_an_embedded_queue_is_signed(rig: Rig, home: Path) -> None:
    rig.queue.stop()  # it would adopt the files
    store = reopened(rig.store, KEY, IAI_MCP_JOURNAL="write")
    queue = ProvenanceWriteQueue(store)
    queue.enqueue(pairs(rig.record, ["journalled"]))
    (path,) = folder(home).glob(f"*{queue.producer}*.jsonl")
    assert Signer([KEY]).fault(path.read_bytes().removesuffix(b"\n")) is None
    queue.start()
    assert queue.flush(10)
    queue.stop()
    assert rig.seen() == ["journalled"]
    assert rig.letters() == []


def test_what_redis_forgot_is_pushed_again_with_its_proof(rig: Rig) -> None:
    rig.queue.enqueue(pairs(rig.record, ["first"]))
    rig.connection.flushall()
    wait_until(lambda: rig.items(), 10)
    rig.drain()
    assert rig.seen() == ["first"]
    assert rig.letters() == []


# -- floods


def test_a_flood_of_forged_items_is_read_once_and_bounded(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rig.queue.enqueue(pairs(rig.record, ["first"]))
    items = [forged(rig, range(number, number + 1)) for number in range(2, 1002)]
    line = len(base64.b64encode(items[0])) + 300
    monkeypatch.setattr(dead_letters, "RAW_BYTES", 100 * line)
    rig.push(*items)
    rig.queue.enqueue(pairs(rig.record, ["second"]))
    rig.drain()
    assert rig.seen() == ["first", "second"]
    letters = rig.letters()
    kept = DeadLetters(rig.store.layout)
    over = kept.overflown()
    assert len(letters) + over.items == 1000
    assert 50 < len(letters) < 200
    assert rig.store.layout.dead_letters.stat().st_size <= 100 * line
    kinds = {finding.kind for finding in verify(rig.store.layout, Settings(), settle=0).warnings}
    assert {"unproven", "not_kept"} <= kinds
    assert "dead_letters_full" in caplog.text
    kept.add_entry(0, (rig.record, {**entry("sound"), "producer": "p" * 16, "producer_seq": 1}), "an error")
    assert len(rig.letters()) == len(letters) + 1  # entries are always kept


def test_a_flood_of_letters_costs_no_more_for_each(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    letters, read = DeadLetters(store.layout), 0
    plain = open

    def counting(*args: Any) -> Any:
        nonlocal read
        file = plain(*args)

        class Counting:
            def __enter__(self) -> Any:
                return self

            def __exit__(self, *error: object) -> None:
                file.close()

            def __getattr__(self, name: str) -> Any:
                return getattr(file, name)

            def read(self, *size: int) -> bytes:
                nonlocal read
                data: bytes = file.read(*size)
                read += len(data)
                return data

        return Counting()

    monkeypatch.setattr(letter_ids, "open", counting, raising=False)
    for number in range(200):
        letters.add_raw(0, b"%d" % number, "junk")
        letters.add_raw(0, b"%d" % number, "junk")
    assert letters.count() == 200
    assert read < 3 * store.layout.dead_letters.stat().st_size + 400 * 100


def test_letters_that_another_process_removed_are_kept_anew(store: MemoryStore) -> None:
    letters = DeadLetters(store.layout)
    for number in range(3):
        letters.add_raw(0, b"%d" % number, "junk")
    gone, *stay = store.layout.dead_letters.read_bytes().splitlines(keepends=True)
    store.layout.dead_letters.write_bytes(b"".join(stay))  # in place: the inode stays
    letters.add_raw(0, b"0", "junk")
    assert letters.count() == 3
    store.layout.dead_letters.unlink()
    letters.add_raw(0, b"0", "junk")
    assert letters.count() == 1
    assert gone.split(b'"')[3] in store.layout.dead_letters.read_bytes()


# -- processes


@pytest.mark.parametrize("kind", ["ours", "stock"])
def test_workers_in_processes_of_their_own_check_signatures(store: MemoryStore, tmp_path: Path, kind: str) -> None:
    record = store.insert(_make())
    with serving(tmp_path / "redis") as server:
        url = server.url_of("producer")
        queue = ProvenanceWriteQueue(reopened(store, KEY, IAI_MCP_REDIS_URL=url))
        queue.start()
        queue.enqueue(pairs(record, ["first"]))
        rig = Rig(store, server.client(), record, queue)
        rig.push(forged(rig, range(2, 4)))
        queue.enqueue(pairs(record, ["second"]))
        with worker(server.url_of("worker"), store.path, kind=kind, env={"IAI_MCP_SIGNING_KEY": KEY}):
            assert queue.flush(60)
        queue.stop()
    assert rig.seen() == ["first", "second"]
    assert [letter.reason.split(":")[0] for letter in rig.letters()] == ["unsigned"]
