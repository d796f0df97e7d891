"""Importing files: each format, the ids, and what happens to input that is wrong."""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iai_mcp.errors import UsageError
from iai_mcp.ingest.readers import BadLine, Passage, read_paths


def _read(*paths: Path | str, stdin: bytes = b"") -> list[Passage | BadLine]:
    return list(read_paths(paths, stdin=io.BytesIO(stdin)))


def _passages(*paths: Path | str, stdin: bytes = b"") -> list[Passage]:
    found = _read(*paths, stdin=stdin)
    assert all(isinstance(item, Passage) for item in found), found
    return [item for item in found if isinstance(item, Passage)]


def _texts(*paths: Path | str, stdin: bytes = b"") -> list[str]:
    return [passage.text for passage in _passages(*paths, stdin=stdin)]


def _jsonl(*lines: Any) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


# --- JSON lines ----------------------------------------------------------------------------------------


def test_json_lines_give_their_fields(tmp_path: Path) -> None:
    file = tmp_path / "notes.jsonl"
    given_id = uuid.uuid4()
    full = {
        "id": str(given_id),
        "text": " kept verbatim ",
        "session_id": "s1",
        "role": "user",
        "created_at": "2025-03-01T10:00:00+02:00",
        "tags": ["a", "b"],
        "ignored": 1,
    }
    file.write_bytes(b"\xef\xbb\xbf\n" + _jsonl(full, {"text": "bare"}))
    first, bare = _passages(file)
    assert first == Passage(
        id=given_id,
        text=" kept verbatim ",
        session_id="s1",
        role="user",
        tags=("a", "b"),
        created_at=datetime(2025, 3, 1, 8, tzinfo=UTC),
        source=f"{file}:2",
    )
    assert (bare.session_id, bare.role, bare.tags, bare.created_at) == ("", "", (), None)


def test_a_time_without_a_zone_is_utc() -> None:
    (passage,) = _passages("-", stdin=_jsonl({"text": "x", "created_at": "2025-03-01"}))
    assert passage.created_at == datetime(2025, 3, 1, tzinfo=UTC)


def test_null_fields_count_as_absent() -> None:
    line = {"text": "x", "id": None, "session_id": None, "role": None, "created_at": None, "tags": None}
    (passage,) = _passages("-", stdin=_jsonl(line))
    assert (passage.session_id, passage.role, passage.tags, passage.created_at) == ("", "", (), None)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "\xff"}', "is not UTF-8: byte 11"),
        (b'{"text": "x"', "is not JSON"),
        (b'{"text": "\\ud800"}', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'["text"]', "is not a JSON object"),
        (b"{}", "has no text"),
        (b'{"text": "  "}', "has an empty text"),
        (b'{"text": 7}', "text is not a string"),
        (b'{"type": "note", "body": "x"}', "has no text"),
        (b'{"text": "x", "id": 7}', "id is not a string"),
        (b'{"text": "x", "role": []}', "role is not a string"),
        (b'{"text": "x", "session_id": {}}', "session_id is not a string"),
        (b'{"text": "x", "created_at": "tomorrow"}', "created_at is not an ISO 8601 time: 'tomorrow'"),
        (b'{"text": "x", "created_at": "0001-01-01T00:00:00+10:00"}', "created_at is not an ISO 8601"),
        (b'{"text": "x", "created_at": 5}', "created_at is not a string"),
        (b'{"text": "x", "tags": "a"}', "tags is not a list of strings"),
        (b'{"text": "x", "tags": ["a", 1]}', "tags is not a list of strings"),
        (b'{"text": "' + b"x" * (8 * 1024 * 1024) + b'"}', "is longer than 8 MB"),
    ],
)
def test_a_bad_line_is_told_and_the_rest_is_read(tmp_path: Path, line: bytes, reason: str) -> None:
    file = tmp_path / "notes.jsonl"
    file.write_bytes(_jsonl({"text": "before"}) + line + b"\n" + _jsonl({"text": "after"}))
    before, bad, after = _read(file)
    assert isinstance(bad, BadLine)
    assert (bad.file, bad.line) == (str(file), 2)
    assert bad.reason.startswith(reason)
    assert isinstance(before, Passage)
    assert isinstance(after, Passage)
    assert (before.text, after.text, after.source) == ("before", "after", f"{file}:3")


def test_a_pretty_printed_document_is_told_once(tmp_path: Path) -> None:
    file = tmp_path / "notes.json"
    file.write_text(json.dumps([{"text": "x"}, {"text": "y"}], indent=2))
    (bad,) = _read(file)
    assert bad == BadLine(str(file), 0, "is not JSON lines: write each object on one line of its own")


