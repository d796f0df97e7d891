"""A push's two forms, transaction and script: the same effect, all or nothing, whatever the server answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import redis
from redis.exceptions import RedisError

from iai_mcp.broker.protocol import Pushed, Refused
from iai_mcp.broker.redis import client
from iai_mcp.broker.redis.broker import RedisBroker
from iai_mcp.broker.redis.keys import Keys
from iai_mcp.broker.redis.options import RedisOptions
from iai_mcp.broker.redis.push_transaction import Transactions
from iai_mcp.broker.redis.resp import OTHER, Reply, answers, usual
from iai_mcp.entries.routing import lane_of
from iai_mcp.store import MemoryStore
from tests.broker.redis.test_redis import Start, lanes_now, patient, record_id, seen, spill_files, start  # noqa: F401
from tests.broker.test_brokers import LANES, numbers, parcel
from tests.chaos.proxy import Proxy
from tests.servers import Server, serving
from tests.support import entry, wait_until
from tests.test_store import _make
from workers.runner import runner_for

STORE = "ab" * 16
KEYS = Keys("", STORE)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("redis"), acl=False) as server:
        yield server


@pytest.fixture
def server(running: Server) -> Server:
    """A server with nothing in it, and with the settings that it began with."""
    admin = running.client()
    admin.execute_command("REPLICAOF", "NO", "ONE")
    admin.config_set("maxmemory", 0)
    admin.config_set("min-replicas-to-write", 0)
    admin.acl_deluser("fenced")
    admin.flushall()
    admin.config_resetstat()
    return running


Make = Callable[..., RedisBroker]


@pytest.fixture
def make(server: Server) -> Iterator[Make]:
    """Connected brokers of one store."""
    made: list[RedisBroker] = []

    def connected(connection: redis.Redis | None = None, ceiling: int = 100, push_s: float = 2.0) -> RedisBroker:
        options = RedisOptions(ceiling=ceiling, push_s=push_s)
        made.append(RedisBroker(connection or server.client(), STORE, LANES, options))
        assert made[-1].try_connect(), made[-1].trouble
        return made[-1]

    yield connected
    for broker in made:
        broker.close()


def fenced(server: Server, *rules: str) -> redis.Redis:
    """A client of a user who may do everything but for what ``rules`` say."""
    everything = ["reset", "on", ">secret", "~*", "+@all"]
    server.client().execute_command("ACL", "SETUSER", "fenced", *everything, *rules)
    return redis.Redis(port=server.port, username="fenced", password="secret")


def calls(server: Server, *commands: str) -> int:
    """How often the server was asked for these."""
    stats: Any = server.client().info("commandstats")
    return sum(int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"]) for command in commands)


def drained(broker: RedisBroker, lane: int, items: int = 1000) -> list[int]:
    """The numbers of entries that a drain gets out of a lane, which it acknowledges."""
    lease = broker.lease(lane)
    assert lease is not None
    claimed = broker.claim(lease, items, 0.0)
    broker.ack(lease, len(claimed))
    broker.release(lease)
    return numbers(claimed)


def state(server: Server) -> dict[bytes, Any]:
    """Everything that a push changes."""
    admin = server.client()
    kept: dict[bytes, Any] = {key: admin.lrange(key, 0, -1) for key in admin.scan_iter("*:pending")}
    return {**kept, b"counts": admin.hgetall(KEYS.counts), b"pushed": admin.hgetall(KEYS.pushed)}


# -- which form


def test_a_push_into_lanes_with_room_is_a_transaction_and_no_script(server: Server, make: Make) -> None:
    broker = make()
    server.client().config_resetstat()
    trips = broker.round_trips
    for number in range(1, 11):
        assert broker.push([parcel(lane, number) for lane in range(LANES)]) == Pushed()
    assert (calls(server, "exec"), broker.round_trips - trips) == (10, 10)
    assert calls(server, "eval", "evalsha") == 0
    assert broker.mark() == (10,) * LANES
    assert drained(broker, 1) == list(range(1, 11))


def test_both_forms_leave_the_same_behind(server: Server, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    parcels = [[parcel(lane, *range(turn, turn + 3)) for lane in (turn % 4, 3 - turn % 4)] for turn in (1, 2, 3)]
    left = []
    for transacts in (True, False):
        server.client().flushall()
        monkeypatch.setattr("iai_mcp.broker.redis.sender.transacts", lambda client, there=transacts: there)
        broker = make()
        assert [broker.push(each) for each in parcels] == [Pushed()] * 3
        left.append((state(server), broker.mark(), sorted(broker._bells.due)))
    assert left[0] == left[1]


# -- the ceiling


def test_one_producer_keeps_to_the_ceiling_exactly(server: Server, make: Make) -> None:
    broker = make(ceiling=10)
    results = [broker.push([parcel(0, 2 * turn, 2 * turn + 1), parcel(1, turn)]) for turn in range(1, 9)]
    assert results == [Pushed()] * 5 + [Refused("full")] * 3
    assert (drained(broker, 0, 4), drained(broker, 1)) == ([2, 3, 4, 5], [1, 2, 3, 4, 5])
    results = [broker.push([parcel(0, 2 * turn, 2 * turn + 1)]) for turn in range(9, 13)]
    assert results == [Pushed()] * 2 + [Refused("full")] * 2
    again = make(ceiling=10)  # which knows how full the lanes are
    assert again.push([parcel(1, 1), parcel(0, 1)]) == Refused("full")
    assert drained(again, 1) == []
    assert drained(again, 0) == [6, 7, 8, 9, 10, 11, 18, 19, 20, 21]


def test_several_producers_pass_the_ceiling_by_one_push_each_at_most(server: Server, make: Make) -> None:
    producers = [make(ceiling=10) for _ in range(4)]
    for turns in range(1, 4):  # whatever the drains make of it in between
        for _ in range(20):
            for producer in producers:
                producer.push([parcel(0, 1, 2)])
        held = producers[0].stats()[0].pending
        assert 10 <= held <= 10 + (len(producers) - 1) * 2
        assert [producer.push([parcel(0, 1)]) for producer in producers] == [Refused("full")] * 4
        assert len(drained(producers[0], 0, 2 * turns)) == 2 * turns


def test_a_parcel_above_the_ceiling_fits_an_empty_lane(server: Server, make: Make) -> None:
    broker = make(ceiling=2)
    assert broker.push([parcel(0, 1, 2, 3)]) == Pushed()
    assert broker.push([parcel(0, 4)]) == Refused("full")
    assert drained(broker, 0) == [1, 2, 3]


# -- servers that refuse


@pytest.mark.parametrize("rules", [["-multi", "-exec"], ["-multi"], ["-exec"]], ids=" ".join)
def test_where_transactions_are_not_allowed_the_script_pushes(
    server: Server, make: Make, rules: list[str]
) -> None:
    broker = make(fenced(server, *rules))
    for number in range(1, 6):
        assert broker.push([parcel(0, number), parcel(1, number)]) == Pushed()
    assert calls(server, "evalsha") == 2 + 5  # the first two ask for the epoch and for the counts
    assert (drained(make(), 0), drained(make(), 1)) == ([1, 2, 3, 4, 5],) * 2


def test_where_a_transaction_can_begin_and_not_end_the_script_pushes(tmp_path: Path, make: Make) -> None:
    with serving(tmp_path / "redis", "--rename-command", "EXEC", "", acl=False) as server:
        assert make(server.client()).push([parcel(0, 1), parcel(1, 1)]) == Pushed()
        assert server.client().llen(KEYS.lane(1, "pending")) == 1


def test_where_they_are_forbidden_later_nothing_is_lost_and_it_is_asked_once(server: Server, make: Make) -> None:
    broker = make(fenced(server))
    broker.push([parcel(0, 1), parcel(1, 1)])
    fenced(server, "-multi")
    for number in (2, 3, 4):
        assert broker.push([parcel(0, number), parcel(1, number)]) == Pushed()
    # The commands ran one by one, and then the script: the store takes the first of two and drops the other.
    assert (drained(make(), 0), drained(make(), 1)) == ([1, 2, 2, 3, 4],) * 2


def refuse_memory(server: Server) -> None:
    server.client().config_set("maxmemory", 1)


def refuse_without_replicas(server: Server) -> None:
    server.client().config_set("min-replicas-to-write", 1)


def refuse_as_a_replica(server: Server) -> None:
    server.client().execute_command("REPLICAOF", "127.0.0.1", "1")


def refuse_one_lane(server: Server) -> None:
    fenced(server, "resetkeys", f"~{KEYS.counts}", f"~{KEYS.lane(0, '*')}")


REFUSALS = [refuse_memory, refuse_without_replicas, refuse_as_a_replica, refuse_one_lane]


@pytest.mark.parametrize("refuse", REFUSALS, ids=lambda how: how.__name__)
def test_a_push_that_is_refused_leaves_nothing_behind(
    server: Server, make: Make, refuse: Callable[[Server], None]
) -> None:
    broker = make(fenced(server))
    broker.push([parcel(lane, 1) for lane in range(3)])
    before = state(server)
    refuse(server)
    assert isinstance(broker.push([parcel(lane, 2) for lane in range(3)]), Refused)
    assert broker.trouble is not None
    assert state(server) == before


def test_a_lane_that_is_no_list_means_spill_and_doubles_nothing(
    store: MemoryStore,
    server: Server,
    home: Path,
    start: Start,  # noqa: F811
) -> None:
    ids = {lane_of(one, store.lanes): one for one in store.insert_many([_make() for _ in range(64)])}
    queue = start(server.client(), patient(store))
    wrong = Keys("", store.store_id).lane(2, "pending")
    server.client().set(wrong, "somebody else's")
    recalls = [[(ids[lane], entry(cue)) for lane in (1, 2, 3)] for cue in "ab"]
    for pairs in recalls:
        queue.enqueue(pairs)
    assert spill_files(home)
    server.client().delete(wrong)
    wait_until(lambda: not spill_files(home))
    runner = runner_for(store.store_id, server.client())
    # What was counted and never came is not waited for.
    wait_until(lambda: runner.drain_all() and queue.flush(0.1), 20)
    assert [seen(store, ids[lane]) for lane in (1, 2, 3)] == [["a", "b"]] * 3
    assert lanes_now(queue) == (0, 0)


@pytest.mark.parametrize("durability", ["memory", "fsync"])
@pytest.mark.parametrize("moment", ["sendall", "recv"])
def test_an_interrupted_push_leaves_no_answer_to_the_next_and_loses_nothing(
    store: MemoryStore,
    server: Server,
    record_id: UUID,  # noqa: F811
    start: Start,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    durability: str,
    moment: str,
) -> None:
    """Ctrl-C comes before the push has gone out, or while a recall waits for the answer to what Redis has done."""
    admin = server.client()
    admin.config_set("appendfsync", "always" if durability == "fsync" else "everysec")
    queue = start(server.client(), patient(store, redis_durability=durability))
    queue.enqueue([(record_id, entry("a"))])
    whole, interrupts = getattr(client._Socket, moment), [KeyboardInterrupt]

    def interrupted(self: Any, *args: Any) -> Any:
        if interrupts and threading.current_thread() is threading.main_thread():
            interrupt = interrupts.pop()
            if moment == "recv":
                wait_until(lambda: lanes_now(queue)[0] == 2)
            raise interrupt
        return whole(self, *args)

    monkeypatch.setattr(client._Socket, moment, interrupted)
    with pytest.raises(KeyboardInterrupt):
        queue.enqueue([(record_id, entry("b"))])
    admin.config_set("maxmemory", 1)  # what is refused must not be taken for the answer to "b"
    queue.enqueue([(record_id, entry("c"))])
    admin.config_set("maxmemory", 0)
    queue.enqueue([(record_id, entry("d"))])
    assert not interrupts
    runner = runner_for(store.store_id, server.client())
    wait_until(lambda: runner.drain_all() and queue.flush(0.1), 20)
    assert seen(store, record_id) == ["a", "b", "c", "d"]


def test_a_connection_that_is_owed_an_answer_is_not_used_again(
    server: Server, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    broker = make()
    with monkeypatch.context() as patch:
        patch.setattr(client._Socket, "recv", interrupt)
        with pytest.raises(KeyboardInterrupt):
            broker.push([parcel(0, 1)])
    assert isinstance(broker.push([parcel(0, 2)]), Refused)
    assert broker.try_connect()
    assert isinstance(broker.push([parcel(0, 2)]), Pushed)


# -- replies


EPOCH = b"+OK\r\n$3\r\nnow\r\n"
GOOD = b"+OK\r\n" + b"+QUEUED\r\n" * 4 + b"*4\r\n:12\r\n:1\r\n:7\r\n:3\r\n"
LANE_WRONG = GOOD.replace(b":3\r\n", b"-WRONGTYPE Operation against a key\r\n")
OUT_OF_MEMORY = b"+OK\r\n" + b"-OOM command not allowed\r\n" * 4 + b"-EXECABORT Transaction discarded\r\n"
NOT_THE_FIRST = b"+OK\r\n+QUEUED\r\n-NOPERM no such key\r\n+QUEUED\r\n+QUEUED\r\n-EXECABORT discarded\r\n"
NO_MULTI = b"-NOPERM multi\r\n:12\r\n:1\r\n:7\r\n:3\r\n-ERR EXEC without MULTI\r\n"
LOGGED_OUT = b"-NOAUTH Authentication required.\r\n" * 6
WATCHED = b"+OK\r\n" + b"+QUEUED\r\n" * 4 + b"*-1\r\n"


@pytest.mark.parametrize("aof", [b"", b"*2\r\n:1\r\n:0\r\n", b"-ERR WAITAOF cannot be used\r\n"])
@pytest.mark.parametrize(
    ("reply", "means"),
    [
        (GOOD, [12, 1, 7, 3]),
        (LANE_WRONG, OTHER),
        (OUT_OF_MEMORY, OTHER),
        (NOT_THE_FIRST, OTHER),
        (NO_MULTI, OTHER),
        (LOGGED_OUT, OTHER),
        (WATCHED, None),
    ],
)
def test_a_reply_is_read_whole_wherever_it_is_cut(reply: bytes, aof: bytes, means: Reply) -> None:
    head, whole = Transactions.head(2), reply + EPOCH + aof
    further = [] if not aof else [[1, 0]] if aof.startswith(b"*") else [OTHER]
    assert answers(whole, head) == [means, OTHER, b"now", *further]
    cuts = [len(answers(whole[:cut], head)) for cut in range(len(whole))]
    rest = [1] * len(b"+OK\r\n") + [2] * (len(EPOCH) - len(b"+OK\r\n")) + [3] * len(aof)
    assert cuts == [0] * len(reply) + rest


@pytest.mark.parametrize(
    ("between", "means"),
    [
        (b"*4\r\n:12\r\n:1\r\n:7\r\n:3", [12, 1, 7, 3]),
        (b"*4\r\n:12\r\n:1\r\n:7\r\n-WRONGTYPE", None),
        (b"*5\r\n:12\r\n:1\r\n:7\r\n:3", None),
        (b"*-1", None),
        (b"", None),
    ],
)
def test_the_usual_reply_is_read_at_once_and_no_other(between: bytes, means: list[int] | None) -> None:
    head, tail = Transactions.head(2), b"\r\n" + EPOCH
    assert usual(head + between + tail, head, tail) == means
    assert usual((head + between + tail)[:-1], head, tail) is None
    assert usual((head + between + tail)[1:], head, tail) is None


def test_a_reply_that_drips_is_waited_for_and_leaves_nothing_unread(server: Server, make: Make) -> None:
    proxy = Proxy(server.port)
    try:
        broker = make(redis.Redis(port=proxy.port))
        proxy.set("drip")
        assert broker.push([parcel(0, 1), parcel(1, 1)]) == Pushed()
        assert broker.mark() == (1, 1, 0, 0)
        server.client().set(KEYS.lane(2, "pending"), "no list")
        assert isinstance(broker.push([parcel(0, 2), parcel(2, 2)]), Refused)
        assert "WRONGTYPE" in str(broker.trouble)
        broker.close()
    finally:
        proxy.close()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n" * 9, GOOD * 2, b"*what\r\n" * 9])
def test_what_is_no_answer_to_a_push_ends_the_connection(
    server: Server, make: Make, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    broker = make()
    assert broker._push is not None
    bounded: Any = broker._push.client.connection.bounded  # type: ignore[union-attr]
    monkeypatch.setattr(type(bounded), "recv", lambda *_: answer)
    assert isinstance(broker.push([parcel(0, 1), parcel(1, 1)]), Refused)
    monkeypatch.undo()
    assert isinstance(broker.push([parcel(0, 2)]), Refused)
    assert broker.try_connect()
    assert broker.push([parcel(0, 3)]) == Pushed()


def test_errors_of_the_server_are_told_in_its_own_words(server: Server, make: Make) -> None:
    broker = make(fenced(server))
    refuse_memory(server)
    refused = broker.push([parcel(0, 1)])
    assert isinstance(refused, Refused)
    assert refused.reason.startswith("OutOfMemoryError: command not allowed when used memory > 'maxmemory'")
    with pytest.raises(RedisError):
        server.client().set("a", "b")
