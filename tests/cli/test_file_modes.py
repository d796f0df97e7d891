"""Files that are written have the owner's rights only, whatever the umask."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from iai_mcp.common.files import replace_file
from iai_mcp.config import Settings
from iai_mcp.record import MemoryRecord
from iai_mcp.store import MemoryStore
from tests.servers import serving
from tests.support import ROOT, pairs


@pytest.fixture
def wide_open() -> Iterator[None]:
    """A process whose umask takes nothing away; its children inherit that."""
    before = os.umask(0)
    yield
    os.umask(before)


def readable(folder: Path) -> list[str]:
    """What below ``folder`` another user could open, with its mode: no folder above it is private."""
    found = []
    for parent, names, files in os.walk(folder):
        for name in list(names):
            if _shared(Path(parent, name)):
                found.append(Path(parent, name))
            else:
                names.remove(name)
        found += [Path(parent, name) for name in files if _shared(Path(parent, name))]
    return [f"{path.relative_to(folder)} {stat.filemode(path.stat().st_mode)}" for path in found]


def not_private(folder: Path) -> list[str]:
    """What below ``folder`` has rights for others, private folders above it or not."""
    found = [path for path in sorted(folder.rglob("*")) if _shared(path)]
    return [f"{path.relative_to(folder)} {stat.filemode(path.stat().st_mode)}" for path in found]


def _shared(path: Path) -> bool:
    return not path.is_symlink() and bool(stat.S_IMODE(path.stat().st_mode) & 0o077)


@pytest.fixture
def run(tmp_path: Path, home: Path) -> Callable[..., str]:
    home.chmod(0o755)  # the user's own folder
    out = tmp_path / "out"
    out.mkdir(mode=0o755)

    def go(*command: str, **env: str) -> str:
        settings = {**os.environ, "IAI_MCP_EMBEDDER": "none", "PYTHONPATH": str(ROOT), **env}
        command = command if command[0] == "-m" else ("-m", "iai_mcp", *command)
        done = subprocess.run(
            [sys.executable, *command],
            cwd=out,
            env=settings,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=90,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    return go


def test_the_command_line_writes_for_its_owner_only(
    run: Callable[..., str], tmp_path: Path, home: Path, wide_open: None
) -> None:
    out = tmp_path / "out"
    run("capture", "The ferry leaves from pier nine")
    run("recall", "which pier", IAI_MCP_JOURNAL="write")
    run("recall", "which pier", IAI_MCP_REDIS_URL="redis://127.0.0.1:1")  # spills
    spill = home / ".iai-mcp" / ".provenance-overflow"
    assert [*spill.glob("*.jsonl")]
    for form in ("csv", "jsonl", "parquet", "json"):
        run("provenance", "--output", str(out / f"trail.{form}"))
    (out / "there").mkdir(mode=0o755)
    run("backup", str(out / "there"))
    run("backup", str(out / "deep" / "backup"))
    run("restore", str(out / "there"), "--as-copy", "--store", str(out / "restored"))
    run("export", str(out / "export"))
    (out / "there-too").mkdir(mode=0o755)
    run("export", str(out / "there-too"))
    run("lanes", "8")
    run("install", "cursor")
    with serving(tmp_path / "redis", acl=False) as redis:
        env = {"IAI_MCP_REDIS_URL": redis.url}
        run("recall", "which pier", **env)
        run("-m", "workers", "--burst", **env)
        run("worker", "--burst", **env)
    ours = {"there d", "there-too d"}
    assert [one for one in not_private(out) if one[:-9] not in ours] == []
    assert not_private(home) == []


def test_a_library_shows_nobody_what_it_writes(tmp_path: Path, home: Path, wide_open: None) -> None:
    from iai_mcp.transfer.backup import backup
    from iai_mcp.transfer.export import export

    for folder in ("store", "backup", "export"):
        (tmp_path / folder).mkdir(mode=0o755)  # made by the user beforehand
    store = MemoryStore(tmp_path / "store", settings=Settings(embedder="none", journal="write"))
    record = MemoryRecord("The ferry leaves from pier nine")
    store.insert(record)
    store.append_provenance_batch(pairs(record.id, range(3)))
    export(store, tmp_path / "export")
    backup(store.layout, store.settings, tmp_path / "backup", lambda done, total: None)
    store.disable_provenance_queue()
    seen = [one for folder in ("store", "backup", "export") for one in readable(tmp_path / folder)]
    assert seen == []


def test_a_file_that_is_replaced_gets_the_mode_that_is_asked_for(tmp_path: Path) -> None:
    path, before = tmp_path / "config.json", os.umask(0o077)
    try:
        replace_file(path, b"{}", mode=0o644)  # a client's own file, which others may read
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
