"""Cuts the lines of Markdown, reStructuredText or plain text into passages, holding one at a time in memory.

A passage is some paragraphs of one section, about as much as an embedding can see, and begins with the path
of the headings above it (``Guide > Install``). No character of a paragraph is lost, save blanks at its ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Piece", "Splitter"]

_PASSAGE = 800  # characters that small paragraphs are merged up to
_LONG = 2 * _PASSAGE  # a paragraph over this is cut
_LONG_CODE = 8_000  # and a fenced block over this, for nobody recalls a thousand lines

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")
_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*$")
_RULE = re.compile(r"([=\-~^\"*+])\1{2,}[ \t]*$")
_RULE_LEVELS = '=-~^"*+'  # reStructuredText leaves the order open; this is the usual one


@dataclass(frozen=True, slots=True)
class Piece:
    """One passage and the line where it begins, from 1."""

    line: int
    text: str


@dataclass(frozen=True, slots=True)
class _Heading:
    level: int
    title: str
    line: int


class Splitter:
    """Fed with lines in order; gives each passage as soon as it is whole.

    Args:
        marked: headings by ``#`` and fenced code are known (Markdown).
        underlined: headings by a line of ``===`` or ``---`` below are known (Markdown, reStructuredText).
    """

    def __init__(self, *, marked: bool = True, underlined: bool = True) -> None:
        self._marked, self._underlined = marked, underlined
        self._headings: list[_Heading] = []
        self._untold = False  # nothing stands under the last heading yet
        self._block: list[str] = []  # the paragraph or fenced block being read
        self._block_line = self._block_size = 0
        self._fence = ""  # what opened the fenced block
        self._passage: list[str] = []  # finished paragraphs, not given out yet
        self._passage_line = 0

    def feed(self, number: int, line: str) -> Iterator[Piece]:
        """Passages that this line completes; ``line`` comes without its line end."""
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
        elif not (rule and not self._block):  # a rule on its own only divides
            yield from self._add(number, line)

    def end(self) -> Iterator[Piece]:
        """What is left, at the end of the file."""
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
        # A file without blank lines must neither pile up in memory nor become one giant passage.
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
        elif self._untold and path:
            yield Piece(self._headings[-1].line, path)
        self._untold = False

    def _open(self, heading: _Heading) -> Iterator[Piece]:
        deeper = bool(self._headings) and self._headings[-1].level < heading.level
        if self._passage or not deeper:  # a bare heading above a deeper one is told by that one's path
            yield from self._end_passage()
        while self._headings and self._headings[-1].level >= heading.level:
            self._headings.pop()
        self._headings.append(heading)
        self._untold = bool(heading.title)


def _cut(text: str, limit: int) -> Iterator[str]:
    """Pieces of about a passage each, cut after a line, else a sentence, else a word, else anywhere."""
    while len(text) > limit:
        window = text[: limit * 3 // 4]
        ends = (window.rfind("\n"), window.rfind(". ") + 1, window.rfind(" "))
        at = next((end for end in ends if end > limit // 4), limit // 2)
        yield text[:at].rstrip()
        text = text[at:].lstrip("\n" if text[at] == "\n" else None)  # keeps the indentation of a line
    yield text
