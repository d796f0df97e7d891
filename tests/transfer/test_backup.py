"""``iai-mcp backup`` and ``restore``: a copy taken while clients write is whole, and a store of its own right."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from typer.testing import CliRunner, Result

from iai_mcp.broker.redis.broker import RedisBroker
from iai_mcp.broker.redis.client import connect
from iai_mcp.broker.redis.options import RedisOptions
from iai_mcp.cli.app import app
from iai_mcp.config import Settings
from iai_mcp.entries.parcel import Parcel
from iai_mcp.entries.routing import lane_of
from iai_mcp.errors import LeaseLost
from iai_mcp.maintenance.pending import pending
from iai_mcp.maintenance.verify import verify
from iai_mcp.pipeline import recovery
from iai_mcp.pipeline.drain import DrainPolicy, drain
from iai_mcp.spill.writer import Spill
from iai_mcp.storage import snapshot
from iai_mcp.storage.layout import Layout
from iai_mcp.storage.meta import read_meta
from iai_mcp.storage.tables.write_right import WriteRight
from iai_mcp.store import MemoryStore, RecordsCache
from iai_mcp.transfer import backup
from iai_mcp.transfer.restore import TOKEN_STEP
from tests.servers import Server, serving
from tests.support import cues, entry, pairs, python, wait_until
from tests.test_store import _make


@pytest.fixture(autouse=True)
def _no_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IAI_MCP_EMBEDDER", "none")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "redis") as running:
        yield running


def run(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(arg) for arg in args], prog_name="iai-mcp")
    assert result.exit_code == code, (result.output, result.exception)
    return result


def seen(store: MemoryStore, record_id: UUID) -> list[str]:
    found = store.get(record_id)
    assert found is not None
    return cues(found.provenance)


def restored(source: Path, target: Path, *options: str) -> tuple[dict[str, Any], MemoryStore]:
    told = json.loads(run("restore", source, "--store", target, "--json", *options).stdout)
    assert told["clean"]
    assert verify(Layout(target), Settings(), settle=0).clean
    return told, MemoryStore(target)


def at_link(monkeypatch: pytest.MonkeyPatch, where: str, act: Callable[[], object]) -> None:
    """Run ``act`` once, right before the first file below a folder named ``where`` is linked."""
    real = snapshot._link
    done: list[object] = []

    def link(path: Path, target: Path) -> None:
        if not done and f"/{where}/" in str(path):
            done.append(1)
            act()
        real(path, target)

    monkeypatch.setattr(snapshot, "_link", link)


# -- while clients write

WRITER = """
import sys, threading
from uuid import UUID
from iai_mcp.storage.tables.write_right import WriteRight
from iai_mcp.store import MemoryStore
store = MemoryStore()
ids = [UUID(text) for text in sys.argv[1:]]
store.enable_provenance_queue(coalesce_ms=2)
done = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), done.set()), daemon=True).start()
print("go", flush=True)
n = 0
while not done.wait(0.002):
    n += 1
    entry = {"ts": "2026-11-23T12:00:00Z", "cue": str(n), "session_id": "s"}
    store.queue_provenance_batch([(one, entry) for one in ids])
    if n % 50 == 0:
        store.lane(0).maintain(force=True)
