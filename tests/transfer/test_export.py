"""``iai-mcp export`` and the import of what it wrote: the same memories and the same trace, whatever happens."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from iai_mcp.cli.app import app
from iai_mcp.config import Settings
from iai_mcp.entries.parcel import Parcel
from iai_mcp.entries.routing import lane_of
from iai_mcp.maintenance.verify import verify
from iai_mcp.spill.writer import Spill
from iai_mcp.storage.dead_letters import DeadLetters
from iai_mcp.storage.exclusions import ExclusionReason, Exclusions, Span, uncovered
from iai_mcp.store import MemoryStore
from iai_mcp.transfer import export, load
from tests.support import cues, entry, pairs, python
from tests.test_store import _make


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IAI_MCP_EMBEDDER", "none")
    monkeypatch.setattr(export, "STEP", 3)
    monkeypatch.setattr(export, "FILE_ROWS", 7)
    monkeypatch.setattr(load, "STEP", 4)


def run(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(arg) for arg in args], prog_name="iai-mcp")
    assert result.exit_code == code, (result.output, result.exception)
    return result


def filled(store: MemoryStore) -> list[UUID]:
    """Memories and entries of every kind that a store can hold."""
    odd = [0.0, -0.0, 1e-45, 3.4e38, 0.1] + [1 / 3] * 379
    made = [_make(text=f"memory {n}", session_id=f"s{n % 2}") for n in range(6)]
    made += [_make(text="odd", embedding=odd), _make(text="no vector", embedding=[], tags=[], role="")]
    ids = store.insert_many(made)
    for cue in range(4):
        store.append_provenance_batch([(one, entry(cue, client="c", rank=cue, score=1 / 3)) for one in ids])
    store.append_provenance_batch([(ids[0], entry("x", ts="yesterday", more={"a": [1, None]}, rank="third"))])
    store.append_provenance_batch([(ids[1], entry("y", entry_id="mine")), (ids[1], entry("z", entry_id="mine"))])
    store.append_provenance_batch([(ids[2], {"ts": "0001-01-01T00:00:00Z", "cue": "\ud800", "session_id": "s"})])
    return ids


def content(folder: Path) -> tuple[list[Any], dict[str, list[Any]]]:
    """Everything an export holds, floats as their bits, but for ``seq``; entries by record, in their order."""
    records = pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("records-*")))
    bits = [vector and [number.hex() for number in vector] for vector in records["embedding"].to_pylist()]
    rows = [{**row, "embedding": vector} for row, vector in zip(records.to_pylist(), bits, strict=True)]
    entries: dict[str, list[Any]] = {}
    found = pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("provenance-*")))
    for row in found.to_pylist():
        seq = row.pop("seq")
        entries.setdefault(row["record_id"], []).append((seq, row))
    for trail in entries.values():
        assert [seq for seq, _ in trail] == sorted(seq for seq, _ in trail)
    by_record = {key: [row for _, row in trail] for key, trail in entries.items()}
    return sorted(rows, key=lambda row: row["id"]), by_record


def clean(store: MemoryStore) -> dict[str, int]:
    """What the account of the store shows; it adds up."""
    report = verify(store.layout, Settings(), settle=0)
    assert report.clean, report.breaches
    return {name: number for name, number in report.total.items() if number}


# -- there and back


def test_memories_and_their_trace_come_back_as_they_were(store: MemoryStore, tmp_path: Path) -> None:
    ids = filled(store)
    said = run("export", tmp_path / "out", "--store", store.path).stdout
    assert said.startswith(f"8 memories and {4 * 8 + 3} entries in ")
    assert len([*(tmp_path / "out").glob("provenance-*.parquet")]) > 2

    other = MemoryStore(tmp_path / "other", lanes=7)
    run("import", tmp_path / "out", "--store", other.path)
    run("export", tmp_path / "again", "--store", other.path)
    assert content(tmp_path / "again") == content(tmp_path / "out")

    for record_id in ids:
        before, after = store.get(record_id), other.get(record_id)
        assert before is not None
        assert after is not None
        assert [{**e, "seq": 0} for e in after.provenance] == [{**e, "seq": 0} for e in before.provenance]
    assert clean(other) == clean(store)


def test_a_second_import_adds_nothing_and_a_new_export_adds_what_is_new(
    store: MemoryStore, tmp_path: Path
) -> None:
    first, *_ = filled(store)
    other = MemoryStore(tmp_path / "other")
    run("export", tmp_path / "out", "--store", store.path)
    run("import", tmp_path / "out", "--store", other.path)
    log = other.layout.exclusions.read_bytes()
    told = json.loads(run("import", tmp_path / "out", "--store", other.path, "--json").stdout)
    assert (told["added"], told["existing"]) == (0, 8)
    assert told["entries"] == {"added": 0, "existing": 35, "unknown": 0}
    assert other.layout.exclusions.read_bytes() == log

    store.append_provenance_batch(pairs(first, ["later"]))
    run("export", tmp_path / "out2", "--store", store.path)
    told = json.loads(run("import", tmp_path / "out2", "--store", other.path, "--json").stdout)
    assert told["entries"] == {"added": 1, "existing": 35, "unknown": 0}
    found = other.get(first)
    assert found is not None
    assert cues(found.provenance)[-1] == "later"
    clean(other)


def test_what_is_forgotten_is_neither_exported_nor_brought_back(store: MemoryStore, tmp_path: Path) -> None:
    ids = filled(store)
    store.insert(_make(text="to be forgotten", id=UUID(int=7)))
    store.append_provenance_batch(pairs(UUID(int=7), "ab"))
    run("export", tmp_path / "before", "--store", store.path)
    store.delete(UUID(int=7))
    run("export", tmp_path / "after", "--store", store.path)
    assert str(UUID(int=7)) not in str(content(tmp_path / "after"))

    told = json.loads(run("import", tmp_path / "before", "--store", store.path, "--json").stdout)
    assert (told["forgotten"], told["entries"]["unknown"]) == (1, 2)
    assert store.get(UUID(int=7)) is None
    clean(store)

    other = MemoryStore(tmp_path / "other")
    run("import", tmp_path / "after", "--store", other.path)
    assert other.count() == len(ids)
    assert clean(other) == clean(store)  # the forgotten entries are accounted for there as well


def test_a_deletion_that_did_not_get_to_the_end_is_not_exported(store: MemoryStore, tmp_path: Path) -> None:
    gone = filled(store)[0]
    store.tombstones.add(gone)
    store._records.delete(gone)  # and its provenance is still there
    run("export", tmp_path / "out", "--store", store.path)
    assert str(gone) not in str(content(tmp_path / "out"))


def test_what_waits_outside_the_tables_is_counted_and_accounted_for(
    store: MemoryStore, home: Path, tmp_path: Path
) -> None:
    record_id = store.insert(_make())
    folder, producer = home / ".iai-mcp" / ".provenance-overflow", "ab" * 8

    def numbered(seq: int) -> dict[str, Any]:
        return {**entry(seq), "producer": producer, "producer_seq": seq, "entry_id": f"{producer}-{seq}"}

    store.append_provenance_batch([(record_id, numbered(3))])
    DeadLetters(store.layout).add_entry(0, (record_id, numbered(1)), "it would not go")
    spill = Spill(store.store_id, producer, folder)  # of a client that lives
    lane = lane_of(record_id, store.lanes)
    spill.append([Parcel.of(store.store_id, lane, producer, 1.0, [(record_id, 2, entry(2))])], folder)

    result = run("export", tmp_path / "out", "--store", store.path, "--json")
    told = json.loads(result.stdout)
    assert (told["entries"], told["not_included"]) == (1, 2)
    assert (told["pending"]["spilled"], told["pending"]["dead"]) == (1, 1)
    assert "not in the export: 1 entry waits in the spill" in result.stderr

    other = MemoryStore(tmp_path / "other")
    assert (
        "not in the export: 2 entries that were on their way"
        in run("import", tmp_path / "out", "--store", other.path).stderr
    )
    assert clean(other) == {"handed_out": 3, "applied": 1, "accepted": 2}

    spill.close()  # the client is gone: an export moves on what nobody holds
    told = json.loads(run("export", tmp_path / "all", "--store", store.path, "--json").stdout)
    assert (told["entries"], told["pending"]["spilled"]) == (2, 0)


def test_other_readers_of_the_store_see_nothing_of_an_export(store: MemoryStore, tmp_path: Path) -> None:
    filled(store)
    run("export", tmp_path / "out", "--store", store.path)
    assert not store.layout.scratch.exists()


# -- input that is wrong


def _flip(folder: Path) -> None:
    path = folder / "provenance-0001.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _change(folder: Path, **facts: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_flip, "provenance-0001.parquet is damaged"),
        (lambda folder: (folder / "records-0000.parquet").unlink(), "records-0000.parquet is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "was not finished"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json is damaged"),
        (lambda folder: _change(folder, version=2), "a later iai-mcp"),
        (lambda folder: _change(folder, records=9), "its manifest says 9"),
        (
            lambda folder: _change(folder, files=[{"name": "../x", "bytes": 1, "sha256": "0" * 64}]),
            "outside of its folder",
        ),
    ],
)
def test_a_damaged_export_is_refused_before_anything_is_written(
    damage: Callable[[Path], object], said: str, store: MemoryStore, tmp_path: Path
) -> None:
    filled(store)
    run("export", tmp_path / "out", "--store", store.path)
    damage(tmp_path / "out")
    result = run("import", tmp_path / "out", "--store", tmp_path / "other", code=2)
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "other").exists()


def test_a_folder_that_is_not_empty_is_left_alone(store: MemoryStore, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    assert "is not empty" in run("export", tmp_path, "--store", store.path, code=2).stderr
    assert "no folder" in run("export", tmp_path / "note.txt", "--store", store.path, code=2).stderr
    assert "inside the store" in run("export", store.path / "x", "--store", store.path, code=2).stderr
    assert "there is no store" in run("export", tmp_path / "x", "--store", tmp_path / "none", code=2).stderr


def test_an_export_is_imported_by_itself_and_notes_need_no_reembed(store: MemoryStore, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("The ferry leaves from pier nine.")
    run("export", tmp_path / "out", "--store", store.path)
    both = run("import", tmp_path / "out", tmp_path / "note.txt", "--store", store.path, code=2)
    assert "import it by itself" in both.stderr
    assert "--reembed is for" in run("import", tmp_path / "note.txt", "--reembed", code=2).stderr


def test_vectors_of_another_embedder_are_refused_or_made_anew(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(store)
    run("export", tmp_path / "out", "--store", store.path)
    monkeypatch.setenv("IAI_MCP_EMBEDDER", "builtin")
    refused = run("import", tmp_path / "out", "--store", tmp_path / "other", code=2)
    assert "none (384 dimensions) made the vectors" in refused.stderr
    assert "--reembed" in refused.stderr
    assert not (tmp_path / "other").exists()

    told = json.loads(run("import", tmp_path / "out", "--reembed", "--store", tmp_path / "other", "--json").stdout)
    assert (told["added"], told["embedded"], told["entries"]["added"]) == (8, 8, 35)
    assert MemoryStore(tmp_path / "other").count_without_vector() == 0


# -- killed half-way


def test_an_import_that_was_killed_goes_on(store: MemoryStore, tmp_path: Path) -> None:
    filled(store)
    run("export", tmp_path / "out", "--store", store.path)
    code = """
