"""The log of producers that ended before all their entries were known to be in the store, with their numbers.

A Redis that forgets takes the numbers of the entries along, too. This log is beside the store, so that
``iai-mcp verify`` misses what is gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec

from iai_mcp.common.files import append_lines, read_lines
from iai_mcp.entries.fields import SEQ_MAX

__all__ = ["EndedProducer", "ProducerLog"]


class EndedProducer(msgspec.Struct, frozen=True):
    """A producer that has ended.

    Attributes:
        handed_out: number of entries that it handed out; the least that is known where it was ``killed``.
        killed: whether its process ended without a word.
    """

    producer: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    handed_out: Annotated[int, msgspec.Meta(ge=0, le=SEQ_MAX)]
    killed: bool = False


class ProducerLog:
    """The log of one store, an append-only file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, ended: EndedProducer) -> None:
        """Note a producer, durably.

        Raises:
            OSError: the file cannot be written.
        """
        append_lines(self._path, msgspec.json.encode(ended) + b"\n")

    def read(self) -> Iterator[EndedProducer]:
        """Every producer noted so far; one that ran several times comes several times.

        Raises:
            OSError: the file cannot be read.
        """
        return read_lines(self._path, EndedProducer)
