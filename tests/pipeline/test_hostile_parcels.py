"""Parcels that a stranger wrote, among good ones: these are stored once and in order, those are dead letters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import fakeredis
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from iai_mcp.broker.redis.keys import Keys
from iai_mcp.cli.app import app
from iai_mcp.config import Settings
from iai_mcp.entries.parcel import Parcel
from iai_mcp.entries.wire import decode, encode
from iai_mcp.errors import MalformedParcel
from iai_mcp.pipeline import recovery
from iai_mcp.storage.dead_letters import DeadLetters
from iai_mcp.store import MemoryStore
from tests.support import entry
from tests.test_store import _make
from workers.runner import LaneRunner

GOOD, FORGED = "ab" * 8, "cd" * 8

WRONG: dict[str, dict[str, Any]] = {
    "a large number": {"seqs": [2**50]},
    "the largest number": {"seqs": [2**63 - 1]},
    "a larger number": {"seqs": [2**64]},
    "a negative number": {"seqs": [-5]},
    "zero": {"seqs": [0]},
    "a fraction": {"seqs": [1.5]},
    "truth": {"seqs": [True]},
    "numbers that descend": {"seqs": [2, 1], "ids": ["0" * 32] * 2, "own": [{}, {}]},
    "one number twice": {"seqs": [1, 1], "ids": ["0" * 32] * 2, "own": [{}, {}]},
    "more numbers than ids": {"seqs": [1, 2]},
    "escapes in the producer": {"producer": "\x1b[31mred"},
    "right to left": {"producer": "\u202eabc"},
    "a line break": {"producer": "a\nb"},
    "no producer": {"producer": ""},
    "a long producer": {"producer": "a" * 65},
    "a folder": {"producer": "../../x"},
    "a producer that is a number": {"producer": 7},
    "another store": {"store": "../../.."},
    "no store": {"store": None},
    "no id": {"ids": ["no id"]},
    "an id in capitals": {"ids": [uuid4().hex.upper()]},
    "a negative lane": {"lane": -1},
    "a large lane": {"lane": 10**6},
    "a time before time": {"pushed": -1.0},
    "a time that never comes": {"pushed": 1e300},
    "no time": {"pushed": "now"},
    "reuses": {"reuses": -1},
    "many reuses": {"reuses": 2**60},
    "a later version": {"v": 99},
    "contents that are a text": {"own": "x"},
    "shared contents that are a list": {"shared": [1]},
}

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ["store", "lane", "producer", "pushed", "ids", "seqs", "own", "shared", "v", "reuses", "trace"]


def forged(store: MemoryStore, record: UUID, change: dict[str, Any]) -> bytes:
    """A parcel of another producer with some fields replaced."""
    parcel = Parcel.of(store.store_id, 0, FORGED, 1.0, [(record, 1, entry("forged"))])
    return json.dumps({**json.loads(encode(parcel)), **change}).encode()


def good(store: MemoryStore, record: UUID, seq: int) -> bytes:
    return encode(Parcel.of(store.store_id, 0, GOOD, 1.0, [(record, seq, entry(str(seq)))]))


def seen(store: MemoryStore, record: UUID) -> list[str]:
    found = store.get(record)
    assert found is not None
    return [one["cue"] for one in found.provenance if one["producer"] == GOOD and one["cue"].isdigit()]


def through_a_lane(store: MemoryStore, items: list[bytes]) -> None:
    connection = fakeredis.FakeStrictRedis()
    pending = Keys(store.settings.namespace, store.store_id).lane(0, "pending")
    for item in items:
        connection.rpush(pending, item)
    runner = LaneRunner(store, connection)
    runner.broker.open()
    assert runner.drain_all()


def through_the_spill(store: MemoryStore, items: list[bytes]) -> None:
    folder = store.settings.spill_dir
    assert folder is not None
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{store.store_id[:8]}-{GOOD}-1000000.jsonl").write_bytes(b"".join(item + b"\n" for item in items))
    recovery.apply(store)


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_what_no_producer_writes_is_no_parcel(store: MemoryStore, change: dict[str, Any]) -> None:
    with pytest.raises(MalformedParcel):
        decode(forged(store, uuid4(), change))


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_lane_makes_a_dead_letter_of_it_and_goes_on(store: MemoryStore, change: dict[str, Any]) -> None:
    record = store.insert(_make())
    through_a_lane(store, [good(store, record, 1), forged(store, record, change), good(store, record, 2)])
    assert seen(store, record) == ["1", "2"]
    (letter,) = DeadLetters(store.layout).all()
    assert letter.raw is not None
    told = CliRunner().invoke(app, ["verify", "--store", str(store.path)], prog_name="iai-mcp")
    assert told.exit_code == 0, told.output


@example(changes=[{"seqs": [2**39]}], spilled=False)
@example(changes=[{"own": [{"entry_id": f"{GOOD}-2"}]}], spilled=False)
@given(
    changes=st.lists(
        st.dictionaries(st.sampled_from(FIELDS), VALUES, min_size=1, max_size=2)
        | st.sampled_from([*WRONG.values()]),
        min_size=1,
        max_size=3,
    ),
    spilled=st.booleans(),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_good_parcels_are_stored_once_and_in_order_whatever_is_among_them(
    changes: list[dict[str, Any]], spilled: bool, tmp_path: Path
) -> None:
    here = tmp_path / uuid4().hex
    store = MemoryStore(here / "store", lanes=1, settings=Settings(embedder="none", spill_dir=here / "spill"))
    record = store.insert(_make())
    items = [good(store, record, 1)]
    for at, change in enumerate(changes, 2):
        items += [forged(store, record, change), good(store, record, at)]
    (through_the_spill if spilled else through_a_lane)(store, items)
    assert seen(store, record) == [str(at) for at in range(1, len(changes) + 2)]
    env = {"IAI_MCP_SPILL_DIR": str(here / "spill"), "IAI_MCP_EMBEDDER": "none"}

    def run(*args: str) -> int:
        result = CliRunner().invoke(app, [*args, "--store", str(store.path)], env=env, prog_name="iai-mcp")
        assert result.exit_code in (0, 1), (args, result.output, result.exception)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code

    run("verify")
    assert run("verify", "--repair") == 0
    assert run("verify") == 0
    assert run("export", str(here / "export")) == 0
    assert run("backup", str(here / "backup")) == 0
    copy = ["restore", str(here / "backup"), "--as-copy", "--store", str(here / "copy")]
    assert CliRunner().invoke(app, copy, env=env, prog_name="iai-mcp").exit_code == 0
