"""One contract, three brokers: in memory, on a stand-in for Redis, and on a real server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import fakeredis
import msgspec
import pytest
import redis

from iai_mcp.broker.memory import MemoryBroker
from iai_mcp.broker.protocol import MalformedItem, Pushed, Refused
from iai_mcp.broker.redis.broker import RedisBroker
from iai_mcp.broker.redis.options import RedisOptions
from iai_mcp.entries.parcel import Parcel
from iai_mcp.entries.routing import lane_of
from iai_mcp.errors import LeaseLost
from iai_mcp.pipeline.drain import DrainPolicy, Outcome, drain
from iai_mcp.storage.dead_letters import DeadLetters
from iai_mcp.store import MemoryStore, RecordsCache
from tests.servers import Server, serving
from tests.support import cues, entry
from tests.test_store import _make

LANES = 4
STORE = "ab" * 16
AnyBroker = MemoryBroker | RedisBroker
Make = Callable[..., AnyBroker]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture
def connection(server: Server) -> Iterator[redis.Redis]:
    client = server.client()
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def as_worker(server: Server, connection: redis.Redis) -> Iterator[redis.Redis]:
    """What workers may do is all that a broker needs: they push, too, what dead clients spilled."""
    client = server.client("worker")
    yield client
    client.close()


@pytest.fixture(params=["memory", "fakeredis", "redis"])
def make(request: pytest.FixtureRequest) -> Make:
    """Makes brokers that share one set of lanes (the one in memory is its own)."""
    if request.param == "memory":
        return lambda capacity=100, **_: MemoryBroker(LANES, capacity)
    client = fakeredis.FakeStrictRedis() if request.param == "fakeredis" else request.getfixturevalue("as_worker")

    def redis_broker(capacity: int = 100, **options: Any) -> RedisBroker:
        made = RedisBroker(client, STORE, LANES, RedisOptions(ceiling=capacity, push_s=1.0, **options))
        made.open()
        return made

    return redis_broker


@pytest.fixture
def broker(make: Make) -> AnyBroker:
    return make()


def parcel(lane: int, *numbers: int, producer: str = "p") -> Parcel:
    items = [(uuid4(), number, entry(number)) for number in numbers]
    return Parcel.of(STORE, lane, producer, time.time(), items)


def numbers(claimed: Any) -> list[int]:
    return [number for item in claimed for number in item.seqs]


# -- the contract


def test_a_lane_is_a_queue_that_gives_everything_once_acknowledged(broker: AnyBroker) -> None:
    assert broker.push([parcel(1, 1, 2), parcel(2, 3)]) == Pushed()
    assert broker.push([parcel(1, 4)]) == Pushed()
    lease = broker.lease(1)
    assert lease is not None
    claimed = broker.claim(lease, 100, 0.0)
    assert numbers(claimed) == [1, 2, 4]
    broker.ack(lease, len(claimed))
    assert broker.claim(lease, 100, 0.0) == []
    assert broker.release(lease)


def test_parcels_survive_the_way_through(broker: AnyBroker) -> None:
    sent = parcel(0, 7)
    broker.push([sent])
    lease = broker.lease(0)
    assert lease is not None
    (got,) = broker.claim(lease, 10, 0.0)
    assert got == sent


def test_what_is_in_flight_comes_again_before_anything_new(broker: AnyBroker) -> None:
    broker.push([parcel(0, 1)])
    broker.push([parcel(0, 2)])
    lease = broker.lease(0)
    assert lease is not None
    assert numbers(broker.claim(lease, 1, 0.0)) == [1]
    broker.push([parcel(0, 3)])
    assert numbers(broker.claim(lease, 100, 0.0)) == [1]
    broker.release(lease)  # as a drain that failed does
    again = broker.lease(0)
    assert again is not None
    assert numbers(broker.claim(again, 100, 0.0)) == [1]
    broker.ack(again, 1)
    assert numbers(broker.claim(again, 100, 0.0)) == [2, 3]


def test_a_claim_is_bounded_but_never_empty_handed(broker: AnyBroker) -> None:
    broker.push([parcel(0, *range(1, 11))])
    broker.push([parcel(0, 11)])
    lease = broker.lease(0)
    assert lease is not None
    assert len(numbers(broker.claim(lease, 4, 0.0))) == 10


def test_one_lease_at_a_time_and_the_old_one_is_worth_nothing(make: Make) -> None:
    broker = make()
    broker.push([parcel(0, 1)])
    first = broker.lease(0)
    assert first is not None
    assert broker.lease(0) is None
    assert broker.lease(1) is not None
    broker.release(first)
    second = broker.lease(0)
    assert second is not None
    assert numbers(broker.claim(second, 10, 0.0)) == [1]
    with pytest.raises(LeaseLost):
        broker.claim(first, 10, 0.0)
    with pytest.raises(LeaseLost):
        broker.ack(first, 1)
    broker.release(first)  # harmless
    broker.ack(second, 1)


def test_a_lane_with_new_work_is_not_let_go_by_accident(broker: AnyBroker) -> None:
    lease = broker.lease(0)
    assert lease is not None
    broker.push([parcel(0, 1)])
    assert not broker.release(lease, if_empty=True)
    broker.ack(lease, len(broker.claim(lease, 10, 0.0)))
    assert broker.release(lease, if_empty=True)


def test_the_linger_counts_from_the_oldest_push(broker: AnyBroker) -> None:
    broker.push([parcel(0, 1)])
    lease = broker.lease(0)
    assert lease is not None
    started = time.monotonic()
    assert numbers(broker.claim(lease, 100, 0.15)) == [1]
    assert 0.1 < time.monotonic() - started < 1.0
    broker.ack(lease, 1)
    old = parcel(0, 2)
    broker.push([old, parcel(1, 3)])
    started = time.monotonic()
    assert numbers(broker.claim(lease, 1, 5.0)) == [2]  # a full batch does not wait
    assert time.monotonic() - started < 1.0


def test_a_push_is_all_or_nothing_when_there_is_no_room(make: Make) -> None:
    broker = make(capacity=2)
    assert broker.push([parcel(0, 1), parcel(1, 1)]) == Pushed()
    assert broker.push([parcel(0, 2)]) == Pushed()
    assert isinstance(broker.push([parcel(1, 4, 5), parcel(0, 3)]), Refused)
    lease = broker.lease(1)
    assert lease is not None
    assert numbers(broker.claim(lease, 10, 0.0)) == [1]


def test_the_barrier_waits_for_what_was_pushed_before_it(broker: AnyBroker) -> None:
    broker.push([parcel(0, 1)])
    mark = broker.mark()
    broker.push([parcel(1, 2)])
    assert not broker.wait_settled(mark, 0.0)
    lease = broker.lease(0)
    assert lease is not None
    broker.ack(lease, len(broker.claim(lease, 10, 0.0)))
    assert broker.wait_settled(mark, 1.0)
    assert not broker.wait_settled(broker.mark(), 0.0)


def test_the_lanes_can_be_looked_at(broker: AnyBroker) -> None:
    broker.push([parcel(0, 1, 2)])
    broker.push([parcel(0, 3)])
    lease = broker.lease(0)
    assert lease is not None
    broker.claim(lease, 2, 0.0)
    stats = broker.stats()[0]
    assert (stats.lane, stats.pending, stats.in_flight) == (0, 1, 2)
    assert stats.oldest_s is not None
    assert 0 <= stats.oldest_s < 5
    assert broker.stats()[1].oldest_s is None


# -- the drain, over each of them


@pytest.fixture
def record_id(store: MemoryStore) -> UUID:
    return store.insert(_make())


def for_store(store: MemoryStore, record_id: UUID, *numbers: int, of: str = STORE) -> Parcel:
    items = [(record_id, number, entry(number)) for number in numbers]
    return Parcel.of(of, lane_of(record_id, LANES), "p", time.time(), items)


def seen(store: MemoryStore, record_id: UUID) -> list[str]:
    found = store.get(record_id)
    assert found is not None
    return cues(found.provenance)


def test_a_drain_moves_a_lane_into_the_store(store: MemoryStore, broker: AnyBroker, record_id: UUID) -> None:
    lane = lane_of(record_id, LANES)
    for first in range(1, 31, 3):
        broker.push([for_store(store, record_id, first, first + 1, first + 2)])
    report = drain(store, broker, lane, RecordsCache(), DrainPolicy(max_batch=7, linger=0))
    assert (report.outcome, report.applied, report.duplicate) == (Outcome.EMPTY, 30, 0)
    assert seen(store, record_id) == [str(number) for number in range(1, 31)]
    assert broker.wait_settled(broker.mark(), 0.0)
    busy = broker.lease(lane)
    assert drain(store, broker, lane, RecordsCache(), DrainPolicy()).outcome is Outcome.LEASED
    assert busy is not None


def test_a_drain_that_died_before_the_ack_is_repeated_without_doubling(
    store: MemoryStore, broker: AnyBroker, record_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = lane_of(record_id, LANES)
    broker.push([for_store(store, record_id, 1, 2)])
    broker.push([for_store(store, record_id, 3)])
    with monkeypatch.context() as patch:
        patch.setattr(broker, "ack", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            drain(store, broker, lane, RecordsCache(), DrainPolicy(max_batch=2, linger=0))
    assert seen(store, record_id) == ["1", "2"]
    broker.push([for_store(store, record_id, 4)])
    report = drain(store, broker, lane, RecordsCache(), DrainPolicy(max_batch=2, linger=0))
    assert (report.applied, report.duplicate) == (2, 2)
    assert seen(store, record_id) == ["1", "2", "3", "4"]


def test_a_drain_stops_when_the_place_fails_and_nothing_is_lost(
    store: MemoryStore, broker: AnyBroker, record_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = lane_of(record_id, LANES)
    broker.push([for_store(store, record_id, 1)])
    with monkeypatch.context() as patch:
        patch.setattr(store, "append_provenance_batch", lambda *_, **__: (_ for _ in ()).throw(OSError("full")))
        report = drain(store, broker, lane, RecordsCache(), DrainPolicy(linger=0))
    assert report.outcome is Outcome.STORE_UNAVAILABLE
    assert broker.stats()[lane].in_flight == 1
    assert drain(store, broker, lane, RecordsCache(), DrainPolicy(linger=0)).applied == 1


# -- what only Redis has


@pytest.fixture(params=["fakeredis", "redis"])
def client(request: pytest.FixtureRequest) -> redis.Redis:
    if request.param == "fakeredis":
        return fakeredis.FakeStrictRedis()
    found: redis.Redis = request.getfixturevalue("connection")
    return found


@pytest.fixture
def lanes(request: pytest.FixtureRequest, client: redis.Redis) -> RedisBroker:
    fake = isinstance(client, fakeredis.FakeStrictRedis)
    made = RedisBroker(
        client if fake else request.getfixturevalue("as_worker"),
        STORE,
        LANES,
        RedisOptions(lease_s=0.2, push_s=1.0, namespace="team"),
    )
    made.open()
    return made


def test_tokens_only_grow_and_start_above_the_tables_high_water_mark(
    lanes: RedisBroker, client: redis.Redis
) -> None:
    first = lanes.lease(0, floor=41)
    assert first is not None
    assert first.token == 42
    lanes.release(first)
    second = lanes.lease(0)
    assert second is not None
    assert second.token == 43
    client.flushall()
    third = lanes.lease(0, floor=43)
    assert third is not None
    assert third.token == 44


def test_a_lease_expires_and_its_holder_is_refused(lanes: RedisBroker, client: redis.Redis) -> None:
    lanes.push([parcel(0, 1)])
    first = lanes.lease(0)
    assert first is not None
    assert numbers(lanes.claim(first, 10, 0.0)) == [1]
    client.pexpire(lanes.keys.lane(0, "lease"), 1)
    while (second := lanes.lease(0)) is None:
        pass
    assert numbers(lanes.claim(second, 10, 0.0)) == [1]
    for stale in (lambda: lanes.claim(first, 10, 0.0), lambda: lanes.ack(first, 1)):
        with pytest.raises(LeaseLost):
            stale()
    assert lanes.stats()[0].in_flight == 1


def test_all_keys_of_a_store_share_one_prefix(lanes: RedisBroker, client: redis.Redis) -> None:
    lanes.push([parcel(n, n) for n in range(LANES)])
    lease = lanes.lease(2)
    assert lease is not None
    lanes.claim(lease, 10, 0.0)
    found = {key.decode() for key in client.scan_iter() if not key.startswith(b"rq:")}  # the standing doorbell
    assert found
    assert all(key.startswith(lanes.keys.prefix) for key in found)
    assert lanes.keys.prefix == f"team:iai-mcp:{STORE}:"


def test_poison_is_buried_and_its_lane_goes_on(store: MemoryStore, client: redis.Redis, record_id: UUID) -> None:
    lane = lane_of(record_id, LANES)
    lanes = RedisBroker(client, store.store_id, LANES, RedisOptions(push_s=1.0))
    lanes.open()
    key = lanes.keys.lane(lane, "pending")
    lanes.push([for_store(store, record_id, 1, of=store.store_id)])
    poison = [b"\xff\xfe\x00", b"{}", b"x" * 10_000_000, b"", b"[1,2]"]
    client.rpush(key, *poison)
    lanes.push([for_store(store, record_id, 2, of=store.store_id)])
    report = drain(store, lanes, lane, RecordsCache(), DrainPolicy(linger=0))
    assert (report.outcome, report.applied, report.dead) == (Outcome.EMPTY, 2, len(poison))
    assert seen(store, record_id) == ["1", "2"]
    assert DeadLetters(store.layout).count() == len(poison)
    assert all(isinstance(letter.raw, str) for letter in DeadLetters(store.layout).all())
    assert isinstance(MalformedItem(b"", ""), MalformedItem)


def test_what_cannot_be_read_counts_as_much_as_was_pushed(client: redis.Redis) -> None:
    """A parcel of a later version: everything after it is found settled when it is."""
    broker = RedisBroker(client, STORE, LANES, RedisOptions(push_s=1.0))
    broker.open()
    broker.push([msgspec.structs.replace(parcel(0, *range(10)), v=99)])
    broker.push([parcel(0, 11)])
    mark = broker.mark()
    broker.push([parcel(0, 12)])
    lease = broker.lease(0)
    assert lease is not None
    assert isinstance(broker.claim(lease, 11, 0.0)[0], MalformedItem)
    broker.ack(lease, 2)
    assert broker.wait_settled(mark, 1.0)
    assert broker.stats()[0].pending == 1


def test_a_connection_that_decodes_is_fine(client: redis.Redis) -> None:
    kind = client.connection_pool.connection_class
    kept = {**client.connection_pool.connection_kwargs, "decode_responses": True}
    decoding = redis.Redis(connection_pool=redis.ConnectionPool(connection_class=kind, **kept))
    lanes = RedisBroker(decoding, STORE, LANES, RedisOptions(push_s=1.0))
    lanes.open()
    assert lanes.push([parcel(0, 1)]) == Pushed()
    lease = lanes.lease(0)
    assert lease is not None
    assert numbers(lanes.claim(lease, 10, 0.0)) == [1]
