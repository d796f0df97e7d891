"""A console of Rich that prints no unsafe character of a text, whatever a renderable holds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.segment import Segment

from iai_mcp.common.printable import plain

__all__ = ["SafeConsole"]


class SafeConsole(Console):
    """Rich's console without markup, emoji codes and highlighting, and with every text checked.

    Its own escapes (colours, the moves of a progress bar) are no text, so they stay.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        """The segments of ``renderable``, safe to print."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(plain(segment.text), segment.style)