def test_json_lines_are_streamed() -> None:
    """The first passages come out while the source has not ended yet."""

    class Endless(io.RawIOBase):
        lines = 0

        def readline(self, size: int | None = -1, /) -> bytes:
            Endless.lines += 1
            return _jsonl({"text": f"line {Endless.lines}"})

    found = read_paths(["-"], stdin=cast("IO[bytes]", Endless()))
    assert [getattr(next(found), "text", None) for _ in range(3)] == ["line 1", "line 2", "line 3"]
    assert Endless.lines == 3


# --- ids -----------------------------------------------------------------------------------------------


def test_the_same_content_has_the_same_ids_wherever_it_lies(tmp_path: Path) -> None:
    lines = _jsonl({"text": "x"}, {"text": "y", "role": "user"}, {"text": "z", "created_at": "2025-03-01"})
    here, there = tmp_path / "a.jsonl", tmp_path / "deep" / "b.jsonl"
    there.parent.mkdir()
    here.write_bytes(lines)
    there.write_bytes(b"\n" + lines)
    ids = [passage.id for passage in _passages(here)]
    assert len(set(ids)) == 3
    assert [passage.id for passage in _passages(there)] == ids
    assert [passage.id for passage in _passages("-", stdin=lines)] == ids


def test_ids_do_not_change_from_release_to_release() -> None:
    (passage,) = _passages("-", stdin=_jsonl({"text": "hello", "session_id": "s", "role": "user"}))
    assert passage.id == uuid.UUID("70e40712-da69-5266-9812-02601e6b2de4")


def test_repeated_passages_of_one_file_are_told_apart() -> None:
    lines = _jsonl(*[{"text": "ok", "role": "user"}] * 3)
    ids = [passage.id for passage in _passages("-", stdin=lines)]
    assert len(set(ids)) == 3
    assert [passage.id for passage in _passages("-", stdin=lines)] == ids


def test_an_id_that_is_no_uuid_is_mapped_within_its_session() -> None:
    lines = _jsonl(
        {"id": "17", "session_id": "a", "text": "x"},
        {"id": "17", "session_id": "a", "text": "edited"},
        {"id": "17", "session_id": "b", "text": "x"},
    )
    one, edited, other = (passage.id for passage in _passages("-", stdin=lines))
    assert one == edited
    assert one != other


# --- Claude Code transcripts ---------------------------------------------------------------------------


def _turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {
        "type": role,
        "message": {"role": role, "content": content},
        "sessionId": "c0ffee",
        "timestamp": "2025-03-01T10:00:00.000Z",
        "isSidechain": False,
        **more,
    }


def test_a_transcript_gives_what_was_said(tmp_path: Path) -> None:
    file = tmp_path / "c0ffee.jsonl"
    turn_id = uuid.uuid4()
    file.write_bytes(
        _jsonl(
            {"type": "summary", "summary": "Fixing the deploy", "leafUuid": str(uuid.uuid4())},
            {"type": "file-history-snapshot", "messageId": "m", "snapshot": {}},
            _turn("user", "Why does the deploy fail?", uuid=str(turn_id)),
            _turn("assistant", [{"type": "thinking", "thinking": "hmm"}]),
            _turn(
                "assistant",
                [
                    {"type": "text", "text": "The disk is full."},
                    {"type": "tool_use", "name": "Bash", "input": {"command": "df"}},
                    {"type": "text", "text": "Shall I prune?"},
                ],
            ),
            _turn("user", [{"type": "tool_result", "content": "95%"}]),
            _turn("user", "Caveat: injected", isMeta=True),
            _turn("user", "<command-name>/clear</command-name>"),
            _turn("user", "This session is being continued", isCompactSummary=True),
            {"type": "system", "content": "hook ran", "sessionId": "c0ffee"},
            {"type": "brand-new-kind", "sessionId": "c0ffee"},
        )
    )
    user, assistant = _passages(file)
    assert (user.id, user.text, user.role) == (turn_id, "Why does the deploy fail?", "user")
    assert (assistant.text, assistant.role) == ("The disk is full.\n\nShall I prune?", "assistant")
    assert {user.session_id, assistant.session_id} == {"c0ffee"}
    assert user.created_at == datetime(2025, 3, 1, 10, tzinfo=UTC)
    assert assistant.source == f"{file}:5"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"type": "user", "message": "hello"}, "message is not an object"),
        (_turn("user", 7), "message.content is neither"),
        (_turn("user", "x", timestamp="soon"), "timestamp is not an ISO 8601 time"),
        (_turn("user", "x", sessionId=7), "sessionId is not a string"),
    ],
)
def test_a_broken_turn_is_a_bad_line(line: dict[str, Any], reason: str) -> None:
    (bad,) = _read("-", stdin=_jsonl(line))
    assert isinstance(bad, BadLine)
    assert bad.reason.startswith(reason)


