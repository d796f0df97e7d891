"""Good parcels among mutated ones, through a lane and through the spill: they are stored once, in order."""

from __future__ import annotations

import base64
import copy
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import fakeredis
import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from iai_mcp.broker.redis.keys import Keys
from iai_mcp.cli.app import app
from iai_mcp.entries.wire import decode, encode
from iai_mcp.errors import MalformedParcel
from iai_mcp.maintenance.inventory import FindingKind
from iai_mcp.maintenance.verify import verify
from iai_mcp.pipeline import recovery
from iai_mcp.storage.dead_letters import DeadLetters
from iai_mcp.store import MemoryStore
from tests.pipeline.test_bad_entries import drained, parcel_of
from tests.support import entry
from tests.test_store import _make

Mutation = tuple[str, str, Any]
GOOD = "e" * 16


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


JUNK: list[Any] = [
    *(None, True, False, 0, -1, -5, 1, 2**31, 2**40, 2**50, 2**53, 2**63 - 1, 2**63, -(2**63), 2**64),
    *(0.5, -1.0, 1e18, 1e308, "", "x", "x" * 5000, "1", "\x1b[31mred", "a\u202eb", "a\nb", "\u0000", "\u00e9"),
    *([], {}, [[]], [1], ["x"], {"a": []}, [{}], {"cue": "x"}, {"cue": ["x", "y"]}, deep(70), deep(450)),
]
FIELDS = ["store", "lane", "producer", "pushed", "ids", "seqs", "own", "shared", "v", "reuses", "trace", "further"]
LISTS = ["ids", "seqs", "own.cue", "own.rank"]

MUTATIONS = (
    st.tuples(st.just("drop"), st.sampled_from(FIELDS), st.none())
    | st.tuples(st.just("set"), st.sampled_from(FIELDS), st.sampled_from(JUNK))
    | st.tuples(
        st.sampled_from(["first", "last", "append", "column"]), st.sampled_from(LISTS), st.sampled_from(JUNK)
    )
    | st.tuples(st.sampled_from(["reverse", "double", "shorten", "empty"]), st.sampled_from(LISTS), st.none())
)


def mutated(raw: bytes, change: Mutation) -> bytes:
    """A parcel's JSON with one of its parts changed."""
    how, name, junk = change
    parcel = msgspec.json.decode(raw)
    holder, _, inner = name.partition(".")
    if how == "drop":
        parcel.pop(holder, None)
    elif how == "set":
        parcel[holder] = junk
    else:
        place, key = (parcel[holder], inner) if inner else (parcel, holder)
        values = copy.copy(place[key])
        edits: dict[str, Any] = {
            "first": [junk, *values[1:]],
            "last": [*values[:-1], junk],
            "append": [*values, junk],
            "column": junk,
            "reverse": values[::-1],
            "double": [*values, *values],
            "shorten": values[:-1],
            "empty": [],
        }
        place[key] = edits[how]
    try:
        return msgspec.json.encode(parcel)
    except OverflowError:  # a number of more than 64 bits
        return json.dumps(parcel).encode()


def run(*args: str) -> Result:
    result = CliRunner().invoke(app, args, prog_name="iai-mcp")
    assert result.exception is None or isinstance(result.exception, SystemExit), (args, result.exception)
    assert "Traceback" not in result.output
    return result


