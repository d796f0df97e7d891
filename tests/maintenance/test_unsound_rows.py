"""Rows of a lane that cannot be entries: no reader stops at one, and ``verify --repair`` sets them aside."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pyarrow as pa
import pytest
from typer.testing import CliRunner, Result

from iai_mcp.cli.app import app
from iai_mcp.maintenance.verify import verify
from iai_mcp.provenance_queue import ProvenanceWriteQueue
from iai_mcp.storage.dead_letters import DeadLetters
from iai_mcp.storage.tables.rows import LANE_SCHEMA
from iai_mcp.store import MemoryStore
from tests.support import cues, pairs
from tests.test_store import _make

YEAR_US = 31_556_952_000_000

UNSOUND: dict[str, dict[str, Any]] = {
    "a large number": {"producer_seq": 2**50},
    "the largest number": {"producer_seq": 2**63 - 1},
    "a negative number": {"producer_seq": -5},
    "zero": {"producer_seq": 0},
    "a lane's number out of range": {"seq": 2**63 - 1},
    "a negative lane's number": {"seq": -(2**63)},
    "escapes in a producer": {"producer": "\x1b[31mred"},
    "no producer": {"producer": ""},
    "a long producer": {"producer": "a" * 100_000},
    "no id of a memory": {"record_id": "no id"},
    "an id in another form": {"record_id": uuid4().hex.upper()},
    "no key": {"entry_id": ""},
    "rest that is no JSON": {"rest": "{no JSON"},
    "rest that is a list": {"rest": "[1]"},
    "rest that is deep": {"rest": '{"a":' * 5000 + "1" + "}" * 5000},
    "a year that no calendar has": {"time": 200_000 * YEAR_US},
}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    monkeypatch.setenv("IAI_MCP_EMBEDDER", "none")
    return MemoryStore(tmp_path / "store", lanes=1)


@pytest.fixture
def record_id(store: MemoryStore) -> UUID:
    return store.insert(_make())


@pytest.fixture
def tell(store: MemoryStore, record_id: UUID) -> Callable[[str], None]:
    """Leaves entries of a queue, one for each letter."""

    def said(letters: str) -> None:
        queue = ProvenanceWriteQueue(store)
        queue.start()
        queue.enqueue(pairs(record_id, letters))
        assert queue.flush(20)
        queue.stop()

    return said


def put(store: MemoryStore, record_id: UUID, *changes: dict[str, Any]) -> None:
    """Write rows as a stranger's hand does."""
    rows = []
    for at, change in enumerate(changes):
        producer, seq = f"{at:016x}", 1
        row: dict[str, Any] = {"entry_id": f"{producer}-{seq}", "record_id": str(record_id), "producer": producer}
        row |= {"producer_seq": seq, "seq": 1_000 + at, "cue": "unsound"}
        rows.append({**row, **change})
    schema = LANE_SCHEMA.set(LANE_SCHEMA.get_field_index("time"), pa.field("time", pa.int64()))
    table = pa.Table.from_pylist(rows, schema).cast(LANE_SCHEMA)
    store.lane(0)._table.add(table)


def run(store: MemoryStore, *args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [*args, "--store", str(store.path)], prog_name="iai-mcp")
    assert result.exit_code == code, (args, result.output, result.exception)
    return result


def seen(store: MemoryStore, record_id: UUID) -> list[str]:
    found = store.get(record_id)
    assert found is not None
    return [cue for cue in cues(found.provenance) if cue != "unsound"]


@pytest.mark.parametrize("change", UNSOUND.values(), ids=UNSOUND)
def test_an_unsound_row_is_named_and_stops_no_reader(
    store: MemoryStore, record_id: UUID, tell: Callable[[str], None], tmp_path: Path, change: dict[str, Any]
) -> None:
    tell("abc")
    put(store, record_id, change)
    assert seen(store, record_id) == [*"abc"]
    (breach,) = verify(store.layout, store.settings, settle=0).breaches
    assert (breach.kind, breach.message) == ("unsound_rows", "1 row that is no entry in lane 0")
    store.lane(0).maintain(force=True)
    tell("de")
    for view in (["--record", str(record_id)], ["--top"], ["--never"], ["--session", "s"]):
        run(store, "provenance", *view)
        run(store, "provenance", *view, "--json")
    assert "left out: 1 row that is no entry" in run(store, "export", str(tmp_path / "export")).stderr
    run(store, "backup", str(tmp_path / "backup"))
    copy = ["restore", str(tmp_path / "backup"), "--as-copy", "--store", str(tmp_path / "copy")]
    said = CliRunner().invoke(app, copy, prog_name="iai-mcp")
    assert said.exit_code == 1, (said.output, said.exception)
    assert "unsound rows: 1 row that is no entry" in said.stderr

    said = run(store, "verify", "--repair")
    assert "made dead letters of 1 row that is no entry in lane 0" in said.stderr
    (letter,) = DeadLetters(store.layout).all()
    assert letter.raw is not None
    run(store, "dead", "show", letter.id)
    assert seen(store, record_id) == [*"abcde"]
    run(store, "dead", "drop", letter.id)
    run(store, "verify")


def test_an_import_makes_dead_letters_of_them(
    store: MemoryStore, record_id: UUID, tell: Callable[[str], None], tmp_path: Path
) -> None:
    tell("abc")
    run(store, "export", str(tmp_path / "export"))
    spoil(tmp_path / "export", [change for change in UNSOUND.values() if "seq" not in change])
    other = MemoryStore(tmp_path / "other", lanes=2)
    said = run(other, "import", str(tmp_path / "export"))
    assert f"{len(UNSOUND) - 2} rows that are no entries: see `iai-mcp dead list`" in said.stderr
    assert seen(other, record_id) == [*"abc"]
    run(other, "verify")


def spoil(folder: Path, changes: list[dict[str, Any]]) -> None:
    """Add rows to an export, and make its manifest agree."""
    import hashlib

    import pyarrow.parquet as pq

    (file,) = folder.glob("provenance-*.parquet")
    rows = pq.read_table(file)
    numbers = rows.set_column(6, "time", rows["time"].cast(pa.int64())).to_pylist()
    added = [
        {**numbers[0], "producer": f"{at:016x}", "entry_id": f"{at:016x}-1", **one}
        for at, one in enumerate(changes)
    ]
    schema = LANE_SCHEMA.set(LANE_SCHEMA.get_field_index("time"), pa.field("time", pa.int64()))
    pq.write_table(pa.Table.from_pylist([*numbers, *added], schema).cast(LANE_SCHEMA), file)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["entries"] += len(added)
    for one in manifest["files"]:
        if one["name"] == file.name:
            data = file.read_bytes()
            one |= {
                "rows": len(numbers) + len(added),
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
    path.write_text(json.dumps(manifest))
