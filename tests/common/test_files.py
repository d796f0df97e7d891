"""Files that survive a crash: replaced in one step, appended line by line, synced on every system."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from iai_mcp.common import files
from iai_mcp.common.files import append_lines, replace_file, sync_tree


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "folder"
    made.mkdir()
    return made


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that are synced, on a system without ``syncfs``."""
    monkeypatch.setattr(files, "_syncfs", None)
    paths: list[str] = []
    monkeypatch.setattr(files, "sync_path", lambda path: paths.append(str(path)))
    return paths


def test_without_syncfs_each_file_is_synced_before_the_folder_that_names_it(
    folder: Path, synced: list[str]
) -> None:
    (folder / "table").mkdir()
    (folder / "table" / "rows").write_bytes(b"x")
    sync_tree(folder)
    assert synced == [str(folder / "table" / "rows"), str(folder / "table"), str(folder)]


def test_without_syncfs_what_is_older_than_the_write_is_left_alone(folder: Path, synced: list[str]) -> None:
    old, new = folder / "old", folder / "new"
    for path, when in ((old, 1_000), (new, 2_000)):
        path.write_bytes(b"x")
        os.utime(path, (when, when))
    os.utime(folder, (2_000, 2_000))
    sync_tree(folder, since=1_900)
    assert synced == [str(new), str(folder)]


def test_a_replacement_that_fails_leaves_the_old_file_and_no_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "facts"
    replace_file(path, b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, b"new")
    assert [(one.name, one.read_bytes()) for one in folder.iterdir()] == [("facts", b"old")]


def test_the_torn_end_of_an_append_becomes_a_line_of_its_own(folder: Path) -> None:
    path = folder / "log"
    append_lines(path, b"one\n")
    with open(path, "ab") as file:
        file.write(b"tor")
    append_lines(path, b"two\n")
    assert path.read_bytes().splitlines() == [b"one", b"tor", b"two"]


def test_an_append_that_the_disk_takes_in_part_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.write", lambda fd, data: len(data) - 1)
    with pytest.raises(OSError, match="No space left"):
        append_lines(folder / "log", b"one\n")
