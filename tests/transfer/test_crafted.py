"""Stores, backups and exports that somebody has crafted: refused with exit code 2, and nothing else is touched."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from iai_mcp.config import Settings
from iai_mcp.errors import BrokenCopy, DamagedStore
from iai_mcp.maintenance.verify import verify
from iai_mcp.record import MemoryRecord
from iai_mcp.storage.layout import Layout
from iai_mcp.store import MemoryStore
from iai_mcp.transfer.backup import backup
from iai_mcp.transfer.export import export
from iai_mcp.transfer.load import load
from iai_mcp.transfer.restore import restore
from tests.support import ROOT, pairs
from tests.support_files import KINDS

LIMIT_S = 60.0


def run(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "iai_mcp", *map(str, args)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=LIMIT_S,
    )


def refused(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def change(path: Path, **fields: Any) -> None:
    path.write_bytes(msgspec.json.encode({**msgspec.json.decode(path.read_bytes()), **fields}))


@pytest.fixture
def filled(store: MemoryStore) -> MemoryStore:
    one = store.insert(MemoryRecord(text="the ferry leaves from pier seven"))
    store.append_provenance_batch(pairs(one, ["first"]))
    return store


@pytest.mark.parametrize(
    "facts",
    [
        {"store_id": "../../.."},
        {"store_id": "x" * 32},
        {"lanes": 10**6},
        {"lanes": 0},
        {"lanes": "4"},
        {"schema_version": -1},
        {"generation": -1},
        {"vector_column": "id); --"},
        {"embedder": {"name": "x\x1b[2J", "dims": 384}},
        {"embedder": {"name": "builtin", "dims": 2**40}},
        {"created_at": "yesterday"},
        {"reuses": 2**62},
    ],
    ids=str,
)
def test_a_store_with_impossible_facts_is_refused(store: MemoryStore, facts: dict[str, Any]) -> None:
    change(store.layout.meta, **facts)
    with pytest.raises(DamagedStore, match=r"store\.json"):
        MemoryStore(store.path)


def test_its_exit_code_is_2(store: MemoryStore) -> None:
    change(store.layout.meta, lanes=10**6)
    refused(run("status", "--store", store.path))


def add_file(folder: Path, name: str) -> None:
    """A file that the manifest lists rightly, and that no backup has."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    files = msgspec.json.decode((folder / "manifest.json").read_bytes())["files"]
    change(
        folder / "manifest.json",
        files=[*files, {"name": name, "bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}],
    )


def craft_store(folder: Path, **facts: Any) -> None:
    """Change ``store.json`` in a backup so that its hash is right."""
    change(path := folder / "store/store.json", **facts)
    data = path.read_bytes()
    files = msgspec.json.decode((folder / "manifest.json").read_bytes())["files"]
    for file in files:
        if file["name"] == "store/store.json":
            file |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    change(folder / "manifest.json", files=files)


def odd(kind: str) -> Callable[[Path], None]:
    def put(folder: Path) -> None:
        (folder / "store/store.json").unlink()
        KINDS[kind](folder / "store/store.json")

    return put


def write(text: str) -> Callable[[Path], None]:
    def put(folder: Path) -> None:
        (folder / "manifest.json").write_text(text)

    return put


def piped(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    os.mkfifo(folder / "manifest.json")


CRAFTS: dict[str, Callable[[Path], None]] = {
    "a path": lambda folder: craft_store(folder, store_id="../../.."),
    "another id": lambda folder: craft_store(folder, store_id="0" * 32),
    "many lanes": lambda folder: craft_store(folder, lanes=10**6),
    "the manifest's lanes": lambda folder: change(folder / "manifest.json", lanes=10**6),
    "the manifest's id": lambda folder: change(folder / "manifest.json", store_id="../../.."),
    "an escape": lambda folder: add_file(folder, "store/redis/redis.conf"),
    "a nested spill file": lambda folder: add_file(folder, "spill/x/y.jsonl"),
    "a lock": lambda folder: add_file(folder, "store/locks/place.json"),
    "no object": write("[]"),
    "deep": write("[" * 100_000),
    "a pipe": odd("pipe"),
    "a device": odd("device"),
    "a link outside": odd("outside"),
    "a manifest that is a pipe": piped,
}


@pytest.mark.parametrize("craft", CRAFTS)
def test_a_crafted_backup_is_refused(filled: MemoryStore, tmp_path: Path, craft: str) -> None:
    folder = tmp_path / "backup"
    backup(filled.layout, filled.settings, folder, lambda done, total: None)
    filled.close()
    filled.layout.root.rename(tmp_path / "moved")
    CRAFTS[craft](folder)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BrokenCopy):
        restore(folder, filled.settings, tmp_path / "new")
    assert sorted(tmp_path.rglob("*")) == before


def test_an_export_with_a_pipe_is_refused(filled: MemoryStore, tmp_path: Path) -> None:
    export(filled, tmp_path / "export")
    path = tmp_path / "export" / "records-0000.parquet"
    path.unlink()
    os.mkfifo(path)
    refused(run("import", tmp_path / "export", "--store", tmp_path / "new"))


def test_an_export_with_damaged_pages_is_refused_before_anything_is_written(
    filled: MemoryStore, tmp_path: Path
) -> None:
    """Every page of its entries in turn; the manifest has the hash of the damaged file."""
    export(filled, tmp_path / "export")
    (file,) = (tmp_path / "export").glob("provenance-*.parquet")
    whole, path = file.read_bytes(), tmp_path / "export" / "manifest.json"
    manifest = msgspec.json.decode(path.read_bytes())
    for at in range(4, len(whole) // 2, 97):
        damaged = whole[:at] + b"\xff" * 8 + whole[at + 8 :]
        file.write_bytes(damaged)
        for one in manifest["files"]:
            if one["name"] == file.name:
                one["sha256"] = hashlib.sha256(damaged).hexdigest()
        path.write_bytes(msgspec.json.encode(manifest))
        other = Settings(store=tmp_path / f"other-{at}", embedder="none")
        try:
            load(tmp_path / "export", other)
        except BrokenCopy:
            assert not (tmp_path / f"other-{at}").exists()
        else:
            assert verify(Layout(other.store_path), other, settle=0).clean
    file.write_bytes(whole[: len(whole) // 3] + bytes(64) + whole[len(whole) // 3 + 64 :])
    with pytest.raises(BrokenCopy):
        load(tmp_path / "export", Settings(store=tmp_path / "last", embedder="none"))
