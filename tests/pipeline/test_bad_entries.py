"""Entries that cannot be written: refused whole where they come in, one dead letter where they came in earlier."""

from __future__ import annotations

import base64
import errno
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import fakeredis
import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from iai_mcp.broker.protocol import Claimed, MalformedItem
from iai_mcp.broker.redis.keys import Keys
from iai_mcp.cli.dead_letters import retry_letters
from iai_mcp.config import Settings
from iai_mcp.core import dispatch
from iai_mcp.entries.parcel import Parcel
from iai_mcp.entries.routing import lane_of
from iai_mcp.entries.wire import encode
from iai_mcp.errors import BadParams
from iai_mcp.maintenance.verify import FindingKind, verify
from iai_mcp.pipeline import recovery
from iai_mcp.pipeline.drain import DrainPolicy, DrainReport, EntryWriter
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.recall import recall
from iai_mcp.storage.dead_letters import DeadLetters
from iai_mcp.store import MemoryStore, RecordsCache
from tests.entries.test_admission import BAD
from tests.pipeline.test_queue import Gate, record_id, seen, spill_files  # noqa: F401
from tests.support import entry, pairs, wait_until
from tests.test_store import _make

Take = Callable[[Any], object]
HOSTILE = {name: value for name, (value, _) in BAD.items()}


@pytest.fixture(params=["embedded", "redis", "direct"])
def take(request: pytest.FixtureRequest, store: MemoryStore) -> Iterator[Take]:
    """A way to hand entries over."""
    if request.param == "direct":
        yield store.append_provenance_batch
        return
    connection = fakeredis.FakeStrictRedis() if request.param == "redis" else None
    store.enable_provenance_queue(coalesce_ms=0, connection=connection)
    queue = store.provenance_queue
    assert queue is not None
    yield queue.enqueue
    queue.stop()


def counted(store: MemoryStore) -> int:
    return store.provenance_queue.counts.enqueued if store.provenance_queue else 0


