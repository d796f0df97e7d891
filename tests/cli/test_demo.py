"""The demo, whole and with the real embedder: what a newcomer sees, and that nothing of it stays behind."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from iai_mcp.cli.app import app
from iai_mcp.cli.demo_run import CLIENTS, QUESTIONS, passages

RECALLS = len(CLIENTS) * len(QUESTIONS)


@pytest.fixture(autouse=True)
def _log() -> Iterator[None]:
    log = logging.getLogger("iai_mcp")
    before = log.handlers[:], log.level, log.propagate
    yield
    log.handlers[:], log.level, log.propagate = before


def demo(*args: str) -> str:
    result = CliRunner().invoke(app, ["demo", *args])
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.stderr == ""
    return result.stdout


def test_the_passages_are_real_whole_and_always_the_same() -> None:
    found = passages()
    assert 150 <= len(found) <= 220
    assert [one.id for one in found] == [one.id for one in passages()]
    assert len({one.id for one in found}) == len(found)
    assert all(one.text.strip() for one in found)
    assert {"for", "nonlocal", "truth", "while"} <= {one.tags[1] for one in found}


def test_the_demo_tells_a_newcomer_what_happened(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    (tmp_path / "temp").mkdir()
    said = demo()
    assert max(map(len, said.splitlines())) <= 80
    order = ("Remember", "Recall", QUESTIONS[0], "Every recall left a trace", "Where the trace", "Next")
    places = [said.index(part) for part in order]
    assert places == sorted(places)
    for client, session in CLIENTS:
        assert f"{session} ({client})" in said
    assert f"{RECALLS} recalls, {RECALLS * 5} trace entries, all written" in said
    assert "iai-mcp import" in said
    assert list((tmp_path / "temp").iterdir()) == []
    assert list(home.iterdir()) == []


def test_the_demo_as_a_document_and_a_store_that_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IAI_MCP_EMBEDDER", "none")  # words suffice here
    kept = str(tmp_path / "kept")
    facts: dict[str, Any] = json.loads(demo("--store", kept, "--json"))
    assert facts["store"] == kept
    assert facts["memories"]["added"] == len(passages())
    assert [one["cue"] for one in facts["questions"]] == list(QUESTIONS)
    assert all(len(one["hits"]) == 5 for one in facts["questions"])
    assert facts["cost"]["recalls"] == RECALLS
    assert facts["cost"]["entries"] == sum(lane["applied"] for lane in facts["status"]["lanes"])
    assert 0 < facts["cost"]["provenance_ms_p50"] < facts["cost"]["total_ms_p50"]
    trail = facts["most_recalled"]["provenance"]
    assert {left["client"] for left in trail} == {client for client, _ in CLIENTS}
    assert {left["cue"] for left in trail} <= set(QUESTIONS)

    again = json.loads(demo("--store", kept, "--json"))
    assert (again["memories"]["added"], again["memories"]["existing"]) == (0, len(passages()))
    assert "the demo's store, which was kept" in demo("--store", kept)
