"""100,000 hostile inputs: nothing crashes, nothing hangs, and the good input around them is all there."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import fakeredis
import pytest
from rq.job import Job
from rq.serializers import JSONSerializer

from iai_mcp.broker.protocol import MalformedItem
from iai_mcp.broker.redis.items import from_items, pushed_at
from iai_mcp.entries.parcel import Parcel
from iai_mcp.entries.routing import route
from iai_mcp.entries.wire import decode, decode_all, encode
from iai_mcp.errors import MalformedParcel
from iai_mcp.ingest.readers import BadLine, Passage, read_paths
from iai_mcp.spill.segment import Segment
from workers.worker import is_doorbell

STORE = "ab" * 16
LIMIT_S = 60.0


def parcel(number: int) -> Parcel:
    entry = {"ts": "t", "cue": f"cue {number} \u2603", "session_id": "s", "deep": [{"a": None}, 1.5]}
    return Parcel.of(STORE, number % 4, "p", 1.0, [(UUID(int=number), number, entry)])


def mutated(chance: random.Random, good: bytes) -> bytes:
    """``good`` with bytes cut out, flipped, doubled or put in; or plain noise."""
    kind = chance.randrange(6)
    if kind == 0:
        return chance.randbytes(chance.randrange(200))
    if kind == 1:
        return good[: chance.randrange(len(good))]
    if kind == 2:
        return b"[" * chance.randrange(2000) + good
    data = bytearray(good)
    for _ in range(chance.randrange(1, 6)):
        at = chance.randrange(len(data))
        if kind == 3:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 4:
            data[at:at] = chance.choice([b'"', b"{", b"\\u0000", b"1e999", b"-0", b"null", b"\xff", b"\\ud800"])
        else:
            del data[at : at + chance.randrange(1, 9)]
            data = data or bytearray(b"x")
    return bytes(data)


@pytest.fixture
def chance() -> Iterator[random.Random]:
    began = time.monotonic()
    yield random.Random(20261123)
    assert time.monotonic() - began < LIMIT_S


def test_lane_payloads(chance: random.Random) -> None:
    for number in range(40_000):
        raw = mutated(chance, encode(parcel(number)))
        (found,) = from_items([raw])
        assert isinstance(found, Parcel | MalformedItem)
        assert isinstance(pushed_at(raw), float)
        if isinstance(found, MalformedItem):
            assert found.raw == raw


def alone(line: bytes) -> Parcel | str:
    """The parcel in a line, or what is wrong with it."""
    try:
        return decode(line)
    except MalformedParcel as error:
        return str(error)


def test_many_at_once(chance: random.Random) -> None:
    """Sound parcels between mutilated ones come out as they do one by one."""
    recall = [(UUID(int=n), {"ts": "t", "cue": "c", "rank": n, "score": n / 7}) for n in range(1, 9)]
    sound = [encode(part) for part in route(STORE, "p", 1, recall, 4, 1.0)]
    for _ in range(10_000):
        lines = [*sound]
        lines.insert(chance.randrange(len(lines) + 1), mutated(chance, chance.choice(sound)))
        found = [str(one) if isinstance(one, MalformedParcel) else one for one in decode_all(lines)]
        assert found == [*map(alone, lines)]
    assert decode_all(sound) == [decode(line) for line in sound]
    assert decode_all([]) == []


def test_parcels(chance: random.Random) -> None:
    for number in range(25_000):
        try:
            again = decode(mutated(chance, encode(parcel(number))))
        except MalformedParcel:
            continue
        assert decode(encode(again)) == again


def test_spill_files(chance: random.Random, tmp_path: Path) -> None:
    for run in range(50):
        path = tmp_path / f"{run}.jsonl"
        good: list[int] = []
        lines: list[bytes] = []
        for number in range(1, 401):
            if chance.random() < 0.5:
                good.append(number)
                lines.append(encode(parcel(number)))
            else:
                lines.append(mutated(chance, encode(parcel(10_000 + number))).replace(b"\n", b" "))
        path.write_bytes(b"\n".join(lines) + chance.choice([b"\n", b""]))
        segment = Segment.take(path)
        assert segment is not None
        found: list[Parcel] = []
        while not segment.exhausted:
            found += segment.read(STORE, 64)
        whole = [parcel(number) for number in good]
        assert [item for item in found if item in whole] == whole
        segment.finish()
        assert not path.exists()


def test_doorbells(chance: random.Random) -> None:
    connection = fakeredis.FakeStrictRedis()
    good = JSONSerializer.dumps(["workers.jobs.drain_lane", None, [STORE, 1], {}])
    rung = 0
    for _ in range(5_000):
        job = Job(id="j", connection=connection, serializer=JSONSerializer)
        job.data = mutated(chance, good)
        if is_doorbell(job):
            rung += 1
            assert job.func_name == "workers.jobs.drain_lane"
            assert isinstance(job.args[0], str)
    assert rung < 2_500


def test_imports(chance: random.Random, tmp_path: Path) -> None:
    seen = 0
    for run in range(60):
        path = tmp_path / f"{run}{chance.choice(['.jsonl', '.md', '.txt'])}"
        lines = []
        for number in range(500):
            good = b'{"text": "memory %d", "session_id": "s", "role": "user", "tags": ["a"]}' % number
            line = good if number % 2 else mutated(chance, good)
            lines.append(line.replace(b"\n", b" "))
        path.write_bytes(b"\n".join(lines))
        found = list(read_paths([path]))
        assert all(isinstance(item, Passage | BadLine) for item in found)
        seen += len(lines)
        if path.suffix == ".jsonl":
            texts = {item.text for item in found if isinstance(item, Passage)}
            assert {f"memory {number}" for number in range(1, 500, 2)} <= texts
    assert seen == 30_000