class Peers:
    """A store with one honest producer, and strangers whose parcels come between the honest ones."""

    def __init__(self, path: Path) -> None:
        self.store = MemoryStore(path / "store", lanes=1)
        self.record = self.store.insert(_make())
        self.path = path
        self.told: list[str] = []

    def good(self, count: int) -> bytes:
        first = len(self.told) + 1
        new = [f"good {seq}" for seq in range(first, first + count)]
        self.told += new
        return encode(parcel_of(self.store, self.record, first, *map(entry, new), producer=GOOD))

    def bad(self, at: int, change: Mutation) -> bytes:
        entries = [entry(f"bad {at} {n}", rank=n) for n in range(2)]
        return mutated(encode(parcel_of(self.store, self.record, 1, *entries, producer=f"{at:016x}")), change)

    def through_lane(self, items: list[bytes]) -> None:
        connection = fakeredis.FakeStrictRedis()
        connection.rpush(Keys("", self.store.store_id).lane(0, "pending"), *items)
        self.store.enable_provenance_queue(connection=connection)
        self.store.disable_provenance_queue()
        drained(self.store, connection)

    def through_spill(self, items: list[bytes]) -> None:
        folder = self.path / "home" / ".iai-mcp" / ".provenance-overflow"
        folder.mkdir(parents=True)
        (folder / "left.jsonl").write_bytes(b"".join(item + b"\n" for item in items))
        recovery.apply(self.store)
        assert not (folder / "left.jsonl").exists()

    def kept(self) -> list[bytes]:
        """What became a dead letter, or a line of a file that was set aside."""
        folder = self.path / "home" / ".iai-mcp" / ".provenance-overflow"
        aside = [line for path in folder.glob("*.failed-*") for line in path.read_bytes().splitlines()]
        letters = DeadLetters(self.store.layout).all()
        return [*aside, *(base64.b64decode(letter.raw) for letter in letters if letter.raw is not None)]

    def honest(self, store: MemoryStore) -> list[str]:
        found = store.get(self.record)
        assert found is not None
        return [one["cue"] for one in found.provenance if one.get("cue") in self.told]


@pytest.mark.parametrize("way", ["lane", "spill"])
@example(changes=[("set", "seqs", [2**50, 2**50 + 1]), ("last", "seqs", 2**63 - 1), ("first", "seqs", -5)])
@example(changes=[("set", "producer", "\x1b[31mred"), ("drop", "ids", None), ("reverse", "seqs", None)])
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(MUTATIONS, min_size=6, max_size=14))
def test_good_parcels_are_stored_once_and_in_order_whatever_is_between_them(
    way: str, changes: list[Mutation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / uuid4().hex
    monkeypatch.setenv("HOME", str(home / "home"))
    monkeypatch.setenv("IAI_MCP_EMBEDDER", "none")
    peers = Peers(home)
    store, items = peers.store, [peers.good(2)]
    for at, change in enumerate(changes, 1):
        items += [peers.bad(at, change), peers.good(1 + at % 2)]
    (peers.through_lane if way == "lane" else peers.through_spill)(items)

    assert peers.honest(store) == peers.told
    assert {*items[1::2]} - {*peers.kept()} <= {item for item in items if takes(item)}
    report = verify(store.layout, store.settings, settle=0)
    assert {finding.kind for finding in report.breaches} <= {"lost"}, (
        report.breaches
    )  # of a stranger's own numbers
    assert not [one for one in report.producers if one.producer == GOOD and one.lost]
    assert sum(one.handed_out for one in report.producers if one.producer == GOOD) == len(peers.told)
    for row in store.lane(0)._table.search().to_arrow().to_pylist():
        assert 0 < row["producer_seq"] < 2**40
        assert row["producer"].isascii()
        assert row["producer"].isprintable()

    place = ["--store", str(store.path)]
    exported = run("export", str(home / "export"), *place)
    assert exported.exit_code == 0, exported.output
    other = MemoryStore(home / "other", lanes=2)
    assert run("import", str(home / "export"), "--store", str(other.path)).exit_code == 0
    assert peers.honest(other) == peers.told
    assert run("backup", str(home / "backup"), *place).exit_code == 0
    restored = run("restore", str(home / "backup"), "--as-copy", "--store", str(home / "copy"))
    broken = {finding.kind for finding in report.breaches} - {FindingKind.LOST}  # these are "not in the backup"
    assert restored.exit_code == (1 if broken else 0), restored.output
    assert peers.honest(MemoryStore(home / "copy")) == peers.told
    for view in (["--record", str(peers.record)], ["--top"], ["--session", "s"]):
        assert run("provenance", *view, *place).exit_code == 0


def takes(item: bytes) -> bool:
    """Whether a parcel is one that a producer could have written."""
    try:
        decode(item)
    except MalformedParcel:
        return False
    return True
