"""Splits the lines of Markdown, reStructuredText or plain text into passages; keeps one in memory at a time.

A passage is a few paragraphs of one section, about as much as an embedding covers. It begins with the path of the
headings above it (``Guide > Install``). A paragraph loses nothing but blanks at its ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Piece", "Splitter"]

_PASSAGE = 800  # characters that small paragraphs are merged up to
_LONG = 2 * _PASSAGE  # longer paragraphs are cut
_LONG_CODE = 8_000  # longer fenced blocks are cut

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")
_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*$")
_RULE = re.compile(r"([=\-~^\"*+])\1{2,}[ \t]*$")
_RULE_LEVELS = '=-~^"*+'  # reStructuredText does not fix the order; this is the usual one


@dataclass(frozen=True, slots=True)
class Piece:
    """A passage and its first line, from 1."""

    line: int
    text: str


@dataclass(frozen=True, slots=True)
class _Heading:
    level: int
    title: str
    line: int


class Splitter:
    """Takes lines in order and yields each passage as soon as it is complete.

    Args:
        marked: recognise headings with ``#`` and fenced code (Markdown).
        underlined: recognise headings underlined with ``===`` or ``---`` (Markdown, reStructuredText).
    """

    def __init__(self, *, marked: bool = True, underlined: bool = True) -> None:
        self._marked, self._underlined = marked, underlined
        self._headings: list[_Heading] = []
        self._bare_heading = False  # no text under the last heading yet
        self._block: list[str] = []  # the paragraph or fenced block being read
        self._block_line = self._block_size = 0
        self._fence = ""  # the marker that opened the fenced block
        self._passage: list[str] = []  # finished paragraphs that were not yielded yet
        self._passage_line = 0

    def feed(self, number: int, line: str) -> Iterator[Piece]:
        """Yield the passages that ``line``, without its line end, completes."""
        rule = _RULE.match(line) if self._underlined and not self._fence else None
        if self._fence:
            yield from self._fenced(number, line)
        elif self._marked and (fence := _FENCE.match(line)):
            yield from self._end_block()
            self._fence = fence[1]
            yield from self._add(number, line)
        elif not line.strip():
            yield from self._end_block()
        elif self._marked and (heading := _HEADING.match(line)):
            yield from self._end_block()
            yield from self._open(_Heading(len(heading[1]), heading[2], number))
        elif rule and len(self._block) == 1:
            title = self._block.pop().strip()
            yield from self._open(_Heading(_RULE_LEVELS.index(rule[1]) + 1, title, number - 1))
        elif not (rule and not self._block):  # a rule on its own is a divider
            yield from self._add(number, line)

    def end(self) -> Iterator[Piece]:
        """Yield the rest, at the end of the file."""
        yield from self._end_block()
        yield from self._end_passage()

    def _fenced(self, number: int, line: str) -> Iterator[Piece]:
        yield from self._add(number, line)
        closing = _FENCE.match(line)
        if closing and closing[1].startswith(self._fence) and not closing[2].strip():
            yield from self._end_block()
            self._fence = ""

    def _add(self, number: int, line: str) -> Iterator[Piece]:
        if not self._block:
            self._block_line, self._block_size = number, 0
        self._block.append(line)
        self._block_size += len(line) + 1
        # A file without blank lines must not fill the memory or become one giant passage.
        if self._block_size > (_LONG_CODE if self._fence else _LONG):
            yield from self._end_block()

    def _end_block(self) -> Iterator[Piece]:
        lines, self._block = self._block, []
        text = "\n".join(lines).strip("\n").rstrip()
        if not text:
            return
        for piece in _cut(text, _LONG_CODE if self._fence else _LONG):
            if self._passage and sum(map(len, self._passage)) + len(piece) > _PASSAGE:
                yield from self._end_passage()
            if not self._passage:
                self._passage_line = self._block_line
            self._passage.append(piece)

    def _end_passage(self) -> Iterator[Piece]:
        texts, self._passage = self._passage, []
        path = " > ".join(heading.title for heading in self._headings if heading.title)
        if texts:
            yield Piece(self._passage_line, "\n\n".join([path, *texts] if path else texts))
        elif self._bare_heading and path:
            yield Piece(self._headings[-1].line, path)
        self._bare_heading = False

    def _open(self, heading: _Heading) -> Iterator[Piece]:
        deeper = bool(self._headings) and self._headings[-1].level < heading.level
        if self._passage or not deeper:  # the path of a deeper heading includes a bare one above it
            yield from self._end_passage()
        while self._headings and self._headings[-1].level >= heading.level:
            self._headings.pop()
        self._headings.append(heading)
        self._bare_heading = bool(heading.title)


def _cut(text: str, limit: int) -> Iterator[str]:
    """Cut into pieces of about one passage: after a line, else a sentence, else a word, else anywhere."""
    while len(text) > limit:
        window = text[: limit * 3 // 4]
        ends = (window.rfind("\n"), window.rfind(". ") + 1, window.rfind(" "))
        at = next((end for end in ends if end > limit // 4), limit // 2)
        yield text[:at].rstrip()
        text = text[at:].lstrip("\n" if text[at] == "\n" else None)  # keeps the indentation of a line
    yield text