store.disable_provenance_queue()
print(n)
"""


def test_a_backup_under_way_of_writers_is_a_gap_free_beginning_of_each_trail(
    store: MemoryStore, tmp_path: Path
) -> None:
    ids = store.insert_many([_make() for _ in range(8)])
    writer = python(WRITER, *ids, IAI_MCP_STORE=str(store.path), IAI_MCP_CLEANUP_AGE="0")
    assert writer.stdout is not None
    assert writer.stdout.readline() == "go\n"
    wait_until(lambda: len(seen(store, ids[0])) > 20, 20)
    for number in range(3):
        run("backup", tmp_path / f"b{number}", "--store", store.path)
    output, _ = writer.communicate("stop\n", timeout=60)
    handed_out = int(output)

    longest = 0
    for number in range(3):
        _, copy = restored(tmp_path / f"b{number}", tmp_path / f"r{number}", "--as-copy")
        for record_id in ids:
            trail = seen(copy, record_id)
            assert trail == [str(n) for n in range(1, len(trail) + 1)]
            longest = max(longest, len(trail))
    assert 20 < longest <= handed_out
    assert seen(store, ids[0]) == [str(n) for n in range(1, handed_out + 1)]


def test_a_writer_that_commits_and_cleans_up_in_the_middle_breaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(
        Settings.load(), cleanup_age=0.0, lock_timeout=0.05
    )  # it does not get the lock, and goes on
    store = MemoryStore(tmp_path / "store", lanes=1, settings=settings)
    record_id = store.insert(_make())
    for cue in range(5):
        store.append_provenance_batch(pairs(record_id, [cue]))

    def interfere() -> None:
        store.append_provenance_batch(pairs(record_id, ["late"]))
        store.lane(0).maintain(force=True)

    at_link(monkeypatch, "data", interfere)
    run("backup", tmp_path / "b", "--store", store.path)
    _, copy = restored(tmp_path / "b", tmp_path / "r", "--as-copy")
    assert seen(copy, record_id)[:5] == ["0", "1", "2", "3", "4"]


def test_entries_that_leave_the_spill_meanwhile_are_there_once(
    store: MemoryStore, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_id, folder, producer = store.insert(_make()), home / ".iai-mcp" / ".provenance-overflow", "ab" * 8
    spill = Spill(store.store_id, producer, folder)
    for seq in range(1, 4):
        lane = lane_of(record_id, store.lanes)
        spill.append([Parcel.of(store.store_id, lane, producer, 1.0, [(record_id, seq, entry(seq))])], folder)
    spill.close()
    real = pending

    def replayed(*args: Any) -> Any:
        assert recovery.apply(store).applied == 3
        return real(*args)

    monkeypatch.setattr(backup, "pending", replayed)
    told = json.loads(run("backup", tmp_path / "b", "--store", store.path, "--json").stdout)
    assert (told["entries"], told["spilled"]) == (3, 3)
    _, copy = restored(tmp_path / "b", tmp_path / "r", "--as-copy")
    recovery.apply(copy)
    assert seen(copy, record_id) == ["1", "2", "3"]


def test_a_memory_that_is_forgotten_meanwhile_is_forgotten_in_the_copy(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, kept = store.insert(_make(text="a secret")), store.insert(_make())
    store.append_provenance_batch([*pairs(gone, "ab"), *pairs(kept, "cd")])
    monkeypatch.setenv("IAI_MCP_LOCK_TIMEOUT", "0.05")
    store.settings = replace(store.settings, lock_timeout=0.05)
    at_link(monkeypatch, "records.lance/data", lambda: store.tombstones.add(gone))
    run("backup", tmp_path / "b", "--store", store.path)
    told, copy = restored(tmp_path / "b", tmp_path / "r", "--as-copy")
    assert told["forgotten"] == 1
    assert copy.get(gone) is None
    assert seen(copy, kept) == ["c", "d"]


def test_what_was_forgotten_before_is_in_no_file_of_the_backup(store: MemoryStore, tmp_path: Path) -> None:
    gone, kept = store.insert(_make(text="a secret word")), store.insert(_make())
    store.append_provenance_batch([*pairs(gone, ["where is the secret?"]), *pairs(kept, "cd")])
    store.delete(gone)
    run("backup", tmp_path / "b", "--store", store.path)
    for path in (tmp_path / "b").rglob("*"):
        assert not path.is_file() or b"secret" not in path.read_bytes(), path
    assert seen(restored(tmp_path / "b", tmp_path / "r", "--as-copy")[1], kept) == ["c", "d"]


def test_the_store_is_left_as_it_was(store: MemoryStore, tmp_path: Path) -> None:
    record_id = store.insert(_make())
    for cue in range(5):
        store.append_provenance_batch(pairs(record_id, [cue]))

    def files() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in store.path.rglob("*") if p.is_file() and p.suffix != ".lock"}

    before = files()
    run("backup", tmp_path / "b", "--store", store.path)
    assert files() == before


# -- identity


def test_a_restored_store_takes_the_place_of_the_original_and_outranks_its_workers(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IAI_MCP_REDIS_URL", server.url)
    store = MemoryStore(tmp_path / "store")
    ids = store.insert_many([_make() for _ in range(6)])
    store.enable_provenance_queue()
    store.queue_provenance_batch([(one, entry("drained")) for one in ids])
    drain_all(store, server)
    store.queue_provenance_batch([(one, entry("waiting")) for one in ids])
    store.disable_provenance_queue()
    token = max(store.lane(n).token for n in range(store.lanes))
    assert token >= 1

    result = run("backup", tmp_path / "b", "--store", store.path)
    assert "not in the backup: 6 entries wait in Redis" in result.stderr
    beside = run("restore", tmp_path / "b", "--store", tmp_path / "beside", code=2)
    assert "--as-copy" in beside.stderr
    assert not (tmp_path / "beside").exists()

    store.path.rename(tmp_path / "lost")
    told, again = restored(tmp_path / "b", store.path)
    assert (told["store_id"], told["missing"]) == (store.store_id, {})  # what waits in Redis is not missing
    drain_all(again, server)
    assert [seen(again, one) for one in ids] == [["drained", "waiting"]] * 6
    lane = lane_of(ids[0], again.lanes)
    assert again.lane(lane).token > token + TOKEN_STEP
    numbered = {**entry("x"), "producer": "p", "producer_seq": 1, "entry_id": "p-1"}
    with pytest.raises(LeaseLost):  # a worker that slept through all of this
        again.append_provenance_batch([(ids[0], numbered)], right=WriteRight(lane, token + 1000))


def drain_all(store: MemoryStore, server: Server) -> None:
    broker = RedisBroker(connect(server.url), store.store_id, store.lanes, RedisOptions.of(store.settings))
    for lane in range(store.lanes):
        report = drain(store, broker, lane, RecordsCache(), DrainPolicy(linger=0))
        assert report.outcome == "empty"
    broker.close()


def test_a_copy_takes_nothing_from_its_original(store: MemoryStore, home: Path, tmp_path: Path) -> None:
    record_id, folder, producer = store.insert(_make()), home / ".iai-mcp" / ".provenance-overflow", "ab" * 8
    spill = Spill(store.store_id, producer, folder)
    lane = lane_of(record_id, store.lanes)
    spill.append([Parcel.of(store.store_id, lane, producer, 1.0, [(record_id, 1, entry("spilled"))])], folder)
    run("backup", tmp_path / "b", "--store", store.path)
    told, copy = restored(tmp_path / "b", tmp_path / "r", "--as-copy")
    assert told["store_id"] != store.store_id == read_meta(store.layout).store_id
    assert recovery.apply(copy).applied == 1
    assert seen(copy, record_id) == ["spilled"]
    spill.close()
    assert recovery.apply(store).applied == 1


def test_an_entry_that_was_on_its_way_is_named_and_welcome_later(store: MemoryStore, tmp_path: Path) -> None:
    record_id, other = store.insert(_make()), store.insert(_make())

    def numbered(seq: int) -> dict[str, Any]:
        return {**entry(seq), "producer": "p", "producer_seq": seq, "entry_id": f"p-{seq}"}

    store.append_provenance_batch([(record_id, numbered(1)), (record_id, numbered(3))])
    run("backup", tmp_path / "b", "--store", store.path)
    shutil.rmtree(store.path)
    result = run("restore", tmp_path / "b", "--store", store.path)
    assert "not in the backup: 1 entry that was on its way" in result.stdout
    again = MemoryStore(store.path)
    again.append_provenance_batch([(other, numbered(2))])
    report = verify(again.layout, Settings(), settle=0)
    assert report.clean
    assert (report.total["applied"], report.total["accepted"]) == (3, 0)


# -- input that is wrong


def _flip(folder: Path) -> None:
    path = next((folder / "store" / "records.lance" / "data").iterdir())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_flip, "is damaged (its SHA-256 differs)"),
        (lambda folder: (folder / "store" / "store.json").unlink(), "store.json is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "was not finished"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json is damaged"),
    ],
)
def test_a_damaged_backup_is_refused_and_nothing_is_left_behind(
    damage: Callable[[Path], object], said: str, store: MemoryStore, tmp_path: Path
) -> None:
    store.insert(_make())
    run("backup", tmp_path / "b", "--store", store.path)
    damage(tmp_path / "b")
    before = sorted(tmp_path.iterdir())
    result = run("restore", tmp_path / "b", "--store", tmp_path / "r", "--as-copy", code=2)
    assert said in result.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_a_place_that_is_taken_is_left_alone(store: MemoryStore, tmp_path: Path) -> None:
    run("backup", tmp_path / "b", "--store", store.path)
    assert "is not empty" in run("restore", tmp_path / "b", "--store", store.path, code=2).stderr
    assert "is not empty" in run("backup", tmp_path / "b", "--store", store.path, code=2).stderr
    run("export", tmp_path / "x", "--store", store.path)
    wrong = run("restore", tmp_path / "x", "--store", tmp_path / "r", code=2)
    assert "is an iai-mcp-export, not an iai-mcp-backup" in wrong.stderr
