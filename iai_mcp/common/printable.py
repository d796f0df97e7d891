"""Makes texts from outside harmless where people read them: on a terminal, in a log line, in a message.

Unsafe are characters that move the cursor, ring the bell, end a line, turn the writing direction or hide:
controls, escapes, bidi marks and overrides, U+2028 and U+2029, invisible tags and blanks, lone surrogates. The
joiners U+200C and U+200D stay, because scripts and emoji need them.
"""

from __future__ import annotations

import re

__all__ = ["coloured_only", "escaped", "flat", "plain"]

_CLASS = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f"
)
_UNSAFE = re.compile(f"[{_CLASS}]")
_LINES = re.compile(r"[\t\n\r\v\f\x85\u2028\u2029]+")
# A colour, bold, dim, italic, underlined, and the end of them; never hidden or blinking.
_COLOUR = r"\x1b\[(?:[0-4]|2[2-4]|[39][0-7]|39)?(?:;(?:[0-4]|[39][0-7]))*m"
_UNSAFE_OR_COLOUR = re.compile(f"({_COLOUR})|[{_CLASS}]")


def plain(text: str) -> str:
    """``text`` with U+FFFD for each unsafe character; lines and tabs stay."""
    return _UNSAFE.sub("\ufffd", text.replace("\r\n", "\n"))


def flat(text: str) -> str:
    """``text`` on one line, with U+FFFD for each unsafe character and one blank for each end of a line."""
    return plain(_LINES.sub(" ", text))


def coloured_only(text: str) -> str:
    """As :func:`plain`, but the escapes of plain colours stay."""
    return _UNSAFE_OR_COLOUR.sub(lambda found: found[1] or "\ufffd", text.replace("\r\n", "\n"))


def escaped(text: str) -> str:
    r"""``text`` with an escape such as ``\u202e`` for each unsafe character; JSON keeps its meaning."""
    return _UNSAFE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    number = ord(found[0])
    if number > 0xFFFF:  # JSON spells it as two halves
        number -= 0x10000
        return f"\\u{0xD800 + (number >> 10):04x}\\u{0xDC00 + (number & 0x3FF):04x}"
    return f"\\u{number:04x}"
