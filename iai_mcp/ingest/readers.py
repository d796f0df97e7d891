"""Reads files into passages, in order and as a stream.

Wrong input gives a :class:`BadLine`, and reading goes on. Ids depend on content alone, so the same file gives the
same ids at any path.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import IO, Any

import msgspec

from iai_mcp.common.regular_files import reading
from iai_mcp.common.times import as_utc
from iai_mcp.errors import UnfitFile, UsageError
from iai_mcp.ingest.paths import files_below
from iai_mcp.ingest.splitter import Splitter

__all__ = ["BadLine", "Passage", "read_paths"]

_JSON_SUFFIXES = frozenset({".jsonl", ".json", ".jsonlines", ".ndjson"})
_TEXT_SUFFIXES = frozenset({".md", ".markdown", ".txt", ".rst"})
_MAX_LINE = 8 * 1024 * 1024
_MAX_FILE = 16 * 1024**3
_NAMESPACE = uuid.UUID("6b0f0d3e-5f0c-5d0a-9c55-2f8f2f1f9d11")  # changing it changes every imported id


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of text that becomes a memory.

    Attributes:
        created_at: aware, in UTC; None where the file has no time.
        source: ``file:line``, its first line, from 1.
    """

    id: uuid.UUID
    text: str
    session_id: str
    role: str
    tags: tuple[str, ...]
    created_at: datetime | None
    source: str


@dataclass(frozen=True, slots=True)
class BadLine:
    """Input that was left out, and why: line ``line`` of ``file``, from 1; 0 is the whole file."""

    file: str
    line: int
    reason: str


def read_paths(
    paths: Sequence[Path | str], *, stdin: IO[bytes] | None = None, follow_links: bool = False
) -> Iterator[Passage | BadLine]:
    """Read passages from files, from folders and from ``-``, standard input.

    Folders are read recursively, in sorted order, without hidden files. Known formats are JSON lines, Claude Code
    transcripts, Markdown, reStructuredText and plain text. A file with another suffix is read as JSON lines if it
    begins with ``{``, else as Markdown. A pipe, a socket or a device is a bad line, and never waited for.

    Args:
        stdin: what ``-`` reads.
        follow_links: in folders, follow links that lead out of them.

    Raises:
        UsageError: a path does not exist; raised before anything is read.
    """
    for path in paths:
        if str(path) != "-" and not os.path.exists(path):
            raise UsageError(f"{path} does not exist: give files, folders or - for standard input")
    return _read_all(paths, stdin, follow_links)


def _read_all(
    paths: Sequence[Path | str], stdin: IO[bytes] | None, follow_links: bool
) -> Iterator[Passage | BadLine]:
    for path in paths:
        if str(path) == "-":
            yield from _read_stream(sys.stdin.buffer if stdin is None else stdin, "-", session="", suffix="")
        elif os.path.isdir(path):
            yield from _read_folder(Path(path), follow_links)
        else:
            yield from _read_file(Path(path))


def _read_folder(folder: Path, follow_links: bool) -> Iterator[Passage | BadLine]:
    for found in files_below(folder, _JSON_SUFFIXES | _TEXT_SUFFIXES, follow_links=follow_links):
        if found.left_out:
            yield BadLine(_printable(found.path), 0, found.left_out)
        else:
            yield from _read_file(found.path)


def _read_file(path: Path) -> Iterator[Passage | BadLine]:
    name = _printable(path)
    try:
        with reading(path, limit=_MAX_FILE, follow=True) as stream:
            yield from _read_stream(stream, name, session=_printable(path.stem), suffix=path.suffix.lower())
    except UnfitFile as error:
        yield BadLine(name, 0, f"{error.strerror}: split it, or pipe it into `import -`")
    except OSError as error:
        yield BadLine(name, 0, f"cannot be read: {error.strerror}")


def _printable(path: object) -> str:
    """A path as valid UTF-8: file names may hold other bytes."""
    return os.fsencode(os.fspath(path) if isinstance(path, Path) else str(path)).decode("utf-8", "replace")


# --- lines ---------------------------------------------------------------------------------------------

_Line = tuple[int, bytes | None]  # None: longer than _MAX_LINE


class _BadError(Exception):
    """A line cannot be used; the message is the reason."""


def _lines(stream: IO[bytes]) -> Iterator[_Line]:
    number = 0
    while line := stream.readline(_MAX_LINE + 1):
        number += 1
        if len(line) <= _MAX_LINE:
            yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            continue
        while not line.endswith(b"\n") and (line := stream.readline(_MAX_LINE)):
            pass
        yield number, None


def _decoded(raw: bytes | None) -> str:
    if raw is None:
        raise _BadError(f"is longer than {_MAX_LINE // 1024**2} MB: split it")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise _BadError(f"is not UTF-8: byte {error.start + 1} of the line") from None


def _read_stream(stream: IO[bytes], name: str, *, session: str, suffix: str) -> Iterator[Passage | BadLine]:
    lines = _lines(stream)
    first, lines = _peek(lines)
    if suffix in _JSON_SUFFIXES or (suffix not in _TEXT_SUFFIXES and first.startswith(b"{")):
        if first in (b"{", b"["):
            yield BadLine(name, 0, "is not JSON lines: write each object on one line of its own")
            return
        found = _json_lines(lines, name)
    else:
        found = _text(lines, name, session, suffix)
    seen: dict[uuid.UUID, int] = {}
    for item in found:
        yield _with_id(item, name, seen) if isinstance(item, _Draft) else item


