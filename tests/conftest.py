"""Every test has a home, a spill folder and an environment of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from iai_mcp.store import MemoryStore
from tests import servers


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--acl", action="store_true", help="Run every Redis with the configuration and users of deploy/redis."
    )


def pytest_configure(config: pytest.Config) -> None:
    servers.ACL = config.getoption("--acl")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh ``HOME``, and none of this machine's settings."""
    for name in list(os.environ):
        if name.startswith("IAI_MCP_"):
            monkeypatch.delenv(name)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MemoryStore]:
    """An empty store with default settings; its queue is stopped afterwards."""
    made = MemoryStore(tmp_path / "store")
    yield made
    made.disable_provenance_queue()
