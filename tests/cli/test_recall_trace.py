"""``iai-mcp recall --json`` says where the entries are, and a cold connection does not make it spill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from iai_mcp.cli.app import app
from iai_mcp.record import MemoryRecord
from iai_mcp.store import MemoryStore
from tests.chaos.proxy import Proxy
from tests.servers import Server, free_port, serving
from tests.support import ROOT


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "redis") as running:
        yield running


@pytest.fixture(autouse=True)
def memories(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two memories in the store that commands use."""
    monkeypatch.setenv("IAI_MCP_STORE", str(store.path))
    monkeypatch.setenv("IAI_MCP_EMBEDDER", "none")
    store.insert_many([MemoryRecord(text="Ada prefers tabs"), MemoryRecord(text="Bob prefers spaces")])


def provenance(*options: str) -> Any:
    result = CliRunner().invoke(app, ["recall", "who prefers what", "--json", *options])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["provenance"]


def test_without_redis_the_entries_are_in_the_store(store: MemoryStore) -> None:
    assert provenance() == {"entries": 2, "at": "store"}


def test_no_trace_leaves_no_entries() -> None:
    assert provenance("--no-trace") == {"entries": 0, "at": None}


def test_without_an_answer_of_redis_the_entries_are_in_the_spill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IAI_MCP_REDIS_URL", f"redis://127.0.0.1:{free_port()}/0")
    assert provenance() == {"entries": 2, "at": "spill"}


def test_a_cold_connection_does_not_make_a_recall_spill(
    server: Server, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = Proxy(server.port)
    proxy.warm_up_s = 0.1  # ten times the push budget
    url = server.url_of("producer").replace(str(server.port), str(proxy.port))
    command = [sys.executable, "-m", "iai_mcp", "recall", "who prefers what", "--json"]
    try:
        for _ in range(3):
            done = subprocess.run(
                command,
                cwd=ROOT,
                env={**os.environ, "IAI_MCP_REDIS_URL": url},
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            )
            assert json.loads(done.stdout)["provenance"] == {"entries": 2, "at": "redis"}
    finally:
        proxy.close()
    assert not [*(home / ".iai-mcp").rglob("*.jsonl")]