# --- Markdown, reStructuredText, plain text ------------------------------------------------------------


def _file(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def test_markdown_is_cut_at_headings_and_keeps_their_path(tmp_path: Path) -> None:
    file = _file(
        tmp_path,
        "guide.md",
        "Intro.\n\n# Guide\n\n## Install\nRun it.\n\nThen again.\n## Use ##\nCall it.\n\n# Notes\nEnd.\n",
    )
    passages = _passages(file)
    assert [passage.text for passage in passages] == [
        "Intro.",
        "Guide > Install\n\nRun it.\n\nThen again.",
        "Guide > Use\n\nCall it.",
        "Notes\n\nEnd.",
    ]
    assert {passage.session_id for passage in passages} == {"guide"}
    assert [passage.source for passage in passages] == [f"{file}:{line}" for line in (1, 6, 10, 13)]


def test_headings_with_nothing_under_them_are_kept(tmp_path: Path) -> None:
    file = _file(tmp_path, "todo.md", "# Todo\n## Rotate keys\n## Prune logs\n# Later\n")
    assert _texts(file) == ["Todo > Rotate keys", "Todo > Prune logs", "Later"]


def test_underlined_headings(tmp_path: Path) -> None:
    text = "=====\nGuide\n=====\n\nInstall\n-------\nRun it.\n\n----\n\n# not a heading here\n"
    assert _texts(_file(tmp_path, "guide.rst", text)) == [
        "Guide > Install\n\nRun it.\n\n# not a heading here",
    ]
    assert _texts(_file(tmp_path, "guide.md", "Title\n===\nBody.\n")) == ["Title\n\nBody."]


def test_plain_text_knows_no_headings(tmp_path: Path) -> None:
    assert _texts(_file(tmp_path, "n.txt", "# one\r\n\r\ntwo\r\n---\r\n")) == ["# one\n\ntwo\n---"]


def test_small_paragraphs_are_merged_and_large_ones_cut(tmp_path: Path) -> None:
    small = [f"Paragraph {n} " + "word " * 30 + "end." for n in range(20)]
    merged = _texts(_file(tmp_path, "small.txt", "\n\n".join(small)))
    assert [part for text in merged for part in text.split("\n\n")] == small
    assert all(300 < len(text) <= 820 for text in merged[:-1])

    large = " ".join(f"Sentence number {n} says something." for n in range(400))
    cut = _texts(_file(tmp_path, "large.txt", large))
    assert " ".join(cut) == large
    assert all(text.endswith(".") for text in cut)
    assert max(map(len, cut)) <= 1600


def test_text_without_any_break_is_still_cut(tmp_path: Path) -> None:
    cut = _texts(_file(tmp_path, "blob.txt", "x" * 5000))
    assert "".join(cut) == "x" * 5000
    assert max(map(len, cut)) <= 1600


def test_fenced_code_is_not_cut_nor_read_as_headings(tmp_path: Path) -> None:
    code = "```sh\n# a comment\n\n" + "echo hello   # says hello\n\n" * 80 + "```"
    assert _texts(_file(tmp_path, "a.md", f"# Run\n\n{code}\n\nAfter.\n")) == [
        f"Run\n\n{code}",
        "Run\n\nAfter.",
    ]
    nested = "````\n```\n# x\n```\n````"
    assert _texts(_file(tmp_path, "b.md", f"{nested}\n# Next\nBody.")) == [nested, "Next\n\nBody."]
    assert _texts(_file(tmp_path, "c.md", "~~~\n# never closed\n\nend")) == ["~~~\n# never closed\n\nend"]


def test_endless_code_is_cut_between_its_lines(tmp_path: Path) -> None:
    lines = ["```", *(f"    line {n}" for n in range(3000)), "```"]
    texts = _texts(_file(tmp_path, "log.md", "\n".join(lines)))
    assert "\n".join(texts) == "\n".join(lines)
    assert max(map(len, texts)) <= 8_000


def test_a_line_that_is_not_utf8_is_left_out_of_a_text(tmp_path: Path) -> None:
    file = tmp_path / "old.txt"
    file.write_bytes(b"one\n\xe9t\xe9\nthree\n")
    bad, passage = _read(file)
    assert bad == BadLine(str(file), 2, "is not UTF-8: byte 1 of the line")
    assert isinstance(passage, Passage)
    assert passage.text == "one\nthree"


def test_a_text_line_that_is_too_long_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "big.txt"
    file.write_bytes(b"one\n" + b"x" * (20 * 1024 * 1024) + b"\nthree\n")
    bad, passage = _read(file)
    assert bad == BadLine(str(file), 2, "is longer than 8 MB: split it")
    assert isinstance(passage, Passage)
    assert passage.text == "one\nthree"


# --- where passages come from --------------------------------------------------------------------------


def test_folders_are_read_in_order_without_hidden_and_foreign_files(tmp_path: Path) -> None:
    for name in ("b.md", "a.txt", "c/d.rst", "c/e.MARKDOWN", ".git/x.md", ".hidden.md", "f.py", "g.bin"):
        _file(tmp_path, name, f"from {name}")
    _file(tmp_path, "c/h.ndjson", '{"text": "from c/h.ndjson"}')
    assert _texts(tmp_path) == [
        f"from {name}" for name in ("a.txt", "b.md", "c/d.rst", "c/e.MARKDOWN", "c/h.ndjson")
    ]


def test_a_file_of_another_suffix_is_read_for_what_it_is(tmp_path: Path) -> None:
    notes = _file(tmp_path, "notes.log", '\n {"text": "a line"}\n')
    prose = _file(tmp_path, "README", "# Title\nbody")
    assert _texts(notes, prose) == ["a line", "Title\n\nbody"]


@pytest.mark.parametrize("dash", ["-", Path("-")])
def test_standard_input_is_json_lines_or_text(dash: Path | str, monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = _passages(dash, stdin=b'  \n{"text": "a line"}\n')
    assert (line.text, line.source) == ("a line", "-:2")
    (prose,) = _passages(dash, stdin=b"# Title\nbody")
    assert (prose.text, prose.session_id) == ("Title\n\nbody", "")
    assert _read(dash) == []
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"piped")))
    assert [getattr(item, "text", None) for item in read_paths([dash])] == ["piped"]


