"""``iai-mcp lanes N``: another number of lanes for a store at rest, and the old one until the very last moment."""

from __future__ import annotations

import gc
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from typer.testing import CliRunner, Result

from iai_mcp.cli.app import app
from iai_mcp.config import Settings
from iai_mcp.entries.parcel import Parcel
from iai_mcp.entries.routing import lane_of
from iai_mcp.errors import LanesChanged, StoreUnavailable
from iai_mcp.maintenance import reshard
from iai_mcp.maintenance.verify import verify
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.spill.writer import Spill
from iai_mcp.storage.layout import Layout
from iai_mcp.storage.meta import SCHEMA_VERSION, read_meta
from iai_mcp.storage.tables.catalog import Tables, merge_into
from iai_mcp.store import MemoryStore
from tests.servers import Server, serving
from tests.support import cues, entry, pairs, python
from tests.test_store import _make

Trails = dict[UUID, list[str]]


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IAI_MCP_EMBEDDER", "none")
    monkeypatch.setattr(reshard, "STEP", 4)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "redis") as running:
        yield running


@pytest.fixture
def trails(path: Path) -> Trails:
    """A store with four lanes that nobody has open, and what it holds."""
    store = MemoryStore(path)
    ids = store.insert_many([_make() for _ in range(6)])
    for cue in range(5):
        store.append_provenance_batch([(one, entry(cue)) for one in ids])
    store.close()
    return {one: [str(cue) for cue in range(5)] for one in ids}


def run(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(arg) for arg in args], prog_name="iai-mcp")
    assert result.exit_code == code, (result.output, result.exception)
    return result


def holds(path: Path, trails: Trails, lanes: int, **settings: Any) -> None:
    """Everything is there, once, in order, in the lane where it belongs."""
    store = MemoryStore(path)
    assert store.lanes == lanes
    for record_id, trail in trails.items():
        found = store.get(record_id)
        assert found is not None
        assert cues(found.provenance) == trail
    store.close()
    report = verify(Layout(path), Settings(**settings), settle=0)
    assert report.clean, report.breaches
    assert sum(lane.rows for lane in report.lanes) == sum(map(len, trails.values()))


# -- at rest


@pytest.mark.parametrize("lanes", [1, 7])
def test_every_trail_moves_to_its_new_lane_as_it_is(lanes: int, path: Path, trails: Trails) -> None:
    assert run("lanes", "--store", path).stdout == "4\n"
    assert run("lanes", lanes, "--store", path).stdout == f"30 entries moved from 4 lanes to {lanes}\n"
    assert run("lanes", "--store", path, "--json").stdout.split() == ["{", '"lanes":', str(lanes), "}"]
    holds(path, trails, lanes)
    assert not [*path.glob("lane_*.lance")]

    store = MemoryStore(path)
    first, second, *_ = trails
    store.append_provenance_batch(pairs(first, ["new"]))
    store.delete(second)
    store.close()
    del trails[second]
    trails[first].append("new")
    run("lanes", 4, "--store", path)
    holds(path, trails, 4)
    assert run("lanes", 4, "--store", path).stdout == "the store has 4 lanes already\n"


def test_another_number_of_lanes_is_another_generation_of_the_same_format(path: Path, trails: Trails) -> None:
    before = read_meta(Layout(path))
    run("lanes", 2, "--store", path)
    after = read_meta(Layout(path))
    assert (before.generation, after.generation) == (0, 1)
    assert before.schema_version == after.schema_version == SCHEMA_VERSION == 1


def test_an_id_that_two_lanes_have_is_one_entry_afterwards_and_accounted_for(path: Path, trails: Trails) -> None:
    store = MemoryStore(path)
    first = next(iter(trails))
    other = next(one for one in trails if lane_of(one, 4) != lane_of(first, 4))
    for one in (first, other):
        store.append_provenance_batch([(one, entry("same", entry_id="mine"))])
    store.close()
    result = run("lanes", 1, "--store", path)
    assert "skipped: 1 entry whose id the caller" in result.stderr
    report = verify(Layout(path), Settings(), settle=0)
    assert report.clean, report.breaches
    assert (report.total["applied"], report.total["duplicate"]) == (31, 1)


# -- not at rest


def test_nobody_may_have_the_store_open(path: Path, trails: Trails) -> None:
    code = "import sys; from iai_mcp.store import MemoryStore; s = MemoryStore(); print(1, flush=True); input()"
    client = python(code, IAI_MCP_STORE=str(path))
    assert client.stdout is not None
    assert client.stdout.readline() == "1\n"
    said = run("lanes", 2, "--store", path, code=2).stderr
    assert "stop every client and worker of it first" in said
    if Path("/proc/locks").exists():
        assert "is open in another process" in said
        assert "store.lock` names them" in said
    client.communicate("\n", timeout=30)
    run("lanes", 2, "--store", path)
    holds(path, trails, 2)


def test_nobody_opens_it_while_it_is_changed(path: Path, trails: Trails) -> None:
    store = MemoryStore(path)
    with store.alone(), pytest.raises(StoreUnavailable, match="is being changed"):
        MemoryStore(path)
    store.close()
    holds(path, trails, 4)


def test_a_client_that_missed_the_change_is_refused(path: Path, trails: Trails) -> None:
    store = MemoryStore(path)
    store.close()  # as on a file system whose locks do not work
    queue = ProvenanceWriteQueue(store)
    first = next(iter(trails))
    run("lanes", 2, "--store", path)
    with pytest.raises(LanesChanged, match="restart the process"):
        queue.enqueue(pairs(first, "x"))
    with pytest.raises(LanesChanged):
        store.append_provenance_batch(pairs(first, "x"))
    holds(path, trails, 2)


