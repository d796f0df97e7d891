"""Files that are none, in the folders that commands read: no command hangs, each is named, the rest works."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest

from iai_mcp.entries.parcel import Parcel
from iai_mcp.entries.wire import encode
from iai_mcp.spill.names import chain_name, segment_name
from iai_mcp.store import MemoryStore
from tests.support import ROOT, entry
from tests.support_files import make_all

LIMIT_S = 20.0


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "iai_mcp", *args], capture_output=True, text=True, cwd=ROOT, timeout=LIMIT_S
    )


@pytest.fixture
def spill(home: Path) -> Path:
    folder = home / ".iai-mcp" / ".provenance-overflow"
    folder.mkdir(parents=True)
    return folder


def spilled(store: MemoryStore, spill: Path) -> Path:
    """One entry that waits in the spill."""
    path = spill / segment_name(chain_name(store.store_id, "ab" * 8), 1_000_000)
    parcel = Parcel.of(store.store_id, 0, "ab" * 8, 1.0, [(UUID(int=1), 1, entry("one"))])
    path.write_bytes(encode(parcel) + b"\n")
    return path


@pytest.mark.parametrize("command", [("status",), ("doctor",), ("verify",), ("spill", "list")])
def test_odd_files_in_the_spill_are_named_and_passed_over(
    command: tuple[str, ...], store: MemoryStore, spill: Path
) -> None:
    spilled(store, spill)
    odd = make_all(spill, ".jsonl")
    done = run(*command, "--json", "--store", str(store.path))
    assert done.returncode == 0, done.stderr
    text = json.dumps(json.loads(done.stdout)) + done.stderr
    assert [path.name for path in odd.values() if path.name not in text] == []


def test_a_replay_moves_the_sound_files_beside_odd_ones(store: MemoryStore, spill: Path) -> None:
    good = spilled(store, spill)
    make_all(spill, ".jsonl")
    make_all(spill, ".spare")
    done = run("spill", "replay", "--json", "--store", str(store.path))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["files"] == 1
    assert not good.exists()