@pytest.mark.parametrize("name", HOSTILE)
def test_a_call_with_a_bad_entry_takes_nothing(
    take: Take,
    store: MemoryStore,
    record_id: UUID,  # noqa: F811
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = Settings(max_entry_bytes=20_000)
    monkeypatch.setattr(store, "settings", small)
    if store.provenance_queue is not None:
        monkeypatch.setattr(store.provenance_queue, "_settings", small)
    bad = (record_id, entry("bad", more=HOSTILE[name]))
    with pytest.raises(BadParams, match="pair 1 is refused: "):
        take([*pairs(record_id, "a"), bad, *pairs(record_id, "b")])
    assert counted(store) == 0
    take(pairs(record_id, "cd"))
    store.disable_provenance_queue()
    assert DeadLetters(store.layout).count() == 0


def test_pairs_may_come_from_an_iterator(take: Take, store: MemoryStore, record_id: UUID) -> None:  # noqa: F811
    take(iter(pairs(record_id, "ab")))
    take(iter([]))
    with pytest.raises((BadParams, TypeError)):
        take(7)
    if store.provenance_queue is not None:
        assert counted(store) == 2


KEYED: list[dict[str, Any]] = [
    {"entry_id": "k", "producer": "p", "producer_seq": "first"},
    {"entry_id": "k", "producer": "p", "producer_seq": 2**63},
    {"entry_id": "k", "producer": "p", "producer_seq": 2**50},
    {"entry_id": "k", "producer": "p", "producer_seq": -5},
    {"entry_id": "k", "producer": "p", "producer_seq": True},
    {"entry_id": "k", "producer": "\x1b[31mred", "producer_seq": 1},
    {"entry_id": "k", "producer": "p" * 65, "producer_seq": 1},
    {"entry_id": "k", "producer": 7, "producer_seq": 1},
    {"entry_id": ["k"], "producer": "p", "producer_seq": 1},
]


@pytest.mark.parametrize("key", KEYED)
def test_a_direct_write_refuses_a_key_of_the_wrong_type(
    store: MemoryStore,
    record_id: UUID,  # noqa: F811
    key: dict[str, Any],
) -> None:
    with pytest.raises(BadParams, match="pair 1 is refused"):
        store.append_provenance_batch([*pairs(record_id, "a"), (record_id, entry("b", **key))])
    assert seen(store, record_id) == []


@pytest.mark.parametrize("key", KEYED)
def test_a_queue_numbers_entries_whatever_keys_they_bring(
    store: MemoryStore,
    record_id: UUID,  # noqa: F811
    key: dict[str, Any],
) -> None:
    store.enable_provenance_queue(coalesce_ms=0)
    store.queue_provenance_batch([(record_id, entry("a", **key)), *pairs(record_id, "b")])
    store.disable_provenance_queue()
    assert seen(store, record_id) == ["a", "b"]
    assert DeadLetters(store.layout).count() == 0


def test_a_retry_refuses_a_letter_that_cannot_be_a_row(store: MemoryStore, record_id: UUID) -> None:  # noqa: F811
    """A restored backup, or somebody's hand, may have put the letter there."""
    letters = DeadLetters(store.layout)
    for producer, seq in (("p", 2**50), ("p", -5), ("\x1b[31mred", 1), ("p", 7)):
        keyed = entry(f"{producer} {seq}", entry_id=f"{producer}-{seq}", producer=producer, producer_seq=seq)
        letters.add_entry(0, (record_id, keyed), "by hand")
    report = retry_letters(store, letters.all())
    assert (report["applied"], len(report["failed"])) == (1, 3)
    assert seen(store, record_id) == ["p 7"]
    assert letters.count() == 3
    assert {one.kind for one in verify(store.layout, store.settings, settle=0).breaches} <= {FindingKind.LOST}


# -- what is there already


def parcel_of(store: MemoryStore, record: UUID, first: int, *entries: Any, producer: str = "f" * 16) -> Parcel:
    items = [(record, seq, one) for seq, one in enumerate(entries, first)]
    return Parcel.of(store.store_id, lane_of(record, store.lanes), producer, time.time(), items)


@pytest.mark.parametrize("name", ["raising", "itself", "deep", "digits"])
def test_a_stop_spills_what_can_be_spilled(tmp_path: Path, home: Path, name: str) -> None:
    """An entry that got past ``enqueue``, among good ones, in a queue that stops while its store fails."""
    store = MemoryStore(tmp_path / "store", settings=Settings(stop_budget=0.2))
    record = store.insert(_make())
    gate = Gate(store)
    gate.fail = lambda _: OSError(errno.EIO, "the disk is ill")
    queue = ProvenanceWriteQueue(store, coalesce_ms=0)
    queue.start()
    queue.enqueue(pairs(record, "ab"))
    queue._broker.push([parcel_of(store, record, 1, entry("c"), entry("bad", more=HOSTILE[name]), entry("d"))])
    queue.enqueue(pairs(record, "ef"))
    queue.stop()
    assert spill_files(home)
    heir = MemoryStore(store.path)
    heir.enable_provenance_queue()
    wait_until(lambda: not spill_files(home))
    heir.disable_provenance_queue()
    assert seen(heir, record) == [*"abcdef"]
    (letter,) = DeadLetters(store.layout).all()
    assert letter.keys == [("f" * 16, 2)]
    assert "it cannot be spilled" in letter.reason


@pytest.mark.parametrize("name", ["raising", "itself", "deep"])
def test_a_drain_gives_up_one_entry_once(store: MemoryStore, record_id: UUID, name: str) -> None:  # noqa: F811
    queue = ProvenanceWriteQueue(store, coalesce_ms=0)
    queue.start()
    queue.enqueue(pairs(record_id, "ab"))
    queue._broker.push([parcel_of(store, record_id, 1, entry("c"), entry("bad", more=HOSTILE[name]), entry("d"))])
    queue.enqueue(pairs(record_id, "ef"))
    assert queue.flush(20)
    queue.stop()
    assert seen(store, record_id) == [*"abcdef"]
    (letter,) = DeadLetters(store.layout).all()
    assert letter.keys == [("f" * 16, 2)]


def deep(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


def hand_made(store: MemoryStore, record: UUID, levels: int) -> bytes:
    """A parcel as another program may have written it: its second entry nests ``levels`` deep."""
    good = encode(parcel_of(store, record, 1, entry("a"), entry("bad", more="HERE"), entry("b")))
    return good.replace(b'"HERE"', deep(levels))


DEEP = {300: [*"xabyz"], 900: [*"xyz"], 5000: [*"xyz"]}  # from 500 levels on no part of a parcel is safe to read


@pytest.mark.parametrize("levels", DEEP)
@pytest.mark.parametrize("way", ["replay", "adoption", "apply", "worker"])
def test_an_item_that_nests_too_deep_takes_nothing_with_it(
    store: MemoryStore,
    record_id: UUID,  # noqa: F811
    home: Path,
    levels: int,
    way: str,
) -> None:
    before = encode(parcel_of(store, record_id, 1, entry("x"), producer="e" * 16))
    after = encode(parcel_of(store, record_id, 2, entry("y"), entry("z"), producer="e" * 16))
    lines = [before, hand_made(store, record_id, levels), after]
    folder = home / ".iai-mcp" / ".provenance-overflow"
    connection = fakeredis.FakeStrictRedis()
    if way == "worker":
        pending = Keys("", store.store_id).lane(lane_of(record_id, store.lanes), "pending")
        connection.rpush(pending, *lines)
    else:
        folder.mkdir(parents=True)
        (folder / "left.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    if way == "apply":
        recovery.apply(store)
    elif way == "adoption":
        store.enable_provenance_queue(coalesce_ms=0)
        wait_until(lambda: not (folder / "left.jsonl").exists(), 20)
        store.disable_provenance_queue()
    else:
        store.enable_provenance_queue(connection=connection)
        wait_until(lambda: not (folder / "left.jsonl").exists(), 20)
        drained(store, connection)
        store.disable_provenance_queue()
    assert seen(store, record_id) == DEEP[levels]
    letters = DeadLetters(store.layout).all()
    aside = [line for path in folder.glob("*.failed-*") for line in path.read_bytes().splitlines()]
    raw = [base64.b64decode(letter.raw or "") for letter in letters]
    assert len(raw) + len(aside) == 1
    assert deep(levels) in [*raw, *aside][0]


def drained(store: MemoryStore, connection: Any) -> None:
    """Drain every lane, as a worker does."""
    from iai_mcp.broker.factory import redis_broker
    from iai_mcp.pipeline.drain import Outcome, drain

    broker = redis_broker(store.settings, store.store_id, store.lanes, connection)
    for lane in range(store.lanes):
        report = drain(store, broker, lane, RecordsCache(), DrainPolicy(linger=0, backoff=0))
        assert report.outcome is Outcome.EMPTY, report


def test_a_batch_that_is_tried_again_leaves_each_letter_once(store: MemoryStore, record_id: UUID) -> None:  # noqa: F811
    gate = Gate(store)
    claimed: list[Claimed] = [MalformedItem(b"junk", "no parcel")]
    claimed.append(parcel_of(store, record_id, 1, *map(entry, "abcd")))
    tries = 0

    def failing(batch: list[Any]) -> BaseException | None:
        nonlocal tries
        if any(one["cue"] == "b" for _, one in batch):
            return ValueError("never")
        tries += 1
        return OSError(errno.ENOSPC, "disk full") if tries < 4 else None

    gate.fail = failing
    writer = EntryWriter(store, RecordsCache(), DrainPolicy(max_batch=2, tries=1), DrainReport(0))
    while True:
        try:
            writer.write(claimed)
        except OSError:
            continue
        break
    assert seen(store, record_id) == [*"acd"]
    assert [letter.raw is None for letter in DeadLetters(store.layout).all()] == [False, True]


# -- recalls


@pytest.mark.parametrize("way", ["embedded", "direct"])
def test_a_recall_leaves_a_trace_whatever_its_cue_is(store: MemoryStore, way: str) -> None:
    store.insert(record := _make())
    if way == "embedded":
        store.enable_provenance_queue(coalesce_ms=0)
    broken = dispatch(
        store, "memory_recall", {"cue": "where \ud800?", "session_id": "\udcff", "cue_embedding": [1.0] * 384}
    )
    msgspec.json.encode(broken)
    giant = recall(store, "key " * 300_000, "s", cue_embedding=[1.0] * 384)
    store.disable_provenance_queue()
    assert [len(broken["hits"]), len(giant.hits)] == [1, 1]
    found = store.get(record.id)
    assert found is not None
    assert [one["session_id"] for one in found.provenance] == ["?", "s"]
    assert found.provenance[0]["cue"] == "where ??"
    assert found.provenance[1]["cue"] == ("key " * 300_000)[:8000] + "…"
    assert store.provenance_failures == 0


def test_a_recall_whose_trace_is_refused_answers_and_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore(tmp_path / "tight", settings=Settings(max_entry_bytes=100))
    store.insert(_make())
    assert len(recall(store, "key", "s", cue_embedding=[1.0] * 384).hits) == 1
    assert store.provenance_failures == 1
    assert "1 provenance entries were not taken" in caplog.text


# -- any mixture, any failure


class Trouble:
    """Lets broker, store and process fail as an example says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = MemoryStore(path, settings=Settings(stop_budget=0.05))
        self.ids = [self.store.insert(_make()) for _ in range(2)]
        self.gate = Gate(self.store)
        self.good: dict[tuple[UUID, str], list[str]] = {}  # by record and producer: that order is promised
        self.bad = 0
        self.count = 0
        self.queue = self._queue()

    def _queue(self) -> ProvenanceWriteQueue:
        queue = ProvenanceWriteQueue(self.store, coalesce_ms=0, max_queue_size=2)
        queue.start()
        return queue

    def call(self, shape: list[str | None]) -> None:
        """One ``enqueue``: good entries, and a bad one for each name."""
        given = []
        for name in shape:
            self.count += 1
            record = self.ids[self.count % 2]
            given.append((record, entry(self.count, **({"more": HOSTILE[name]} if name else {}))))
        if any(shape):
            with pytest.raises(BadParams):
                self.queue.enqueue(given)
        else:
            self.queue.enqueue(given)
            for record, one in given:
                self.good.setdefault((record, self.queue.producer), []).append(one["cue"])

    def slip(self, name: str) -> None:
        """An entry that got past ``enqueue``: only an older version or another program makes one."""
        self.bad += 1
        parcel = parcel_of(
            self.store, self.ids[0], 1, entry("bad", more=HOSTILE[name]), producer=f"{self.bad:016x}"
        )
        self.queue._broker.push([parcel], replay=True)

    def fail(self, failing: bool) -> None:
        self.gate.fail = (lambda _: OSError(errno.EIO, "ill")) if failing else (lambda _: None)

    def stop(self, adopted: bool) -> None:
        self.queue.stop()
        if adopted:
            self.queue = self._queue()
        else:
            self.queue.start()

    def end(self) -> None:
        self.fail(False)
        self.queue.flush(20)
        self.queue.stop()
        recovery.apply(self.store)


CALLS = st.tuples(
    st.just("call"), st.lists(st.none() | st.sampled_from(["raising", "itself", "deep", "digits"]), max_size=4)
)
STEPS = st.lists(
    CALLS
    | st.tuples(st.just("slip"), st.sampled_from(["raising", "itself", "deep"]))
    | st.tuples(st.just("fail"), st.booleans())
    | st.tuples(st.just("stop"), st.booleans()),
    min_size=2,
    max_size=12,
)


ALL_BAD = [
    ("slip", "raising"),
    ("slip", "raising"),
    ("call", [None]),
    ("stop", False),
]  # nothing of it can be spilled


@example(steps=ALL_BAD)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_good_entries_arrive_once_and_in_order_whatever_is_among_them(steps: Any, tmp_path: Path) -> None:
    trouble = Trouble(tmp_path / uuid4().hex)
    try:
        for name, what in steps:
            getattr(trouble, name)(what)
    finally:
        trouble.end()
    for record in trouble.ids:
        trail = [cue for cue in seen(trouble.store, record) if cue != "bad"]
        sent = [expected for (of, _), expected in trouble.good.items() if of == record]
        assert sorted(trail) == sorted(chain.from_iterable(sent))
        for expected in sent:
            assert [cue for cue in trail if cue in expected] == expected
    letters = DeadLetters(trouble.store.layout).all()
    assert sorted(key for letter in letters for key in letter.keys) == sorted(
        (f"{at:016x}", 1) for at in range(1, trouble.bad + 1)
    )
