"""Forged jobs, floods of doorbells, stray keys of RQ: bystanders' entries come, in bounded memory."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import redis

from iai_mcp.broker.redis.keys import QUEUE, Keys
from iai_mcp.store import MemoryStore
from tests.broker.redis.test_redis import (
    Start,
    patient,
    record_id,  # noqa: F401
    seen,
    start,  # noqa: F401
)
from tests.servers import Server, serving, worker
from tests.support import finished, pairs, python, wait_until

QUEUE_KEY = f"rq:queue:{QUEUE}"
READY = f"rq:ready:{QUEUE}"
FLOOD = 100_000
PATIENCE = 60
BURST = """
import re, resource, sys
from workers.__main__ import main
sys.argv = ["workers", "--burst"]
code = main()
try:  # ``ru_maxrss`` would count what its parent had, too
    kib = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
except OSError:
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(kib // 1024)
sys.exit(code)
"""


def forge(client: redis.Redis, job_id: str, **fields: Any) -> None:
    """Put a job on the queue by hand, as somebody with a producer's rights may."""
    data: dict[Any, Any] = {
        "data": zlib.compress(json.dumps(["workers.jobs.drain_lane", None, [], {}]).encode()),
        **fields,
    }
    client.hset(f"rq:job:{job_id}", mapping=data)
    client.rpush(QUEUE_KEY, job_id)


def flood(client: redis.Redis) -> None:
    pipe = client.pipeline(transaction=False)
    for number in range(FLOOD):
        pipe.hset(f"rq:job:{number}", "data", doorbell())
        pipe.rpush(QUEUE_KEY, str(number))
        if number % 5000 == 4999:
            pipe.execute()


# As the user of a producer, who may do no more.
FORGED: dict[str, Callable[[redis.Redis], object]] = {
    "a payload of 64 MiB": lambda client: forge(client, "x", data=b"x" * 2**26),
    "a field of 64 MiB": lambda client: forge(client, "x", description=b"x" * 2**26),
    "a payload that unpacks to 1 GiB": lambda client: forge(client, "x", data=bomb()),
    "a pickle": lambda client: forge(client, "x", data=b"\x80\x04cos\nsystem\n."),
    "another function": lambda client: forge(client, "x", data=json.dumps(["os.abort", None, [], {}])),
    "a doorbell without a state": lambda client: forge(client, "x", data=doorbell()),
    "a doorbell with a state that is none": lambda client: forge(client, "x", data=doorbell(), status="odd"),
    "a date that is none": lambda client: forge(client, "x", created_at="yesterday"),
    "an origin that is no text": lambda client: forge(client, "x", origin=b"\xff\xfe"),
    "a timeout that is none": lambda client: forge(client, "x", timeout="soon"),
    "an id that is no text": lambda client: client.rpush(QUEUE_KEY, b"\xff\xfe"),
    "a very long id": lambda client: client.rpush(QUEUE_KEY, "x" * 2**20),
    "a standing doorbell that is no text": lambda client: client.zadd(READY, {b"\xff\xfe": 1}),
    "standing doorbells without end": lambda client: client.zadd(READY, {f"x{n}": n for n in range(20_000)}),
    "a queue that is none": lambda client: client.sadd("rq:queues", "stray", b"\xff"),
}


def doorbell(store_id: str = "a" * 32) -> bytes:
    return zlib.compress(json.dumps(["workers.jobs.drain_lane", None, [store_id, 0], {}]).encode())


def bomb() -> bytes:
    packer = zlib.compressobj()
    return b"".join([*[packer.compress(bytes(2**20)) for _ in range(1024)], packer.flush()])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "redis", acl=True) as running:
        yield running


def burst(server: Server, store: MemoryStore) -> int:
    """Run the recommended worker until there is nothing to do; its largest memory, in MiB."""
    env = {"IAI_MCP_STORE": str(store.path), "IAI_MCP_REDIS_URL": server.url_of("worker")}
    return int(finished(python(BURST, **env), PATIENCE).splitlines()[-1])