def test_a_missing_path_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    here = _file(tmp_path, "here.md", "text")
    with pytest.raises(UsageError, match=r"gone\.md does not exist"):
        read_paths([here, tmp_path / "gone.md"])


def test_a_file_that_cannot_be_opened_is_told_and_the_rest_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = _file(tmp_path, "a.md", "secret")
    _file(tmp_path, "b.md", "open")
    real_open = os.open

    def refusing(path: Any, *args: Any, **options: Any) -> int:
        if path == closed:
            raise PermissionError(13, "Permission denied")
        return real_open(path, *args, **options)

    monkeypatch.setattr(os, "open", refusing)  # this test may run as root, whom no mode stops
    bad, passage = _read(tmp_path)
    assert bad == BadLine(str(closed), 0, "cannot be read: Permission denied")
    assert isinstance(passage, Passage)
    assert passage.text == "open"


def test_a_file_name_that_is_not_utf8_gives_text_that_can_be_stored(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.md"
    try:
        with open(path, "wb") as file:
            file.write(b"body")
    except OSError:  # macOS refuses such names
        return
    (passage,) = _passages(tmp_path)
    assert passage.session_id == "caf\ufffd"
    assert passage.source.endswith("caf\ufffd.md:1")


# --- whatever comes ------------------------------------------------------------------------------------

_fragments = st.sampled_from(
    [
        b"{",
        b'{"text": "x"}',
        b'{"type": "user", "message": {}}',
        b"\n",
        b"\r\n",
        b"# h",
        b"```",
        b"===",
        b"[",
        b"\xff",
    ]
)
_bytes = st.one_of(st.binary(max_size=400), st.lists(_fragments, max_size=30).map(b"".join))


@settings(max_examples=200, deadline=None)
@given(data=_bytes, suffix=st.sampled_from([".jsonl", ".md", ".txt", ".rst", ".bin"]))
def test_no_bytes_crash_the_import(data: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"any{suffix}")
        path.write_bytes(data)
        found = _read(path) + _read("-", stdin=data)
        again = _read(path) + _read("-", stdin=data)
    assert found == again
    for passage in _only_passages(found):
        assert passage.text.strip()
        passage.text.encode()


def _only_passages(found: list[Passage | BadLine]) -> Iterator[Passage]:
    return (item for item in found if isinstance(item, Passage))