def test_nothing_may_wait_in_the_spill(path: Path, trails: Trails, home: Path) -> None:
    folder, producer, first = home / ".iai-mcp" / ".provenance-overflow", "ab" * 8, next(iter(trails))
    store_id = read_meta(Layout(path)).store_id
    spill = Spill(store_id, producer, folder)
    spill.append([Parcel.of(store_id, lane_of(first, 4), producer, 1.0, [(first, 1, entry("spilled"))])], folder)
    spill.close()
    assert "iai-mcp spill replay" in run("lanes", 2, "--store", path, code=2).stderr
    holds(path, trails, 4)
    run("spill", "replay", "--store", path)
    run("lanes", 2, "--store", path)
    trails[first].append("spilled")
    holds(path, trails, 2)


def test_nothing_may_wait_in_redis_and_redis_must_be_seen(
    path: Path, trails: Trails, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = next(iter(trails))
    store = MemoryStore(path, settings=Settings(embedder="none", redis_url=server.url))
    store.enable_provenance_queue()
    store.queue_provenance_batch(pairs(first, ["waits"]))
    store.disable_provenance_queue()
    store.lane(0).raise_fence(5)  # as a worker does
    store.close()
    assert "set IAI_MCP_REDIS_URL" in run("lanes", 2, "--store", path, code=2).stderr
    monkeypatch.setenv("IAI_MCP_REDIS_URL", server.url)
    assert "1 entry waits in Redis" in run("lanes", 2, "--store", path, code=2).stderr
    holds(path, trails, 4, redis_url=server.url)
    server.client().flushall()
    run("lanes", 6, "--store", path)
    tokens = [Layout(path).lane_token(number).read_text() for number in range(6)]
    assert tokens == ["5"] * 6  # no number starts below what another has given out
    server.kill()
    assert "cannot be counted" in run("lanes", 2, "--store", path, code=1).stderr


@pytest.mark.parametrize("number", [0, 257])
def test_a_number_out_of_range(number: int, path: Path, trails: Trails) -> None:
    assert "out of range: 1 to 256" in run("lanes", number, "--store", path, code=2).stderr
    assert "there is no store" in run("lanes", 2, "--store", path.parent / "none", code=2).stderr


# -- killed at every step


class Killed(BaseException):
    """Ends the command where it stands, as kill -9 does; the system would free its lock."""


def closed() -> None:
    """Let go of what the exception has kept: a process that dies holds nothing either."""
    gc.collect()


def _die(*_: object, **__: object) -> Any:
    raise Killed


def _after(real: Callable[..., Any], times: int) -> Callable[..., Any]:
    calls = []

    def then_die(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        done = real(*args, **kwargs)
        if len(calls) == times:
            raise Killed
        return done

    return then_die


STEPS: dict[str, tuple[Any, str, Callable[..., Any], int]] = {
    "the plan is made": (reshard, "_copy", _die, 4),
    "half of a lane is copied": (reshard, "merge_into", _after(merge_into, 2), 4),
    "two lanes are copied": (reshard, "_save", _after(reshard._save, 3), 4),
    "all lanes are copied": (reshard, "_raise_tokens", _die, 4),
    "right before the change": (reshard, "save_meta", _die, 4),
    "right after the change": (reshard, "_clean", _die, 3),
    "before the plan is removed": (Tables, "drop_lanes", _after(Tables.drop_lanes, 2), 3),
}


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_it_has_one_number_or_the_other_and_goes_on(
    step: str, path: Path, trails: Trails, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, name, dying, lanes = STEPS[step]
    with monkeypatch.context() as broken:
        broken.setattr(where, name, dying)
        with pytest.raises(Killed):
            reshard.reshard(Settings(embedder="none", store=path), 3)
    closed()
    holds(path, trails, lanes)
    run("lanes", 3, "--store", path)
    holds(path, trails, 3)
    assert len([*path.glob("*lane_*.lance")]) == 3
    assert not Layout(path).reshard_plan.exists()


def test_what_was_written_or_forgotten_since_it_was_killed_counts(
    path: Path, trails: Trails, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(reshard, "save_meta", _die)
        with pytest.raises(Killed):
            reshard.reshard(Settings(embedder="none", store=path), 3)
    closed()
    first, second, *_ = trails
    store = MemoryStore(path)
    store.append_provenance_batch(pairs(first, ["since"]))
    store.delete(second)
    store.close()
    del trails[second]
    trails[first].append("since")
    run("lanes", 3, "--store", path)
    holds(path, trails, 3)


def test_kill_9_in_the_middle(path: Path, trails: Trails) -> None:
    code = """
import os, signal
from iai_mcp.maintenance import reshard
from iai_mcp.config import Settings
reshard.STEP = 4
real, calls = reshard.merge_into, []
def dying(*args):
    calls.append(1)
    if len(calls) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)
reshard.merge_into = dying
reshard.reshard(Settings.load(), 3)
"""
    victim = python(code, IAI_MCP_STORE=str(path))
    victim.communicate(timeout=60)
    assert victim.returncode == -signal.SIGKILL
    holds(path, trails, 4)
    told = json.loads(run("lanes", 3, "--store", path, "--json").stdout)
    assert told == {"lanes": 3, "before": 4, "rows": 30, "repeated": 0}
    holds(path, trails, 3)
    assert os.listdir(Layout(path).locks).count("reshard.plan") == 0