import os, signal, sys
from pathlib import Path
from iai_mcp.transfer import load
from iai_mcp.config import Settings
from iai_mcp.store import MemoryStore
load.STEP = 4
real, calls = MemoryStore.merge_entries, []
def dying(self, rows):
    done = real(self, rows)
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return done
MemoryStore.merge_entries = dying
load.load(Path(sys.argv[1]), Settings.load())
"""
    victim = python(code, tmp_path / "out", IAI_MCP_STORE=str(tmp_path / "other"))
    victim.communicate(timeout=60)
    assert victim.returncode == -signal.SIGKILL

    told = json.loads(run("import", tmp_path / "out", "--store", tmp_path / "other", "--json").stdout)
    assert (told["added"], told["existing"]) == (0, 8)
    assert told["entries"]["existing"] >= 9
    run("export", tmp_path / "again", "--store", tmp_path / "other")
    assert content(tmp_path / "again") == content(tmp_path / "out")
    assert clean(MemoryStore(tmp_path / "other")) == clean(store)


def test_an_export_that_was_killed_leaves_nothing_that_could_be_taken_for_one(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(store)

    class Killed(BaseException):
        pass

    def dying(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as broken:
        broken.setattr(export, "sync_tree", dying)
        with pytest.raises(Killed):
            export.export(store, tmp_path / "out")
    assert "was not finished" in run("import", tmp_path / "out", "--store", tmp_path / "x", code=2).stderr

    left = store.layout.scratch / "1-dead"  # what a kill -9 leaves: links that keep forgotten texts on the disk
    left.mkdir(parents=True)
    os.link(store.layout.meta, left / "store.json")
    store.tidy()
    assert not left.exists()


# -- the arithmetic of the account


def test_only_what_is_not_known_is_noted(tmp_path: Path) -> None:
    known = [
        Span(ExclusionReason.LOST, "p", 3, 5),
        Span(ExclusionReason.LATE, "p", 1, 9),
        Span(ExclusionReason.UNKNOWN, "q", 1, 9),
    ]
    new = [
        Span(ExclusionReason.LOST, "p", 1, 8),
        Span(ExclusionReason.LOST, "p", 7, 9),
        Span(ExclusionReason.LATE, "p", 8, 10),
        Span(ExclusionReason.LOST, "q", 2, 3),
    ]
    assert uncovered(new, known) == [
        Span(ExclusionReason.LOST, "p", 1, 2),
        Span(ExclusionReason.LOST, "p", 6, 8),
        Span(ExclusionReason.LOST, "p", 9, 9),
        Span(ExclusionReason.LATE, "p", 10, 10),
    ]
    log = Exclusions(tmp_path / "log")
    log.add_spans(new)
    assert uncovered(new, log.read()) == []