def _peek(lines: Iterator[_Line]) -> tuple[bytes, Iterator[_Line]]:
    """The first line that is not blank, stripped, and an iterator over all lines."""
    head: list[_Line] = []
    for line in lines:
        head.append(line)
        if line[1] is not None and line[1].strip():
            break
    first = head[-1][1] if head else None
    return (first or b"").strip(), chain(head, lines)


# --- ids -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Draft:
    line: int
    text: str
    session_id: str = ""
    role: str = ""
    tags: tuple[str, ...] = ()
    created_at: datetime | None = None
    given_id: str = ""


def _with_id(draft: _Draft, name: str, seen: dict[uuid.UUID, int]) -> Passage:
    return Passage(
        id=_id_of(draft, seen),
        text=draft.text,
        session_id=draft.session_id,
        role=draft.role,
        tags=draft.tags,
        created_at=draft.created_at,
        source=f"{name}:{draft.line}",
    )


def _id_of(draft: _Draft, seen: dict[uuid.UUID, int]) -> uuid.UUID:
    if draft.given_id:
        try:
            return uuid.UUID(draft.given_id)
        except ValueError:  # an id such as "17" is unique within its session at best
            return _uuid5("given", draft.session_id, draft.given_id)
    when = draft.created_at.isoformat() if draft.created_at else ""
    content = ("content", draft.session_id, when, draft.role, draft.text)
    first = _uuid5(*content)
    seen[first] = times = seen.get(first, 0) + 1
    return first if times == 1 else _uuid5(*content, str(times))


def _uuid5(*parts: str) -> uuid.UUID:
    return uuid.uuid5(_NAMESPACE, msgspec.json.encode(parts).decode())


# --- JSON lines and Claude Code transcripts ------------------------------------------------------------

# Lines of a transcript that hold no conversation and may carry neither a message nor a session.
_SILENT_TYPES = frozenset({"summary", "system", "progress", "file-history-snapshot", "queue-operation"})
# Texts that the client writes in the user's name.
_MACHINE_WRITTEN = (
    "<command-",
    "<local-command-",
    "<system-reminder>",
    "[Request interrupted by user",
    "Caveat: The messages below were generated by the user while running local commands",
)


def _json_lines(lines: Iterable[_Line], name: str) -> Iterator[_Draft | BadLine]:
    for number, raw in lines:
        try:
            line = _decoded(raw).strip()
            draft = _json_line(number, line) if line else None
        except _BadError as error:
            yield BadLine(name, number, str(error))
        else:
            if draft is not None:
                yield draft


def _json_line(number: int, line: str) -> _Draft | None:
    try:
        value = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError) as error:
        raise _BadError(f"is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise _BadError("is not a JSON object")
    return _transcript_line(number, value) if _is_transcript(value) else _plain_line(number, value)


def _plain_line(number: int, value: dict[str, Any]) -> _Draft:
    text = _string(value, "text")
    if not text.strip():
        raise _BadError("has no text" if "text" not in value else "has an empty text")
    tags = value.get("tags") or []
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise _BadError("tags is not a list of strings")
    return _Draft(
        line=number,
        text=text,
        session_id=_string(value, "session_id"),
        role=_string(value, "role"),
        tags=tuple(tags),
        created_at=_time(value, "created_at"),
        given_id=_string(value, "id"),
    )


def _is_transcript(value: dict[str, Any]) -> bool:
    kind = value.get("type")
    if not isinstance(kind, str) or "text" in value:
        return False
    return "message" in value or "sessionId" in value or kind in _SILENT_TYPES


def _transcript_line(number: int, value: dict[str, Any]) -> _Draft | None:
    """The text of the user or the assistant in this line; None for tools and bookkeeping."""
    if value["type"] not in ("user", "assistant") or value.get("isMeta") or value.get("isCompactSummary"):
        return None
    message = value.get("message")
    if not isinstance(message, dict):
        raise _BadError("message is not an object")
    text = _content_text(message.get("content")).strip()
    if not text or text.startswith(_MACHINE_WRITTEN):
        return None
    return _Draft(
        line=number,
        text=text,
        session_id=_string(value, "sessionId"),
        role=_string(message, "role") or value["type"],
        created_at=_time(value, "timestamp"),
        given_id=_string(value, "uuid"),
    )


def _content_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _BadError("message.content is neither a string nor a list of blocks")
    blocks = (block for block in content if isinstance(block, dict) and block.get("type") == "text")
    texts = (block.get("text") for block in blocks)
    return "\n\n".join(text for text in texts if isinstance(text, str) and text.strip())


def _string(value: dict[str, Any], key: str) -> str:
    found = value.get(key)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise _BadError(f"{key} is not a string")
    return found


def _time(value: dict[str, Any], key: str) -> datetime | None:
    raw = _string(value, key)
    if not raw:
        return None
    try:
        return as_utc(datetime.fromisoformat(raw))
    except (ValueError, OverflowError):
        raise _BadError(f"{key} is not an ISO 8601 time: {raw[:40]!r}") from None


# --- Markdown, reStructuredText and plain text ---------------------------------------------------------


def _text(lines: Iterable[_Line], name: str, session: str, suffix: str) -> Iterator[_Draft | BadLine]:
    splitter = Splitter(marked=suffix not in (".txt", ".rst"), underlined=suffix != ".txt")
    for number, raw in lines:
        try:
            pieces = splitter.feed(number, _decoded(raw).rstrip("\r\n"))
        except _BadError as error:
            yield BadLine(name, number, str(error))
        else:
            yield from (_Draft(piece.line, piece.text, session) for piece in pieces)
    yield from (_Draft(piece.line, piece.text, session) for piece in splitter.end())
