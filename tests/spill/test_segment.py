"""A chain of segments is taken whole or not at all, and a rewrite keeps its lock."""

from __future__ import annotations

from pathlib import Path

import pytest

from iai_mcp.spill.segment import Segment, take_all
from iai_mcp.storage.locked_file import is_held


def a_chain(folder: Path) -> list[Path]:
    paths = [folder / f"{number}.jsonl" for number in range(3)]
    for path in paths:
        path.write_bytes(b"line\n")
    return paths


def test_a_chain_is_taken_whole(tmp_path: Path) -> None:
    paths = a_chain(tmp_path)
    segments = take_all(paths)
    assert segments is not None
    assert [segment.path for segment in segments] == paths
    assert all(map(is_held, paths))
    for segment in segments:
        segment.close()


def test_of_a_chain_that_another_holds_a_part_of_nothing_is_taken(tmp_path: Path) -> None:
    paths = a_chain(tmp_path)
    other = Segment.take(paths[2])
    assert other is not None
    assert take_all(paths) is None
    assert [is_held(path) for path in paths] == [False, False, True]
    other.close()


def test_an_error_amid_a_chain_releases_what_was_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = a_chain(tmp_path)
    take = Segment.take

    def refuse(path: Path) -> Segment | None:
        if path == paths[1]:
            raise PermissionError(13, "not yours", str(path))
        return take(path)

    monkeypatch.setattr(Segment, "take", refuse)
    with pytest.raises(PermissionError):
        take_all(paths)
    assert not any(map(is_held, paths))


def test_a_rewritten_file_stays_locked_and_an_empty_one_goes(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"keep\ndrop\n")
    segment = Segment.take(path)
    assert segment is not None
    segment.rewrite(lambda line: line if line.startswith(b"keep") else b"")
    assert path.read_bytes() == b"keep\n"
    assert is_held(path)
    assert segment.size == 5
    segment.rewrite(lambda line: b"")
    segment.close()
    assert list(tmp_path.glob("a*")) == []
