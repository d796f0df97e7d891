"""Locked files: one holder at a time, and the lock of a dead process is free."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from iai_mcp.storage.locked_file import LockedFile, is_held, lock_shared, try_lock
from tests.support import python

HOLD = """
import sys
from pathlib import Path
from iai_mcp.storage.locked_file import LockedFile
held = LockedFile.create(Path(sys.argv[1]), b"data")
print("there", flush=True)
sys.stdin.readline()
"""


def test_a_file_is_held_until_its_process_dies(tmp_path: Path) -> None:
    path = tmp_path / "file"
    process = python(HOLD, path)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        assert is_held(path)
        assert LockedFile.take(path) is None
    finally:
        process.kill()
        process.communicate(timeout=20)
    assert not is_held(path)
    taken = LockedFile.take(path)
    assert taken is not None
    assert path.read_bytes() == b"data"
    taken.remove()
    taken.close()  # harmless
    assert not path.exists()


def test_a_file_that_is_gone_is_neither_held_nor_taken(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "file")
    assert LockedFile.take(tmp_path / "file") is None


def test_a_file_that_was_replaced_meanwhile_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.touch()
    stat = os.stat
    other = tmp_path / "other"
    other.touch()
    monkeypatch.setattr(os, "stat", lambda _: stat(other))
    assert LockedFile.take(path) is None


def test_nothing_is_left_of_a_file_that_could_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("iai_mcp.storage.locked_file.write_all", full)
    with pytest.raises(OSError, match="No space"):
        LockedFile.create(tmp_path / "file", b"data")
    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(OSError, match="No space"):
        LockedFile.create(tmp_path / "file")
    assert list(tmp_path.glob("file*")) == []


def test_shared_locks_exclude_an_exclusive_one_only(tmp_path: Path) -> None:
    path = tmp_path / "file"
    first, second = (os.open(path, os.O_RDWR | os.O_CREAT) for _ in range(2))
    try:
        assert try_lock(first, shared=True)
        assert try_lock(second, shared=True)
        assert not try_lock(second)
        os.close(first)
        assert try_lock(second)
        lock_shared(second)
        first = os.open(path, os.O_RDWR)
        assert try_lock(first, shared=True)
    finally:
        os.close(first)
        os.close(second)