@pytest.mark.parametrize("how", FORGED)
def test_a_forged_job_costs_the_recommended_worker_neither_memory_nor_anybody_an_entry(
    store: MemoryStore,
    server: Server,
    record_id: UUID,  # noqa: F811
    start: Start,  # noqa: F811
    how: str,
) -> None:
    queue = start(server.client("producer"), patient(store))
    queue.enqueue(pairs(record_id, "ab"))
    FORGED[how](server.client("producer"))
    queue.enqueue(pairs(record_id, "cd"))
    assert burst(server, store) < 400  # without any of them some 220
    assert seen(store, record_id) == [*"abcd"]
    assert queue.counts.spilled == 0
    assert server.client().llen(QUEUE_KEY) == 0
    assert burst(server, store) < 400  # and nothing is left that would trouble the next one


def test_a_flood_of_doorbells_is_thinned_out(
    store: MemoryStore,
    server: Server,
    record_id: UUID,  # noqa: F811
    start: Start,  # noqa: F811
) -> None:
    flood(server.client("producer"))
    queue = start(server.client("producer"), patient(store))
    queue.enqueue(pairs(record_id, "abcd"))
    began = time.monotonic()
    with worker(server.url_of("worker"), store.path):
        wait_until(lambda: seen(store, record_id) == [*"abcd"], PATIENCE)
        assert time.monotonic() - began < 30
        wait_until(lambda: server.client().llen(QUEUE_KEY) < 1000, PATIENCE)
        wait_until(lambda: server.client().dbsize() < 2000, PATIENCE)


RQ_KEYS = [
    QUEUE_KEY,
    f"{QUEUE_KEY}:intermediate",
    "rq:queues",
    "rq:workers",
    f"rq:workers:{QUEUE}",
    READY,
    f"rq:wip:{QUEUE}",
    f"rq:finished:{QUEUE}",
    f"rq:failed:{QUEUE}",
    f"rq:deferred:{QUEUE}",
]


def is_of_another_type(client: redis.Redis, key: str, kind: bytes) -> bool:
    return bool(client.type(key) != kind)


def test_keys_of_rq_that_are_of_another_type_are_removed_and_the_worker_goes_on(
    store: MemoryStore,
    server: Server,
    record_id: UUID,  # noqa: F811
    start: Start,  # noqa: F811
    tmp_path: Path,
) -> None:
    """By somebody who may do everything; a producer cannot."""
    queue, admin, said = start(server.client("producer"), patient(store)), server.client(), []
    with worker(server.url_of("worker"), store.path, log=tmp_path / "log") as process:
        for number, key in enumerate([*RQ_KEYS, *RQ_KEYS]):
            stray: Any = admin.hset if number < len(RQ_KEYS) else admin.set
            admin.delete(key)
            stray(key, "x", *(["1"] if number < len(RQ_KEYS) else []))
            said.append(str(number))
            queue.enqueue(pairs(record_id, [number]))
            wait_until(lambda: seen(store, record_id) == said, PATIENCE)
            right = b"hash" if number < len(RQ_KEYS) else b"string"
            wait_until(partial(is_of_another_type, admin, key, right), PATIENCE)
        assert process.poll() is None
    assert queue.counts.spilled == 0


def test_a_forged_job_for_a_lanes_sweep_is_not_read_by_clients(server: Server, store: MemoryStore) -> None:
    from iai_mcp.broker.redis.doorbell import Doorbell

    keys = Keys("", store.store_id)
    client = server.client("producer")
    client.hset(f"rq:job:{keys.job(1, 'sweep')}", "data", b"x" * 2**22)
    assert Doorbell(client, keys).ring_again(1)
    assert server.client().hstrlen(f"rq:job:{keys.job(1, 'sweep')}", "data") < 1000


def test_stock_workers_run_no_forged_job_and_drain_the_others(
    store: MemoryStore,
    server: Server,
    record_id: UUID,  # noqa: F811
    start: Start,  # noqa: F811
) -> None:
    mine = server.client("producer")
    for number, how in enumerate(("a pickle", "another function")):
        FORGED[how](mine)
        if mine.exists("rq:job:x"):
            server.client().rename("rq:job:x", f"rq:job:x{number}")
        server.client().rpush(QUEUE_KEY, f"x{number}")
    queue = start(mine, patient(store))
    queue.enqueue(pairs(record_id, "abcd"))
    with worker(server.url_of("worker"), store.path, kind="stock"):
        wait_until(lambda: seen(store, record_id) == [*"abcd"], PATIENCE)
