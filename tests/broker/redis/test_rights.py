"""What each user of ``deploy/redis/users.acl`` can do: every command, every kind of key, others' entries."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
import redis

from iai_mcp.broker.redis.keys import QUEUE, Count, Keys
from iai_mcp.broker.redis.place import take_place
from iai_mcp.common.place import Place
from iai_mcp.config import Settings
from iai_mcp.maintenance.inventory import FindingKind
from iai_mcp.maintenance.verify import verify
from iai_mcp.storage.place import store_place
from iai_mcp.store import MemoryStore
from tests.broker.redis.test_redis import Start, broker_of, patient, start  # noqa: F401
from tests.broker.redis.test_stray_values import Scene
from tests.servers import Server, serving
from tests.support import ROOT, wait_until
from workers import ProvenanceWorker

USERS = ("producer", "worker", "ops", "dashboard", "scaler", "health")
KEYS = Keys("", "a" * 32)
KINDS = {
    "`iai-mcp:*:lane:N:pending`": KEYS.lane(1, "pending"),
    "`iai-mcp:*:lane:N:lease`": KEYS.lane(1, "lease"),
    "`iai-mcp:*:lane:N:state`": KEYS.lane(1, "state"),
    "`iai-mcp:*:pushed`": KEYS.pushed,
    "`iai-mcp:*:counts`": KEYS.counts,
    "`iai-mcp:*:epoch`": KEYS.epoch,
    "`iai-mcp:*:place`": KEYS.place,
    "`iai-mcp:*:aside`": KEYS.aside,
    "`iai-mcp:*:aside:*`": f"{KEYS.aside}:pending:1:{'0' * 16}",
    "`rq:queue:*`": f"rq:queue:{QUEUE}",
    "`rq:queues`": "rq:queues",
    "`rq:job:*`": "rq:job:x",
    "`rq:ready:*`": f"rq:ready:{QUEUE}",
    "other registries": f"rq:wip:{QUEUE}",
    "`rq:execution:*`": "rq:execution:x",
    "`rq:executions:*`": "rq:executions:x",
    "`rq:results:*`": "rq:results:x",
    "`rq:workers`, `rq:workers:*`": "rq:workers",
    "`rq:worker:*`": "rq:worker:x",
    "any other key": "billing:card",
}
RUNS = {"eval", "evalsha"}  # a script has no rights but its user's
# what RQ's worker does to RQ's keys
RQ_WORKER = [
    "blmove",
    "del",
    "expire",
    "hincrby",
    "hincrbyfloat",
    "hset",
    "lmove",
    "lpop",
    "lrem",
    "persist",
    "rpush",
    "sadd",
    "set",
    "srem",
    "xadd",
    "zadd",
    "zrem",
    "zremrangebyscore",
]


@dataclass(frozen=True, slots=True)
class Command:
    """A command of the server, and how to call it on a key; None among the arguments stands for the key."""

    name: str
    writes: bool
    arguments: tuple[str | None, ...]

    def on(self, key: str) -> list[str]:
        """The words of a call."""
        return [*self.name.split("|"), *[key if one is None else one for one in self.arguments]]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("redis"), acl=True) as running:
        yield running


@pytest.fixture(scope="module")
def commands(deployed: Server) -> list[Command]:
    """Every command that works on keys, those of containers included."""
    client = deployed.client()
    told: list[Any] = client.execute_command("COMMAND")
    rows = [*told.values()] if isinstance(told, dict) else told
    found = [_command(client, name, flags, arity) for name, flags, arity in _rows(rows)]
    keyed = [one for one in found if one is not None]
    assert len(keyed) > 150
    assert {"rpush", "set", "rename", "evalsha", "xgroup|create", "zunionstore"} <= {one.name for one in keyed}
    return keyed


def _rows(rows: list[Any]) -> Iterator[tuple[str, set[str], int]]:
    for row in rows:
        if isinstance(row, dict):
            name, flags, arity, inner = row["name"], row["flags"], row["arity"], row.get("subcommands") or []
        else:
            name, arity, flags, inner = row[0], row[1], row[2], row[9] if len(row) > 9 else []
        name = name.decode() if isinstance(name, bytes) else name
        yield name.lower(), {_text(flag) for flag in flags}, int(arity)
        yield from _rows([*inner.values()] if isinstance(inner, dict) else inner)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _command(client: redis.Redis, name: str, flags: set[str], arity: int) -> Command | None:
    """How to call it, as the server finds its keys; None for one without keys."""
    least = abs(arity) - 1 - name.count("|")
    shapes: list[tuple[str | None, ...]] = [
        (None, *["1"] * (least - 1)),
        (None, None, *["1"] * (least - 2)),
        ("1", None, *["1"] * (least - 2)),
        ("1", "1", None, *["1"] * (least - 3)),
        (None, "1", None, *["1"] * (least - 3)),
        ("1", "1", "1", None),
        ("1", "1", "streams", None, "1"),
        ("group", "1", "1", "streams", None, "1"),
        ("streams", None, "1"),
        ("127.0.0.1", "1", None, "0", "1"),
    ]
    fitting = []
    for shape in shapes:
        call = Command(name, "write" in flags, shape)
        try:
            keys = client.execute_command("COMMAND GETKEYS", *call.on("the-key"))
        except redis.ResponseError:
            continue
        if all(_text(key) == "the-key" for key in keys):
            fitting.append(call)
    return max(fitting, key=lambda one: one.arguments.count(None), default=None)


def let_through(server: Server, commands: list[Command]) -> dict[tuple[str, str], tuple[list[str], bool]]:
    """For each kind of key and user: the writing commands that go through, and whether one that reads does."""
    calls = [(kind, user, one) for kind in KINDS for user in USERS for one in commands]
    pipe = server.client().pipeline(transaction=False)
    for kind, user, one in calls:
        pipe.execute_command("ACL DRYRUN", user, *one.on(KINDS[kind]))
    found: dict[tuple[str, str], tuple[list[str], bool]] = {}
    for (kind, user, one), answer in zip(calls, pipe.execute(raise_on_error=False), strict=True):
        assert not isinstance(answer, Exception), (one, answer)
        writing, reads = found.get((kind, user), ([], False))
        if _text(answer) == "OK" and one.name not in RUNS:
            writing, reads = ([*writing, one.name], reads) if one.writes else (writing, True)
        found[kind, user] = writing, reads
    return found


def cell(writing: list[str], reads: bool) -> str:
    names = sorted(set(writing))
    words = ["all that RQ does"] if names == RQ_WORKER else [f"`{name}`" for name in names]
    return ", ".join([*words, *(["reads"] if reads else [])]) or "-"


def test_the_documentation_says_what_each_user_can_do_to_each_kind_of_key(
    deployed: Server, commands: list[Command]
) -> None:
    found = let_through(deployed, commands)
    shown = USERS[:-1]
    assert all(found[kind, "health"] == ([], False) for kind in KINDS)
    rows = [f"| {kind} | {' | '.join(cell(*found[kind, user]) for user in shown)} |" for kind in KINDS]
    print("\n".join(rows))  # noqa: T201  for who changes the rights
    documented = (ROOT / "docs" / "operations.md").read_text()
    table = re.search(r"\| Kind of key \|.*\n\|.*\n((?:\|.*\n)+)", documented)
    assert (table[1].splitlines() if table else []) == rows


# -- what becomes of others' entries

REORDERED = {("worker", "`iai-mcp:*:lane:N:pending`")}  # as the documentation says
STRAY = ("stray", "{}", "9" * 30, "-5", "1:pushed")


def attempts(command: str, key: str, keys: Keys) -> list[list[Any]]:
    """Hostile arguments for a writing command."""
    fields = [count.of(1) for count in Count]
    known: dict[str, list[list[Any]]] = {
        "rpush": [[one] for one in STRAY] + [["x"] * 2000],
        "hincrby": [[field, by] for field in fields for by in (200_000, -200_000, 2**62)],
        "hset": [[field, value] for field in [*fields, "token", "data"] for value in STRAY],
        "set": [[value] for value in STRAY],
        "rename": [[f"{keys.aside}:stray"]],
        "ltrim": [[1, -1], [1, 0]],
        "pexpire": [[86_400_000], [1]],
        "zadd": [[1, "stray"]],
        "zremrangebyscore": [["-inf", "+inf"]],
        "lrem": [[0, "stray"]],
        "xadd": [["*", "stray", "1"]],
        "expire": [[86_400], [0]],
        "hincrbyfloat": [["stray", "1.5"]],
        "lmove": [[key, "LEFT", "RIGHT"]],
        "blmove": [[key, "LEFT", "RIGHT", 0.01]],
        "del": [[]],
        "persist": [[]],
        "lpop": [[]],
    }
    return known.get(command, [["stray"]])


def keys_of(kind: str, keys: Keys) -> str:
    """The key of a kind, of a store that others use."""
    return KINDS[kind].replace(KEYS.prefix, keys.prefix)


@pytest.fixture
def bystanders(
    store: MemoryStore,
    deployed: Server,
    start: Start,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> Scene:
    """A client and a worker at their daily work, as the users of a deployment."""
    deployed.client().flushall()
    monkeypatch.setenv("IAI_MCP_STORE", str(store.path))
    queue = start(deployed.client("producer"), patient(store))
    worker = ProvenanceWorker([QUEUE], connection=deployed.client("worker"))
    made = Scene(store, queue, deployed.client(), worker)
    made.recall()
    made.settle()
    return made


@pytest.mark.parametrize("user", ["producer", "worker", "ops", "dashboard"])
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_goes_through_costs_a_living_client_no_entry(
    deployed: Server, commands: list[Command], bystanders: Scene, user: str, kind: str
) -> None:
    """Those who may write are tried with stray values before, between and after the entries of others."""
    key, keys = keys_of(kind, bystanders.keys), bystanders.keys
    pipe = deployed.client().pipeline(transaction=False)
    writing = [one for one in commands if one.writes]
    for one in writing:
        pipe.execute_command("ACL DRYRUN", user, *one.on(key))
    allowed = [one.name for one, answer in zip(writing, pipe.execute(), strict=True) if _text(answer) == "OK"]
    client = deployed.client(user)
    for command in allowed:
        bystanders.recall(1)
        for arguments in attempts(command, key, keys):
            with suppress(redis.ResponseError):  # a key of another type
                client.execute_command(command, key, *arguments)
    bystanders.recall(1)
    bystanders.settle(30, in_order=(user, kind) not in REORDERED)
    told = verify(bystanders.store.layout, bystanders.store.settings, settle=0)
    assert [one for one in told.breaches if one.kind is not FindingKind.OUT_OF_ORDER] == []
    assert told.clean or (user, kind) in REORDERED
    deployed.client().acl_log_reset()


def test_a_forged_place_makes_clients_spill_until_an_operator_takes_it_back_and_costs_no_entry(
    deployed: Server, bystanders: Scene
) -> None:
    theirs = Place("b" * 32, "elsewhere", "/not/ours", "note")
    deployed.client("producer").rpush(bystanders.keys.place, msgspec.json.encode(theirs))
    deployed.client().client_kill_filter(_type="normal", skipme=True)  # those that are connected do not look again
    bystanders.recall()
    wait_until(lambda: broker_of(bystanders.queue).refusal)
    bystanders.recall()
    mine = store_place(bystanders.store.layout)
    assert mine is not None
    take_place(deployed.client("producer"), bystanders.keys, mine)
    bystanders.settle(30)


def test_what_a_worker_deletes_of_an_ended_client_is_named_by_verify(
    deployed: Server, bystanders: Scene, store: MemoryStore
) -> None:
    bystanders.recall()
    bystanders.queue.stop()
    mine = deployed.client("worker")
    for lane in range(store.lanes):
        mine.ltrim(bystanders.keys.lane(lane, "pending"), 1, 0)
    bystanders.worker.sweep()
    settings = Settings(store=store.path, redis_url=deployed.url_of("ops"))
    report = verify(store.layout, settings, settle=0)
    lost = [last - first + 1 for producer in report.producers for first, last in producer.lost]
    assert sum(lost) == 3 * store.lanes


def test_a_command_that_a_client_was_denied_fails_a_test_that_serves(deployed: Server) -> None:
    """As every test of ``pytest --acl`` does: a client that may not do a thing often goes on without a word."""
    deployed.client().acl_log_reset()
    with pytest.raises(redis.exceptions.NoPermissionError):
        deployed.client("producer").set("billing:card", "0")
    (denied,) = deployed.denied()
    assert denied.startswith("producer: ")
    deployed.client().acl_log_reset()
