"""Folders to import that hold pipes, devices and links: nothing waits, and no link leads out unasked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from iai_mcp.ingest.readers import BadLine, Passage, read_paths
from tests.support import ROOT
from tests.support_files import make_all


def texts(items: list[Passage | BadLine]) -> list[str]:
    return sorted(item.text for item in items if isinstance(item, Passage))


def left_out(items: list[Passage | BadLine]) -> dict[str, str]:
    return {Path(item.file).name: item.reason for item in items if isinstance(item, BadLine)}


def test_a_folder_with_every_kind_of_file_is_read_in_bounded_time(tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "good.jsonl").write_text('{"text": "a good note"}\n')
    odd = make_all(folder, ".jsonl")
    code = (
        "import sys\nfrom iai_mcp.ingest.readers import read_paths\n"
        "for item in read_paths([sys.argv[1]]): print(item)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, folder], capture_output=True, text=True, timeout=20, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert "a good note" in done.stdout
    assert "a secret outside" not in done.stdout
    named = {**odd}
    del named["folder"]  # it is read as a folder, and is empty
    assert [path.name for path in named.values() if path.name not in done.stdout] == []


def test_a_link_is_followed_within_the_folder_only(tmp_path: Path) -> None:
    folder, outside = tmp_path / "notes", tmp_path / "outside"
    (folder / "sub").mkdir(parents=True)
    (outside / "deep").mkdir(parents=True)
    (folder / "sub" / "a.jsonl").write_text('{"text": "inside"}\n')
    (folder / "again.jsonl").symlink_to(folder / "sub" / "a.jsonl")
    (outside / "b.jsonl").write_text('{"text": "a secret"}\n')
    (outside / "deep" / "c.jsonl").write_text('{"text": "a deep secret"}\n')
    (folder / "b.jsonl").symlink_to(outside / "b.jsonl")
    (folder / "linked").symlink_to(outside / "deep")
    (folder / "round").symlink_to(folder)
    found = [*read_paths([folder])]
    assert texts(found) == ["inside", "inside"]
    assert set(left_out(found)) == {"b.jsonl", "linked", "round"}
    assert all("--follow-links" in reason for reason in left_out(found).values())
    assert texts([*read_paths([folder], follow_links=True)]) == ["a deep secret", "a secret", "inside", "inside"]


def test_a_path_that_is_given_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "given"}\n')
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "a.jsonl")
    assert texts([*read_paths([tmp_path / "link.jsonl"])]) == ["given"]
